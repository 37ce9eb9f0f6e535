"""One number per row, brought to the host: what statistics over rows are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce.backend import Array
from sce.layout import as_host, on_device


def to_host(x: Any, name: str) -> Array:
    """A small array as NumPy's, from wherever it is; from a device this waits for it."""
    if not on_device(x):
        return as_host(x, name)
    for leave in ("get", "copy_to_host", "cpu"):  # CuPy's, Numba's, PyTorch's word for it
        if hasattr(x, leave):
            return as_host(getattr(x.detach() if hasattr(x, "detach") else x, leave)(), name)
    return as_host(x, name)  # JAX answers to __array__


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
    """Weights that are shares of something: what else is wrong with them, `sce.evaluate` says."""
    if value is None:
        return
    w = to_host(value, name)
    if w.dtype.kind in "if" and (w < 0).any():
        at = tuple(int(i) for i in np.unravel_index(int(np.argmax(w < 0)), w.shape))
        raise ValueError(
            f"{name} must not be negative here, where it is a share of the rows:"
            f" it holds {w[at]} at position {at[0] if len(at) == 1 else at}."
        )
