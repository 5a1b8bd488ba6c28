"""A hint to the processor that memory will be read soon, for loops compiled by Numba."""

from __future__ import annotations

import functools
from typing import Any

LINE_BYTES = 64  # of a cache; where lines are longer, some hints are given twice


@functools.cache
def prefetch() -> Any:
    """A function of an address (uint64) that compiled code may call; it never faults."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    def hint(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        read, keep, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), read, keep, data])
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def call(typing: Any, address: Any) -> Any:
        return types.void(address), hint

    return call
