"""Where the contract names the answer: NaN, infinities, rows left out, empty means, ties, bad labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, LOSS, Case, Exact, cast, unavailable

_INF, _NAN = np.inf, np.nan
_N, _C = 9, 5
_ROW = 4  # the special row, between ordinary ones
_LABEL = 2

# Name, the special row (its label is class 2), what its loss is: a number, or None where only bounds say.
_SPECIAL: tuple[tuple[str, tuple[float, ...], float | None], ...] = (
    ("NaN at the target", (0, 1, _NAN, 1, 0), _NAN),
    ("NaN beside the target", (_NAN, 1, 0, 1, 0), _NAN),
    ("last is NaN", (0, 1, 0, 1, _NAN), _NAN),
    ("negative NaN", (0, -_NAN, 0, 1, 0), _NAN),
    ("all NaN", (_NAN,) * 5, _NAN),
    ("NaN and -inf", (_NAN, -_INF, -_INF, -_INF, -_INF), _NAN),
    ("NaN and +inf", (_NAN, _INF, 0, 0, 0), _NAN),
    ("+inf at the target", (0, 1, _INF, 1, 0), _NAN),
    ("+inf beside the target", (0, _INF, 1, 1, 0), _NAN),
    ("+inf and -inf", (-_INF, _INF, 1, 1, 0), _NAN),
    ("two +inf", (_INF, 0, _INF, 1, 0), _NAN),
    ("all -inf", (-_INF,) * 5, _NAN),
    ("-inf at the target", (0, 1, -_INF, 1, 0), _INF),
    ("-inf beside the target", (0, -_INF, 1, 1, 0), None),
    ("only the target is left", (-_INF, -_INF, 3, -_INF, -_INF), 0.0),
    ("only another class is left", (-_INF, 3, -_INF, -_INF, -_INF), _INF),
)


def edges() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _special_rows(dtype)
        yield from _masks(dtype)
        yield from _left_out(dtype)
        yield from _bad_labels(dtype)
        yield from _empty_means(dtype)


def _special_rows(dtype: str) -> Iterator[Case]:
    for name, row, loss in _SPECIAL:
        exact = []
        if loss is not None:
            exact.append(Exact("loss", _ROW, loss))
            exact.append(Exact("log_prob", _ROW, -loss))
        if loss is _NAN:
            exact.append(Exact("grad", _ROW, _NAN))
        for options in ({}, {"softcap": 8.0}, {"temperature": 2.0, "logit_bias": np.linspace(-1, 1, _C)}):
            title = f"{name}{''.join(f', {key}' for key in options)}"
            for outputs in (FULL, BOTH, LOSS):
                known = tuple(e for e in exact if e.output in outputs)
                yield _case(dtype, f"{title}, {len(outputs)} outputs", row, options, outputs, known)
            yield _case(dtype, f"{title}, distribution", row, options, FULL, soft=True)
        yield _case(
            dtype, f"{name}, smoothing and z-loss", row, {"label_smoothing": 0.1, "z_loss": 0.01}, FULL
        )
        yield _case(dtype, f"{name}, float32 or own out", row, {}, BOTH, out="own")
        yield from _without_target(dtype, name, row)
    yield _case(
        dtype,
        "smoothing over -inf",
        (0, -_INF, 1, 1, 0),
        {"label_smoothing": 0.1},
        FULL,
        (Exact("loss", _ROW, _INF),),
    )
    lse = (Exact("lse", _ROW, -_INF),)
    yield _case(dtype, "logsumexp of all -inf", (-_INF,) * 5, {}, FULL, lse)


def _without_target(dtype: str, name: str, row: tuple[float, ...]) -> Iterator[Case]:
    x = _batch(dtype, row)
    for function, output in (("softmax", "grad"), ("log_softmax", "log_softmax"), ("logsumexp", "lse")):
        yield Case(
            "edges",
            f"{dtype} {function}, {name}",
            x,
            None,
            {},
            (output,),
            (),
            function,
            skip=unavailable(dtype),
        )


def _masks(dtype: str) -> Iterator[Case]:
    """0 * inf is 0; a finite target on -inf costs +inf."""
    row = (0.0, -_INF, 0.0, -_INF, -_INF)  # two classes, equally likely
    half = (
        Exact("grad", (_ROW, 0), 0.5),
        Exact("grad", (_ROW, 2), -0.5),
        Exact("grad", (_ROW, [1, 3, 4]), 0.0),
    )
    log2 = (Exact("loss", _ROW, np.log(2)), *half)
    yield _case(dtype, "mask, index", row, {}, FULL, log2)
    y = _soft(dtype)
    y[_ROW] = [0, 0, 1, 0, 0]
    yield _case(dtype, "mask without target mass", row, {}, FULL, log2, y=y)
    y = y.copy()
    y[_ROW] = [0, 0.25, 0.75, 0, 0]
    yield _case(dtype, "mask with target mass", row, {}, FULL, (Exact("loss", _ROW, _INF),), y=y)
    gone = np.array([0, -_INF, 0, -_INF, -_INF])
    plain = (0.0, 3.0, 0.0, 1.0, -2.0)
    yield _case(dtype, "classes removed by the bias", plain, {"logit_bias": gone}, FULL, log2, mute=True)
    yield _case(
        dtype,
        "removed by the bias, soft cap",
        plain,
        {"logit_bias": gone, "softcap": 3.0},
        FULL,
        log2,
        mute=True,
    )
    target_gone = {"logit_bias": np.where(np.arange(_C) == _LABEL, -_INF, 0.0)}
    lost = (Exact("loss", _ROW, _INF), Exact("grad", (_ROW, _LABEL), -1.0))
    yield _case(dtype, "target removed by the bias", plain, target_gone, FULL, lost)
    weight = np.array([1.0, 1, 0, 1, 1])
    free = (Exact("loss", _ROW, 0.0), Exact("grad", _ROW, 0.0))
    row = (0, 1, -_INF, 1, 0)
    yield _case(dtype, "class weight 0 on a masked target", row, {"class_weight": weight}, FULL, free)


def _left_out(dtype: str) -> Iterator[Case]:
    """Ignored rows and rows of weight 0 give exactly 0, whatever they hold."""
    names = ("loss", "grad", "hess_diag", "z_loss", "log_prob", "correct")
    zero = tuple(Exact(name, _ROW, False if name == "correct" else 0) for name in names)
    weight = np.ones(_N)
    weight[_ROW] = 0
    for name, row, _ in _SPECIAL:
        for extra in ({}, {"z_loss": 0.1, "label_smoothing": 0.1, "class_weight": np.arange(1.0, 1 + _C)}):
            more = " with options" if extra else ""
            yield _case(
                dtype, f"ignored: {name}{more}", row, {"ignore_index": -1, **extra}, FULL, zero, label=-1
            )
            yield _case(dtype, f"weight 0: {name}{more}", row, {"sample_weight": weight, **extra}, FULL, zero)
        for out in ("own", "in place"):
            yield _case(
                dtype,
                f"ignored: {name}, out {out}",
                row,
                {"ignore_index": -1},
                BOTH,
                zero[:2],
                label=-1,
                out=out,
            )
        options = {"sample_weight": weight, "reduction": "mean"}
        yield _case(dtype, f"weight 0: {name}, distribution", row, options, FULL, (zero[1],), soft=True)
        options = {"ignore_index": -1, "reduction": "mean"}
        yield _case(dtype, f"ignored in a mean: {name}", row, options, BOTH, (zero[1],), label=-1)
    yield _case(
        dtype, "ignored class inside the range", (0, 1, 2, 1, 0), {"ignore_index": _LABEL}, FULL, zero
    )


def _bad_labels(dtype: str) -> Iterator[Case]:
    for label in (-1, _C, -100, 2**31, 2**40, -(2**63), 2**63 - 1):
        nan = tuple(Exact(name, _ROW, _NAN) for name in ("loss", "grad"))
        yield _case(
            dtype,
            f"label {label}, not validated",
            (0, 1, 2, 1, 0),
            {"validate": False},
            BOTH,
            nan,
            label=label,
        )
        more = {"validate": False, "label_smoothing": 0.1, "z_loss": 0.1, "ignore_index": 0}
        yield _case(
            dtype, f"label {label}, not validated, options", (0, 1, 2, 1, 0), more, FULL, nan, label=label
        )
    more = {"validate": False, "ignore_index": -1}
    yield _case(
        dtype, "ignored, not validated", (0, 1, 2, 1, 0), more, FULL, (Exact("loss", _ROW, 0.0),), label=-1
    )


def _empty_means(dtype: str) -> Iterator[Case]:
    """No row counts, or the weights add up to exactly 0: the loss the caller named, and a zero gradient."""
    balanced = np.array([1.0, -1, 2, -2, 0, 0, 4, -4, 0])
    ways: dict[str, dict[str, Any]] = {
        "all ignored": {"ignore_index": _LABEL},
        "weights 0": {"sample_weight": np.zeros(_N)},
        "weights cancel": {"sample_weight": balanced},
        "class weight 0": {"class_weight": np.array([1.0, 1, 0, 1, 1])},
        "denominator 0": {"denominator": 0.0},
    }
    zero = (Exact("loss", ..., 0.0), Exact("grad", ..., 0.0))
    for name, options in ways.items():
        exact: tuple[Exact, ...]
        for empty, loss in (("nan", _NAN), ("zero", 0.0)):
            exact = (Exact("loss", ..., loss), Exact("grad", ..., 0.0))
            options = {**options, "reduction": "mean", "empty": empty}
            for outputs in (BOTH, FULL):
                yield _case(
                    dtype,
                    f"empty mean: {name}, {empty}, {len(outputs)} outputs",
                    (0, 1, _NAN, 1, 0),
                    options,
                    outputs,
                    exact,
                    all_labels=_LABEL,
                )
        if name != "denominator 0":
            options = {**ways[name], "reduction": "mean", "denominator": 3.0}
            exact = zero if name != "weights cancel" else ()
            row = (0.0, 1.0, 0.0, 1.0, 0.0)
            yield _case(dtype, f"denominator given: {name}", row, options, FULL, exact, all_labels=_LABEL)
    for reduction, empty, loss in (("sum", "nan", 0.0), ("mean", "nan", _NAN), ("mean", "zero", 0.0)):
        for kind, y in (("index", np.zeros(0, int)), ("distribution", np.zeros((0, 3)))):
            yield Case(
                "edges",
                f"{dtype} no rows, {kind}, {reduction}, {empty}",
                cast(np.zeros((0, 3)), dtype),
                y,
                {"reduction": reduction, "empty": empty},
                FULL,
                (Exact("loss", ..., loss),),
                skip=unavailable(dtype),
            )


def _batch(dtype: str, row: tuple[float, ...]) -> Array:
    x = data.normal(data.generator(f"edges {dtype}"), _N, _C)
    x[_ROW] = row
    return cast(x, dtype)


def _soft(dtype: str) -> Array:
    """Distributions with no mass on class 1, where some special rows are masked."""
    y = data.simplex(data.generator(f"edges {dtype} soft"), _N, _C)
    y[_ROW, 1] = 0
    return cast(y, "float64" if dtype == "float64" else "float32")


def _case(
    dtype: str,
    name: str,
    row: tuple[float, ...],
    options: dict[str, Any],
    outputs: tuple[str, ...],
    exact: tuple[Exact, ...] = (),
    *,
    label: int = _LABEL,
    all_labels: int | None = None,
    soft: bool = False,
    y: Array | None = None,
    out: str | None = None,
    mute: bool = False,
) -> Case:
    """A batch of ordinary rows around a special one. `mute` keeps the labels off classes that are removed."""
    if y is None and soft:
        y = _soft(dtype)
    if y is None:
        y = data.index(data.generator(f"edges {dtype} labels"), _N, _C)
        y[_ROW] = label
        if mute:
            y[y != _LABEL] = 0
        if all_labels is not None:
            y[:] = all_labels
    return Case(
        "edges",
        f"{dtype} {name}",
        _batch(dtype, row),
        y,
        {"reduction": "none", **options},
        outputs,
        exact,
        out=out,
        skip=unavailable(dtype),
    )
