"""Loss, gradient and Hessian of one logit per element: all of it in vectors of float64.

Float32 logits, too: with short polynomials eight exponentials, a quotient and a logarithm are some seventy
operations, and a float32 answer is rounded once. Docs/math.md has the formulas.

Arrays lie in runs of elements that are equally far apart. What has gaps is brought together a block at a
time; so is a gradient that streams past the caches, because the lanes of the sum must not depend on its
address; and so is what is left of a run after its whole vectors.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numba as nb
import numpy as np
from numba.extending import overload

from . import simd
from .cache import inline, jit
from .memory import copy_bytes, fence, get, put, size_of, view_of_records
from .simd import (
    F32,
    LINE,
    first,
    fused,
    joined,
    load,
    load_labels,
    select,
    splat,
    store,
)
from .transforms import scaled
from .vector_math import (
    difference_error,
    exponential,
    finish,
    log1p,
    shifted_by,
    short_exponential,
    short_log1p_of_unit,
)

BLOCK = 2048  # elements that are brought together at once
MATRICES = ("logits", "target", "sample_weight", "pos_weight", "grad", "hess_diag")
SLOTS = len(MATRICES) + 1  # of a worker's scratch: those, and the losses
INTEGERS = (
    "outer", "run",  # the elements are `outer` runs of `run`
    "chunk",  # runs in a chunk, or elements where a run has several
    "pieces",  # chunks of a run
    "loss",  # address of the elements' losses, one after the other, or 0
    "partial", "scratch",
    "block",  # elements that are brought together at once; all, if nothing has gaps nor streams
    "slot",  # bytes of scratch for each
    "past_caches",
    "ignores", "ignored",
)  # fmt: skip
FLOATS = (
    "denominator", "unit",  # infinite and 0 for an empty mean
    "by", "by_lo",  # 1 / temperature
    "pos_weight_of_all", "keep", "spread",  # 1 - label_smoothing, and half of it
    "of_grad", "of_hess", "hess_min",
)  # fmt: skip
PARAMETERS = np.dtype(
    [(name, np.int64) for name in INTEGERS]
    + [(name, np.float64) for name in FLOATS]
    + [(f"{name}{part}", np.int64) for name in MATRICES for part in ("", "_of_run", "_step")]
)

# Addresses of an element in each of MATRICES and of its loss, where it is read or written.
_tuple_of: Any = namedtuple  # mypy wants the names written out
Places = _tuple_of("Places", (*MATRICES, "loss"))
# Values, because what lies in memory would be read again after each store.
Constants = _tuple_of("Constants", (*FLOATS, "ignores", "ignored"))

# Witnesses as in tiles.py: `one` of the compute dtype, `of`, `y_of` and `into` of logits, target and gradient
# in memory. All else is asked at run time: a branch that always goes the same way costs nothing beside a
# vector's exponentials, and a kernel for each combination of options would be seconds of compiling.


def target_of(y_of: Any, address: Any, c: Any, s: Any) -> Any:
    """(y, s) of eight elements: s = 0 where the label is ignored, y is NaN where it is none."""


@overload(target_of, jit_options={"forceinline": True})
def _target_of(y_of: Any, address: Any, c: Any, s: Any) -> Any:
    if y_of not in (nb.int8, nb.int32, nb.int64):

        def probability(y_of: Any, address: Any, c: Any, s: Any) -> Any:
            return load(y_of, address, 0.0), s

        return probability

    def label(y_of: Any, address: Any, c: Any, s: Any) -> Any:
        y, is_ignored = load_labels(y_of, address, c.ignored)
        if c.ignores:
            s = select(is_ignored, splat(0.0), s)
        return y, s

    return label


def parts_of(one: Any, x: Any, c: Any) -> Any:
    """(z, log(1 + e), p of the likelier class, of the other) with e = exp(-|z|), z = x / T.

    The likelier is 1 / (1 + e), and the other e times that: no difference of nearly equal numbers.
    """


@overload(parts_of, jit_options={"forceinline": True})
def _parts_of(one: Any, x: Any, c: Any) -> Any:
    def for32(one: Any, x: Any, c: Any) -> Any:
        z = x * c.by
        e = short_exponential(select(z > 0.0, -z, z))
        sure = 1.0 / (e + 1.0)
        return z, short_log1p_of_unit(e), sure, e * sure

    def for64(one: Any, x: Any, c: Any) -> Any:
        z, lo = scaled(x, splat(c.by), splat(c.by_lo))
        shift, floor = shifted_by(0.0, 1.0)
        up = z > 0.0
        e = exponential(select(up, -z, z), select(up, -lo, lo), splat(shift), splat(floor))
        total = e + 1.0
        lost = difference_error(e, splat(-1.0), total)
        sure = 1.0 / total
        sure_lo = sure * (fused(-sure, total, splat(1.0)) - sure * lost)
        return z, log1p(e), sure + sure_lo, fused(e, sure, e * sure_lo)

    return for32 if one == F32 else for64


@inline(fastmath=())  # or a vector and a rest of one might fuse other operations, and differ
def answer(c: Any, of: Any, y_of: Any, one: Any, at: Any, k: Any, n: Any) -> Any:
    """(loss, gradient, Hessian) of the eight elements from the k-th on; of n the others are 0."""
    s = splat(c.unit)
    if at.sample_weight:
        s = load(1.0, at.sample_weight + k * 8, 1.0) / c.denominator
    y, s = target_of(y_of, at.target + k * size_of(y_of), c, s)
    s = select(first(0.0, n - k), s, splat(0.0))
    weight = splat(c.pos_weight_of_all)
    if at.pos_weight:
        weight = load(1.0, at.pos_weight + k * 8, 1.0)
    q1 = weight * fused(y, c.keep, splat(c.spread))
    q0 = fused(1.0 - y, c.keep, splat(c.spread))

    z, cost, sure, other = parts_of(one, load(of, at.logits + k * size_of(of), 0.0), c)
    up = z > 0.0
    prob, rest = select(up, sure, other), select(up, other, sure)
    nothing, zero = other - other, splat(0.0)  # but NaN where z is
    of_1 = select(q1 != 0.0, q1 * (cost + select(up, zero, -z)), nothing)  # 0 * inf = 0
    of_0 = select(q0 != 0.0, q0 * (cost + select(up, z, zero)), nothing)
    here = s != 0.0
    loss = select(here, s * (of_1 + of_0), zero)
    grad = select(here, (s * c.of_grad) * fused(q0, prob, -(q1 * rest)), zero)
    hess = (s * c.of_hess) * ((q0 + q1) * (prob * rest))
    hess = select(here, select(hess < c.hess_min, splat(c.hess_min), hess), zero)
    return loss, grad, hess


def step(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
    """A vector of elements from the k-th on, of which those before the n-th count, to where it goes.

    Returns the sum of the losses, as a vector of float64.
    """


@overload(step, jit_options={"forceinline": True, "error_model": "numpy"})
def _step(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
    def for32(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
        loss_a, grad_a, hess_a = answer(c, of, y_of, one, at, k, n)
        loss_b, grad_b, hess_b = answer(c, of, y_of, one, at, k + 8, n)
        if at.grad:
            store(into, at.grad + k * size_of(into), joined(grad_a, grad_b))
        if at.hess_diag:
            store(of, at.hess_diag + k * size_of(of), joined(hess_a, hess_b))
        if at.loss:
            store(one, at.loss + k * 4, joined(loss_a, loss_b))
        return loss_a + loss_b

    def for64(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
        found, slope, curve = answer(c, of, y_of, one, at, k, n)
        if at.grad:
            store(into, at.grad + k * 8, slope)
        if at.hess_diag:
            store(of, at.hess_diag + k * 8, curve)
        if at.loss:
            store(one, at.loss + k * 8, found)
        return found

    return for32 if one == F32 else for64


@inline(fastmath=())
def added(one: Any, total: Any, error: Any, value: Any) -> Any:
    """One more onto a sum in lanes; of float64 with the rounding errors kept."""
    new = total + value
    if size_of(one) == 8:
        error = error + difference_error(total, -value, new)
    return new, error


@jit()
def elements(
    c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any, error: Any
) -> Any:  # fmt: skip
    """n elements that lie one after the other, in whole vectors; their losses onto the sum."""
    for k in range(0, n, LINE // size_of(one)):
        total, error = added(one, total, error, step(c, of, y_of, one, into, at, k, n))
    return total, error


@jit()
def brought(of: Any, address: Any, stride: Any, n: Any, to: Any, direct: Any) -> Any:
    """Where n numbers lie one after the other: where they do already, or in scratch; 0 for none."""
    if address == 0 or (direct and stride == size_of(of)):
        return address
    for k in range(n):
        put(of, to + k * size_of(of), get(of, address + k * stride))
    return to


@jit()
def taken(of: Any, address: Any, stride: Any, n: Any, found: Any, past_caches: Any) -> None:
    """n numbers from scratch to where they go, unless they are there."""
    if found != address and past_caches:
        copy_bytes(address, found, n * size_of(of), True)
    elif found != address:
        for k in range(n):
            put(of, address + k * stride, get(of, found + k * size_of(of)))


@jit()
def room(of: Any, address: Any, stride: Any, scratch: Any, direct: Any) -> Any:
    """Where numbers are written one after the other: where they go, or in scratch; 0 for none."""
    return address if address == 0 or (direct and stride == size_of(of)) else scratch


@jit()
def run(
    p: Any, c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any, error: Any, own: Any
) -> Any:
    """n elements of a run, some at a time."""
    lanes, k = LINE // size_of(one), np.int64(0)
    while k < n:
        size = min(p.block, n - k)
        direct = size >= lanes
        if direct:
            size -= size % lanes
        to_g = at.grad + k * p.grad_step
        to_h = at.hess_diag + k * p.hess_diag_step
        to_loss = at.loss + k * size_of(one) if at.loss else at.loss
        u, w = at.sample_weight + k * p.sample_weight_step, at.pos_weight + k * p.pos_weight_step
        here = Places(
            brought(of, at.logits + k * p.logits_step, p.logits_step, size, own, direct),
            brought(y_of, at.target + k * p.target_step, p.target_step, size, own + p.slot, direct),
            brought(1.0, u, p.sample_weight_step, size, own + 2 * p.slot, direct),
            brought(1.0, w, p.pos_weight_step, size, own + 3 * p.slot, direct),
            room(into, to_g, p.grad_step, own + 4 * p.slot, direct and not p.past_caches),
            room(of, to_h, p.hess_diag_step, own + 5 * p.slot, direct),
            room(one, to_loss, size_of(one), own + 6 * p.slot, direct),
        )
        total, error = elements(c, of, y_of, one, into, here, size, total, error)
        taken(into, to_g, p.grad_step, size, here.grad, p.past_caches)
        taken(of, to_h, p.hess_diag_step, size, here.hess_diag, False)
        taken(one, to_loss, size_of(one), size, here.loss, False)
        k += size
    return total, error


@jit()
def work(
    worker: Any, begin: Any, end: Any, parameters: Any, of: Any, y_of: Any, one: Any, into: Any,
) -> None:  # fmt: skip
    """Chunks begin .. end. Moves logit and target in, and gradient and Hessian out."""
    p = view_of_records(PARAMETERS, parameters)[0]
    c = Constants(
        p.denominator, p.unit, p.by, p.by_lo, p.pos_weight_of_all, p.keep, p.spread, p.of_grad, p.of_hess,
        p.hess_min, p.ignores, p.ignored,
    )  # fmt: skip
    own = p.scratch + worker * SLOTS * p.slot
    for chunk in range(begin, end):
        total, error = splat(0.0), splat(0.0)
        row, last, start, stop = chunk * p.chunk, min(p.outer, (chunk + 1) * p.chunk), np.int64(0), p.run
        if p.pieces > 1:
            row = chunk // p.pieces
            last = row + 1
            start = chunk % p.pieces * p.chunk
            stop = min(p.run, start + p.chunk)
        for r in range(row, last):
            at = Places(
                p.logits + r * p.logits_of_run + start * p.logits_step,
                p.target + r * p.target_of_run + start * p.target_step,
                p.sample_weight + r * p.sample_weight_of_run + start * p.sample_weight_step,
                p.pos_weight + r * p.pos_weight_of_run + start * p.pos_weight_step,
                p.grad + r * p.grad_of_run + start * p.grad_step,
                p.hess_diag + r * p.hess_diag_of_run + start * p.hess_diag_step,
                p.loss + (r * p.run + start) * size_of(one) if p.loss else np.int64(0),
            )
            total, error = run(p, c, of, y_of, one, into, at, stop - start, total, error, own)
        put(1.0, p.partial + chunk * 16, finish(simd.total(total), simd.total(error)))
        put(1.0, p.partial + chunk * 16 + 8, 0.0)
    if p.past_caches:
        fence()
