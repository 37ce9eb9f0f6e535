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

_one_fit = threading.Lock()  # held by the one fit, of all that are under way, that has set the limit


def _start_anew() -> None:
    """In a child after a fork, which has only the thread that forked."""
    global _one_fit
    _one_fit = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)


@contextmanager
def alone() -> Iterator[None]:
    """In here SciPy's own BLAS has one thread, in the whole process.

    Of fits that overlap only the first sets and lifts that: another would take the 1 that it finds for what
    there was before, and leave it.
    """
    lock = _one_fit
    if not lock.acquire(blocking=False):
        yield
        return
    try:
        with _blas_of_scipy().limit(limits=1):
            yield
    finally:
        lock.release()


@cache
def _blas_of_scipy() -> Any:
    """The libraries that lie among SciPy's own files: none where it shares NumPy's."""
    package = Path(scipy.__file__).resolve().parent  # as the libraries' paths are
    folders = {package.parent / "scipy.libs", package / ".dylibs"}
    every = ThreadpoolController()
    own = [found["filepath"] for found in every.info() if Path(found["filepath"]).parent in folders]
    return every.select(filepath=own)
