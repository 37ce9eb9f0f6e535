"""Ties of the largest logit, rows of one class, and numbers at the ends of the range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sce.backend import DTYPES

from .case import BOTH, FULL, LOSS, Case, Exact, cast, unavailable

_INF, _NAN = np.inf, np.nan


def limits() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _ties(dtype)
        yield from _one_class(dtype)
        yield from _underflow(dtype)
        yield from _gradient_scales(dtype)


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


def _underflow(dtype: str) -> Iterator[Case]:
    """Exponentials, probabilities and scales below the normal numbers, where np.seterr may raise."""
    x = cast([[0.0, -99.0], [-99.0, 0.0], [0.0, -87.5], [0.0, -720.0], [0.0, -750.0], [0.0, -30.0]], dtype)
    y = np.array([0, 0, 0, 0, 0, 1])
    tiny: dict[str, dict[str, Any]] = {
        "plain": {},
        "smoothing": {"label_smoothing": 0.1, "class_weight": np.array([1e-308, 1])},
        "weights": {"sample_weight": np.full(6, 1e-308), "class_weight": np.array([1e-20, 1])},
        "temperature": {"temperature": 0.5},
        "soft cap": {"softcap": 50.0},
        "bias": {"logit_bias": np.array([0.0, -10])},
        "z-loss": {"z_loss": 1e-3},
        "sum": {"reduction": "sum"},
        "mean": {"reduction": "mean"},
        "small gradient scale": {"grad_scale": 1e-40},
    }
    for name, options in tiny.items():
        for outputs in (FULL, BOTH, LOSS) if len(options) < 2 else (BOTH, LOSS):
            title = f"{dtype} underflow, {name}, {len(outputs)} outputs"
            chosen = {"reduction": "none", **options}
            yield Case("underflow", title, x, y, chosen, outputs, skip=unavailable(dtype))


def _gradient_scales(dtype: str) -> Iterator[Case]:
    """One factor of the gradient among others: 0 hides no NaN, a large one brings back a small slope."""
    x = cast([[0.5, 1.0, 0.0], [_NAN, 0.0, 1.0], [1.0, 0.0, -1.0]], dtype)
    y = np.array([1, 1, 2])
    known = (Exact("grad", 1, _NAN), Exact("grad", [0, 2], 0.0))
    for options in ({}, {"softcap": 3.0}, {"label_smoothing": 0.1}):
        title = f"{dtype} gradient scale 0 and NaN{''.join(f', {key}' for key in options)}"
        chosen = {"reduction": "none", "grad_scale": 0.0, **options}
        yield Case("edges", title, x, y, chosen, BOTH, known, skip=unavailable(dtype))
    # The slopes are below float32's normal numbers, the gradients in float32 are not.
    for cap, logit, scale in ((1.0, 45.0, 1e3), (1.0, 50.0, 1e6), (5.0, 230.0, 1e3), (1.0, 50.0, -1e20)):
        x = cast([[logit, 0.0, 0.3], [0.0, -logit, 0.3]], dtype)
        title = f"{dtype} slope of a cap of {cap:g} at {logit:g}, gradient scale {scale:g}"
        chosen = {"reduction": "none", "softcap": cap, "grad_scale": scale}
        yield Case("edges", title, x, np.array([1, 2]), chosen, BOTH, skip=unavailable(dtype))
