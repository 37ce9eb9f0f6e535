"""Derivatives along v: the Hessian times v, and log-softmax along v. Docs/math.md's "along v", row by row.

A row and its v are read into float64 once, and what is left to do is two passes over what lies in the
cache. Few classes go by columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .cache import jit
from .exponentials import LANES, exp_and_rest, plus, read_row, top_of
from .kernel import target_of
from .memory import get, narrow, put, row_at, size_of, view_of_records
from .parameters import PARAMETERS
from .simd import F64, LINE, joined, load, select, splat, store, store_first, total
from .transforms import reciprocal
from .vector_math import add, finish


@jit()
def nearest(v: Any, n: Any, mean: Any) -> Any:
    """The one of n numbers, followed by NaN, that is nearest to the mean: differences from it are small."""
    least, found = splat(np.inf), splat(np.nan)
    for at in range(0, n * 8, LINE):
        here = load(1.0, v + at, 1.0)
        gap = here - mean
        gap = select(gap < 0.0, -gap, gap)
        found, least = select(gap < least, here, found), select(gap < least, gap, least)
    return least, found


@jit()
def centre(one: Any, x: Any, v: Any, n: Any, t: Any, rest: Any, spare: Any) -> Any:
    """(m, shift) with v_k - p.v = (v_k - m) + shift, as rows.centre. x holds the exponentials but at t."""
    top = get(1.0, v + t * 8)
    m, whole = top, rest + 1.0
    if size_of(one) == 8 and whole > 2.0:
        mean = splat(0.0)
        for at in range(0, n * 8, LINE):
            e = load(1.0, x + at, 1.0)
            mean = mean + select(e == 0.0, splat(0.0), e * load(1.0, v + at, 1.0))
        least, found = nearest(v, n, (total(mean) + top) / whole)
        store(1.0, spare, least)
        store(1.0, spare + LINE, found)
        best = np.inf
        for k in range(LANES):
            gap = get(1.0, spare + k * 8)
            if gap < best:
                best, m = gap, get(1.0, spare + LINE + k * 8)
    gaps = (splat(0.0), splat(0.0))
    for at in range(0, n // LANES * LINE, LINE):
        gaps = plus(one, gaps, load(1.0, x + at, 1.0) * (m - load(1.0, v + at, 1.0)))
    found, error = total(gaps[0]) + total(gaps[1]), 0.0
    for k in range(n // LANES * LANES, n):
        found, error = add(found, error, get(1.0, x + k * 8) * (m - get(1.0, v + k * 8)))
    found, error = add(found, error, m - top)
    shift = finish(found, error) / whole
    return m, shift + (shift - shift)  # NaN where v is not finite


def row_out(into: Any, to: Any, step: Any, x: Any, n: Any) -> None:
    """n float64 to a row, `step` bytes apart."""


@overload(row_out, jit_options={"error_model": "numpy"})
def _row_out(into: Any, to: Any, step: Any, x: Any, n: Any) -> Any:
    def narrowed(into: Any, to: Any, step: Any, x: Any, n: Any) -> None:
        whole = n // 16 * 16 if step == size_of(into) else 0
        for k in range(0, whole, 16):
            store(into, to + k * step, joined(load(1.0, x + k * 8, 1.0), load(1.0, x + k * 8 + LINE, 1.0)))
        if step == size_of(into) and whole < n:
            at = x + whole * 8
            last = joined(load(1.0, at, 1.0), load(1.0, at + LINE, 1.0))
            store_first(into, to + whole * step, last, n - whole)
        elif step != size_of(into):
            for k in range(n):
                put(into, to + k * step, narrow(get(1.0, x + k * 8), into))

    def whole(into: Any, to: Any, step: Any, x: Any, n: Any) -> None:
        if step == 8:
            for k in range(0, n // LANES * LANES, LANES):
                store(1.0, to + k * 8, load(1.0, x + k * 8, 1.0))
            k = n // LANES * LANES
            store_first(1.0, to + k * 8, load(1.0, x + k * 8, 1.0), n - k)
        else:
            for k in range(n):
                put(1.0, to + k * step, get(1.0, x + k * 8))

    return whole if into == F64 else narrowed


@jit()
def work(worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any, hvp: Any) -> None:
    """Chunks first .. last, as kernel.work. Moves 2 n numbers in and n out per row, all of one type."""
    p = view_of_records(PARAMETERS, parameters)[0]
    n, size = p.classes, (p.classes + 4 * LANES) * 8
    x = p.wide + worker * 2 * size
    v, spare = x + size, x + (n + 2 * LANES) * 8
    by, by_lo = reciprocal(p.temperature, 1.0)
    for i in range(first * p.chunk, min(p.rows, last * p.chunk)):
        a, b = i // p.inner, i % p.inner
        mass, s = p.spare, p.unit
        if hvp is not None:
            y, bump, s, _ = target_of(i, p)
            mass += bump
            if p.shared_mass and y >= 0:
                mass += get(1.0, p.shared_mass + y * 8) + get(1.0, p.other_mass + y * 8)
        if hvp is not None and s == 0.0:  # exact zeros, whatever the row holds
            for k in range(n):
                put(1.0, x + k * 8, 0.0)
        else:
            read_row(of, row_at(p.logits, a, b), p.logits.of_c, n, x, -np.inf)
            read_row(of, row_at(p.direction, a, b), p.direction.of_c, n, v, np.nan)
            t, top = top_of(x, n)
            rest = exp_and_rest(one, x, n, t, top, by, by_lo)
            m, shift = centre(one, x, v, n, t, rest, spare)
            if hvp is not None:
                # The square of an extreme temperature is beyond float64: one 1 / T comes last.
                put(1.0, x + t * 8, 1.0)
                of_p = s * mass * p.hess_scale * by / (rest + 1.0)
                for at in range(0, n * 8, LINE):
                    centred = (load(1.0, v + at, 1.0) - m) + shift
                    store(1.0, x + at, load(1.0, x + at, 1.0) * of_p * centred * by)
            else:
                shift += rest - rest  # NaN where the row of logits is
                for at in range(0, n * 8, LINE):
                    store(1.0, x + at, ((load(1.0, v + at, 1.0) - m) + shift) * by)
        if hvp is not None:
            row_out(of, row_at(p.hvp, a, b), p.hvp.of_c, x, n)
        else:
            row_out(of, row_at(p.log_softmax_jvp, a, b), p.log_softmax_jvp.of_c, x, n)
