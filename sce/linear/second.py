"""The Hessian of the loss times a vector, row by row: a stand-in for `sce.hvp`, with its signature."""

from __future__ import annotations

from typing import Any

import numpy as np

from sce.backend import Array
from sce.problem import prepare


@np.errstate(all="ignore")
def hvp(
    logits: Array, target: Any, v: Array, *, out: Array, backend: str | None = None, **options: Any
) -> Array:
    problem = prepare(logits, target, outputs=("grad",), **options).problem
    x, v64 = logits.astype(np.float64), v.astype(np.float64)
    t, cap, lam = problem.temperature, problem.softcap, problem.z_loss
    slope: Any = 1 / t
    curve: Any = 0.0
    z = x / t
    if cap is not None:
        a = z / cap
        slope = 1 / np.cosh(a) ** 2 / t
        curve = -2 * np.tanh(a) * slope / (t * cap)
        z = cap * np.tanh(a)
    if problem.logit_bias is not None:
        z = z + problem.logit_bias
    top = z.max(axis=1, keepdims=True)
    lse = top + np.log(np.exp(z - top).sum(axis=1, keepdims=True))
    p = np.exp(z - lse)
    q = _mass(problem, z)
    known = np.ones(len(z), bool)
    s = np.ones(len(z)) if problem.sample_weight is None else problem.sample_weight.copy()
    if problem.labels is not None:
        known = (problem.labels >= 0) & (problem.labels < problem.classes)
        if problem.ignore_index is not None:
            s[problem.labels == problem.ignore_index] = 0
    s = s / problem.denominator if problem.denominator else np.zeros(len(z))
    u = slope * v64
    mean = (p * u).sum(axis=1, keepdims=True)
    weight = q.sum(axis=1, keepdims=True) + 2 * lam * lse
    first = weight * p - q
    found = slope * (weight * p * (u - mean) + 2 * lam * p * mean) + first * curve * v64
    found[~known] = np.nan
    out[...] = np.where(s[:, None] == 0, 0, s[:, None] * found)
    return out


def _mass(problem: Any, z: Array) -> Array:
    if problem.labels is None:
        y = problem.distribution[:, 0].astype(np.float64)
    else:
        y = np.zeros_like(z)
        legal = (problem.labels >= 0) & (problem.labels < problem.classes)
        y[np.flatnonzero(legal), problem.labels[legal]] = 1
    w = 1.0 if problem.class_weight is None else problem.class_weight
    mass: Array = w * ((1 - problem.label_smoothing) * y + problem.label_smoothing / problem.classes)
    return mass
