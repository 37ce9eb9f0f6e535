"""Ties of the largest logit, and rows of one class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sce.backend import DTYPES

from .case import FULL, Case, Exact, cast, unavailable

_INF, _NAN = np.inf, np.nan


def limits() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _ties(dtype)
        yield from _one_class(dtype)


def _ties(dtype: str) -> Iterator[Case]:
    """The lowest index wins, in any part of a long row, and the first NaN is the largest."""
    for classes in (2, 3, 8, 17, 100, 1025):
        x = np.zeros((6, classes))
        x[1, [classes // 2, -1]] = 1
        x[2, -1] = 1
        x[3] = -_INF
        x[4, classes // 2 :] = _NAN
        x[5, 1:] = -0.0
        best = [0, classes // 2, classes - 1, 0, classes // 2, 0]
        y = np.array([0, classes // 2, 0, 0, 0, 1])
        correct = [best[i] == y[i] for i in range(6)]
        exact = (Exact("argmax", ..., best), Exact("correct", ..., correct))
        yield Case(
            "edges",
            f"{dtype} ties of {classes}",
            cast(x, dtype),
            y,
            {"reduction": "none"},
            FULL,
            exact,
            skip=unavailable(dtype),
        )


def _one_class(dtype: str) -> Iterator[Case]:
    x = cast([[0.0], [-50.0], [1e3], [_NAN]], dtype)
    loss = [0, 0, 0, _NAN]
    column = np.array(loss)[:, None]
    plain = (Exact("loss", ..., loss), Exact("grad", ..., column))
    exact = (*plain, Exact("entropy", ..., loss), Exact("lse", slice(0, 3), [0, -50, 1e3]))
    for name, options, known in (
        ("plain", {}, exact),
        ("smoothing", {"label_smoothing": 0.3}, exact),
        ("bias and temperature", {"logit_bias": np.array([2.0]), "temperature": 2.0}, plain),
        ("z-loss", {"z_loss": 0.1}, ()),
    ):
        for kind, y in (("index", np.zeros(4, int)), ("distribution", np.ones((4, 1)))):
            yield Case(
                "edges",
                f"{dtype} one class, {name}, {kind}",
                x,
                y,
                {"reduction": "none", **options},
                FULL,
                known,
                skip=unavailable(dtype),
            )
