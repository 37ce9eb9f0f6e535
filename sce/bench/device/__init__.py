"""Contests on a device: the matrix, the checks and the clock stay there. PyTorch gives memory and events.

With "cpu" for the device all of this runs on the host: a rehearsal of everything but the GPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from sce.bench import clock
from sce.bench.clock import Rounds, Times
from sce.bench.contest import Result, Status, compared, enter, entry, timed
from sce.bench.contestant import Answer, Backend, Buffers, Contestant, Run
from sce.bench.task import OPTIONS, Inputs, Task
from sce.functions import cross_entropy, loss_and_grad

Entry = tuple[str, Buffers]
Say = Callable[[str], object]

ROUNDS = Rounds(least=9, enough=0.06, most=50, patience=1.5)
_TURN = 1e-2  # seconds of a turn at least: its calls queue up, and hide the host's part of all of them
_CHUNK = 1 << 24  # elements checked at once: the check works in float64
_SLICE = 1 << 22  # elements of each slice of the gradient that is checked


class Ours(NamedTuple):
    """One of our backends, through the public functions, on tensors where they are."""

    name: str
    ours: bool = True

    def missing(self) -> str | None:
        return Backend(self.name).missing()

    def refuses(self, task: Task) -> str | None:
        return None  # one that refuses a plain problem has failed

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        if task.op == "loss":
            return ("none",)
        return ("reused",) if task.where == "call" else ("reused", "in place")

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        x: Any = given.logits
        options = {**given.options, "backend": self.name}
        logits, labels = as_passed(x), as_passed(given.target)
        if task.op == "loss":
            return Run(lambda: cross_entropy(logits, labels, **options), lambda got: Answer(float(got), None))
        grad = x.clone() if buffers == "in place" else x.new_full(x.shape, math.nan)
        out = as_passed(grad)
        logits = out if buffers == "in place" else logits
        return Run(
            lambda: loss_and_grad(logits, labels, out=out, **options), lambda got: Answer(float(got[0]), grad)
        )


def as_passed(x: Any) -> Any:
    """A device's tensor as it is, the host's by its NumPy view: torch hands its bfloat16 to nobody."""
    if x.device.type != "cpu":
        return x
    if str(x.dtype) != "torch.bfloat16":
        return x.numpy()
    import ml_dtypes
    import torch

    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


class Known(NamedTuple):
    """In float64: the loss of all rows, the gradient of the first, the middle and the last ones."""

    loss: float
    grads: tuple[tuple[slice, Any], ...]


def inputs(task: Task, device: str) -> Inputs:
    """Normal logits of standard deviation 3 and uniform labels, made on the device. Reproducible there."""
    import torch

    random = torch.Generator(device)
    random.manual_seed(task.n * 1_000_003 + task.c)
    x: Any = torch.empty(task.n, task.c, dtype=getattr(torch, task.dtype), device=device)
    x.normal_(0, 3, generator=random)
    y: Any = torch.randint(task.c, (task.n,), device=device, generator=random)
    options: Any = OPTIONS[task.option] if task.option else {}
    return Inputs(x, y, options)  # tensors in the place of arrays


def expected(task: Task, given: Inputs) -> Known:
    x: Any = given.logits
    y: Any = given.target
    total, step = 0.0, max(1, _CHUNK // task.c)
    for start in range(0, task.n, step):
        z, labels = x[start : start + step].double(), y[start : start + step, None]
        total += float((z.logsumexp(1) - z.gather(1, labels)[:, 0]).sum())
    if task.op == "loss":
        return Known(total / task.n, ())
    some = min(task.n, max(1, _SLICE // task.c))
    starts = sorted({0, (task.n - some) // 2, task.n - some})
    return Known(total / task.n, tuple(_grad(task, x, y, slice(a, a + some)) for a in starts))


def _grad(task: Task, x: Any, y: Any, rows: slice) -> tuple[slice, Any]:
    p = x[rows].double().softmax(1)
    one = p.new_ones(1, 1).expand(len(p), 1)
    return rows, p.scatter_add_(1, y[rows, None], -one).div_(task.n)


def errors(task: Task, answer: Answer, known: Known) -> tuple[float, float | None]:
    """As in contest.py: of the loss relative, of the gradient times n; infinite for NaN and a wrong shape.

    A mean over many rows has gradients below half precision's smallest number: one step of it is no error.
    """
    loss = abs(answer.loss - known.loss) / abs(known.loss)
    loss = math.inf if math.isnan(loss) else loss
    if not known.grads:
        return loss, None
    grad: Any = answer.grad
    if grad is None or tuple(grad.shape) != (task.n, task.c):
        return loss, math.inf
    smallest = 2.0**-24 if task.dtype == "float16" else 0.0
    worst = 0.0
    for rows, want in known.grads:
        off = float((grad[rows].double() - want).abs().max())  # NaN where there is one
        worst = max(worst, math.inf if math.isnan(off) else task.n * max(0.0, off - smallest))
    return loss, worst


def contest(
    task: Task,
    contestants: Iterable[Contestant],
    device: str = "cuda",
    end: float = math.inf,
    rounds: Rounds = ROUNDS,
    say: Say = lambda text: None,
) -> list[Result]:
    """Every answer checked, then all timed in turns. Who is not reached before `end` has no result."""
    results: dict[Entry, Result] = {}
    able: list[tuple[Contestant, Buffers]] = []
    for contestant in contestants:
        status: Status = "missing"
        if (why := contestant.missing()) is None:
            why, status = contestant.refuses(task), "refused"
        for buffers in contestant.buffers(task):
            if why is None:
                able.append((contestant, buffers))
            else:
                result = entry(task, contestant, buffers)._replace(status=status, why=why)
                results[contestant.name, buffers] = result
    if able or task.where != "call":
        results |= _run(task, able, device, end, rounds, say)
    return compared([*results.values()])


def _run(
    task: Task, able: list[tuple[Contestant, Buffers]], device: str, end: float, rounds: Rounds, say: Say
) -> dict[Entry, Result]:
    given = inputs(task, device)
    known = expected(task, given)

    def check(answer: Answer) -> tuple[float, float | None]:
        return errors(task, answer, known)

    calls: dict[Entry, Callable[[], Any]] = {}
    results: dict[Entry, Result] = {}
    for contestant, buffers in able:
        if time.monotonic() > end:
            break
        say(f"{task}: {contestant.name} ({buffers})")
        key = contestant.name, buffers
        call, results[key] = enter(contestant, task, given, buffers, check)
        if call is not None:
            calls[key] = call
    say(f"{task}: timing")
    if task.where == "call":  # what the host pays
        times: Mapping[Any, Times] = clock.alternate(calls, rounds)
    else:
        ways = _copies(given)
        times = alternate({**calls, **ways}, device, rounds, end)
        if copies := {way: times[way] for way in ways if way in times}:
            best = min(copies, key=lambda way: copies[way].median)
            copy = Result(task, "copy", False, "reused", "ok", best, 2 * task.matrix_bytes)
            results["copy", "reused"] = timed(copy, copies[best])
    for key in calls:
        if key in times:
            results[key] = timed(results[key], times[key])
        else:
            del results[key]
    return results


def _copies(given: Inputs) -> dict[str, Callable[[], Any]]:
    """The driver's copy, and a kernel that reads and writes as much: which is faster, varies."""
    import torch

    source: Any = given.logits
    target = torch.empty_like(source)
    return {"copy_": lambda: target.copy_(source), "neg": lambda: torch.neg(source, out=target)}


def alternate(
    calls: Mapping[Any, Callable[[], Any]], device: str, rounds: Rounds, end: float
) -> dict[Any, Times]:
    """As clock.alternate, by the device's own clock, and no longer than until `end`."""
    repeats: dict[Any, int] = {}
    seconds: dict[Any, list[float]] = {key: [] for key in calls}
    waiting = list(calls)
    while waiting:
        for key in waiting:
            if time.monotonic() > end:
                return {key: Times(tuple(found)) for key, found in seconds.items() if found}
            if key not in repeats:
                took = _turn(calls[key], 1, device)
                repeats[key] = max(1, min(200, math.ceil(_TURN / max(1e-7, took))))
            seconds[key].append(_turn(calls[key], repeats[key], device))
        waiting = [k for k in waiting if not rounds.done(len(seconds[k]), sum(seconds[k]) * repeats[k])]
    return {key: Times(tuple(found)) for key, found in seconds.items()}


def _turn(call: Callable[[], Any], repeats: int, device: str) -> float:
    """Seconds of a call. The first of many is not timed: while it runs, the next ones join the queue."""
    if repeats > 1:
        call()
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - began) / repeats
    import torch

    event: Any = torch.cuda.Event
    first, last = event(enable_timing=True), event(enable_timing=True)
    first.record()
    for _ in range(repeats):
        call()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / repeats
