"""Jacobians of softmax and log-softmax: sizes, layouts, confident rows, temperatures, special rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sce.backend import DTYPES, JACOBIANS, Array

from . import data
from .case import Case, Exact, cast, unavailable
from .cases_layouts import ARRANGE

_INF, _NAN = np.inf, np.nan
# Around the widths of vectors and of blocks; a Jacobian has C numbers for each of these.
_CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 18, 24, 31, 32, 33, 40, 63, 64, 65, 100, 127, 129, 257)
_SHAPES = (
    (0, 3), (1, 1), (33, 1), (15, 3), (16, 3), (17, 4), (1000, 3), (2_003, 6), (300, 16), (300, 17), (3, 363),
    (2, 600),
)  # fmt: skip


def jacobians() -> Iterator[Case]:
    for dtype in DTYPES:
        for shape in ((5, c) for c in _CLASSES):
            yield from _both(f"{dtype} Jacobians of {shape[0]}x{shape[1]}", dtype, _some(dtype, *shape))
        for n, classes in _SHAPES:
            yield from _both(f"{dtype} Jacobians of many {n}x{classes}", dtype, _some(dtype, n, classes))
        for name, arrange in ARRANGE.items():
            for classes in (3, 10, 40):
                x, axis = arrange(cast(_some(dtype, 36, classes), dtype))
                yield from _both(f"{dtype} Jacobians, {classes} classes {name}", dtype, x, {"axis": axis})
        for t in (0.25, 0.7, 3.0, 1e-20, 1e20, 1e-200, 1e200):
            for classes in (4, 30):
                x = _some(dtype, 9, classes)
                if dtype == "float64" or t in (0.25, 0.7, 3.0):
                    x = x * t if t > 1e100 or t < 1e-100 else x
                name = f"{dtype} Jacobians of {classes} classes at temperature {t}"
                yield from _both(name, dtype, x, {"temperature": t})
        yield from _confident(dtype)
        yield from _special(dtype)


def _some(dtype: str, rows: int, classes: int) -> Array:
    """Rows of all kinds: ordinary ones, sure ones, ties."""
    rng = data.generator(f"{dtype} Jacobians {rows}x{classes}")
    x = data.normal(rng, rows, classes)
    x[np.arange(rows), data.index(rng, rows, classes)] += rng.choice([0, 0, 20, 50], rows)
    x[3::7] = x[3::7].max(axis=1, keepdims=True, initial=0)
    return x


def _confident(dtype: str) -> Iterator[Case]:
    """x = (m, 0, -inf ..): 1 - p down to where it is far below an ulp of 1."""
    m = np.arange(-100.0, 101.0, 4.0)
    p, rest, n = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(m)), m.size
    for classes in (2, 6, 20):
        x = np.full((n, classes), -_INF)
        x[:, 0], x[:, -1] = m, 0.0
        full = np.zeros((n, classes, classes))
        full[:, 0, 0] = full[:, -1, -1] = p * rest
        full[:, 0, -1] = full[:, -1, 0] = -p * rest
        of_log = np.tile(np.eye(classes), (n, 1, 1))
        of_log[:, 1:, 0], of_log[:, :-1, -1] = -p[:, None], -rest[:, None]
        of_log[:, 0, 0], of_log[:, -1, -1] = rest, p
        exact = {"softmax_jacobian": full, "log_softmax_jacobian": of_log}
        yield from _both(f"{dtype} Jacobians of margins, {classes} classes", dtype, x, {}, exact)
    rows = np.array([[50.0, 0, 0], [88.7, -88.7, 0], [0, 88.7, 88.7], [-88.7, 0, 88.7], [1000, 0, 0]])
    for classes in (3, 21):
        x = np.full((len(rows), classes), -1000.0)
        x[:, :3] = rows
        yield from _both(f"{dtype} Jacobians of sure rows, {classes} classes", dtype, x)


def _special(dtype: str) -> Iterator[Case]:
    """NaN and +inf make a row NaN, and nothing else; a masked class has no part."""
    for classes in (4, 19):
        x = _some(dtype, 21, classes)
        x[1, 0], x[4, classes - 1], x[6, 2], x[7] = _NAN, _INF, -_NAN, -_INF
        x[9, 1], x[10, 1:], x[12, :-1] = -_INF, -_INF, -_INF
        nan = np.array([1, 4, 6, 7])
        masked = np.zeros((classes, classes))
        of_log = np.eye(classes)
        of_log[:, 0] = -1
        of_log[0, 0] = 0
        exact = {
            "softmax_jacobian": [(nan, _NAN), (10, masked), ((9, 1), 0.0), ((9, slice(None), 1), 0.0)],
            "log_softmax_jacobian": [(nan, _NAN), (10, of_log), ((9, 1, 1), 1.0), ((9, 0, 1), 0.0)],
        }
        yield from _both(f"{dtype} Jacobians of special rows, {classes} classes", dtype, x, {}, exact)


def _both(
    name: str,
    dtype: str,
    x: Array,
    options: dict[str, Any] | None = None,
    exact: dict[str, Any] | None = None,
) -> Iterator[Case]:
    for output in JACOBIANS:
        known = (exact or {}).get(output, ())
        known = [(..., known)] if isinstance(known, np.ndarray) else known
        yield Case(
            "Jacobians",
            f"{name}, {output}",
            x if x.dtype != np.float64 else cast(x, dtype),
            None,
            options or {},
            (output,),
            tuple(Exact(output, where, value) for where, value in known),
            output,
            skip=unavailable(dtype),
        )
