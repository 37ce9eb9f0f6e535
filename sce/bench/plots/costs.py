"""What a contestant costs beside its passes over the matrix, and what more threads bring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from sce.bench import findings
from sce.bench.findings import Document, Row

from . import style
from .style import Line

Shapes = dict[tuple[int, int], dict[str, dict[float, float]]]  # GB/s by (n, c), contestant and threads


class Panel(NamedTuple):
    title: str
    cost: str
    cache: str | None = None
    figure: str = "median_s"
    units: Sequence[tuple[str, float]] = style.SECONDS


_PANELS = (
    Panel("first answer of a process, empty cache", "first_answer", "empty"),
    Panel("first answer of a process, warm cache", "first_answer", "warm"),
    Panel("a warm call on ten numbers", "call"),
    Panel("memory beyond inputs and answer", "memory", figure="bytes", units=style.BYTES),
)


def cold(document: Document) -> Iterator[tuple[str, Figure]]:
    """A panel for each cost, a bar for each contestant."""
    found = {panel: _rows(document, panel) for panel in _PANELS}
    panels = {panel: rows for panel, rows in found.items() if rows}
    if panels:
        yield "cold", _cold(document, panels)


def _rows(document: Document, panel: Panel) -> dict[str, Row]:
    return {
        row["contestant"]: row
        for row in document["costs"]
        if (row["cost"], row["cache"]) == (panel.cost, panel.cache) and row[panel.figure]
    }


def _cold(document: Document, panels: dict[Panel, dict[str, Row]]) -> Figure:
    there = {name for rows in panels.values() for name in rows}
    names = [name for name in findings.contestants(document) if name in there]
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    made = style.figure(
        document,
        [row for row in document["costs"] if row["cost"] in {panel.cost for panel in panels}],
        "What it costs beside the passes: start, call, memory",
        "A fresh process imports, compiles what it must, and answers; a tiny call; a large call's memory."
        " Left is better.",
        height=0.9 + down * (0.65 + 0.26 * len(names)),
    )
    every = made.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, (panel, rows) in zip(every, panels.items(), strict=False):
        _bars(axes, document, names, panel, {name: row[panel.figure] for name, row in rows.items()})
    every[0].set_yticks(range(len(names)), [style.label(document, name) for name in names])
    every[0].set_ylim(len(names) - 0.4, -0.6)
    for axes in every[len(panels) :]:
        axes.set_visible(False)
    return made


def _bars(
    axes: Axes, document: Document, names: Sequence[str], panel: Panel, values: dict[str, float]
) -> None:
    low, high = min(values.values()) / 3, max(values.values())
    high *= (high / low) ** 0.25  # the numbers at the bars' ends need room
    axes.set_title(panel.title)
    axes.grid(axis="y", visible=False)
    for y, name in enumerate(names):
        if name in values:
            axes.barh(y, values[name] - low, left=low, height=0.72, color=style.color(document, name))
            style.note(axes, style.quantity(values[name], panel.units), (values[name], y), 4)
        else:
            style.note(axes, "not measured", (low, y), 4, style.MUTED)
    style.log_axis(axes.xaxis, low, high, "")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.quantity(value, panel.units)))


def scaling(document: Document) -> Iterator[tuple[str, Figure]]:
    """A panel for each shape: bytes per second against threads, where these were varied."""
    rows = [row for row in document["costs"] if row["cost"] == "scaling"]
    panels: Shapes = {}
    for row in rows:
        if row["median_s"]:
            speed = 8e-9 * row["n"] * row["c"] / row["median_s"]  # float32: four bytes read, four written
            panels.setdefault((row["n"], row["c"]), {}).setdefault(row["contestant"], {})[row["threads"]] = (
                speed
            )
    if any(len(speeds) > 1 for lines in panels.values() for speeds in lines.values()):
        yield "scaling", _scaling(document, rows, panels)


def _scaling(document: Document, rows: Sequence[Row], panels: Shapes) -> Figure:
    made = style.figure(
        document,
        rows,
        "What more threads bring: loss and gradient, float32",
        "The matrix read and written per second; a fastest copy of it, on as many threads, is the limit."
        " Up is better.",
        height=4.4,
    )
    every = made.subplots(1, len(panels), sharey=True, squeeze=False).ravel()
    speeds = [speed for lines in panels.values() for found in lines.values() for speed in found.values()]
    for axes, ((n, c), found) in zip(every, panels.items(), strict=True):
        lines = [
            Line(name, _named(document, name), sorted(of.items()), style.line(document, name))
            for name, of in found.items()
        ]
        for line in lines:
            axes.plot(*zip(*line.points, strict=True), **line.look)
        _thread_axis(axes, sorted({threads for of in found.values() for threads in of}))
        style.log_axis(axes.yaxis, min(speeds) / 1.5, max(speeds) * 1.5, "{:g}")
        axes.set_title(f"{n} rows of {c} classes")
        style.name_lines(axes, lines)
    every[0].set_ylabel("GB/s")
    return made


def _named(document: Document, name: str) -> str:
    return "the fastest copy" if name == "copy" else style.label(document, name)


def _thread_axis(axes: Axes, threads: Sequence[float]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(min(threads) / 1.15, max(threads) * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(threads))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:.0f}"))
    axes.set_xlabel("threads")
