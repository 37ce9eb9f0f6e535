"""The magnitudes that bounds are made of, row by row, in the notation of bounds.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sce.backend import Array, Problem


class Rows(NamedTuple):
    """Magnitudes per row (n,) and per element (n, C), in float64 from the problem alone."""

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
    front: Array  # (n,): sum |q| + 2 lam (|m| + log S), the coefficient of p
    dz: Array  # the scale of the gradient in z, without s
    d2z: Array  # the scale of the Hessian in z, without s
    slope: Array
    curve: Array  # T d2z/dx2
    stretch: Array  # |x| / (T cap), or 0
    scaled: Array  # |x / T|, or what the cap makes of it; 0 where that is infinite or NaN
    z: Array  # |z|, likewise
    top: Array  # (n,): the index of the maximum
    left_out: Array  # (n,): contributes exactly 0
    tiny: float  # the smallest normal number of the computing dtype


def magnitudes(problem: Problem) -> Rows:
    n, classes = problem.rows, problem.classes
    x = np.asarray(problem.logits).reshape(n, classes).astype(np.float64)
    cap, bias = problem.softcap, 0.0 if problem.logit_bias is None else problem.logit_bias
    v = x / problem.temperature
    slope, curve = np.full(x.shape, 1 / problem.temperature), np.zeros(x.shape)
    stretch = np.zeros(x.shape)
    if cap is not None:
        stretch = np.where(np.isfinite(x), np.abs(v / cap), 0)
        slope = np.cosh(v / cap) ** -2 / problem.temperature
        curve = np.abs(2 * np.tanh(v / cap) * slope / cap)
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
    tiny = float(np.finfo(np.float64 if problem.dtype == "float64" else np.float32).tiny)
    tail = np.where(e < 2 * tiny, p, 0)
    target, q, left_out, s = _target(problem)
    mass = q.sum(axis=1) if problem.target != "none" else np.ones(n)
    level, lam = np.abs(top) + log_s, problem.z_loss
    front = mass + 2 * lam * level
    return Rows(
        s=s,
        p=p,
        tail=tail,
        flushed=tail.sum(axis=1),
        rest=rest,
        nlp=log_s[:, None] + depth,
        lse=top + log_s,
        level=level,
        log_s=log_s,
        depth=depth,
        q=q,
        mass=mass,
        target=target,
        front=front,
        dz=(mass[:, None] - q) * p + q * rest + 2 * lam * level[:, None] * p,
        d2z=front[:, None] * p * rest + 2 * lam * p * p,
        slope=slope,
        curve=curve,
        stretch=stretch,
        scaled=np.where(np.isfinite(v), np.abs(v), 0.0),
        z=np.where(np.isfinite(z), np.abs(z), 0.0),
        top=t,
        left_out=left_out,
        tiny=tiny,
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
    left_out = uncounted(problem) | (problem.denominator == 0)
    u = np.ones(n) if problem.sample_weight is None else np.abs(problem.sample_weight)
    return y, q, left_out, np.where(left_out, 0.0, u / (abs(problem.denominator) or 1.0))


def uncounted(problem: Problem) -> Array:
    out = np.zeros(problem.rows, bool)
    if problem.labels is not None and problem.ignore_index is not None:
        out |= problem.labels == problem.ignore_index
    if problem.sample_weight is not None:
        out |= problem.sample_weight == 0
    return out


class Along(NamedTuple):
    """Magnitudes of derivatives along v, with w_k = v_k dz_k/dx_k."""

    v: Array  # |v|
    w: Array  # with its sign
    spread: Array  # sum_j p_j |w_k - w_j|
    mean: Array  # (n, 1): sum_j p_j |w_j|


def along(problem: Problem, rows: Rows) -> Along:
    v = np.asarray(problem.direction).reshape(rows.p.shape).astype(np.float64)
    w = v * rows.slope
    return Along(np.abs(v), w, spread(rows.p, w), dot(rows.p, np.abs(w))[:, None])


def spread(weight: Array, w: Array) -> Array:
    """(n, C): sum_j weight_j |w_k - w_j|, weight >= 0: along the sorted w, where no term is a difference."""
    order = w.argsort(axis=1)
    gaps, of = np.diff(np.take_along_axis(w, order, 1)), np.take_along_axis(weight, order, 1)
    found = np.zeros(w.shape)
    found[:, 1:] += np.cumsum(np.cumsum(of[:, :-1], axis=1) * gaps, axis=1)
    found[:, -2::-1] += np.cumsum(np.cumsum(of[:, :0:-1], axis=1) * gaps[:, ::-1], axis=1)
    back = np.empty_like(found)
    np.put_along_axis(back, order, found, 1)
    return back


def dot(weight: Array, value: Array) -> Array:
    """Row sums of the products, with 0 * inf = 0."""
    return np.asarray(np.where(weight == 0, 0.0, weight * value).sum(axis=1))
