"""Second derivatives of a tile of rows in columns: the Hessian's diagonal, and products with v."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .cache import jit
from .memory import size_of
from .simd import F32, LINE, fused, halves, joined, load, select, splat, store
from .tile import DOT, GAP, H_TOP, H_Y, INVERSE, LEAST, MASS, MASS_Y, OF_H, OF_P, REST, SCALE, TOP
from .vector_math import difference_error
from .wide import in_parts
from .writing import weighted


@jit()
def hessian(p: Any, one: Any, rows: Any, s: Any) -> None:
    """The Hessian's diagonal, beside the exponentials."""
    column, size = p.tile * size_of(one), size_of(one)
    for j in range(0, rows, LINE // size):
        cell, y = s.table + j * 8, load(one, s.y + j * size, one)
        c, c_lo = in_parts(one, cell + OF_H)
        least, at_y = in_parts(one, cell + LEAST)[0], in_parts(one, cell + H_Y)[0]
        less = (
            in_parts(one, cell + INVERSE)[0], in_parts(one, cell + TOP)[0], in_parts(one, cell + H_TOP)[0],
            least,
        )  # fmt: skip
        at_y = select(at_y < least, least, at_y)
        for k in range(p.classes):
            at = j * size + k * column
            h = weighted(load(one, s.x + at, one), c, c_lo, less)
            store(one, s.more + at, select(y == type(one)(k), at_y, h))


@jit()
def product(p: Any, one: Any, rows: Any, log: Any, s: Any) -> None:
    """The Hessian times v, over v: s Q p_k (v_k - p.v), by docs/math.md's "along v".

    With `log`, which is True or None, log-softmax along v: (v_k - p.v) / T.
    """
    column, size = p.tile * size_of(one), size_of(one)
    for j in range(0, rows, LINE // size):
        put_pivot(one, s.x + j * size, s.more + j * size, column, p.classes, s.table + j * 8)
    for at in range(s.table, s.table + rows * 8, LINE):
        total, scale = load(1.0, at + REST, 1.0), load(1.0, at + SCALE, 1.0)
        mass = load(1.0, at + MASS, 1.0) + load(1.0, at + MASS_Y, 1.0)
        shift = load(1.0, at + DOT, 1.0) / total
        store(1.0, at + DOT, shift + (shift - shift))  # NaN where v is not finite
        if log is None:
            store(1.0, at + OF_P, select(scale != 0.0, scale * mass * p.of_h / total, splat(0.0)))
        else:
            store(1.0, at + OF_P, splat(1.0 / p.temperature))
    for j in range(0, rows, LINE // size):
        cell = s.table + j * 8
        c, c_lo = in_parts(one, cell + OF_P)
        mean, mean_lo = mean_of(one, cell)
        for at in range(j * size, j * size + p.classes * column, column):
            centred = (load(one, s.more + at, one) - mean) - mean_lo
            if log is None:
                store(one, s.more + at, weighted(load(one, s.x + at, one), c, c_lo, None) * centred)
            else:
                store(one, s.more + at, weighted(centred, c, c_lo, None))


def put_pivot(one: Any, x: Any, v: Any, column: Any, n: Any, cell: Any) -> None:
    """Of a vector of rows the pivot m to GAP, and to DOT the sum over k of e_k (m - v_k)."""


@overload(put_pivot, jit_options={"error_model": "numpy"})
def _put_pivot(one: Any, x: Any, v: Any, column: Any, n: Any, cell: Any) -> Any:
    def pivot32(one: Any, x: Any, v: Any, column: Any, n: Any, cell: Any) -> None:
        top, m = load(one, x, one), load(one, v, one)
        for k in range(1, n):
            e = load(one, x + k * column, one)
            above = e > top
            top, m = select(above, e, top), select(above, load(one, v + k * column, one), m)
        a, b = halves(m)
        found_a, found_b = splat(0.0), splat(0.0)
        for k in range(n):
            e_a, e_b = halves(load(one, x + k * column, one))
            v_a, v_b = halves(load(one, v + k * column, one))
            found_a, found_b = fused(e_a, a - v_a, found_a), fused(e_b, b - v_b, found_b)
        store(1.0, cell + GAP, a)
        store(1.0, cell + GAP + LINE, b)
        store(1.0, cell + DOT, found_a)
        store(1.0, cell + DOT + LINE, found_b)

    def pivot64(one: Any, x: Any, v: Any, column: Any, n: Any, cell: Any) -> None:
        total, mean = load(1.0, cell + REST, 1.0), splat(0.0)
        for at in range(0, n * column, column):
            mean = fused(load(1.0, x + at, 1.0), load(1.0, v + at, 1.0), mean)
        mean = mean / total
        m, least, top, top_m = splat(0.0), splat(np.inf), splat(0.0), splat(0.0)
        for at in range(0, n * column, column):  # the nearest to the mean, and that of the maximum
            e, v_k = load(1.0, x + at, 1.0), load(1.0, v + at, 1.0)
            gap = v_k - mean
            gap = select(gap < 0.0, -gap, gap)  # not squared: that of a small one is 0
            least, m = select(gap < least, gap, least), select(gap < least, v_k, m)
            above = e > top
            top, top_m = select(above, e, top), select(above, v_k, top_m)
        m = select(top + top < total, m, top_m)
        found, lost = splat(0.0), splat(0.0)
        for at in range(0, n * column, column):
            term = load(1.0, x + at, 1.0) * (m - load(1.0, v + at, 1.0))
            new = found + term
            lost = lost + difference_error(found, -term, new)
            found = new
        store(1.0, cell + GAP, m)
        store(1.0, cell + DOT, found + lost)

    return pivot32 if one == F32 else pivot64


def mean_of(one: Any, cell: Any) -> Any:
    """p.v = m - c in two words: where it is near a v_k, their difference is c, which may be tiny."""


@overload(mean_of, jit_options={"forceinline": True})
def _mean_of(one: Any, cell: Any) -> Any:
    def mean32(one: Any, cell: Any) -> Any:
        a, b = load(1.0, cell + GAP, 1.0), load(1.0, cell + GAP + LINE, 1.0)
        c, d = load(1.0, cell + DOT, 1.0), load(1.0, cell + DOT + LINE, 1.0)
        high = joined(a - c, b - d)
        e, f = halves(high)
        return high, joined((a - e) - c, (b - f) - d)

    def mean64(one: Any, cell: Any) -> Any:
        return load(1.0, cell + GAP, 1.0), -load(1.0, cell + DOT, 1.0)

    return mean32 if one == F32 else mean64
