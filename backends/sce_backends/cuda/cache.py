"""Machine code on disk: compiled once for a kernel, an architecture and a compiler, then only read.

A directory carries a hash of this package's sources and the compiler's versions in its name; a file has its
whole key and a checksum, and is moved into place when complete. Whatever is wrong with one, the kernel is
compiled anew; where nothing can be written, each process compiles for itself.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from sce.backend import cache_dir

from . import kernels
from .plan import Spec

COMPILERS = ("numba-cuda", "numba", "llvmlite", "nvidia-nvvm", "nvidia-nvjitlink", "numpy")
_NAME = re.compile(r"cuda-[0-9a-f]{24}")
_UNUSED = 30 * 86400.0  # seconds after which another version's directory goes
_lock = threading.Lock()

Compile = Callable[[Spec, tuple[int, int], tuple[int, int]], bytes]


def versions() -> dict[str, str]:
    """Of everything that machine code depends on beside the sources."""
    found = {}
    for name in COMPILERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # the toolkit may come from the system
            found[name] = "none"
    return found


@cache
def directory() -> Path | None:
    """The kernels' cache, perhaps read-only. None where there is none."""
    digest = hashlib.sha256(repr(sorted(versions().items())).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    chosen = cache_dir()
    root = Path(chosen).expanduser().absolute() if chosen else user_cache_path("sce", appauthor=False)
    path = root / f"cuda-{digest.hexdigest()[:24]}"
    with suppress(OSError):
        if not path.is_dir():
            path.mkdir(parents=True)
            _prune(root, path)
        os.utime(path)  # says to other versions that it is in use
    return path if path.is_dir() else None


def cubin(spec: Spec, capability: tuple[int, int], bounds: tuple[int, int], compiled: Compile) -> bytes:
    """The kernel's machine code, from the cache or by `compiled`."""
    key = repr((spec, capability, bounds)).encode()
    place = directory()
    path = place and place / f"{kernels.name(spec)}-sm_{capability[0]}{capability[1]}-{bounds[1]}.cubin"
    if path and (found := _read(path, key)) is not None:
        return found
    with _lock:  # one of the threads that ask for it compiles it
        if path and (found := _read(path, key)) is not None:
            return found
        code = compiled(spec, capability, bounds)
        if path:
            with suppress(OSError):  # no place, no room: the next process compiles for itself
                _write(path, key, code)
    return code


def _read(path: Path, key: bytes) -> bytes | None:
    """The code of a file that is whole and for this key."""
    with suppress(OSError):
        digest, data = (whole := path.read_bytes())[:32], whole[32:]
        head = len(key).to_bytes(4, "little") + key
        if hashlib.sha256(data).digest() == digest and data.startswith(head):
            return data[len(head) :]
    return None


def _write(path: Path, key: bytes, code: bytes) -> None:
    """Under its own name a file is whole, also where this process is killed or another writes the same."""
    data = len(key).to_bytes(4, "little") + key + code
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(hashlib.sha256(data).digest() + data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _prune(root: Path, own: Path) -> None:
    """Remove other versions' directories that no process has opened for a month."""
    for path in root.iterdir():
        if _NAME.fullmatch(path.name) and path != own and not path.is_symlink():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _UNUSED:
                    shutil.rmtree(path, ignore_errors=True)
