"""Inside a fresh process: it is sent one of these functions with its arguments, and answers with figures.

A figure is a list of numbers: seconds, but for `memory` bytes.
"""

from __future__ import annotations

import ctypes
import gc
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

from sce.bench.clock import Rounds, alternate
from sce.bench.contestant import Buffers, Contestant
from sce.bench.task import Task, inputs
from sce.problem import prepare
from sce.select import decide

Figures: TypeAlias = dict[str, list[float]]

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(numpy_s: float, sce_s: float) -> None:
    """The work comes on stdin; the figures go to the file named on the command line."""
    measure, contestant, task = pickle.load(sys.stdin.buffer)
    figures: Figures = {"numpy": [numpy_s], "sce": [sce_s], **measure(contestant, task)}
    Path(sys.argv[1]).write_text(json.dumps(figures), encoding="utf-8")


def start(contestant: Contestant, task: Task) -> Figures:
    """From nothing loaded to the first answer: "load" its packages, "prepare" the inputs, "first_call"."""
    began = perf_counter()
    if why := contestant.missing():  # loads what it needs
        raise RuntimeError(why)
    load = perf_counter() - began
    given = inputs(task)
    began = perf_counter()
    run = contestant.prepare(task, given, _buffers(contestant, task, ("fresh", "reused")))
    prepared = perf_counter()
    run.call()
    return {"load": [load], "prepare": [prepared - began], "first_call": [perf_counter() - prepared]}


def call(contestant: Contestant, task: Task) -> Figures:
    """The whole call; of ours also the two steps before its backend runs. All of them warm."""
    given = inputs(task)
    run = contestant.prepare(task, given, _buffers(contestant, task, ("fresh", "reused")))
    calls = {"call": run.call}
    if contestant.ours:
        wanted = ("loss", "grad")
        problem = prepare(given.logits, given.target, outputs=wanted).problem
        calls["prepare"] = lambda: prepare(given.logits, given.target, outputs=wanted)
        calls["decide"] = lambda: decide(problem, contestant.name)
    for warm_up in calls.values():
        warm_up()
    times = alternate(calls, Rounds(least=7, enough=0.05))
    return {name: list(found.seconds) for name, found in times.items()}


def scaling(contestant: Contestant, task: Task) -> Figures:
    """A warm call, on the threads that the environment gives this process."""
    run = contestant.prepare(task, inputs(task), _buffers(contestant, task, ("reused", "fresh")))
    run.call()
    times = alternate({"scaling": run.call}, Rounds(least=5, enough=0.2))
    return {"scaling": list(times["scaling"].seconds)}


def memory(contestant: Contestant, task: Task) -> Figures:
    """Bytes that a warm call needs beyond its inputs and what it returns.

    The call before is on the same shape, because compilers specialise on it: it starts the threads, compiles,
    and touches the pages of buffers that are reused.
    """
    run = contestant.prepare(task, inputs(task), _buffers(contestant, task, ("reused", "fresh")))
    run.call()
    return {"memory": peaks(run.call, 3)}


def peaks(call: Callable[[], object], calls: int) -> list[float]:
    """Bytes that each of some warm calls needs beyond its inputs and what it returns.

    They are the peak during the call over what is there once it has returned, its answer still held: so a
    gradient that the call must allocate does not count, and scratch that it frees does. What is kept from one
    call to the next is not counted.
    """
    found = []
    for _ in range(calls):
        _settle()
        _CLEAR_REFS.write_text("5", encoding="ascii")  # the peak is now what there is
        answer = call()
        peak = _resident("VmHWM")
        _settle()
        found.append(float(max(0, peak - _resident("VmRSS"))))
        del answer  # or it would be there beside the next
    return found


def why_no_memory() -> str | None:
    """Why the peak of a call cannot be measured on this system, or None."""
    if sys.platform != "linux":
        return "only Linux lets a process reset its peak of memory."
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")
        _resident("VmHWM")
    except (OSError, LookupError) as exc:
        return f"this system does not let a process reset and read its peak of memory: {exc}."
    return None


def _resident(field: str) -> int:
    """A field of the process's status, in bytes."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise LookupError(f"{_STATUS} has no {field}")


def _settle() -> None:
    """Garbage goes, and freed memory back to the system: a call would take from there unseen."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _buffers(contestant: Contestant, task: Task, preferred: tuple[Buffers, ...]) -> Buffers:
    offered = contestant.buffers(task)
    return next((policy for policy in preferred if policy in offered), offered[0])
