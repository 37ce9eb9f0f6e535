"""Products of matrices, and sums of them, by NumPy's BLAS alone.

SciPy brings a BLAS of its own, which can add a product to a matrix. But each has its threads, and these wait
for work by spinning: in turns, the two take up to twice the time of one.
"""

from __future__ import annotations

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
    # NumPy has no product that adds: block by block, so that it waits in a cache and not in memory.
    most = _BLOCK if isinstance(a, np.ndarray) else _SPARSE_BLOCK
    step = max(1, most // max(1, into.shape[0] * into.itemsize))
    for k in range(0, into.shape[1], step):
        block = slice(k, k + step)
        into[:, block] += a @ b[:, block]
