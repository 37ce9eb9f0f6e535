"""What the first pass over a tile is made of: targets, logits as they count, pivots, exponentials, sums.

A pivot needs not be the row's maximum, only near enough that nothing overflows: so one pass finds it and uses
it. It is a multiple of ln 2, which `exponential` takes off at no cost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from . import elements, simd
from .cache import inline, jit
from .kernel import target_of
from .memory import gather_line, get, prefetch, put, size_of, view, widen
from .simd import F32, LINE, load, load_first, load_integers, only, select, splat, store
from .tile import AHEAD, BLOCK, GAP, GAP_LO, MASS, MASS_Y, PIVOT, PIVOT_LO, SCALE, TARGET, address_in
from .transforms import affine as affine_of
from .transforms import reciprocal, scaled, soft_cap
from .vector_math import FAR, LN2_HIGH, LN2_LOW, LOG2E, difference_error, exponential, shifted_by


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
