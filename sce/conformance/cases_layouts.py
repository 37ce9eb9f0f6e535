"""The same values in every arrangement of memory, and the gradient in every place it may go."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, PLAIN, Case, cast, unavailable

_Arranged = tuple[Array, int]  # the array and its class axis
_ROWS, _CLASSES = 12, 10


def _padded(x: Array) -> Array:
    wide = np.zeros((x.shape[0], x.shape[1] + 7), x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def _every_other(x: Array, axis: int) -> Array:
    wide = np.repeat(x, 2, axis=axis)
    gap = (slice(None),) * axis + (slice(1, None, 2),)
    return wide[gap]


def _unaligned(x: Array) -> Array:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    moved: Array = np.ndarray(x.shape, x.dtype, raw, 1)
    moved[...] = x
    return moved


def _read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def _swapped(x: Array) -> Array:
    return x if x.dtype.name == "bfloat16" else x.astype(x.dtype.newbyteorder())


def _inner_first(x: Array) -> Array:
    """Row axes 0, 1, 2 lie in memory as 2, 0, 1: no two of them merge into one stride."""
    return np.ascontiguousarray(_three(x).transpose(2, 0, 1, 3)).transpose(1, 2, 0, 3)


def _not_collapsible(x: Array) -> Array:
    """Three row axes with a gap after each: there is no view with two."""
    rows = _three(x)
    view = np.zeros([n + 1 for n in rows.shape[:3]] + [x.shape[1]], x.dtype)[:-1, :-1, :-1]
    view[...] = rows
    return view


def _two(x: Array) -> Array:
    return x.reshape(3, -1, x.shape[1])


def _three(x: Array) -> Array:
    """The rows, a multiple of 12, on three axes."""
    return x.reshape(2, 3, -1, x.shape[1])


ARRANGE: dict[str, Callable[[Array], _Arranged]] = {
    "contiguous": lambda x: (x.copy(), -1),
    "byte order": lambda x: (_swapped(x), -1),
    "unaligned": lambda x: (_unaligned(x), -1),
    "read-only": lambda x: (_read_only(x), -1),
    "Fortran": lambda x: (np.asfortranarray(x), 1),
    "rows padded": lambda x: (_padded(x), -1),
    "every other class": lambda x: (_every_other(x, 1), -1),
    "every other row": lambda x: (_every_other(x, 0), -1),
    "classes reversed": lambda x: (x[:, ::-1].copy()[:, ::-1], -1),
    "rows reversed": lambda x: (x[::-1].copy()[::-1], -1),
    "both reversed": lambda x: (x[::-1, ::-1].copy()[::-1, ::-1], -1),
    "one row everywhere": lambda x: (np.broadcast_to(x[:1], x.shape), -1),
    "one class everywhere": lambda x: (np.broadcast_to(x[:, :1], x.shape), -1),
    "axis 0": lambda x: (np.ascontiguousarray(x.T), 0),
    "axis 1 of 3": lambda x: (np.ascontiguousarray(_two(x).transpose(0, 2, 1)), 1),
    "axis 1 of 4": lambda x: (np.ascontiguousarray(_three(x).transpose(0, 3, 1, 2)), 1),
    "axis 0 of 4": lambda x: (np.ascontiguousarray(_three(x).transpose(3, 0, 1, 2)), -4),
    "axis 2 of 4": lambda x: (np.ascontiguousarray(_three(x).transpose(0, 1, 3, 2)), 2),
    "channels last": lambda x: (_three(x).transpose(0, 3, 1, 2), 1),
    "last of 3": lambda x: (_two(x).copy(), 2),
    "last of 5": lambda x: (_three(x)[:, None].copy(), -1),
    "inner axis first": lambda x: (_inner_first(x), -1),
    "not collapsible": lambda x: (_not_collapsible(x), -1),
}


def layouts() -> Iterator[Case]:
    for dtype in DTYPES:
        for name, arrange in ARRANGE.items():
            rng = data.generator(f"{dtype} {name}")
            labels = data.index(rng, _ROWS, _CLASSES)
            x, axis = arrange(cast(data.confident(data.normal(rng, _ROWS, _CLASSES), labels), dtype))
            soft = cast(data.simplex(rng, _ROWS, _CLASSES), "float64" if dtype == "float64" else "float32")
            rows_shape = np.moveaxis(x, axis, -1).shape[:-1]
            y = labels.reshape(rows_shape)
            alike = np.moveaxis(soft.reshape(*rows_shape, _CLASSES), -1, axis)
            plain = np.ascontiguousarray(alike)
            yield _case(dtype, f"{name}, index", x, y, axis)
            yield _case(dtype, f"{name}, index, all outputs", x, y, axis, FULL)
            yield _case(dtype, f"{name}, distribution as laid out", x, alike, axis)
            yield _case(dtype, f"{name}, contiguous distribution", x, plain, axis, FULL)
            if x.ndim == 2:
                yield _case(dtype, f"{name}, distribution arranged", x.copy("C"), *arrange(soft))
            for out in places(x, dtype):
                yield _case(dtype, f"{name}, index, out {out}", x, y, axis, out=out)
            yield from _without_target(dtype, name, x, axis)
        yield from _one_dimension(dtype)
    yield Case("layouts", "lists", [[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]], [2, 0])
    yield Case("layouts", "lists, distribution", [[0.5, -1.0], [0.0, 3.0]], [[0.25, 0.75], [1.0, 0.0]])
    yield Case("layouts", "list, one row", [0.5, -1.0, 2.0], 2)


def _without_target(dtype: str, name: str, x: Array, axis: int) -> Iterator[Case]:
    for function, outputs in PLAIN.items():
        for out in (None, *places(x, dtype)) if function != "logsumexp" else (None,):
            title = f"{dtype} {function}, {name}, out {out or 'new'}"
            options = {"axis": axis}
            yield Case("layouts", title, x, None, options, outputs, (), function, out, unavailable(dtype))


def places(x: Array, dtype: str) -> Iterator[str]:
    """Where the gradient of these logits may go besides new memory."""
    if dtype in ("float16", "bfloat16"):
        yield "float32"
    yield from ("own", "strided")
    unique = all(step != 0 for step in x.strides)
    if unique and x.flags.writeable and x.flags.aligned and x.dtype.isnative:
        yield "in place"


def _one_dimension(dtype: str) -> Iterator[Case]:
    rng = data.generator(f"{dtype} one dimension")
    x = cast(data.normal(rng, 1, 11)[0], dtype)
    for reduction in ("none", "sum", "mean"):
        for target, outputs in ((np.int64(3), FULL), (cast(data.simplex(rng, 1, 11)[0], "float64"), BOTH)):
            kind = "index" if outputs is FULL else "distribution"
            yield Case(
                "layouts",
                f"{dtype} one dimension, {kind}, {reduction}",
                x,
                np.asarray(target),
                {"reduction": reduction},
                outputs,
                skip=unavailable(dtype),
            )


def _case(
    dtype: str,
    name: str,
    x: Array,
    y: Array,
    axis: int,
    outputs: tuple[str, ...] = BOTH,
    out: str | None = None,
) -> Case:
    options = {"axis": axis, "reduction": "none"}
    return Case("layouts", f"{dtype} {name}", x, y, options, outputs, out=out, skip=unavailable(dtype))
