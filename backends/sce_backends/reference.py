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

from sce.backend import JACOBIANS, Answer, Array, Problem

on_device: bool = False
debug: bool = False
takes_binary: bool = True
takes_jacobians: bool = True

_BLOCK = 1 << 18  # elements worked on at once: temporaries that stay in the cache


def refuses(problem: Problem) -> str | None:
    return "logits live on a device." if problem.on_device else None


def missing() -> str | None:
    return None


@np.errstate(all="ignore")  # NaN and infinities in a row are that row's answer, not a warning
def run(problem: Problem, answer: Answer) -> None:
    outer, inner, classes = problem.logits.shape
    per_row = classes if problem.outputs.isdisjoint(JACOBIANS) else classes**2
    step = max(1, _BLOCK // (per_row * inner))
    wide = max(1, _BLOCK // per_row)
    sums = {"loss": 0.0, "z_loss": 0.0}
    row = np.arange(outer * inner).reshape(outer, inner)
    for a in range(0, outer, step):
        for b in range(0, inner, wide):
            tile = (slice(a, a + step), slice(b, b + wide))
            rows = row[tile].reshape(-1)
            found = _binary(problem, tile) if problem.binary else _outputs(problem, tile, rows)
            for name, got in found.items():
                into: Any = getattr(answer, name)
                if name in sums and problem.reduce:
                    sums[name] += got.sum()
                elif into.ndim >= 3:
                    into[tile] = got.reshape(into[tile].shape).astype(into.dtype)
                else:
                    into[rows] = got
    for name in sums:
        into = getattr(answer, name)
        if into is not None and problem.reduce:
            into[0] = sums[name]


def _outputs(problem: Problem, tile: tuple[slice, slice], rows: Array) -> dict[str, Array]:
    """Every wanted output for the n rows of a tile, each as (n,) or (n, C)."""
    x = _wide(problem.logits[tile], problem.classes)
    z, slope, curve = _transform(problem, x)
    target = _target(problem, tile, rows, x)
    counted, known, s = _scales(problem, rows, target.label, x)
    st = _statistics(z, target)
    lam, t = problem.z_loss, x.dtype.type(problem.temperature)
    wanted = problem.outputs
    out = {}

    of_z = lam * st.lse**2 if lam else np.zeros_like(st.lse)
    if "loss" in wanted:
        core = _dot(target.q, st.neg_log_p) + target.spare * st.lse
        out["loss"] = _by_row(s, np.where(known, core + of_z, np.nan))
    if "z_loss" in wanted:
        out["z_loss"] = _by_row(s, np.where(known, of_z, np.nan))

    if wanted & {"grad", "hess_diag", "hvp"}:
        z_slope = np.reshape(2 * lam * st.lse if lam else np.zeros_like(st.lse), (-1, 1))
        # Q p - q, written as (Q - q) p - q (1 - p): nothing cancels when p is close to 1.
        others = target.spare + _sum_of_others(target.q, st.pivots)
        dz = others * st.p - target.q * st.one_minus_p + z_slope * st.p
        if "grad" in wanted:
            out["grad"] = _by_row(s, problem.grad_scale * (dz * slope / t), known)
        front = target.spare + target.q.sum(axis=1, keepdims=True) + z_slope
        if "hess_diag" in wanted:
            d2z = front * st.p * st.one_minus_p + 2 * lam * st.p**2
            # One factor after the other: the square of an extreme temperature is beyond float64.
            hess = _by_row(s, (d2z * slope**2 + dz * curve) / t * problem.hess_scale / t, known)
            if problem.hess_min is not None:
                hess = np.where((s == 0)[:, None], hess, np.maximum(hess, problem.hess_min))
            out["hess_diag"] = hess
    if problem.direction is not None:
        v = _wide(problem.direction[tile], problem.classes).astype(x.dtype)
        flat = problem.softcap is None
        centred, mean = _centred(v if flat else slope * v, st)
        if "hvp" in wanted:
            along = front * st.p * centred + 2 * lam * st.p * mean
            along = along if flat else along * slope + dz * curve * v
            out["hvp"] = _by_row(s, along / t * problem.hess_scale / t, known)
        if "log_softmax_jvp" in wanted:
            out["log_softmax_jvp"] = centred / t

    if not wanted.isdisjoint(JACOBIANS):
        i = np.arange(problem.classes)
        of_log = np.repeat(-st.p[:, None, :], problem.classes, axis=1)
        of_log[:, i, i] = st.one_minus_p
        out["log_softmax_jacobian"] = of_log / t
        out["softmax_jacobian"] = st.p[:, :, None] * of_log / t
        out = {name: x for name, x in out.items() if name in wanted}
    if "lse" in wanted:
        out["lse"] = st.lse
    if "log_softmax" in wanted:
        out["log_softmax"] = 0 - st.neg_log_p
    if "entropy" in wanted:
        out["entropy"] = st.log_total + _dot(st.p, -st.d)
    if "log_prob" in wanted:
        log_prob = np.where(known, -_dot(target.y, st.neg_log_p), np.nan)
        out["log_prob"] = np.where(counted, log_prob, 0)
    # Without a bias z grows with x, so x decides what rounding ties in z.
    best = (x if problem.logit_bias is None else z).argmax(axis=1)
    if "argmax" in wanted:
        out["argmax"] = best
    if "correct" in wanted:
        out["correct"] = counted & known & (best == target.y.argmax(axis=1))
    return out


def _binary(problem: Problem, tile: tuple[slice, slice]) -> dict[str, Array]:
    """The same for the n logits of a tile, each of which stands for two classes with the logits (0, x)."""
    x = _wide(problem.logits[tile], 1)[:, 0]
    real = x.dtype.type
    t, eps = real(problem.temperature), real(problem.label_smoothing)
    known = np.ones(len(x), bool)
    u = np.ones(len(x)) if problem.sample_weight is None else _wide(problem.sample_weight[tile], 1)[:, 0]
    counted = u != 0
    if problem.labels is not None:
        label = problem.labels[tile].reshape(-1)
        y, known = (label == 1).astype(real), (label == 0) | (label == 1)
        if problem.ignore_index is not None:
            counted &= label != problem.ignore_index
    else:
        assert problem.distribution is not None
        y = _wide(problem.distribution[tile], 1)[:, 0].astype(real)
    w = problem.pos_weight
    w = w if isinstance(w, float) else _wide(w[tile], 1)[:, 0]
    q1, q0 = w * ((1 - eps) * y + eps / 2), (1 - eps) * (1 - y) + eps / 2
    empty = problem.denominator == 0
    s = np.where(counted & (not empty), u, 0).astype(real) / (1.0 if empty else problem.denominator)

    z = x / t
    e = np.exp(-np.abs(z))
    sure, other = 1 / (1 + e), e / (1 + e)  # 1 - p is a quotient, never a difference
    p, not_p = np.where(z > 0, (sure, other), (other, sure))
    costs = np.stack([np.log1p(e) + np.maximum(z, 0), np.log1p(e) + np.maximum(-z, 0)], axis=1)
    loss = _dot(np.stack([q0, q1], axis=1), costs)
    grad = problem.grad_scale * (q0 * p - q1 * not_p) / t
    hess = problem.hess_scale * (q0 + q1) * p * not_p / t  # and once more by t, after all weights
    out = {"loss": loss, "grad": grad, "hess_diag": hess}
    out = {name: _by_row(s, np.where(known, out[name], np.nan)) for name in problem.outputs}
    if "hess_diag" in out:
        out["hess_diag"] = out["hess_diag"] / t
        if problem.hess_min is not None:
            out["hess_diag"] = np.where(s == 0, 0, np.maximum(out["hess_diag"], problem.hess_min))
    return out


class _Transformed(NamedTuple):
    z: Array
    slope: Array | float  # of z by x / T: the first derivative. The factors 1 / T come last
    curve: Array | float  # and the second


def _transform(problem: Problem, x: Array) -> _Transformed:
    """z = cap * tanh(x / (T * cap)) + b. Infinities pass through the soft cap."""
    real = x.dtype.type
    t = real(problem.temperature)
    bias = 0.0 if problem.logit_bias is None else problem.logit_bias
    if problem.softcap is None:
        return _Transformed(x / t + bias, 1.0, 0.0)
    cap = real(problem.softcap)
    u = x / t / cap
    tanh = np.tanh(u)
    sech2 = 1 / np.cosh(u) ** 2  # 1 - tanh^2 without the cancellation
    z = np.where(np.isinf(x), x, cap * tanh) + bias
    return _Transformed(z, sech2, -2 * tanh * sech2 / cap)


class _Target(NamedTuple):
    y: Array  # (n, C): one-hot for an index
    q: Array  # (n, C): the mass w ((1 - eps) y + eps / C)
    label: Array | None  # (n,), for an index target; a label out of range counts as 0 here
    spare: float  # mass at no class: softmax is the gradient of logsumexp, which has q = 0 and Q = 1


def _target(problem: Problem, tile: tuple[slice, slice], rows: Array, x: Array) -> _Target:
    real = x.dtype.type
    if problem.target == "none":
        return _Target(np.zeros_like(x), np.zeros_like(x), None, 1.0)
    label = None
    if problem.labels is not None:
        label = problem.labels[rows]
        y = np.zeros_like(x)
        y[np.arange(len(y)), np.where((label >= 0) & (label < problem.classes), label, 0)] = 1
    else:
        assert problem.distribution is not None
        y = _wide(problem.distribution[tile], problem.classes).astype(x.dtype)
    eps = real(problem.label_smoothing)
    w = 1.0 if problem.class_weight is None else problem.class_weight
    return _Target(y, w * ((1 - eps) * y + eps / problem.classes), label, 0.0)


def _scales(problem: Problem, rows: Array, label: Array | None, x: Array) -> tuple[Array, Array, Array]:
    """(counted, known, s): is a row not left out, is its label in range, and s = u / D, 0 where left out."""
    u = np.ones(len(rows)) if problem.sample_weight is None else problem.sample_weight[rows]
    counted = u != 0
    known = np.ones(len(rows), bool)
    if label is not None:
        known = (label >= 0) & (label < problem.classes)
        if problem.ignore_index is not None:
            counted &= label != problem.ignore_index
    empty = problem.denominator == 0
    s = np.where(counted & (not empty), u, 0).astype(x.dtype) / (1.0 if empty else problem.denominator)
    return counted, known, s


class _Statistics(NamedTuple):
    d: Array  # (n, C): z_k - z_t
    p: Array  # (n, C)
    one_minus_p: Array  # (n, C): sums of the others at the pivots
    neg_log_p: Array  # (n, C), >= 0
    log_total: Array  # (n,): log of S = sum_k exp(d_k)
    lse: Array  # (n,)
    pivots: tuple[Array, Array]  # t and y


def _statistics(z: Array, target: _Target) -> _Statistics:
    i = np.arange(len(z))
    t = z.argmax(axis=1)
    y = t if target.label is None else target.y.argmax(axis=1)
    top = z[i, t]
    d, err = _two_diff(z, top[:, None])
    e = np.exp(d) * (1 + err)
    rest = e.copy()
    rest[i, t] = rest[i, y] = 0
    rest = rest.sum(axis=1)  # over k not in {t, y}
    r_t = rest + np.where(t == y, 0, e[i, y])  # over k != t
    total = r_t + e[i, t]
    # e at the maximum is 1, or NaN for a row of nothing but -inf or with +inf: that row is NaN.
    log_total = np.log1p(r_t + (e[i, t] - 1))
    p = e / total[:, None]
    one_minus_p = 1 - p
    one_minus_p[i, t] = r_t / total  # elsewhere p <= 1/2, and nothing cancels
    lse = np.where(top == -np.inf, -np.inf, top + log_total)
    return _Statistics(d, p, one_minus_p, log_total[:, None] - (d + err), log_total, lse, (t, y))


def _centred(w: Array, st: _Statistics) -> tuple[Array, Array]:
    """(n, C): w_k - p.w, and (n, 1): p.w. NaN in a row of w that holds NaN or an infinity.

    w_k - p.w = (w_k - m) + sum_j p_j (m - w_j) for any m. The maximum's own w, where it has half of the
    probability: its term is exactly 0, and 1 - p_t never a difference. Elsewhere the w nearest to p.w,
    because a w_t far from the others would cancel.
    """
    i = np.arange(len(w))
    t = st.pivots[0]
    mean = (st.p * w).sum(axis=1, keepdims=True)
    near = w[i, np.where(st.p[i, t] >= 0.5, t, np.abs(w - mean).argmin(axis=1))][:, None]
    gap = near - w
    shift = (st.p * gap).sum(axis=1, keepdims=True)
    return np.where(np.isfinite(shift), shift - gap, np.nan), near - shift


def _sum_of_others(q: Array, pivots: tuple[Array, Array]) -> Array:
    """(n, C): Q - q_k, at the pivots as the sum of the others."""
    i = np.arange(len(q))
    others: Array = q.sum(axis=1, keepdims=True) - q
    for k in pivots:
        without = q.copy()
        without[i, k] = 0
        others[i, k] = without.sum(axis=1)
    return others


def _by_row(s: Array, value: Array, known: Array | None = None) -> Array:
    """s * value; exactly 0 where s is, whatever the value; NaN where the label is unknown."""
    if value.ndim == 2:
        s = s[:, None]
        value = value if known is None else np.where(known[:, None], value, np.nan)
    return np.where(s == 0, 0, s * value)


def _dot(weight: Array, value: Array) -> Array:
    """sum_k weight_k * value_k, with 0 * inf = 0; NaN where any value is NaN."""
    product = np.where((weight == 0) & ~np.isnan(value), 0, weight * value)
    return np.asarray(product.sum(axis=1))


def _two_diff(a: Array, b: Array) -> tuple[Array, Array]:
    """a - b and its rounding error (Knuth): their sum is exact. An infinite difference has no error."""
    d = a - b
    back = d - a
    err = (a - (d - back)) - (b + back)
    return d, np.where(np.isfinite(d), err, 0)


def _wide(x: Array, classes: int) -> Array:
    """(A, B, C) of any dtype as (n, C) in float64, or longdouble."""
    dtype = np.longdouble if x.dtype == np.longdouble else np.float64
    # Contiguous: the order in which NumPy adds a row must not depend on its strides.
    return np.ascontiguousarray(x.reshape(-1, classes), dtype)
