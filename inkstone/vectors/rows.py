"""What the compiled loops do with whole rows of a matrix, in full-width vector instructions.

Given addresses, LLVM need not fear that two rows overlap, which keeps it from vectorising loops
over arrays; and a row can be asked for ahead of its use. Any processor: LLVM cuts the vectors to
what it has.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

LANES = 16  # numbers at a time, 512 bits
LINE_BYTES = 64  # of a cache; where lines are longer, some are asked for twice
FAST = ("fast",)


class RowFunctions(NamedTuple):
    """Functions of addresses (uint64) of rows of D fp32, for code that Numba compiles.

    Attributes:
        dot: (x, y) → x · y.
        add: (y, a, x): y += a · x.
        fetch: (x): a hint that the row will be read soon; it never faults.
    """

    dot: Any
    add: Any
    fetch: Any


@functools.cache
def row_functions(d_model: int) -> RowFunctions:
    """For rows of one length."""
    from llvmlite import ir
    from numba import types
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
            name = "llvm.vector.reduce.fadd"
            reduce = builder.module.declare_intrinsic(name, [value.type], kind)
            total = builder.call(reduce, [total, value], fastmath=FAST)
        return total

    def add_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, factor, source = arguments
        for left, right in parts(builder, target, source):
            y, x = (builder.load(pointer, align=4) for pointer in (left, right))
            spread = ir.Constant(y.type, ir.Undefined)
            for lane in range(y.type.count):
                spread = builder.insert_element(spread, factor, ir.Constant(ir.IntType(32), lane))
            product = builder.fmul(spread, x, flags=FAST)
            builder.store(builder.fadd(y, product, flags=FAST), left, align=4)
        return context.get_dummy_value()

    def fetch_code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        hint = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = (ir.Constant(number, n) for n in (0, 3, 1))
        for start in range(0, 4 * d_model + LINE_BYTES - 4, LINE_BYTES):
            address = builder.add(arguments[0], ir.Constant(integer, start))
            builder.call(hint, [builder.inttoptr(address, pointer), read, keep, data])
        return context.get_dummy_value()

    row, number = types.uint64, types.float32

    @intrinsic  # type: ignore[untyped-decorator]
    def dot(typing: Any, x: Any, y: Any) -> Any:
        return number(row, row), dot_code

    @intrinsic  # type: ignore[untyped-decorator]
    def add(typing: Any, y: Any, a: Any, x: Any) -> Any:
        return types.void(row, number, row), add_code

    @intrinsic  # type: ignore[untyped-decorator]
    def fetch(typing: Any, x: Any) -> Any:
        return types.void(row), fetch_code

    return RowFunctions(dot, add, fetch)
