"""Sizes: class counts around the widths of vectors and blocks, row counts from none to many."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, LOSS, Case, cast, unavailable

# Around powers of two (vector widths, unrolled loops, warps), block sizes, and a real vocabulary's tail.
_CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257,
            511, 513, 1000, 1025, 4097)  # fmt: skip
_ROWS = (0, 1, 2, 5, 64, 257)
_LARGE = {"float16": (3, 9001), "bfloat16": (2, 70001), "float32": (2, 50257), "float64": (2, 32771)}
# Enough for several threads and blocks: some backends give a thread 2**18 elements at a time.
_MANY = ((20_000, 3), (4_099, 129), (600, 1_025))
_BYTE_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def shapes() -> Iterator[Case]:
    for dtype in DTYPES:
        for classes in _CLASSES:
            yield _index("shapes", dtype, 5, classes, BOTH, "none")
            yield _soft("shapes", dtype, 3, classes, BOTH, "none")
            yield _index("shapes", dtype, 4, classes, FULL, "mean")
            yield _index("shapes", dtype, 4, classes, LOSS, "sum")
            yield _soft("shapes", dtype, 2, classes, FULL, "sum")
        for rows in _ROWS:
            for reduction in ("none", "sum", "mean"):
                yield _index("shapes", dtype, rows, 6, FULL, reduction)
                yield _soft("shapes", dtype, rows, 6, BOTH, reduction)
        for rows, classes in (*_MANY, _LARGE[dtype]):
            yield _index("shapes", dtype, rows, classes, BOTH, "mean")
            if (rows, classes) != _MANY[1]:  # takes long, and tells nothing that the others do not
                yield _soft("shapes", dtype, rows, classes, BOTH, "mean")
        yield from _targets(dtype)


def _targets(dtype: str) -> Iterator[Case]:
    """Every integer type of labels, every floating type of distributions, in either byte order."""
    for kind in _INTEGERS:
        for order in _BYTE_ORDERS:
            name = f"{dtype} labels {order}{kind}"
            rng = data.generator(name)
            y = data.index(rng, 7, 120).astype(np.dtype(kind).newbyteorder(order))
            yield _case("targets", name, dtype, data.normal(rng, 7, 120), y)
    name = f"{dtype} strided labels"
    rng = data.generator(name)
    y = data.index(rng, 14, 9)[::-2]
    yield _case("targets", name, dtype, data.normal(rng, 7, 9), y)
    for soft in DTYPES:
        name = f"{dtype} distribution of {soft}"
        rng = data.generator(name)
        x, y = data.normal(rng, 6, 19), cast(data.simplex(rng, 6, 19), soft)
        yield _case("targets", name, dtype, x, y, skip=unavailable(soft))
        if soft != "bfloat16":
            yield _case("targets", f"{name} swapped", dtype, x, y.astype(y.dtype.newbyteorder()))


def _index(group: str, dtype: str, rows: int, classes: int, outputs: tuple[str, ...], reduction: str) -> Case:
    name = f"{dtype} index {rows}x{classes} {reduction} {len(outputs)} outputs"
    rng = data.generator(name)
    y = data.index(rng, rows, classes)
    return _case(group, name, dtype, data.normal(rng, rows, classes), y, outputs, reduction)


def _soft(group: str, dtype: str, rows: int, classes: int, outputs: tuple[str, ...], reduction: str) -> Case:
    name = f"{dtype} distribution {rows}x{classes} {reduction} {len(outputs)} outputs"
    rng = data.generator(name)
    soft = "float64" if dtype == "float64" else "float32"
    y = cast(data.simplex(rng, rows, classes), soft)
    return _case(group, name, dtype, data.normal(rng, rows, classes), y, outputs, reduction)


def _case(
    group: str,
    name: str,
    dtype: str,
    x: Array,
    y: Array,
    outputs: tuple[str, ...] = BOTH,
    reduction: str = "none",
    skip: str | None = None,
) -> Case:
    return Case(
        group, name, cast(x, dtype), y, {"reduction": reduction}, outputs, skip=unavailable(dtype) or skip
    )
