"""One task, all its contestants: each answer is checked by the reference's, then all are timed in turns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np

from sce import machine
from sce.backend import Array

from . import limit
from .clock import ROUNDS, Rounds, Times, alternate
from .contestant import Answer, Buffers, Contestant
from .task import PIECE, Expected, Inputs, Task, expected, inputs

Status = Literal["ok", "wrong", "failed", "refused", "missing", "not reached"]
LIMITS = ("copy", "read")  # contestants that compute nothing

# What a correct implementation may be off by, in the dtype's own precision: relative for the loss, times n
# for the gradient's entries. Wide enough for peers that compute in half precision: here a wrong formula must
# show, and the conformance suite holds our backends to their ulps.
TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 3e-2, "bfloat16": 6e-2}


class Result(NamedTuple):
    """A contestant on a task under one policy of buffers. `seconds` is None where it did not run."""

    task: Task
    contestant: str
    ours: bool
    buffers: Buffers
    status: Status
    why: str | None = None  # of every status but "ok"; of a limit, the way that was fastest
    bytes: int = 0  # that must move
    seconds: float | None = None  # median
    low: float | None = None  # quartiles
    high: float | None = None
    turns: tuple[float, ...] = ()  # seconds of each, in the order measured
    loss_error: float | None = None  # relative
    grad_error: float | None = None  # of the entry that is worst, times n
    share_of_copy: float | None = None  # bytes per second over the copy's
    speed_up: float | None = None  # the strongest peer's seconds over these

    @property
    def gb_per_s(self) -> float | None:
        return None if self.seconds is None else self.bytes / self.seconds / 1e9


def contest(
    task: Task,
    contestants: Iterable[Contestant],
    rounds: Rounds = ROUNDS,
    say: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Results in the contestants' order, then the limits'."""
    given = inputs(task)
    say("the reference's answer")
    wanted = expected(task, given)

    def check(answer: Answer) -> tuple[float, float | None]:
        return errors(task, answer, wanted)

    entered: dict[tuple[str, Buffers], Callable[[], Any]] = {}
    results: dict[tuple[str, Buffers], Result] = {}
    for contestant in contestants:
        status: Status = "missing"
        if (why := contestant.missing()) is None:
            why, status = contestant.refuses(task), "refused"
        for buffers in contestant.buffers(task):
            key = contestant.name, buffers
            results[key] = entry(task, contestant, buffers)._replace(status=status, why=why)
            if why is None:
                say(f"{contestant.name} ({buffers}): answer checked")
                call, results[key] = enter(contestant, task, given, buffers, check)
                if call is not None:
                    entered[key] = call
    wanted = given = None  # type: ignore[assignment]  # the contestants keep what they need of the inputs
    with ThreadPoolExecutor(machine.threads()) as pool:
        say("timing")
        ways = _limits(task, pool) if task.where != "call" else {}
        for way in ways.values():
            way()  # touches the pages, starts the threads
        times = alternate({**entered, **ways}, rounds)
    for key in entered:
        results[key] = timed(results[key], times[key])
    return compared([*results.values(), *_best_limits(task, {way: times[way] for way in ways})])


def entry(task: Task, contestant: Contestant, buffers: Buffers) -> Result:
    return Result(task, contestant.name, contestant.ours, buffers, "ok", bytes=task.bytes)


def enter(
    contestant: Contestant,
    task: Task,
    given: Inputs,
    buffers: Buffers,
    check: Callable[[Answer], tuple[float, float | None]],
) -> tuple[Callable[[], Any] | None, Result]:
    """The call to time, None of one that fails or is wrong; and the result, still without times.

    `check` gives the errors of an answer, of the loss and of the gradient.
    """
    result = entry(task, contestant, buffers)
    try:
        with warnings.catch_warnings():
            if not contestant.ours:
                warnings.simplefilter("ignore")  # a peer's deprecations are its own
            run = contestant.prepare(task, given, buffers)
            loss_error, grad_error = check(run.answer(run.call()))
    except Exception as exc:  # of a peer as of a backend: the others are measured all the same
        return None, result._replace(status="failed", why=f"{type(exc).__name__}: {exc}".splitlines()[0])
    result = result._replace(loss_error=loss_error, grad_error=grad_error)
    worst, bound = max(loss_error, grad_error or 0.0), TOLERANCE[task.dtype]
    if not worst <= bound:
        return None, result._replace(status="wrong", why=f"off by {worst:.2g}, where {bound:.2g} is allowed.")
    return run.call, result


def errors(task: Task, answer: Answer, wanted: Expected) -> tuple[float, float | None]:
    """Of the loss, relative; of the gradient, the largest, as if n were 1. NaN or a wrong shape: infinite."""
    loss = abs(answer.loss - wanted.loss) / abs(wanted.loss)
    loss = math.inf if math.isnan(loss) else loss
    if wanted.grad is None:
        return loss, None
    if answer.grad is None or answer.grad.shape != wanted.grad.shape:
        return loss, math.inf
    # A mean over many rows has gradients below half precision's smallest number: one step of it is no error.
    smallest = 2.0**-24 if task.dtype == "float16" else 0.0
    worst = 0.0
    for start in range(0, len(wanted.grad), step := max(1, PIECE // max(1, wanted.grad[0].size))):
        piece = slice(start, start + step)
        got: Array = answer.grad[piece].astype(wanted.grad.dtype, copy=False)
        # Not min or max of a NaN: the largest of numbers and NaN is NaN, and that is infinite here.
        off = float(np.abs(got - wanted.grad[piece]).max())
        worst = math.inf if math.isnan(off) else max(worst, task.n * max(0.0, off - smallest))
    return loss, worst


def _limits(task: Task, pool: ThreadPoolExecutor) -> dict[tuple[str, str], Callable[[], Any]]:
    """Copies for every task: they are the common scale. Reads where nothing is written."""
    source = np.ones(task.matrix_bytes, np.uint8)
    ways: dict[tuple[str, str], Callable[[], Any]] = {
        ("copy", name): way for name, way in limit.copies(source, np.empty_like(source), pool).items()
    }
    if task.op == "loss":
        ways |= {("read", name): way for name, way in limit.reads(source, pool).items()}
    return ways


def _best_limits(task: Task, times: dict[tuple[str, str], Times]) -> Iterator[Result]:
    for limited in LIMITS:
        ways = {way: found for (name, way), found in times.items() if name == limited}
        if ways:
            best = min(ways, key=lambda way: ways[way].median)
            moved = task.matrix_bytes * (2 if limited == "copy" else 1)
            yield timed(Result(task, limited, False, "reused", "ok", best, moved), ways[best])


def timed(result: Result, times: Times) -> Result:
    low, high = times.quartiles
    return result._replace(seconds=times.median, low=low, high=high, turns=times.seconds)


def compared(results: list[Result]) -> list[Result]:
    """With the share of a copy, and how far ahead of the strongest peer, whatever its buffers."""
    copy = next((r.seconds / r.bytes for r in results if r.contestant == "copy" and r.seconds), None)
    peers = [r.seconds for r in results if r.seconds and not r.ours and r.contestant not in LIMITS]
    made = []
    for r in results:
        share, ahead = r.share_of_copy, r.speed_up
        if r.seconds is not None:
            share = share if copy is None else r.bytes / r.seconds * copy
            ahead = min(peers) / r.seconds if r.ours and peers else ahead
        made.append(r._replace(share_of_copy=share, speed_up=ahead))
    return made
