"""How near an answer must be to the exact one: K ulp of the output's dtype, at a scale stated per element.

    allowed = K * ulp(scale)                          never a fixed absolute or relative tolerance

K, in ulp:             loss   grad   hess_diag   hvp   log_softmax_jvp   others
    float32               2      3          3      5                 3        3
    float64               3      4          8     16                12        4
    A rounded float64 result has 0.5. In float64 they are sums and products of correctly rounded terms, and
    p (1 - p) is two of the gradient's; so is a Jacobian's p_i p_j, which has the K of hess_diag. What the
    products with v pay for is in docs/math.md.
    float16, bfloat16: the float32 bound, then one rounding: 0.5 ulp of the half type at the exact value.

**Scale.** The sum of the magnitudes of the terms the value consists of, in the form without cancellation.
With p the softmax, S = sum_k exp(z_k - m), m = max z, nlp_k = log S - (z_k - m) >= 0 and s, q, Q, lam as in
docs/math.md:

    log_softmax    nlp_k                                                 one term: the value itself
    log_prob       sum_k |y_k| nlp_k                                     an index target: the value itself
    entropy        log S + sum_k p_k (m - z_k)                           all terms >= 0: the value itself
    lse            |m| + log S                                           m < 0 cancels against log S
    z_loss         |s| lam |lse| (|m| + log S)                           one factor is the lse above
    loss           |s| sum_k |q_k| nlp_k + z_loss                        one term without smoothing
    grad           |s| slope (sum_{j != k} |q_j| p_k + |q_k| (1 - p_k) + 2 lam (|m| + log S) p_k)
    hess_diag      |s| slope^2 ((sum |q| + 2 lam (|m| + log S)) p_k (1 - p_k) + 2 lam p_k^2)
                   + |curve| * (scale of the gradient in z)
    log_softmax_jvp  D_k = sum_j p_j |w_k - w_j|, w = slope v
    hvp            |s| slope ((sum |q| + 2 lam (|m| + log S)) p_k D_k + 2 lam p_k sum_j p_j |w_j|)
                   + |curve v_k| * (scale of the gradient in z)
    the Jacobians  the value itself

For an index target without options the scale of loss, gradient and Hessian *is* the value: nothing cancels
when 1 - p is summed from the other classes and the loss is log1p of that sum. Smoothing, distributions,
z-loss and the soft cap's curvature add terms of both signs, signed weights as well; there the scale is larger
than the value. A reduction's scale is the sum over its rows.

**Float64 sums over C classes** cost up to log2(C) / 2 ulp each when they are blocked or pairwise: S for every
target, and sum_k q_k besides where that is a sum (distributions, smoothing). K grows by that much; along v
by four such sums besides, because sum_j p_j (m - w_j) adds up magnitudes of up to 3 D_k.

**Float64 under temperature, soft cap or bias** gets more, because z itself is rounded: see rounding.py.
Float32 gets none of this: float64 inside is affordable there.

**Underflow.** An exponential below 2 tiny, tiny the smallest normal number of the computing dtype, may be
flushed to 0. What all of a row's such exponentials are worth is allowed wherever they are summed, besides K
ulp; so is one of them in its own gradient and Hessian. A value below 2 tiny max(1, the coefficient in front
of the probability) may be flushed as well.

**Exact.** Integers, booleans, NaN, infinities and their signs; 0 in rows left out and under an empty mean,
and in the gradient, Hessian and its products of a class that has no probability and no target mass.
A floor of the Hessian's diagonal may be rounded once.

**Binary** problems have two classes and formulas of their own: see elements.py.

The scales are computed here in float64 from the problem alone, not from any backend's answer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sce.backend import JACOBIANS, Array, Problem

from .elements import Elements, elements, of_element
from .magnitudes import Rows, along, dot, magnitudes, spread, uncounted
from .rounding import rounding_of_z

_K = {
    "float32": {"loss": 2.0, "grad": 3.0, "hvp": 5.0},
    "float64": {"loss": 3.0, "grad": 4.0, "hess_diag": 8.0, "hvp": 16.0, "log_softmax_jvp": 12.0}
    | dict.fromkeys(JACOBIANS, 8.0),
}
_K_OTHERS = {"float32": 3.0, "float64": 4.0}
# Bits of the fraction, exponent of the smallest normal number.
_FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}

ALONG = ("hvp", "log_softmax_jvp")

WIDE = np.finfo(np.longdouble).nmant > 52
_NOT_WIDE = 4.0
"""Where longdouble is float64, the expected values carry the reference's own error: K + 4 for float64."""


class Bound(NamedTuple):
    """Per element: the error allowed, and what one ulp is there (and what underflow may take besides)."""

    allowed: Array
    ulp: Array


def ulp(scale: Any, dtype: str) -> Array:
    """The distance between neighbouring numbers of this dtype at `scale`."""
    bits, low = _FORMATS[dtype]
    _, exponent = np.frexp(np.abs(np.asarray(scale, np.float64)))
    exponent = np.where(np.asarray(scale) == 0, low, exponent - 1)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, low) - bits))


def bounds(problem: Problem, want: dict[str, Array], dtypes: dict[str, str]) -> dict[str, Bound]:
    """The bound of each output of `want` (canonical: rows first), whose answers have these dtypes."""
    with np.errstate(all="ignore"):
        rows = elements(problem) if problem.binary else magnitudes(problem)
        if problem.binary:
            want = {name: x.reshape(-1) for name, x in want.items()}
        return {name: _bound(problem, rows, name, want[name], dtypes[name]) for name in want}


def _bound(problem: Problem, rows: Rows | Elements, name: str, want: Array, dtype: str) -> Bound:
    if dtype not in _FORMATS:  # argmax, correct
        return Bound(np.zeros(want.shape), np.ones(want.shape))
    inner = "float64" if problem.dtype == "float64" else "float32"
    if isinstance(rows, Elements):
        scale, coefficient, lost, zero, of_z = of_element(problem, rows, name)
    else:
        scale, coefficient, lost, zero = _scale(problem, rows, name)
        of_z = rounding_of_z(problem, rows, name)
    scale, coefficient, lost, of_z = (np.where(zero, 0.0, a) for a in (scale, coefficient, lost, of_z))
    if problem.reduce and name in ("loss", "z_loss"):
        zero = np.asarray(zero.all(keepdims=True))
        scale, coefficient, lost, of_z = (a.sum(keepdims=True) for a in (scale, coefficient, lost, of_z))
    floor = 2 * rows.tiny * np.maximum(coefficient, 1.0)
    unit = np.where(scale < floor, floor, ulp(scale, inner))
    allowed = np.where(scale < floor, floor, _k(problem, name, inner) * unit) + lost + of_z
    if name == "hess_diag" and problem.hess_min is not None and not problem.binary:  # whose scale has it
        of_floor = np.where(rows.left_out[:, None], 0.0, ulp(problem.hess_min, inner))
        allowed, unit = (
            allowed + 0.5 * of_floor,
            np.maximum(unit, np.where(want == problem.hess_min, of_floor, 0)),
        )
        zero = rows.left_out[:, None] & zero  # elsewhere no probability means the floor
    unit = unit + lost
    if dtype != inner:  # one more rounding, at the value itself
        unit = ulp(np.abs(want) + allowed, dtype)
        allowed = allowed + 0.5 * unit
    return Bound(
        np.where(zero, 0.0, allowed).reshape(want.shape),
        np.broadcast_to(unit, scale.shape).reshape(want.shape),
    )


def _k(problem: Problem, name: str, inner: str) -> float:
    k = _K[inner].get(name, _K_OTHERS[inner])
    if inner == "float32":
        return k
    sums = 2 if problem.target == "distribution" or problem.label_smoothing else 1
    sums += 4 if name in ALONG else 0
    return k + 0.5 * sums * math.log2(2 if problem.binary else problem.classes) + (0.0 if WIDE else _NOT_WIDE)


def _scale(problem: Problem, rows: Rows, name: str) -> tuple[Array, Array, Array, Array]:
    """The scale, the coefficient in front of probabilities, what underflow loses, where the value is 0."""
    s, p, lam, flushed = rows.s, rows.p, problem.z_loss, rows.flushed
    z_loss = s * lam * np.abs(rows.lse) * rows.level if lam else 0 * s
    front, never = rows.front, np.zeros(problem.rows, bool)
    if name in JACOBIANS:
        return _scale_of_jacobian(rows, name)
    if name in ALONG:
        return _scale_along(problem, rows, name)
    if name in ("grad", "hess_diag"):
        return _matrix_scale(problem, rows, name)
    if name == "log_softmax":
        return rows.nlp, np.ones_like(p), flushed[:, None] + 0 * p, np.zeros(p.shape, bool)
    if name == "loss":
        return s * dot(rows.q, rows.nlp) + z_loss, s * front, s * front * flushed, rows.left_out
    if name == "z_loss":
        return z_loss, s * front, s * front * flushed, rows.left_out | (lam == 0)
    if name == "log_prob":
        mass = rows.target.sum(axis=1)
        return dot(rows.target, rows.nlp), mass, mass * flushed, uncounted(problem)
    if name == "entropy":  # a flushed p_k takes p_k log p_k with it
        deep = np.full(problem.rows, 1 - math.log(rows.tiny))
        return rows.log_s + dot(p, rows.depth), deep, dot(rows.tail, 1 + rows.depth), never
    return rows.level, np.ones(problem.rows), flushed, never


def _matrix_scale(problem: Problem, rows: Rows, name: str) -> tuple[Array, Array, Array, Array]:
    """The same for the gradient and the Hessian, per element."""
    s, p, slope, front, dz = rows.s[:, None], rows.p, rows.slope, rows.front[:, None], rows.dz
    flushed = rows.flushed[:, None]
    dz_lost = rows.q * flushed + front * rows.tail
    gone = rows.left_out[:, None] | ((p == 0) & np.isinf(rows.depth) & (rows.q == 0))
    if name == "grad":
        by = np.abs(problem.grad_scale) * s * slope
        return by * dz, by * front, by * dz_lost, gone
    s = np.abs(problem.hess_scale) * s
    # First, because the square of an extreme slope is beyond float64.
    by, curve = s * slope, s / problem.temperature * rows.curve
    lost = front * (p * flushed + rows.tail) * by * slope + dz_lost * curve
    scale = rows.d2z * by * slope + dz * curve
    return scale, front * (by * slope + curve), lost, gone


def _scale_of_jacobian(rows: Rows, name: str) -> tuple[Array, Array, Array, Array]:
    """The same for Jacobians, per element [i, j]."""
    slope, flushed, never = (
        rows.slope[:, None, :],
        rows.flushed[:, None, None],
        (rows.p == 0) & np.isinf(rows.depth),
    )
    diagonal = np.eye(rows.p.shape[1], dtype=bool)
    scale = np.where(diagonal, rows.rest[:, None, :], rows.p[:, None, :])
    lost = np.where(diagonal, flushed, rows.tail[:, None, :])
    zero = never[:, None, :] & ~diagonal
    if name == "softmax_jacobian":
        p, tail = rows.p[:, :, None], rows.tail[:, :, None]
        scale, lost, zero = p * scale, p * lost + tail * scale, zero | never[:, :, None]
    return slope * scale, slope + 0 * scale, slope * lost, zero


def _scale_along(problem: Problem, rows: Rows, name: str) -> tuple[Array, Array, Array, Array]:
    """The same for derivatives along v."""
    v, w, spreads, mean = along(problem, rows)
    p, tail, slope, lam2 = rows.p, rows.tail, rows.slope, 2 * problem.z_loss
    lost = spread(tail, w)
    if name == "log_softmax_jvp":
        return spreads, 1 + 0 * p, lost, np.zeros(p.shape, bool)
    s, front, q = np.abs(problem.hess_scale) * rows.s[:, None], rows.front[:, None], rows.q
    by, bent = s * slope, s * (rows.curve * v) / problem.temperature
    gone = rows.left_out[:, None] | ((p == 0) & np.isinf(rows.depth) & (q == 0))
    of_mean = lam2 * (tail * mean + p * dot(tail, np.abs(w))[:, None])
    lost = by * (front * (tail * spreads + p * lost) + of_mean)
    lost = lost + bent * (q * rows.flushed[:, None] + front * tail)
    scale = by * p * (front * spreads + lam2 * mean) + bent * rows.dz
    return scale, front * (by * spreads + bent), lost, gone
