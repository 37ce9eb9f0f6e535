"""Where compiled kernels are kept, and the decorators that keep them there.

Numba's own choice of directory fails on read-only installs, and it notices a change only in the file a kernel
stands in, not in the files that kernel calls. So the directory is chosen here, and its name carries a hash of
every source file of this package: any change starts a new, empty one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
from platformdirs import user_cache_path

from sce.backend import cache_dir


@cache
def directory() -> Path | None:
    """The kernels' cache, or None where it cannot be written: then each process compiles for itself."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    chosen = cache_dir()
    root = Path(chosen).expanduser().absolute() if chosen else user_cache_path("sce", appauthor=False)
    path = root / f"cpu-numba-{numba.__version__}-{digest.hexdigest()[:16]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError:
        return None


def jit(**options: Any) -> Any:
    """`numba.njit` with this package's conventions: NumPy's division, and the cache above."""
    options = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **options}
    return _cached(numba.njit, error_model="numpy", **options)


def native_function(signature: Any) -> Any:
    """`numba.cfunc` with the same: a compiled function with a plain C address."""
    return _cached(numba.cfunc, signature)


_decorating = threading.Lock()


def _cached(decorator: Any, *args: Any, **options: Any) -> Any:
    path = directory()

    def decorate(function: Any) -> Any:
        # Numba reads the directory when it decorates. It is set for just that long, by one thread at a time:
        # other code's kernels stay where their authors want them.
        config: Any = numba.config
        with _decorating:
            before = config.CACHE_DIR
            config.CACHE_DIR = os.fspath(path) if path else before
            try:
                return decorator(*args, cache=path is not None, **options)(function)
            finally:
                config.CACHE_DIR = before

    return decorate


def inline(fastmath: Any = frozenset({"contract"})) -> Any:
    """A device of the inner loops: inlined by LLVM, so that it keeps its own floating-point flags.

    Numba's `inline="always"` would give it the caller's, and `reassoc` there folds error terms to zero.
    """
    return numba.njit(error_model="numpy", forceinline=True, fastmath=set(fastmath), no_cpython_wrapper=True, no_cfunc_wrapper=True)


def intrinsic(function: Any) -> Any:
    """`numba.extending.intrinsic`, whose declared type forgets that the typing context is not passed."""
    return numba.extending.intrinsic(function)
