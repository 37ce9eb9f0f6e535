"""The second pass over a tile, vectors over its rows: losses, and what the gradient is made with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .cache import jit
from .memory import get, put, size_of
from .reading import sum_of
from .simd import F32, LINE, anywhere, load, select, splat, store, store_first
from .tile import (
    AT_Y,
    DOT,
    GAP,
    GAP_LO,
    H_TOP,
    H_Y,
    INVERSE,
    LEAST,
    LOSS,
    MASS,
    MASS_Y,
    OF_H,
    OF_P,
    PIVOT,
    PIVOT_LO,
    REST,
    SCALE,
    TOP,
    Z_LOSS,
)
from .vector_math import add, exponential, finish, log1p, shifted_by, short_exponential, short_log1p


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
        s = load(1.0, at + SCALE, 1.0)
        mass_y, mass = load(1.0, at + MASS_Y, 1.0), load(1.0, at + MASS, 1.0)
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
def sum_up(x: Any, n: Any, wide: Any) -> Any:
    """Of a tile's losses: in vector lanes where the answer is float32, else without losing a bit."""
    if not wide:
        return sum_of(1.0, x, n)
    total, error = 0.0, 0.0
    for j in range(n):
        total, error = add(total, error, get(1.0, x + j * 8))
    return finish(total, error)


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
