"""A row's exponentials relative to its maximum, in vectors of float64: what derivatives are made of.

Float32 and half types, too: with the short polynomial a vector is some fifteen operations, sums and products
need no second word, and what is made of them is rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .cache import jit
from .memory import get, put, size_of, widen
from .simd import F32, anywhere, first_of, fused, largest, load, load_first, only, select, splat, store, total
from .vector_math import difference_error, exponential, shifted_by, short_exponential

LANES = 8

# `one` has the dtype to which answers are rounded, `of` that of what lies in memory. 1 / T = by + by_lo.


@jit()
def read_row(of: Any, address: Any, step: Any, n: Any, to: Any, other: Any) -> None:
    """n numbers, `step` bytes apart, as float64; then `other`, up to whole vectors."""
    if step == size_of(of):
        whole = n // LANES * LANES
        for k in range(0, whole, LANES):
            store(1.0, to + k * 8, load(of, address + k * step, 1.0))
        if whole < n:
            store(1.0, to + whole * 8, load_first(of, address + whole * step, 1.0, n - whole, other))
    else:
        for k in range(n):
            put(1.0, to + k * 8, np.float64(widen(get(of, address + k * step))))
        for k in range(n, -(-n // LANES) * LANES):
            put(1.0, to + k * 8, other)


@jit()
def top_of(x: Any, n: Any) -> Any:
    """(index, value) of the largest of n numbers, the first of a tie, as if NaN were -inf."""
    most = splat(-np.inf)
    for k in range(0, n, LANES):
        z = load(1.0, x + k * 8, 1.0)
        most = select(z > most, z, most)
    top = largest(most)
    for k in range(0, n, LANES):
        here = load(1.0, x + k * 8, 1.0) == splat(top)
        if anywhere(here):
            return k + first_of(here), top
    return np.int64(0), top


def below_top(one: Any, z: Any, top: Any, by: Any, by_lo: Any) -> Any:
    """exp((z - top) / T) of 8 numbers. The maximum comes off first, so that its own is exactly 1."""


@overload(below_top, jit_options={"forceinline": True})
def _below_top(one: Any, z: Any, top: Any, by: Any, by_lo: Any) -> Any:
    def for32(one: Any, z: Any, top: Any, by: Any, by_lo: Any) -> Any:
        return short_exponential((z - top) * by)

    def for64(one: Any, z: Any, top: Any, by: Any, by_lo: Any) -> Any:
        d = z - top
        scaled = d * by
        lo = fused(d, by, -scaled) + fused(d, splat(by_lo), difference_error(z, top, d) * by)
        shift, floor = shifted_by(0.0, 1.0)
        return exponential(scaled, lo, shift, floor)

    return for32 if one == F32 else for64


def plus(one: Any, sum_and_lost: Any, x: Any) -> Any:
    """One step of a sum in lanes: with what float64 has lost (Knuth's two-sum) where that is wanted."""


@overload(plus, jit_options={"forceinline": True})
def _plus(one: Any, sum_and_lost: Any, x: Any) -> Any:
    def for32(one: Any, sum_and_lost: Any, x: Any) -> Any:
        return sum_and_lost[0] + x, sum_and_lost[1]

    def for64(one: Any, sum_and_lost: Any, x: Any) -> Any:
        before, lost = sum_and_lost
        after = before + x
        return after, lost + difference_error(before, -x, after)

    return for32 if one == F32 else for64


@jit()
def exp_and_rest(one: Any, x: Any, n: Any, t: Any, top: Any, by: Any, by_lo: Any) -> Any:
    """exp((x_k - top) / T) over x, with 0 at t, where it is 1; and their sum.

    The sum is NaN in a row that holds NaN or +inf, or nothing but -inf.
    """
    rest = (splat(top - top), splat(0.0))
    for k in range(0, n, LANES):
        e = below_top(one, load(1.0, x + k * 8, 1.0), splat(top), by, by_lo)
        e = select(only(1.0, t - k), splat(0.0), e)
        store(1.0, x + k * 8, e)
        rest = plus(one, rest, e)
    return total(rest[0]) + total(rest[1])
