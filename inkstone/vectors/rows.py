"""What the compiled loops do with whole rows of a matrix, in full-width vector instructions.

Given addresses, LLVM need not fear that two rows overlap, which keeps it from vectorising loops
over arrays. Any processor: LLVM cuts the vectors to what it has.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

LANES = 16  # numbers at a time, 512 bits
FAST = ("fast",)


class RowFunctions(NamedTuple):
    """Functions of addresses (uint64) of rows of D fp32, for code that Numba compiles.

    Attributes:
        dot: (x, y) → x · y.
        put: (y, a, x): y = a · x.
        add: (y, a, x): y += a · x.
    """

    dot: Any
    put: Any
    add: Any


@functools.cache
def row_functions(d_model: int) -> RowFunctions:
    """For rows of one length."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    single, integer = ir.FloatType(), ir.IntType(64)

    def parts(builder: Any, *addresses: Any) -> Iterator[tuple[Any, ...]]:
        """Pointers to the same part of each row, from part to part."""
        for start in range(0, d_model, LANES):
            kind = ir.VectorType(single, min(LANES, d_model - start)).as_pointer()
            offset = ir.Constant(integer, 4 * start)
            yield tuple(builder.inttoptr(builder.add(a, offset), kind) for a in addresses)

    def dot_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums: dict[int, Any] = {}
        for left, right in parts(builder, *arguments):
            x, y = (builder.load(pointer, align=4) for pointer in (left, right))
            product = builder.fmul(x, y, flags=FAST)
            size = x.type.count
            sums[size] = builder.fadd(sums[size], product, flags=FAST) if size in sums else product
        total = ir.Constant(single, 0.0)
        for value in sums.values():
            kind = ir.FunctionType(single, [single, value.type])
            name = f"llvm.vector.reduce.fadd.v{value.type.count}f32"
            reduce = cgutils.get_or_insert_function(builder.module, kind, name)
            total = builder.call(reduce, [total, value], fastmath=FAST)
        return total

    def scaled_code(builder: Any, arguments: Any, *, onto: bool) -> None:
        target, factor, source = arguments
        for left, right in parts(builder, target, source):
            x = builder.load(right, align=4)
            spread = ir.Constant(x.type, ir.Undefined)
            for lane in range(x.type.count):
                spread = builder.insert_element(spread, factor, ir.Constant(ir.IntType(32), lane))
            value = builder.fmul(spread, x, flags=FAST)
            if onto:
                value = builder.fadd(builder.load(left, align=4), value, flags=FAST)
            builder.store(value, left, align=4)

    def put_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scaled_code(builder, arguments, onto=False)
        return context.get_dummy_value()

    def add_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scaled_code(builder, arguments, onto=True)
        return context.get_dummy_value()

    row, number = types.uint64, types.float32

    @intrinsic  # type: ignore[untyped-decorator]
    def dot(typing: Any, x: Any, y: Any) -> Any:
        return number(row, row), dot_code

    @intrinsic  # type: ignore[untyped-decorator]
    def put(typing: Any, y: Any, a: Any, x: Any) -> Any:
        return types.void(row, number, row), put_code

    @intrinsic  # type: ignore[untyped-decorator]
    def add(typing: Any, y: Any, a: Any, x: Any) -> Any:
        return types.void(row, number, row), add_code

    return RowFunctions(dot, put, add)
