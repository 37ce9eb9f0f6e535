"""Compare arrays: within a bound, or bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from sce.backend import Array

from .bounds import Bound


def compare(got: Array, want: Array, bound: Bound) -> tuple[str, float]:
    """What is wrong with `got`, or "", and its largest error in ulp.

    Where `want` rounds to NaN or an infinity in the dtype of `got`, that and no other is right.
    """
    if got.dtype.kind in "ib":
        bad = np.asarray(got != want)
        return (_message(bad, got, want, "") if bad.any() else ""), 0.0
    with np.errstate(all="ignore"):
        given, rounded = _widen(got), _widen(_round(want, got.dtype))
        special = ~np.isfinite(rounded)
        same = (given == rounded) | (np.isnan(given) & np.isnan(rounded))
        error = np.abs(given - want)
        bad = np.where(special, ~same, ~(error <= bound.allowed))
        inside = ~special & np.isfinite(error)
        ulps = np.where(inside, error / bound.ulp, 0.0)
    if not bad.any():
        return "", float(ulps.max(initial=0.0))
    at = _worst(bad, np.where(inside, error / np.maximum(bound.allowed, np.finfo(np.float64).tiny), np.inf))
    detail = ""
    if inside[at]:
        limit = f"{bound.allowed[at] / bound.ulp[at]:.3g}" if bound.allowed[at] else "0 (exact)"
        detail = f", off by {float(ulps[at]):.3g} ulp, bound {limit}"
    return _message(bad, got, want, detail, at), float(ulps.max(initial=0.0))


def same_bits(a: Any, b: Any) -> bool:
    """Equal bit for bit, but any NaN equals any other."""
    x, y = np.asarray(a), np.asarray(b)
    if (x.shape, x.dtype) != (y.shape, y.dtype):
        return False
    if np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes():
        return True
    if x.dtype.kind in "ib":
        return False
    kind = f"u{x.dtype.itemsize}"
    bits = np.ascontiguousarray(x).view(kind) == np.ascontiguousarray(y).view(kind)
    return bool((bits | (np.isnan(x) & np.isnan(y)).reshape(bits.shape)).all())


def _worst(bad: Array, error: Array) -> tuple[int, ...]:
    flat = int(np.argmax(np.where(bad, error.astype(np.float64), -1.0)))
    return tuple(int(k) for k in np.unravel_index(flat, bad.shape))


def _message(bad: Array, got: Array, want: Array, detail: str, at: tuple[int, ...] | None = None) -> str:
    if at is None:
        at = _worst(bad, np.ones(bad.shape))
    where = f"at {at[0] if len(at) == 1 else at}: " if at else ""
    more = f" ({int(bad.sum())} of {bad.size} wrong)" if bad.size > 1 else ""
    return f"{where}got {got[at]}, want {want[at]}{detail}{more}"


def _widen(x: Array) -> Array:
    """bfloat16 reaches longdouble through float64 only."""
    return x.astype(np.float64).astype(np.longdouble) if x.dtype.itemsize == 2 else x.astype(np.longdouble)


def _round(x: Array, dtype: np.dtype[Any]) -> Array:
    return x.astype(np.float64).astype(dtype) if dtype.itemsize == 2 else x.astype(dtype)
