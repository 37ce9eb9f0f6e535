"""The loops over one row's classes: plain loops that LLVM vectorises, one job each.

Arguments: z (n,) the transformed logits and lo (n,) the part of them that z's dtype cannot hold, or None;
top and top_lo the same of the row's maximum; q (n,) the target's mass, or None; slope and curve (n,) dz/dx
and d2z/dx2 under a soft cap, or None. What is None is compiled away. All in the row's compute dtype.

Only sums carry `reassoc`: it lets LLVM keep one partial sum per vector lane. The order this gives depends on
the vector width, never on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cache import inline, jit
from .vector_math import difference_error, exp, exp_shifted, fma, maximum

_SUM = {"reassoc", "nsz", "contract"}


@jit(fastmath=_SUM)
def largest(z: Any) -> Any:
    """max z, NaN if any is NaN."""
    m = z.dtype.type(-np.inf)
    for k in range(z.size):
        m = maximum(m, z[k])
    return m


@jit()
def first_equal(z: Any, value: Any) -> Any:
    """The lowest index of a value, z.size where there is none."""
    n = np.int32(z.size)
    found = n
    for k in range(n):
        found = min(found, np.int32(k) if z[k] == value else n)
    return found


@jit(fastmath=_SUM)
def sum_exp(z: Any, lo: Any, top: Any, top_lo: Any) -> Any:
    """sum_k exp(z_k - top)."""
    s = z.dtype.type(0)
    zero = z.dtype.type(0)
    if lo is None:
        for k in range(z.size):
            s += exp_shifted(z[k], top, zero)
    else:
        for k in range(z.size):
            s += exp_shifted(z[k], top, lo[k] - top_lo)
    return s


@jit(fastmath=_SUM)
def sum_exp_gap(z: Any, lo: Any, top: Any, top_lo: Any) -> Any:
    """sum_k exp(z_k - top) * (top - z_k), for the entropy; 0 * inf = 0."""
    s = z.dtype.type(0)
    zero = z.dtype.type(0)
    for k in range(z.size):
        more = zero
        if lo is not None:
            more = lo[k] - top_lo
        e = exp_shifted(z[k], top, more)
        s += e * (top - z[k] - more) if e > zero else zero
    return s


@jit(fastmath=_SUM)
def sum_mass(q: Any) -> Any:
    """sum_k q_k."""
    s = q.dtype.type(0)
    for k in range(q.size):
        s += q[k]
    return s


@jit(fastmath=_SUM)
def sum_mass_gap(z: Any, lo: Any, q: Any, top: Any, top_lo: Any) -> Any:
    """sum_k q_k * (top - z_k); 0 * inf = 0."""
    s = z.dtype.type(0)
    zero = z.dtype.type(0)
    for k in range(z.size):
        gap = top - z[k]
        if lo is not None:
            gap += top_lo - lo[k]
        s += q[k] * gap if q[k] != zero else zero
    return s


@jit(fastmath={"contract"})
def emit_grad(
    z: Any, lo: Any, q: Any, slope: Any, top: Any, top_lo: Any, of_p: Any, of_q: Any, out: Any
) -> None:
    """out_k = (of_p * exp(z_k - top) - of_q * q_k) * slope_k; over z where `out` is None.

    That is no convenience: given one array twice, LLVM's alias check fails and the loop runs scalar.
    """
    zero = z.dtype.type(0)
    into = z
    if out is not None:
        into = out
    for k in range(z.size):
        more = zero
        if lo is not None:
            more = lo[k] - top_lo
        g = of_p * exp_shifted(z[k], top, more)
        if q is not None:
            g -= of_q * q[k]
        if slope is not None:
            g *= slope[k]
        into[k] = g


@jit(fastmath={"contract"})
def emit_hess(
    z: Any, lo: Any, q: Any, slope: Any, curve: Any, top: Any, top_lo: Any, weights: Any, out: Any
) -> None:
    """out_k = s * ((A p (1 - p) + lam2 p^2) slope_k^2 + dz_k curve_k), weights = (1/S, A, lam2, s)."""
    one = z.dtype.type(1)
    zero = z.dtype.type(0)
    per_total, a, lam2, s = weights
    for k in range(z.size):
        more = zero
        if lo is not None:
            more = lo[k] - top_lo
        p = exp_shifted(z[k], top, more) * per_total
        h = p * (a * (one - p) + lam2 * p)
        if slope is not None:
            dz = a * p
            if q is not None:
                dz -= q[k]
            h = h * slope[k] * slope[k] + dz * curve[k]
        out[k] = s * h


@jit(fastmath={"contract"})
def emit_log_softmax(z: Any, lo: Any, top: Any, top_lo: Any, log_total: Any, out: Any) -> None:
    """out_k = log p_k = z_k - top - log S; over z where `out` is None."""
    into = z
    if out is not None:
        into = out
    for k in range(z.size):
        gap = z[k] - top
        if lo is not None:
            gap += lo[k] - top_lo
        into[k] = gap - log_total


@inline()
def put(z: Any, out: Any, k: Any, value: Any) -> None:
    """One element, where emit_grad puts them."""
    if out is None:
        z[k] = value
    else:
        out[k] = value


@jit()
def soft_cap(z: Any, lo: Any, slope: Any, curve: Any, temperature: Any, cap: Any, bias: Any) -> None:
    """z = cap * tanh(z / (T cap)) + bias with its derivatives; infinities pass through."""
    inverse = 1.0 / (temperature * cap)
    for k in range(z.size):
        x = np.float64(z[k])
        u = abs(x * inverse)
        a = exp(-2.0 * u, 0.0)
        tanh = (1.0 - a) / (1.0 + a)
        tanh = -tanh if x < 0.0 else tanh
        sech2 = 4.0 * a / ((1.0 + a) * (1.0 + a))  # 1 - tanh^2 without the cancellation
        v = x if abs(x) == np.inf else cap * tanh
        if bias.size:
            v += bias[k]
        slope[k] = sech2 / temperature
        curve[k] = -2.0 * tanh * sech2 * inverse / temperature
        z[k] = v
        rest = v - np.float64(z[k])
        lo[k] = rest if rest == rest else 0.0


@jit()
def affine(z: Any, lo: Any, temperature: Any, bias: Any) -> None:
    """z + lo = z / T + bias, to twice the dtype's precision or nearly so."""
    inverse = 1.0 / temperature
    inverse_lo = fma(-inverse, temperature, 1.0) / temperature
    for k in range(z.size):
        x = np.float64(z[k])
        v = x * inverse
        rest = fma(x, inverse, -v) + x * inverse_lo
        if bias.size:
            scaled = v
            v = scaled + bias[k]
            rest += difference_error(scaled, -bias[k], v)
        z[k] = v
        rest += v - np.float64(z[k])
        lo[k] = rest if abs(rest) < np.inf else 0.0
