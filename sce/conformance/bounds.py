"""How near an answer must be to the exact one: K ulp of the output's dtype, at a scale stated per element.

    allowed = K * ulp(scale)                          never a fixed absolute or relative tolerance

K, in ulp:             loss   grad   others
    float32               2      3        3           a rounded float64 result has 0.5
    float64               3      4        4           sums and products of correctly rounded terms
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

For an index target without options the scale of loss, gradient and Hessian *is* the value: nothing cancels
when 1 - p is summed from the other classes and the loss is log1p of that sum. Smoothing, distributions,
z-loss and the soft cap's curvature add terms of both signs, signed weights as well; there the scale is larger
than the value. A reduction's scale is the sum over its rows.

**Float64 sums over C classes** cost up to log2(C) / 2 ulp each when they are blocked or pairwise: S for every
target, and sum_k q_k besides where that is a sum (distributions, smoothing). K grows by that much.

**Float64 under temperature, soft cap or bias** gets more, because z itself is rounded, to ulp(z), and all
that follows sees that error: max_k(|x_k| / T + |b_k|) ulp (the cap instead of |x_k| / T under a cap, where
tanh adds its own error: twice that), and twice as much for the Hessian, a product of two probabilities. The
slope 1 - tanh(v)^2, v = x / (T cap), squares a rounded cosh and is conditioned by 2 |v|, where v may carry
1.5 ulp (a rounded reciprocal): 2 + 3 |v| ulp more for the gradient, twice that for the Hessian. Float32
gets none of this: float64 inside is affordable there.

**Underflow.** An exponential below 2 tiny, tiny the smallest normal number of the computing dtype, may be
flushed to 0. What all of a row's such exponentials are worth is allowed wherever they are summed, besides K
ulp; so is one of them in its own gradient and Hessian. A value below 2 tiny max(1, the coefficient in front
of the probability) may be flushed as well.

**Exact.** Integers, booleans, NaN, infinities and their signs; 0 in rows left out and under an empty mean,
and in the gradient and Hessian of a class that has no probability and no target mass.

The scales are computed here in float64 from the problem alone, not from any backend's answer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from sce.backend import Array, Problem

_K = {"float32": {"loss": 2.0, "grad": 3.0}, "float64": {"loss": 3.0, "grad": 4.0}}
_K_OTHERS = {"float32": 3.0, "float64": 4.0}
# Bits of the fraction, exponent of the smallest normal number.
_FORMATS = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "float64": (52, -1022)}

WIDE = np.finfo(np.longdouble).nmant > 52
_NOT_WIDE = 4.0
"""Where longdouble is float64, the expected values carry the reference's own error: K + 4 for float64."""


class Bound(NamedTuple):
    """Per element: the error allowed, and what one ulp is there (and what underflow may take besides)."""

    allowed: Array
    ulp: Array


class _Rows(NamedTuple):
    """Magnitudes per row (n,) and per element (n, C), in the notation of the module's docstring."""

    s: Array
    p: Array
    tail: Array  # p_k where it may be flushed, else 0
    flushed: Array  # (n,): the sum of those
    rest: Array  # 1 - p
    nlp: Array
    lse: Array
    level: Array  # |m| + log S
    log_s: Array
    depth: Array  # m - z
    q: Array  # |q|
    mass: Array  # sum |q|
    target: Array  # |y|
    slope: Array
    curve: Array
    stretch: Array  # |x| / (T cap), or 0
    wobble: Array  # (n,): ulp that rounding z costs
    left_out: Array  # (n,): contributes exactly 0


def ulp(scale: Any, dtype: str) -> Array:
    """The distance between neighbouring numbers of this dtype at `scale`."""
    bits, low = _FORMATS[dtype]
    _, exponent = np.frexp(np.abs(np.asarray(scale, np.float64)))
    exponent = np.where(np.asarray(scale) == 0, low, exponent - 1)
    return np.asarray(np.ldexp(1.0, np.maximum(exponent, low) - bits))


def bounds(problem: Problem, want: dict[str, Array], dtypes: dict[str, str]) -> dict[str, Bound]:
    """The bound of each output of `want` (canonical: rows first), whose answers have these dtypes."""
    with np.errstate(all="ignore"):
        rows = _rows(problem)
        return {name: _bound(problem, rows, name, want[name], dtypes[name]) for name in want}


def _bound(problem: Problem, rows: _Rows, name: str, want: Array, dtype: str) -> Bound:
    if dtype not in _FORMATS:  # argmax, correct
        return Bound(np.zeros(want.shape), np.ones(want.shape))
    inner = "float64" if problem.dtype == "float64" else "float32"
    scale, coefficient, lost, zero = _scale(problem, rows, name)
    scale, coefficient, lost = (np.where(zero, 0.0, a) for a in (scale, coefficient, lost))
    k = _k(problem, rows, name, inner)
    if problem.reduce and name in ("loss", "z_loss"):
        k, zero = k.max(initial=0.0, keepdims=True), np.asarray(zero.all(keepdims=True))
        scale, coefficient, lost = (a.sum(keepdims=True) for a in (scale, coefficient, lost))
    floor = 2 * _tiny(problem) * np.maximum(coefficient, 1.0)
    unit = np.where(scale < floor, floor, ulp(scale, inner))
    allowed = np.where(scale < floor, floor, k * unit) + lost
    unit = unit + lost
    if dtype != inner:  # one more rounding, at the value itself
        unit = ulp(np.abs(want) + allowed, dtype)
        allowed = allowed + 0.5 * unit
    return Bound(
        np.where(zero, 0.0, allowed).reshape(want.shape),
        np.broadcast_to(unit, scale.shape).reshape(want.shape),
    )


def _k(problem: Problem, rows: _Rows, name: str, inner: str) -> Array:
    k = _K[inner].get(name, _K_OTHERS[inner])
    if inner == "float32":
        return np.full(problem.rows, k)[:, None] if name in _PER_CLASS else np.full(problem.rows, k)
    sums = 2 if problem.target == "distribution" or problem.label_smoothing else 1
    k += 0.5 * sums * math.log2(problem.classes) + (0.0 if WIDE else _NOT_WIDE)
    bent = 0.0 if problem.softcap is None else 2 + 3 * rows.stretch
    if name == "grad":
        return np.asarray(k + rows.wobble[:, None] + bent)
    if name == "hess_diag":
        return np.asarray(k + 2 * (rows.wobble[:, None] + bent))
    if name == "log_softmax":
        return np.asarray(k + rows.wobble[:, None])
    return np.asarray(k + rows.wobble)


_PER_CLASS = ("grad", "hess_diag", "log_softmax")


def _scale(problem: Problem, rows: _Rows, name: str) -> tuple[Array, Array, Array, Array]:
    """The scale, the coefficient in front of probabilities, what underflow loses, where the value is 0."""
    s, p, lam, flushed = rows.s, rows.p, problem.z_loss, rows.flushed
    z_loss = s * lam * np.abs(rows.lse) * rows.level if lam else 0 * s
    front = rows.mass + 2 * lam * rows.level
    never = np.zeros(problem.rows, bool)
    if name in ("grad", "hess_diag"):
        return _matrix_scale(problem, rows, name, front[:, None])
    if name == "log_softmax":
        return rows.nlp, np.ones_like(p), flushed[:, None] + 0 * p, np.zeros(p.shape, bool)
    if name == "loss":
        return s * _dot(rows.q, rows.nlp) + z_loss, s * front, s * front * flushed, rows.left_out
    if name == "z_loss":
        return z_loss, s * front, s * front * flushed, rows.left_out | (lam == 0)
    if name == "log_prob":
        mass = rows.target.sum(axis=1)
        return _dot(rows.target, rows.nlp), mass, mass * flushed, _uncounted(problem)
    if name == "entropy":  # a flushed p_k takes p_k log p_k with it
        deep = np.full(problem.rows, 1 - math.log(_tiny(problem)))
        return rows.log_s + _dot(p, rows.depth), deep, _dot(rows.tail, 1 + rows.depth), never
    return rows.level, np.ones(problem.rows), flushed, never


def _matrix_scale(
    problem: Problem, rows: _Rows, name: str, front: Array
) -> tuple[Array, Array, Array, Array]:
    """The same for the gradient and the Hessian, per element."""
    s, p, lam, slope = rows.s[:, None], rows.p, problem.z_loss, rows.slope
    flushed = rows.flushed[:, None]
    dz = (rows.mass[:, None] - rows.q) * p + rows.q * rows.rest + 2 * lam * rows.level[:, None] * p
    dz_lost = rows.q * flushed + front * rows.tail
    gone = rows.left_out[:, None] | ((p == 0) & np.isinf(rows.depth) & (rows.q == 0))
    if name == "grad":
        by = np.abs(problem.grad_scale) * s * slope
        return by * dz, by * front, by * dz_lost, gone
    h = front * p * rows.rest + 2 * lam * p * p
    lost = front * (p * flushed + rows.tail) * slope**2 + dz_lost * rows.curve
    return s * (h * slope**2 + dz * rows.curve), s * front * (slope**2 + rows.curve), s * lost, gone


def _tiny(problem: Problem) -> float:
    return math.ldexp(1.0, _FORMATS["float64" if problem.dtype == "float64" else "float32"][1])


def _rows(problem: Problem) -> _Rows:
    n, classes = problem.rows, problem.classes
    x = np.asarray(problem.logits).reshape(n, classes).astype(np.float64)
    cap, bias = problem.softcap, 0.0 if problem.logit_bias is None else problem.logit_bias
    v = x / problem.temperature
    slope, curve = np.full(x.shape, 1 / problem.temperature), np.zeros(x.shape)
    stretch = np.zeros(x.shape)
    if cap is not None:
        stretch = np.where(np.isfinite(x), np.abs(v / cap), 0)
        slope = np.cosh(v / cap) ** -2 / problem.temperature
        curve = np.abs(2 * np.tanh(v / cap) * slope / (problem.temperature * cap))
        v = np.where(np.isinf(x), x, cap * np.tanh(v / cap))
    z = v + bias
    top = z.max(axis=1, initial=-np.inf)
    depth = top[:, None] - z
    e = np.exp(-depth)
    i, t = np.arange(n), z.argmax(axis=1)
    e[i, t] = 0
    r = e.sum(axis=1)
    e[i, t] = 1
    p = e / (1 + r)[:, None]
    rest = 1 - p
    rest[i, t] = r / (1 + r)
    log_s = np.log1p(r)
    tail = np.where(e < 2 * _tiny(problem), p, 0)
    target, q, left_out, s = _target(problem)
    reach = np.abs(v) + np.abs(bias)
    reach = np.where(np.isfinite(reach), reach, 0).max(axis=1, initial=0)
    rounded = problem.temperature != 1 or cap is not None or problem.logit_bias is not None
    in_double = rounded and problem.dtype == "float64"
    mass = q.sum(axis=1) if problem.target != "none" else np.ones(n)
    return _Rows(
        s=s,
        p=p,
        tail=tail,
        flushed=tail.sum(axis=1),
        rest=rest,
        nlp=log_s[:, None] + depth,
        lse=top + log_s,
        level=(reach if in_double else np.abs(top)) + log_s,
        log_s=log_s,
        depth=depth,
        q=q,
        mass=mass,
        target=target,
        slope=slope,
        curve=curve,
        stretch=stretch,
        wobble=(2.0 if cap is not None else 1.0) * reach if in_double else np.zeros(n),
        left_out=left_out,
    )


def _target(problem: Problem) -> tuple[Array, Array, Array, Array]:
    """|y|, |q|, the rows that count for nothing, and |s|."""
    n, classes = problem.rows, problem.classes
    y = np.zeros((n, classes))
    if problem.labels is not None:
        known = (problem.labels >= 0) & (problem.labels < classes)
        y[np.arange(n), np.where(known, problem.labels, 0)] = 1
    elif problem.distribution is not None:
        y = np.abs(np.asarray(problem.distribution).reshape(n, classes).astype(np.float64))
    q = np.zeros_like(y)
    if problem.target != "none":
        q = (1 - problem.label_smoothing) * y + problem.label_smoothing / classes
        q = q if problem.class_weight is None else q * np.abs(problem.class_weight)
    left_out = _uncounted(problem) | (problem.denominator == 0)
    u = np.ones(n) if problem.sample_weight is None else np.abs(problem.sample_weight)
    return y, q, left_out, np.where(left_out, 0.0, u / (abs(problem.denominator) or 1.0))


def _uncounted(problem: Problem) -> Array:
    out = np.zeros(problem.rows, bool)
    if problem.labels is not None and problem.ignore_index is not None:
        out |= problem.labels == problem.ignore_index
    if problem.sample_weight is not None:
        out |= problem.sample_weight == 0
    return out


def _dot(weight: Array, value: Array) -> Array:
    """Row sums of the products, with 0 * inf = 0."""
    return np.asarray(np.where(weight == 0, 0.0, weight * value).sum(axis=1))
