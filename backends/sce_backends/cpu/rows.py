"""One row: find its statistics, write what is wanted. The formulas are docs/math.md's.

A row's statistics are its maximum `top` at class t, and sums over the classes that are neither t nor the
target y. The terms of t and y are added by hand in float64, so that 1 - p_t and 1 - p_y are sums of the
others and never differences: that keeps the confident regime exact.

Conventions: n classes; z, lo, q, slope, curve as in elements.py; y = -1 where the target is no single class.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from . import elements
from .cache import jit
from .vector_math import add, difference_error, finish

BLOCK, BLOCK64 = 1024, 128  # classes taken at once: in general, and where float64 is summed

Stats = namedtuple(
    "Stats", "t y top top_lo gap_y exp_y rest total log_total lse entropy mass mass_t mass_y core"
)
Stats.__doc__ = """What the passes over a row found, in float64 (top and top_lo in the compute dtype).

y is t where the target is t or no single class, and then gap_y, exp_y and mass_y are 0. gap_y = z_y - top and
exp_y its exponential; rest = sum over k not in {t, y} of exp(z_k - top); total = S; log_total = log S; mass =
sum of q_k over k not in {t, y}; mass_t and mass_y the target's mass there; core = sum_k q_k (lse - z_k).
"""


def cut(x: Any, a: Any, b: Any) -> Any:
    """x[a:b], or None for an array that is off."""


@overload(cut, inline="always")
def _cut(x: Any, a: Any, b: Any) -> Any:
    if isinstance(x, types.NoneType):

        def off(x: Any, a: Any, b: Any) -> Any:
            return None

        return off

    def part(x: Any, a: Any, b: Any) -> Any:
        return x[a:b]

    return part


@jit()
def spread_mass(q: Any, weight: Any, smoothing: Any) -> None:
    """A row of a distribution y becomes q_k = w_k ((1 - eps) y_k + eps / n)."""
    keep, spread = 1.0 - smoothing, smoothing / q.size
    for k in range(q.size):
        mass = keep * q[k] + spread
        q[k] = mass * weight[k] if weight.size else mass


@jit()
def find_top(z: Any, lo: Any) -> Any:
    """The index of the maximum: the lowest of a tie (in z + lo), the first NaN where there is one."""
    top, at = z.dtype.type(-np.inf), 0
    for a in range(0, z.size, BLOCK):
        m = elements.largest(z[a : a + BLOCK])
        if m != m:
            for k in range(a, z.size):
                if z[k] != z[k]:
                    return k
        if m > top:
            top, at = m, a
    t = at + elements.first_equal(z[at : at + BLOCK], top)
    if lo is not None:
        for k in range(t + 1, z.size):
            if z[k] == top and lo[k] > lo[t]:
                t = k
    return t


@jit()
def sums(
    z: Any, lo: Any, q: Any, entropy: Any, buffer: Any, top: Any, top_lo: Any, first: Any, second: Any
) -> Any:
    """Over all classes but two: sum of e, of e * gap, of q, of q * gap, where gap = top - z.

    A block is summed in vector lanes, then on with Neumaier's sum. Blocks of float64 are shorter, because
    their lanes have no precision to spare.
    """
    block = BLOCK if z.itemsize == 4 else BLOCK64
    e, e_gap, mass, mass_gap = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    for start, end in ((0, first), (first + 1, second), (second + 1, z.size)):
        for a in range(start, end, block):
            b = min(a + block, end)
            part, more = z[a:b], cut(lo, a, b)
            # Exponentials in the compute dtype, their sum in float64: in one loop the wider type would halve
            # the vectors of both.
            elements.put_exp(part, more, top, top_lo, buffer)
            e = add(e[0], e[1], elements.sum_of(buffer, part.size))
            if entropy is not None:
                e_gap = add(e_gap[0], e_gap[1], elements.sum_exp_gap(part, more, top, top_lo))
            if q is not None:
                mass = add(mass[0], mass[1], elements.sum_of(q[a:b], b - a))
                new = elements.sum_mass_gap(part, more, q[a:b], top, top_lo)
                mass_gap = add(mass_gap[0], mass_gap[1], new)
    return (
        finish(e[0], e[1]),
        finish(e_gap[0], e_gap[1]),
        finish(mass[0], mass[1]),
        finish(mass_gap[0], mass_gap[1]),
    )


@jit()
def statistics(z: Any, lo: Any, q: Any, y: Any, bump: Any, spare: Any, entropy: Any, buffer: Any) -> Any:
    """All that the outputs of one row need.

    `bump` is the mass that an index target adds at y, `spare` mass that is at no class (1 for softmax).
    """
    t = find_top(z, lo)
    top = z[t]
    top_lo = z.dtype.type(0)
    if lo is not None:
        top_lo = lo[t]
    apart = y >= 0 and y != t
    first, second = (min(t, y), max(t, y)) if apart else (t, t)
    rest, rest_gap, mass, mass_gap = sums(z, lo, q, entropy, buffer, top, top_lo, first, second)

    gap_y, exp_y = 0.0, 0.0
    if apart:
        gap_y = np.float64(z[y]) - np.float64(top)
        if abs(gap_y) < np.inf:
            err = difference_error(np.float64(z[y]), np.float64(top), gap_y)
            if lo is not None:
                err += np.float64(lo[y]) - np.float64(top_lo)
            exp_y = np.exp(gap_y) * (1.0 + err)
            gap_y += err
            rest_gap -= exp_y * gap_y
    nan = np.float64(top - top)  # 0; NaN for a row of nothing but -inf and one that holds NaN or +inf
    total = rest + exp_y + 1.0 + nan
    log_total = np.log1p(rest + exp_y + nan)
    lse = np.float64(top) + np.float64(top_lo) + log_total
    if top == -np.inf:
        lse = np.float64(top)

    mass_t, mass_y = 0.0, 0.0
    if q is not None:
        mass_t = q[t]
        if apart:
            mass_y = q[y]
    if apart:
        mass_y += bump
    else:
        mass_t += bump
    core = mass_gap + (mass + mass_t) * log_total
    if mass_y != 0.0:
        core += mass_y * (log_total - gap_y)
    entropy_value = log_total + rest_gap / total
    mass += spare
    return Stats(
        t, y if apart else t, top, top_lo, gap_y, exp_y, rest, total, log_total, lse, entropy_value,
        mass, mass_t, mass_y, core,
    )  # fmt: skip


@jit()
def pivots(st: Any, z_slope: Any) -> Any:
    """(k, p_k, 1 - p_k, dz_k) at k = t and k = y: dz_k = (Q - q_k) p_k - q_k (1 - p_k) + 2 lam lse p_k."""
    p_t, others_t = 1.0 / st.total, (st.rest + st.exp_y) / st.total
    at_t = (st.t, p_t, others_t, (st.mass + st.mass_y) * p_t - st.mass_t * others_t + z_slope * p_t)
    if st.y == st.t:
        return at_t, at_t
    p_y, others_y = st.exp_y / st.total, (st.rest + 1.0) / st.total
    at_y = (st.y, p_y, others_y, (st.mass + st.mass_t) * p_y - st.mass_y * others_y + z_slope * p_y)
    return at_t, at_y


@jit()
def low_part(x: Any, rounded: Any) -> Any:
    """What rounding x to the compute dtype lost; 0 where it overflowed."""
    rest = x - np.float64(rounded)
    return type(rounded)(rest) if abs(rest) < np.inf else type(rounded)(0)


@jit()
def write_grad(z: Any, lo: Any, q: Any, slope: Any, st: Any, scale: Any, z_slope: Any, out: Any) -> None:
    """The gradient's row, scale * dz * slope, to `out`, or over z where that is None."""
    of = z.dtype.type
    of_p, of_q = scale * (st.mass + st.mass_t + st.mass_y + z_slope) / st.total, scale
    if of_p != of_p:  # NaN in the row, or a label out of range: a flushed exponential must not hide it
        elements.fill(z, out, of(np.nan))
        return
    weights = (of(of_p), low_part(of_p, of(of_p)), of(of_q), low_part(of_q, of(of_q)))
    elements.emit_grad(z, lo, q, slope, st.top, st.top_lo, weights, out)
    for k, _, _, dz in pivots(st, z_slope):
        by = scale
        if slope is not None:
            by = scale * np.float64(slope[k])
        elements.put(z, out, k, of(by * dz))


@jit()
def write_hess(
    z: Any,
    lo: Any,
    q: Any,
    slope: Any,
    curve: Any,
    st: Any,
    scale: Any,
    t: Any,
    z_slope: Any,
    lam2: Any,
    least: Any,
    out: Any,
) -> None:
    """The row of the second derivative's diagonal, scale / t * (d2z * slope^2 t + dz * curve), or `least`."""
    of = z.dtype.type
    a = st.mass + st.mass_t + st.mass_y + z_slope
    if scale * a / st.total != scale * a / st.total:
        elements.fill(z, out, of(np.nan))
        return
    by = 1.0 / st.total
    weights = (of(by), low_part(by, of(by)), a, lam2, scale, t, least)
    elements.emit_hess(z, lo, q, slope, curve, st.top, st.top_lo, weights, out)
    for k, p, others, dz in pivots(st, z_slope):
        h = p * (a * others + lam2 * p)
        if slope is not None:
            h = h * np.float64(slope[k]) * (np.float64(slope[k]) * t) + dz * np.float64(curve[k])
        out[k] = of(elements.at_least(scale * h * (1.0 / t), least))


@jit()
def gaps_along(z: Any, lo: Any, v: Any, slope: Any, st: Any, m: Any, buffer: Any) -> Any:
    """sum over k != t of exp(z_k - top) (m - w_k), with the exponentials that S was added up from."""
    block = BLOCK if z.itemsize == 4 else BLOCK64
    total, error = 0.0, 0.0
    first, second = min(st.t, st.y), max(st.t, st.y)
    for start, end in ((0, first), (first + 1, second), (second + 1, z.size)):
        for a in range(start, end, block):
            b = min(a + block, end)
            elements.put_exp(z[a:b], cut(lo, a, b), st.top, st.top_lo, buffer)
            total, error = add(total, error, elements.sum_along(buffer, v[a:b], cut(slope, a, b), m))
    if st.y != st.t:
        total, error = add(total, error, st.exp_y * (m - elements.along(v, slope, st.y)))
    return finish(total, error)


@jit()
def centre(z: Any, lo: Any, v: Any, slope: Any, st: Any, buffer: Any) -> Any:
    """(m, shift) with w_k - p.w = (w_k - m) + shift, where w = slope v: see docs/math.md.

    m is w_t, so that the maximum's term is exactly 0. In float64 only where that has half of the probability,
    else the w nearest to the mean: one far from the others would cost digits, which float32 has not. shift is
    NaN where v is not finite.
    """
    top = elements.along(v, slope, st.t)
    m, at_top = top, 0.0
    if z.itemsize == 8 and st.total > 2.0:
        m = elements.nearest(v, slope, (top - gaps_along(z, lo, v, slope, st, 0.0, buffer)) / st.total)
        at_top = m - top
    shift = (gaps_along(z, lo, v, slope, st, m, buffer) + (at_top + (top - top))) / st.total
    return m, shift + (shift - shift)


@jit()
def write_centred(v: Any, slope: Any, centre: Any, scale: Any, out: Any) -> None:
    """The row of log-softmax's derivative along v, scale * (w_k - p.w)."""
    m, shift = centre
    elements.emit_centred(v, slope, m, shift, scale, out)


@jit()
def write_hvp(
    z: Any, lo: Any, q: Any, v: Any, slope: Any, curve: Any, st: Any, centre: Any, scale: Any, t: Any,
    z_slope: Any, lam2: Any, out: Any,
) -> None:  # fmt: skip
    """The row of the Hessian times v: scale / t * ((a p (w - p.w) + 2 lam p p.w) slope t + dz curve v)."""
    of = z.dtype.type
    m, shift = centre
    a = st.mass + st.mass_t + st.mass_y + z_slope
    if scale * a * shift != scale * a * shift:
        elements.fill(z, out, of(np.nan))
        return
    by = 1.0 / st.total
    weights = (of(by), low_part(by, of(by)), a, lam2, m, shift, scale, t)
    elements.emit_hvp(z, lo, q, v, slope, curve, st.top, st.top_lo, weights, out)
    for k, p, _, dz in pivots(st, z_slope):
        h = p * (a * ((elements.along(v, slope, k) - m) + shift) + lam2 * (m - shift))
        if slope is not None:
            h = h * (np.float64(slope[k]) * t) + dz * np.float64(curve[k]) * v[k]
        out[k] = of(scale * h * (1.0 / t))


@jit()
def soft_log_prob(z: Any, lo: Any, y: Any, st: Any) -> Any:
    """sum_k y_k log p_k for a distribution's row y; 0 * -inf = 0, NaN in a row of NaN."""
    total, error = 0.0 * st.log_total, 0.0
    for k in range(z.size):
        gap = np.float64(z[k]) - np.float64(st.top)
        if lo is not None:
            gap += np.float64(lo[k]) - np.float64(st.top_lo)
        if y[k] != 0.0:
            total, error = add(total, error, y[k] * (gap - st.log_total))
    return finish(total, error)
