"""One logit per element: closed forms, options, layouts, sizes and edges of the binary loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, LOSS, Case, Exact, cast, unavailable
from .cases_layouts import ARRANGE, places

BINARY = ("loss", "grad", "hess_diag")
_TUPLES = (BINARY, BOTH, LOSS)
_INF, _NAN = np.inf, np.nan
_ROWS, _LABELS = 12, 10
# Lengths around a vector's and a block's, and one that takes more than a chunk.
_SIZES = (1, 2, 7, 8, 15, 16, 17, 31, 33, 127, 129, 511, 512, 513, 1025, 2049, 300_001)

_OPTIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "pos_weight": (
        ("a number", 2.5),
        ("0", 0.0),
        ("negative", -1.5),
        ("one per label", np.linspace(0.1, 3, _LABELS)),
    ),
    "sample_weight": (
        ("per element", np.linspace(-1, 2, _ROWS * _LABELS).reshape(_ROWS, _LABELS).round(1)),
        ("per sample", np.linspace(0, 3, _ROWS)),
    ),
    "ignore_index": (("a class", 0), ("-1", -1)),
    "label_smoothing": (("1", 1.0), ("0.1", 0.1)),
    "temperature": (("0.7", 0.7), ("4", 4.0)),
    "reduction": (("sum", "sum"), ("mean", "mean")),
    "denominator": (("-3", -3.0),),
    "empty": (("zero", "zero"),),
    "grad_scale": (("1000", 1000.0), ("-0.3", -0.3)),
    "hess_scale": (("2", 2.0),),
    "hess_min": (("0.05", 0.05),),
    "validate": (("off", False),),
}

# The logit, label 0 or 1, and the closed forms of loss, gradient and Hessian.
_SPECIAL = (
    (_INF, 1, 0.0, 0.0, 0.0),
    (_INF, 0, _INF, 1.0, 0.0),
    (-_INF, 0, 0.0, 0.0, 0.0),
    (-_INF, 1, _INF, -1.0, 0.0),
    (_NAN, 1, _NAN, _NAN, _NAN),
    (-_NAN, 0, _NAN, _NAN, _NAN),
    (0.0, 1, np.log(2), -0.5, 0.25),
    (-0.0, 0, np.log(2), 0.5, 0.25),
)


def binary() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _margins(dtype)
        yield from _crowd(dtype)
        yield from _options(dtype)
        yield from _layouts(dtype)
        yield from _sizes(dtype)
        yield from _targets(dtype)
        yield from _edges(dtype)
        yield from _empty_means(dtype)
    yield from _extreme()
    yield Case("binary", "binary lists", [0.5, -1.0], [True, False], {}, BOTH, (), "binary")


def _margins(dtype: str) -> Iterator[Case]:
    """Sure and surer: the loss is log1p(exp(-m)), the gradient 1 / (1 + exp(m)), down to subnormal ones."""
    m = np.arange(-120.0, 121.0, 4.0)
    p, rest = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(m))
    cost = np.log1p(np.exp(-np.abs(m))) + np.maximum(-m, 0)
    for label in (0, 1):
        exact = (
            Exact("loss", ..., cost if label else cost[::-1]),
            Exact("grad", ..., -rest if label else p),
            Exact("hess_diag", ..., p * rest),
        )
        for outputs in _TUPLES:
            known = tuple(e for e in exact if e.output in outputs)
            y = np.full(m.size, label)
            yield _case(dtype, f"margins of {label}, {len(outputs)} outputs", m, y, {}, outputs, known)
            soft = y.astype(np.float32)
            yield _case(dtype, f"margins of {label}., {len(outputs)} outputs", m, soft, {}, outputs, known)
        for options in ({"temperature": 0.5}, {"label_smoothing": 0.1}, {"pos_weight": 3.0}):
            yield _case(dtype, f"margins of {label}, {next(iter(options))}", m, y, options, BINARY)
    # y equal to p: the gradient is all cancellation, and the bound allows for no more than y's own rounding.
    yield _case(dtype, "targets near p", m / 8, cast(1 / (1 + np.exp(-m / 8)), "float64"), {}, BINARY)


def _crowd(dtype: str) -> Iterator[Case]:
    """Enough elements to meet an error that one in a thousand has."""
    rng = data.generator(f"{dtype} binary crowd")
    x = rng.normal(size=8000) * rng.choice([0.01, 1, 5, 30], size=8000)
    hard, soft = rng.integers(0, 2, 8000), rng.uniform(size=8000).astype(np.float32)
    for name, y in (("labels", hard), ("probabilities", soft)):
        for options in ({}, {"temperature": 0.7}, {"pos_weight": 1.7, "label_smoothing": 0.01}):
            more = "".join(f", {key}" for key in options)
            yield _case(dtype, f"crowd of {name}{more}", x, y, options, BINARY)
            yield _case(dtype, f"crowd of {name}{more}, sum", x, y, {**options, "reduction": "sum"}, BOTH)
    for name in DTYPES:
        yield _case(dtype, f"crowd of {name} probabilities", x, cast(soft, name), {}, BINARY, needs=name)


def _options(dtype: str) -> Iterator[Case]:
    chosen = [(name, title, value) for name, ways in _OPTIONS.items() for title, value in ways]
    for soft in (False, True):
        for one in chosen:
            for outputs in _TUPLES:
                yield from _with(dtype, soft, (one,), outputs)
        for two in combinations([(name, *ways[-1]) for name, ways in _OPTIONS.items()], 2):
            yield from _with(dtype, soft, two, BINARY if "hess" in two[0][0] + two[1][0] else BOTH)


def _with(dtype: str, soft: bool, settings: Any, outputs: tuple[str, ...]) -> Iterator[Case]:
    options = {name: value for name, _, value in settings}
    legal = not (soft and "ignore_index" in options)
    if "denominator" in options or "empty" in options:
        legal = legal and options.setdefault("reduction", "mean") == "mean"
    if not legal:
        return
    title = " + ".join(f"{name} {way}" for name, way, _ in settings)
    x, y = _rows(dtype, soft)
    if options.get("ignore_index") == -1:
        y[[1, 5], [2, 3]] = -1
        x[1, 2] = _NAN
    kind = "probabilities" if soft else "labels"
    yield _case(dtype, f"{kind}, {title}, {len(outputs)} outputs", x, y, options, outputs)


def _layouts(dtype: str) -> Iterator[Case]:
    weight = np.linspace(0, 2, _LABELS)
    for name, arrange in ARRANGE.items():
        x, labels = _rows(dtype, False)
        given, _ = arrange(cast(x, dtype))
        y, _ = arrange(labels)
        alike = np.ascontiguousarray(y)
        soft = np.ascontiguousarray(arrange(_rows(dtype, True)[1])[0], np.float32)
        of_last = np.linspace(1, 2, given.shape[-1]) if given.shape[-1] != _LABELS else weight
        options = {
            "pos_weight": of_last,
            "sample_weight": np.linspace(-1, 3, given[..., 0].size).reshape(given.shape[:-1]),
        }
        yield _plain(dtype, f"{name}, labels as laid out", given, y, {}, BINARY)
        yield _plain(dtype, f"{name}, contiguous labels", given, alike, options, BINARY)
        yield _plain(dtype, f"{name}, probabilities", given, soft, {}, BOTH)
        yield _plain(dtype, f"{name}, probabilities and options", given, soft, options, BOTH)
        for out in places(given, dtype):
            yield _plain(dtype, f"{name}, out {out}", given, alike, {}, BOTH, out)
    x = cast(data.normal(data.generator(f"{dtype} no axis"), 1, 1)[0, 0], dtype)
    for y in (np.asarray(1), np.asarray(0.25)):
        for reduction in ("none", "mean"):
            title = f"no axis, {y.dtype.kind}, {reduction}"
            yield _plain(dtype, title, x, y, {"reduction": reduction}, BINARY)


def _sizes(dtype: str) -> Iterator[Case]:
    for n in _SIZES:
        rng = data.generator(f"{dtype} binary {n}")
        x, y = rng.normal(size=n) * 4, rng.integers(0, 2, n)
        for reduction in ("none", "sum", "mean"):
            if n < 1000 or reduction == "mean":
                yield _case(dtype, f"{n} elements, {reduction}", x, y, {"reduction": reduction}, BOTH)
        if n < 10_000:
            weights = {"pos_weight": rng.uniform(1, 2, n), "sample_weight": rng.normal(size=n)}
            yield _case(dtype, f"{n} elements, weights", x, y, weights, BINARY)
    for shape in ((0,), (3, 0), (0, 4), (1, 1), (700, 3), (3, 700), (5, 1, 9)):
        rng = data.generator(f"{dtype} binary {shape}")
        x, y = rng.normal(size=shape) * 4, rng.uniform(size=shape).astype(np.float32)
        weights = {
            "pos_weight": rng.uniform(1, 2, shape[-1]),
            "sample_weight": rng.normal(size=shape[:-1] or shape),
        }
        for options in ({"reduction": "sum"}, weights):
            yield _case(dtype, f"shape {shape}, {len(options)} options", x, y, options, BOTH)


def _targets(dtype: str) -> Iterator[Case]:
    """Every type of label, and every type of probability; values outside [0, 1] are taken at their word."""
    x, labels = _rows(dtype, False)
    for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))):
        y = labels.astype(name)
        yield _case(dtype, f"{name} labels", x, y, {}, BINARY)
        missing = 255 if name.startswith("u") else -1
        if name != "bool":
            y = y.copy()
            y[::2, 3] = missing
            yield _case(dtype, f"{name} labels, {missing} ignored", x, y, {"ignore_index": missing}, BOTH)
    for name in DTYPES:
        soft = cast(_rows(dtype, True)[1], name)
        yield _case(dtype, f"{name} probabilities", x, soft, {}, BINARY, needs=name)
    wild = data.normal(data.generator(f"{dtype} wild"), _ROWS, _LABELS)
    for options in ({}, {"label_smoothing": 0.2}, {"pos_weight": 2.0, "reduction": "mean"}):
        yield _case(dtype, f"any y, {len(options)} options", x, wild.astype(np.float32), options, BINARY)


def _edges(dtype: str) -> Iterator[Case]:
    x, y, *known = (np.array(column) for column in zip(*_SPECIAL, strict=True))
    exact = tuple(Exact(name, ..., value) for name, value in zip(BINARY, known, strict=True))
    for target in (y, y.astype(np.float32)):
        kind = "labels" if target is y else "probabilities"
        for outputs in _TUPLES:
            found = tuple(e for e in exact if e.output in outputs)
            yield _case(dtype, f"edges, {kind}, {len(outputs)} outputs", x, target, {}, outputs, found)
        for options in (
            {"label_smoothing": 0.1},
            {"temperature": 0.5},
            {"pos_weight": 0.0},
            {"reduction": "sum"},
        ):
            yield _case(dtype, f"edges, {kind}, {next(iter(options))}", x, target, options, BINARY)
        zero = tuple(Exact(name, ..., 0.0) for name in BINARY)
        free = {"sample_weight": np.zeros(x.size), "hess_min": 0.5}
        yield _case(dtype, f"edges, {kind}, weight 0", x, target, free, BINARY, zero)
    ignored = {"ignore_index": -100, "hess_min": 0.5}
    yield _case(dtype, "edges, ignored", x, np.full(x.size, -100), ignored, BINARY, zero)
    soft = np.array([0.25, _NAN, 0.5, _INF, 2.0, 0.25, 0.0, 1.0])
    halves = tuple(Exact(name, 1, _NAN) for name in BINARY)
    yield _case(
        dtype,
        "edges, fractions",
        np.where(np.isnan(soft) | np.isinf(soft), 0.0, x),
        np.where(np.isinf(soft), _NAN, soft),
        {},
        BINARY,
        halves,
    )
    for label in (-1, 2, -100, 2**31, 2**40, -(2**63), 2**63 - 1):
        bad = np.array([0, 1, label, 1])
        nan = tuple(Exact(name, 2, _NAN) for name in BINARY)
        chosen = {"validate": False, "ignore_index": 0}
        title = f"label {label}, not validated"
        yield _case(dtype, title, [0.5, 1.0, 2.0, -1.0], bad, {"validate": False}, BINARY, nan)
        yield _case(dtype, f"{title}, options", [0.5, 1.0, 2.0, -1.0], bad, chosen, BINARY, nan)


def _empty_means(dtype: str) -> Iterator[Case]:
    x, y = np.array([1.0, _NAN, -2.0]), np.array([0, 1, 1])
    ways: dict[str, dict[str, Any]] = {
        "all ignored": {"ignore_index": 1},
        "weights cancel": {"sample_weight": np.array([1.0, -3.0, 2.0])},
        "weights 0": {"sample_weight": np.zeros(3)},
        "denominator 0": {"denominator": 0.0},
    }
    for name, options in ways.items():
        for empty, loss in (("nan", _NAN), ("zero", 0.0)):
            target = np.ones(3, int) if "ignore_index" in options else y
            known = (Exact("loss", ..., loss), Exact("grad", ..., 0.0))
            chosen = {**options, "reduction": "mean", "empty": empty}
            yield _case(dtype, f"empty mean: {name}, {empty}", x, target, chosen, BOTH, known)


def _extreme() -> Iterator[Case]:
    """1 / T^2 is beyond float64, or nearly; the Hessians are not: p (1 - p) or a weight makes up for it."""
    m = np.linspace(50.0, 600.0, 57)  # nearer to 0 they are infinite
    x, y = np.concatenate([m, -m]) * 1e-160, np.arange(2 * m.size) % 2
    for target in (y, y.astype(np.float32)):
        of = "labels" if target is y else "probabilities"
        options: dict[str, Any] = {"temperature": 1e-160}
        yield _case("float64", f"{of} at temperature 1e-160", x, target, options, BINARY)
        for dtype in ("float32", "float64"):
            near = np.linspace(-3.0, 3.0, 57) * (1.0 if dtype == "float32" else 1e160)
            ones = np.ones(57, target.dtype)
            options = {"temperature": 1e160, "pos_weight": 1e300}
            yield _case(dtype, f"{of} at temperature 1e160, pos_weight", near, ones, options, BINARY)
            options = {"temperature": 1e160, "sample_weight": np.full(57, 1e300)}
            yield _case(dtype, f"{of} at temperature 1e160, sample_weight", near, ones, options, BINARY)


def _rows(dtype: str, soft: bool) -> tuple[Array, Array]:
    """Ordinary elements, some sure, some wrong."""
    rng = data.generator(f"{dtype} binary")
    y = rng.integers(0, 2, (_ROWS, _LABELS))
    x = data.normal(rng, _ROWS, _LABELS)
    x[0] += np.where(y[0], 30, -30)
    x[1] -= np.where(y[1], 30, -30)
    return x, rng.uniform(size=y.shape).astype(np.float32) if soft else y


def _case(
    dtype: str,
    name: str,
    x: Any,
    y: Array,
    options: dict[str, Any],
    outputs: tuple[str, ...],
    exact: tuple[Exact, ...] = (),
    needs: str = "float32",
) -> Case:
    title, chosen = f"{dtype} binary {name}", {"reduction": "none", **options}
    skip = unavailable(dtype) or unavailable(needs)
    return Case("binary", title, cast(x, dtype), y, chosen, outputs, exact, "binary", skip=skip)


def _plain(
    dtype: str,
    name: str,
    x: Array,
    y: Array,
    options: dict[str, Any],
    outputs: tuple[str, ...],
    out: str | None = None,
) -> Case:
    title, chosen = f"{dtype} binary {name}", {"reduction": "none", **options}
    return Case("binary", title, x, y, chosen, outputs, (), "binary", out, unavailable(dtype))
