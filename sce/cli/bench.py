"""`sce bench`: every contestant on one scale, against this machine's own limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sce import machine
from sce.bench import cold, suites
from sce.bench.clock import Rounds
from sce.bench.cold import Cost
from sce.bench.contest import LIMITS, Result, contest
from sce.bench.contestant import Backend, Contestant, backends
from sce.bench.task import Task

from .tables import Note, duration, percent, print_line, print_notes, table

_QUICK, _FULL = Rounds(least=5, patience=1.0), Rounds()


def contestants(named: Sequence[str], with_peers: bool) -> list[Contestant]:
    ours: list[Contestant] = [Backend(name) for name in named] if named else [*backends()]
    if not with_peers:
        return ours
    from sce.bench.peers import peers

    return [*ours, *peers()]


def run(entered: Sequence[Contestant], quick: bool, log: Console) -> tuple[list[Result], list[Cost]]:
    """Every task, then the costs of a fresh process; with a bar where a person watches."""
    tasks = list(suites.quick() if quick else suites.full())
    results: list[Result] = []
    costs: list[Cost] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Drawn by hand, between the measurements: a thread that draws would disturb them.
    with Progress(
        *columns, console=log, transient=True, auto_refresh=False, disable=not log.is_terminal
    ) as progress:
        bar = progress.add_task("", total=len(tasks) + 1)

        def sayer(what: object) -> Callable[[str], None]:
            def say(text: str) -> None:
                progress.update(bar, description=f"{what}: {text}", refresh=True)

            return say

        for task in tasks:
            results += contest(task, entered, _QUICK if quick else _FULL, sayer(task))
            progress.advance(bar)
        costs += cold.costs(entered, quick=quick, say=sayer("a fresh process"))
    return results, costs


def show(results: Sequence[Result], costs: Sequence[Cost], out: Console) -> None:
    print_line(
        out, f"{machine.processor()}, {machine.threads()} threads; sce {machine.versions().get('sce', '')}"
    )
    for (op, dtype, layout, where), group in _groups(results):
        out.print()
        print_line(out, _heading(op, dtype, layout, where), "bold")
        out.print(_speeds(group))
    if any(r.task.option for r in results):
        out.print()
        print_line(out, "what an option costs: time over that of the same task without it", "bold")
        out.print(_options(results))
    out.print()
    print_line(out, "a fresh process, and one call", "bold")
    out.print(_costs(costs))
    print_notes(_notes(results), out)


def _groups(results: Sequence[Result]) -> Iterator[tuple[tuple[str, ...], list[Result]]]:
    """By operation, dtype, layout and size, in the order measured."""

    def key(r: Result) -> tuple[str, ...]:
        return r.task.op, r.task.dtype, r.task.layout, r.task.where

    plain = [r for r in results if r.task.option is None]
    for which in dict.fromkeys(map(key, plain)):
        yield which, [r for r in plain if key(r) == which]


def _heading(op: str, dtype: str, layout: str, where: str) -> str:
    parts = [
        {"loss": "loss", "loss_and_grad": "loss and gradient"}[op],
        dtype,
        {"rows": "", "channels": "class axis 1 of 4"}[layout],
        {"memory": "", "cache": "matrix in the cache", "call": "one tiny call"}[where],
    ]
    return ", ".join(filter(None, parts))


def _speeds(group: Sequence[Result]) -> Table:
    """A line for each of ours under each policy; what a peer takes is told as a multiple of it."""
    peers = list(dict.fromkeys(r.contestant for r in group if _is_peer(r) and r.status == "ok"))
    limited = any(r.contestant in LIMITS for r in group)
    lines = table("C", "N", *(["copy"] if limited else []), "", "time", *(["of copy"] if limited else []), *peers)
    lines.columns[-1 - len(peers) - (2 if limited else 1)].justify = "left"
    for task, found in groupby(group, key=lambda r: r.task):
        rows = list(found)
        copy = next((r.seconds for r in rows if r.contestant == "copy"), None)
        theirs = {name: _best(rows, name) for name in peers}
        first = True
        for r in rows:
            if not r.ours or r.seconds is None:
                continue
            cells = [f"{task.c}", f"{task.n}"] if first else ["", ""]
            cells += ([duration(copy) if first else ""] if copy else [])
            name = r.contestant if r.buffers == "none" else f"{r.contestant}, {r.buffers}"
            cells += [name, duration(r.seconds)]
            cells += [percent(r.share_of_copy)] if r.share_of_copy is not None else []
            cells += [_multiple(theirs[peer], r.seconds) for peer in peers]
            lines.add_row(*cells)
            first = False
    return lines


def _is_peer(r: Result) -> bool:
    return not r.ours and r.contestant not in LIMITS


def _best(rows: Sequence[Result], name: str) -> float | None:
    return min((r.seconds for r in rows if r.contestant == name and r.seconds), default=None)


def _multiple(theirs: float | None, ours: float) -> str:
    return "-" if theirs is None else f"{theirs / ours:.2g} x"


def _options(results: Sequence[Result]) -> Table:
    """Per option and C: the time of each of ours, buffers reused, over the plain task's."""
    plain = {
        (r.contestant, r.task._replace(option=None)): r.seconds
        for r in results
        if r.ours and r.buffers == "reused" and r.task.option is None and r.seconds
    }
    rows = [r for r in results if r.ours and r.buffers == "reused" and r.task.option and r.seconds]
    classes = sorted({r.task.c for r in rows})
    lines = table("option", *(f"C = {c}" for c in classes))
    cost = {
        (r.contestant, r.task.option, r.task.c): r.seconds / base - 1
        for r in rows
        if r.seconds and (base := plain.get((r.contestant, r.task._replace(option=None))))
    }
    for contestant, option in dict.fromkeys((r.contestant, r.task.option) for r in rows):
        found = [cost.get((contestant, option, c)) for c in classes]
        lines.add_row(f"{contestant}: {option}", *("-" if x is None else f"{100 * x:+.0f} %" for x in found))
    return lines


def _notes(results: Sequence[Result]) -> Iterator[Note]:
    """Who is not in the tables, and why; what the columns mean."""
    if any(_is_peer(r) and r.status == "ok" for r in results):
        yield "A peer's column: how many times as long as ours it takes, with the buffers that suit it best.", None
    tasks: dict[tuple[str, str, str], dict[str, None]] = {}
    for r in results:
        if r.status != "ok":
            tasks.setdefault((r.contestant, r.status, r.why or ""), {})[str(r.task)] = None
    alike: dict[tuple[str, str, str], list[str]] = {}  # who is kept from the same tasks by the same reason
    for (name, status, why), where in tasks.items():
        some = "" if status == "missing" else f" in {_some(list(where))}"
        alike.setdefault((status, why, some), []).append(name)
    for (status, why, some), names in alike.items():
        text = f"{', '.join(names)}: {_STATUS[status]}{some}: {why}"
        yield text, "red" if status in ("wrong", "failed") else "yellow"


def _some(tasks: Sequence[str]) -> str:
    return "; ".join(tasks[:2]) + (f" and {len(tasks) - 2} more" if len(tasks) > 2 else "")


_STATUS = {"missing": "missing", "refused": "not entered", "wrong": "WRONG", "failed": "FAILED"}


def broken(results: Sequence[Result], named: Sequence[str]) -> bool:
    """One of ours is wrong or failed, or was asked for by name and did not run at all."""
    if any(r.ours and r.status in ("wrong", "failed") for r in results):
        return True
    return any(not any(r.contestant == name and r.seconds for r in results) for name in named)


def plot_directory(directory: Path) -> Path:
    """Made before anything is measured: minutes later would be late for the error."""
    try:
        import matplotlib  # noqa: F401

        directory.mkdir(parents=True, exist_ok=True)
    except ImportError as exc:
        raise UsageError(f"--plot needs matplotlib ({exc}). Try: pip install 'sce[plot]'.") from exc
    except OSError as exc:
        raise UsageError(f"--plot: {str(directory)!r} cannot be made: {exc.strerror}.") from exc
    return directory
