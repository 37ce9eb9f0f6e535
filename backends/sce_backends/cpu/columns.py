"""Few classes: a tile of rows as columns of LANES values, one a class, so that vectors run over the rows.

The passes are those of tiles.py, and so is `settle`. Rows arrive as columns where the class axis is not the
last one; others are transposed on their way into scratch and out of it.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from . import elements
from .cache import inline, jit
from .kernel import target_of
from .memory import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    narrow,
    pointer,
    row_at,
    slot,
    view,
    view_of_records,
    widen,
)  # fmt: skip
from .parameters import PARAMETERS
from .rows import low_part
from .tiles import (
    AT_Y,
    BLOCK,
    DOT,
    GAP,
    GAP_LO,
    LOSS,
    MASS,
    MASS_Y,
    OF_P,
    PIVOT,
    REST,
    SCALE,
    TILE,
    VALUES,
    Z_LOSS,
    settle,
    sum_up,
)  # fmt: skip
from .vector_math import add, difference_error, exp, finish, fma, maximum

LANES = TILE


@jit()
def _load(p: Any, witness: Any, address: Any, rows: Any, x: Any) -> None:
    step, stride, size = p.row_step, p.logits.of_c, view(witness, address, 1).itemsize
    if step == size:
        for k in range(p.classes):
            source = view(witness, address + k * stride, rows)
            for j in range(rows):
                x[k * LANES + j] = widen(source[j])
    elif stride == size:
        for j in range(rows):
            source = view(witness, address + j * step, p.classes)
            for k in range(p.classes):
                x[k * LANES + j] = widen(source[k])
    else:
        for j in range(rows):
            for k in range(p.classes):
                x[k * LANES + j] = widen(pointer(witness, address + j * step + k * stride)[0])


@jit()
def load(p: Any, i: Any, rows: Any, x: Any) -> None:
    """x[k, j] = class k of row i + j, widened; zeros after the last row and in rows that are left out."""
    address = row_at(p.logits, i // p.inner, i % p.inner)
    if p.logits.dtype == FLOAT16:
        _load(p, np.int16(0), address, rows, x)
    elif p.logits.dtype == BFLOAT16:
        _load(p, np.uint16(0), address, rows, x)
    elif p.logits.dtype == FLOAT32:
        _load(p, np.float32(0), address, rows, x)
    else:
        _load(p, np.float64(0), address, rows, x)


Scratch = namedtuple("Scratch", "x lo slope curve y table pivot at_y at_y_lo bias bias_lo")
Scratch.__doc__ = """A worker's memory: columns x and lo (n * LANES,) in the compute dtype, slope in float64.

For the rows of a tile, (LANES,) each: y their classes, pivot, at_y and at_y_lo in the compute dtype, curve in
float64. table: `settle`'s values. bias and bias_lo (n,), or empty.
"""


@inline()
def column(x: Any, k: Any) -> Any:
    return x[k * LANES : k * LANES + LANES]


@jit()
def targets(p: Any, i: Any, rows: Any, q: Any, s: Any) -> None:
    """What each row's target is. One that is left out holds zeros: nothing of it may matter, not even NaN."""
    scales, mass_y, mass = (
        s.table[SCALE * TILE : (SCALE + 1) * TILE],
        s.table[MASS_Y * TILE : (MASS_Y + 1) * TILE],
        s.table[MASS * TILE : (MASS + 1) * TILE],
    )
    for j in range(LANES):
        label, bump, scale = np.int64(-1), 0.0, 0.0
        if j < rows:
            label, bump, scale, _ = target_of(i + j, p)
        others = p.spare
        if q is not None and label >= 0:
            bump += q[label]
            others += view(1.0, p.other_mass, p.classes)[label]
        scales[j], mass_y[j], mass[j], s.y[j] = scale, bump, others, label
        if scale == 0.0:
            for k in range(p.classes):
                s.x[k * LANES + j] = s.x.dtype.type(0)


@jit()
def transform(p: Any, affine: Any, capped: Any, s: Any) -> None:
    """x and lo become z and the part of it that its dtype cannot hold."""
    of = s.x.dtype.type
    by = 1.0 / p.temperature if capped is None else 1.0  # the soft cap has it
    by_lo = fma(-by, p.temperature, 1.0) / p.temperature if capped is None else 0.0
    if s.x.itemsize == 4:
        by_lo = by - np.float64(of(by))
    for k in range(p.classes):
        x, lo = column(s.x, k), column(s.lo, k)
        if capped is not None:
            elements.soft_cap(x, lo, column(s.slope, k), s.curve, p.temperature, p.softcap, s.slope[:0])
            if s.bias.size:
                column_bias(x, lo, s.bias[k], s.bias_lo[k])
        else:
            high, low = of(0), of(0)
            if s.bias.size:
                high, low = s.bias[k], s.bias_lo[k]
            column_affine(x, lo, of(by), of(by_lo), high, low)


@jit()
def statistics(p: Any, affine: Any, q: Any, s: Any) -> None:
    """The inputs of `settle`, and the exponentials over x."""
    n, of = p.classes, s.x.dtype.type
    rest, lost, dot = (
        s.table[REST * TILE : (REST + 1) * TILE],
        s.table[GAP_LO * TILE : (GAP_LO + 1) * TILE],
        s.table[DOT * TILE : (DOT + 1) * TILE],
    )
    for j in range(LANES):
        s.pivot[j] = s.x[j]
        s.at_y[j] = of(-np.inf)
        s.at_y_lo[j] = of(0)
        rest[j], lost[j], dot[j] = 0.0, 0.0, 0.0
    for k in range(1, n):
        column_max(column(s.x, k), s.pivot)
    for k in range(n):
        x, lo = column(s.x, k), None
        if affine is not None:
            lo = column(s.lo, k)
            column_pick(lo, s.y, k, s.at_y_lo)
        if q is not None:
            column_dot(x, lo, s.pivot, s.y, k, q[k], dot)
        column_exp(x, lo, s.pivot, s.y, k, s.at_y)
        column_sum(x, s.y, k, rest, lost)
    pivots, gap, gap_lo = (
        s.table[PIVOT * TILE : (PIVOT + 1) * TILE],
        s.table[GAP * TILE : (GAP + 1) * TILE],
        s.table[GAP_LO * TILE : (GAP_LO + 1) * TILE],
    )
    for j in range(LANES):
        rest[j] += lost[j]
        top, target = np.float64(s.pivot[j]), np.float64(s.at_y[j])
        pivots[j] = top
        gap[j] = target - top
        err = difference_error(target, top, gap[j]) + np.float64(s.at_y_lo[j])
        gap_lo[j] = err if abs(gap[j]) < np.inf else 0.0


@jit()
def gradient(p: Any, q: Any, capped: Any, s: Any) -> None:
    """The gradient over the exponentials."""
    of = s.x.dtype.type
    of_p, at = s.table[OF_P * TILE : (OF_P + 1) * TILE], s.table[AT_Y * TILE : (AT_Y + 1) * TILE]
    c, c_lo, at_y = s.pivot, s.at_y_lo, s.at_y
    for j in range(LANES):
        c[j] = of(of_p[j])
        c_lo[j] = low_part(of_p[j], c[j])
        at_y[j] = of(at[j])
    scale, by = (
        s.table[SCALE * TILE : (SCALE + 1) * TILE],
        p.grad_scale / (1.0 if capped is not None else p.temperature),
    )
    for k in range(p.classes):
        x = column(s.x, k)
        if q is not None:
            column_minus(x, c, c_lo, scale, by * q[k])
            column_put(x, s.y, k, at_y)
        else:
            column_weigh(x, c, c_lo, s.y, k, at_y)
        if capped is not None:
            column_slope(x, column(s.slope, k))


# The loops over the rows of a tile. Each has one job: LLVM makes vectors of what is plain.


@jit()
def column_max(x: Any, m: Any) -> None:
    for j in range(LANES):
        m[j] = maximum(m[j], x[j])


@jit(fastmath={"contract"})
def column_affine(x: Any, lo: Any, by: Any, by_lo: Any, bias: Any, bias_lo: Any) -> None:
    """x + lo = by * x + bias."""
    for j in range(LANES):
        x[j], lo[j] = elements.affine_at(x[j], by, by_lo, bias, bias_lo)


@jit(fastmath={"contract"})
def column_bias(x: Any, lo: Any, bias: Any, bias_lo: Any) -> None:
    """x + lo += bias."""
    for j in range(LANES):
        z = x[j] + bias
        err = difference_error(x[j], -bias, z) + (lo[j] + bias_lo)
        lo[j] = err if abs(z) < np.inf else type(z)(0)
        x[j] = z


@jit(fastmath={"contract"})
def column_exp(x: Any, lo: Any, pivot: Any, y: Any, k: Any, at_y: Any) -> None:
    """x = exp(x + lo - pivot); what was there goes to at_y in the rows of class k."""
    for j in range(LANES):
        z = x[j]
        at_y[j] = z if y[j] == k else at_y[j]
        d = z - pivot[j]
        err = difference_error(z, pivot[j], d)
        if lo is not None:
            err += lo[j]
        x[j] = exp(d, err)


@jit()
def column_pick(x: Any, y: Any, k: Any, at_y: Any) -> None:
    """at_y = x in the rows of class k."""
    for j in range(LANES):
        at_y[j] = x[j] if y[j] == k else at_y[j]


@jit()
def column_put(x: Any, y: Any, k: Any, at_y: Any) -> None:
    """x = at_y there."""
    for j in range(LANES):
        x[j] = at_y[j] if y[j] == k else x[j]


@jit()
def column_sum(e: Any, y: Any, k: Any, rest: Any, lost: Any) -> None:
    """rest + lost += e, but in the rows of class k: Knuth's two-sum, which needs no comparison."""
    for j in range(LANES):
        value = 0.0 if y[j] == k else np.float64(e[j])
        total = rest[j] + value
        back = total - rest[j]
        lost[j] += (rest[j] - (total - back)) + (value - back)
        rest[j] = total


@jit()
def column_dot(x: Any, lo: Any, pivot: Any, y: Any, k: Any, mass: Any, dot: Any) -> None:
    """dot += mass * (pivot - x), but in the rows of class k; 0 * inf = 0."""
    if mass != 0.0:
        for j in range(LANES):
            gap = np.float64(pivot[j]) - np.float64(x[j])
            if lo is not None:
                gap -= np.float64(lo[j])
            dot[j] += 0.0 if y[j] == k else mass * gap


@jit(fastmath={"contract"})
def column_weigh(e: Any, c: Any, c_lo: Any, y: Any, k: Any, at_y: Any) -> None:
    """e = c e, and at_y in the rows of class k."""
    for j in range(LANES):
        e[j] = at_y[j] if y[j] == k else fma(e[j], c[j], e[j] * c_lo[j])


@jit(fastmath={"contract"})
def column_minus(e: Any, c: Any, c_lo: Any, scale: Any, mass: Any) -> None:
    """e = c e - scale * mass."""
    for j in range(LANES):
        e[j] = np.float64(fma(e[j], c[j], e[j] * c_lo[j])) - scale[j] * mass


@jit()
def column_slope(e: Any, slope: Any) -> None:
    for j in range(LANES):
        e[j] = np.float64(e[j]) * slope[j]


@jit()
def _store(p: Any, witness: Any, address: Any, rows: Any, x: Any) -> None:
    step, stride, size = p.grad_step, p.grad.of_c, view(witness, address, 1).itemsize
    if step == size:
        for k in range(p.classes):
            target = view(witness, address + k * stride, rows)
            for j in range(rows):
                target[j] = narrow(x[k * LANES + j], witness)
    elif stride == size:
        for j in range(rows):
            target = view(witness, address + j * step, p.classes)
            for k in range(p.classes):
                target[k] = narrow(x[k * LANES + j], witness)
    else:
        for j in range(rows):
            for k in range(p.classes):
                pointer(witness, address + j * step + k * stride)[0] = narrow(x[k * LANES + j], witness)


@jit()
def store(p: Any, i: Any, rows: Any, x: Any) -> None:
    """The way back, to rows i .. i + rows of the gradient."""
    address = row_at(p.grad, i // p.inner, i % p.inner)
    if p.grad.dtype == FLOAT16:
        _store(p, np.int16(0), address, rows, x)
    elif p.grad.dtype == BFLOAT16:
        _store(p, np.uint16(0), address, rows, x)
    elif p.grad.dtype == FLOAT32:
        _store(p, np.float32(0), address, rows, x)
    else:
        _store(p, np.float64(0), address, rows, x)


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, one: Any, smooth: Any, affine: Any, capped: Any,
    grad: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, as kernel.work."""
    p = view_of_records(PARAMETERS, parameters)[0]
    partial = view(1.0, p.partial, 2 * last)
    n = p.classes
    s = Scratch(
        view(one, p.exponentials + worker * p.tile_bytes, n * LANES),
        view(one, p.lows + worker * p.tile_bytes if p.lows else 0, n * LANES if p.lows else 0),
        view(1.0, p.slopes + worker * n * LANES * 8, n * LANES if p.slopes else 0),
        slot(1.0, p.curves, worker, BLOCK, LANES),
        view(np.int32(0), p.tile_labels + worker * LANES * 4, LANES),
        slot(1.0, p.table, worker, VALUES * LANES, VALUES * LANES),
        slot(one, p.blocks, 3 * worker, BLOCK, LANES),
        slot(one, p.blocks, 3 * worker + 1, BLOCK, LANES),
        slot(one, p.blocks, 3 * worker + 2, BLOCK, LANES),
        view(one, p.bias, n if p.bias else 0),
        view(one, p.bias_lo, n if p.bias else 0),
    )
    q = None
    if smooth is not None:
        q = view(1.0, p.shared_mass, n)
    losses, z_losses = s.table[LOSS * TILE : (LOSS + 1) * TILE], s.table[Z_LOSS * TILE : (Z_LOSS + 1) * TILE]
    for chunk in range(first, last):
        total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
        i, stop = chunk * p.chunk, min(p.rows, (chunk + 1) * p.chunk)
        while i < stop:
            rows = min(LANES, stop - i, p.run - i % p.run)
            load(p, i, rows, s.x)
            targets(p, i, rows, q, s)
            if affine is not None:
                transform(p, affine, capped, s)
            statistics(p, affine, q, s)
            settle(s.table, rows, p, 1.0 if capped is not None else p.temperature)
            total, error = add(total, error, sum_up(losses, rows, s.x))
            if p.z_loss != 0.0:
                z_total, z_error = add(z_total, z_error, sum_up(z_losses, rows, s.x))
            for j in range(rows):
                if p.loss:
                    view(one, p.loss, p.rows)[i + j] = losses[j]
                if p.z_loss_rows:
                    view(one, p.z_loss_rows, p.rows)[i + j] = z_losses[j]
            if grad is not None:
                gradient(p, q, capped, s)
                store(p, i, rows, s.x)
            i += rows
        partial[2 * chunk] = finish(total, error)
        partial[2 * chunk + 1] = finish(z_total, z_error)
