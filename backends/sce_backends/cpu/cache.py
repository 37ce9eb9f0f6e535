"""Where compiled kernels are kept, and the decorators that keep them there.

Numba's own files do not do. It looks at one source file per kernel, not at those which that one calls; it
must write where it only needs to read; two processes that save at once can leave one's kernel under the
other's name; and a damaged file is an exception, or a wrong kernel. So here a directory carries a hash of
every source file of this package in its name, and each compiled function is one file in it, checked whole.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numba.extending
from numba.core.caching import FunctionCache, _cache_log
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps
from platformdirs import user_cache_path

from sce.backend import cache_dir

T = TypeVar("T")
_NAME = re.compile(r"cpu-numba-.+-[0-9a-f]{16}")
_UNUSED = 30 * 86400.0  # seconds after which another version's directory goes


@cache
def directory() -> Path | None:
    """The kernels' cache, perhaps read-only. None where there is none: each process compiles for itself."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    chosen = cache_dir()
    root = Path(chosen).expanduser().absolute() if chosen else user_cache_path("sce", appauthor=False)
    path = root / f"cpu-numba-{numba.__version__}-{digest.hexdigest()[:16]}"
    with suppress(OSError):
        if not path.is_dir():
            path.mkdir(parents=True)
            _prune(root, path)
        os.utime(path)  # says to other versions that it is in use
    return path if path.is_dir() else None


def _prune(root: Path, own: Path) -> None:
    """Remove other versions' directories that no process has opened for a month."""
    for path in root.iterdir():
        if _NAME.fullmatch(path.name) and path != own and not path.is_symlink():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNUSED:
                    shutil.rmtree(path, ignore_errors=True)


class _Cache:
    """What Numba keeps a function's compiled versions in. Its interface is numba.core.caching's."""

    def __init__(self, function: Any) -> None:
        self._py_func = function
        self.cache_path = os.fspath(directory() or "")

    _index_key: Any = FunctionCache._index_key  # types, processor, bytecode and closure

    def _file(self, sig: Any, codegen: Any) -> tuple[Path, str]:
        """Its path, and the whole key, which the file must have, too."""
        of, python = self._py_func, sys.implementation.cache_tag + getattr(sys, "abiflags", "")
        line = of.__code__.co_firstlineno  # bytecode alone does not tell f(x) from g(x)
        key = repr((of.__module__, of.__qualname__, line, python, self._index_key(sig, codegen)))
        name = f"{of.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.nbc"
        return Path(self.cache_path, name), key

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        path, key = self._file(sig, target_context.codegen())
        # Nothing that can be wrong with a file is worth more than compiling anew, which also replaces it.
        with suppress(Exception):
            digest, data = (whole := path.read_bytes())[:32], whole[32:]
            if hashlib.sha256(data).digest() == digest:
                stored, payload = pickle.loads(data)
                if stored == key:
                    found = CompileResult._rebuild(target_context, *payload)
                    _cache_log("[cache] data loaded from %r", path)
                    return found
        return None

    def save_overload(self, sig: Any, cres: Any) -> None:
        path, key = self._file(sig, cres.codegen)
        data = dumps((key, cres._reduce()))
        with suppress(OSError):  # no place, no room: the next process compiles for itself
            _write_whole(path, hashlib.sha256(data).digest() + data)
            _cache_log("[cache] data saved to %r", path)

    def flush(self) -> None:
        """Nothing to do: a file's name says what it is for."""


def _write_whole(path: Path, data: bytes) -> None:
    """Under its own name a file is whole, also where this process is killed or another writes the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def jit(signature: Any = None, **options: Any) -> Any:
    """`numba.njit` with this package's conventions: NumPy's division, and the cache above.

    With a signature it is compiled at once, for that alone, and can be called from Python.
    """
    alone = signature is None  # called by kernels only: no wrappers, which take long to compile
    options |= {"no_cpython_wrapper": alone, "no_cfunc_wrapper": True}

    def decorate(function: Any) -> Any:
        dispatcher = numba.njit(error_model="numpy", **options)(function)
        if directory():
            dispatcher._cache = _Cache(function)
        if signature is not None:
            dispatcher.compile(signature)
            dispatcher.disable_compile()
        return dispatcher

    return decorate


def native_function(signature: Any) -> Any:
    """`numba.cfunc` with the same cache: a compiled function with a plain C address."""

    def decorate(function: Any) -> Any:
        compiled: Any = CFunc(function, (signature.args, signature.return_type), locals={}, options={})
        if directory():
            compiled._cache = _Cache(function)
        compiled.compile()
        return compiled

    return decorate


def once(make: Callable[..., T]) -> Callable[..., T]:
    """`functools.cache` for what compiles: threads that ask at once compile it once."""
    made: dict[Hashable, T] = {}

    def get(*key: Hashable) -> T:
        if key not in made:
            with global_compiler_lock:
                if key not in made:
                    made[key] = make(*key)
        return made[key]

    return get


# A fork waits for a compilation to end: the child would wait for ever for a lock whose thread it has not got.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_child=global_compiler_lock.release,
        after_in_parent=global_compiler_lock.release,
    )


def inline(fastmath: Any = frozenset({"contract"})) -> Any:
    """A device of the inner loops: inlined by LLVM, so that it keeps its own floating-point flags.

    Numba's `inline="always"` would give it the caller's, and `reassoc` there folds error terms to zero.
    """
    options: Any = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(error_model="numpy", forceinline=True, fastmath=set(fastmath), **options)


def intrinsic(function: Any) -> Any:
    """`numba.extending.intrinsic`, whose declared type forgets that the typing context is not passed."""
    return numba.extending.intrinsic(function)
