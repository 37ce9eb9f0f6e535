"""SciPy's BLAS on one thread during a fit.

NumPy and SciPy from PyPI bring a BLAS each, and each BLAS threads that spin for a while before they sleep.
L-BFGS goes from one to the other at every step, from NumPy's products to a few hundred numbers of SciPy's,
and the threads of either get in the way of the other's. A fit of the handwritten digits took 170 ms so on 2
cores, and takes 8. A BLAS that both share is left alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import scipy
from threadpoolctl import ThreadpoolController

# Fits at work, and the limit that the first of them set: the last one lifts it.
_lock = threading.Lock()
_fits, _limit = 0, None

if hasattr(os, "register_at_fork"):  # a child would wait for ever for a lock whose thread it has not got
    os.register_at_fork(before=_lock.acquire, after_in_child=_lock.release, after_in_parent=_lock.release)


@contextmanager
def alone() -> Iterator[None]:
    """In here SciPy's own BLAS has one thread, in the whole process."""
    global _fits, _limit
    with _lock:
        _fits += 1
        if _fits == 1:
            _limit = _blas_of_scipy().limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _fits -= 1
            if _fits == 0:
                _limit.restore_original_limits()


@cache
def _blas_of_scipy() -> Any:
    """The libraries that lie among SciPy's own files: none where it shares NumPy's."""
    package = Path(scipy.__file__).parent
    folders = {package.parent / "scipy.libs", package / ".dylibs"}
    every = ThreadpoolController()
    own = [found["filepath"] for found in every.info() if Path(found["filepath"]).parent in folders]
    return every.select(filepath=own)
