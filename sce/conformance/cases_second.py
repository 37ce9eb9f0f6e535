"""Second derivatives and derivatives along v: twins of the other families' cases, and their own edges.

What may go wrong with an option, a layout, a size or a special row goes wrong here by itself: so cases of the
gradient have a twin with the Hessian's diagonal, and one with the Hessian times v.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.random import Generator

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FUNCTIONS, Case, Exact, cast, unavailable

_INF, _NAN = np.inf, np.nan
_EVERY = {"pairs": 4, "crossed": 3, "layouts": 2}  # of these groups' cases one in so many has a twin
_FLOORS: tuple[dict[str, Any], ...] = (
    {},
    {"hess_scale": 2.0, "hess_min": 1e-16},
    {"hess_min": 0.05},
    {"hess_scale": -0.5},
    {"hess_scale": 1e3, "hess_min": -1e-3},
)
_ALONG = ("softmax_jvp", "log_softmax_jvp", "log_softmax_vjp")


def second(others: Iterable[Case]) -> Iterator[Case]:
    """Of the other families' cases, and after them."""
    yield from _twins(others)
    for dtype in DTYPES:
        yield from _left_out(dtype)
        yield from _special_v(dtype)
        yield from _two_classes(dtype)
        yield from _uniform(dtype)
        yield from _crowds(dtype)
        yield from _alone(dtype)
        yield from _extreme(dtype)


def _twins(others: Iterable[Case]) -> Iterator[Case]:
    floors, functions, turn = cycle(_FLOORS), cycle(_ALONG), dict.fromkeys(_EVERY, 0)
    for case in others:
        if case.function == "softmax":
            yield _along(case, next(functions))
        if case.function != "evaluate" or case.outputs != BOTH:
            continue
        turn[case.group] = turn.get(case.group, 0) + 1
        if turn[case.group] % _EVERY.get(case.group, 1):
            continue
        yield replace(
            case,
            name=f"{case.name}, Hessian",
            function="loss_grad_hess",
            outputs=FUNCTIONS["loss_grad_hess"],
            options={**case.options, **next(floors)},
        )
        yield _along(case, "hvp")


def _along(case: Case, function: str) -> Case:
    """The same case with a derivative along some v, in a dtype and a layout of its own."""
    rng = data.generator(f"{case.name}, {function}")
    x = np.asarray(case.logits)
    axis = case.options.get("axis", -1)
    out = case.out
    if out is None and function != "log_softmax_vjp" and rng.random() < 0.2:
        out = "over v"
    dtype = x.dtype.newbyteorder("=").name if out == "over v" else str(rng.choice(DTYPES))
    v = cast(np.moveaxis(_directions(rng, np.moveaxis(x, axis, -1).shape), -1, axis), dtype)
    if rng.random() < 0.5 and 0 not in x.strides:
        laid = np.empty_like(x, v.dtype, subok=False)  # in memory as the logits are, without their gaps
        laid[...] = v
        v = laid
    elif out != "over v" and rng.random() < 0.5 and v.size:
        v = np.repeat(v, 2, axis)[(slice(None),) * (axis % x.ndim) + (slice(1, None, 2),)]
    return replace(
        case,
        name=f"{case.name}, {function} of {dtype}",
        function=function,
        outputs=FUNCTIONS[function],
        options={**case.options, "v": v},
        exact=(),
        out=out,
        skip=case.skip or unavailable(dtype),
    )


def _directions(rng: Generator, shape: tuple[int, ...]) -> Array:
    """Ordinary rows, among them unit vectors, equal numbers, and large offsets, which have to cancel."""
    v = rng.normal(size=shape).reshape(-1, shape[-1])
    for i, row in enumerate(v):
        if i % 5 == 1:
            row[...] = np.arange(row.size) == i % row.size
        elif i % 5 == 2:
            row[...] = row[0]
        elif i % 5 == 3:
            row += 100
    return v.reshape(shape)


def _left_out(dtype: str) -> Iterator[Case]:
    """Rows that do not count are exactly 0, whatever they and v hold: a floor is not for them either."""
    rng = data.generator(f"{dtype} second derivatives left out")
    x, y, v = data.normal(rng, 6, 7), data.index(rng, 6, 7), _directions(rng, (6, 7))
    weight = np.array([1.0, 0, 2, -1, 0, 0.5])
    x[1], x[4], v[1], v[4, 2] = _NAN, [_INF, -_INF, 0, 0, 0, 0, 0], _NAN, _INF
    ignored = np.where(weight == 0, -1, y)
    for name, target, options in (
        ("ignored", ignored, {"ignore_index": -1}),
        ("weight 0", y, {"sample_weight": weight}),
        ("weight 0, distribution", np.eye(7)[y], {"sample_weight": weight}),
        ("empty mean", y, {"denominator": 0.0, "reduction": "mean"}),
    ):
        where: Any = [1, 4] if name != "empty mean" else ...
        for extra in ({}, {"z_loss": 0.1, "softcap": 3.0}):
            title = f"{dtype} second derivatives, {name}{', options' if extra else ''}"
            chosen = {"reduction": "none", **options, **extra}
            zero = Exact("hess_diag", where, 0.0)
            yield _case("edges", title, dtype, x, target, {**chosen, "hess_min": 0.5}, (zero,))
            zero = Exact("hvp", where, 0.0)
            yield _case("edges", title, dtype, x, target, {**chosen, "v": cast(v, dtype)}, (zero,))


def _special_v(dtype: str) -> Iterator[Case]:
    """NaN and infinities of v make their row NaN, at a masked class as well; what is finite there is 0."""
    x = np.array([[0.0, -_INF, 1, 2], [3, 0, -_INF, 1], [0, 0, 1, -_INF], [0, 1, 2, 3], [-_INF, 1, 0, 9]])
    v = np.array([[1.0, 1e4, 2, 0], [1, 0, _NAN, 1], [0, 0, 1, _INF], [0, -_INF, 2, 3], [7, -1, 0, -_NAN]])
    y = np.array([2, 0, 0, 3, 3])
    for extra in ({}, {"softcap": 4.0}, {"z_loss": 0.1, "label_smoothing": 0.1}):
        more = "".join(f", {key}" for key in extra)
        exact: tuple[Exact, ...] = (Exact("hvp", (0, 1), 0.0), Exact("hvp", slice(1, 5), _NAN))
        options = {"reduction": "none", "v": cast(v, dtype), **extra}
        yield _case("edges", f"{dtype} special v{more}", dtype, x, y, options, exact)
    for function in ("softmax_jvp", "log_softmax_jvp"):
        output = FUNCTIONS[function][0]
        exact = (Exact(output, slice(1, 5), _NAN),)
        title = f"{dtype} special v, {function}"
        yield _case("edges", title, dtype, x, None, {"v": cast(v, dtype)}, exact, function)


def _two_classes(dtype: str) -> Iterator[Case]:
    """x = (m, 0): p (1 - p) with both signs, down to where 1 - p is far below an ulp of 1."""
    m = np.arange(-100.0, 101.0, 4.0)
    x, v = np.stack([m, np.zeros_like(m)], axis=1), np.tile([3.0, 1.0], (m.size, 1))
    p, rest = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(m))
    product, y = 2 * p * rest, np.zeros(m.size, int)
    exact: tuple[Exact, ...] = (Exact("hvp", ..., np.stack([product, -product], axis=1)),)
    options: dict[str, Any] = {"reduction": "none", "v": cast(v, dtype)}
    yield _case("confident", f"{dtype} margins along v", dtype, x, y, options, exact)
    title = f"{dtype} softmax along v"
    yield _case("confident", title, dtype, x, None, {"v": cast(v, dtype)}, exact, "softmax_jvp")
    centred = np.stack([2 * rest, -2 * p], axis=1)
    exact = (Exact("log_softmax_jvp", ..., centred),)
    title = f"{dtype} log-softmax along v"
    yield _case("confident", title, dtype, x, None, {"v": cast(v, dtype)}, exact, "log_softmax_jvp")
    hess = np.stack([p * rest, p * rest], axis=1)
    for least in (None, 1e-16, 1e-3):
        floored = hess if least is None else np.maximum(3 * hess, least)
        options = {"reduction": "none", "hess_min": least, "hess_scale": 1.0 if least is None else 3.0}
        exact = (Exact("hess_diag", ..., floored),)
        yield _case("confident", f"{dtype} margins, floor {least}", dtype, x, y, options, exact)
        title = f"{dtype} margins, wrong class, floor {least}"
        yield _case("confident", title, dtype, x, 1 - y, options, exact)


def _uniform(dtype: str) -> Iterator[Case]:
    """Equal logits and a unit vector: p_k ((k = j) - p_j), where the difference from v_j would cancel."""
    for classes in (2, 10, 100, 1000):
        x, v = np.zeros((3, classes)), np.zeros((3, classes))
        v[[0, 1, 2], [0, classes // 2, classes - 1]] = 1
        want = (v - 1 / classes) / classes
        options = {"reduction": "none", "v": cast(v, dtype)}
        exact = (Exact("hvp", ..., want),)
        title = f"{dtype} unit vectors, {classes} classes"
        yield _case("closed forms", title, dtype, x, np.zeros(3, int), options, exact)


def _crowds(dtype: str) -> Iterator[Case]:
    """Enough rows to meet an error that one in a thousand has; a third of them sure, of the target or not."""
    for rows, classes in ((6_000, 3), (3_000, 33), (900, 129), (120, 1_100)):
        name = f"{dtype} second derivatives of {rows}x{classes}"
        rng = data.generator(name)
        x = rng.normal(size=(rows, classes)) * rng.choice([1, 3, 10], size=(rows, 1))
        y = data.index(rng, rows, classes)
        x[np.arange(rows), data.index(rng, rows, classes)] += rng.choice([0, 20, 40], size=rows)
        sure = rng.random(rows) < 0.3
        x[sure, y[sure]] += 30
        for options in ({}, {"temperature": 0.7, "class_weight": rng.uniform(0.5, 2, classes)}):
            title = f"{name}{', options' if options else ''}"
            chosen = {"reduction": "none", **options}
            v = cast(rng.normal(size=x.shape), dtype)
            yield _case("confident", title, dtype, x, y, {**chosen, "v": v})
            yield _case("confident", title, dtype, x, y, {**chosen, "hess_min": 1e-30})


def _alone(dtype: str) -> Iterator[Case]:
    """One class: nothing to differ from."""
    x, v = np.array([[0.0], [-50.0], [_NAN]]), np.array([[1.0], [-2.0], [0.0]])
    column = np.array([[0.0], [0.0], [_NAN]])
    for function, output in (("softmax_jvp", "hvp"), ("log_softmax_jvp", "log_softmax_jvp")):
        exact = (Exact(output, ..., column),)
        title = f"{dtype} one class, {function}"
        yield _case("edges", title, dtype, x, None, {"v": cast(v, dtype)}, exact, function)
    options = {"reduction": "none", "v": cast(v, dtype)}
    exact = (Exact("hvp", ..., column),)
    yield _case("edges", f"{dtype} one class along v", dtype, x, np.zeros(3, int), options, exact)


def _extreme(dtype: str) -> Iterator[Case]:
    """Temperatures whose square is beyond the dtype, and v whose squares are."""
    size = 1e200 if dtype == "float64" else 1e25 if dtype in ("float32", "bfloat16") else 50.0
    for classes in (4, 70, 2_100):
        rng = data.generator(f"{dtype} extreme second derivatives of {classes} classes")
        x, y = data.normal(rng, 6, classes), data.index(rng, 6, classes)
        v = _directions(rng, (6, classes))
        x[0, y[0]] += 40
        for t in (size, 1 / size):
            for softcap in (None, 5.0):
                more = "" if softcap is None else ", soft cap"
                title = f"{dtype} {classes} classes at temperature {t:g}{more}"
                options = {"reduction": "none", "temperature": t, "softcap": softcap}
                scaled = x * t
                yield _case("limits", title, dtype, scaled, y, {**options, "hess_scale": t, "hess_min": None})
                along = cast(v * t, dtype)  # the product has one factor 1 / T left
                yield _case("limits", title, dtype, scaled, y, {**options, "v": along})
        for large in (1e-200, 1e200) if dtype == "float64" else ():
            # The first class is unlikely, its v far from the mean: whoever centres there loses eight digits.
            far, of_far = rng.normal(size=x.shape), v.copy()
            far[:, 0], of_far[:, 0] = -40, 1e8
            title = f"{dtype} {classes} classes along v of {large:g}"
            yield _case("limits", title, dtype, far, y, {"reduction": "none", "v": of_far * large})
        options = {"v": cast(v, dtype), "temperature": 1 / size}
        title = f"{dtype} {classes} classes at temperature {1 / size:g}"
        yield _case("limits", title, dtype, x / size, None, options, (), "softmax_jvp")


def _case(
    group: str,
    name: str,
    dtype: str,
    x: Array,
    y: Array | None,
    options: dict[str, Any],
    exact: tuple[Exact, ...] = (),
    function: str | None = None,
) -> Case:
    if function is None:
        function = "hvp" if "v" in options else "loss_grad_hess"
    if y is not None and y.dtype.kind == "f":
        y = cast(y, "float64" if dtype == "float64" else "float32")
    return Case(
        group,
        f"{name}, {function}",
        cast(x, dtype),
        y,
        options,
        FUNCTIONS[function],
        exact,
        function,
        skip=unavailable(dtype),
    )
