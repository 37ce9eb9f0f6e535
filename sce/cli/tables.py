"""The consoles, and the table of `sce compare`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.table import Table

from sce import machine

from .compare import Comparison

_CACHED = 4_000_000  # bytes that today's caches hold: then a copy is no measure of the memory
_WIDE = 10_000  # columns where there is no terminal: a file or a pipe gets every cell whole


def console(*, stderr: bool = False) -> Console:
    """Colours and the terminal's width on a terminal; plain text and whole cells elsewhere."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _WIDE, highlight=False, emoji=False)


def say(log: Console, text: str) -> None:
    """What is going on, where a person watches. Not a spinner: its thread would disturb the timing."""
    if log.is_terminal:
        print_line(log, f"{text} ...", "dim")


def table(first: str, *others: str) -> Table:
    """Text on the left, numbers on the right; a cell that does not fit folds, and is never cut."""
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    found.add_column(first, overflow="fold")
    for name in others:
        found.add_column(name, justify="right", overflow="fold")
    return found


def show(result: Comparison, source: str, out: Console) -> None:
    """The comparison, as a person reads it."""
    problem, like = result.request.problem, result.request.like
    shape = " x ".join(map(str, like.shape))
    print_line(out, f"{source}: {shape} {like.dtype.name}, {problem.rows} rows of {problem.classes} classes")
    where = ", in the cache" if result.copy_bytes < _CACHED else ""
    print_line(
        out,
        f"{machine.processor()}, {machine.usable_cores()} cores; copies these {_size(result.copy_bytes)}"
        f" (read + write{where}) at {result.copy_rate:.3g} GB/s ({result.copy_way})",
    )
    out.print()
    lines = table("backend", "loss", "accuracy", "max ulp", "time", "GB/s", "of copy", "speed-up")
    for line in result.lines:
        rate, name = result.rate(line), line.name if line.complaint is None else f"{line.name} (!)"
        lines.add_row(
            name,
            f"{line.loss:#.7g}",
            percent(line.accuracy),
            f"{max(line.loss_ulp, line.grad_ulp):.2g}",
            duration(line.seconds),
            f"{rate:.3g}",
            percent(rate / result.copy_rate if result.copy_rate else math.nan),
            f"{result.speed_up(line):.3g} x",
            style=None if line.complaint is None else "red",
        )
    out.print(lines)
    notes = reasons(result.not_run)
    wrong = [line for line in result.lines if line.complaint is not None]
    notes += [(f"(!) {line.name} disagrees with the reference: {line.complaint}", "red") for line in wrong]
    if not wrong and len(result.lines) > 1:
        notes.append(
            ("Loss and gradient agree with the reference within the bounds of sce.conformance.", None)
        )
    print_notes(notes, out)


Note = tuple[str, str | None]  # a line of text, and its style


def reasons(missing: dict[str, str]) -> list[Note]:
    """The backends that did not run."""
    return [(f"{name} did not run: {why}", "yellow") for name, why in missing.items()]


def print_notes(notes: Iterable[Note], out: Console) -> None:
    """The lines below a table."""
    for i, (text, style) in enumerate(notes):
        if i == 0:
            out.print()
        print_line(out, text, style)


def print_line(out: Console, text: str, style: str | None = None) -> None:
    """Text as it is: no markup, no wrapping by hand."""
    out.print(text, style=style, markup=False, soft_wrap=True)


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _size(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
