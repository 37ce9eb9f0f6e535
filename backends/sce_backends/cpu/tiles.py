"""The rows that most calls consist of, a tile of some at a time: loss and gradient of an index target, and
the Hessian's diagonal.

Three passes over a tile, of which only the first reads memory and only the last writes it:

1. `statistics`: row by row, e_k = exp(z_k - pivot) into scratch, and their sum without the target's;
2. `settle`: what becomes of these statistics, for all rows of the tile at once: it takes logarithms and
   divides, and vectors make that cheap where rows are short;
3. `write_row`: row by row, the gradient is e_k times a coefficient, and goes out, during the first pass over
   the next tile.

The target's term never enters the sum, so that 1 - p_y is a sum of the others and no difference. The pivot
needs not be the row's maximum, only near enough that nothing overflows: so one pass finds it and uses it. It
is a multiple of ln 2, which `exponential` takes off at no cost.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from . import elements, simd
from .cache import inline, jit
from .kernel import target_of
from .memory import (
    copy_line,
    fence,
    gather_line,
    get,
    prefetch,
    put,
    row_at,
    size_of,
    view,
    view_of_records,
    widen,
)  # fmt: skip
from .parameters import PARAMETERS
from .rows import low_part
from .simd import (
    F32,
    LINE,
    anywhere,
    fused,
    halves,
    joined,
    load,
    load_first,
    load_integers,
    only,
    select,
    splat,
    store,
    store_first,
    stream,
)
from .transforms import affine as affine_of
from .transforms import reciprocal, scaled, soft_cap
from .vector_math import (
    FAR,
    LN2_HIGH,
    LN2_LOW,
    LOG2E,
    add,
    difference_error,
    exponential,
    finish,
    log1p,
    shifted_by,
    short_exponential,
    short_log1p,
)  # fmt: skip

BLOCK = 512  # classes taken at once
AHEAD = 32768  # bytes that are fetched ahead of them
TILE = 128  # rows of a tile, at most
SLACK = 32.0  # how far a row may rise above its pivot

# Where a tile's values begin, columns of TILE float64, in bytes: what `settle` is given, what it leaves, and
# the addresses of the rows of logits, gradient, Hessian and target, which are integers.
VALUES, COLUMN = 24, TILE * 8
_PLACES = range(0, VALUES * COLUMN, COLUMN)
SCALE, TARGET, MASS_Y, MASS, PIVOT, PIVOT_LO, GAP, GAP_LO = _PLACES[:8]
REST, DOT, OF_P, AT_Y, LOSS, Z_LOSS, ROW, OUT = _PLACES[8:16]
TOP, INVERSE, OF_H, H_TOP, H_Y, LEAST, OUT_H = _PLACES[16:23]  # for the Hessian's diagonal alone
MASSES = _PLACES[23]  # for distributions alone

# The witnesses that kernels are compiled for: `one` a number of the compute dtype, `of` and `into` of the
# types that logits and gradient have in memory. Switches are True, or None and compiled away: `plain`, the
# logits can be read where they lie; the others are options.

Scratch = namedtuple("Scratch", "z lo curve table tile lows slope line first stop")
Scratch.__doc__ = """A worker's memory: addresses, because arrays would be copied from call to call.

z, lo: of BLOCK numbers of the compute dtype, curve of float64. table: the values. tile: of the exponentials,
rows of p.width numbers of the compute dtype; lows, of short rows' lo, the same; slope, of dz/dx under a soft
cap, in float64. line: of two cache lines. And the classes that it is for: first .. stop.
"""


@jit()
def read(
    p: Any, of: Any, one: Any, row: Any, start: Any, n: Any, j: Any, plain: Any, affine: Any, capped: Any,
    s: Any,
) -> Any:  # fmt: skip
    """Where classes start .. start + n of the tile's j-th row lie transformed: addresses of z and lo."""
    address = row + start * p.logits.of_c
    if plain is not None:
        return address, None
    z, lo = s.z, s.lo
    if p.classes <= BLOCK:  # a short row is read once: its exponentials will lie over it
        z, lo = s.tile + j * p.width * size_of(one), s.lows + j * p.width * size_of(one)
    if p.logits.of_c != size_of(of):
        gather_line(of, address, p.logits.of_c, view(one, z, n))
        if affine is not None:
            transform(p, one, one, z, z, lo, start, n, j, capped, s)
    elif affine is not None:
        transform(p, of, one, address, z, lo, start, n, j, capped, s)
    return z, address_in(lo, np.int64(0), affine)


def transform(
    p: Any, of: Any, one: Any, x: Any, z: Any, lo: Any, start: Any, n: Any, j: Any, capped: Any, s: Any
) -> None:
    """z + lo of n classes, from `start` on, of the tile's j-th row, whose logits lie at x; and slopes."""


@overload(transform, jit_options={"error_model": "numpy"})
def _transform(
    p: Any, of: Any, one: Any, x: Any, z: Any, lo: Any, start: Any, n: Any, j: Any, capped: Any, s: Any
) -> Any:
    def affine_block(
        p: Any, of: Any, one: Any, x: Any, z: Any, lo: Any, start: Any, n: Any, j: Any, capped: Any, s: Any
    ) -> None:
        lanes, size = LINE // size_of(one), size_of(one)
        by, by_lo = reciprocal(p.temperature, one)
        for i in range(-(-n // lanes)):
            at, place = x + i * lanes * size_of(of), start * size + i * LINE
            prefetch(at + AHEAD)
            found = load_first(of, at, one, n - i * lanes, type(one)(0))
            if p.bias == 0:
                high, low = scaled(found, splat(by), splat(by_lo))
            else:
                bias, bias_lo = load(one, p.bias + place, one), load(one, p.bias_lo + place, one)
                high, low = affine_of(found, splat(by), splat(by_lo), bias, bias_lo)
            store(one, z + i * LINE, high)
            store(one, lo + i * LINE, low)

    def capped_block32(
        p: Any, of: Any, one: Any, x: Any, z: Any, lo: Any, start: Any, n: Any, j: Any, capped: Any, s: Any
    ) -> None:
        slope = s.slope + (j * p.width + start - s.first) * 8
        for i in range(-(-n // 16)):
            at = x + i * 16 * size_of(of)
            prefetch(at + AHEAD)
            bias = load(one, p.bias + start * 4 + i * LINE, one)
            bias_lo = load(one, p.bias_lo + start * 4 + i * LINE, one)
            found = load_first(of, at, one, n - i * 16, type(one)(0))
            high, low = soft_cap(found, p, bias, bias_lo, slope + i * 2 * LINE)
            store(one, z + i * LINE, high)
            store(one, lo + i * LINE, low)

    def capped_block64(
        p: Any, of: Any, one: Any, x: Any, z: Any, lo: Any, start: Any, n: Any, j: Any, capped: Any, s: Any
    ) -> None:
        high, slope = view(1.0, z, n), view(1.0, s.slope + (j * p.width + start - s.first) * 8, n)
        if x != z:
            gather_line(of, x, size_of(of), high)
        bias = view(1.0, p.bias + start * 8, n)
        elements.soft_cap(
            high, view(1.0, lo, n), slope, view(1.0, s.curve, n), p.temperature, p.softcap, bias
        )

    if isinstance(capped, types.NoneType):
        return affine_block
    return capped_block32 if one == F32 else capped_block64


@jit()
def highest(of: Any, one: Any, z: Any, n: Any) -> Any:
    """The largest of n classes, leaving NaN aside."""
    lanes, low = LINE // size_of(one), type(one)(-np.inf)
    top, step = splat(low), lanes * size_of(of)
    for k in range(n // lanes):
        x = load(of, z + k * step, one)
        top = select(x > top, x, top)
    if n % lanes:
        x = load_first(of, z + n // lanes * step, one, n % lanes, low)
        top = select(x > top, x, top)
    return simd.largest(top)


@jit()
def highest_of_row(
    p: Any, of: Any, one: Any, row: Any, j: Any, plain: Any, affine: Any, capped: Any, s: Any
) -> Any:
    top = type(one)(-np.inf)
    for start in range(s.first, s.stop, BLOCK):
        n = min(BLOCK, s.stop - start)
        z, _ = read(p, of, one, row, start, n, j, plain, affine, capped, s)
        found = highest(witness(of, one, plain), one, z, n)
        top = found if found > top else top
    return top


@inline()
def witness(of: Any, one: Any, plain: Any) -> Any:
    """Of what `read` found."""
    if plain is None:
        return one
    return of


def low_of(one: Any, lo: Any, offset: Any) -> Any:
    """The vector at lo + offset, or None."""


@overload(low_of, jit_options={"forceinline": True})
def _low_of(one: Any, lo: Any, offset: Any) -> Any:
    if isinstance(lo, types.NoneType):

        def nothing(one: Any, lo: Any, offset: Any) -> Any:
            return None

        return nothing

    def vector(one: Any, lo: Any, offset: Any) -> Any:
        return load(one, lo + offset, one)

    return vector


@inline()
def exponential_of(x: Any, lo: Any, base: Any, shift: Any, floor: Any) -> Any:
    """2^-k exp(x + lo - base)."""
    if base is None:
        return exponential(x, lo, shift, floor)
    d = x - base
    err = difference_error(x, base, d)
    if lo is None:
        return exponential(d, err, shift, floor)
    return exponential(d, err + lo, shift, floor)


@jit()
def put_exp(of: Any, one: Any, z: Any, lo: Any, n: Any, k: Any, base: Any, out: Any, ahead: Any) -> Any:
    """e = 2^-k exp(z + lo - base) of n classes, as whole vectors that end in zeros. Returns the largest z."""
    lanes, low = LINE // size_of(one), type(one)(-np.inf)
    top, step = splat(low), lanes * size_of(of)
    shift, floor = shifted_by(k, one)
    by, least = splat(shift), splat(floor)
    for i in range(n // lanes):
        if ahead is not None:
            prefetch(z + i * step + ahead)
        x = load(of, z + i * step, one)
        top = select(x > top, x, top)
        store(one, out + i * LINE, exponential_of(x, low_of(one, lo, i * LINE), base, by, least))
    if n % lanes:
        i = n // lanes
        if ahead is not None:
            prefetch(z + i * step + ahead)
        x = load_first(of, z + i * step, one, n % lanes, low)
        top = select(x > top, x, top)
        store(one, out + i * LINE, exponential_of(x, low_of(one, lo, i * LINE), base, by, least))
    return simd.largest(top)


@jit()
def sum_of(one: Any, e: Any, n: Any) -> Any:
    """Of n classes, in float64: whole vectors, four partial sums each."""
    a, b, c, d = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    lanes = LINE // 8
    size = lanes * size_of(one)
    vectors = -(-n // (LINE // size_of(one))) * (8 // size_of(one))  # of float64
    at = e
    for _ in range(vectors // 4):
        a = a + load(one, at, 0.0)
        b = b + load(one, at + size, 0.0)
        c = c + load(one, at + 2 * size, 0.0)
        d = d + load(one, at + 3 * size, 0.0)
        at += 4 * size
    for _ in range(vectors % 4):
        a = a + load(one, at, 0.0)
        at += size
    return simd.total((a + b) + (c + d))


@jit()
def top_and_rest(one: Any, e: Any, n: Any) -> Any:
    """(the largest of n exponentials, the sum of the others), in float64: so that 1 - p is no difference."""
    lanes = LINE // 8
    size, top, rest = lanes * size_of(one), splat(0.0), splat(0.0)
    top_b, rest_b = splat(0.0), splat(0.0)
    vectors = -(-n // (LINE // size_of(one))) * (8 // size_of(one))  # of float64
    at = e
    for _ in range(vectors // 2):
        a, b = load(one, at, 0.0), load(one, at + size, 0.0)
        above, above_b = a > top, b > top_b
        rest, rest_b = rest + select(above, top, a), rest_b + select(above_b, top_b, b)
        top, top_b = select(above, a, top), select(above_b, b, top_b)
        at += 2 * size
    if vectors % 2:
        a = load(one, at, 0.0)
        above = a > top
        rest, top = rest + select(above, top, a), select(above, a, top)
    above = top_b > top
    rest = (rest + rest_b) + select(above, top, top_b)
    top = select(above, top_b, top)
    largest = simd.largest(top)
    equal = simd.total(select(top == largest, splat(1.0), splat(0.0)))  # one of them is the largest
    less = simd.total(rest) + simd.total(select(top == largest, splat(0.0), top))
    return largest, less + (equal - 1.0) * largest


@jit()
def sum_without(of: Any, one: Any, z: Any, lo: Any, n: Any, at: Any) -> Any:
    """sum over k != at of z_k + lo_k, in float64."""
    lanes, size, zero = LINE // 8, LINE // 8 * size_of(of), 0.0
    total, low = splat(0.0), splat(0.0)
    for i in range(-(-n // lanes)):
        here = at // lanes == i
        if here or n < (i + 1) * lanes:
            x = load_first(of, z + i * size, zero, n - i * lanes, zero)
            total = total + select(only(zero, at - i * lanes), splat(0.0), x)
        else:
            total = total + load(of, z + i * size, zero)
        if lo is not None:
            more = load_first(one, lo + i * lanes * size_of(one), zero, n - i * lanes, zero)
            more = select(only(zero, at - i * lanes), splat(0.0), more)
            low = low + select(more - more == 0.0, more, splat(0.0))  # an infinite z has none
    return simd.total(total) + simd.total(low)


@jit()
def far_from(p: Any) -> Any:
    """From where on k ln 2 is no pivot: where it would not be exact; and everywhere for `sharp`."""
    return 0.0 if p.sharp else FAR


@jit()
def set_pivot(p: Any, top: Any) -> Any:
    """(k, base, far): what to take off near `top`, k ln 2 or, where that is too far, a base."""
    if abs(top) < far_from(p):
        return np.rint(np.float64(top) * LOG2E), type(top)(0), False
    return 0.0, top, True


@jit()
def keep_pivot(s: Any, j: Any, of: Any, k: Any, base: Any, z: Any, lo: Any, at: Any) -> None:
    """The pivot of the tile's j-th row, and how far its target, class `at` of those at z, lies above it."""
    cell = s.table + j * 8
    high, low = np.float64(base) + k * LN2_HIGH, k * LN2_LOW
    put(1.0, cell + PIVOT, high)
    put(1.0, cell + PIVOT_LO, low)
    gap, gap_lo = -np.inf, 0.0
    if at >= 0:
        z_y = np.float64(widen(get(of, z + at * size_of(of))))
        gap = z_y - high
        if abs(gap) < np.inf:
            gap_lo = difference_error(z_y, high, gap) - low
            if lo is not None:
                gap_lo += np.float64(get(base, lo + at * size_of(base)))
    put(1.0, cell + GAP, gap)
    put(1.0, cell + GAP_LO, gap_lo)


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
def targets(p: Any, i: Any, rows: Any, smooth: Any, table: Any) -> None:
    """What the targets of rows i .. i + rows are; then, up to whole vectors, rows that count nothing."""
    plain = not (p.ignores or p.sample_weight or p.class_weight) and smooth is None
    done = rows // 8 * 8 if plain else np.int64(0)
    wrong = np.nan if p.unit != 0.0 and p.labels else p.unit
    for j in range(0, done, 8):
        y, cell = splat(-1.0), table + j * 8
        if p.labels:
            y = load_integers(p.labels + (i + j) * 8)
            y = select(y > -1.0, select(y < np.float64(p.classes), y, splat(-1.0)), splat(-1.0))
        store(1.0, cell + TARGET, y)
        store(1.0, cell + SCALE, select(y > -1.0, splat(p.unit), splat(wrong)))
        store(1.0, cell + MASS_Y, select(y > -1.0, splat(1.0), splat(0.0)))
        store(1.0, cell + MASS, splat(p.spare))
    for j in range(done, -(-rows // 16) * 16):
        y, bump, scale, mass = np.int64(-1), 0.0, 0.0, p.spare
        if j < rows:
            y, bump, scale, _ = target_of(i + j, p)
        if smooth is not None and y >= 0:
            bump += get(1.0, p.shared_mass + y * 8)
            mass += get(1.0, p.other_mass + y * 8)
        cell = table + j * 8
        put(1.0, cell + TARGET, y)
        put(1.0, cell + SCALE, scale)
        put(1.0, cell + MASS_Y, bump)
        put(1.0, cell + MASS, mass)


@jit()
def statistics(
    p: Any, of: Any, one: Any, into: Any, i: Any, rows: Any, plain: Any, smooth: Any, affine: Any,
    capped: Any, grad: Any, hess: Any, s: Any, before: Any, held: Any,
) -> None:  # fmt: skip
    """The inputs of `settle` for rows i .. i + rows, and their exponentials.

    Row by row the gradient of the tile before, which has `held` rows, goes out: memory takes it while the
    processor is computing. All of it at once would have to wait for memory.
    """
    a, b = i // p.inner, i % p.inner
    for j in range(rows):
        put(np.int64(0), s.table + j * 8 + ROW, row_at(p.logits, a, b))
        put(np.int64(0), s.table + j * 8 + OUT, row_at(p.grad, a, b))
        if hess is not None:
            put(np.int64(0), s.table + j * 8 + OUT_H, row_at(p.hess_diag, a, b))
        b += 1
        if b == p.inner:
            a, b = a + 1, np.int64(0)
    targets(p, i, rows, smooth, s.table)
    if p.classes <= BLOCK:
        short_rows(p, of, one, into, rows, plain, smooth, affine, capped, grad, hess, s, before, held)
    else:
        for j in range(rows):
            if get(1.0, s.table + j * 8 + SCALE) != 0.0:
                long_row(p, of, one, j, plain, smooth, affine, capped, hess, s)
            if grad is not None and j < held:
                write_row(p, one, into, j, held, smooth, capped, hess, before)
    if grad is not None:
        write_rows(p, one, into, rows, held, smooth, capped, hess, before)


def exp_for(one: Any, z: Any, lo: Any) -> Any:
    """exp(z + lo) of float64, as accurate as the compute dtype asks for."""


@overload(exp_for, jit_options={"forceinline": True})
def _exp_for(one: Any, z: Any, lo: Any) -> Any:
    def for32(one: Any, z: Any, lo: Any) -> Any:
        return short_exponential(z + lo)

    def for64(one: Any, z: Any, lo: Any) -> Any:
        shift, floor = shifted_by(0.0, 1.0)
        return exponential(z, lo, splat(shift), splat(floor))

    return for32 if one == F32 else for64


def log1p_for(one: Any, x: Any) -> Any:
    """log(1 + x) of float64, as accurate as the compute dtype asks for."""


@overload(log1p_for, jit_options={"forceinline": True})
def _log1p_for(one: Any, x: Any) -> Any:
    def for32(one: Any, x: Any) -> Any:
        return short_log1p(x)

    def for64(one: Any, x: Any) -> Any:
        return log1p(x)

    return for32 if one == F32 else for64


@jit()
def settle(v: Any, one: Any, rows: Any, p: Any, hess: Any) -> None:
    """From the statistics of a tile's rows their losses and the coefficients of gradient and Hessian.

    With E = exp(z_y - pivot), R = rest, S = R + E and M = mass without the target's:
        loss   = s (mass_y log(1 + R / E) + M log S + dot + z_loss lse^2)
        of_p   = s (M + mass_y + 2 z_loss lse) / S              elsewhere the gradient is of_p e_k - s q_k
        at_y   = s ((M + 2 z_loss lse) E - mass_y R) / S
    The Hessian's diagonal is of_h e_k (1 - e_k / S), but at the largest exponential and at y, where 1 - p is
    the sum of the others. REST is without the largest then, and there is no z_loss.
    Whole vectors, whatever the number of rows: a row's bits must not depend on its place.
    """
    by, lam = p.of_q, p.z_loss
    all_of_it = lam != 0.0 or p.label_smoothing != 0.0 or p.labels == 0  # is log S asked for at all?
    for at in range(v, v + rows * 8, LINE):
        s, mass_y, mass = (
            load(1.0, at + SCALE, 1.0),
            load(1.0, at + MASS_Y, 1.0),
            load(1.0, at + MASS, 1.0),
        )
        gap, gap_lo = load(1.0, at + GAP, 1.0), load(1.0, at + GAP_LO, 1.0)
        others, dot = load(1.0, at + REST, 1.0), load(1.0, at + DOT, 1.0)
        top, below = splat(0.0), others
        if hess is not None:
            top = load(1.0, at + TOP, 1.0)
            others = others + top
        pivot, pivot_lo = load(1.0, at + PIVOT, 1.0), load(1.0, at + PIVOT_LO, 1.0)
        e_y = exp_for(one, gap, gap_lo)
        total = others + e_y
        ratio = others / e_y
        to_y, log_total = log1p_for(one, ratio), splat(0.0)
        if all_of_it or anywhere(ratio > 1e250):
            log_total = log1p_for(one, others + (e_y - 1.0))
            to_y = select(ratio > 1e250, log_total - (gap + gap_lo), to_y)
        lse = pivot + (pivot_lo + log_total)
        # z_loss = 0 times an infinite lse is 0, and so is no mass times an infinite loss.
        z_slope, of_z = splat(0.0), splat(0.0)
        if lam != 0.0:
            z_slope, of_z = lse * (2.0 * lam), lse * lse * lam
        nothing = total - total  # but NaN, where the row is
        y_part = select(mass_y != 0.0, mass_y * to_y, nothing)
        rest = select(mass != 0.0, mass * log_total, nothing)
        here = s != 0.0
        store(1.0, at + LOSS, select(here, s * (y_part + (rest + dot) + of_z), splat(0.0)))
        store(1.0, at + Z_LOSS, select(here, s * of_z, splat(0.0)))
        by_s = s * by / total
        store(1.0, at + OF_P, select(here, by_s * (mass + mass_y + z_slope), splat(0.0)))
        at_y = by_s * ((mass + z_slope) * e_y - mass_y * others)
        store(1.0, at + AT_Y, select(here, at_y, splat(0.0)))
        if hess is not None:
            zero, of_h = splat(0.0), s * (mass + mass_y) * p.of_h
            least = select(here, splat(p.hess_min), splat(-np.inf))
            at_top = select(here, of_h * (top / total) * ((below + e_y) / total), zero)
            at_y = select(here, of_h * (e_y / total) * (others / total), zero)
            store(1.0, at + INVERSE, select(here, 1.0 / total, zero))
            store(1.0, at + OF_H, select(here, of_h / total, zero))
            store(1.0, at + H_TOP, at_top)
            store(1.0, at + H_Y, at_y)
            store(1.0, at + LEAST, least)


@jit()
def sum_up(x: Any, n: Any, wide: Any) -> Any:
    """Of a tile's losses: in vector lanes where the answer is float32, else without losing a bit."""
    if not wide:
        return sum_of(1.0, x, n)
    total, error = 0.0, 0.0
    for j in range(n):
        total, error = add(total, error, get(1.0, x + j * 8))
    return finish(total, error)


@jit()
def take_losses(p: Any, one: Any, i: Any, rows: Any, table: Any, sums: Any) -> Any:
    """The losses of rows i .. i + rows to where they are wanted, and to the chunk's sums, returned."""
    total, error, z_total, z_error = sums
    losses, z_losses, wide = table + LOSS, table + Z_LOSS, size_of(one) == 8
    total, error = add(total, error, sum_up(losses, rows, wide))
    if p.z_loss != 0.0:
        z_total, z_error = add(z_total, z_error, sum_up(z_losses, rows, wide))
    if p.loss:
        put_losses(one, losses, rows, p.loss + i * size_of(one))
    if p.z_loss_rows:
        put_losses(one, z_losses, rows, p.z_loss_rows + i * size_of(one))
    return total, error, z_total, z_error


@jit()
def put_losses(one: Any, losses: Any, rows: Any, to: Any) -> None:
    lanes = LINE // 8
    for j in range(0, rows, lanes):
        store_first(one, to + j * size_of(one), load(1.0, losses + j * 8, 1.0), rows - j)


@jit()
def put_sums(p: Any, chunk: Any, sums: Any) -> None:
    """A chunk's sums of losses and of their z-loss parts."""
    total, error, z_total, z_error = sums
    put(1.0, p.partial + chunk * 16, finish(total, error))
    put(1.0, p.partial + chunk * 16 + 8, finish(z_total, z_error))


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


@inline()
def counted(y: Any, by: Any) -> Any:
    """y, but 0 in a row left out: there it may be NaN."""
    return select(splat(by) != type(by)(0), y, splat(type(by)(0)))


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


def address_in(base: Any, offset: Any, on: Any) -> Any:
    """base + offset, or None where `on` is."""


@overload(address_in, jit_options={"forceinline": True})
def _address_in(base: Any, offset: Any, on: Any) -> Any:
    if isinstance(on, types.NoneType):

        def nothing(base: Any, offset: Any, on: Any) -> Any:
            return None

        return nothing

    def address(base: Any, offset: Any, on: Any) -> Any:
        return base + offset

    return address


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
def write_rows(
    p: Any, one: Any, into: Any, first: Any, rows: Any, mass: Any, capped: Any, hess: Any, s: Any
) -> None:
    """The gradient of a tile's rows from the first one on."""
    for j in range(first, rows):
        write_row(p, one, into, j, rows, mass, capped, hess, s)


@jit()
def scratch_of(p: Any, one: Any, worker: Any, first: Any, stop: Any) -> Any:
    """A worker's."""
    size, table = BLOCK * size_of(one), VALUES * COLUMN  # and two lines
    return Scratch(
        p.blocks + 2 * worker * size,
        p.blocks + (2 * worker + 1) * size,
        p.curves + worker * BLOCK * 8,
        p.table + worker * (table + 2 * LINE),
        p.exponentials + worker * p.tile_bytes,
        p.lows + worker * p.tile_bytes,
        p.slopes + worker * p.tile * p.width * 8,
        p.table + worker * (table + 2 * LINE) + table,
        first,
        stop,
    )


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any, into: Any, plain: Any,
    smooth: Any, affine: Any, capped: Any, grad: Any, hess: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, as kernel.work."""
    p = view_of_records(PARAMETERS, parameters)[0]
    own, none = (1 + p.late) * worker, np.int64(0)
    s, before = scratch_of(p, one, own, none, p.classes), scratch_of(p, one, own + p.late, none, p.classes)
    for chunk in range(first, last):
        sums, held = (0.0, 0.0, 0.0, 0.0), none
        stop = min(p.rows, (chunk + 1) * p.chunk)
        for i in range(chunk * p.chunk, stop, p.tile):
            rows = min(p.tile, stop - i)
            statistics(p, of, one, into, i, rows, plain, smooth, affine, capped, grad, hess, s, before, held)
            settle(s.table, one, rows, p, hess)
            sums = take_losses(p, one, i, rows, s.table, sums)
            if grad is not None:
                if p.late:
                    s, before, held = before, s, rows
                else:
                    write_rows(p, one, into, none, rows, smooth, capped, hess, s)
        if grad is not None:
            write_rows(p, one, into, none, held, smooth, capped, hess, before)
        put_sums(p, chunk, sums)
    if p.past_caches:
        fence()
