"""Few classes: a tile of rows as columns, one a class, so that vectors run over the rows.

The passes are those of tiles.py, and `settle` is the same. Rows arrive as columns where the class axis is not
the last one; others are transposed on their way into scratch and out of it.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from . import elements
from .cache import jit
from .memory import (
    fence,
    get,
    prefetch,
    put,
    row_at,
    size_of,
    view,
    view_of_records,
)
from .parameters import PARAMETERS
from .reading import exponential_of, far_from, low_of, targets
from .second_columns import hessian, product
from .settling import put_sums, settle, take_losses
from .simd import (
    F32,
    LINE,
    anywhere,
    fused,
    load,
    rounded,
    select,
    splat,
    store,
)
from .tile import (
    AT_Y,
    COLUMN,
    DOT,
    GAP,
    GAP_LO,
    MASS,
    MASS_Y,
    OF_P,
    PIVOT,
    PIVOT_LO,
    REST,
    SCALE,
    TARGET,
    TILE,
    TOP,
    VALUES,
    address_in,
)
from .transforms import affine as affine_of
from .transforms import reciprocal, scaled, soft_cap
from .transposing import load_columns, store_columns
from .vector_math import LN2_HIGH, LN2_LOW, LOG2E, difference_error, shifts_by
from .wide import add_wide, in_parts, put_wide
from .writing import sloped, weighted

# Addresses. x, lo: columns of p.tile numbers of the compute dtype, one a class; slope: the same in float64;
# curve: a column of float64; table: as in tile.py; y: the rows' classes, in the compute dtype; more: columns
# as of x, for the Hessian's diagonal, or for v and its product; masses: columns of a distribution, in float64
# where it is, else as of x; lines: of rows on their way past the caches.
Scratch = namedtuple("Scratch", "x lo slope curve table y more masses lines")


@jit()
def prepare(p: Any, one: Any, i: Any, rows: Any, smooth: Any, soft: Any, along: Any, s: Any) -> None:
    """The rows' targets. One that is left out holds zeros: nothing of it may matter, not even NaN."""
    targets(p, i, rows, smooth, s.table)
    for j in range(0, rows, 8):
        if along is None:
            store(one, s.y + j * size_of(one), load(1.0, s.table + j * 8 + TARGET, 1.0))
        else:  # of the target no more than its mass is asked for
            store(one, s.y + j * size_of(one), splat(-1.0))
    if p.ignores or p.sample_weight or p.denominator == 0.0:
        for j in range(rows):
            if get(1.0, s.table + j * 8 + SCALE) == 0.0:
                for k in range(p.classes):
                    put(one, s.x + (k * p.tile + j) * size_of(one), type(one)(0))
                    if along is not None:
                        put(one, s.more + (k * p.tile + j) * size_of(one), type(one)(0))
                    if soft is not None:
                        kind = kind_of(one, soft)
                        put(kind, s.masses + (k * p.tile + j) * size_of(kind), 0.0)


def kind_of(one: Any, soft: Any) -> Any:
    """A number of the type that a distribution's columns have."""


@overload(kind_of, inline="always")
def _kind_of(one: Any, soft: Any) -> Any:
    def wide(one: Any, soft: Any) -> Any:
        return 1.0

    def same(one: Any, soft: Any) -> Any:
        return one

    return wide if soft == types.float64 else same


@jit()
def transform(p: Any, one: Any, rows: Any, capped: Any, s: Any) -> None:
    """x and lo become z and the part of it that its dtype cannot hold."""
    by, by_lo = reciprocal(p.temperature, one)
    column = p.tile * size_of(one)
    for k in range(p.classes):
        bias, bias_lo = type(one)(0), type(one)(0)
        if p.bias != 0:
            bias, bias_lo = get(one, p.bias + k * size_of(one)), get(one, p.bias_lo + k * size_of(one))
        if capped is None and p.bias == 0:
            for at in range(k * column, k * column + rows * size_of(one), LINE):
                z, lo = scaled(load(one, s.x + at, one), splat(by), splat(by_lo))
                store(one, s.x + at, z)
                store(one, s.lo + at, lo)
        elif capped is None:
            for at in range(k * column, k * column + rows * size_of(one), LINE):
                z, lo = affine_of(
                    load(one, s.x + at, one), splat(by), splat(by_lo), splat(bias), splat(bias_lo)
                )
                store(one, s.x + at, z)
                store(one, s.lo + at, lo)
        else:
            cap_column(p, one, k, bias, bias_lo, s)


def cap_column(p: Any, one: Any, k: Any, bias: Any, bias_lo: Any, s: Any) -> None:
    """The same of class k under a soft cap."""


@overload(cap_column, jit_options={"error_model": "numpy"})
def _cap_column(p: Any, one: Any, k: Any, bias: Any, bias_lo: Any, s: Any) -> Any:
    def column32(p: Any, one: Any, k: Any, bias: Any, bias_lo: Any, s: Any) -> None:
        for j in range(k * p.tile, (k + 1) * p.tile, 16):
            x = load(one, s.x + j * 4, one)
            z, lo = soft_cap(x, p, splat(bias), splat(bias_lo), s.slope + j * 8)
            store(one, s.x + j * 4, z)
            store(one, s.lo + j * 4, lo)

    def column64(p: Any, one: Any, k: Any, bias: Any, bias_lo: Any, s: Any) -> None:
        at = k * p.tile * 8
        x, lo = view(one, s.x + at, p.tile), view(one, s.lo + at, p.tile)
        slope, curve = view(one, s.slope + at, p.tile), view(one, s.curve, p.tile)
        elements.soft_cap(x, lo, slope, curve, p.temperature, p.softcap, view(one, 0, 0))
        for j in range(p.tile):
            x[j], lo[j] = elements.plus(x[j], lo[j] + bias_lo, bias)

    return column32 if one == F32 else column64


@jit()
def statistics(
    p: Any, of: Any, one: Any, i: Any, rows: Any, smooth: Any, soft: Any, affine: Any, hess: Any, s: Any
) -> None:
    """The inputs of `settle`, and the exponentials over x, with 0 at each row's class.

    Of distributions, that is the largest class: see distributions.py.
    """
    column, size, zero = p.tile * size_of(one), size_of(one), splat(type(one)(0))
    lo, far = address_in(s.lo, np.int64(0), affine), type(one)(far_from(p))
    # The next tile is fetched meanwhile: as much as this one's vector is made of, where that is in one place.
    ahead = row_at(p.logits, i // p.inner, i % p.inner) + p.tile * p.row_step
    apart = p.logits.of_c if p.row_step == size_of(of) else LINE // size * size_of(of)
    for j in range(0, rows, LINE // size):
        x, cell = s.x + j * size, s.table + j * 8
        y, top = load(one, s.y + j * size, one), load(one, x, one)
        if soft is not None:
            y = zero
        for k in range(1, p.classes):
            z = load(one, x + k * column, one)
            if soft is not None:
                y = select(z > top, splat(type(one)(k)), y)
            top = select(z > top, z, top)
        if soft is not None:
            store(one, s.y + j * size, y)
        # As in labels.py, a pivot is k ln 2, and where that is not exact, the maximum itself. Each lane has
        # its own: a row's bits must not depend on its neighbours.
        near = select(top * top < far * far, top, zero)
        base, by = select(near == top, zero, top), rounded(near * type(one)(LOG2E))
        low, line = address_in(lo, j * size, lo), ahead + j * p.row_step
        put_wide(cell + PIVOT, by)
        put_wide(cell + AT_Y, base)
        if soft is not None:
            for part in range(0, LINE // size, LINE // 8):
                put_masses(p, one, soft, i, j + part, lo, s)
        if anywhere(base != zero):
            put_exp(p, one, x, y, base, by, smooth, low, cell, line, apart)
        else:
            put_exp(p, one, x, y, None, by, smooth, low, cell, line, apart)
        for part in range(0, LINE // size, LINE // 8):
            if hess is None:
                store(1.0, cell + part * 8 + REST, sum_down(one, x + part * size, column, p.classes))
            else:
                most, rest = top_and_rest(one, x + part * size, column, p.classes)
                store(1.0, cell + part * 8 + TOP, most)
                store(1.0, cell + part * 8 + REST, rest)
    counted = p.classes - 1 if p.labels else p.classes
    for at in range(s.table, s.table + rows * 8, LINE):
        by, base, z_y = load(1.0, at + PIVOT, 1.0), load(1.0, at + AT_Y, 1.0), load(1.0, at + GAP, 1.0)
        high, low = base + by * LN2_HIGH, by * LN2_LOW
        gap = z_y - high
        err = difference_error(z_y, high, gap) + (load(1.0, at + GAP_LO, 1.0) - low)
        store(1.0, at + PIVOT, high)
        store(1.0, at + PIVOT_LO, low)
        store(1.0, at + GAP, gap)
        store(1.0, at + GAP_LO, select(gap - gap == 0.0, err, splat(0.0)))
        if smooth is not None:
            others = (high + low) * np.float64(counted) - load(1.0, at + DOT, 1.0)
            store(1.0, at + DOT, others * get(1.0, p.shared_mass))
        elif soft is None:
            store(1.0, at + DOT, splat(0.0))


@jit()
def put_masses(p: Any, one: Any, soft: Any, i: Any, j: Any, lo: Any, s: Any) -> None:
    """Of rows j .. j + 8: the largest class's q, and of the others sum q, sum q (pivot - z)."""
    kind, cell, zero = kind_of(one, soft), s.table + j * 8, splat(0.0)
    by, y = load(1.0, cell + PIVOT, 1.0), load(one, s.y + j * size_of(one), 1.0)
    high = load(1.0, cell + AT_Y, 1.0) + by * LN2_HIGH
    at_y, mass, lost, dot, dot_lost = zero, zero, zero, zero, zero
    ahead = row_at(p.distribution, i // p.inner, i % p.inner) + (p.tile + j) * p.soft_step
    apart = p.distribution.of_c if p.soft_step == size_of(soft) else 8 * size_of(soft)
    for k in range(p.classes):
        prefetch(ahead + k * apart)
        place = k * p.tile + j
        z = load(one, s.x + place * size_of(one), 1.0)
        q = load(kind, s.masses + place * size_of(kind), 1.0)
        gap = high - z
        if lo is not None:
            less = load(one, s.lo + place * size_of(one), 1.0)
            gap = gap - select(less - less == 0.0, less, zero)  # an infinite z has none
        here = y == np.float64(k)
        at_y, q = select(here, q, at_y), select(here, zero, q)
        gap = select(q != 0.0, gap, zero)  # 0 * inf = 0
        if size_of(one) == 4:
            mass, dot = mass + q, fused(q, gap, dot)
        else:  # Knuth's two-sum
            term = q * gap
            new, new_dot = mass + q, dot + term
            lost = lost + difference_error(mass, -q, new)
            dot_lost = dot_lost + difference_error(dot, -term, new_dot)
            mass, dot = new, new_dot
    if size_of(one) == 8:
        mass = mass + select(lost - lost == 0.0, lost, zero)
        dot = dot + select(dot_lost - dot_lost == 0.0, dot_lost, zero)
    store(1.0, cell + MASS_Y, at_y)
    store(1.0, cell + MASS, mass)
    store(1.0, cell + DOT, fused(mass, by * LN2_LOW, dot))


def sum_down(one: Any, x: Any, column: Any, n: Any) -> Any:
    """The sums of n columns at x, of 8 rows in float64."""


@overload(sum_down, jit_options={"error_model": "numpy"})
def _sum_down(one: Any, x: Any, column: Any, n: Any) -> Any:
    def sums32(one: Any, x: Any, column: Any, n: Any) -> Any:
        total = splat(0.0)
        for k in range(n):
            total = total + load(one, x + k * column, 0.0)
        return total

    def sums64(one: Any, x: Any, column: Any, n: Any) -> Any:
        total, lost = splat(0.0), splat(0.0)
        for k in range(n):  # Knuth's two-sum
            value = load(one, x + k * column, 0.0)
            new = total + value
            lost = lost + difference_error(total, -value, new)
            total = new
        return total + lost

    return sums32 if one == F32 else sums64


@jit()
def top_and_rest(one: Any, x: Any, column: Any, n: Any) -> Any:
    """(largest, sum of the others) of n columns at x, of 8 rows in float64."""
    top, total, lost = splat(0.0), splat(0.0), splat(0.0)
    for k in range(n):
        value = load(one, x + k * column, 0.0)
        above = value > top
        less, top = select(above, top, value), select(above, value, top)
        new = total + less
        if size_of(one) == 8:  # Knuth's two-sum
            lost = lost + difference_error(total, -less, new)
        total = new
    return top, total + lost


@jit()
def put_exp(
    p: Any,
    one: Any,
    x: Any,
    y: Any,
    base: Any,
    by: Any,
    smooth: Any,
    lo: Any,
    cell: Any,
    ahead: Any,
    apart: Any,
) -> None:
    """2^-by exp(z - base) over z for a vector of rows; the logit at y to GAP, the sum of others to DOT."""
    column, zero = p.tile * size_of(one), splat(type(one)(0))
    shift, floor = shifts_by(by)
    at_y, at_y_lo = splat(type(one)(-np.inf)), zero
    for k in range(p.classes):
        prefetch(ahead + k * apart)
        z, low = load(one, x + k * column, one), low_of(one, lo, k * column)
        here = y == type(one)(k)
        at_y = select(here, z, at_y)
        if lo is not None:
            at_y_lo = select(here, load(one, lo + k * column, one), at_y_lo)
        e = exponential_of(z, low, base, shift, floor)
        if smooth is not None:
            add_wide(cell + DOT, select(here, zero, z), k)
        store(one, x + k * column, select(here, zero, e))
    put_wide(cell + GAP, at_y)
    put_wide(cell + GAP_LO, at_y_lo)


def less_of(one: Any, cell: Any, smooth: Any, soft: Any) -> Any:
    """Of a vector of rows what `less_at` asks for: nothing, one mass, or a distribution's factor."""


@overload(less_of, jit_options={"forceinline": True})
def _less_of(one: Any, cell: Any, smooth: Any, soft: Any) -> Any:
    def nothing(one: Any, cell: Any, smooth: Any, soft: Any) -> Any:
        return None

    def shared(one: Any, cell: Any, smooth: Any, soft: Any) -> Any:
        return in_parts(one, cell + DOT)

    if not (isinstance(soft, types.NoneType) and isinstance(smooth, types.NoneType)):
        return shared
    return nothing


def less_at(one: Any, less: Any, soft: Any, masses: Any, place: Any) -> Any:
    """`weighted`'s for a vector."""


@overload(less_at, jit_options={"forceinline": True})
def _less_at(one: Any, less: Any, soft: Any, masses: Any, place: Any) -> Any:
    def same(one: Any, less: Any, soft: Any, masses: Any, place: Any) -> Any:
        return less

    def masses_at(one: Any, less: Any, soft: Any, masses: Any, place: Any) -> Any:
        kind = kind_of(one, soft)
        return less[0], less[1], load(kind, masses + place * size_of(kind), one)

    return same if isinstance(soft, types.NoneType) else masses_at


@jit()
def gradient(p: Any, one: Any, rows: Any, smooth: Any, soft: Any, capped: Any, s: Any) -> None:
    """The gradient over the exponentials."""
    column, size = p.tile * size_of(one), size_of(one)
    for j in range(0, rows, LINE // size):
        x, cell = s.x + j * size, s.table + j * 8
        y, at_y = load(one, s.y + j * size, one), in_parts(one, cell + AT_Y)
        c, c_lo = in_parts(one, cell + OF_P)
        if smooth is not None:
            for at in range(cell, cell + LINE * 8 // size, LINE):  # to where `settle` has read
                mass = load(1.0, at + SCALE, 1.0) * (p.of_q * get(1.0, p.shared_mass))
                store(1.0, at + DOT, mass)
        if soft is not None:
            for at in range(cell, cell + LINE * 8 // size, LINE):
                store(1.0, at + DOT, load(1.0, at + SCALE, 1.0) * p.of_q)
        less = less_of(one, cell, smooth, soft)
        for k in range(p.classes):
            e = load(one, x + k * column, one)
            place = k * p.tile + j
            g = weighted(e, c, c_lo, less_at(one, less, soft, s.masses, place))
            g = select(y == type(one)(k), at_y[0], g)
            slope = address_in(s.slope, place * 8, capped)
            store(one, x + k * column, sloped(g, slope, 0))


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any, into: Any, smooth: Any,
    soft: Any, affine: Any, capped: Any, grad: Any, hess: Any, along: Any, log: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, as kernel.work."""
    p = view_of_records(PARAMETERS, parameters)[0]
    size, table = TILE * size_of(one), VALUES * COLUMN + 2 * LINE
    s = Scratch(
        p.exponentials + worker * p.tile_bytes,
        p.lows + worker * p.tile_bytes,
        p.slopes + worker * p.tile * p.width * 8,
        p.curves + worker * TILE * 8,
        p.table + worker * table,
        p.blocks + worker * size,
        p.more + worker * p.tile_bytes,
        p.masses + worker * p.tile * p.width * 8,
        p.lines + worker * p.tile * p.classes * size_of(into),
    )
    for chunk in range(first, last):
        sums = (0.0, 0.0, 0.0, 0.0)
        i, stop = chunk * p.chunk, min(p.rows, (chunk + 1) * p.chunk)
        while i < stop:
            rows = min(p.tile, stop - i, p.run - i % p.run)
            load_columns(p, of, one, i, rows, p.logits, p.row_step, s.x)
            if along is not None:
                load_columns(p, of, one, i, rows, p.direction, p.v_step, s.more)
            if soft is not None:
                kind = kind_of(one, soft)
                load_columns(p, soft, kind, i, rows, p.distribution, p.soft_step, s.masses)
            prepare(p, one, i, rows, smooth, soft, along, s)
            if affine is not None:
                transform(p, one, rows, capped, s)
            if along is None:
                statistics(p, of, one, i, rows, smooth, soft, affine, hess, s)
                settle(s.table, one, rows, p, hess)
                sums = take_losses(p, one, i, rows, s.table, sums)
            else:
                statistics(p, of, one, i, rows, None, None, affine, None, s)
                product(p, one, rows, log, s)
                if log is None:
                    store_columns(p, one, into, i, rows, s.more, p.hvp, p.product_step, s)
                else:
                    store_columns(p, one, into, i, rows, s.more, p.log_softmax_jvp, p.product_step, s)
            if hess is not None:
                hessian(p, one, rows, s)
                store_columns(p, one, into, i, rows, s.more, p.hess_diag, p.hess_step, s)
            if grad is not None:
                gradient(p, one, rows, smooth, soft, capped, s)
                store_columns(p, one, into, i, rows, s.x, p.grad, p.grad_step, s)
            i += rows
        put_sums(p, chunk, sums)
    if p.past_caches:
        fence()
