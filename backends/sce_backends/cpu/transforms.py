"""Temperature, soft cap and bias, a vector at a time: z + lo, because z rounded would cost its exponential.

A z of 80, rounded to float32, is off by up to 40 ulp of exp(z): lo is what the rounding lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .cache import inline
from .memory import size_of
from .simd import LINE, fused, halves, joined, select, splat, store
from .vector_math import difference_error, fma, short_exponential


@inline()
def reciprocal(temperature: Any, one: Any) -> Any:
    """1 / T in two words of the compute dtype."""
    by = type(one)(1.0 / temperature)
    if size_of(one) == 8:
        return by, type(one)(fma(-by, temperature, 1.0) / temperature)
    return by, type(one)(1.0 / temperature - np.float64(by))


@inline()
def scaled(x: Any, by: Any, by_lo: Any) -> Any:
    """(z, lo) with z + lo = (by + by_lo) x."""
    z = x * by
    return z, fused(x, by_lo, fused(x, by, -z))


@inline(fastmath=())
def affine(x: Any, by: Any, by_lo: Any, bias: Any, bias_lo: Any) -> Any:
    """(z, lo) with z + lo = (by + by_lo) x + bias + bias_lo, to about twice the dtype's precision."""
    scaled = x * by
    z = scaled + bias
    return z, fused(x, by, -scaled) + (fused(x, by_lo, difference_error(scaled, -bias, z)) + bias_lo)


def soft_cap(x: Any, p: Any, bias: Any, bias_lo: Any, slope: Any) -> Any:
    """(z, lo) with z + lo = cap tanh(x / (T cap)) + bias + bias_lo, of 16 float32; dz/dx to `slope`.

    With E = exp(-2 u): tanh = 1 - 2 E / (1 + E) and its slope 4 E / (1 + E)^2, in float64: z is off by less
    than cap 2^-37, and the slope by 2^-36 of itself. Infinities pass through.
    """


@overload(soft_cap, jit_options={"forceinline": True})
def _soft_cap(x: Any, p: Any, bias: Any, bias_lo: Any, slope: Any) -> Any:
    def soft_cap(x: Any, p: Any, bias: Any, bias_lo: Any, slope: Any) -> Any:
        a, b = halves(x)
        c, d = halves(bias)
        z_a = _cap(a, p, slope) + c
        z_b = _cap(b, p, slope + LINE) + d
        z = joined(z_a, z_b)
        e, f = halves(z)
        return z, joined(z_a - e, z_b - f) + bias_lo

    return soft_cap


@inline()
def _cap(x: Any, p: Any, slope: Any) -> Any:
    t = x * (-2.0 / (p.temperature * p.softcap))
    t = select(t > 708.0, splat(708.0), t)  # where the slope vanishes
    e = short_exponential(t)
    by = 1.0 / (e + 1.0)
    half = e * by
    store(1.0, slope, half * by * (4.0 / p.temperature))
    return select(x - x == 0.0, fused(half, -2.0 * p.softcap, splat(p.softcap)), x)
