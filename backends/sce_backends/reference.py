"""NumPy reference: the definition every other backend is held to. Read it beside docs/math.md.

Computes in float64 whatever the logits' dtype (in longdouble if it is given longdouble logits, which is how
the conformance suite gets its expected values), a block of rows at a time.

Two ideas make it accurate where textbook code is not:
- **Pivots.** Sums leave out the target y and the maximum t, whose terms are added by hand. So
  r_y = sum_{k != y} exp(z_k - z_t) is never a difference, and 1 - p_y = r_y / S keeps its relative accuracy.
- **Two-sum.** The rounding error of z_k - z_t is kept and multiplied back as exp(d) * (1 + err).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sce.backend import Answer, Array, Problem

on_device: bool = False
debug: bool = False

_BLOCK = 1 << 18  # elements worked on at once: temporaries that stay in the cache


def refuses(problem: Problem) -> str | None:
    return "logits live on a device." if problem.on_device else None


def missing() -> str | None:
    return None


def run(problem: Problem, answer: Answer) -> None:
    outer, inner, classes = problem.logits.shape
    step = max(1, _BLOCK // (classes * inner))
    wide = max(1, _BLOCK // classes)
    sums = {"loss": 0.0, "z_loss": 0.0}
    for a in range(0, outer, step):
        for b in range(0, inner, wide):
            tile = (slice(a, a + step), slice(b, b + wide))
            values = _rows(problem, tile)
            for name, got in values.items():
                into: Any = getattr(answer, name)
                if into is None:
                    continue
                if name in sums and problem.reduce:
                    sums[name] += got.sum()
                elif into.ndim == 3:
                    into[tile] = got.reshape(into[tile].shape).astype(into.dtype)
                else:
                    into.reshape(outer, inner)[tile] = got.reshape(into.reshape(outer, inner)[tile].shape)
    for name in sums:
        into = getattr(answer, name)
        if into is not None and problem.reduce:
            into[0] = sums[name]


class _Transformed(NamedTuple):
    z: Array
    slope: Array | float  # dz/dx
    curve: Array | float  # d2z/dx2


def _transform(problem: Problem, x: Array) -> _Transformed:
    """z = cap * tanh(x / (T * cap)) + b. Infinities pass through the soft cap."""
    t, cap = problem.temperature, problem.softcap
    bias = 0.0 if problem.logit_bias is None else problem.logit_bias
    if cap is None:
        return _Transformed(x / t + bias, 1 / x.dtype.type(t), 0.0)
    u = x / (t * x.dtype.type(cap))
    tanh = np.tanh(u)
    sech2 = 1 / np.cosh(u) ** 2  # 1 - tanh^2 without the cancellation
    z = np.where(np.isinf(x), x, cap * tanh) + bias
    return _Transformed(z, sech2 / t, -2 * tanh * sech2 / (t * t * x.dtype.type(cap)))


@np.errstate(all="ignore")  # NaN and infinities in a row are that row's answer, not a warning
def _rows(problem: Problem, tile: tuple[slice, slice]) -> dict[str, Array]:
    """Every wanted output for one tile of rows, each as (n,) or (n, C)."""
    raw = problem.logits[tile]
    classes = problem.classes
    n = raw.shape[0] * raw.shape[1]
    x = raw.reshape(n, classes).astype(np.promote_types(_wide(raw.dtype), np.float64))
    outer, inner, _ = problem.logits.shape
    rows = np.arange(outer * inner).reshape(outer, inner)[tile].reshape(n)
    i = np.arange(n)
    z, slope, curve = _transform(problem, x)

    # The target: q_k and, where it is an index, its class y.
    w = np.ones(classes) if problem.class_weight is None else problem.class_weight
    eps = problem.label_smoothing
    counted = np.ones(n, bool)
    known = np.ones(n, bool)  # False: a label out of range, which makes the row NaN
    y = None
    if problem.target == "none":
        q = np.zeros_like(x)
    else:
        if problem.target == "index":
            assert problem.labels is not None
            label = problem.labels[rows]
            if problem.ignore_index is not None:
                counted = label != problem.ignore_index
            known = (label >= 0) & (label < classes)
            y = np.where(known, label, 0)
            target = np.zeros_like(x)
            target[i, y] = 1
        else:
            assert problem.distribution is not None
            target = problem.distribution[tile].reshape(n, classes).astype(x.dtype)
        q = w * ((1 - x.dtype.type(eps)) * target + x.dtype.type(eps) / classes)
    u = np.ones(n) if problem.sample_weight is None else problem.sample_weight[rows]
    counted &= u != 0
    s = np.where(counted & (problem.denominator != 0), u, 0).astype(x.dtype)
    s = s / (problem.denominator or 1.0)

    # The row's statistics: maximum t, and the sums that leave out t, y or both.
    t = z.argmax(axis=1)
    top = z[i, t][:, None]
    d, err = _two_diff(z, top)
    e = np.exp(d) * (1 + err)
    e[i, t] = np.where(np.isnan(d[i, t]), np.nan, 1)
    pivot = t if y is None else y
    others = e.copy()
    others[i, t] = 0
    others[i, pivot] = 0
    rest = others.sum(axis=1)  # over k not in {y, t}
    same = pivot == t
    r_t = rest + np.where(same, 0, e[i, pivot])  # over k != t
    r_y = rest + np.where(same, 0, e[i, t])  # over k != y
    total = r_t + e[i, t]
    log_total = np.log1p(r_t)
    p = e / total[:, None]
    lse = np.where(top[:, 0] == -np.inf, -np.inf, top[:, 0] + log_total)
    neg_log_p = log_total[:, None] - (d + np.where(np.isfinite(d), err, 0))  # -log p_k >= 0

    # Loss. 0 * inf is 0: no target mass on a masked class costs nothing.
    mass = q.sum(axis=1)  # Q
    zl = problem.z_loss * lse * lse if problem.z_loss else np.zeros(n)
    core = _dot(q, neg_log_p) + 0 * total if problem.target != "none" else lse
    core, zl = np.where(known, core, np.nan), np.where(known, zl, np.nan)
    out = {"loss": np.where(s == 0, 0, s * (core + zl)), "z_loss": np.where(s == 0, 0, s * zl)}
    if problem.target == "none":
        mass = np.ones(n)
    outputs = problem.outputs

    # Gradient: Q p - q, written at the pivots without the cancellation of p - 1.
    one_minus_p = 1 - p
    one_minus_p[i, t] = r_t / total
    one_minus_p[i, pivot] = r_y / total
    z_slope = (2 * problem.z_loss * lse)[:, None] if problem.z_loss else np.zeros((n, 1))
    dz = mass[:, None] * p - q
    for k in (t, pivot):
        without = q.copy()
        without[i, k] = 0
        dz[i, k] = (
            (mass if problem.target == "none" else without.sum(axis=1)) * p[i, k]
            - q[i, k] * one_minus_p[i, k]
        )  # fmt: skip
    dz = np.where(known[:, None], dz + z_slope * p, np.nan)
    if "grad" in outputs:
        by_row = (problem.grad_scale * s)[:, None]
        out["grad"] = np.where(by_row == 0, 0, by_row * dz * slope)
    if "hess_diag" in outputs:
        h = (mass[:, None] + z_slope) * p * one_minus_p + 2 * problem.z_loss * p * p
        h = np.where(known[:, None], h, np.nan)
        out["hess_diag"] = np.where(s[:, None] == 0, 0, s[:, None] * (h * slope**2 + dz * curve))

    # What a row says beside its loss.
    out["lse"] = lse
    out["log_softmax"] = -neg_log_p
    out["entropy"] = log_total + _dot(p, -d)
    # Without a bias z grows with x, so x decides ties that rounding made in z.
    best = (x if problem.logit_bias is None else z).argmax(axis=1)
    out["argmax"] = best
    if problem.target != "none":
        out["log_prob"] = np.where(counted, np.where(known, -_dot(target, neg_log_p), np.nan), 0)
        out["correct"] = counted & known & (best == target.argmax(axis=1))
    return out


def _dot(weight: Array, value: Array) -> Array:
    """sum_k weight_k * value_k, with 0 * inf = 0; NaN where any value is NaN."""
    product = np.where((weight == 0) & ~np.isnan(value), 0, weight * value)
    return np.asarray(product.sum(axis=1))


def _two_diff(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b and its rounding error (Knuth): their sum is exact. The error of an infinite difference is 0."""
    d = a - b
    back = d - a
    err = (a - (d - back)) - (b + back)
    return d, np.where(np.isfinite(d), err, 0)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """bfloat16 has no promotion rule with float64 in NumPy."""
    return np.dtype(np.float64) if dtype.itemsize == 2 else dtype
