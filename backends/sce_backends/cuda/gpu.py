"""The GPU: what is there, its memory, and launches on the caller's stream. cuda.core does the work.

execute.py's machine for a device; the emulator has the other one, in emulated.py.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from sce.backend import Answer, Array, Illegal, Problem, memory_at

from . import cache, kernels, plan
from .execute import execute, illegal, total_weight
from .plan import Device, Launch, Spec

LEAST = (8, 0)  # compute capability: bfloat16 conversions and a maximum that keeps NaN
INSTALL = "pip install 'sce[cuda]'"
LEGACY = 1  # the handle of the default stream that waits for the others


def absent() -> str | None:
    """Why no kernel runs here, and what to install: packages, toolkit, driver, device, in this order."""
    return _packages() or _toolkit() or _driver()


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

    for library, part in (("nvvm", "nvvm"), ("nvJitLink", "nvjitlink")):
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

    try:
        (status,) = driver.cuInit(0)
    except Exception:
        return "no NVIDIA driver: libcuda does not load. Install the driver of your GPU, 580 or newer."
    if status == driver.CUresult.CUDA_ERROR_NO_DEVICE:
        return "the NVIDIA driver sees no device: is CUDA_VISIBLE_DEVICES empty, or the GPU not passed on?"
    if status != driver.CUresult.CUDA_SUCCESS:
        return f"the NVIDIA driver does not start: {status.name}."
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
        return "the NVIDIA driver sees no device: is CUDA_VISIBLE_DEVICES empty, or the GPU not passed on?"
    if driver // 1000 < toolkit // 1000:
        have, need = (f"{n // 1000}.{n % 1000 // 10}" for n in (driver, toolkit))
        return (
            f"the NVIDIA driver is for CUDA {have}, the installed compiler makes code for CUDA {need}: update"
            " the driver to 580 or newer."
        )
    best = max(capabilities)
    if best < LEAST:
        have, need = (f"{major}.{minor}" for major, minor in (best, LEAST))
        return f"compute capability {have}: the kernels need {need} (Ampere) or newer."
    return None


def toolkit() -> int:
    """The CUDA version of the installed compiler, as CUDA numbers it."""
    major, minor, *_ = (cache.versions()["nvidia-nvvm"] + ".0").split(".")
    return 1000 * int(major) + 10 * int(minor) if major.isdigit() else 13000


def compiled(spec: Spec, capability: tuple[int, int], bounds: tuple[int, int]) -> bytes:
    """Compile a kernel. Seconds; cache.py keeps the result."""
    from . import compile as compiler

    kernel = kernels.make(compiler.words(), spec)
    text = compiler.ptx(kernel, kernels.arguments(spec), kernels.name(spec), capability, bounds)
    return compiler.link(text, capability)


INPUTS = ("logits", "labels", "distribution", "class_weight", "sample_weight", "logit_bias", "pos_weight")

_loaded: dict[Any, Any] = {}
_devices = threading.local()


class Stream:
    """A stream by its handle, for cuda.core."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


class Machine:
    """A device and a stream on it. What a call allocates goes back when the stream has come that far."""

    def __init__(self, index: int, handle: int) -> None:
        from cuda.core import Device as CudaDevice

        self.gpu: Any = CudaDevice(index)
        self._before = current()
        self.gpu.set_current()
        self.index, self.stream = index, self.gpu.create_stream(Stream(handle))
        self.device = _facts(self.gpu, index)
        self._buffers: list[Any] = []
        self._kept: list[Any] = []  # host memory that copies under way read

    def close(self) -> None:
        """Give back what the call allocated, and the thread's current device."""
        from cuda.core import Device as CudaDevice

        for buffer in self._buffers:
            buffer.close(self.stream)
        self._buffers = []
        if self._before != self.index:
            CudaDevice(self._before).set_current()

    def memory(self, n: int, dtype: str) -> Array:
        size = max(1, n) * np.dtype(dtype).itemsize
        buffer = self.gpu.allocate(size, stream=self.stream)
        self._buffers.append(buffer)
        return memory_at(int(buffer.handle), (n,), np.dtype(dtype))

    def upload(self, x: Array) -> Array:
        """A contiguous copy of a host array on the device."""
        from cuda.bindings import driver

        x = np.ascontiguousarray(x)
        self._kept.append(x)
        raw = self.memory(x.nbytes, "uint8")
        at = plan.address(raw)
        _checked(driver.cuMemcpyHtoDAsync(at, x.ctypes.data, x.nbytes, int(self.stream.handle)))
        return memory_at(at, x.shape, x.dtype)

    def download(self, x: Array) -> Array:
        """A contiguous array of the device, once the stream has come that far. Waits for it."""
        from cuda.bindings import driver

        into = np.empty(x.shape, x.dtype)
        _checked(
            driver.cuMemcpyDtoHAsync(into.ctypes.data, plan.address(x), x.nbytes, int(self.stream.handle))
        )
        self.stream.sync()
        return into

    def run(self, launch: Launch, values: Mapping[str, Any]) -> None:
        from cuda.core import LaunchConfig
        from cuda.core import launch as start

        kernel = _kernel(self.index, self.device, launch)
        clusters = {"cluster": launch.cluster} if launch.cluster > 1 else {}
        config = LaunchConfig(grid=launch.blocks // launch.cluster, block=launch.threads, **clusters)
        found = [packed(kind, values[name]) for name, kind in kernels.arguments(launch.spec)]
        start(self.stream, config, kernel, *found)


def packed(kind: str, value: Any) -> Any:
    """A kernel's argument as cuda.core takes it: addresses and integers of 64 bits, floats by their type."""
    if kind.startswith("*"):
        return 0 if value is None else plan.address(value)
    if kind == "float32":
        return np.float32(value)
    return int(value) if kind == "int64" else float(value)


def _kernel(index: int, device: Device, launch: Launch) -> Any:
    """Loaded once per device and process."""
    key = index, launch.spec, launch.threads
    if key not in _loaded:
        from cuda.core import ObjectCode

        code = cache.cubin(launch.spec, device.capability, plan.bounds(launch), compiled)
        name = kernels.name(launch.spec)
        _loaded[key] = ObjectCode.from_cubin(code, name=name).get_kernel(name)
    return _loaded[key]


def _facts(gpu: Any, index: int) -> Device:
    known = _devices.__dict__.setdefault("facts", {})
    if index not in known:
        major, minor = gpu.compute_capability
        known[index] = Device((int(major), int(minor)), int(gpu.properties.multiprocessor_count))
    found: Device = known[index]
    return found


def _checked(result: Any) -> None:
    (status,) = result
    if status != 0:
        raise RuntimeError(f"CUDA: {getattr(status, 'name', status)}.")


def current() -> int:
    """The index of the thread's current device."""
    from cuda.core import Device as CudaDevice

    return int(CudaDevice().device_id)


def described() -> list[str]:
    """Each device in a line, for `sce info`."""
    from cuda.core import Device as CudaDevice
    from cuda.core import system

    found = []
    for i in range(system.get_num_devices()):
        gpu: Any = CudaDevice(i)
        facts = _facts(gpu, i)
        found.append(f"{gpu.name}, sm_{facts.capability[0]}{facts.capability[1]}, {facts.processors} SMs")
    return found


def run_on_device(problem: Problem, answer: Answer) -> None:
    machine = Machine(problem.device, problem.stream)
    try:
        execute(problem, answer, machine)
    finally:
        machine.close()
    if problem.wait:
        machine.stream.sync()


def inspect(problem: Problem) -> Illegal:
    """The first illegal label and weights. Waits for the device."""
    machine = Machine(problem.device, problem.stream)
    try:
        return illegal(problem, machine, machine.download)
    finally:
        machine.close()


def weigh(problem: Problem) -> float:
    """The denominator of a mean. Waits for the device."""
    machine = Machine(problem.device, problem.stream)
    try:
        return float(machine.download(total_weight(problem, machine))[0])
    finally:
        machine.close()


def run_on_host(problem: Problem, answer: Answer) -> None:
    """By way of the current device: everything is copied there, and the answer back."""
    machine = Machine(current(), LEGACY)
    given = {name: x for name in INPUTS if isinstance(x := getattr(problem, name), np.ndarray)}
    try:
        there: dict[str, Any] = {name: machine.upload(x) for name, x in given.items()}
        moved = problem._replace(**there)
        places: dict[str, Any] = {}
        for name, x in answer._asdict().items():
            if x is not None:
                raw = machine.memory(x.nbytes, "uint8")
                places[name] = memory_at(plan.address(raw), x.shape, x.dtype)
        execute(moved, Answer(**places), machine)
        for name, x in places.items():
            getattr(answer, name)[...] = machine.download(x)
    finally:
        machine.close()
