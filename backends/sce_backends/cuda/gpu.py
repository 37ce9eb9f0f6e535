"""The GPU: what is there, its memory, and launches on the caller's stream. cuda.core does the work.

execute.py's machine for a device; the emulator has the other one, in emulated.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache as remembered
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any

import numpy as np

from sce.backend import Answer, Array, BackendError, Illegal, Problem, arrays, memory_at

from . import absence, cache, kernels, plan
from .execute import can_be_illegal, execute, survey, total_weight, verdict
from .plan import Device, Launch, Spec
from .record import ALIGNED, Program, Recorder

LEGACY = 1  # the handle of the default stream that waits for the others


def compiled(spec: Spec, capability: tuple[int, int], bounds: tuple[int, int]) -> bytes:
    """Compile a kernel. Seconds; cache.py keeps the result."""
    from . import compile as compiler

    kernel = kernels.make(compiler.words(), spec)
    target, binary = compiler.target(capability)
    text = compiler.ptx(kernel, kernels.arguments(spec), kernels.name(spec), target, bounds)
    return compiler.link(text, target) if binary else text.encode()


class Gpu:
    """A device, once in a process: its primary context, which libraries use too, its memory, its kernels."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import driver
        from cuda.core import Device as CudaDevice

        gpu: Any = CudaDevice(index)
        major, minor = gpu.compute_capability
        self.index = index
        self.device = Device((int(major), int(minor)), int(gpu.properties.multiprocessor_count))
        if why := absence.too_old(self.device.capability):
            raise BackendError(f"device {index} ({gpu.name}): {why}")
        self._driver: Any = driver
        self._context = checked(driver.cuDevicePrimaryCtxRetain(checked(driver.cuDeviceGet(index))))
        self._where = int(self._context)
        self._kernels: dict[Any, Any] = {}
        self.memory: Any = gpu.memory_resource

    def enter(self) -> bool:
        """Make it the thread's current device. True: `leave` has to be called.

        Not by cuda.core's set_current: what is current may be another context than a primary one, or none.
        """
        if int(checked(self._driver.cuCtxGetCurrent())) == self._where:
            return False
        checked(self._driver.cuCtxPushCurrent(self._context))
        return True

    def leave(self) -> None:
        checked(self._driver.cuCtxPopCurrent())

    def kernel(self, launch: Launch) -> Any:
        """Compiled, or from the disk, and loaded once."""
        key = launch.spec, launch.threads
        if key not in self._kernels:
            from cuda.core import ObjectCode

            code = cache.cubin(launch.spec, self.device.capability, plan.bounds(launch), compiled)
            name = kernels.name(launch.spec)
            load = ObjectCode.from_cubin if code.startswith(b"\x7fELF") else ObjectCode.from_ptx
            self._kernels[key] = load(code, name=name).get_kernel(name)
        return self._kernels[key]

    def download(self, x: Array, stream: Any) -> Array:
        """A contiguous array of the device, once the stream has come that far. Waits for it."""
        into = np.empty(x.shape, x.dtype)
        handle = int(stream.handle)
        checked(self._driver.cuMemcpyDtoHAsync(into.ctypes.data, plan.address(x), x.nbytes, handle))
        stream.sync()
        return into

    def upload(self, x: Array, at: int, stream: Any) -> None:
        """Copy a contiguous host array. The driver has read what is not pinned before it returns."""
        checked(self._driver.cuMemcpyHtoDAsync(at, x.ctypes.data, x.nbytes, int(stream.handle)))

    def refuse_capture(self, stream: Any) -> None:
        """Nothing can be waited for while a stream is recorded into a graph."""
        status, mode = self._driver.cuStreamIsCapturing(int(stream.handle))
        if status != 0 or int(mode) != 0:
            raise BackendError(
                "the stream is being captured into a graph, so nothing can be read back from the device:"
                " pass validate=False, and do not ask for the denominator."
            )


@remembered
def _gpu(index: int) -> Gpu:
    return Gpu(index)


def device(index: int) -> Gpu:
    if absence.forked:
        raise BackendError(absence.FORKED)
    return _gpu(index)


@lru_cache(maxsize=256)
def stream_of(index: int, handle: int) -> Any:
    """cuda.core's stream of a handle on a device. It owns nothing, and knows no more than these two."""
    from cuda.core import Stream as CudaStream

    return CudaStream.from_handle(handle)


class Played:
    """A program on a device: kernels loaded, arguments packed."""

    def __init__(self, gpu: Gpu, program: Program) -> None:
        from cuda.core import LaunchConfig
        from cuda.core import launch as start

        self._gpu, self._start, self._scratch = gpu, start, program.scratch
        self._steps = []
        entered = gpu.enter()
        try:
            for step in program.steps:
                launch = step.launch
                shape: dict[str, int] = {"grid": launch.blocks // launch.cluster, "block": launch.threads}
                if launch.cluster > 1:
                    shape["cluster"] = launch.cluster
                make = partial(LaunchConfig, **shape)
                # With a cluster, each launch changes its config, while another thread's may be on.
                config = None if launch.cluster > 1 else make()
                self._steps.append((gpu.kernel(launch), config, make, step.arguments, step.places))
        finally:
            if entered:
                gpu.leave()

    def play(self, at: Sequence[int], stream: Any, read: Callable[[int], Any] | None = None) -> Any:
        """Launch everything; `read` gets the address of the scratch memory, before that goes back."""
        if absence.forked:
            raise BackendError(absence.FORKED)
        start, gpu = self._start, self._gpu
        entered, memory = gpu.enter(), None
        try:
            if self._scratch:  # in the order of the stream: it goes back when the stream has come that far
                memory = gpu.memory.allocate(self._scratch, stream=stream)
                at = [*at, int(memory.handle)]
            for kernel, config, make, arguments, places in self._steps:
                found = [*arguments]
                for i, array, offset in places:
                    found[i] = at[array] + offset
                start(stream, config or make(), kernel, *found)
            return None if read is None else read(at[-1])
        finally:
            if memory is not None:
                memory.close(stream)
            if entered:
                gpu.leave()


class Bound:
    """A problem on a device, for all arrays that are alike. sce/backend.py says what it does."""

    def __init__(self, problem: Problem, answer: Answer) -> None:
        self._gpu = device(problem.device)
        self._problem, self._answer = problem, answer
        self._played: Played | None = None
        self._survey: tuple[Played, Array, int, int | None] | None = None
        self._legal = not can_be_illegal(problem)

    def run(self, at: Sequence[int], stream: int) -> None:
        if self._played is None:
            recorder = Recorder(self._problem, self._answer, self._gpu.device)
            execute(self._problem, self._answer, recorder)
            self._played = Played(self._gpu, recorder.program())
        on = stream_of(self._gpu.index, stream)
        self._played.play(at, on)
        if self._problem.wait:
            on.sync()

    def inspect(self, at: Sequence[int], stream: int) -> Illegal:
        if self._legal:
            return Illegal()
        if self._survey is None:
            recorder = Recorder(self._problem, self._answer, self._gpu.device)
            found = survey(self._problem, recorder)
            labels = None if self._problem.labels is None else recorder.place(self._problem.labels)[0]
            self._survey = Played(self._gpu, recorder.program()), found, recorder.place(found)[1], labels
        played, found, offset, labels = self._survey
        on = stream_of(self._gpu.index, stream)
        self._gpu.refuse_capture(on)

        def read(scratch: int) -> Illegal:
            there = self._problem
            if there.labels is not None and labels is not None:
                x = memory_at(at[labels], there.labels.shape, there.labels.dtype, there.labels.strides)
                there = there._replace(labels=x)
            down = partial(self._gpu.download, stream=on)
            return verdict(there, down(memory_at(scratch + offset, found.shape, found.dtype)), down)

        illegal: Illegal = played.play(at, on, read)
        return illegal


def weigh(problem: Problem) -> float:
    """The denominator of a mean. Waits for the device."""
    gpu = device(problem.device)
    recorder = Recorder(problem, Answer(), gpu.device)
    offset = recorder.place(total_weight(problem, recorder))[1]
    on = stream_of(gpu.index, problem.stream)
    gpu.refuse_capture(on)
    at = [plan.address(x) for x in arrays(problem, Answer()).values()]

    def read(scratch: int) -> float:
        return float(gpu.download(memory_at(scratch + offset, (1,), np.float64), on)[0])

    found: float = Played(gpu, recorder.program()).play(at, on, read)
    return found


def run_on_host(problem: Problem, answer: Answer) -> None:
    """By way of the current device: everything is copied there, and the answer back."""
    gpu = device(current())
    on = stream_of(gpu.index, LEGACY)
    given = {name: np.ascontiguousarray(x) for name, x in arrays(problem, Answer()).items()}
    wanted = {name: x for name, x in answer._asdict().items() if x is not None}
    ends = [
        *accumulate(-(-max(1, x.nbytes) // ALIGNED) * ALIGNED for x in (*given.values(), *wanted.values()))
    ]
    entered, memory = gpu.enter(), None
    try:
        memory = gpu.memory.allocate(ends[-1], stream=on)
        at = [int(memory.handle) + begin for begin in (0, *ends[:-1])]
        there: dict[str, Any] = {
            name: memory_at(where, x.shape, x.dtype)
            for (name, x), where in zip((given | wanted).items(), at, strict=True)
        }
        for name, x in given.items():
            gpu.upload(x, plan.address(there[name]), on)
        moved = problem._replace(**{name: there[name] for name in given})
        placed = answer._replace(**{name: there[name] for name in wanted})
        recorder = Recorder(moved, placed, gpu.device)
        execute(moved, placed, recorder)
        Played(gpu, recorder.program()).play(at, on)
        for name, x in wanted.items():
            x[...] = gpu.download(there[name], on)
    finally:
        if memory is not None:
            memory.close(on)
        if entered:
            gpu.leave()


def checked(result: Any) -> Any:
    """What a function of the driver returns beside its status."""
    status, *rest = result
    if status != 0:
        raise BackendError(f"CUDA: {getattr(status, 'name', status)}.")
    return rest[0] if rest else None


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
        major, minor = gpu.compute_capability
        found.append(f"{gpu.name}, sm_{major}{minor}, {gpu.properties.multiprocessor_count} SMs")
    return found
