"""`sce check`: the conformance suite on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sce import conformance, registry
from sce.conformance import Report
from sce.select import backends

from .files import UsageError
from .tables import Note, print_notes, reasons, table

_SHOWN = 5  # failures printed of each backend: the first ones are the simplest cases


def choose(named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The backends to check, and why the others are not checked."""
    names: list[str] = []
    missing: dict[str, str] = {}
    for name, why in ({name: registry.missing(name) for name in named} if named else backends()).items():
        if why is not None:
            missing[name] = why
        elif not named and registry.load(name).debug:
            missing[name] = f"a debug backend: it runs when named, --backend {name}."
        else:
            names.append(name)
    return names, missing


def check(names: Sequence[str], log: Console) -> list[Report]:
    """Run every case on every backend, with a bar where a person watches."""
    cases = conformance.cases()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    reports = []
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        for name in names:
            task = progress.add_task(name, total=len(cases))
            reports.append(conformance.check(name, cases, on_case=partial(_step, progress, task)))
    return reports


def export(directory: Path) -> int:
    """Write every case as .npz; the number of them."""
    try:
        return conformance.export(directory, conformance.cases())
    except OSError as exc:
        why = f"{str(directory)!r} cannot be written: {exc.strerror}." if exc.strerror else str(exc)
        raise UsageError(f"--export: {why}") from exc
    except ValueError as exc:
        raise UsageError(f"--export: {exc}") from exc


def _step(progress: Progress, task: TaskID, case: object) -> None:
    progress.advance(task)


def show(reports: Sequence[Report], missing: dict[str, str], out: Console) -> None:
    """Counts by backend, worst error by group, the first failures."""
    if reports:
        _show_counts(reports, out)
    notes = reasons(missing)
    for report in reports:
        notes += _skips(report) + _failures(report)
    print_notes(notes, out)


def _show_counts(reports: Sequence[Report], out: Console) -> None:
    counts = table("backend", "passed", "failed", "skipped")
    for report in reports:
        counts.add_row(
            report.backend,
            *(str(n) for n in (report.passed, report.failed, report.skipped)),
            style="red" if report.failed else None,
        )
    out.print(counts)
    out.print()
    groups = table("worst error (ulp)", *(report.backend for report in reports))
    for group in dict.fromkeys(group for report in reports for group in report.worst_ulp):
        worst = (report.worst_ulp.get(group) for report in reports)
        groups.add_row(group, *("-" if ulp is None else f"{ulp:.3g}" for ulp in worst))
    out.print(groups)


def _skips(report: Report) -> list[Note]:
    by_reason = Counter(why for _, why in report.skips)
    return [(f"{report.backend} skipped {count}: {why}", "yellow") for why, count in by_reason.items()]


def _failures(report: Report) -> list[Note]:
    shown = report.failures[:_SHOWN]
    notes: list[Note] = [
        (f"{report.backend} fails {case}{', ' * bool(output)}{output}: {message}", "red")
        for case, output, message in shown
    ]
    if more := len(report.failures) - len(shown):
        notes.append((f"{report.backend}: {more} more failures: --json has them all.", "red"))
    return notes


def as_json(reports: Sequence[Report], missing: dict[str, str]) -> dict[str, Any]:
    """{"backends": {NAME: {"passed", "failed", "skipped", "worst_ulp": {group: ulp}, ...}}, "missing"}"""
    found: dict[str, Any] = {
        report.backend: {
            "passed": report.passed,
            "failed": report.failed,
            "skipped": report.skipped,
            "worst_ulp": dict(report.worst_ulp),
            "failures": [
                {"case": case, "output": output, "message": message}
                for case, output, message in report.failures
            ],
        }
        for report in reports
    }
    return {"backends": found, "missing": missing}
