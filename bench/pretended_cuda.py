"""A GPU that is not there: stand-ins for cuda.core, the driver's bindings and PyTorch, on the host's memory.

They have what sce and its CUDA backend use of them. A launch runs the kernel in the emulator, or with
`emulate=False` nothing: then what is left is the host's part of a call, for host_time.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

NAMES = ("float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool")


class World:
    """Devices, what is current, and what happened to them."""

    def __init__(self, capabilities: tuple[tuple[int, int], ...] = ((9, 0),), emulate: bool = True) -> None:
        self.capabilities, self.emulate = capabilities, emulate
        self.contexts = [0]  # the thread's stack of contexts; the primary one of device i is 1000 + i
        self.stream = 0  # PyTorch's current one
        self.capturing = False
        self.events: list[tuple[Any, ...]] = []
        self.memory: dict[int, Any] = {}  # arrays by address
        self.specs: dict[str, Any] = {}  # kernels by name

    def array(self, shape: Any, dtype: Any, fill: Any = None, offset: int = 0) -> Any:
        """Device memory: aligned to 256 bytes, `offset` bytes off, of random bits or of `fill`."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        raw = np.full(size + 512, 0xA5, np.uint8)
        begin = -raw.ctypes.data % 256 + offset
        found = raw[begin : begin + size].view(dtype).reshape(shape)
        if fill is not None:
            found[...] = fill
        self.memory[found.ctypes.data] = found
        return found

    def pointer(self, address: int, dtype: Any) -> Any:
        """For the emulator: an address in memory that somebody allocated."""
        from sce_backends.cuda.emulate import NULL, Pointer

        if not address:
            return NULL
        for begin, x in self.memory.items():
            if begin <= address < begin + max(1, x.nbytes):
                if x.itemsize > 1 and x.dtype != dtype:  # bytes are scratch memory, for anything
                    raise TypeError(f"memory of {x.dtype} is passed for {dtype}.")
                found = Pointer(x.reshape(-1).view(np.uint8).view(dtype))
                found.origin, found.address = (address - begin) // dtype.itemsize, address
                return found
        raise LookupError(f"nobody allocated {address:#x}")

    @property
    def current(self) -> int:
        return max(0, self.contexts[-1] - 1000)


@contextmanager
def pretended(world: World) -> Iterator[World]:
    """With sys.modules changed, and the backend's memory of devices and kernels empty."""
    from sce import registry
    from sce_backends.cuda import absence, cache, gpu, kernels

    modules = {"torch": _torch(world), **_cuda(world)}
    before = {name: sys.modules.get(name) for name in modules}
    cubin, ready = cache.cubin, set(registry._ready)
    started = absence.started, absence.forked

    def compiled(spec: Any, capability: Any, bounds: Any, compile_it: Any) -> bytes:
        world.specs[kernels.name(spec)] = spec
        return b"\x7fELF"

    try:
        sys.modules.update(modules)
        cache.cubin = compiled  # type: ignore[assignment]
        registry._ready.add("cuda")
        _forget(gpu)
        yield world
    finally:
        cache.cubin = cubin
        absence.started, absence.forked = started
        registry._ready.clear()
        registry._ready.update(ready)
        _forget(gpu)
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _forget(gpu: Any) -> None:
    from sce import problem

    problem._known.clear()
    gpu._gpu.cache_clear()
    gpu.stream_of.cache_clear()


# PyTorch.


class DType:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    @property
    def numpy(self) -> Any:
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype(self.name)


DTYPES = {name: DType(name) for name in NAMES}


class Tensor:
    """Over an array of the world's memory. As in PyTorch, to look at it costs little."""

    __slots__ = ("_at", "_index", "_stride", "device", "dtype", "memory", "requires_grad", "shape")
    is_cuda = True

    def __init__(self, memory: Any, index: int = 0, requires_grad: bool = False) -> None:
        self.memory, self.requires_grad = memory, requires_grad
        self.device = SimpleNamespace(type="cuda", index=index)
        self.dtype, self.shape = DTYPES[memory.dtype.name], memory.shape
        self._at, self._index = int(memory.__array_interface__["data"][0]), index
        self._stride = tuple(n // memory.itemsize for n in memory.strides)

    def data_ptr(self) -> int:
        return self._at

    def stride(self) -> tuple[int, ...]:
        return self._stride

    def get_device(self) -> int:
        return self._index

    def is_neg(self) -> bool:
        return False

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._index


Tensor.__module__ = "torch"


def _torch(world: World) -> ModuleType:
    made: Any = ModuleType("torch")
    made.Tensor = Tensor
    for name, dtype in DTYPES.items():
        setattr(made, name, dtype)

    kept: dict[Any, Tensor] = {}

    def empty(shape: Any, dtype: DType, device: Any) -> Tensor:
        if not world.emulate and (shape, dtype) in kept:  # of its time nothing is to be measured
            return kept[shape, dtype]
        kept[shape, dtype] = made = Tensor(world.array(shape, dtype.numpy), device.index)
        return made

    def current_stream(index: int) -> int:
        if world.emulate:
            world.events.append(("asked for the stream of", index))
        return world.stream

    made.empty = empty
    made._C = SimpleNamespace(_cuda_getCurrentRawStream=current_stream)
    return made


# cuda.core and cuda.bindings.driver.


class LaunchConfig:
    def __init__(self, grid: int, block: int, cluster: int | None = None) -> None:
        self.grid, self.block, self.cluster = grid, block, cluster


def _cuda(world: World) -> dict[str, ModuleType]:
    nowhere = np.empty(256, np.uint8)

    class Device:
        def __init__(self, index: int | None = None) -> None:
            self.device_id = world.current if index is None else index
            self.name = "Pretended"
            self.properties = SimpleNamespace(multiprocessor_count=132)
            self.compute_capability = world.capabilities[self.device_id]
            self.memory_resource = Memory(self.device_id)

    class Memory:
        def __init__(self, index: int) -> None:
            self.index = index

        def allocate(self, size: int, *, stream: Any) -> Any:
            if not world.emulate:
                return Buffer(nowhere)
            x = world.array(size, np.uint8)
            world.events.append(("allocate", size, stream.handle, world.current))
            return Buffer(x)

    class Buffer:
        def __init__(self, x: Any) -> None:
            self.memory, self.handle = x, 4096 if x is nowhere else x.ctypes.data

        def close(self, stream: Any) -> None:
            if not world.emulate:
                return
            world.events.append(("free", self.memory.size, stream.handle, world.current))
            del world.memory[self.handle]

    class Stream:
        @staticmethod
        def from_handle(handle: int) -> Any:
            def sync() -> None:
                world.events.append(("sync", handle))

            return SimpleNamespace(handle=handle, sync=sync)

    class ObjectCode:
        @staticmethod
        def from_cubin(code: bytes, name: str) -> Any:
            return SimpleNamespace(get_kernel=world.specs.__getitem__)

        from_ptx = from_cubin

    def launch(stream: Any, config: LaunchConfig, spec: Any, *args: Any) -> None:
        from sce_backends.cuda import kernels
        from sce_backends.cuda.emulate import Device as Emulator
        from sce_backends.cuda.emulate import number

        kind = type(spec).__name__
        world.events.append(("launch", kind, stream.handle, world.current, config.cluster, config.grid))
        emulator = Emulator()
        found = []
        for (_, of), value in zip(kernels.arguments(spec), args, strict=True):
            wanted = {"int64": int, "float64": float, "float32": np.float32}
            if type(value) is not (int if of.startswith("*") else wanted[of]):
                raise TypeError(f"{value!r} is passed for {of}: cuda.core would pass something else")
            dtype = number(of.removeprefix("*"))
            found.append(world.pointer(value, dtype) if of.startswith("*") else dtype.type(value))
        kernel = kernels.make(emulator.words, spec)
        cluster = config.cluster or 1
        with np.errstate(all="ignore"):
            emulator.launch(kernel, config.grid * cluster, config.block, found, cluster)

    core: Any = ModuleType("cuda.core")
    core.Device, core.LaunchConfig, core.Stream, core.ObjectCode = Device, LaunchConfig, Stream, ObjectCode
    core.launch = launch if world.emulate else (lambda stream, config, kernel, *args: None)
    core.system = SimpleNamespace(get_num_devices=lambda: len(world.capabilities))
    bindings: Any = ModuleType("cuda.bindings")
    bindings.driver = _driver(world)
    cuda: Any = ModuleType("cuda")
    cuda.core, cuda.bindings = core, bindings
    return {
        "cuda": cuda,
        "cuda.core": core,
        "cuda.bindings": bindings,
        "cuda.bindings.driver": bindings.driver,
    }


def _driver(world: World) -> Any:
    import ctypes

    made: Any = ModuleType("cuda.bindings.driver")

    def push(context: int) -> tuple[int]:
        world.contexts.append(context)
        return (0,)

    def pop() -> tuple[int, int]:
        return 0, world.contexts.pop()

    def copy(to: int, at: int, size: int, stream: int) -> tuple[int]:
        ctypes.memmove(to, at, size)
        world.events.append(("copy", size, stream))
        return (0,)

    made.cuDeviceGet = lambda index: (0, index)
    made.cuDevicePrimaryCtxRetain = lambda device: (0, 1000 + device)
    made.cuCtxGetCurrent = lambda: (0, world.contexts[-1])
    made.cuCtxPushCurrent, made.cuCtxPopCurrent = push, pop
    made.cuMemcpyDtoHAsync = made.cuMemcpyHtoDAsync = copy
    made.cuStreamIsCapturing = lambda stream: (0, int(world.capturing))
    return made
