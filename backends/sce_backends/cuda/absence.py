"""Why no kernel runs here, and what to do about it: packages, toolkit, driver, device, in this order."""

from __future__ import annotations

import importlib
import os
from typing import Any

from . import cache

LEAST = (8, 0)  # compute capability: bfloat16 conversions and a maximum that keeps NaN
INSTALL = "pip install 'sce[cuda]'"
NO_DEVICE = (
    "the NVIDIA driver sees no device: is CUDA_VISIBLE_DEVICES empty, or the GPU not passed on to this"
    " container or virtual machine?"
)
FORKED = (
    "CUDA was in use when this process was forked from another, and does not work here: start processes with"
    ' multiprocessing\'s "spawn" instead.'
)
started = forked = False  # CUDA in this process; and in the one that it was forked from


def _after_fork() -> None:
    global forked
    forked = forked or started


if hasattr(os, "register_at_fork"):  # not on Windows, which knows no fork
    os.register_at_fork(after_in_child=_after_fork)


def absent() -> str | None:
    """The first reason, or None."""
    return (FORKED if forked else None) or _packages() or _toolkit() or _driver()


def _packages() -> str | None:
    for module, package in (("numba.cuda", "numba-cuda"), ("cuda.core", "cuda-core"), ("platformdirs",) * 2):
        try:
            found = importlib.import_module(module)
        except ImportError as exc:
            return f"the package {package} is missing ({exc}): {INSTALL}"
        if module == "numba.cuda" and "numba_cuda" not in (found.__file__ or ""):
            return f"numba.cuda is Numba's own, which compiles nothing without a driver: {INSTALL}"
    return None


def _toolkit() -> str | None:
    from cuda import pathfinder

    for library, part in (("nvvm", "nvvm"), ("nvrtc", "nvrtc"), ("nvJitLink", "nvjitlink")):
        try:
            pathfinder.load_nvidia_dynamic_lib(library)
        except Exception as exc:
            return (
                f"the compiler's library {library} does not load ({type(exc).__name__}): {INSTALL}, or"
                f" pip install 'cuda-toolkit[{part}]==13.0.*'"
            )
    return None


def _driver() -> str | None:
    from cuda.bindings import driver

    global started
    try:
        (status,) = driver.cuInit(0)
    except Exception:
        return (
            "no NVIDIA driver: libcuda does not load. Install the driver of your GPU, 580 or newer; into a"
            " container its GPU has to be passed on."
        )
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        return NO_DEVICE
    if status == driver.CUresult.CUDA_ERROR_NOT_INITIALIZED:  # another library began with it
        return FORKED
    if status != driver.CUresult.CUDA_SUCCESS:
        return f"the NVIDIA driver does not start: {status.name}. Does nvidia-smi run? If not, reinstall it."
    started = True
    _, number = driver.cuDriverGetVersion()
    _, count = driver.cuDeviceGetCount()
    return mismatch(number, toolkit(), [_capability(driver, i) for i in range(count)])


def _capability(driver: Any, index: int) -> tuple[int, int]:
    _, device = driver.cuDeviceGet(index)
    kind = driver.CUdevice_attribute
    names = ("CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR", "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR")
    major, minor = (driver.cuDeviceGetAttribute(getattr(kind, name), device)[1] for name in names)
    return int(major), int(minor)


def mismatch(driver: int, toolkit: int, capabilities: list[tuple[int, int]]) -> str | None:
    """Why driver and devices do not run what the toolkit makes. Versions as CUDA numbers them: 13000."""
    if not capabilities:
        return NO_DEVICE
    if driver // 1000 < toolkit // 1000:
        have, need = (f"{n // 1000}.{n % 1000 // 10}" for n in (driver, toolkit))
        return (
            f"the NVIDIA driver is for CUDA {have}, the installed compiler makes code for CUDA {need}: update"
            " the driver to 580 or newer."
        )
    return too_old(max(capabilities))


def too_old(capability: tuple[int, int]) -> str | None:
    """Why a device's compute capability does not do."""
    if capability >= LEAST:
        return None
    have, need = (f"{major}.{minor}" for major, minor in (capability, LEAST))
    return f"compute capability {have}: the kernels need {need} (Ampere) or newer. Choose another GPU."


def toolkit() -> int:
    """The CUDA version of the installed compiler, as CUDA numbers it."""
    major, minor, *_ = (cache.versions()["nvidia-nvvm"] + ".0").split(".")
    return 1000 * int(major) + 10 * int(minor) if major.isdigit() else 13000
