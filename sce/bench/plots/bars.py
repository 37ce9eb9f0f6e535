"""How far ahead of each peer, and what each option costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sce.bench import findings
from sce.bench.findings import Document, Row

from . import style

_ROW = 0.25  # inches that a bar takes with the space around it
_COLUMNS = 3
_SHADES = ("#9ecae8", "#3d8fcb", "#004a7f", "#00274d")  # of our colour: from few classes to many


def peers(document: Document) -> Iterator[tuple[str, Figure]]:
    """For float32, a figure for each operation: a panel for each peer, a bar for each C."""
    name = findings.lead(document)
    for (_, dtype, layout, where), rows in findings.plain(document).items():
        there = {row["contestant"] for row in findings.measured(rows) if findings.is_peer(row)}
        who = [peer for peer in findings.contestants(document) if peer in there]
        if (dtype, layout, where) == ("float32", "rows", "memory") and name and who:
            yield findings.plot_name("peers", rows[0]), _peers(document, rows, name, who)


def _peers(document: Document, rows: Sequence[Row], name: str, who: Sequence[str]) -> Figure:
    tasks = findings.tasks(rows)
    grad = rows[0]["op"] == "loss_and_grad"
    down = math.ceil(len(who) / _COLUMNS)
    made = style.figure(
        document,
        rows,
        f"How far ahead of each peer: {'loss and gradient' if grad else 'loss alone'}, float32",
        f"A peer's time over that of {style.label(document, name)}"
        + (" (bar: reused gradient; ring: fresh gradient)" if grad else "")
        + ". Right of 1 we are faster; hatched, the peer is.",
        height=1.3 + down * (0.6 + _ROW * len(tasks)),
    )
    panels = made.subplots(down, min(len(who), _COLUMNS), sharex=True, sharey=True, squeeze=False).ravel()
    every = [1.0]
    for axes, peer in zip(panels, who, strict=False):
        axes.set_title(peer, color=style.color(document, peer))
        every += [ratio for rows in tasks for ratio in _ratios(rows, name, peer)]
        for y, rows in enumerate(tasks):
            _speed_up(axes, y, rows, name, peer, style.color(document, peer))
        axes.axvline(1, color=style.INK, linewidth=1.2)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="x", labelbottom=True)
    room = (max(every) / min(every)) ** 0.3  # for the numbers at the bars' ends
    style.log_axis(
        panels[0].xaxis, min(every) / (room if min(every) < 1 else 1.2), max(every) * room, "{:g}x"
    )
    panels[0].set_yticks(range(len(tasks)), [f"C = {rows[0]['c']}" for rows in tasks])
    panels[0].set_ylim(len(tasks) - 0.4, -0.6)
    for axes in panels[len(who) :]:
        axes.set_visible(False)
    return made


def _ratios(rows: Sequence[Row], name: str, peer: str) -> list[float]:
    """The peer's time over ours: with a reused gradient, then with a fresh one."""
    theirs = findings.of(rows, peer)
    ours = dict.fromkeys(row["median_s"] for p in ("reused", "fresh") if (row := findings.of(rows, name, p)))
    return [theirs["median_s"] / seconds for seconds in ours] if theirs else []


def _speed_up(axes: Axes, y: int, rows: Sequence[Row], name: str, peer: str, color: str) -> None:
    """A bar from 1, and its number; a word where there is nothing to draw."""
    found = _ratios(rows, name, peer)
    if not found:
        status = next((row["status"] for row in rows if row["contestant"] == peer), "not entered")
        style.note(axes, status, (1, y), 5, style.MUTED)
        return
    ratio, ahead = found[0], found[0] >= 1
    axes.barh(
        y, ratio - 1, left=1, height=0.72, color=color if ahead else "white", edgecolor=color,
        linewidth=0 if ahead else 1, hatch=None if ahead else "////",
    )  # fmt: skip
    for fresh in found[1:]:
        axes.plot(fresh, y, "o", color=style.INK, markerfacecolor="white", markersize=3.8)
    text = f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x" if ahead else f"{ratio:.2f}x"
    style.note(axes, text, (max(found), y) if ahead else (min(found), y), 5 if ahead else -5)


def options(document: Document) -> Iterator[tuple[str, Figure]]:
    """A bar for each option and C, where the same task was measured without it."""
    costs = findings.option_costs(document)
    if costs:
        yield "options", _options(document, costs)


def _options(document: Document, costs: dict[str, dict[int, float]]) -> Figure:
    classes = sorted({c for found in costs.values() for c in found})
    made = style.figure(
        document,
        [row for row in document["results"] if row["option"] is not None],
        f"What an option costs: {style.label(document, findings.lead(document) or '')}, float32,"
        " loss and gradient",
        "Time with the option over that of the same task without it, less 1. Left is better.",
        height=1.4 + len(costs) * (0.1 + 0.17 * len(classes)),
    )
    axes = made.add_subplot()
    order = sorted(
        costs, key=lambda option: -max(costs[option].values())
    )  # the legend is where bars are short
    thick = 0.84 / len(classes)
    for i, c in enumerate(classes):
        found = {y + (i + 0.5) * thick - 0.42: costs[o][c] for y, o in enumerate(order) if c in costs[o]}
        shade = _SHADES[min(i, len(_SHADES) - 1)] if len(classes) > 1 else _SHADES[1]
        percent = [100 * cost for cost in found.values()]
        drawn = axes.barh(list(found), percent, height=thick * 0.9, color=shade, label=f"C = {c}")
        axes.bar_label(drawn, [f"{round(value):+d} %" for value in percent], padding=3, fontsize=8)
    axes.axvline(0, color=style.INK, linewidth=1.2)
    axes.grid(axis="y", visible=False)
    axes.set_yticks(range(len(order)), order)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    axes.set_xlabel("added to the time of the plain task")
    axes.legend(loc="lower right")
    return made
