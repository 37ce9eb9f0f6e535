"""A few rows of very many classes: pieces of rows, so that all threads have work.

Twice over the pieces. First their statistics and exponentials, each relative to a pivot of its own, as
labels.py finds them for rows. Then whoever takes a piece puts together what the pieces of its row have found,
and makes the piece's gradient of its exponentials. What a piece is depends on the shape alone, and so do the
bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import elements
from .cache import jit
from .labels import long_row
from .memory import get, put, row_at, size_of, view, view_of_records, widen
from .parameters import PARAMETERS
from .reading import read, set_pivot, targets, witness
from .settling import settle
from .tile import (
    BLOCK,
    COLUMN,
    DOT,
    GAP,
    GAP_LO,
    LOSS,
    OF_P,
    PIVOT,
    PIVOT_LO,
    REST,
    ROW,
    SCALE,
    TARGET,
    Z_LOSS,
    Scratch,
    scratch_of,
)
from .vector_math import LN2_HIGH, LN2_LOW, add, difference_error, exp, finish
from .writing import emit, weights_of

PIECE = 1 << 15  # classes
FOUND = 6 * 8  # bytes that a piece leaves: PIVOT .. DOT, which are neighbours in a table


@jit()
def first_pass(
    p: Any, of: Any, one: Any, found: Any, plain: Any, smooth: Any, affine: Any, capped: Any, s: Any
) -> None:
    """The statistics of classes s.first .. s.stop of the row in the table, to `found`."""
    long_row(p, of, one, np.int64(0), plain, smooth, affine, capped, None, s)
    for k in range(6):
        put(1.0, found + k * 8, get(1.0, s.table + PIVOT + k * COLUMN))
    if get(1.0, found) == -np.inf:
        # Nothing but -inf, which has no part in the row, and NaN, which is all that matters.
        rest, kind = 0.0, witness(of, one, plain)
        row = get(np.int64(0), s.table + ROW)
        for start in range(s.first, s.stop, BLOCK):
            n = min(BLOCK, s.stop - start)
            z, _ = read(p, of, one, row, start, n, np.int64(0), plain, affine, capped, s)
            for k in range(n):
                x = np.float64(widen(get(kind, z + k * size_of(kind))))
                rest = x if x != x else rest
        elements.fill(view(one, s.tile, s.stop - s.first), None, type(one)(0))
        put(1.0, found + 2 * 8, -np.inf)
        put(1.0, found + 3 * 8, 0.0)
        put(1.0, found + 4 * 8, rest)
        put(1.0, found + 5 * 8, np.inf)


@jit()
def put_together(p: Any, one: Any, found: Any, table: Any, smooth: Any) -> Any:
    """What the pieces of a row have found, to the table, relative to one pivot, which it returns."""
    best = -np.inf
    for q in range(p.pieces):
        pivot = get(1.0, found + q * FOUND)
        best = pivot if pivot > best else best
    k, base, _ = set_pivot(p, type(one)(best))
    high, low = np.float64(base) + k * LN2_HIGH, k * LN2_LOW
    y = np.int64(get(1.0, table + TARGET))
    rest, error, dot, dot_error, gap, gap_lo = 0.0, 0.0, 0.0, 0.0, -np.inf, 0.0
    for q in range(p.pieces):
        at = found + q * FOUND
        pivot, others, gaps = get(1.0, at), get(1.0, at + 4 * 8), get(1.0, at + 5 * 8)
        by, by_lo = pivot - high, get(1.0, at + 8) - low
        here = q * PIECE <= y < (q + 1) * PIECE
        if pivot == -np.inf:
            rest += others
        else:
            by_lo += difference_error(pivot, high, by)
            rest, error = add(rest, error, others * exp(by, by_lo))
            if here:
                gap = get(1.0, at + 2 * 8) + by
                gap_lo = difference_error(get(1.0, at + 2 * 8), -by, gap) + (get(1.0, at + 3 * 8) + by_lo)
        if smooth is not None:
            counted = min(PIECE, p.classes - q * PIECE) - (1 if here else 0)
            if pivot != -np.inf:
                gaps -= get(1.0, p.shared_mass) * counted * (by + by_lo)
            if counted > 0:
                dot, dot_error = add(dot, dot_error, gaps)
    if best == -np.inf:
        rest = np.nan
    put(1.0, table + PIVOT, high)
    put(1.0, table + PIVOT_LO, low)
    put(1.0, table + GAP, gap)
    put(1.0, table + GAP_LO, gap_lo if abs(gap) < np.inf else 0.0)
    put(1.0, table + REST, finish(rest, error))
    put(1.0, table + DOT, finish(dot, dot_error))
    return high, low


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any, into: Any, plain: Any,
    smooth: Any, affine: Any, capped: Any, grad: Any,
) -> None:  # fmt: skip
    """Pieces first .. last of all rows, in one of the two passes."""
    p = view_of_records(PARAMETERS, parameters)[0]
    for chunk in range(first, last):
        i, part = chunk // p.pieces, chunk % p.pieces
        begin, end = part * PIECE, min((part + 1) * PIECE, p.classes)
        own = scratch_of(p, one, worker, begin, end)
        place = (i * p.pieces + part) * PIECE  # where its exponentials and slopes stay until the second pass
        s = Scratch(
            own.z, own.lo, own.curve, own.table, p.exponentials + place * size_of(one), own.lows,
            p.slopes + place * 8, own.line, begin, end,
        )  # fmt: skip
        found = p.found + i * p.pieces * FOUND
        targets(p, i, np.int64(1), smooth, s.table)
        put(np.int64(0), s.table + ROW, row_at(p.logits, i // p.inner, i % p.inner))
        scale = get(1.0, s.table + SCALE)
        if p.second == 0:
            if scale != 0.0:
                first_pass(p, of, one, found + part * FOUND, plain, smooth, affine, capped, s)
        else:
            high, low = put_together(p, one, found, s.table, smooth)
            settle(s.table, one, np.int64(1), p, None)
            if part == 0:
                loss, z_loss = get(1.0, s.table + LOSS), get(1.0, s.table + Z_LOSS)
                if p.loss:
                    put(one, p.loss + i * size_of(one), loss)
                if p.z_loss_rows:
                    put(one, p.z_loss_rows + i * size_of(one), z_loss)
            else:  # a row's loss counts once
                loss, z_loss = 0.0, 0.0
            put(1.0, p.partial + chunk * 16, loss)
            put(1.0, p.partial + chunk * 16 + 8, z_loss)
            if grad is not None:
                out = row_at(p.grad, i // p.inner, i % p.inner) + begin * size_of(into)
                if scale == 0.0:
                    elements.fill(view(one, s.tile, end - begin), None, type(one)(0))
                    if capped is not None:
                        elements.fill(view(1.0, s.slope, end - begin), None, 0.0)
                of_p = get(1.0, s.table + OF_P)
                pivot = get(1.0, found + part * FOUND)
                if scale != 0.0 and pivot != -np.inf:  # its exponentials are relative to this one
                    by = pivot - high
                    err = difference_error(pivot, high, by) + (get(1.0, found + part * FOUND + 8) - low)
                    of_p *= exp(by, err)
                put(1.0, s.table + OF_P, of_p)
                weights = weights_of(p, one, np.int64(0), smooth, s)
                emit(p, one, into, np.int64(0), begin, end - begin, out, weights, capped, s, None)
