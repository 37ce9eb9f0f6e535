"""The Kullback-Leibler divergence of predictions, without the cancellation of its definition."""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from sce import checks
from sce.backend import BackendError
from sce.layout import on_device
from sce.problem import prepare

from .rows import Reduction, nonnegative, reduced, reduction_of

_BLOCK = 1 << 18  # elements worked on at once, on the host: temporaries that stay in the cache
_TERMS = 16  # of the series of expm1(c) - c: at abs(c) = 1/2 the next is below 2^-53 of the sum


def kl_divergence(
    p: Any,
    logits: Any,
    *,
    p_is: Literal["logits", "distribution"] = "logits",
    axis: int = -1,
    temperature: float = 1.0,
    sample_weight: Any = None,
    reduction: Reduction = "none",
) -> Any:
    """The divergence of q = softmax(logits / T) from p, in nats::

        D(p || q) = sum_k p_k (log p_k - log q_k) >= 0

    Between nearly equal distributions this sum cancels: its terms are as large as their differences, D as
    small as the squares. It is computed from positive terms instead: with c_k = log(q_k / p_k) less its mean
    under p, D = log1p(sum_k p_k (expm1(c_k) - c_k)), see docs/math.md. So it keeps its relative accuracy
    however small it is, and logits that differ by a constant give exactly 0.

    Parameters
    ----------
    p:
        Logits of p, or with p_is="distribution" its probabilities: not negative (on a device such a row is
        NaN), each row divided by its sum, so that their rounding does not count. Shaped like `logits`.
    logits:
        Logits of q, as in `sce.loss_and_grad`, on the host or on a device (CuPy, PyTorch, JAX). -inf removes
        a class: free where p has none of it either, an infinite divergence where it has.
    p_is:
        What `p` holds.
    axis:
        The class axis.
    temperature:
        T: divides all logits, those of p, too.
    sample_weight, reduction:
        As in `entropy`.

    Returns
    -------
    Per row in float64 for float64 logits, else float32, where the logits are; or a float64 on the host. It
    is computed in float64 by the arrays' own library (JAX: as wide as its settings allow). A row with NaN,
    +inf, or nothing but -inf (no mass) on either side is NaN, and so may be one in which differences of
    logits are beyond float64, +-1.8e308.

    Examples
    --------
    >>> import numpy as np, sce
    >>> float(sce.information.kl_divergence([0.0, 0.0], [2e-9, 0.0]).round(30))  # (2e-9)**2 / 8
    5e-19
    >>> half = np.array([[0.5, 0.5]])
    >>> sce.information.kl_divergence(half, [[0.0, -np.inf]], p_is="distribution")
    array([inf])

    References
    ----------
    S. Kullback, R. A. Leibler (1951), "On information and sufficiency".
    """
    checks.one_of("p_is", p_is, ("logits", "distribution"))
    reduction = reduction_of(reduction, sample_weight)
    if on_device(p) != on_device(logits):
        raise BackendError("p and logits are not in one place, host or device: move them to one first.")
    first = prepare(p, outputs=("lse",), name="p", axis=axis, temperature=temperature, reduction="none")
    request = prepare(
        logits,
        outputs=("lse",),
        axis=axis,
        temperature=temperature,
        sample_weight=sample_weight,
        reduction="none",
    )
    if first.like.shape != request.like.shape:
        raise ValueError(f"p has shape {first.like.shape}, logits {request.like.shape}: nothing broadcasts.")
    axis, scale = request.layout.axis, request.problem.temperature
    narrow = checks.loss_dtype(request.like.dtype)
    if request.problem.on_device:
        values = _on_device(p, logits, axis, scale, p_is, narrow.name)
    else:
        if p_is == "distribution":
            nonnegative("p", first.like)
        a, b = (
            np.moveaxis(x, axis, -1).reshape(-1, request.problem.classes) for x in (first.like, request.like)
        )
        with np.errstate(over="ignore"):  # infinite, in the answer's dtype
            values = _on_host(a, b, scale, p_is).astype(narrow).reshape(request.layout.rows_shape)[()]
    return reduced(values, reduction, sample_weight)


def _on_host(a: Any, b: Any, scale: float, p_is: str) -> Any:
    """(N, C) in blocks of rows."""
    step = max(1, _BLOCK // a.shape[1])
    found = np.empty(len(a))
    for i in range(0, len(a), step):
        p, q = (np.asarray(x[i : i + step], np.float64) for x in (a, b))
        with np.errstate(all="ignore"):
            found[i : i + step] = _divergence(np, p, q, scale, p_is)
    return found


def _on_device(p: Any, logits: Any, axis: int, scale: float, p_is: str, narrow: str) -> Any:
    """With the operations of the arrays' own library."""
    root = type(logits).__module__.partition(".")[0]
    names = {"cupy": "cupy", "torch": "torch"}
    library = names.get(root) or ("jax.numpy" if hasattr(logits, "block_until_ready") else None)
    if library is None:
        raise BackendError(
            f"{type(logits).__module__}.{type(logits).__name__} has no arithmetic of its own: pass what CuPy,"
            " PyTorch or JAX make of it."
        )
    return wide_divergence(sys.modules[library], p, logits, axis, scale, p_is, narrow)


def wide_divergence(xp: Any, p: Any, logits: Any, axis: int, scale: float, p_is: str, narrow: str) -> Any:
    """The divergence per row by the library `xp`, which has NumPy's names; the answer's dtype is `narrow`."""

    def cast(x: Any, dtype: Any) -> Any:
        return x.to(dtype) if hasattr(x, "to") and not hasattr(x, "astype") else x.astype(dtype)

    wide = xp.float64 if xp.__name__ != "jax.numpy" else xp.asarray(1.0).dtype
    a, b = (cast(xp.moveaxis(x, axis, -1), wide) for x in (p, logits))
    return cast(_divergence(xp, a, b, scale, p_is), getattr(xp, narrow))


def _divergence(xp: Any, a: Any, b: Any, scale: float, p_is: str) -> Any:
    """(..., C) logits or probabilities a, logits b, to D(p || q): docs/math.md, "Divergence"."""
    take = getattr(xp, "take_along_axis", None) or xp.take_along_dim
    if p_is == "distribution":
        a, b, scale = xp.log(a), b / scale, 1.0
    first = xp.argmax(a, axis=-1, keepdims=True)  # t, a class that p has most of
    a_t, b_t = take(a, first, -1), take(b, first, -1)
    d, err = _difference(a, a_t)
    e = xp.where(a == -xp.inf, 0.0, xp.exp(d / scale) * (1 + err / scale))
    total = xp.sum(e, axis=-1, keepdims=True)
    p = e / total
    gone = p == 0  # nothing is left of its term but q_k

    # log(q_k / p_k) - log(q_t / p_t), exact but for the last rounding: the logits' own large parts go first.
    (d, low), (d_t, low_t) = _difference(b, a), _difference(b_t, a_t)
    ratio, err = _difference(d, d_t)
    ratio = xp.where(gone | (b == -xp.inf), 0.0, (ratio + (err + (low - low_t))) / scale)
    mean = xp.sum(p * ratio, axis=-1, keepdims=True)
    c = ratio - mean
    u = (b - b_t) / scale - xp.log(total) - mean  # log p_k + c_k = log q_k + D, with p_k = 0, too

    grown = xp.exp(xp.where(u > 1, 1.0, u))  # p_k exp(c_k)
    near = xp.where(c > 1, grown - p * (1 + c), p * _excess(xp, xp.where(c > 1, 1.0, c)))
    near = xp.log1p(xp.sum(xp.where(gone, grown, near), axis=-1))
    top = xp.amax(u, axis=-1)
    far = top + xp.log(xp.sum(xp.exp(u - top[..., None]), axis=-1))  # D > 1, and nothing cancels
    found = xp.where(top > 1, far, near)
    found = xp.where(xp.any((b == -xp.inf) & (a > -xp.inf), axis=-1), xp.inf, found)
    sound = xp.isfinite(xp.amax(a, axis=-1)) & xp.isfinite(xp.amax(b, axis=-1))
    return xp.where(sound, found, xp.nan)


def _excess(xp: Any, c: Any) -> Any:
    """expm1(c) - c >= 0, by its series where the difference would cancel."""
    series = 1.0
    for n in range(_TERMS, 2, -1):
        series = 1 + c / n * series
    return xp.where(abs(c) < 0.5, c * c / 2 * series, xp.expm1(c) - c)


def _difference(a: Any, b: Any) -> tuple[Any, Any]:
    """a - b and its rounding error (Knuth): their sum is exact. Not a number where one is infinite."""
    d = a - b
    back = d - a
    return d, (a - (d - back)) - (b + back)
