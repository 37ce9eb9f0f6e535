"""Rows by address: views of those that can be worked on in place, and copies in and out for the rest.

Addresses, because Numba would compile every kernel again for each combination of layouts and for read-only
arrays; in kernel.py, which few calls need, dtypes are numbers, too. Half types, which Numba's CPU target
lacks, are read and written as integers of their width: int16 stands for float16, uint16 for bfloat16.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import overload
from numba.np.numpy_support import carray

from .cache import inline, intrinsic, jit

FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(4)
WITNESSES = {
    "float16": np.int16(1), "bfloat16": np.uint16(1), "float32": np.float32(1), "float64": np.float64(1)
}  # fmt: skip
"""A number that stands for each type in memory."""

MATRIX = np.dtype([(name, np.int64) for name in ("dtype", "address", "of_a", "of_b", "of_c")])
"""A matrix of rows: one of the four numbers above, its address, and its strides in bytes. Address 0: none."""


_DATA = object.__basicsize__


def address(x: np.ndarray[Any, Any]) -> int:
    """Where an array's elements begin. `x.ctypes.data` says so, too, and takes a microsecond.

    It is the first field after the object's head: NumPy's C interface promises the place.
    """
    return ctypes.c_void_p.from_address(id(x) + _DATA).value or 0


@intrinsic
def pointer(typingctx: Any, witness: Any, address: Any) -> Any:
    """A typed pointer to an address."""
    pointer = nb.types.CPointer(witness)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(pointer))

    return pointer(witness, address), codegen


@intrinsic
def get(typingctx: Any, witness: Any, address: Any) -> Any:
    """The value at an address, of the witness's type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[1], context.get_value_type(witness).as_pointer())
        return builder.load(place, align=witness.bitwidth // 8)

    return witness(witness, nb.int64), codegen


@intrinsic
def put(typingctx: Any, witness: Any, address: Any, value: Any) -> Any:
    """One value to an address, in the witness's type. `pointer(...)[0] = value` may be dropped: Numba's
    removal of dead code takes what it points to for a local array that nobody reads.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = context.cast(builder, args[2], signature.args[2], witness)
        builder.store(value, builder.inttoptr(args[1], value.type.as_pointer()), align=witness.bitwidth // 8)
        return context.get_dummy_value()

    return nb.void(witness, nb.int64, value), codegen


def size_of(witness: Any) -> Any:
    """Bytes of a number of the witness's type."""


@overload(size_of, inline="always")
def _size_of(witness: Any) -> Any:
    size = witness.bitwidth // 8

    def constant(witness: Any) -> Any:
        return size

    return constant


@inline()
def row_at(matrix: Any, a: Any, b: Any) -> Any:
    """The address of row (a, b)."""
    return matrix.address + a * matrix.of_a + b * matrix.of_b


@inline()
def view(witness: Any, address: Any, n: Any) -> Any:
    """n contiguous values at an address, as an array that owns nothing."""
    return carray(pointer(witness, address), n)


@inline()
def slot(witness: Any, base: Any, index: Any, length: Any, n: Any) -> Any:
    """The first n values of row `index` of a scratch array whose rows have `length`."""
    return view(witness, base + index * length * view(witness, base, 1).itemsize, n)


@inline()
def view_of_records(dtype: Any, address: Any) -> Any:
    """The same for a structured dtype: one record."""
    return carray(_void_pointer(address), 1, dtype)


@intrinsic
def _void_pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(nb.types.voidptr))

    return nb.types.voidptr(address), codegen


@intrinsic
def widen(typingctx: Any, x: Any) -> Any:
    """A stored value as a float: half types become float32, exactly."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (v,) = args
        if x == nb.int16:
            return builder.fpext(builder.bitcast(v, ir.HalfType()), ir.FloatType())
        if x == nb.uint16:
            word = ir.IntType(32)
            return builder.bitcast(builder.shl(builder.zext(v, word), ir.Constant(word, 16)), ir.FloatType())
        return v

    return (nb.float32 if x in (nb.int16, nb.uint16) else x)(x), codegen


@intrinsic
def narrow(typingctx: Any, x: Any, witness: Any) -> Any:
    """A float as the witness's type, rounded to nearest even; NaN stays NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        v = context.cast(builder, args[0], x, nb.float32 if witness in (nb.int16, nb.uint16) else witness)
        if witness == nb.int16:
            return builder.bitcast(builder.fptrunc(v, ir.HalfType()), ir.IntType(16))
        if witness == nb.uint16:
            word = ir.IntType(32)
            bits = builder.bitcast(v, word)
            odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
            rounded = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
            # Rounding would carry a NaN's mantissa into the exponent.
            nan = builder.fcmp_unordered("uno", v, v)
            kept = builder.select(nan, ir.Constant(word, 0x7FC00000), rounded)
            return builder.trunc(builder.lshr(kept, ir.Constant(word, 16)), ir.IntType(16))
        return v

    return witness(x, witness), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not be there."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [place], ir.FunctionType(ir.VoidType(), [place, number, number, number])
        )
        reads, into_l2, data = (ir.Constant(number, n) for n in (0, 2, 1))
        builder.call(function, [builder.inttoptr(args[0], place), reads, into_l2, data])
        return context.get_dummy_value()

    return nb.void(nb.int64), codegen


@intrinsic
def _stream_lines(typingctx: Any, to: Any, of: Any, lines: Any) -> Any:
    """Copy cache lines to an address that is a multiple of 64, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), 8)
        target, source = (builder.inttoptr(a, line.as_pointer()) for a in args[:2])
        past_caches = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, args[2]) as loop:
            value = builder.load(builder.gep(source, [loop.index]), align=1)
            store = builder.store(value, builder.gep(target, [loop.index]), align=64)
            store.set_metadata("nontemporal", past_caches)
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64), codegen


@intrinsic
def copy_line(typingctx: Any, to: Any, of: Any) -> Any:
    """One cache line, between addresses that are multiples of it, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), 8)
        target, source = (builder.inttoptr(a, line.as_pointer()) for a in args)
        stored = builder.store(builder.load(source, align=64), target, align=64)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64), codegen


@intrinsic
def fence(typingctx: Any) -> Any:
    """What was streamed is visible to other threads from here on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return nb.void(), codegen


@jit()
def copy_bytes(to: Any, of: Any, size: Any, past_caches: Any) -> None:
    """Plainly, or by streaming stores: they spare the read of each line before it is written."""
    target, source = view(np.uint8(0), to, size), view(np.uint8(0), of, size)
    head = min(-to % 64, size) if past_caches else size
    for k in range(head):
        target[k] = source[k]
    lines = (size - head) // 64
    _stream_lines(to + head, of + head, lines)
    for k in range(head + 64 * lines, size):
        target[k] = source[k]


@jit()
def gather_line(witness: Any, address: Any, stride: Any, out: Any) -> None:
    """out.size values of the witness's type, `stride` bytes apart, into a contiguous array."""
    source = view(witness, address, out.size)
    if stride == source.itemsize:
        for k in range(out.size):
            out[k] = widen(source[k])
    else:
        for k in range(out.size):
            out[k] = widen(pointer(witness, address + k * stride)[0])


@jit()
def gather(row: Any, a: Any, b: Any, start: Any, out: Any) -> None:
    """Row (a, b) of a matrix of any dtype and strides, from class `start` on, into a contiguous array."""
    address = row_at(row, a, b) + start * row.of_c
    if row.dtype == FLOAT16:
        gather_line(np.int16(0), address, row.of_c, out)
    elif row.dtype == BFLOAT16:
        gather_line(np.uint16(0), address, row.of_c, out)
    elif row.dtype == FLOAT32:
        gather_line(np.float32(0), address, row.of_c, out)
    else:
        gather_line(np.float64(0), address, row.of_c, out)


@jit()
def _scatter(row: Any, witness: Any, address: Any, stride: Any) -> None:
    into = view(witness, address, row.size)
    if stride == into.itemsize:
        for k in range(row.size):
            into[k] = narrow(row[k], witness)
    else:
        for k in range(row.size):
            pointer(witness, address + k * stride)[0] = narrow(row[k], witness)


@jit()
def scatter(row: Any, matrix: Any, a: Any, b: Any, start: Any) -> None:
    """The way back: a contiguous array of the compute dtype to row (a, b) of a matrix, from `start` on."""
    store(row, matrix, row_at(matrix, a, b) + start * matrix.of_c, matrix.of_c)


@jit()
def store(row: Any, matrix: Any, address: Any, stride: Any) -> None:
    """A contiguous array of the compute dtype to an address, in the matrix's dtype."""
    if matrix.dtype == FLOAT16:
        _scatter(row, np.int16(0), address, stride)
    elif matrix.dtype == BFLOAT16:
        _scatter(row, np.uint16(0), address, stride)
    elif matrix.dtype == FLOAT32:
        _scatter(row, np.float32(0), address, stride)
    else:
        _scatter(row, np.float64(0), address, stride)


@jit()
def clear(matrix: Any, a: Any, b: Any, n: Any) -> None:
    """Zeros in row (a, b); every dtype's zero is all bits zero."""
    address = row_at(matrix, a, b)
    for k in range(n):
        if matrix.dtype <= BFLOAT16:
            pointer(np.uint16(0), address + k * matrix.of_c)[0] = np.uint16(0)
        elif matrix.dtype == FLOAT32:
            pointer(np.float32(0), address + k * matrix.of_c)[0] = np.float32(0)
        else:
            pointer(np.float64(0), address + k * matrix.of_c)[0] = 0.0
