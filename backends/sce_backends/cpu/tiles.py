"""The rows that most calls consist of, a tile of some at a time: loss and gradient of an index target.

Three passes over a tile, of which only the first reads memory and only the last writes it:

1. `exponentials`: row by row, e_k = exp(z_k - pivot) into scratch, and their sum without the target's;
2. `settle`: what becomes of these statistics, for all rows of the tile at once: it takes logarithms and
   divides, and vectors make that cheap where rows are short;
3. `emit`: row by row, the gradient is e_k times a coefficient, and goes out.

The target's term never enters the sum, so that 1 - p_y is a sum of the others and no difference. The pivot
needs not be the row's maximum, only near enough that nothing overflows: so one pass finds it and uses it.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from . import elements
from .cache import jit
from .kernel import target_of
from .memory import (
    copy_bytes,
    fence,
    gather,
    prefetch,
    row_at,
    scatter,
    scatter_flat,
    slot,
    view,
    view_of_records,
)  # fmt: skip
from .parameters import PARAMETERS
from .rows import cut, low_part
from .vector_math import add, difference_error, exp, finish, log1p, maximum

BLOCK = 512  # classes taken at once, and
AHEAD = 8192  # bytes that are fetched ahead of them: measured together, and neither works without the other
PIECE = 2048  # classes of a long row that are written at once
TILE = 128  # rows of a tile, at most
SLACK = 32.0  # how far a row may rise above its pivot

# A tile's values, a column of TILE float64 each: what `settle` is given, then what it leaves.
SCALE, TARGET, MASS_Y, MASS, PIVOT, GAP, GAP_LO, REST, DOT, OF_P, AT_Y, LOSS, Z_LOSS = range(13)
VALUES = 13


Scratch = namedtuple("Scratch", "z lo curve bias bias_lo table tile lows slope")
Scratch.__doc__ = """A worker's memory. z, lo (BLOCK,) in the compute dtype, curve (BLOCK,) float64: a block.

table: the values, (VALUES * TILE,) float64; tile: of the exponentials, (rows, n) in the compute
dtype; lows: of short rows' lo, the same; slope: of dz/dx under a soft cap, (rows, n) float64.
"""


@jit()
def read(
    p: Any, one: Any, a: Any, b: Any, start: Any, n: Any, j: Any, affine: Any, capped: Any, s: Any
) -> Any:
    """Classes start .. start + n of row (a, b), the tile's j-th, transformed: z and lo (or None)."""
    if affine is None and p.plain:
        return view(one, row_at(p.logits, a, b) + start * s.z.itemsize, n), None
    z = s.z[:n]
    if p.classes <= BLOCK:
        z = slot(one, s.tile, j, n, n)  # a short row is read once: its exponentials will lie over it
    gather(p.logits, a, b, start, z)
    if affine is None:
        return z, None
    lo, bias = s.lo[:n], s.bias[start : start + n]
    if p.classes <= BLOCK:
        lo = slot(one, s.lows, j, n, n)
    if capped is not None:
        slope = slot(1.0, s.slope, j, p.classes, p.classes)[start : start + n]
        elements.soft_cap(z, lo, slope, s.curve[:n], p.temperature, p.softcap, bias)
    else:
        elements.affine(z, lo, p.temperature, bias, s.bias_lo[start : start + n])
    return z, lo


@jit()
def largest_of_row(p: Any, one: Any, a: Any, b: Any, j: Any, affine: Any, capped: Any, s: Any) -> Any:
    m = s.z.dtype.type(-np.inf)
    for start in range(0, p.classes, BLOCK):
        n = min(BLOCK, p.classes - start)
        m = maximum(m, elements.largest(read(p, one, a, b, start, n, j, affine, capped, s)[0]))
    return m


@jit()
def exponentials(
    p: Any, one: Any, a: Any, b: Any, j: Any, y: Any, affine: Any, capped: Any, q: Any, s: Any, out: Any
) -> Any:
    """out_k = exp(z_k - pivot), 0 at y. Returns (pivot, rest, dot, gap, gap_lo).

    rest = sum_k out_k; dot = sum over k != y of q_k (pivot - z_k); gap + gap_lo = z_y - pivot.
    The pivot is the maximum of the first block, and of the whole row if that is more than SLACK above it (or
    NaN, or infinite), or always in float64, where even the slack would cost accuracy.
    """
    n, zero = p.classes, out.dtype.type(0)
    pivot, known = out.dtype.type(0), False
    if out.itemsize == 8:
        pivot, known = largest_of_row(p, one, a, b, j, affine, capped, s), True
    address = row_at(p.logits, a, b)
    rest, error, dot, dot_error, gap, gap_lo = 0.0, 0.0, 0.0, 0.0, -np.inf, 0.0
    start = np.int64(0)
    while start < n:
        stop = min(start + BLOCK, n)
        for part in range(p.ahead):  # a constant number of lines at a time: LLVM unrolls that
            for line in range(BLOCK * 2 // 64):
                prefetch(address + start * p.logits.of_c + AHEAD + BLOCK * 2 * part + 64 * line)
        z, lo = read(p, one, a, b, start, stop - start, j, affine, capped, s)
        if not known:
            m = elements.largest(z)
            if start == 0:
                pivot = m
            if not (m <= pivot + SLACK) or abs(pivot) == np.inf:
                pivot, known = largest_of_row(p, one, a, b, j, affine, capped, s), True
                rest, error, dot, dot_error, start = 0.0, 0.0, 0.0, 0.0, np.int64(0)
                continue
        e = out[start:stop]
        elements.put_exp(z, lo, pivot, zero, e)
        at = y - start if start <= y < stop else np.int64(-1)
        if at >= 0:
            gap = np.float64(z[at]) - np.float64(pivot)
            if abs(gap) < np.inf:
                gap_lo = difference_error(np.float64(z[at]), np.float64(pivot), gap)
                if affine is not None:
                    gap_lo += np.float64(lo[at])
            e[at] = zero
        rest, error = add(rest, error, elements.sum_of(e, e.size))
        if q is not None:
            cut = at if at >= 0 else e.size
            dot, dot_error = add(dot, dot_error, mass_gap(z, lo, q, start, 0, cut, pivot))
            if at >= 0:
                dot, dot_error = add(dot, dot_error, mass_gap(z, lo, q, start, at + 1, e.size, pivot))
        start = stop
    return pivot, finish(rest, error), finish(dot, dot_error), gap, gap_lo


@jit()
def mass_gap(z: Any, lo: Any, q: Any, start: Any, first: Any, last: Any, pivot: Any) -> Any:
    part = cut(lo, first, last)
    return elements.sum_mass_gap(z[first:last], part, q[start + first : start + last], pivot, type(pivot)(0))


@jit()
def settle(v: Any, rows: Any, p: Any, by_t: Any) -> None:
    """From the statistics of a tile's rows their losses and the gradient's coefficients.

    With E = exp(z_y - pivot), R = rest, S = R + E and M = mass without the target's:
        loss   = s (mass_y log(1 + R / E) + M log S + dot + z_loss lse^2)
        of_p   = s (M + mass_y + 2 z_loss lse) / S              elsewhere the gradient is of_p e_k - s q_k
        at_y   = s ((M + 2 z_loss lse) E - mass_y R) / S
    v is one array: of a dozen LLVM could not tell that they do not overlap. Whole vectors, whatever the
    number of rows: a row's bits must not depend on its place.
    """
    by, lam = p.grad_scale / by_t, p.z_loss
    for j in range(-(-rows // 16) * 16):
        s, mass_y, mass = v[SCALE * TILE + j], v[MASS_Y * TILE + j], v[MASS * TILE + j]
        gap, gap_lo, others, dot = (
            v[GAP * TILE + j],
            v[GAP_LO * TILE + j],
            v[REST * TILE + j],
            v[DOT * TILE + j],
        )
        e_y = exp(gap, gap_lo)
        total = others + e_y
        log_total = log1p(others + (e_y - 1.0))
        ratio = others / e_y
        to_y = log1p(ratio) if ratio < 1e250 else log_total - (gap + gap_lo)
        lse = v[PIVOT * TILE + j] + log_total
        # z_loss = 0 times an infinite lse is 0, and so is no mass times an infinite loss.
        z_slope = 2.0 * lam * lse if lam != 0.0 else 0.0
        of_z = lam * lse * lse if lam != 0.0 else 0.0
        y_part = mass_y * to_y if mass_y != 0.0 else 0.0
        rest = mass * log_total if mass != 0.0 else 0.0
        v[LOSS * TILE + j] = s * (y_part + (rest + dot) + of_z) if s != 0.0 else 0.0
        v[Z_LOSS * TILE + j] = s * of_z if s != 0.0 else 0.0
        v[OF_P * TILE + j] = by * s * (mass + mass_y + z_slope) / total
        v[AT_Y * TILE + j] = by * s * ((mass + z_slope) * e_y - mass_y * others) / total


@jit()
def statistics(p: Any, one: Any, i: Any, rows: Any, affine: Any, capped: Any, q: Any, s: Any) -> None:
    """The inputs of `settle` for rows i .. i + rows, and their exponentials."""
    for j in range(rows):
        y, bump, scale, _ = target_of(i + j, p)
        mass = p.spare
        if q is not None and y >= 0:
            bump += q[y]
            mass += view(1.0, p.other_mass, p.classes)[y]
        s.table[SCALE * TILE + j] = scale
        s.table[TARGET * TILE + j] = y
        s.table[MASS_Y * TILE + j] = bump
        s.table[MASS * TILE + j] = mass
    if p.classes <= BLOCK:
        short_rows(p, one, i, rows, affine, capped, q, s)
    else:
        long_rows(p, one, i, rows, affine, capped, q, s)


@jit()
def short_rows(p: Any, one: Any, i: Any, rows: Any, affine: Any, capped: Any, q: Any, s: Any) -> None:
    """One thing for all rows after the other: what one row waits for is done long before it is asked for."""
    n, zero = p.classes, type(one)(0)
    pivots, gaps, gaps_lo = (
        s.table[PIVOT * TILE : (PIVOT + 1) * TILE],
        s.table[GAP * TILE : (GAP + 1) * TILE],
        s.table[GAP_LO * TILE : (GAP_LO + 1) * TILE],
    )
    rests, dots, targets = (
        s.table[REST * TILE : (REST + 1) * TILE],
        s.table[DOT * TILE : (DOT + 1) * TILE],
        s.table[TARGET * TILE : (TARGET + 1) * TILE],
    )
    for j in range(rows):
        if p.ahead:
            address = row_at(p.logits, (i + j) // p.inner, (i + j) % p.inner) + AHEAD
            for at in range(address, address + n * p.logits.of_c, 64):
                prefetch(at)
        z, _ = read(p, one, (i + j) // p.inner, (i + j) % p.inner, np.int64(0), n, j, affine, capped, s)
        pivots[j] = elements.largest(z)
    for j in range(rows):
        e = slot(one, s.tile, j, n, n)
        y = np.int64(targets[j])
        z, lo = reread(p, one, i, j, n, affine, s)
        pivot = type(one)(pivots[j])
        gaps[j], gaps_lo[j], dots[j] = -np.inf, 0.0, 0.0
        if y >= 0:
            gaps[j] = np.float64(z[y]) - np.float64(pivot)
            if abs(gaps[j]) < np.inf:
                gaps_lo[j] = difference_error(np.float64(z[y]), np.float64(pivot), gaps[j])
                if affine is not None:
                    gaps_lo[j] += np.float64(lo[y])
        if q is not None:
            dots[j] = mass_gap(z, lo, q, 0, 0, y if y >= 0 else n, pivot)
            if y >= 0:
                dots[j] += mass_gap(z, lo, q, 0, y + 1, n, pivot)
        if affine is None and p.plain:
            elements.put_exp(z, lo, pivot, zero, e)
        else:
            elements.put_exp(e, lo, pivot, zero, None)
        if y >= 0:
            e[y] = zero
    for j in range(rows):
        rests[j] = elements.sum_of(slot(one, s.tile, j, n, n), n)


@jit()
def reread(p: Any, one: Any, i: Any, j: Any, n: Any, affine: Any, s: Any) -> Any:
    """What `read` gave for a whole row."""
    if affine is not None:
        return slot(one, s.tile, j, n, n), slot(one, s.lows, j, n, n)
    if p.plain:
        return view(one, row_at(p.logits, (i + j) // p.inner, (i + j) % p.inner), n), None
    return slot(one, s.tile, j, n, n), None


@jit()
def long_rows(p: Any, one: Any, i: Any, rows: Any, affine: Any, capped: Any, q: Any, s: Any) -> None:
    for j in range(rows):
        if s.table[SCALE * TILE + j] != 0.0:
            out, y = slot(one, s.tile, j, p.classes, p.classes), np.int64(s.table[TARGET * TILE + j])
            a, b = (i + j) // p.inner, (i + j) % p.inner
            pivot, rest, dot, gap, gap_lo = exponentials(p, one, a, b, j, y, affine, capped, q, s, out)
            s.table[PIVOT * TILE + j] = pivot
            s.table[GAP * TILE + j] = gap
            s.table[GAP_LO * TILE + j] = gap_lo
            s.table[REST * TILE + j] = rest
            s.table[DOT * TILE + j] = dot


@jit()
def sum_up(x: Any, n: Any, like: Any) -> Any:
    """Of a tile's losses: in vector lanes where the answer is float32, else without losing a bit."""
    if like.itemsize == 4:
        return elements.sum_of(x, n)
    total, error = 0.0, 0.0
    for j in range(n):
        total, error = add(total, error, x[j])
    return finish(total, error)


@jit()
def write_tile(p: Any, one: Any, i: Any, rows: Any, q: Any, capped: Any, s: Any) -> None:
    """The gradient of rows i .. i + rows: short rows of a dense output at once, long ones in pieces."""
    n = p.classes
    for j in range(rows):
        y = np.int64(s.table[TARGET * TILE + j])
        e = slot(one, s.tile, j, n, n)
        start, stop = np.int64(0), n  # a literal would compile all that follows for itself
        if n >= PIECE:
            # The first piece ends where the output is aligned, so that the others are whole cache lines.
            stop = PIECE + (-(p.grad.address + (i + j) * n * p.grad_size) % 64) // p.grad_size
        while start < n:
            stop = min(stop, n)
            emit(p, e[start:stop], j, start, y, q, capped, s)
            if n >= PIECE or not p.dense:
                write_out(p, i + j, e[start:stop], start)
            start, stop = stop, stop + PIECE
    if n < PIECE and p.dense:
        write_out(p, i, view(one, s.tile, rows * n), np.int64(0))


@jit()
def emit(p: Any, e: Any, j: Any, start: Any, y: Any, q: Any, capped: Any, s: Any) -> None:
    """The gradient of classes start .. start + e.size of the tile's j-th row, over their exponentials."""
    of = e.dtype.type
    scale = s.table[SCALE * TILE + j]
    if scale == 0.0:
        elements.fill(e, None, of(0))
        return
    of_p, of_q = (
        s.table[OF_P * TILE + j],
        scale * p.grad_scale / (1.0 if capped is not None else p.temperature),
    )
    slope = None
    if capped is not None:
        slope = slot(1.0, s.slope, j, p.classes, p.classes)[start : start + e.size]
    weights = (of(of_p), low_part(of_p, of(of_p)), of(of_q), low_part(of_q, of(of_q)))
    elements.weigh(e, cut(q, start, start + e.size), slope, weights)
    if start <= y < start + e.size:
        at_y = s.table[AT_Y * TILE + j]
        if slope is not None:
            at_y *= slope[y - start]
        e[y - start] = of(at_y)


@jit()
def write_out(p: Any, i: Any, e: Any, start: Any) -> None:
    """The gradient from row i, class `start` on: in a dense output any number of rows."""
    if p.dense:
        at = i * p.classes + start
        if p.grad_size == e.itemsize:
            copy_bytes(p.grad.address + at * e.itemsize, e.ctypes.data, e.size * e.itemsize, p.past_caches)
        else:
            scatter_flat(e, p.grad, at)
    else:
        scatter(e, p.grad, i // p.inner, i % p.inner, start)


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, one: Any, smooth: Any, affine: Any, capped: Any,
    grad: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, as kernel.work."""
    p = view_of_records(PARAMETERS, parameters)[0]
    partial = view(1.0, p.partial, 2 * last)
    n, most = p.classes, p.tile
    s = Scratch(
        slot(one, p.blocks, 3 * worker, BLOCK, BLOCK),
        slot(one, p.blocks, 3 * worker + 1, BLOCK, BLOCK),
        slot(1.0, p.curves, worker, BLOCK, BLOCK),
        view(one, p.bias, n if p.bias else 0),
        view(one, p.bias_lo, n if p.bias else 0),
        slot(1.0, p.table, worker, VALUES * TILE, VALUES * TILE),
        p.exponentials + worker * p.tile_bytes,
        p.lows + worker * p.tile_bytes if p.lows else 0,
        p.slopes + worker * most * n * 8,
    )
    q = None
    if smooth is not None:
        q = view(1.0, p.shared_mass, n)
    for chunk in range(first, last):
        total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
        stop = min(p.rows, (chunk + 1) * p.chunk)
        for i in range(chunk * p.chunk, stop, most):
            rows = min(most, stop - i)
            statistics(p, one, i, rows, affine, capped, q, s)
            settle(s.table, rows, p, 1.0 if capped is not None else p.temperature)
            losses, z_losses = (
                s.table[LOSS * TILE : (LOSS + 1) * TILE],
                s.table[Z_LOSS * TILE : (Z_LOSS + 1) * TILE],
            )
            total, error = add(total, error, sum_up(losses, rows, s.z))
            if p.z_loss != 0.0:
                z_total, z_error = add(z_total, z_error, sum_up(z_losses, rows, s.z))
            for j in range(rows):
                if p.loss:
                    view(one, p.loss, p.rows)[i + j] = losses[j]
                if p.z_loss_rows:
                    view(one, p.z_loss_rows, p.rows)[i + j] = z_losses[j]
            if grad is not None:
                write_tile(p, one, i, rows, q, capped, s)
        partial[2 * chunk] = finish(total, error)
        partial[2 * chunk + 1] = finish(z_total, z_error)
    if p.past_caches:
        fence()
