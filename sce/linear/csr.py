"""Sparse rows: SciPy's CSR, without importing SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_sparse(X: Any) -> bool:
    """One of SciPy's sparse arrays or matrices."""
    return not isinstance(X, np.ndarray) and hasattr(X, "tocsr") and hasattr(X, "nnz")


def csr(X: Any, validate: bool) -> Any:
    if X.format != "csr" or X.ndim != 2:
        raise TypeError(f"X is sparse in format {X.format}: rows are taken from CSR, so pass X.tocsr().")
    if X.dtype not in (np.float32, np.float64):
        raise TypeError(f"X is sparse of dtype {X.dtype}: convert it, for instance with .astype(np.float32).")
    if validate:
        within(X)
    return X


def within(X: Any) -> None:
    """Do a CSR matrix's indices point into it? SciPy does not look, and reads wherever they point."""
    starts, (rows, columns) = X.indptr, X.shape
    stored = min(len(X.indices), len(X.data))
    if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] > stored or (starts[1:] < starts[:-1]).any():
        raise ValueError(
            f"X.indptr does not rise from 0 to the {stored} numbers that X holds: it is damaged."
        )
    found = X.indices[: starts[-1]]
    if found.size and not 0 <= found.min() <= found.max() < columns:
        at = int(np.argmax((found < 0) | (found >= columns)))
        raise ValueError(
            f"X.indices[{at}] is {found[at]}, outside [0, {columns}), X's columns: X is damaged."
        )
