"""Products of matrices, and sums of them: NumPy's BLAS, and SciPy's where a product is added to another."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from sce.backend import Array

# Bytes of a product that waits to be added: they stay in a cache; a sparse one costs too much to stay there.
_BLOCK, _SPARSE_BLOCK = 4 << 20, 32 << 20


def multiply(a: Any, b: Array, into: Array) -> Array:
    """a @ b, dense; `into` is memory for it, which a sparse product has no use for."""
    if isinstance(a, np.ndarray):
        return np.matmul(a, b, out=into)
    return np.asarray(a @ b)


def add_product(a: Any, b: Array, into: Array) -> None:
    """into += a @ b."""
    if isinstance(a, np.ndarray) and a.size and b.size and _add_by_blas(a, b, into):
        return
    # NumPy has no product that adds: block by block, so that it waits in a cache and not in memory.
    most = _BLOCK if isinstance(a, np.ndarray) else _SPARSE_BLOCK
    step = max(1, most // max(1, into.shape[0] * into.itemsize))
    for k in range(0, into.shape[1], step):
        block = slice(k, k + step)
        into[:, block] += a @ b[:, block]


def _add_by_blas(a: Array, b: Array, into: Array) -> bool:
    """By SciPy's BLAS, where it is installed and takes these arrays as they lie in memory."""
    if into.flags.f_contiguous:
        a, b, c = a, b, into
    elif into.flags.c_contiguous:
        a, b, c = b.T, a.T, into.T  # the BLAS knows columns
    else:
        return False
    gemm = _gemm(into.dtype.char)
    if gemm is None or not all(x.flags.c_contiguous or x.flags.f_contiguous for x in (a, b)):
        return False
    flip = [not x.flags.f_contiguous for x in (a, b)]
    x, y = (m.T if f else m for m, f in zip((a, b), flip, strict=True))
    gemm(1.0, x, y, 1.0, c, flip[0], flip[1], overwrite_c=1)
    return True


@cache
def _gemm(code: str) -> Any:
    try:
        from scipy.linalg import blas
    except ImportError:
        return None
    return {"f": blas.sgemm, "d": blas.dgemm}[code]
