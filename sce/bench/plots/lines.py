"""Share of the machine's limit against the number of classes: of everyone, and of each dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sce.bench import findings
from sce.bench.findings import Document, Row

from . import style
from .style import Line

_DTYPES = {  # all are ours: shades of our colour
    "float64": ("#00274d", "s"),
    "float32": ("#0063a8", "o"),
    "float16": ("#58a5d8", "^"),
    "bfloat16": ("#a3cdea", "D"),
}
Panel = tuple[str, str, float, Sequence[Line]]  # title, unit, the line to draw across, lines
_POLICIES = {"reused": "-", "fresh": (0, (3, 1.4))}  # of the gradient's memory, by line style


def rooflines(document: Document) -> Iterator[tuple[str, Figure]]:
    """A figure for each operation and dtype that was measured on more than one C."""
    for (_, _, layout, where), rows in findings.plain(document).items():
        if (layout, where) == ("rows", "memory") and len({row["c"] for row in rows}) > 1:
            lines = [line for name in findings.contestants(document) for line in _lines(document, rows, name)]
            if lines:
                yield findings.plot_name("roofline", rows[0]), _roofline(document, rows, lines)


def _lines(document: Document, rows: Sequence[Row], name: str) -> Iterator[Line]:
    """Our leading backend with a reused and with a fresh gradient; everyone else at their best."""
    told_apart = name == findings.lead(document) and rows[0]["op"] == "loss_and_grad"
    for policy, dashes in _POLICIES.items() if told_apart else [(None, "-")]:
        points = []
        for task in findings.tasks(rows):
            row = findings.of(task, name, policy)
            share = findings.share_of_limit(task, row) if row else None
            if row and share:
                points.append((row["c"], 100 * share))
        if points:
            label = style.label(document, name) + (f", {policy} gradient" if policy else "")
            yield Line(name, label, sorted(points), {**style.line(document, name), "linestyle": dashes})


def _roofline(document: Document, rows: Sequence[Row], lines: Sequence[Line]) -> Figure:
    grad, dtype = rows[0]["op"] == "loss_and_grad", rows[0]["dtype"]
    limit = "copy" if grad else "read"
    made = style.figure(
        document,
        rows,
        f"How near to the memory's limit: {'loss and gradient' if grad else 'loss alone'}, {dtype}",
        f"Bytes that must move per second, over those of the fastest {limit} of the same matrix in the same"
        " run. Up is better.",
    )
    axes = made.add_subplot()
    _plot(axes, lines)
    values = [value for line in lines for _, value in line.points]
    axes.axhline(100, color=style.INK, linewidth=1.2, zorder=3)
    axes.annotate(
        f"the fastest {limit}: 100 %", (0.006, 100), xycoords=("axes fraction", "data"), xytext=(0, 4),
        textcoords="offset points", fontsize=8.5, fontweight="bold",
    )  # fmt: skip
    style.log_axis(axes.yaxis, min(values) / 1.25, max(140.0, max(values) * 1.1), "{:g} %")
    axes.set_ylabel(f"share of the fastest {limit}")
    style.name_lines(axes, lines)
    return made


def dtypes(document: Document) -> Iterator[tuple[str, Figure]]:
    """Our leading backend in every dtype: share of a copy, and how far ahead of the strongest peer."""
    name = findings.lead(document)
    every: list[Row] = []
    shares, ahead = [], []
    for (op, dtype, layout, where), rows in findings.plain(document).items():
        if name is None or (op, layout, where) != ("loss_and_grad", "rows", "memory"):
            continue
        every += rows
        best = [row for task in findings.tasks(rows) if (row := findings.of(task, name, "reused"))]
        shade, marker = _DTYPES.get(dtype, (style.MUTED, "h"))
        look = {"color": shade, "marker": marker, "markeredgecolor": "white", "linewidth": 2, "markersize": 7}
        points = [(row["c"], 100 * row["share_of_copy"]) for row in best if row["share_of_copy"]]
        shares.append(Line(name, dtype, sorted(points), look))
        points = [(row["c"], row["speed_up_over_peers"]) for row in best if row["speed_up_over_peers"]]
        ahead.append(Line(name, dtype, sorted(points), look))
    panels = [
        ("share of the fastest copy", "{:g} %", 100, [line for line in shares if line.points]),
        ("strongest peer's time over ours", "{:g}x", 1, [line for line in ahead if line.points]),
    ]
    if name is not None and len(panels[0][3]) > 1:
        yield "dtypes", _dtypes(document, every, name, [panel for panel in panels if panel[3]])


def _dtypes(document: Document, rows: Sequence[Row], name: str, panels: Sequence[Panel]) -> Figure:
    made = style.figure(
        document,
        rows,
        f"Every dtype: loss and gradient, {style.label(document, name)}, reused gradient",
        "How near to the fastest copy of the same matrix, and how far ahead of the strongest peer."
        " Up is better.",
        height=4.6,
    )
    for axes, (title, unit, limit, lines) in zip(
        made.subplots(1, len(panels), squeeze=False).ravel(), panels, strict=True
    ):
        _plot(axes, lines)
        values = [value for line in lines for _, value in line.points] + [limit]
        axes.axhline(limit, color=style.INK, linewidth=1.2)
        style.log_axis(axes.yaxis, min(values) / 1.4, max(values) * 1.4, unit)
        axes.set_ylabel(title)
    made.axes[0].legend(loc="lower right", ncols=2)
    return made


def _plot(axes: Axes, lines: Sequence[Line]) -> None:
    for line in lines:
        axes.plot(*zip(*line.points, strict=True), **line.look, label=line.label)
    style.class_axis(axes, sorted({c for line in lines for c, _ in line.points}))
