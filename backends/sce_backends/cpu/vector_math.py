"""Scalar functions that LLVM turns into vector code, with their error bounds.

Numba from PyPI has no vector math library: `np.exp` in a loop is a scalar call, and `max` over floats never
vectorises. These do: plain arithmetic, a bit cast and LLVM intrinsics.

exp is 2^n * exp(r) with |r| <= ln(2)/2 after Cody and Waite (1980), and exp(r) = 1 + r + r^2 P(r), where P is
the Chebyshev fit of (exp(r) - 1 - r) / r^2 (`mpmath.chebyfit` with 50 digits; tests/test_vector_math.py makes
it again). With a fused multiply-add the result is within 1.1 ulp for float32 and float64, measured there.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.extending import overload

from .cache import inline, intrinsic

F32, F64, I32, I64 = nb.float32, nb.float64, nb.int32, nb.int64


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger one; NaN if either is NaN. Numba's `max` does neither that nor vectorise."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        t = args[0].type
        # Declared with its function type: llvmlite would otherwise guess one with a single argument.
        function = builder.module.declare_intrinsic("llvm.maximum", [t], ir.FunctionType(t, [t, t]))
        return builder.call(function, args)

    return a(a, a), codegen


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        t = args[0].type
        function = builder.module.declare_intrinsic("llvm.fma", [t], ir.FunctionType(t, [t, t, t]))
        return builder.call(function, args)

    return a(a, a, a), codegen


@intrinsic
def shifted_bits(typingctx: Any, x: Any) -> Any:
    """The bits of x, shifted so that the low bits of its mantissa become an exponent, as a float."""
    bits, shift = (32, 23) if x == F32 else (64, 52)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(bits)
        moved = builder.shl(builder.bitcast(args[0], whole), ir.Constant(whole, shift))
        return builder.bitcast(moved, args[0].type)

    return x(x), codegen


def exp(d: Any, err: Any) -> Any:
    """exp(d + err) for d <= 0 up to rounding and a tiny err; exactly 0 below the smallest normal number."""


@overload(exp, jit_options={"forceinline": True, "fastmath": {"contract"}, "error_model": "numpy"})
def _exp(d: Any, err: Any) -> Any:
    if d == F32:

        def exp32(d: Any, err: Any) -> Any:
            # Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits; 127 is the exponent's offset.
            t = d * F32(1.4426950408889634) + F32(12583039.0)
            n = t - F32(12583039.0)
            r = d - n * F32(0.693359375)
            r = r - n * F32(-2.12194440054690583e-4) + err
            p = F32(0.000198910013)
            p = p * r + F32(0.00139336591)
            p = p * r + F32(0.00833331048)
            p = p * r + F32(0.041666463)
            p = p * r + F32(0.166666672)
            p = p * r + F32(0.5)
            e = (p * r * r + r + F32(1.0)) * shifted_bits(t)
            # A select, not a clamp of d: a clamp would turn NaN into a number.
            return F32(0.0) if d < F32(-87.33) else e

        return exp32

    def exp64(d: Any, err: Any) -> Any:
        t = d * 1.4426950408889634 + 6755399441056767.0  # 1.5 * 2^52 + 1023
        n = t - 6755399441056767.0
        r = d - n * 0.69314718036912382
        r = r - n * 1.90821492927058770e-10 + err
        p = 2.0914694560351592e-09
        p = p * r + 2.510522763655176e-08
        p = p * r + 2.755727362486648e-07
        p = p * r + 2.7557255374658744e-06
        p = p * r + 2.4801587325562125e-05
        p = p * r + 0.00019841269874840768
        p = p * r + 0.0013888888888883744
        p = p * r + 0.008333333333326129
        p = p * r + 0.04166666666666667
        p = p * r + 0.1666666666666667
        p = p * r + 0.5
        e = (p * r * r + r + 1.0) * shifted_bits(t)
        return 0.0 if d < -708.39 else e

    return exp64


@inline(fastmath=())
def difference_error(a: Any, b: Any, d: Any) -> Any:
    """The rounding error of d = a - b (Knuth's two-sum): a - b is exactly d + error."""
    back = d - a
    return (a - (d - back)) - (b + back)


@inline()
def exp_shifted(z: Any, top: Any, lo: Any) -> Any:
    """exp(z + lo - top): the subtraction's rounding error is kept, or 80 units of z would cost 40 ulp."""
    d = z - top
    return exp(d, difference_error(z, top, d) + lo)
