"""What the plots share: a colour per contestant, axes, labels that do not overlap, and the caption."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sce.bench import findings
from sce.bench.findings import Document, Row

# Okabe and Ito's colours, which the colour-blind can tell apart, darkened where they carry text. Markers tell
# the contestants apart once more. They are fixed by name: the same contestant looks the same in every plot.
_LOOKS = {
    "cpu": ("#0063a8", "o"),
    "cuda": ("#004a7f", "s"),
    "reference": ("#4aa3df", "v"),
    "copy": ("#1f2328", "d"),
    "torch": ("#c44e00", "s"),
    "torch.compile": ("#b97f00", "D"),
    "jax": ("#b0568a", "^"),
    "sklearn": ("#00815d", "P"),
    "numpy": ("#8a8a8a", "X"),
    "scipy": ("#4a4a4a", "v"),
}
_OTHERS = ("#7a5195", "#5c4033", "#2f4b7c", "#a05195")  # contestants that this file does not know
INK, MUTED, FAINT = "#1f2328", "#656d76", "#e3e6ea"
_WIDTH, _LINE = 9.6, 0.17  # inches: of a figure, of a line of the caption
_MARGIN = 0.012  # of a figure, as a share of it
_GAP = 0.05  # between two names of lines, as a share of the axis
_FEW = 6  # numbers that fit under an axis without being turned
_CAPTION, _REASON = 165, 90  # characters of a line, and of one contestant's reason
SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
_STYLE = {
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
}


@contextmanager
def applied() -> Iterator[None]:
    """This style over matplotlib's defaults; the user's own settings return afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


class Line(NamedTuple):
    contestant: str
    label: str
    points: list[tuple[float, float]]  # in the order of x
    look: dict[str, Any]


def color(document: Document, name: str) -> str:
    return _look(document, name)[0]


def line(document: Document, name: str) -> dict[str, Any]:
    """How a contestant's line looks: ours stands out."""
    drawn, marker = _look(document, name)
    lead = name == findings.lead(document)
    weight = (
        {"linewidth": 2.8, "markersize": 6.5, "zorder": 5} if lead else {"linewidth": 1.3, "markersize": 5}
    )
    return {"color": drawn, "marker": marker, "markeredgecolor": "white", **weight}


def _look(document: Document, name: str) -> tuple[str, str]:
    """(colour, marker) of a contestant."""
    if name in _LOOKS:
        return _LOOKS[name]
    unknown = [other for other in findings.contestants(document) if other not in _LOOKS]
    at = unknown.index(name) if name in unknown else 0
    return _OTHERS[at % len(_OTHERS)], "h"


def label(document: Document, name: str) -> str:
    """Our backends by the library's name: "cpu" alone would say nothing beside "torch"."""
    ours = {row["contestant"] for row in document["results"] if row["ours"]} - {"sce"}
    return f"sce {name}" if name in ours else name


def figure(
    document: Document, rows: Sequence[Row], title: str, subtitle: str, *, height: float = 5.2
) -> Figure:
    """A figure with title and caption; what is drawn into it is laid out between them."""
    lines = caption(document, rows)
    below, above = _LINE * len(lines) + 0.25, 0.78
    height += below
    made = Figure(figsize=(_WIDTH, height))
    made.text(_MARGIN, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    made.text(_MARGIN, 1 - 0.44 / height, subtitle, color=MUTED, va="top")
    text = "\n".join(lines)
    made.text(_MARGIN, 0.1 / height, text, fontsize=7.5, color=MUTED, va="bottom", linespacing=1.3)
    rectangle = (_MARGIN, below / height, 1 - 2 * _MARGIN, 1 - (above + below) / height)
    made.set_layout_engine("constrained", rect=rectangle)
    return made


def caption(document: Document, rows: Sequence[Row]) -> list[str]:
    """Machine and versions; then every contestant that none of the rows measures, and why."""
    facts = "; ".join([findings.machine(document), *findings.versions(document)])
    there = {row["contestant"] for row in findings.measured(rows)}
    absent: dict[str, list[str]] = {}
    for name in findings.contestants(document):
        if name not in there:
            row = next((row for row in rows if row["contestant"] == name), None)
            why = f"{row['status']}: {(row['why'] or '').rstrip('.')}" if row else "not entered"
            absent.setdefault(why, []).append(label(document, name))
    why_not = "; ".join(
        f"{', '.join(names)} ({textwrap.shorten(why, _REASON, placeholder=' ...')})"
        for why, names in absent.items()
    )
    wrapped = textwrap.wrap(facts, _CAPTION)
    return wrapped + (textwrap.wrap(f"Not shown: {why_not}.", _CAPTION) if why_not else [])


def class_axis(axes: Axes, classes: Sequence[float]) -> None:
    """C on a logarithmic axis: a tick where something was measured, its number beside its neighbours'."""
    low, high = min(classes) / 1.25, max(classes) * 1.25
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(classes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(NullFormatter())
    many = len(classes) > _FEW
    spec = axes.get_subplotspec()
    width = spec.get_gridspec().ncols if spec else 1
    at = [math.log(c / low) / math.log(high / low) for c in classes]
    for c, x in zip(classes, spread(at, 0.033 * width if many else 0.0, 0.0, 1.0), strict=True):
        axes.annotate(
            f"{c:.0f}", (x, 0), (4 if many else 0, -7), xycoords="axes fraction", textcoords="offset points",
            ha="right" if many else "center", va="top", rotation=45 if many else 0, rotation_mode="anchor",
        )  # fmt: skip
    axes.set_xlabel("C, number of classes", labelpad=38 if many else 18)


def log_axis(axis: Axis, low: float, high: float, unit: str) -> None:
    """A logarithmic axis over this range, its ticks as plain numbers in the unit."""
    axes, x = axis.axes, isinstance(axis, XAxis)
    (axes.set_xscale if x else axes.set_yscale)("log")
    (axes.set_xlim if x else axes.set_ylim)(low, high)
    digits = (1, 2, 5) if high / low < 500 else (1,)
    ticks = [digit * 10.0**power for power in range(-9, 13) for digit in digits]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: unit.format(value)))


def name_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Each line's name at its right end: read without going back and forth to a legend."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform(line.points[-1]) for line in lines]
    heights = spread([float(y) for _, y in ends], _GAP, 0.0, 1.0)
    for line, (x, y), height in zip(lines, ends, heights, strict=True):
        axes.annotate(
            line.label, (float(x), float(y)), xycoords="axes fraction", xytext=(1.03, height),
            textcoords="axes fraction", va="center", color=line.look["color"],
            fontweight="bold" if line.look["linewidth"] > 2 else "normal",
            arrowprops={"arrowstyle": "-", "color": FAINT, "shrinkA": 0, "shrinkB": 4, "relpos": (0, 0.5)},
        )  # fmt: skip


def note(axes: Axes, text: str, at: tuple[float, float], right: float, color: str = INK) -> None:
    """A number or a word beside a point, this many points to the right of it (or to the left)."""
    axes.annotate(
        text, at, (right, 0), textcoords="offset points", fontsize=8.5, color=color, va="center",
        ha="left" if right > 0 else "right",
    )  # fmt: skip


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the wanted ones, at least `gap` apart and within low and high: labels do not overlap."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    up = _pushed([wanted[i] for i in order], gap, low)
    down = [-x for x in _pushed([-wanted[i] for i in reversed(order)], gap, -high)][::-1]
    middle = _pushed([(a + b) / 2 for a, b in zip(up, down, strict=True)], gap, low)
    inside = [-x for x in _pushed([-x for x in reversed(middle)], gap, -high)][::-1]
    placed = dict(zip(order, inside, strict=True))
    return [placed[i] for i in range(len(wanted))]


def _pushed(ascending: Sequence[float], gap: float, floor: float) -> list[float]:
    placed = []
    for x in ascending:
        placed.append(max(x, floor))
        floor = placed[-1] + gap
    return placed


def quantity(value: float, units: Sequence[tuple[str, float]]) -> str:
    """Two digits and the largest unit that fits."""
    unit, size = next(((unit, size) for unit, size in units if value >= size), units[-1])
    return f"{value / size:.0f} {unit}" if value >= 9.95 * size else f"{value / size:.1f} {unit}"
