"""The CUDA kernels on host memory, in Python: slow by a factor of millions, for finding mistakes.

    sce check --backend cuda-emulated

Chosen by name alone. It needs no GPU and no compiler, and takes the ways that an H100 would. Threads cost
tens of microseconds each, so it takes no large problems, and the suite's small ones in half an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sce.backend import Answer, Array, Problem

on_device: bool = False
debug: bool = True
takes_binary: bool = True

LARGEST = 1 << 13  # logits: some seconds


def refuses(problem: Problem) -> str | None:
    if problem.on_device:
        return "logits live on a device."
    if problem.rows * problem.classes > LARGEST:
        return f"too large to emulate: {problem.rows} x {problem.classes} logits, at most {LARGEST}."
    return None


def missing() -> str | None:
    import greenlet  # noqa: F401

    return None


def run(problem: Problem, answer: Answer) -> None:
    from .execute import execute

    execute(problem, answer, Machine())


class Machine:
    """execute.py's, in the emulator."""

    def __init__(
        self, capability: tuple[int, int] = (9, 0), processors: int = 132, reverse: bool = False
    ) -> None:
        from .emulate import Device as Emulator
        from .plan import Device

        self.device = Device(capability, processors)
        self.launches: list[Any] = []  # what was run, for tests
        self._emulator = Emulator(reverse)

    def memory(self, n: int, dtype: str) -> Array:
        return np.full(n, np.nan if dtype.startswith("float") else -1, dtype)

    def run(self, launch: Any, values: Mapping[str, Any]) -> None:
        from . import kernels
        from .emulate import NULL, Pointer

        args = []
        for name, kind in kernels.arguments(launch.spec):
            value = values[name]
            if kind.startswith("*"):
                # A GPU goes by what it is told: the kernel's dtype must be the memory's.
                if value is not None and value.dtype.name != kind[1:]:
                    raise TypeError(f"{name} has dtype {value.dtype}, and the kernel takes {kind[1:]}.")
                args.append(NULL if value is None else Pointer(value))
            else:
                args.append(np.dtype(kind).type(value))
        self.launches.append(launch)
        kernel = kernels.make(self._emulator.words, launch.spec)
        self._emulator.launch(kernel, launch.blocks, launch.threads, args, launch.cluster)
