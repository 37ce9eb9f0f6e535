"""One number per row, brought to the host: what statistics over rows are made of."""

from __future__ import annotations

import sys
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from sce import checks
from sce.backend import DTYPES, Array
from sce.layout import as_host, dtype_name, on_device

Reduction: TypeAlias = Literal["none", "sum", "mean"]


def to_host(x: Any, name: str) -> Array:
    """A small array as NumPy's, from wherever it is; from a device this waits for it."""
    if not on_device(x):
        return as_host(x, name)
    for leave in ("get", "copy_to_host", "cpu"):  # CuPy's, Numba's, PyTorch's word for it
        if hasattr(x, leave):
            return as_host(getattr(x.detach() if hasattr(x, "detach") else x, leave)(), name)
    return as_host(x, name)  # JAX answers to __array__


def beside(x: Array, like: Any) -> Any:
    """A small array where `like` is: itself on the host, a copy of the same library's type on a device."""
    if not on_device(like):
        return x
    root = type(like).__module__.partition(".")[0]
    if root == "torch":
        return sys.modules["torch"].as_tensor(x, device=like.device)
    if root == "numba":
        return sys.modules["numba.cuda"].to_device(x)
    if root == "cupy":
        with like.device:
            return sys.modules["cupy"].asarray(x)
    return like.__array_namespace__().asarray(x, device=like.device)


def reduction_of(reduction: str, sample_weight: Any) -> Reduction:
    """How rows are put together, and weights that may do so."""
    checks.one_of("reduction", reduction, ("none", "sum", "mean"))
    if reduction == "none" and sample_weight is not None:
        raise ValueError('sample_weight weighs the rows of a sum or mean: pass reduction="mean" with it.')
    nonnegative("sample_weight", sample_weight)
    return cast(Reduction, reduction)


def reduced(values: Any, reduction: Reduction, sample_weight: Any) -> Any:
    """The rows' values as they are, or their sum or mean by weight; rows of weight 0 are not looked at."""
    if reduction == "none":
        return values
    here = to_host(values, "values")
    u = weights(None, here.shape, sample_weight, None)
    counted = u > 0
    total = np.float64((u[counted] * here.reshape(-1)[counted].astype(np.float64)).sum())
    if reduction == "sum":
        return total
    return total / u[counted].sum() if counted.any() else np.float64(np.nan)


def weights(
    target: Any, shape: tuple[int, ...], sample_weight: Any, ignore_index: int | None
) -> NDArray[np.float64]:
    """How much each row counts, (N,): its sample weight, 0 where its label is the one to leave out.

    For arguments that `sce.evaluate` has checked: `shape` is that of its answers per row.
    """
    given = 1.0 if sample_weight is None else to_host(sample_weight, "sample_weight")
    found = np.array(np.broadcast_to(given, shape), dtype=np.float64)
    if ignore_index is not None:
        found[to_host(target, "target") == ignore_index] = 0
    return found.reshape(-1)


def nonnegative(name: str, value: Any) -> None:
    """Shares and probabilities: what else may be wrong with them is for others to say."""
    if value is None:
        return
    w = to_host(value, name)
    if (w.dtype.kind == "i" or dtype_name(w.dtype) in DTYPES) and (w < 0).any():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(w < 0)), w.shape))
        raise ValueError(
            f"{name} must not be negative here: it holds {w[at]} at position {at[0] if len(at) == 1 else at}."
        )
