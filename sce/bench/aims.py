"""What the CPU backend aims at, and how near a document shows it to come.

Each aim is a bound, the figures of a document that it is about, and what is in the way where it is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from . import findings
from .findings import Document, Row

BACKEND = "cpu"
_UNITS = {"x": 1.0, "%": 100.0, "us": 1e6, "s": 1.0, "MB": 1e-6}


class Figure(NamedTuple):
    value: float
    where: str  # "C = 1000"


class Aim(NamedTuple):
    what: str
    bound: float
    unit: Literal["x", "%", "us", "s", "MB"]
    find: Callable[[Document], Iterator[Figure]]
    obstacle: str  # what is in the way where it is missed
    least: bool = False  # the bound is the least that will do


class Outcome(NamedTuple):
    """An aim and its figures, the best first; none where the document has not measured it."""

    aim: Aim
    figures: tuple[Figure, ...]

    @property
    def missed(self) -> tuple[Figure, ...]:
        aim = self.aim
        return tuple(f for f in self.figures if (f.value < aim.bound if aim.least else f.value > aim.bound))

    @property
    def verdict(self) -> str:
        if not self.figures:
            return "not measured"
        if not self.missed:
            return "met"
        met = len(self.figures) - len(self.missed)
        return f"met in {met} of {len(self.figures)}" if met else "missed"

    @property
    def bound(self) -> str:
        return f"{'at least' if self.aim.least else 'at most'} {in_unit(self.aim.bound, self.aim.unit)}"

    @property
    def measured(self) -> str:
        """The best figure and the worst."""
        told = [f"{in_unit(f.value, self.aim.unit)} ({f.where})" for f in self.figures]
        return " to ".join(dict.fromkeys([told[0], told[-1]])) if told else ""


def outcomes(document: Document) -> list[Outcome]:
    """Every aim, as this document shows it."""
    found = []
    for aim in AIMS:
        figures = sorted(aim.find(document), key=lambda figure: figure.value, reverse=aim.least)
        found.append(Outcome(aim, tuple(figures)))
    return found


def in_unit(value: float, unit: str) -> str:
    """1.25 x, +40 %, 15 us."""
    value *= _UNITS[unit]
    told = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{'+' if unit == '%' and value > 0 else ''}{told} {unit}"


def _tasks(
    document: Document, op: str, dtype: str, layout: str = "rows", classes: range = range(1 << 30)
) -> Iterator[list[Row]]:
    for key, rows in findings.plain(document).items():
        if key == (op, dtype, layout, "memory"):
            yield from (task for task in findings.tasks(rows) if task[0]["c"] in classes)


def _over_limit(
    op: str, dtype: str, buffers: str, layout: str = "rows", classes: range = range(1 << 30)
) -> Callable[[Document], Iterator[Figure]]:
    """Time over that of the copy or of the read."""

    def find(document: Document) -> Iterator[Figure]:
        for task in _tasks(document, op, dtype, layout, classes):
            row = findings.of(task, BACKEND, buffers)
            limit = findings.of(task, "read" if op == "loss" else "copy")
            if row and limit:
                yield Figure(row["median_s"] / limit["median_s"], f"C = {row['c']}")

    return find


def _ahead(buffers: str, middle: bool) -> Callable[[Document], Iterator[Figure]]:
    """The strongest peer's time over ours. Classes from 16 to 64 have a bound of their own."""

    def find(document: Document) -> Iterator[Figure]:
        for task in _tasks(document, "loss_and_grad", "float32"):
            row = findings.of(task, BACKEND, buffers)
            if row and row["speed_up_over_peers"] and (16 <= row["c"] <= 64) == middle:
                yield Figure(row["speed_up_over_peers"], f"C = {row['c']}")

    return find


def _of_float32(*dtypes: str) -> Callable[[Document], Iterator[Figure]]:
    """Time over float32's for as many elements; in units of their own copies, as they are minutes apart."""

    def find(document: Document) -> Iterator[Figure]:
        per_element = {}
        for dtype in ("float32", *dtypes):
            for task in _tasks(document, "loss_and_grad", dtype):
                row = findings.of(task, BACKEND, "reused")
                if row and (copied := findings.copied(row)):
                    per_element[dtype, row["c"]] = copied / (row["n"] * row["c"])
        for (dtype, c), value in per_element.items():
            if dtype != "float32" and ("float32", c) in per_element:
                yield Figure(value / per_element["float32", c], f"{dtype}, C = {c}")

    return find


def _options(*chosen: str) -> Callable[[Document], Iterator[Figure]]:
    """What an option adds; a distribution, in place of labels one more matrix, by the byte."""

    def find(document: Document) -> Iterator[Figure]:
        for option, costs in findings.option_costs(document).items():
            for c, cost in costs.items() if option in chosen else ():
                own = 3 * 4 * c / (2 * 4 * c + 8) if option == "distribution" else 1.0
                yield Figure((1 + cost) / own - 1, f"{option}, C = {c}")

    return find


def _cost(what: str, cache: str | None = None) -> Callable[[Document], Iterator[Figure]]:
    def find(document: Document) -> Iterator[Figure]:
        for cost in document["costs"]:
            if (cost["cost"], cost["contestant"], cost["status"]) == (what, BACKEND, "ok") and (
                cost["cache"] == cache
            ):
                yield Figure(cost["median_s"], f"{cost['n']} x {cost['c']}")

    return find


def _memory(document: Document) -> Iterator[Figure]:
    for cost in document["costs"]:
        if (cost["cost"], cost["contestant"], cost["status"]) == ("memory", BACKEND, "ok"):
            yield Figure(cost["bytes"] / document["machine"]["threads"], f"C = {cost['c']}")


_COMPUTING = (
    "computing: exponentials (half of it), their float64 sum, the gradient's products and a maximum take a"
    " core about as long as a copy takes the memory, and the two overlap in part only"
)
_A_ROW = (
    "a row costs as much as some ten of its classes: its exponential, logarithm and quotients in float64,"
    " its label, its loss, and its way into vectors and out of them"
)
_ONE_WAY = range(128, 1 << 30)

AIMS = (
    Aim(
        "loss and gradient, float32, from 128 classes on: time over a copy",
        1.25, "x", _over_limit("loss_and_grad", "float32", "reused", classes=_ONE_WAY), _COMPUTING,
    ),
    Aim(
        "the same in place",
        1.25, "x", _over_limit("loss_and_grad", "float32", "in place", classes=_ONE_WAY), _COMPUTING,
    ),
    Aim(
        "loss alone, float32, from 128 classes on: time over a read",
        1.3, "x", _over_limit("loss", "float32", "none", classes=_ONE_WAY),
        "computing: exponentials and their sum take a core longer than a read takes the memory",
    ),
    Aim(
        "few classes, up to 64: time over a copy",
        4.0, "x", _over_limit("loss_and_grad", "float32", "reused", classes=range(65)), _A_ROW,
    ),
    Aim(
        "ahead of the strongest peer, reused", 5.0, "x", _ahead("reused", False), _A_ROW, least=True
    ),
    Aim(
        "the same, reused, 16 to 64 classes", 3.0, "x", _ahead("reused", True), _A_ROW, least=True
    ),
    Aim(
        "ahead of the strongest peer, fresh memory", 3.0, "x", _ahead("fresh", False),
        "the system maps and clears the memory of each new gradient, for all alike: little is left to win",
        least=True,
    ),
    Aim(
        "the same, fresh memory, 16 to 64 classes", 2.0, "x", _ahead("fresh", True),
        "the system maps and clears the memory of each new gradient, for all alike: little is left to win",
        least=True,
    ),
    Aim(
        "float16 and bfloat16: time over that of float32",
        0.7, "x", _of_float32("float16", "bfloat16"),
        "computing: it is float32's, and the conversions come on top; half the bytes save what they cost",
    ),
    Aim(
        "float64, from 128 classes on: time over a copy",
        1.3, "x", _over_limit("loss_and_grad", "float64", "reused", classes=_ONE_WAY),
        "computing: an exponential of 16 operations for 8 logits, and a maximum that is found first",
    ),
    Aim(
        "an option: what it adds",
        0.1, "%",
        _options(
            "class weights", "sample weights", "label smoothing", "distribution", "ignored labels", "z-loss",
            "temperature", "logit bias",
        ),
        "temperature and bias: a second word for each logit, or the exponential would be off; smoothing: a"
        " float64 sum of the logits; a distribution: half as many bytes again; whatever has few classes: the"
        " row's own cost",
    ),
    Aim(
        "a soft cap: what it adds", 0.4, "%", _options("soft cap"),
        "its tanh is taken in float64, half as many logits to a vector, with a quotient and a second"
        " exponential each",
    ),
    Aim(
        "class axis 1 of 4, float32: time over a copy",
        2.0, "x", _over_limit("loss_and_grad", "float32", "reused", "channels"),
        "classes are a page apart: the processor fetches nothing ahead, and a line is written in two goes",
    ),
    Aim(
        "one warm call", 15e-6, "us", _cost("call"),
        "Python: the checks of 17 arguments, and a dozen of NumPy's calls",
    ),
    Aim(
        "from nothing to the first answer, warm kernel cache", 1.2, "s", _cost("first_answer", "warm"),
        "the import of Numba",
    ),
    Aim(
        "the same, empty kernel cache", 6.0, "s", _cost("first_answer", "empty"),
        "LLVM's compilation of one kernel, on one thread",
    ),
    Aim(
        "memory beside inputs and answer, for each thread", 1e6, "MB", _memory,
        "exponentials of a tile of rows",
    ),
)  # fmt: skip
