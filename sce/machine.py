"""What this machine is: for reports, and for the sizes of benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .settings import thread_limit
from .settings import usable_cores as usable_cores

PACKAGES = (
    "numpy", "numba", "llvmlite", "ml_dtypes", "scipy", "scikit-learn", "platformdirs", "numba-cuda",
    "cuda-core", "cuda-toolkit", "torch", "jax", "optax", "cupy-cuda13x", "tbb", "typer", "rich",
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


def commit() -> str | None:
    """The commit of the checkout that this code lies in; None if it was installed."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def processor() -> str:
    """The CPU's model name, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.partition(":")[0].strip() in ("model name", "Hardware", "Model"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def threads() -> int:
    """The threads the CPU backend would use, without importing Numba: NUMBA_NUM_THREADS, else the usable
    cores; and no more than the user allows."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    most = int(asked) if asked.isdecimal() and int(asked) else usable_cores()
    try:
        return min(most, thread_limit() or most)
    except ValueError:  # who computes says so; a report about a wrong setting must not break
        return most


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


def last_level_cache() -> int:
    """Bytes of the largest cache that one core sees; a cautious guess where the system does not tell."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes, default=32 << 20)


def memory() -> int:
    """Bytes of memory, as far as the system tells; else a cautious guess."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not POSIX
        return 8 << 30
