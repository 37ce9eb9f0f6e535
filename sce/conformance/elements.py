"""The bounds of binary problems, in the notation of bounds.py, with u = 2^-53 and n_k = log(1 + exp(-+z)).

    loss         |s| (|q_0| n_0 + |q_1| n_1)                       one term for a label without smoothing
    grad         |s| |grad_scale| / T (|q_0| p + |q_1| (1 - p))    the same
    hess_diag    |s| |hess_scale| / T^2 (|q_0| + |q_1|) p (1 - p), at least |hess_min|

|q| is the sum of the magnitudes that q is made of, and K that of bounds.py for a sum over two classes.
exp(-|z|) may be flushed below 2 tiny. The rounding of z = x / T in float64, |z| u, costs a loss up to its
scale's derivative, |q_0| p + |q_1| (1 - p), and the others (|q_0| + |q_1|) p (1 - p), times their factors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sce.backend import Array, Problem

_HALF_ULP = 2.0**-53


class Elements(NamedTuple):
    """Magnitudes per element, (n,), in float64 from the problem alone."""

    s: Array
    z: Array
    q0: Array
    q1: Array
    left_out: Array
    tiny: float


def elements(problem: Problem) -> Elements:
    n, eps = problem.rows, problem.label_smoothing
    x = np.asarray(problem.logits).reshape(n).astype(np.float64)
    left_out = np.full(n, problem.denominator == 0)
    if problem.labels is not None:
        label = problem.labels.reshape(n)
        y = (label == 1).astype(np.float64)
        if problem.ignore_index is not None:
            left_out |= label == problem.ignore_index
    else:
        y = np.asarray(problem.distribution).reshape(n).astype(np.float64)
    u = np.ones(n) if problem.sample_weight is None else np.abs(problem.sample_weight.reshape(n))
    left_out |= u == 0
    w = np.abs(problem.pos_weight)
    return Elements(
        s=np.where(left_out, 0.0, u / (abs(problem.denominator) or 1.0)),
        z=x / problem.temperature,
        q0=(1 - eps) * np.abs(1 - y) + eps / 2,
        q1=(w if isinstance(w, float) else w.reshape(n)) * ((1 - eps) * np.abs(y) + eps / 2),
        left_out=left_out,
        tiny=float(np.finfo(np.float64 if problem.dtype == "float64" else np.float32).tiny),
    )


def of_element(problem: Problem, at: Elements, name: str) -> tuple[Array, Array, Array, Array, Array]:
    """The scale, the coefficient of exp(-|z|), what underflow loses, where the value is 0, what z costs."""
    e = np.exp(-np.abs(at.z))
    sure, other = 1 / (1 + e), e / (1 + e)
    p, not_p = np.where(at.z > 0, (sure, other), (other, sure))
    both, variance = at.q0 + at.q1, p * not_p
    factor = at.s
    if name == "grad":
        factor = at.s * abs(problem.grad_scale) / problem.temperature
        scale, slope = factor * (at.q0 * p + at.q1 * not_p), both * variance
    elif name == "hess_diag":
        # 1 / T^2 may be beyond float64 where the Hessian is not.
        factor = at.s * (np.longdouble(abs(problem.hess_scale)) / problem.temperature / problem.temperature)
        scale, slope = factor * both * variance, both * variance
    else:
        of_0, of_1 = np.log1p(e) + np.maximum(at.z, 0), np.log1p(e) + np.maximum(-at.z, 0)
        scale = factor * (_times(at.q0, of_0) + _times(at.q1, of_1))
        slope = at.q0 * p + at.q1 * not_p
    moved = np.zeros_like(scale)
    if problem.dtype == "float64" and problem.temperature != 1:
        z = np.where(np.isfinite(at.z), np.abs(at.z), 0.0)
        moved = _HALF_ULP * z * factor * slope
    lost = np.where(e < 2 * at.tiny, factor * both * e, 0.0)
    gone = at.left_out | (np.isinf(at.z) & (scale == 0))
    if name == "hess_diag" and problem.hess_min is not None:
        scale, gone = np.maximum(scale, abs(problem.hess_min)), at.left_out
    return scale, factor * both, lost, gone, moved


def _times(q: Array, cost: Array) -> Array:
    """0 * inf is 0."""
    return np.asarray(np.where(q == 0, 0.0, q * cost))
