"""Copy and read in Numba, with vector instructions: LLVM makes no streaming stores by itself."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils

_LANES = 8  # float64 words of 64 bytes: a cache line, and the widest vector there is
_LINE = 64


@numba.extending.intrinsic
def _stream_lines(typing_context: Any, to: Any, of: Any, lines: Any) -> Any:
    """Copy whole cache lines from address `of` to address `to`, a multiple of 64, by streaming stores."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), _LANES)
        target, source = (builder.inttoptr(a, line.as_pointer()) for a in args[:2])
        flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, args[2]) as loop:
            value = builder.load(builder.gep(source, [loop.index]), align=1)
            store = builder.store(value, builder.gep(target, [loop.index]), align=_LINE)
            store.set_metadata("nontemporal", flag)
        builder.fence("seq_cst")  # streaming stores are weakly ordered
        return context.get_dummy_value()

    return numba.void(numba.uintp, numba.uintp, numba.intp), code


@numba.njit(nogil=True)
def copy(to: Any, of: Any) -> None:
    """Bytes from `of` to `to`."""
    head = min(-to.ctypes.data % _LINE, to.size)
    lines = (to.size - head) // _LINE
    for i in range(head):
        to[i] = of[i]
    copy_lines: Any = _stream_lines  # whose declared type forgets that the typing context is not passed
    copy_lines(to.ctypes.data + head, of.ctypes.data + head, lines)
    for i in range(head + lines * _LINE, to.size):
        to[i] = of[i]


@numba.njit(nogil=True)
def read(x: Any) -> Any:
    """The sum of the bytes, as 64-bit words: cheap enough that the memory is what limits it."""
    words = x[: x.size // 8 * 8].view(numba.uint64)
    total = numba.uint64(0)
    for i in range(words.size):
        total += words[i]
    return total
