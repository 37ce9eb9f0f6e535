"""The first pass over a tile of rows whose targets are labels.

The target's term never enters the sum, so that 1 - p_y is a sum of the others and no difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cache import jit
from .memory import get, put, size_of
from .reading import (
    highest,
    highest_of_row,
    keep_pivot,
    put_exp,
    read,
    set_pivot,
    sum_of,
    sum_without,
    top_and_rest,
    witness,
)
from .tile import AHEAD, BLOCK, DOT, PIVOT, REST, ROW, SCALE, SLACK, TARGET, TOP, address_in
from .vector_math import LN2_HIGH, LN2_LOW, add, finish
from .writing import write_row


@jit()
def statistics(
    p: Any, of: Any, one: Any, into: Any, rows: Any, plain: Any, smooth: Any, affine: Any, capped: Any,
    grad: Any, hess: Any, s: Any, before: Any, held: Any,
) -> None:  # fmt: skip
    """As tiles.statistics, whose addresses and targets are in the table."""
    if p.classes <= BLOCK:
        short_rows(p, of, one, into, rows, plain, smooth, affine, capped, grad, hess, s, before, held)
    else:
        for j in range(rows):
            if get(1.0, s.table + j * 8 + SCALE) != 0.0:
                long_row(p, of, one, j, plain, smooth, affine, capped, hess, s)
            if grad is not None and j < held:
                write_row(p, one, into, j, held, smooth, capped, hess, before)


@jit()
def short_rows(
    p: Any, of: Any, one: Any, into: Any, rows: Any, plain: Any, smooth: Any, affine: Any, capped: Any,
    grad: Any, hess: Any, s: Any, before: Any, held: Any,
) -> None:  # fmt: skip
    """One thing for all rows after the other: what one row waits for is done long before it is asked for."""
    n, kind, zero = p.classes, witness(of, one, plain), type(one)(0)
    for j in range(rows):
        cell = s.table + j * 8
        z, _ = read(p, of, one, get(np.int64(0), cell + ROW), np.int64(0), n, j, plain, affine, capped, s)
        put(1.0, cell + PIVOT, highest(kind, one, z, n))
    ahead = address_in(p.tile * n * size_of(of), 0, plain)
    for j in range(rows):
        cell = s.table + j * 8
        e, y = s.tile + j * p.width * size_of(one), np.int64(get(1.0, cell + TARGET))
        z, lo = reread(p, one, j, plain, affine, s)
        k, base, far = set_pivot(p, type(one)(get(1.0, cell + PIVOT)))
        keep_pivot(s, j, kind, k, base, z, lo, y)
        if smooth is not None:
            put(1.0, cell + DOT, gaps_of(p, kind, one, z, lo, n, k, base, y))
        else:
            put(1.0, cell + DOT, 0.0)
        if far:
            put_exp(kind, one, z, lo, n, k, base, e, ahead)
        else:
            put_exp(kind, one, z, lo, n, k, None, e, ahead)
        if y >= 0:
            put(one, e + y * size_of(one), zero)
        if grad is not None and j < held:
            write_row(p, one, into, j, held, smooth, capped, hess, before)
    for j in range(rows):
        e, cell = s.tile + j * p.width * size_of(one), s.table + j * 8
        if hess is None:
            put(1.0, cell + REST, sum_of(one, e, n))
        else:
            most, rest = top_and_rest(one, e, n)
            put(1.0, cell + TOP, most)
            put(1.0, cell + REST, rest)


@jit()
def reread(p: Any, one: Any, j: Any, plain: Any, affine: Any, s: Any) -> Any:
    """What `read` gave for a whole row."""
    if plain is not None:
        return get(np.int64(0), s.table + j * 8 + ROW), None
    if affine is None:
        return s.tile + j * p.width * size_of(one), None
    return s.tile + j * p.width * size_of(one), s.lows + j * p.width * size_of(one)


@jit()
def long_row(
    p: Any, of: Any, one: Any, j: Any, plain: Any, smooth: Any, affine: Any, capped: Any, hess: Any, s: Any
) -> None:
    """The statistics of the tile's j-th row and its exponentials, with 0 at its class.

    The pivot comes from the first block, and from the whole row if that rises more than SLACK above it, or
    always in float64, where even the slack would cost accuracy, for `sharp`, and in pieces.
    """
    cell = s.table + j * 8
    kind, y = witness(of, one, plain), np.int64(get(1.0, cell + TARGET))
    e, row = s.tile + j * p.width * size_of(one), get(np.int64(0), cell + ROW)
    top, known, k, base, far = type(one)(0), False, 0.0, type(one)(0), False
    small = abs(get(1.0, cell + SCALE) * p.of_q) < 1e-15  # with SLACK on top the coefficient might underflow
    if hess is not None:
        small = small or abs(get(1.0, cell + SCALE) * p.of_h) < 1e-15
    if size_of(one) == 8 or p.sharp or p.pieces > 1 or small:
        top, known = highest_of_row(p, of, one, row, j, plain, affine, capped, s), True
        k, base, far = set_pivot(p, top)
    rest, error, dot, dot_error, ahead = 0.0, 0.0, 0.0, 0.0, address_in(np.int64(AHEAD), 0, plain)
    most = 0.0
    start = s.first
    while start < s.stop:
        size = min(BLOCK, s.stop - start)
        z, lo = read(p, of, one, row, start, size, j, plain, affine, capped, s)
        if start == s.first and not known:
            top = highest(kind, one, z, size)
            k, base, far = set_pivot(p, top)
        to = e + (start - s.first) * size_of(one)
        if far:
            m = put_exp(kind, one, z, lo, size, k, base, to, ahead)
        else:
            m = put_exp(kind, one, z, lo, size, k, None, to, ahead)
        if not known and m > top + SLACK:
            top, known = highest_of_row(p, of, one, row, j, plain, affine, capped, s), True
            k, base, far = set_pivot(p, top)
            rest, error, dot, dot_error, start, most = 0.0, 0.0, 0.0, 0.0, s.first, 0.0
            continue
        at = y - start if start <= y < start + size else np.int64(-1)
        if at >= 0:
            put(one, to + at * size_of(one), type(one)(0))
        if at >= 0 or start == s.first:
            keep_pivot(s, j, kind, k, base, z, lo, at)
        if hess is None:
            rest, error = add(rest, error, sum_of(one, to, size))
        else:
            largest, others = top_and_rest(one, to, size)
            rest, error = add(rest, error, others + min(most, largest))
            most = max(most, largest)
        if smooth is not None:
            dot, dot_error = add(dot, dot_error, gaps_of(p, kind, one, z, lo, size, k, base, at))
        start += size
    put(1.0, cell + REST, finish(rest, error))
    put(1.0, cell + DOT, finish(dot, dot_error))
    if hess is not None:
        put(1.0, cell + TOP, most)


@jit()
def gaps_of(p: Any, of: Any, one: Any, z: Any, lo: Any, n: Any, k: Any, base: Any, at: Any) -> Any:
    """What smoothing's mass at n classes adds to the loss, relative to the pivot."""
    pivot, counted = np.float64(base) + k * LN2_HIGH + k * LN2_LOW, n - 1 if at >= 0 else n
    return get(1.0, p.shared_mass) * (counted * pivot - sum_without(of, one, z, lo, n, at))
