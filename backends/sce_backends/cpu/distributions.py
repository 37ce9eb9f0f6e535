"""The first pass over a tile of rows whose targets are distributions.

What labels have, a class whose term never enters a sum, is the row's largest class t here. So its
1 - p is a sum of the others and no difference; they have p <= 1/2, where Q p - q may be taken as it stands.
t is not known before the row's end: whichever class is the largest so far is kept apart, and put back when a
block has a larger one. So a row is still read once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cache import jit
from .memory import get, prefetch, put, size_of, widen
from .reading import highest, highest_of_row, keep_pivot, put_exp, read, set_pivot, sum_of, witness
from .simd import LINE, anywhere, first_of, fused, load, load_first, only, select, splat, total
from .tile import AHEAD, BLOCK, DOT, MASS, MASS_Y, MASSES, REST, ROW, SCALE, SLACK, TARGET
from .vector_math import LN2_HIGH, LN2_LOW, add, finish
from .writing import write_row

# `soft` is a witness, as `of` and `one` are: of the target's type in memory.


@jit()
def place_of(of: Any, one: Any, z: Any, n: Any, value: Any) -> Any:
    """The first of n classes that has this logit, -1 if none has."""
    lanes, none = LINE // size_of(one), type(one)(np.nan)
    for k in range(0, n, lanes):
        at, left = z + k * size_of(of), n - k
        found = (load(of, at, one) if left >= lanes else load_first(of, at, one, left, none)) == value
        if anywhere(found):
            return k + first_of(found)
    return np.int64(-1)


@jit()
def mass_of(soft: Any, masses: Any, k: Any) -> Any:
    """q at class k of a row."""
    return np.float64(widen(get(soft, masses + k * size_of(soft))))


@jit()
def gap_of(of: Any, z: Any, lo: Any, at: Any, k: Any, base: Any) -> Any:
    """pivot - z at class `at` of those at z."""
    x = np.float64(widen(get(of, z + at * size_of(of))))
    gap = (np.float64(base) + k * LN2_HIGH - x) + k * LN2_LOW
    if lo is not None and abs(gap) < np.inf:
        gap -= np.float64(get(base, lo + at * size_of(base)))
    return gap


@jit()
def masses_of(
    of: Any, one: Any, soft: Any, z: Any, lo: Any, masses: Any, n: Any, at: Any, k: Any, base: Any,
    masked: Any,
) -> Any:  # fmt: skip
    """(sum of q, sum of q (pivot - z)) over n classes without the one `at`.

    `masked`, which is True or None, if 0 * inf may occur, which is 0: NaN says that it has.
    """
    lanes, zero = LINE // 8, splat(0.0)
    high = splat(np.float64(base) + k * LN2_HIGH)
    mass, dot = zero, zero
    for i in range(-(-n // lanes)):
        x_at, y_at, left = z + i * lanes * size_of(of), masses + i * lanes * size_of(soft), n - i * lanes
        prefetch(y_at + AHEAD)
        if at // lanes == i or left < lanes:
            x, q = load_first(of, x_at, 0.0, left, 0.0), load_first(soft, y_at, 0.0, left, 0.0)
            q = select(only(0.0, at - i * lanes), zero, q)
            x = select(only(0.0, at - i * lanes), zero, x)
        else:
            x, q = load(of, x_at, 0.0), load(soft, y_at, 0.0)
        gap = high - x
        if lo is not None:
            less = load(one, lo + i * lanes * size_of(one), 0.0)
            gap = gap - select(less - less == 0.0, less, zero)  # an infinite z has none
        mass = mass + q
        if masked is not None:
            gap = select(q != 0.0, gap, zero)
        dot = fused(q, gap, dot)
    whole = total(mass)
    return whole, total(dot) + whole * (k * LN2_LOW)


@jit()
def soft_row(
    p: Any, of: Any, one: Any, soft: Any, j: Any, plain: Any, affine: Any, capped: Any, s: Any
) -> None:
    """The statistics of the tile's j-th row and its exponentials, with 0 at its largest class.

    The pivot is found as for `long_row`.
    """
    cell, kind = s.table + j * 8, witness(of, one, plain)
    e, masses = s.tile + j * p.width * size_of(one), get(np.int64(0), cell + MASSES)
    row = get(np.int64(0), cell + ROW)
    high, known, k, base, far = type(one)(0), False, 0.0, type(one)(0), False
    if size_of(one) == 8 or p.sharp or abs(get(1.0, cell + SCALE) * p.of_q) < 1e-15:
        high, known = highest_of_row(p, of, one, row, j, plain, affine, capped, s), True
        k, base, far = set_pivot(p, high)
    ahead = np.int64(AHEAD)
    rest, mass, dot = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)
    top, t, e_t, q_t, gap_t = type(one)(0), np.int64(-1), type(one)(0), 0.0, 0.0
    start = np.int64(0)
    while start < p.classes:
        n = min(BLOCK, p.classes - start)
        z, lo = read(p, of, one, row, start, n, j, plain, affine, capped, s)
        most = highest(kind, one, z, n)
        if not known and (start == 0 or most > high + SLACK):
            high = most
            if start > 0:
                high, known = highest_of_row(p, of, one, row, j, plain, affine, capped, s), True
            k, base, far = set_pivot(p, high)
            if start > 0:
                rest, mass, dot, t, start = (0.0, 0.0), (0.0, 0.0), (0.0, 0.0), np.int64(-1), np.int64(0)
                continue
        at = np.int64(-1)
        if t < 0 or most > top:
            at = place_of(kind, one, z, n, most)
        if at >= 0:
            if t >= 0:  # no longer the largest
                put(one, e + t * size_of(one), e_t)
                rest, mass = add(rest[0], rest[1], np.float64(e_t)), add(mass[0], mass[1], q_t)
                if q_t != 0.0:
                    dot = add(dot[0], dot[1], q_t * gap_t)
            top, t = most, start + at
            q_t, gap_t = mass_of(soft, masses, t), gap_of(kind, z, lo, at, k, base)
            keep_pivot(s, j, kind, k, base, z, lo, at)
        elif start == 0:
            keep_pivot(s, j, kind, k, base, z, lo, at)
        here = masses + start * size_of(soft)
        more, gaps = masses_of(kind, one, soft, z, lo, here, n, at, k, base, None)
        if gaps != gaps:
            more, gaps = masses_of(kind, one, soft, z, lo, here, n, at, k, base, True)
        mass, dot = add(mass[0], mass[1], more), add(dot[0], dot[1], gaps)
        to = e + start * size_of(one)
        if far:
            put_exp(kind, one, z, lo, n, k, base, to, ahead)
        else:
            put_exp(kind, one, z, lo, n, k, None, to, ahead)
        if at >= 0:
            e_t = get(one, to + at * size_of(one))
            put(one, to + at * size_of(one), type(one)(0))
        rest = add(rest[0], rest[1], sum_of(one, to, n))
        start += n
    put(1.0, cell + TARGET, t)
    put(1.0, cell + MASS_Y, q_t)
    put(1.0, cell + MASS, finish(mass[0], mass[1]))
    put(1.0, cell + DOT, finish(dot[0], dot[1]))
    put(1.0, cell + REST, finish(rest[0], rest[1]))


@jit()
def statistics(
    p: Any, of: Any, one: Any, into: Any, soft: Any, rows: Any, plain: Any, affine: Any, capped: Any,
    grad: Any, s: Any, before: Any, held: Any,
) -> None:  # fmt: skip
    """As labels.statistics."""
    for j in range(rows):
        if get(1.0, s.table + j * 8 + SCALE) != 0.0:
            soft_row(p, of, one, soft, j, plain, affine, capped, s)
        if grad is not None and j < held:
            write_row(p, one, into, j, held, soft, capped, None, before)
