"""Mathematical functions with their error bounds: of vectors (simd.py), and scalar ones that LLVM vectorises.

Numba from PyPI has no vector math library: `np.exp` in a loop is a scalar call, and `max` over floats never
vectorises. These do: plain arithmetic, a bit cast and LLVM intrinsics.

exp is 2^n * exp(r) with |r| <= ln(2)/2 after Cody and Waite (1980), and exp(r) = 1 + r + r^2 P(r), or of
vectors 1 + r Q(r): P and Q are Chebyshev fits (`mpmath.chebyfit` with 50 digits; tests/test_cpu.py makes them
again). The results are within 1 ulp for float32 and float64, measured there.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import overload

from .cache import inline, intrinsic
from .memory import size_of
from .simd import exponent, fused, select, splat, split

F32, F64, I32, I64 = nb.float32, nb.float64, nb.int32, nb.int64
LN2, LOG2E = 0.6931471805599453, 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.6931471805582987, 1.6465949582897082e-12  # 37 bits, so that k LN2_HIGH is exact


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


def split_exp(d: Any, err: Any) -> Any:
    """(scale, r, s) with exp(d + err) = scale * (1 + r + s), for d <= 40 and a tiny err.

    scale is a power of 2, |r| <= ln(2)/2 and s about r^2 / 2, with the rounding error of r. Kept apart, they
    cost the caller one large rounding instead of four. Meaningless below `lowest(d)`.
    """


def lowest(d: Any) -> Any:
    """Where exp falls below the smallest normal number; from there down it is taken as exactly 0."""


@overload(lowest, inline="always")
def _lowest(d: Any) -> Any:
    value = np.float32(-87.33) if d == F32 else -708.39

    def constant(d: Any) -> Any:
        return value

    return constant


@overload(split_exp, jit_options={"forceinline": True, "fastmath": {"contract"}, "error_model": "numpy"})
def _split_exp(d: Any, err: Any) -> Any:
    if d == F32:

        def split32(d: Any, err: Any) -> Any:
            # Adding 1.5 * 2^23 rounds to an integer in the low mantissa bits; 127 is the exponent's offset.
            m = d * F32(1.4426950408889634) + F32(12583039.0)
            n = m - F32(12583039.0)
            high = d - n * F32(0.693359375)  # exact
            low = err - n * F32(-2.12194440054690583e-4)
            r = high + low
            p = F32(0.000198910013)
            p = p * r + F32(0.00139336591)
            p = p * r + F32(0.00833331048)
            p = p * r + F32(0.041666463)
            p = p * r + F32(0.166666672)
            p = p * r + F32(0.5)
            return shifted_bits(m), r, p * r * r + (low - (r - high))

        return split32

    def split64(d: Any, err: Any) -> Any:
        m = d * 1.4426950408889634 + 6755399441056767.0  # 1.5 * 2^52 + 1023
        n = m - 6755399441056767.0
        high = d - n * 0.69314718036912382  # exact
        low = err - n * 1.90821492927058770e-10
        r = high + low
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
        return shifted_bits(m), r, p * r * r + (low - (r - high))

    return split64


@inline(fastmath=())
def difference_error(a: Any, b: Any, d: Any) -> Any:
    """The rounding error of d = a - b (Knuth's two-sum): a - b is exactly d + error."""
    back = d - a
    return (a - (d - back)) - (b + back)


# Each of these ends in a select, not in a clamp of d: a clamp would turn NaN into a number.


@inline()
def exp(d: Any, err: Any) -> Any:
    """exp(d + err)."""
    scale, r, s = split_exp(d, err)
    return type(d)(0) if d < lowest(d) else scale + fma(scale, r, scale * s)


@inline()
def expm1_parts(d: Any, err: Any) -> Any:
    """(m, m_lo) with m + m_lo = exp(d + err) - 1, also for d near 0, to more than the dtype's precision."""
    scale, r, s = split_exp(d, err)
    whole, part, last = scale - type(d)(1), scale * r, scale * s  # the first two exact
    sum2 = whole + part
    m = sum2 + last
    m_lo = difference_error(whole, -part, sum2) + (last - (m - sum2))
    below = d < lowest(d)
    return type(d)(-1) if below else m, type(d)(0) if below else m_lo


@inline()
def exp_times_gap(d: Any, err: Any) -> Any:
    """-(d + err) * exp(d + err), 0 at -inf."""
    e = exp(d, err)
    return type(d)(0) if d < lowest(d) else -(d + err) * e


@inline()
def times_exp(d: Any, err: Any, c: Any, c_lo: Any) -> Any:
    """(c + c_lo) * exp(d + err), rounded about once instead of three times."""
    scale, r, s = split_exp(d, err)
    c, c_lo = c * scale, c_lo * scale
    return type(d)(0) if d < lowest(d) else c + fma(c, r, fma(c, s, c_lo))


@inline(fastmath=())
def add(total: Any, error: Any, value: Any) -> Any:
    """One step of Neumaier's sum (1974): the running total and the rounding error it has lost so far."""
    new = total + value
    if abs(total) >= abs(value):
        return new, error + ((total - new) + value)
    return new, error + ((value - new) + total)


@inline(fastmath=())
def finish(total: Any, error: Any) -> Any:
    """The sum. An infinite or NaN total has no error worth keeping."""
    return total + error if abs(total) < np.inf else total


# Of vectors.


def exponential(z: Any, lo: Any, shift: Any, floor: Any) -> Any:
    """2^-k exp(z + lo), where (shift, floor) = `shifted_by(k)`; lo is None or tiny beside z.

    A pivot that is a multiple of ln 2 costs nothing: it is taken off the exponent, and where z - pivot would
    be rounded, to some 40 ulp of exp at a difference of 80, z stays whole. n ln 2 = z to the nearest integer,
    in two words (Cody and Waite 1980): z - n ln2_hi is exact, because the product is fused and what is left
    has no more bits than z and ln2_hi. For |z| < FAR, or z below the floor, from where on the result is 0.

    Within 1 ulp: half for the last rounding, the rest for those of r and of the polynomial. lo = 0 gives the
    same bits as None, so r is a sum in either case.
    """


FAR = 32768.0


@inline()
def shifted_by(k: Any, one: Any) -> Any:
    """What `exponential` needs to know of k, a float64, for vectors of `one`'s type."""
    of = type(one)
    if size_of(one) == 4:
        return of(12583039.0 - k), of((k - 127.0) * LN2)
    return of(6755399441056767.0 - k), of((k - 1023.0) * LN2)


def shifts_by(k: Any) -> Any:
    """`shifted_by` of a vector's lanes."""


@overload(shifts_by, jit_options={"forceinline": True})
def _shifts_by(k: Any) -> Any:
    def shifts32(k: Any) -> Any:
        return F32(12583039.0) - k, (k - F32(127.0)) * F32(LN2)

    def shifts64(k: Any) -> Any:
        return 6755399441056767.0 - k, (k - 1023.0) * LN2

    return shifts32 if k.of == F32 else shifts64


@inline()
def reduced(z: Any, lo: Any, shift: Any, floor: Any) -> Any:
    """(s, r) of float32 with `exponential` = s exp(r), s a power of 2 or 0."""
    above = z > floor
    z = select(floor > z, floor, z)  # NaN stays
    m = fused(z, F32(1.4426950408889634), shift)  # the low bits are n - k and the exponent's offset
    n = m - shift
    high = fused(n, F32(-0.693147182464599609375), z)
    if lo is None:
        low = n * F32(1.9046542999577679e-09)
    else:
        low = fused(n, F32(1.9046542999577679e-09), select(above, lo, F32(0)))
    return exponent(m), high + low


@overload(exponential, jit_options={"forceinline": True})
def _exponential(z: Any, lo: Any, shift: Any, floor: Any) -> Any:
    if z.of == F32:

        def exponential32(z: Any, lo: Any, shift: Any, floor: Any) -> Any:
            s, r = reduced(z, lo, shift, floor)
            q = fused(r, F32(0.0013933659), F32(0.008369163))
            q = fused(q, r, F32(0.041666463))
            q = fused(q, r, F32(0.16666505))
            q = fused(q, r, F32(0.5))
            q = fused(q, r, F32(1.0))
            return s * fused(r, q, F32(1.0))

        return exponential32

    def exponential64(z: Any, lo: Any, shift: Any, floor: Any) -> Any:
        above = z > floor
        z = select(floor > z, floor, z)
        m = fused(z, 1.4426950408889634, shift)
        n = m - shift
        high = fused(n, -0.6931471805599453, z)
        if lo is None:
            low = n * -2.3190468138462996e-17
        else:
            low = fused(n, -2.3190468138462996e-17, select(above, lo, 0.0))
        r = high + low
        q = fused(r, 2.510522763655176e-08, 2.7626384891334234e-07)
        q = fused(q, r, 2.7557255374658744e-06)
        q = fused(q, r, 2.4801504280563415e-05)
        q = fused(q, r, 0.00019841269874840768)
        q = fused(q, r, 0.0013888888932540974)
        q = fused(q, r, 0.008333333333326129)
        q = fused(q, r, 0.041666666666572996)
        q = fused(q, r, 0.1666666666666667)
        q = fused(q, r, 0.5000000000000006)
        q = fused(q, r, 1.0)
        s = exponent(m)
        return s * fused(r, q, 1.0)

    return exponential64


@inline(fastmath=())
def log1p(x: Any) -> Any:
    """log(1 + x) of float64, for -1/2 <= x < 1e300; NaN for NaN. Within 1.5 ulp for x >= 0.

    1 + x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), its rounding error divided back in; log(1 + f)
    from s = f / (2 + f) after Tang (1990): 2 atanh(s) = 2 s + s^3 P(s^2) with a Chebyshev fit P, arranged
    around f, which is exact.
    """
    u = x + 1.0
    lost = difference_error(x, -1.0, u)
    k, m = split(u)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    p = fused(z, 0.14616449685043406, 0.15331721600556042)
    p = fused(p, z, 0.18182889125261723)
    p = fused(p, z, 0.2222221113479508)
    p = fused(p, z, 0.28571428625975487)
    p = fused(p, z, 0.39999999999899505)
    p = fused(p, z, 0.666666666666667)
    half = f * f * 0.5
    small = fused(s, fused(z, p, half), fused(k, 1.9082149292705877e-10, lost / u))
    return fused(k, 0.6931471803691238, f - (half - small))


# What float32 is made of needs no more than these.


@inline()
def short_exponential(z: Any) -> Any:
    """exp(z) of 8 float64 z < 709, within 2^-37 of itself; 0 for z < -708."""
    near = select(z < -708.0, splat(-708.0), z)
    m = fused(near, 1.4426950408889634, splat(6755399441056767.0))
    r = fused(m - 6755399441056767.0, -0.6931471805599453, near)
    p = fused(r, 2.4859601447719235e-05, 0.00019899297194311214)
    p = fused(p, r, 0.001388885402171441)
    p = fused(p, r, 0.0083332984558421)
    p = fused(p, r, 0.04166666671904369)
    p = fused(p, r, 0.16666666719060377)
    p = fused(p, r, 0.5)
    s = exponent(m)
    return select(z < -708.0, splat(0.0), fused(s, fused(p * r, r, r), s))


@inline(fastmath=())
def short_log1p(x: Any) -> Any:
    """log(1 + x) of 8 float64, as `log1p`, within 2^-35 of itself."""
    u = x + 1.0
    lost = select(u > 2.0, splat(0.0), difference_error(x, splat(-1.0), u))  # NaN stays
    k, m = split(u)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    p = fused(z, 0.23330467216303835, 0.28550820815960665)
    p = fused(p, z, 0.40000121839806124)
    p = fused(p, z, 0.6666666655449709)
    half = f * f * 0.5
    return fused(k, 0.6931471805599453, f - (half - fused(s, fused(z, p, half), lost)))


@inline(fastmath=())
def logistic(z: Any, lo: Any) -> Any:
    """(e, e_lo, log(1 + e), i, i_lo) of float32 z <= 0: exp(z + lo) = e + e_lo, i + i_lo = 1 / (1 + that).

    exp is `exponential`'s, and with e = s (1 + t) and log(1 + e) = e P(e) the latter is s (P + t P), so that
    e's rounding has no part in it. (P - 1) / e is a minimax fit whose coefficients were found one after the
    other, so that each makes up for the rounding of those before: to 2^-27 of log1p. Sums in pairs (Estrin):
    a chain of fused operations takes four cycles for each, and a processor looks no further than two chains.

    e within 1 ulp, log(1 + e) within 1.5, each pair within 2^-23.6 of itself; e_lo is what e's rounding lost.
    """
    shift, floor = shifted_by(0.0, F32(1.0))
    s, r = reduced(z, lo, shift, floor)
    r2 = r * r
    q = fused(r2, 0.0013933659, fused(r, 0.008369163, 0.041666463))
    q = fused(r2, q, fused(r, 0.16666505, 0.5))
    t = fused(r2, q, r)
    e = fused(s, t, s)
    e_lo = fused(s, t, s - e)
    e2 = e * e
    e4 = e2 * e2
    p = fused(e2, fused(e, 0.020169048, -0.057595447), fused(e, 0.10673291, -0.1535091))
    p = fused(e4, -0.0033108105, p)
    p = fused(e4, p, fused(e2, fused(e, 0.1969376, -0.24958248), fused(e, 0.33330476, -0.4999993)))
    whole = fused(p, e, 1.0)
    rest = fused(p, e, 1.0 - whole)
    cost = s * (whole + fused(t, whole, rest))
    total = e + 1.0
    lost = (e - (total - 1.0)) + e_lo
    i = 1.0 / total
    return e, e_lo, cost, i, i * fused(-i, lost, fused(-i, total, 1.0))
