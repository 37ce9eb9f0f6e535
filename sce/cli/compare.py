"""`sce compare`: loss and gradient on every backend of this machine, checked, timed, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from sce import machine, registry
from sce.backend import Array, BackendError, Problem
from sce.bench import limit
from sce.bench.clock import Times, alternate
from sce.functions import evaluate, loss_and_grad
from sce.problem import Request, prepare
from sce.select import AUTO, decide

from .agreement import errors
from .files import Output, UsageError


class Line(NamedTuple):
    """One backend's line of the table. `complaint` says how it disagrees with the reference, or is None."""

    name: str
    loss: float
    accuracy: float
    loss_ulp: float
    grad_ulp: float
    complaint: str | None
    seconds: float  # median
    runs: int
    grad: Array


class Comparison(NamedTuple):
    request: Request
    target: Array
    lines: tuple[Line, ...]
    not_run: dict[str, str]  # by name, with the reason
    broken: bool  # a backend disagrees or raised, or one that was named does not run
    copy_way: str  # the fastest of sce.bench.limit.copies
    copy_seconds: float

    def save_grad(self, named: Sequence[str], file: Output) -> str | None:
        """Write the gradient of the first line that agrees (of those named): whose it is, or None."""
        for line in self.lines:
            if line.complaint is None and (not named or line.name in named):
                file.write(partial(np.save, arr=line.grad))
                return line.name
        return None

    @property
    def bytes_moved(self) -> int:
        """What must move: the logits are read once, the gradient is written once, the target is read."""
        return 2 * self.request.like.nbytes + self.target.nbytes

    @property
    def copy_bytes(self) -> int:
        return 2 * self.request.like.nbytes

    def rate(self, line: Line) -> float:
        """GB/s."""
        return self.bytes_moved / line.seconds / 1e9

    @property
    def copy_rate(self) -> float:
        return self.copy_bytes / self.copy_seconds / 1e9

    def speed_up(self, line: Line) -> float:
        """Over the reference."""
        return next((r.seconds for r in self.lines if r.name == "reference"), math.nan) / line.seconds

    def as_json(self) -> dict[str, Any]:
        x = self.request.like
        backends: dict[str, Any] = {
            line.name: {
                "loss": line.loss,
                "accuracy": line.accuracy,
                "ulp": {"loss": line.loss_ulp, "grad": line.grad_ulp},
                "agrees": line.complaint is None,
                "complaint": line.complaint,
                "seconds": line.seconds,
                "runs": line.runs,
                "gb_per_s": self.rate(line),
                "share_of_copy": self.rate(line) / self.copy_rate if self.copy_rate else math.nan,
                "speed_up": self.speed_up(line),
            }
            for line in self.lines
        }
        backends |= {name: {"missing": why} for name, why in self.not_run.items()}
        return {
            "logits": {"shape": list(x.shape), "dtype": x.dtype.name, "axis": self.request.layout.axis},
            "target": {"shape": list(self.target.shape), "dtype": self.target.dtype.name},
            "bytes_moved": self.bytes_moved,
            "copy": {
                "seconds": self.copy_seconds,
                "gb_per_s": self.copy_rate,
                "way": self.copy_way,
            },
            "backends": backends,
            "machine": machine.describe() | {"versions": machine.versions()},
        }


def names(given: Sequence[str]) -> tuple[str, ...]:
    """The backends that were named, each once; a name that is none is an error."""
    for name in given:
        try:
            registry.load(name)
        except BackendError as exc:
            raise UsageError(str(exc)) from exc
    return tuple(dict.fromkeys(given))


def start(logits: Array, target: Array, options: dict[str, Any]) -> Request:
    """Every check of the arguments, before anything is computed."""
    if options.get("reduction") == "none":
        raise UsageError(
            'reduction "none" has a loss per row, and a table has one number: choose mean or sum.'
        )
    try:
        return prepare(logits, target, outputs=("loss", "grad"), **options)
    except (TypeError, ValueError) as exc:
        raise UsageError(str(exc)) from exc


def compare(
    request: Request,
    target: Array,
    options: dict[str, Any],
    named: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run, time and check the backends. The reference always runs: it is the yardstick."""
    logits = request.like
    names, not_run = _choose(request.problem, named)
    grads = {name: np.empty_like(logits, dtype=logits.dtype.newbyteorder("=")) for name in names}
    calls: dict[str, Callable[[], Any]] = {}
    broken = any(name in not_run for name in named)
    for name in names:
        say(f"warming up {name}")
        grads[name].fill(np.nan)  # an element that is never written shows
        calls[name] = _call(logits, target, grads[name], options, name)
        try:
            calls[name]()
        except Exception as exc:  # a third party's backend may raise anything: that is its result
            not_run[name] = f"raised {type(exc).__name__}: {exc}"
            broken = True
            del calls[name]

    say(f"timing {', '.join(calls)}")
    timed, losses, copies = _measure(calls, logits)
    say("checking against the reference")
    worst = errors(request, {name: (losses[name], grads[name]) for name in calls})
    lines = []
    for name in calls:
        accuracy, trouble = _accuracy(request.problem, logits, target, options, name)
        complaints = [f"{output} {error.message}" for output, error in worst[name].items() if error.message]
        line = Line(
            name=name,
            loss=losses[name],
            accuracy=accuracy,
            loss_ulp=worst[name]["loss"].ulp,
            grad_ulp=worst[name]["grad"].ulp,
            complaint="; ".join(complaints + trouble) or None,
            seconds=timed[name].median,
            runs=len(timed[name].seconds),
            grad=grads[name],
        )
        lines.append(line)
    broken = broken or any(line.complaint for line in lines)
    return Comparison(request, target, tuple(lines), not_run, broken, *_best_copy(copies))


def _choose(problem: Problem, named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The backends to run, in the order in which `auto` prefers them, and why the others do not run."""
    wanted = dict.fromkeys(named or registry.registered()) | {"reference": None}
    order = [name for name in AUTO if name in wanted] + sorted(name for name in wanted if name not in AUTO)
    names, not_run = [], {}
    for name in order:
        try:
            if not named and registry.load(name).debug:
                not_run[name] = f"a debug backend: it runs when named, --backend {name}."
                continue
            decision = decide(problem, name)
        except BackendError as exc:  # a broken or clashing registration
            not_run[name] = str(exc)
            continue
        if decision.chosen is None:
            not_run[name] = decision.passed_over[0][1]
        else:
            names.append(name)
    return names, not_run


def _call(logits: Array, target: Array, grad: Array, options: dict[str, Any], name: str) -> Callable[[], Any]:
    return lambda: loss_and_grad(logits, target, out=grad, backend=name, **options)[0]


def _measure(
    calls: dict[str, Callable[[], Any]], logits: Array
) -> tuple[dict[str, Times], dict[str, float], dict[str, Times]]:
    """The times of each backend, its last loss, and the times of each way to copy."""
    losses: dict[str, float] = {}

    def keeping(name: str) -> Callable[[], None]:
        def call() -> None:
            losses[name] = calls[name]()

        return call

    with ThreadPoolExecutor(machine.threads()) as pool:
        ways = limit.copies(logits, np.empty_like(logits), pool)
        for copy in ways.values():
            copy()  # touches the new pages, starts the threads
        contest = {("backend", name): keeping(name) for name in calls} | {
            ("copy", way): copy for way, copy in ways.items()
        }
        times = alternate(contest)
    return {n: times["backend", n] for n in calls}, losses, {way: times["copy", way] for way in ways}


def _best_copy(copies: dict[str, Times]) -> tuple[str, float]:
    return min(((way, times.median) for way, times in copies.items()), key=lambda found: found[1])


def _accuracy(
    problem: Problem, logits: Array, target: Array, options: dict[str, Any], name: str
) -> tuple[float, list[str]]:
    """Rows right among the rows that count, NaN where none does or the backend does not tell; complaints."""
    counted = np.ones(problem.rows, bool)
    if problem.labels is not None and problem.ignore_index is not None:
        counted &= problem.labels != problem.ignore_index
    if problem.sample_weight is not None:
        counted &= problem.sample_weight != 0
    try:
        correct = evaluate(logits, target, outputs=("correct",), backend=name, **options).correct
    except BackendError:  # it refuses to tell
        return math.nan, []
    except Exception as exc:
        return math.nan, [f"asked for correct it raised {type(exc).__name__}: {exc}"]
    return (float(np.count_nonzero(correct) / counted.sum()) if counted.any() else math.nan), []
