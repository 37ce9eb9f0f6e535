"""Rows of logits by address: views of contiguous ones, and loads and stores for the rest.

Addresses, because Numba would compile every kernel again for each combination of layouts and for read-only
arrays. A matrix arrives as (witness, address, strides in bytes of A, B and C), where the witness is a zero of
the dtype. Half types, which Numba's CPU target lacks, travel as integers of their width: int16 is a float16,
uint16 a bfloat16.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.extending import intrinsic

from .cache import inline


@intrinsic
def _pointer(typingctx: Any, witness: Any, address: Any) -> Any:
    """A typed pointer to an address."""
    pointer = nb.types.CPointer(witness)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(pointer))

    return pointer(witness, address), codegen


@inline()
def view(witness: Any, address: Any, n: Any) -> Any:
    """n contiguous values at an address, as an array that owns nothing."""
    return nb.carray(_pointer(witness, address), n)


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


@inline()
def load(witness: Any, address: Any) -> Any:
    """One value, widened."""
    return widen(_pointer(witness, address)[0])


@inline()
def store(witness: Any, address: Any, value: Any) -> None:
    """One value, narrowed."""
    _pointer(witness, address)[0] = narrow(value, witness)
