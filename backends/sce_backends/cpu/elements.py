"""The loops over one row's classes: plain loops that LLVM vectorises, one job each.

Arguments: z (n,) the transformed logits and lo (n,) the part of them that z's dtype cannot hold, or None;
top and top_lo the same of the row's maximum, all in the row's compute dtype; q (n,) the target's mass, and
slope and curve (n,) dz/dx and T d2z/dx2 under a soft cap, in float64, or None. What is None is compiled away.

Only sums carry `reassoc`: it lets LLVM keep one partial sum per vector lane. The order this gives depends on
the vector width, never on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cache import inline, jit
from .vector_math import (
    difference_error,
    exp,
    exp_times_gap,
    expm1_parts,
    fma,
    maximum,
    times_exp,
)  # fmt: skip

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


@inline()
def gap_at(z: Any, lo: Any, top: Any, top_lo: Any, k: Any) -> Any:
    """(d, err) with z_k + lo_k - top - top_lo = d + err: the subtraction's rounding error is kept.

    Without it a difference of 80 would cost its exponential 40 ulp.
    """
    d = z[k] - top
    err = difference_error(z[k], top, d)
    if lo is not None:
        err += lo[k] - top_lo
    return d, err


@jit(fastmath={"contract"})
def put_exp(z: Any, lo: Any, top: Any, top_lo: Any, out: Any) -> None:
    """out_k = exp(z_k - top); over z where `out` is None."""
    into = z
    if out is not None:
        into = out
    for k in range(z.size):
        d, err = gap_at(z, lo, top, top_lo, k)
        into[k] = exp(d, err)


@jit(fastmath=_SUM)
def sum_of(x: Any, n: Any) -> Any:
    """sum_k x_k over the first n, in float64."""
    s = 0.0
    for k in range(n):
        s += np.float64(x[k])
    return s


@jit(fastmath=_SUM)
def sum_exp_gap(z: Any, lo: Any, top: Any, top_lo: Any) -> Any:
    """sum_k exp(z_k - top) * (top - z_k), for the entropy; 0 * inf = 0."""
    s = 0.0
    for k in range(z.size):
        d, err = gap_at(z, lo, top, top_lo, k)
        s += np.float64(exp_times_gap(d, err))
    return s


@jit(fastmath=_SUM)
def sum_mass_gap(z: Any, lo: Any, q: Any, top: Any, top_lo: Any) -> Any:
    """sum_k q_k * (top - z_k); 0 * inf = 0."""
    s = 0.0
    for k in range(z.size):
        gap = np.float64(top) - np.float64(z[k])
        if lo is not None:
            gap += np.float64(top_lo) - np.float64(lo[k])
        s += q[k] * gap if q[k] != 0.0 else 0.0
    return s


@jit(fastmath={"contract"})
def emit_grad(z: Any, lo: Any, q: Any, slope: Any, top: Any, top_lo: Any, weights: Any, out: Any) -> None:
    """out_k = (of_p * exp(z_k - top) - of_q * q_k) * slope_k; over z where `out` is None.

    weights = (of_p, its low part, of_q, its low part): rounded to the compute dtype they would cost an ulp.
    A case for None is no convenience: given one array twice, LLVM's alias check fails and the loop is scalar.
    """
    into = z
    if out is not None:
        into = out
    of_p, of_p_lo, of_q, of_q_lo = weights
    for k in range(z.size):
        d, err = gap_at(z, lo, top, top_lo, k)
        g = times_exp(d, err, of_p, of_p_lo)
        if q is not None:
            mass = z.dtype.type(q[k])
            g -= fma(of_q, mass, of_q_lo * mass)
        if slope is not None:
            into[k] = np.float64(g) * slope[k]
        else:
            into[k] = g


@jit(fastmath={"contract"})
def emit_hess(
    z: Any, lo: Any, q: Any, slope: Any, curve: Any, top: Any, top_lo: Any, weights: Any, out: Any
) -> None:
    """out_k = s / t ((a p (1 - p) + lam2 p^2) slope_k^2 t + (a p - q_k) curve_k), the products in float64.

    weights = (high and low part of 1 / S in the compute dtype; a, lam2, s, t and the least value in float64).
    Without a slope s has the other 1 / t: the square of an extreme temperature is beyond float64.
    """
    by, by_lo, a, lam2, s, t, least = weights
    over_t = 1.0 / t
    for k in range(z.size):
        d, err = gap_at(z, lo, top, top_lo, k)
        p = np.float64(times_exp(d, err, by, by_lo))
        h = p * (a * (1.0 - p) + lam2 * p)
        if slope is not None:
            dz = a * p
            if q is not None:
                dz -= q[k]
            h = h * slope[k] * (slope[k] * t) + dz * curve[k]
        out[k] = at_least(s * h * over_t, least)


@jit(fastmath=_SUM)
def sum_along(e: Any, v: Any, slope: Any, m: Any) -> Any:
    """sum_k e_k (m - w_k), in float64."""
    s = 0.0
    for k in range(v.size):
        s += np.float64(e[k]) * (m - along(v, slope, k))
    return s


@jit()
def nearest(v: Any, slope: Any, m: Any) -> Any:
    """The w_k nearest to m, the first of a tie."""
    found = along(v, slope, 0)
    for k in range(1, v.size):
        w = along(v, slope, k)
        if abs(w - m) < abs(found - m):
            found = w
    return found


@jit(fastmath={"contract"})
def emit_centred(v: Any, slope: Any, m: Any, shift: Any, scale: Any, out: Any) -> None:
    """out_k = scale * ((w_k - m) + shift)."""
    for k in range(v.size):
        out[k] = scale * ((along(v, slope, k) - m) + shift)


@jit(fastmath={"contract"})
def emit_hvp(
    z: Any, lo: Any, q: Any, v: Any, slope: Any, curve: Any, top: Any, top_lo: Any, weights: Any, out: Any
) -> None:
    """out_k = s / t (p (a (w_k - p.w) + lam2 p.w) slope_k t + (a p - q_k) curve_k v_k), in float64 but for p.

    weights = (high and low part of 1 / S in the compute dtype; a, lam2, m, shift, s and t in float64).
    """
    by, by_lo, a, lam2, m, shift, s, t = weights
    over_t = 1.0 / t
    for k in range(z.size):
        d, err = gap_at(z, lo, top, top_lo, k)
        p = np.float64(times_exp(d, err, by, by_lo))
        h = p * (a * ((along(v, slope, k) - m) + shift) + lam2 * (m - shift))
        if slope is not None:
            dz = a * p
            if q is not None:
                dz -= q[k]
            h = h * (slope[k] * t) + dz * curve[k] * v[k]
        out[k] = s * h * over_t


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


@inline(fastmath=())  # w_t - w_t is 0: it must not be fused
def along(v: Any, slope: Any, k: Any) -> Any:
    """w_k = v_k dz_k/dx_k; without a soft cap the slope is one number, which is left to the end."""
    if slope is None:
        return v[k]
    return v[k] * slope[k]


@inline()
def at_least(x: Any, least: Any) -> Any:
    """The larger one; NaN stays."""
    return least if x < least else x


@inline()
def put(z: Any, out: Any, k: Any, value: Any) -> None:
    """One element, where emit_grad puts them."""
    if out is None:
        z[k] = value
    else:
        out[k] = value


@jit()
def fill(z: Any, out: Any, value: Any) -> None:
    """Every element, where emit_grad puts them."""
    for k in range(z.size):
        put(z, out, k, value)


@jit()
def soft_cap(z: Any, lo: Any, slope: Any, curve: Any, temperature: Any, cap: Any, bias: Any) -> None:
    """z + lo = cap * tanh(z / (T cap)) + bias with its derivatives; infinities pass through.

    tanh(u) = -m / (2 + m) with m = exp(-2 |u|) - 1, each step with its rounding error: an error of one ulp in
    a z of 50 would cost 50 ulp in p.
    """
    width = temperature * cap
    width_lo = fma(temperature, cap, -width)
    inverse = 1.0 / width
    inverse_lo = (fma(-inverse, width, 1.0) - inverse * width_lo) / width
    for k in range(z.size):
        x = np.float64(z[k])
        u = abs(x * inverse)
        u_lo = fma(abs(x), inverse, -u) + abs(x) * inverse_lo
        m, m_lo = expm1_parts(-2.0 * u, -2.0 * u_lo)
        below = 2.0 + m
        tanh = -m / below
        rest = fma(-tanh, below, -m) - m_lo - tanh * ((m - (below - 2.0)) + m_lo)
        tanh_lo = rest / below
        if x < 0.0:
            tanh, tanh_lo = -tanh, -tanh_lo
        v = cap * tanh
        v_lo = fma(cap, tanh, -v) + cap * tanh_lo
        if abs(x) == np.inf:
            v = x
        if bias.size:
            capped = v
            v = capped + bias[k]
            v_lo += difference_error(capped, -bias[k], v)
        # 1 - tanh^2 without the cancellation
        sech2 = 4.0 * exp(-2.0 * u, -2.0 * u_lo) / (below * below)
        slope[k] = sech2 / temperature
        curve[k] = -2.0 * tanh * sech2 * inverse
        z[k] = v
        v_lo += v - np.float64(z[k])
        lo[k] = v_lo if abs(v_lo) < np.inf else 0.0


@inline()
def affine_at(x: Any, by: Any, by_lo: Any, bias: Any, bias_lo: Any) -> Any:
    """(z, lo) with z + lo = (by + by_lo) x + bias + bias_lo, to about twice the dtype's precision."""
    scaled = x * by
    z = scaled + bias
    lo = fma(x, by, -scaled) + x * by_lo + (difference_error(scaled, -bias, z) + bias_lo)
    return z, lo if abs(z) < np.inf else type(z)(0)


@jit(fastmath={"contract"})
def affine(z: Any, lo: Any, temperature: Any, bias: Any, bias_lo: Any) -> None:
    """z + lo = z / T + bias."""
    of = z.dtype.type
    by = of(1.0 / temperature)
    by_lo = of(1.0 / temperature - np.float64(by))
    if z.itemsize == 8:
        by_lo = of(fma(-by, temperature, 1.0) / temperature)
    if bias.size:
        for k in range(z.size):
            z[k], lo[k] = affine_at(z[k], by, by_lo, bias[k], bias_lo[k])
    else:
        for k in range(z.size):
            z[k], lo[k] = affine_at(z[k], by, by_lo, of(0), of(0))


@inline()
def plus(x: Any, lo: Any, bias: Any) -> Any:
    """(z, low) with z + low = x + lo + bias."""
    z = x + bias
    return z, difference_error(x, -bias, z) + lo
