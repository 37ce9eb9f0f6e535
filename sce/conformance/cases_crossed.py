"""Options crossed with layouts and sizes: what a backend gets right for (12, 10) it may get wrong elsewhere.

Each layout meets every option, in pairs: it plays a round of a tournament, in which each option meets one
other, and the next layout plays the next round. So each option meets each layout, and each pair some of them.
Each size meets every option alone. The rest (targets, special rows, where the gradient goes) is drawn, the
same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
from numpy.random import Generator

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, LOSS, Case, cast, unavailable
from .cases_layouts import ARRANGE, places

# Rows (multiples of 12) and classes: small; more classes than a vector block or a lookup on the stack; longer
# than a block; more rows than a block; more than two chunks of 2**18 elements, padding included.
SIZES: dict[str, tuple[int, int]] = {
    "small": (12, 10),
    "C > 130": (24, 137),
    "C > 1024": (12, 1153),
    "N > 1000": (1008, 7),
    "chunks": (8004, 3),
}
# A distribution has no ignored class. Even in number, so that each has a partner in every round.
OPTIONS = (
    "class_weight", "sample_weight", "ignore_index", "label_smoothing", "temperature", "softcap",
    "logit_bias", "z_loss", "reduction", "denominator", "empty", "grad_scale", "out", "validate",
)  # fmt: skip


def crossed() -> Iterator[Case]:
    for dtype in DTYPES:
        sizes, arrangements = cycle(SIZES), cycle(ARRANGE)
        for number, layout in enumerate(ARRANGE):
            for pair in _round(number):
                for names in _together(pair):
                    yield _case(dtype, layout, next(sizes), names, BOTH)
            next(sizes)  # another size for the same place in the next round
        for size in SIZES:
            for number, name in enumerate(OPTIONS):
                for target in range(2):
                    outputs = (FULL, BOTH, LOSS)[number % 3] if name != "out" else BOTH
                    yield _case(dtype, next(arrangements), size, (name,), outputs, target)
        for name in ("class_weight", "sample_weight"):  # chunks of long rows take long
            yield _case(dtype, next(arrangements), "chunks", (name,), BOTH, 0, shape=(1368, 129))


def _round(number: int) -> Iterator[tuple[str, str]]:
    """The circle method: the first stays, the others move on by one."""
    first, *others = OPTIONS
    turn = number % len(others)
    table = [first, *others[turn:], *others[:turn]]
    half = len(table) // 2
    yield from zip(table[:half], reversed(table[half:]), strict=True)


def _together(pair: tuple[str, str]) -> tuple[tuple[str, ...], ...]:
    """A denominator is legal for means alone: then one case for each of the two."""
    return tuple((name,) for name in pair) if set(pair) == {"reduction", "denominator"} else (pair,)


def _case(
    dtype: str,
    layout: str,
    size: str,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    target: int = 0,
    shape: tuple[int, int] | None = None,
) -> Case:
    rows, classes = shape or SIZES[size]
    title = f"{dtype} {layout}, {rows}x{classes}, {' + '.join(names)}"
    rng = data.generator(title)
    index = "ignore_index" in names or (target == 0 and (len(names) == 1 or rng.random() < 0.6))
    title = f"{title}, {'index' if index else 'distribution'}, {len(outputs)} outputs"
    options: dict[str, Any] = {"reduction": rng.choice(["none", "none", "mean"]).item()}
    for name in names:
        options |= _setting(rng, name, rows, classes, names)
    canonical, labels = _rows(rng, rows, classes, options)
    x, axis = ARRANGE[layout](cast(canonical, dtype))
    rows_shape = np.moveaxis(x, axis, -1).shape[:-1]
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(rows_shape)
    y = labels.reshape(rows_shape)
    if not index:
        options.pop("ignore_index", None)
        soft = cast(_distribution(rng, canonical), "float64" if dtype == "float64" else "float32")
        y = np.moveaxis(soft.reshape(*rows_shape, classes), -1, axis)
        y = y if rng.random() < 0.5 else np.ascontiguousarray(y)
    out = rng.choice(list(places(x, dtype))).item() if "out" in names else None
    return Case("crossed", title, x, y, options | {"axis": axis}, outputs, out=out, skip=unavailable(dtype))


def _setting(rng: Generator, name: str, rows: int, classes: int, names: tuple[str, ...]) -> dict[str, Any]:
    if name == "class_weight":
        return {name: rng.uniform(0.5, 3, classes) * rng.choice([1, 1, 1, -1], classes)}
    if name == "sample_weight":
        weight = rng.uniform(0.5, 3, rows) * rng.choice([1, 1, 1, -1], rows)
        weight[_some(rng, rows)] = 0
        return {name: weight}
    if name == "logit_bias":
        bias = rng.normal(size=classes) * 3
        if "label_smoothing" not in names:  # which would make every loss infinite
            bias[-1] = -np.inf
        return {name: bias}
    if name == "denominator":
        return {name: rng.choice([7.5, -300.0]).item(), "reduction": "mean"}
    if name == "empty":
        return {name: "zero", "reduction": "mean"} | ({"denominator": 0.0} if "denominator" in names else {})
    values: dict[str, tuple[Any, ...]] = {
        "ignore_index": (-100, 0),
        "label_smoothing": (0.1, 0.5),
        "temperature": (0.7, 3.0),
        "softcap": (5.0, 30.0),
        "z_loss": (1e-2, 0.1),
        "reduction": ("sum",),
        "grad_scale": (1000.0, -0.3),
        "validate": (False,),
    }
    return {} if name == "out" else {name: values[name][int(rng.integers(len(values[name])))]}


def _rows(rng: Generator, rows: int, classes: int, options: dict[str, Any]) -> tuple[Array, Array]:
    """Ordinary rows, among them ones that are confident, masked, ignored, NaN, or have a label out of range.

    What makes a loss NaN or infinite stays out of reductions, unless its row is left out.
    """
    x, labels = data.normal(rng, rows, classes), data.index(rng, rows, classes - 1)
    sure = _some(rng, rows)
    x[sure, labels[sure]] += data.CONFIDENT
    single = options["reduction"] == "none"
    if single or "label_smoothing" not in options:
        masked = _some(rng, rows)
        x[masked, (labels[masked] + 1) % (classes - 1)] = -np.inf
    if single:
        x[_some(rng, rows), int(rng.integers(classes))] = np.nan
        if options.get("validate") is False:
            labels[_some(rng, rows)] = rng.choice([-1, classes, 2**40])
    if "ignore_index" in options:
        labels[_some(rng, rows)] = options["ignore_index"]
        x[np.flatnonzero(labels == options["ignore_index"])[::2], 0] = np.nan
    if "sample_weight" in options:
        x[np.flatnonzero(options["sample_weight"] == 0)[::2], 0] = np.nan
    return x, labels


def _some(rng: Generator, rows: int) -> Array:
    """A few rows, but not the first: one of the layouts is made of that alone."""
    return 1 + rng.choice(rows - 1, max(1, rows // 40), replace=False)


def _distribution(rng: Generator, x: Array) -> Array:
    """Half of them one-hot; no mass on the last class, which biases remove, nor on masked ones."""
    y = data.simplex(rng, *x.shape)
    y[::2] = np.eye(x.shape[1] - 1, x.shape[1])[data.index(rng, len(y), x.shape[1] - 1)][::2]
    y[:, -1] = 0
    y[np.isneginf(x)] = 0
    return y
