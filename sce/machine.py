"""What this machine is, and how fast it copies: the yardstick that `sce compare` and the benches share."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np

from .backend import Array

PACKAGES = (
    "numpy", "numba", "llvmlite", "ml_dtypes", "scipy", "scikit-learn", "platformdirs", "numba-cuda",
    "cuda-core", "cuda-toolkit", "torch", "jax", "tbb", "typer", "rich",
)  # fmt: skip
_PREFIXES = ("SCE_", "NUMBA_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "CUDA_")


def versions() -> dict[str, str]:
    """Python and the packages that matter here, where installed. Imports none of them."""
    found = {"python": f"{platform.python_version()} ({platform.python_implementation()})"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The CPU's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() in ("model name", "Hardware", "Model"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores this process may run on: the affinity mask where the system has one, else all."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads() -> int:
    """The threads Numba would start, without importing it: NUMBA_NUM_THREADS, else the usable cores."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else usable_cores()


def environment() -> dict[str, str]:
    """The variables that change how sce or its backends run, as this process sees them."""
    return {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_PREFIXES)}


def describe() -> dict[str, str | int]:
    """The machine in a few facts."""
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "threads": threads(),
    }


def copiers(source: Array, target: Array, pool: ThreadPoolExecutor | None) -> dict[int, Callable[[], object]]:
    """Ways to copy `source` to `target` (contiguous, of one size), by their number of threads.

    np.copyto moves 2 * source.nbytes: one read and one write of the matrix, which is what an ideal loss and
    gradient moves. `pool` takes one part per usable core; np.copyto releases the interpreter's lock.
    """
    src, dst = _bytes(source), _bytes(target)
    ways: dict[int, Callable[[], object]] = {1: lambda: np.copyto(dst, src)}
    n = threads()
    if pool is not None and n > 1:
        cuts = np.linspace(0, src.size, n + 1).astype(np.int64)
        cuts[1:-1] &= ~4095  # whole pages: two threads never write into one cache line
        parts = [(dst[a:b], src[a:b]) for a, b in pairwise(cuts)]
        ways[n] = lambda: list(pool.map(lambda part: np.copyto(*part), parts))
    return ways


def _bytes(x: Array) -> Array:
    """The memory of a contiguous array, in either order, as bytes."""
    flat = x.ravel(order="K").view(np.uint8)
    if not np.may_share_memory(flat, x) and x.size:
        raise ValueError("the copy is measured on contiguous arrays.")
    return flat
