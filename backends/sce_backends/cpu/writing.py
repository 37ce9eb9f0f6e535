"""The third pass over a tile: exponentials times coefficients, out to the gradient, row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from . import elements
from .cache import inline, jit
from .memory import copy_line, get, size_of, view
from .rows import low_part
from .simd import (
    F32,
    LINE,
    fused,
    halves,
    joined,
    load,
    load_first,
    only,
    select,
    splat,
    store,
    store_first,
    stream,
)
from .tile import (
    AT_Y,
    H_TOP,
    H_Y,
    INVERSE,
    LEAST,
    MASSES,
    OF_H,
    OF_P,
    OUT,
    OUT_H,
    SCALE,
    TARGET,
    TOP,
    address_in,
)


def elsewhere(smooth: Any, soft: Any) -> Any:
    """The target's mass elsewhere than at y: None, True for smoothing's, or a distribution's witness."""


@overload(elsewhere, jit_options={"forceinline": True})
def _elsewhere(smooth: Any, soft: Any) -> Any:
    def shared(smooth: Any, soft: Any) -> Any:
        return smooth

    def masses(smooth: Any, soft: Any) -> Any:
        return soft

    return shared if isinstance(soft, types.NoneType) else masses


@jit()
def write_rows(
    p: Any, one: Any, into: Any, first: Any, rows: Any, mass: Any, capped: Any, hess: Any, s: Any
) -> None:
    """The gradient of a tile's rows from the first one on."""
    for j in range(first, rows):
        write_row(p, one, into, j, rows, mass, capped, hess, s)


@jit()
def write_row(
    p: Any, one: Any, into: Any, j: Any, rows: Any, mass: Any, capped: Any, hess: Any, s: Any
) -> None:
    """The gradient of the j-th of a tile's rows, and the Hessian's diagonal."""
    n = p.classes
    if get(1.0, s.table + j * 8 + SCALE) == 0.0:  # times 0, which NaN would survive
        elements.fill(view(one, s.tile + j * p.width * size_of(one), n), None, type(one)(0))
        if capped is not None:
            elements.fill(view(1.0, s.slope + j * p.width * 8, n), None, 0.0)
    out, weights = get(np.int64(0), s.table + j * 8 + OUT), weights_of(p, one, j, mass, s)
    if p.past_caches:
        stream_row(p, one, into, j, rows - 1, out, weights, capped, s, s.line)
    else:
        emit(p, one, into, j, np.int64(0), n, out, weights, capped, s, None)
    if hess is not None:
        at, of_it = get(np.int64(0), s.table + j * 8 + OUT_H), hess_weights_of(p, one, j, s)
        if p.past_caches:
            stream_row(p, one, into, j, rows - 1, at, of_it, None, s, s.line + LINE)
        else:
            emit(p, one, into, j, np.int64(0), n, at, of_it, None, s, None)


@jit()
def stream_row(
    p: Any, one: Any, into: Any, j: Any, last: Any, out: Any, weights: Any, capped: Any, s: Any, line: Any
) -> None:
    """The gradient of the tile's j-th row past the caches; `last` is the tile's last.

    Cache lines that two rows of the tile share are put together in `line`: written in two parts, each would
    have to be read before.
    """
    n, size, start = p.classes, size_of(into), np.int64(0)
    before = out % LINE  # bytes of the first line that are the row's before
    if before:
        start = min((LINE - before) // size, n)
        to = line + before if j else out
        emit(p, one, into, j, np.int64(0), start, to, weights, capped, s, None)
        if j:
            copy_line(out - before, line)
    whole = (n - start) * size // LINE * (LINE // size)
    emit(p, one, into, j, start, whole, out + start * size, weights, capped, s, True)
    start += whole
    if start < n:
        to = line if j < last else out + start * size
        emit(p, one, into, j, start, n - start, to, weights, capped, s, None)


@jit()
def emit(
    p: Any, one: Any, into: Any, j: Any, start: Any, n: Any, out: Any, weights: Any, capped: Any, s: Any,
    past_caches: Any,
) -> None:  # fmt: skip
    """The gradient of classes start .. start + n of the tile's j-th row, to `out`."""
    first = j * p.width + start - s.first
    y = np.int64(get(1.0, s.table + j * 8 + TARGET)) - start
    slope = address_in(s.slope, first * 8, capped)
    c, c_lo, less, at_y = weights
    weights = c, c_lo, less_from(less, start), at_y
    weigh(one, into, s.tile + first * size_of(one), out, n, weights, y, slope, past_caches)


@jit()
def weigh(
    one: Any, into: Any, e: Any, out: Any, n: Any, weights: Any, y: Any, slope: Any, past_caches: Any
) -> None:
    """n classes of a gradient, c e_k - less, times their slopes, and at_y at class y."""
    c, c_lo, less, at_y = weights
    lanes, size = LINE // size_of(one), LINE // size_of(one) * size_of(into)
    here = splat(at_y)
    for i in range(n // lanes):
        x = load(one, e + i * LINE, one)
        g = select(only(one, y - i * lanes), here, weighted(x, c, c_lo, less_at(one, less, i, None)))
        if past_caches is None:
            store(into, out + i * size, sloped(g, slope, i))
        else:
            stream(into, out + i * size, sloped(g, slope, i))
    if n % lanes:
        i = n // lanes
        x = load(one, e + i * LINE, one)
        g = select(only(one, y - i * lanes), here, weighted(x, c, c_lo, less_at(one, less, i, n)))
        store_first(into, out + i * size, sloped(g, slope, i), n % lanes)


def weighted(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
    """(c + c_lo) e, less the sum of `less`, which is None or has two parts, too; or (by + by_lo) y of three.

    With four parts it is the Hessian's: 1 / S, the largest e, the value there, and the least there may be.
    """


@overload(weighted, jit_options={"forceinline": True})
def _weighted(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
    def whole(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
        return fused(e, c, e * c_lo)

    def rest(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
        return fused(e, c, -less[0]) + fused(e, c_lo, -less[1])

    def soft(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
        by, by_lo, y = less
        return fused(e, c, fused(y, -by, fused(e, c_lo, -(y * by_lo))))

    def hessian(e: Any, c: Any, c_lo: Any, less: Any) -> Any:
        inverse, top, at_top, least = less
        h = fused(e, c, e * c_lo) * fused(-e, inverse, 1.0)
        h = select(e == top, at_top, h)
        return select(h < least, least, h)

    if isinstance(less, types.NoneType):
        return whole
    return {2: rest, 3: soft, 4: hessian}[len(less)]


def less_at(one: Any, less: Any, i: Any, n: Any) -> Any:
    """`less` for the i-th vector of classes, of which there are n; or None: it is a whole one."""


@overload(less_at, jit_options={"forceinline": True})
def _less_at(one: Any, less: Any, i: Any, n: Any) -> Any:
    def same(one: Any, less: Any, i: Any, n: Any) -> Any:
        return less

    def whole(one: Any, less: Any, i: Any, n: Any) -> Any:
        by, by_lo, (masses, soft) = less
        y = load(soft, masses + i * (LINE // size_of(one)) * size_of(soft), one)
        return by, by_lo, counted(y, by)

    def last(one: Any, less: Any, i: Any, n: Any) -> Any:
        by, by_lo, (masses, soft) = less
        lanes = LINE // size_of(one)
        y = load_first(soft, masses + i * lanes * size_of(soft), one, n - i * lanes, type(one)(0))
        return by, by_lo, counted(y, by)

    if isinstance(less, types.NoneType) or len(less) != 3:
        return same
    return whole if isinstance(n, types.NoneType) else last


def less_from(less: Any, start: Any) -> Any:
    """`less` from class `start` on."""


@overload(less_from, jit_options={"forceinline": True})
def _less_from(less: Any, start: Any) -> Any:
    def same(less: Any, start: Any) -> Any:
        return less

    def moved(less: Any, start: Any) -> Any:
        by, by_lo, (masses, soft) = less
        return by, by_lo, (masses + start * size_of(soft), soft)

    return same if isinstance(less, types.NoneType) or len(less) != 3 else moved


@inline()
def counted(y: Any, by: Any) -> Any:
    """y, but 0 in a row left out: there it may be NaN."""
    return select(splat(by) != type(by)(0), y, splat(type(by)(0)))


def sloped(g: Any, slope: Any, i: Any) -> Any:
    """The i-th vector of a gradient times that of its slopes, if there are any."""


@overload(sloped, jit_options={"forceinline": True})
def _sloped(g: Any, slope: Any, i: Any) -> Any:
    if isinstance(slope, types.NoneType):

        def plain(g: Any, slope: Any, i: Any) -> Any:
            return g

        return plain

    def sloped32(g: Any, slope: Any, i: Any) -> Any:
        a, b = halves(g)
        at = slope + i * 2 * LINE
        return joined(a * load(1.0, at, 1.0), b * load(1.0, at + LINE, 1.0))

    def sloped64(g: Any, slope: Any, i: Any) -> Any:
        return g * load(1.0, slope + i * LINE, 1.0)

    return sloped32 if g.of == F32 else sloped64


@jit()
def weights_of(p: Any, one: Any, j: Any, mass: Any, s: Any) -> Any:
    """`weigh`'s, of the tile's j-th row."""
    cell = s.table + j * 8
    of_p = get(1.0, cell + OF_P)
    c, at_y = type(one)(of_p), type(one)(get(1.0, cell + AT_Y))
    return c, low_part(of_p, c), less_of(p, one, cell, mass), at_y


def less_of(p: Any, one: Any, cell: Any, mass: Any) -> Any:
    """What `weigh` takes off the row of this cell: nothing, one mass in two parts, or a distribution's."""


@overload(less_of, jit_options={"forceinline": True})
def _less_of(p: Any, one: Any, cell: Any, mass: Any) -> Any:
    def nothing(p: Any, one: Any, cell: Any, mass: Any) -> Any:
        return None

    def shared(p: Any, one: Any, cell: Any, mass: Any) -> Any:
        by = get(1.0, cell + SCALE) * p.of_q * get(1.0, p.shared_mass)
        high = type(one)(by)
        return high, low_part(by, high)

    def soft(p: Any, one: Any, cell: Any, mass: Any) -> Any:
        by = get(1.0, cell + SCALE) * p.of_q
        high = type(one)(by)
        return high, low_part(by, high), (get(np.int64(0), cell + MASSES), mass)

    if isinstance(mass, types.NoneType):
        return nothing
    return shared if isinstance(mass, types.Boolean) else soft


@jit()
def hess_weights_of(p: Any, one: Any, j: Any, s: Any) -> Any:
    """The same of the Hessian."""
    cell = s.table + j * 8
    of_h, least, at_y = get(1.0, cell + OF_H), get(1.0, cell + LEAST), get(1.0, cell + H_Y)
    c, one_of = type(one)(of_h), type(one)
    less = (
        one_of(get(1.0, cell + INVERSE)), one_of(get(1.0, cell + TOP)), one_of(get(1.0, cell + H_TOP)),
        one_of(least),
    )  # fmt: skip
    return c, low_part(of_h, c), less, one_of(elements.at_least(at_y, least))
