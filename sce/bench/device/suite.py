"""What is measured on a device, in steps that each fit a part of the time; the rows of the document."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from sce.bench.contest import Result
from sce.bench.contestant import Contestant
from sce.bench.document import row
from sce.bench.peers import device_peers
from sce.bench.suites import CLASSES, TYPICAL, rows
from sce.bench.task import Task

from . import Ours, Say, contest

Key = tuple[Task, str, str]  # of a row: task, contestant, buffers
Plan = Sequence[tuple[Task, Sequence[Contestant]]]

STEPS = ("launch", "large", "float32", "bfloat16", "float16", "float64", "loss")
SLOW = ("torch.compile", "quack")  # they compile for each shape, some seconds each time
_FIRST = (10, 1000, 32000, 128256)  # measured first, in case the time is too short for all


def plan(step: str, backend: str, device: str, matrix: int) -> Plan:
    """The tasks of a step and who is entered, with matrices of so many bytes."""
    ours = Ours(backend)
    everyone: list[Contestant] = [ours, *device_peers(device)]
    quick = [who for who in everyone if who.name not in SLOW]
    if step == "launch":
        tiny = Task("loss_and_grad", 1, 10, where="call")
        return [(tiny, quick[:2]), (tiny._replace(option="no validation"), [ours])]
    if step == "large":  # offsets past 2**31; in a rehearsal on the host the size of the others
        elements = matrix // 2 if device == "cpu" else 1 << 31
        return [(Task("loss_and_grad", elements // 50257 + 17, 50257, "bfloat16"), [ours])]
    if step == "loss":
        return [(Task("loss", rows(c, "float32", matrix), c), quick) for c in TYPICAL]
    entered = everyone if step in ("float32", "bfloat16") else quick
    # Few classes last: they are many rows, which some peers take seconds for.
    classes = [*_FIRST, *(c for c in reversed(CLASSES) if c not in _FIRST)]
    return [(Task("loss_and_grad", rows(c, step, matrix), c, step), entered) for c in classes]


def unreached(plan: Plan, why: str) -> dict[Key, dict[str, Any]]:
    """A row for all that the plan names: what is measured replaces it."""
    found = {}
    for task, contestants in plan:
        for who in contestants:
            for buffers in who.buffers(task):
                made = row(Result(task, who.name, who.ours, buffers, "not reached", why, task.bytes))
                found[task, who.name, str(buffers)] = made
    return found


def table(plan: Plan, device: str, end: float, slow_end: float, say: Say) -> Iterator[list[dict[str, Any]]]:
    """All rows of the plan, again after each task. The slow contestants stop before the others."""
    found = unreached(plan, "the time was over.")
    yield [*found.values()]
    for task, contestants in plan:
        if (now := time.monotonic()) > end:
            return
        entered = [who for who in contestants if who.name not in SLOW or now < slow_end]
        for result in contest(task, entered, device, end, say=say):
            found[task, result.contestant, str(result.buffers)] = row(result)
        yield [*found.values()]
        if device == "cuda":
            import torch

            torch.cuda.empty_cache()  # the next matrices have other shapes
