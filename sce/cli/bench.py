"""`sce bench`: every contestant on one scale, against this machine's own limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sce.bench import aims, cold, findings, suites
from sce.bench.clock import Rounds
from sce.bench.cold import Cost
from sce.bench.contest import Result, contest
from sce.bench.contestant import Backend, Contestant, backends
from sce.bench.document import document
from sce.bench.findings import Document, Row
from sce.bench.peers import peers

from .files import UsageError
from .tables import Note, duration, percent, print_line, print_notes, table

_QUICK, _FULL = Rounds(least=5, patience=0.6), Rounds()
_COSTS = {
    "import": "import",
    "first_answer": "from nothing to the first answer",
    "first_call": "first call",
    "decide": "choice of the backend, of a warm call",
    "prepare": "checks of the arguments, of a warm call",
    "call": "one warm call, (1, 10)",
    "memory": "memory over inputs and answer",
    "scaling": "a call",
}


def contestants(named: Sequence[str], with_peers: bool) -> list[Contestant]:
    ours: list[Contestant] = [Backend(name) for name in named] if named else [*backends()]
    return [*ours, *peers()] if with_peers else ours


def run(entered: Sequence[Contestant], quick: bool, command: str, log: Console) -> Document:
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
    return document(command, results, costs)


def show(found: Document, out: Console) -> None:
    print_line(out, f"{findings.machine(found)}; {', '.join(findings.versions(found))}")
    for rows in findings.plain(found).values():
        out.print()
        print_line(out, findings.heading(rows[0]), "bold")
        out.print(_speeds(rows))
    if costs := findings.option_costs(found):
        classes = sorted({c for of in costs.values() for c in of})
        lines = table("What an option adds", *(f"C = {c}" for c in classes))
        for option, of in costs.items():
            lines.add_row(option, *(f"{100 * of[c]:+.0f} %" if c in of else "-" for c in classes))
        out.print()
        out.print(lines)
    out.print()
    out.print(_costs(found["costs"]))
    if met := [outcome for outcome in aims.outcomes(found) if outcome.figures]:
        lines = table(f"What {aims.BACKEND} aims at", "", "measured", "")
        for outcome in met:
            lines.add_row(outcome.aim.what, outcome.bound, outcome.measured, outcome.verdict)
        out.print()
        out.print(lines)
    print_notes(_notes(found), out)


def _speeds(rows: Sequence[Row]) -> Table:
    """A line for each of ours under each policy; what a peer takes is told as a multiple of it."""
    limit = (findings.of(rows, "read") and "read") or (findings.of(rows, "copy") and "copy")
    who = list(dict.fromkeys(row["contestant"] for row in findings.measured(rows) if findings.is_peer(row)))
    bounds = [limit, f"of {limit}"] if limit else []
    lines = table("", "C", "rows", "time", *bounds, *who)
    for task in findings.tasks(rows):
        best = findings.of(task, limit) if limit else None
        theirs = {name: findings.of(task, name) for name in who}
        for row in findings.measured(task):
            if not row["ours"]:
                continue
            name = row["contestant"] + ("" if row["buffers"] == "none" else f", {row['buffers']}")
            cells = [name, f"{row['c']}", f"{row['n']}", duration(row["median_s"])]
            if best:
                share = findings.share_of_limit(task, row)
                cells += [duration(best["median_s"]), "-" if share is None else percent(share)]
            lines.add_row(*cells, *(_multiple(theirs[name], row) for name in who))
    return lines


def _multiple(theirs: Row | None, ours: Row) -> str:
    return "-" if theirs is None else f"{theirs['median_s'] / ours['median_s']:.2g} x"


def _costs(costs: Sequence[dict[str, Any]]) -> Table:
    """What a fresh process pays, and what a call does: a line for each cost, a column for each contestant."""
    measured = [cost for cost in costs if cost["status"] == "ok"]
    who = list(dict.fromkeys(cost["contestant"] for cost in measured))
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for cost in measured:
        value = f"{cost['bytes'] / 1e6:.3g} MB" if cost["cost"] == "memory" else duration(cost["median_s"])
        kind = cost["cost"], cost["cache"], cost["threads"], cost["c"] if cost["threads"] else None
        cells.setdefault(kind, {})[cost["contestant"]] = value
    lines = table("A fresh process, and one call", *who)
    for (what, cache, threads, c), found in cells.items():
        label = _COSTS[what] + (f", kernel cache {cache}" if cache else "")
        label += f", C = {c}, {threads} thread{'s' * (threads > 1)}" if threads else ""
        lines.add_row(label, *(found.get(name, "-") for name in who))
    return lines


def _notes(found: Document) -> Iterator[Note]:
    """How far from the limit, how far ahead; what the columns mean; who is not in them, and why."""
    for line in findings.summary(found):
        yield line, "bold"
    if any(map(findings.is_peer, findings.measured(found["results"]))):
        yield (
            "A peer's column: how many times as long as ours it takes, with the memory that suits it best.",
            None,
        )
    for absent in findings.absences(found):
        style = "red" if absent.status in ("wrong", "failed") else "yellow"
        yield f"{', '.join(absent.contestants)}: {absent.status} ({absent.where}): {absent.why}", style


def broken(found: Document, named: Sequence[str]) -> bool:
    """One of ours is wrong or failed, or was asked for by name and did not run at all."""
    if any(row["ours"] and row["status"] in ("wrong", "failed") for row in found["results"]):
        return True
    ran = {row["contestant"] for row in findings.measured(found["results"])}
    return not ran.issuperset(named)


def plot_directory(directory: Path) -> Path:
    """Made before anything is measured: minutes later would be late for the error."""
    try:
        import sce.bench.plots.style  # noqa: F401 - the module that needs matplotlib

        directory.mkdir(parents=True, exist_ok=True)
    except ImportError as exc:
        raise UsageError(f"--plot needs matplotlib ({exc}). Try: pip install 'sce[plot]'.") from exc
    except OSError as exc:
        raise UsageError(f"--plot: {str(directory)!r} cannot be made: {exc.strerror}.") from exc
    return directory


def draw(found: Document, directory: Path) -> list[Path]:
    from sce.bench import plots

    return plots.draw(found, directory)
