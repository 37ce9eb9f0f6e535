"""A problem's launches, written down instead of run: for any arrays that are alike, wherever they are.

execute.py is followed once, with a machine that starts nothing. What it would have launched is kept with all
arguments packed; a call later on puts in the addresses alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sce.backend import Answer, Array, Problem, arrays, memory_at

from . import kernels, plan
from .plan import Device, Launch

ALIGNED = 256  # bytes, as all memory of a device


class Step(NamedTuple):
    """A launch. `places`: which arguments are addresses: (argument, array, bytes behind its beginning)."""

    launch: Launch
    arguments: tuple[Any, ...]
    places: tuple[tuple[int, int, int], ...]


class Program(NamedTuple):
    """Launches in order. Arrays have the numbers of their places in `arrays`; scratch memory has the next."""

    steps: tuple[Step, ...]
    scratch: int  # bytes


class Recorder:
    """execute.py's machine, for a device that does nothing."""

    def __init__(self, problem: Problem, answer: Answer, device: Device) -> None:
        self.device = device
        self._given = [*arrays(problem, answer).values()]
        self._scratch: list[tuple[Array, int]] = []
        self._steps: list[Step] = []
        self._size = 0

    def memory(self, n: int, dtype: str) -> Array:
        x = memory_at(ALIGNED, (n,), dtype)  # told from others by its identity
        self._scratch.append((x, self._size))
        self._size += -(-max(1, x.nbytes) // ALIGNED) * ALIGNED
        return x

    def run(self, launch: Launch, values: Mapping[str, Any]) -> None:
        found, places = [], []
        for i, (name, kind) in enumerate(kernels.arguments(launch.spec)):
            value = values[name]
            if kind.startswith("*") and value is not None:
                places.append((i, *self.place(value)))
            found.append(packed(kind, value))
        self._steps.append(Step(launch, tuple(found), tuple(places)))

    def place(self, x: Array) -> tuple[int, int]:
        """(array, bytes behind its beginning)."""
        for each, offset in self._scratch:
            if each is x:
                return len(self._given), offset
        # In place two arrays have one address; views of another dtype are known by theirs.
        for i, each in enumerate(self._given):
            if each is x:
                return i, 0
        return [plan.address(each) for each in self._given].index(plan.address(x)), 0

    def program(self) -> Program:
        return Program(tuple(self._steps), self._size)


def packed(kind: str, value: Any) -> Any:
    """An argument as cuda.core takes it: integers of 64 bits, floats by their type; addresses come later."""
    if kind.startswith("*"):
        return 0
    if kind == "float32":
        return np.float32(value)
    return int(value) if kind == "int64" else float(value)
