"""Numbers of two words, exp and log for kernels: plain functions made for one vocabulary and one float type.

A *pair* (h, t) stands for the exact sum h + t, its tail t being about an ulp of h or less. A float32 kernel
has float64's accuracy where it needs it this way, at the speed of float32. docs/math.md has the errors.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

LN2 = 0.6931471805599453
LOG2E = 1.4426950408889634
FAR = 32768.0
"""From this size on a pivot is a base that is subtracted: the difference of all that counts is exact."""

_SETS: dict[str, dict[str, Any]] = {
    "float32": {
        "bits": 23,
        "bias": 127,
        "magic": 12583039.0,  # 1.5 * 2**23 + bias: added, it leaves an integer and the exponent's offset
        "ln2": (0.693147182464599609375, -1.9046542999577679e-09),
        "exp": (0.000198910013, 0.00139336591, 0.00833331048, 0.041666463, 0.166666672, 0.5),
        "log": 5,
        "high": 126.0,
        "low": 2.0**-100,
    },
    "float64": {
        "bits": 52,
        "bias": 1023,
        "magic": 6755399441056767.0,
        "ln2": (0.6931471805599453, 2.3190468138462996e-17),
        "exp": (
            2.0914694560351592e-09, 2.510522763655176e-08, 2.755727362486648e-07, 2.7557255374658744e-06,
            2.4801587325562125e-05, 0.00019841269874840768, 0.0013888888888883744, 0.008333333333326129,
            0.04166666666666667, 0.1666666666666667, 0.5,
        ),
        "log": 12,
        "high": 1022.0,
        "low": 2.0**-900,
    },
}  # fmt: skip


def arithmetic(d: Any, dtype: str) -> SimpleNamespace:
    """The functions below, for kernels of the vocabulary `d` that compute in `dtype`."""
    given = _SETS[dtype]
    real = np.dtype(dtype).type
    word: Any = {"float32": np.int32, "float64": np.int64}[dtype]
    fma, times, inverse, maximum = d.fma, d.times, d.inverse, d.maximum
    bits_of, from_bits = d.bits_of, d.from_bits
    magic, offset = given["magic"], word(given["bias"])
    ln2_h, ln2_t = (real(x) for x in given["ln2"])
    ln2, log2e = real(LN2), real(LOG2E)
    zero, one, two = real(0), real(1), real(2)
    shift = word(given["bits"])
    first, *rest = (real(x) for x in given["exp"])
    polynomial = tuple(rest)
    inverse_odd = tuple(real(2.0 / (2 * j + 1)) for j in range(given["log"], 0, -1))
    series, terms = inverse_odd[1:], len(inverse_odd) - 1
    degree = len(polynomial)
    lead = inverse_odd[0]
    root_half = word(np.frombuffer(real(np.sqrt(0.5)).tobytes(), word)[0])
    wide = dtype == "float64"
    far, high, low, inf = real(FAR), real(given["high"]), real(given["low"]), real(np.inf)
    magic_number, below = real(magic), real(given["bias"])

    @d.inline
    def two_sum(a, b):
        """a + b as a pair, exactly (Knuth)."""
        s = a + b
        back = s - a
        return s, (a - (s - back)) + (b - back)

    @d.inline
    def fast_two_sum(a, b):
        """The same where abs(a) >= abs(b), or a is 0 (Dekker)."""
        s = a + b
        return s, b - (s - a)

    @d.inline
    def add(ah, at, bh, bt):
        """The sum of two pairs, the same bits in either order. An infinite one has the tail 0."""
        s, e = two_sum(ah, bh)
        h, t = fast_two_sum(s, e + (at + bt))
        if not abs(s) < inf:
            h, t = s, zero
        return h, t

    @d.inline
    def accumulate(h, t, v):
        """The pair plus one number; the tail is not carried over into the head."""
        s, e = two_sum(h, v)
        return s, t + e if abs(s) < inf else zero

    @d.inline
    def multiply(ah, at, bh, bt):
        """The product of two pairs."""
        p = times(ah, bh)
        e = fma(ah, bh, -p) + fma(ah, bt, times(at, bh))
        return fast_two_sum(p, e)

    @d.inline
    def divide(ah, at, bh, bt):
        """The quotient of two pairs. What a rough inverse leaves is divided once more."""
        i = inverse(bh)
        q = times(ah, i)
        rest = fma(-q, bh, ah) + fma(-q, bt, at)
        return fast_two_sum(q, times(rest, i))

    @d.inline
    def finish(h, t):
        """A pair's value. An infinite or NaN one has no second word worth adding."""
        return h + t if abs(h) < inf else h

    @d.inline
    def pivot(top):
        """(base, k): exponentials are of (z - base) - k ln 2, with base = 0 or k = 0; see `exponential`.

        A base is subtracted without error where it counts: z within a factor of two of it (Sterbenz).
        """
        base, k = zero, zero
        if abs(top) < far:
            k = (fma(top, log2e, magic_number)) - magic_number
        else:
            base = top
        return base, k

    @d.inline
    def shifted_by(k):
        """What `exponential` needs to know of k."""
        return magic_number - k, (k - below) * ln2

    def exponentials(paired):
        @d.inline
        def exponential(z, tail, shift_k, floor):
            """2^-k exp(z + tail) for (shift_k, floor) = shifted_by(k); 0 below the floor, NaN for NaN.

            The pivot k ln 2 comes off the exponent, so that z - pivot is never rounded. n ln 2 = z to the
            nearest integer, in two words (Cody and Waite 1980): the first fused product is exact. Within
            0.7 * 2^-23 in float32. Not `paired`, the tail is not looked at.
            """
            above = z > floor
            z = maximum(z, floor)
            m = fma(z, log2e, shift_k)
            n = m - shift_k
            h = fma(n, -ln2_h, z)
            t = zero
            if paired:
                t = tail if above else zero
            if wide:
                t = fma(n, -ln2_t, t)
                r = h + t
                t = t - (r - h)
            else:
                h = fma(n, -ln2_t, h)
                r = h
                if paired:
                    r = h + t
                    t = t - (r - h)
            p = first
            for j in range(degree):
                p = fma(p, r, polynomial[j])
            s = from_bits(word(bits_of(m) << shift))
            if paired or wide:
                p = r + fma(times(p, r), r, t)
            else:
                p = fma(times(p, r), r, r)
            return fma(s, p, s)

        return exponential

    @d.inline
    def log_tail(fh, ft, k):
        """log(1 + f) + k ln 2 as a pair, for 1 + f in [sqrt(1/2), sqrt(2)) or f >= 0 below sqrt(2) - 1.

        s = f / (2 + f), log(1 + f) = 2 atanh(s) (Tang 1990): the first term as a pair, the others are small.
        """
        bh, bt = two_sum(two, fh)
        sh, st = divide(fh, ft, bh, bt + ft)
        z = times(sh, sh)
        p = lead
        for j in range(terms):
            p = fma(p, z, series[j])
        h, t = fast_two_sum(two * sh, fma(times(sh, z), p, two * st))
        ph = times(k, ln2_h)
        pt = fma(k, ln2_h, -ph) + times(k, ln2_t)
        h, e = two_sum(ph, h)
        return fast_two_sum(h, e + (t + pt))

    @d.inline
    def log(uh, ut):
        """The logarithm of a pair >= 2^-100, as a pair."""
        k = word((bits_of(uh) - root_half) >> shift)
        scale = from_bits(word((offset - k) << shift))
        return log_tail(times(uh, scale) - one, times(ut, scale), real(k))

    @d.inline
    def log1p(fh, ft):
        """log(1 + f) of a pair f >= 0, below 2^126, as a pair: relatively exact however small f is."""
        small = fh < real(0.41)
        uh, ut = fh, ft
        k = word(0)
        if not small:
            uh, ut = two_sum(one, fh)
            ut = ut + ft
            k = word((bits_of(uh) - root_half) >> shift)
            scale = from_bits(word((offset - k) << shift))
            uh = times(uh, scale) - one
            ut = times(ut, scale)
        return log_tail(uh, ut, real(k))

    return SimpleNamespace(
        real=real, inf=inf, high=high, low=low, ln2=ln2, ln2_h=ln2_h, ln2_t=ln2_t,
        two_sum=two_sum, fast_two_sum=fast_two_sum, add=add, accumulate=accumulate, multiply=multiply,
        divide=divide, finish=finish, pivot=pivot, shifted_by=shifted_by, exponential=exponentials(False),
        exponential_of_pair=exponentials(True), log=log, log1p=log1p,
    )  # fmt: skip
