"""What got slower, and what faster, between two JSON files of `sce bench`.

python bench/compare.py OLD.json NEW.json [--least 10]

Times are compared in units of the copy of the same matrix in the same run, so that a slower machine is no
regression; in seconds where a task has no copy. A difference counts if the interquartile ranges do not
overlap, the copy's included, and if it exceeds --least.

Exit status: 1 if something of ours got slower, wrong or fails, 2 for bad input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from sce.bench import findings
from sce.bench.contest import LIMITS
from sce.bench.findings import Document, Key, NotADocument, Row
from sce.cli.tables import console, table

_ROW = (*findings.TASK, "contestant", "buffers")
_MACHINE = ("processor", "usable_cores", "threads")
_BROKEN = ("wrong", "failed")


class Change(NamedTuple):
    """A row of both documents: how many times as long as before, and whether the spread explains it."""

    row: Row
    ratio: float
    apart: bool
    copies: bool  # in units of the copy; else in seconds


class Timed(NamedTuple):
    row: Row
    copy: Row | None  # of the same matrix, in the same run


def times(timed: Timed, in_copies: bool) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile. A quotient is as uncertain as both of its parts."""
    row, copy = timed
    if not in_copies or copy is None:
        return row["low_s"], row["median_s"], row["high_s"]
    return row["low_s"] / copy["high_s"], row["median_s"] / copy["median_s"], row["high_s"] / copy["low_s"]


def change(old: Timed, new: Timed) -> Change:
    copies = old.copy is not None and new.copy is not None
    (old_low, before, old_high), (new_low, after, new_high) = times(old, copies), times(new, copies)
    return Change(new.row, after / before, new_low > old_high or new_high < old_low, copies)


class Comparison(NamedTuple):
    slower: list[Change]
    faster: list[Change]
    alike: int
    left_out: int  # in seconds, of different machines
    broken: list[Row]  # ours, and an answer before
    gone: list[Row]
    come: list[Row]

    @property
    def compared(self) -> int:
        return len(self.slower) + len(self.faster) + self.alike + self.left_out + len(self.broken)

    @property
    def worse(self) -> bool:
        return bool(self.broken) or any(found.row["ours"] for found in self.slower)


def compare(old: Document, new: Document, least: float) -> Comparison:
    before, after = measured(old), measured(new)
    every = [change(before[key], after[key]) for key in before if key in after]
    fair = [found for found in every if found.copies or not other_machine(old, new)]
    counts = [found for found in fair if found.apart]
    slower = sorted((found for found in counts if found.ratio > 1 + least), key=lambda found: -found.ratio)
    faster = sorted(
        (found for found in counts if found.ratio < 1 / (1 + least)), key=lambda found: found.ratio
    )
    bad = {findings.key(row, _ROW): row for row in new["results"] if row["status"] in _BROKEN and row["ours"]}
    return Comparison(
        slower,
        faster,
        len(fair) - len(slower) - len(faster),
        len(every) - len(fair),
        [row for key, row in bad.items() if key in before],
        [timed.row for key, timed in before.items() if key not in after and key not in bad],
        [timed.row for key, timed in after.items() if key not in before],
    )


def measured(document: Document) -> dict[Key, Timed]:
    """What was timed, the limits aside: they are the unit."""
    rows = findings.measured(document["results"])
    copies = {findings.key(row): row for row in rows if row["contestant"] == "copy"}
    timed = (row for row in rows if row["contestant"] not in LIMITS)
    return {findings.key(row, _ROW): Timed(row, copies.get(findings.key(row))) for row in timed}


def other_machine(old: Document, new: Document) -> bool:
    return any(old["machine"].get(fact) != new["machine"].get(fact) for fact in _MACHINE)


def report(found: Comparison, old: Document, new: Document, least: float, out: Console) -> None:
    for line in _differences(old, new):
        out.print(line, style="yellow", markup=False)
    for title, changes, style in (("slower", found.slower, "red"), ("faster", found.faster, "green")):
        if changes:
            out.print(f"\n{title}", style=f"bold {style}")
            out.print(_table(changes))
    for title, rows in (
        ("ours no longer right", found.broken),
        ("only in OLD", found.gone),
        ("only in NEW", found.come),
    ):
        if rows:
            out.print(f"\n{title}", style="bold")
            for row in rows:
                why = f": {row['status']}: {row['why']}" if row["status"] != "ok" else ""
                out.print(f"  {_name(row)}{why}", markup=False, soft_wrap=True)
    out.print(
        f"\n{len(found.slower)} slower, {len(found.faster)} faster; {found.alike} within the spread or"
        f" {100 * least:g} %"
        + (f"; {found.left_out} in seconds, of different machines" * bool(found.left_out))
    )


def _differences(old: Document, new: Document) -> Iterator[str]:
    if other_machine(old, new):
        yield f"Different machines: {findings.machine(old)} and {findings.machine(new)}."
        yield "Compared are times in units of each machine's copy; those in seconds are left out."
    was, now = old["versions"], new["versions"]
    changed = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if changed:
        told = (f"{name} {was.get(name, 'absent')} -> {now.get(name, 'absent')}" for name in changed)
        yield f"Different versions: {', '.join(told)}."


def _table(changes: Sequence[Change]) -> Table:
    made = table("", "change", "in", "now")
    for found in changes:
        unit = "copies" if found.copies else "seconds"
        now = f"{found.row['median_s']:.3g} s"
        made.add_row(_name(found.row), f"{100 * (found.ratio - 1):+.0f} %", unit, now)
    return made


def _name(row: Row) -> str:
    buffers = "" if row["buffers"] == "none" else f" ({row['buffers']})"
    who = row["contestant"] + ("" if row["ours"] else ", a peer")
    return f"{who}{buffers}: {findings.in_words(row)}, {row['n']} x {row['c']}"


def main(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The JSON of the earlier run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The JSON of the later run.")],
    least: Annotated[
        float, typer.Option(metavar="PERCENT", min=0, help="What a difference must exceed.")
    ] = 10,
) -> None:
    """What got slower, and what faster, by more than the spread explains."""
    try:
        documents = findings.read(old), findings.read(new)
    except NotADocument as exc:
        typer.echo(f"Error: {exc}", err=True)
        raise typer.Exit(2) from None
    found = compare(*documents, least / 100)
    if not found.compared:
        typer.echo("Error: no row was measured in both: there is nothing to compare.", err=True)
        raise typer.Exit(2)
    report(found, *documents, least / 100, console())
    raise typer.Exit(1 if found.worse else 0)


if __name__ == "__main__":
    typer.run(main)
