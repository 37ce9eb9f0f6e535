"""Where accuracy is lost elsewhere: confident rows, offsets, scales, cancelling targets; closed forms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, LOSS, Case, Exact, cast, unavailable

_TOP = {"float16": 6e4, "bfloat16": 3e38, "float32": 3e38, "float64": 1e308}

_CROWDS = ((33, 8_000), (129, 1_700), (513, 300))  # classes and rows, at each temperature

_TUPLES: tuple[tuple[str, ...], ...] = (FULL, BOTH, LOSS)


def accuracy() -> Iterator[Case]:
    for dtype in DTYPES:
        yield from _margins(dtype)
        yield from _crowds(dtype)
        yield from _magnitudes(dtype)
        yield from _offsets(dtype)
        yield from _soft_targets(dtype)
        yield from _long_sums(dtype)
        yield from _uniform(dtype)
        yield from _functions(dtype)


def _margins(dtype: str) -> Iterator[Case]:
    """Two classes: loss log1p(exp(-m)), gradient 1 / (1 + exp(m)) with both signs, Hessian their product."""
    case = partial(_case, "confident", dtype)
    m = np.arange(-100.0, 101.0, 4.0)
    x = np.stack([m, np.zeros_like(m)], axis=1)
    p, rest = 1 / (1 + np.exp(-m)), 1 / (1 + np.exp(m))
    # log(1 + e) for a large e is -m + log1p(1 / e).
    loss = np.log1p(np.exp(-np.abs(m))) + np.maximum(-m, 0)
    grad = np.stack([-rest, rest], axis=1)
    exact = (
        Exact("loss", ..., loss),
        Exact("log_prob", ..., -loss),
        Exact("grad", ..., grad),
        Exact("hess_diag", ..., np.stack([p * rest, p * rest], axis=1)),
    )
    for outputs in _TUPLES:
        known = tuple(e for e in exact if e.output in outputs)
        yield case(f"margins, {len(outputs)} outputs", x, np.zeros(m.size, int), {}, outputs, known)
    hot = np.stack([np.ones_like(m), np.zeros_like(m)], axis=1)
    yield case("margins, one-hot distribution", x, hot, {}, FULL, exact)
    for classes in (3, 16, 100, 1025):
        rng = data.generator(f"{dtype} margins of {classes}")
        x, y = data.normal(rng, m.size, classes, 1.0), data.index(rng, m.size, classes)
        x[np.arange(m.size), y] += m
        for outputs in _TUPLES:
            yield case(f"margins of {classes}, {len(outputs)} outputs", x, y, {}, outputs)
        wrong = (y + 1 + np.arange(m.size) % (classes - 1)) % classes
        yield case(f"margins of {classes}, wrong class", x, wrong, {}, FULL)
        yield case(f"margins of {classes}, one-hot", x, np.eye(classes)[y], {}, FULL)
        options: dict[str, Any] = {
            "temperature": 0.5,
            "grad_scale": 64.0,
            "class_weight": rng.uniform(1, 2, classes),
        }
        yield case(f"margins of {classes}, options", x, y, options, FULL)
        for name, value in (("label_smoothing", 0.1), ("z_loss", 1e-3), ("softcap", 20.0)):
            yield case(f"margins of {classes}, {name}", x, y, {name: value}, FULL)


def _crowds(dtype: str) -> Iterator[Case]:
    """Enough rows to meet an error that one in a thousand has; a third of them sure, a third surer."""
    for classes, rows in _CROWDS:
        rng = data.generator(f"{dtype} crowd of {classes}")
        x = rng.normal(size=(rows, classes)) * rng.choice([1, 3, 10], size=(rows, 1))
        y = data.index(rng, rows, classes)
        x[np.arange(rows), y] += rng.choice([0, 20, 40], size=rows)
        for temperature in (1.0, 0.7):
            name = f"{rows} rows of {classes}, temperature {temperature}"
            yield _case("confident", dtype, name, x, y, {"temperature": temperature}, BOTH)


def _magnitudes(dtype: str) -> Iterator[Case]:
    case = partial(_case, "magnitudes", dtype)
    for scale in (1e-6, 1e-3, 1.0, 30.0, 300.0, 1e4, 1e30):
        if scale >= _TOP[dtype]:
            continue
        rng = data.generator(f"{dtype} scale {scale}")
        for rows, classes in ((6, 9), (5, 130)):
            x = np.clip(data.normal(rng, rows, classes, scale), -_TOP[dtype], _TOP[dtype])
            title = f"scale {scale:g}, {classes} classes"
            y, soft = data.index(rng, rows, classes), data.simplex(rng, rows, classes)
            y[0] = x[0].argmax()
            for outputs in _TUPLES[:2]:
                yield case(f"{title}, index, {len(outputs)} outputs", x, y, {}, outputs)
            yield case(f"{title}, distribution", x, soft, {}, FULL)
            yield case(f"{title}, softcap", x, y, {"softcap": 10.0}, FULL)
            yield case(f"{title}, temperature", x, y, {"temperature": max(scale, 0.1)}, FULL)
    # The rows' maxima lie far apart: a maximum over the whole batch would lose the low ones.
    rng = data.generator(f"{dtype} far rows")
    x = data.normal(rng, 8, 12) + np.array([0, 300, -300, 2e3, -2e3, 1e4, -1e4, 0])[:, None]
    for outputs in _TUPLES:
        yield case(f"rows far apart, {len(outputs)} outputs", x, data.index(rng, 8, 12), {}, outputs)


def _offsets(dtype: str) -> Iterator[Case]:
    """A common offset changes nothing but lse, where x + offset is exact."""
    case = partial(_case, "magnitudes", dtype)
    offset, step = {"float16": (2048.0, 2.0), "bfloat16": (1024.0, 8.0), "float32": (1e8, 8.0)}.get(
        dtype, (1e8, 0.125)
    )
    rng = data.generator(f"{dtype} offset")
    for sign in (1, -1):
        x = sign * offset + step * rng.integers(-3, 4, (7, 10))
        y = data.index(rng, 7, 10)
        for outputs in _TUPLES:
            yield case(f"offset {sign * offset:g}, {len(outputs)} outputs", x, y, {}, outputs)
        yield case(f"offset {sign * offset:g}, distribution", x, data.simplex(rng, 7, 10), {}, FULL)


def _soft_targets(dtype: str) -> Iterator[Case]:
    """Neither normalised nor checked: any mass, either sign."""
    case = partial(_case, "soft targets", dtype)
    rng = data.generator(f"{dtype} soft targets")
    x = data.normal(rng, 9, 14)
    simplex = data.simplex(rng, 9, 14)
    targets = {
        "unnormalised": simplex * rng.uniform(0.1, 5, (9, 1)),
        "signed": rng.normal(size=(9, 14)),
        "mass 0": simplex - simplex[:, ::-1],
        "all 0": np.zeros((9, 14)),
        "one-hot": np.eye(14)[data.index(rng, 9, 14)],
        "nearly one-hot": 0.999 * np.eye(14)[data.index(rng, 9, 14)] + 0.001 * simplex,
        "the softmax itself": np.exp(x) / np.exp(x).sum(axis=1, keepdims=True),
    }
    for name, y in targets.items():
        weighted = {"class_weight": rng.uniform(0, 2, 14), "z_loss": 1e-3}
        for options in ({}, {"label_smoothing": 0.2}, weighted):
            title = f"{name} distribution{''.join(f', {key}' for key in options)}"
            yield case(title, x, y, options, FULL)
            yield case(f"{title}, mean", x, y, {**options, "reduction": "mean"}, BOTH)


def _long_sums(dtype: str) -> Iterator[Case]:
    """Sums over many rows are float64's: in the logits' own dtype this one overflows or drifts."""
    case = partial(_case, "magnitudes", dtype)
    rng = data.generator(f"{dtype} long sums")
    x, y = data.normal(rng, 3000, 4, 20.0), data.index(rng, 3000, 4)
    for reduction in ("sum", "mean"):
        yield case(f"3000 rows, {reduction}", x, y, {"reduction": reduction}, BOTH)
    signed = rng.normal(size=3000)
    options: dict[str, Any] = {"reduction": "sum", "sample_weight": signed}
    yield case("3000 rows, signed weights", x, y, options, BOTH)
    # A mean's gradient is below half precision's normal numbers: the scale brings it back.
    options = {"reduction": "mean", "grad_scale": 2.0**15}
    yield case("3000 rows, gradient scale", x, y, options, BOTH)


def _uniform(dtype: str) -> Iterator[Case]:
    """Equal logits: loss and entropy log C, p = 1 / C."""
    case = partial(_case, "closed forms", dtype)
    for classes in (2, 3, 10, 64, 1000):
        x = np.repeat([[0.0], [1.0], [-8.0], [64.0]], classes, axis=1)
        y = np.array([0, classes - 1, classes // 2, 1])
        p = np.full((4, classes), 1 / classes)
        grad = p.copy()
        grad[np.arange(4), y] = -(classes - 1) / classes
        log_c = np.log(classes)
        known: tuple[Exact, ...]
        exact = (
            Exact("loss", ..., log_c),
            Exact("log_prob", ..., -log_c),
            Exact("entropy", ..., log_c),
            Exact("lse", 0, log_c),
            Exact("grad", ..., grad),
            Exact("hess_diag", ..., p * (classes - 1) / classes),
            Exact("argmax", ..., 0),
        )
        yield case(f"uniform, {classes} classes", x, y, {}, FULL, exact)
        soft = np.full((4, classes), 1 / classes)
        known = (Exact("loss", ..., log_c), Exact("entropy", ..., log_c))
        yield case(f"uniform, uniform target, {classes} classes", x, soft, {}, FULL, known)
        known = (Exact("loss", ..., log_c),)
        yield case(f"uniform, smoothing, {classes} classes", x, y, {"label_smoothing": 0.3}, BOTH, known)
        known = (Exact("loss", 0, log_c + 0.5 * log_c**2), Exact("z_loss", 0, 0.5 * log_c**2))
        yield case(f"uniform, z-loss, {classes} classes", x, y, {"z_loss": 0.5}, FULL, known)
        known = (Exact("loss", ..., 4 * log_c),)
        yield case(f"uniform, sum, {classes} classes", x, y, {"reduction": "sum"}, BOTH, known)
        yield Case(
            "closed forms",
            f"{dtype} softmax of {classes} equal",
            cast(x, dtype),
            None,
            {},
            ("grad",),
            (Exact("grad", ..., 1 / classes),),
            "softmax",
            skip=unavailable(dtype),
        )


def _functions(dtype: str) -> Iterator[Case]:
    for function, output in (("softmax", "grad"), ("log_softmax", "log_softmax"), ("logsumexp", "lse")):
        for classes in (1, 2, 7, 33, 1000, 4097):
            rng = data.generator(f"{dtype} {function} {classes}")
            x = data.normal(rng, 7, classes, 4.0)
            x[0, classes // 2] += 40
            yield Case(
                "softmax",
                f"{dtype} {function} of {classes}",
                cast(x, dtype),
                None,
                {},
                (output,),
                (),
                function,
                skip=unavailable(dtype),
            )
    x = cast([[0.0, -40.0], [-40.0, 0.0], [0.0, -12.0], [800.0, 800.0]], dtype)
    e = np.exp(-40.0)
    known = {
        "softmax": Exact("grad", slice(0, 2), [[1 / (1 + e), e / (1 + e)], [e / (1 + e), 1 / (1 + e)]]),
        "log_softmax": Exact("log_softmax", slice(0, 2), [[-np.log1p(e), -40 - e], [-40 - e, -np.log1p(e)]]),
        "logsumexp": Exact("lse", ..., [np.log1p(e), np.log1p(e), np.log1p(np.exp(-12.0)), 800 + np.log(2)]),
    }
    for function, exact in known.items():
        yield Case(
            "softmax",
            f"{dtype} {function}, one class dominates",
            x,
            None,
            {},
            (exact.output,),
            (exact,),
            function,
            skip=unavailable(dtype),
        )


def _case(
    group: str,
    dtype: str,
    name: str,
    x: Array,
    y: Array,
    options: dict[str, Any],
    outputs: tuple[str, ...],
    exact: tuple[Exact, ...] = (),
) -> Case:
    if y.dtype.kind == "f":
        y = cast(y, "float64" if dtype == "float64" else "float32")
    return Case(
        group,
        f"{dtype} {name}",
        cast(x, dtype),
        y,
        {"reduction": "none", **options},
        outputs,
        exact,
        skip=unavailable(dtype),
    )
