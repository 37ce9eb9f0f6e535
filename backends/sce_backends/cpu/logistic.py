"""Loss, gradient and Hessian of one logit per element: all of it in vectors of float64.

An element is independent of the others, so memory sets the pace, and float64 with short polynomials is in its
time: eight exponentials, a quotient and a polynomial take less than eight bytes each of logit, target and
gradient do. Float32 answers are thereby rounded once. Docs/math.md has the formulas.

Arrays lie in runs of elements that are equally far apart. What has gaps is brought together a block at a
time; so is a gradient that streams past the caches: the lanes of the sum must not depend on its address.
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
    load_first,
    load_labels,
    select,
    splat,
    store,
    store_first,
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
SLOT = BLOCK * 8 + LINE  # bytes of a worker's scratch for each of them
INTEGERS = (
    "outer", "run",  # the elements are `outer` runs of `run`
    "chunk",  # runs in a chunk, or elements where a run has several
    "pieces",  # chunks of a run
    "loss",  # address of the elements' losses, one after the other, or 0
    "partial", "scratch",
    "packed",  # nothing has gaps, and the gradient does not stream
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

Constants = namedtuple("Constants", (*FLOATS, "ignores", "ignored"))
Constants.__doc__ = "Values, because what lies in memory would be read again after each store."
# Addresses of an element in each of MATRICES, where it is read or written.
Places = namedtuple("Places", MATRICES)

# Witnesses as in tiles.py: `one` of the compute dtype, `of`, `y_of` and `into` of logits, target and gradient
# in memory. `u`, `w`, `grad` and `hess` are True, or None and compiled away: are there weights of elements,
# of their class 1, and is this wanted.


def some(of: Any, address: Any, n: Any) -> Any:
    """Eight numbers as float64; of the first n alone, 0 in the others, where n is not None."""


@overload(some, jit_options={"forceinline": True})
def _some(of: Any, address: Any, n: Any) -> Any:
    if isinstance(n, nb.types.NoneType):

        def whole(of: Any, address: Any, n: Any) -> Any:
            return load(of, address, 0.0)

        return whole

    def part(of: Any, address: Any, n: Any) -> Any:
        return load_first(of, address, 0.0, n, 0.0)

    return part


def target_of(y_of: Any, address: Any, n: Any, c: Any, s: Any) -> Any:
    """(y, s) of eight elements: s = 0 where the label is ignored, y is NaN where it is none."""


@overload(target_of, jit_options={"forceinline": True})
def _target_of(y_of: Any, address: Any, n: Any, c: Any, s: Any) -> Any:
    if y_of not in (nb.int8, nb.uint8, nb.int32, nb.int64):

        def probability(y_of: Any, address: Any, n: Any, c: Any, s: Any) -> Any:
            return some(y_of, address, n), s

        return probability

    def label(y_of: Any, address: Any, n: Any, c: Any, s: Any) -> Any:
        y, is_ignored = load_labels(y_of, address, 8 if n is None else n, c.ignored)
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
def answer(c: Any, of: Any, y_of: Any, one: Any, at: Any, k: Any, n: Any, u: Any, w: Any) -> Any:
    """(loss, gradient, Hessian) of the eight elements from the k-th on, or the first n of them."""
    s = splat(c.unit)
    if u is not None:
        s = some(1.0, at.sample_weight + k * 8, n) / c.denominator
    y, s = target_of(y_of, at.target + k * size_of(y_of), n, c, s)
    if n is not None:
        s = select(first(0.0, n), s, splat(0.0))
    weight = splat(c.pos_weight_of_all)
    if w is not None:
        weight = some(1.0, at.pos_weight + k * 8, n)
    q1 = weight * fused(y, c.keep, splat(c.spread))
    q0 = fused(1.0 - y, c.keep, splat(c.spread))

    z, cost, sure, other = parts_of(one, some(of, at.logits + k * size_of(of), n), c)
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


def emit(of: Any, address: Any, value: Any, n: Any) -> None:
    """A vector to memory, or its first n lanes."""


@overload(emit, jit_options={"forceinline": True})
def _emit(of: Any, address: Any, value: Any, n: Any) -> Any:
    if isinstance(n, nb.types.NoneType):

        def whole(of: Any, address: Any, value: Any, n: Any) -> None:
            store(of, address, value)

        return whole

    def part(of: Any, address: Any, value: Any, n: Any) -> None:
        store_first(of, address, value, n)

    return part


def beyond(n: Any) -> Any:
    """How many of the first n come after a vector of eight, or None."""


@overload(beyond, jit_options={"forceinline": True})
def _beyond(n: Any) -> Any:
    if isinstance(n, nb.types.NoneType):

        def nobody(n: Any) -> Any:
            return None

        return nobody

    def others(n: Any) -> Any:
        return n - 8

    return others


def step(
    c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, loss: Any, n: Any, u: Any, w: Any,
    grad: Any, hess: Any,
) -> Any:  # fmt: skip
    """A vector of elements from the k-th on, or its first n; their losses go to `loss`, if that is not 0.

    Returns the sum of the losses, as a vector of float64.
    """


@overload(step, jit_options={"forceinline": True, "error_model": "numpy"})
def _step(
    c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, loss: Any, n: Any, u: Any, w: Any,
    grad: Any, hess: Any,
) -> Any:  # fmt: skip
    def for32(
        c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, loss: Any, n: Any, u: Any, w: Any,
        grad: Any, hess: Any,
    ) -> Any:  # fmt: skip
        after = beyond(n)
        loss_a, grad_a, hess_a = answer(c, of, y_of, one, at, k, n, u, w)
        loss_b, grad_b, hess_b = answer(c, of, y_of, one, at, k + 8, after, u, w)
        if grad is not None:
            emit(into, at.grad + k * size_of(into), joined(grad_a, grad_b), n)
        if hess is not None:
            emit(of, at.hess_diag + k * size_of(of), joined(hess_a, hess_b), n)
        if loss:
            emit(one, loss + k * 4, joined(loss_a, loss_b), n)
        return loss_a + loss_b

    def for64(
        c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, loss: Any, n: Any, u: Any, w: Any,
        grad: Any, hess: Any,
    ) -> Any:  # fmt: skip
        found, slope, curve = answer(c, of, y_of, one, at, k, n, u, w)
        if grad is not None:
            emit(into, at.grad + k * 8, slope, n)
        if hess is not None:
            emit(of, at.hess_diag + k * 8, curve, n)
        if loss:
            emit(one, loss + k * 8, found, n)
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
    c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, loss: Any, total: Any, error: Any,
    u: Any, w: Any, grad: Any, hess: Any,
) -> Any:  # fmt: skip
    """n elements that lie one after the other; their losses onto the sum."""
    lanes = LINE // size_of(one)
    whole = n // lanes * lanes
    for k in range(0, whole, lanes):
        found = step(c, of, y_of, one, into, at, k, loss, None, u, w, grad, hess)
        total, error = added(one, total, error, found)
    if whole < n:
        found = step(c, of, y_of, one, into, at, whole, loss, n - whole, u, w, grad, hess)
        total, error = added(one, total, error, found)
    return total, error


@jit()
def brought(of: Any, address: Any, stride: Any, n: Any, to: Any) -> Any:
    """Where n numbers lie one after the other: where they do already, or in scratch."""
    if stride == size_of(of):
        return address
    for k in range(n):
        put(of, to + k * size_of(of), get(of, address + k * stride))
    return to


@jit()
def taken(of: Any, address: Any, stride: Any, n: Any, found: Any) -> None:
    """n numbers from scratch to where they go, unless they are there."""
    if found != address:
        for k in range(n):
            put(of, address + k * stride, get(of, found + k * size_of(of)))


@jit()
def blocks(
    p: Any, c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, loss: Any, total: Any,
    error: Any, own: Any, u: Any, w: Any, grad: Any, hess: Any,
) -> Any:  # fmt: skip
    """`elements`, a block at a time: what has gaps, or streams, by way of scratch."""
    for k in range(0, n, BLOCK):
        size = min(BLOCK, n - k)
        x = brought(of, at.logits + k * p.logits_step, p.logits_step, size, own)
        y = brought(y_of, at.target + k * p.target_step, p.target_step, size, own + SLOT)
        of_u, of_w, g, h = at.sample_weight, at.pos_weight, at.grad, at.hess_diag
        if u is not None:
            of_u += k * p.sample_weight_step
            of_u = brought(1.0, of_u, p.sample_weight_step, size, own + 2 * SLOT)
        if w is not None:
            of_w = brought(1.0, of_w + k * p.pos_weight_step, p.pos_weight_step, size, own + 3 * SLOT)
        to_g, to_h = g + k * p.grad_step, h + k * p.hess_diag_step
        if grad is not None:
            g = own + 4 * SLOT if p.past_caches or p.grad_step != size_of(into) else to_g
        if hess is not None:
            h = own + 5 * SLOT if p.hess_diag_step != size_of(of) else to_h
        here = Places(x, y, of_u, of_w, g, h)
        into_loss = loss + k * size_of(one) if loss else loss
        total, error = elements(c, of, y_of, one, into, here, size, into_loss, total, error, u, w, grad, hess)
        if grad is not None:
            if p.past_caches:
                copy_bytes(to_g, g, size * size_of(into), True)
            else:
                taken(into, to_g, p.grad_step, size, g)
        if hess is not None:
            taken(of, to_h, p.hess_diag_step, size, h)
    return total, error


@jit()
def work(
    worker: Any, begin: Any, end: Any, parameters: Any, of: Any, y_of: Any, one: Any, into: Any, u: Any,
    w: Any, grad: Any, hess: Any,
) -> None:  # fmt: skip
    """Chunks begin .. end. Moves logit and target in, and gradient and Hessian out."""
    p = view_of_records(PARAMETERS, parameters)[0]
    c = Constants(
        p.denominator, p.unit, p.by, p.by_lo, p.pos_weight_of_all, p.keep, p.spread, p.of_grad, p.of_hess,
        p.hess_min, p.ignores, p.ignored,
    )  # fmt: skip
    own = p.scratch + worker * len(MATRICES) * SLOT
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
            )
            loss = p.loss + (r * p.run + start) * size_of(one) if p.loss else np.int64(0)
            n = stop - start
            if p.packed:
                total, error = elements(c, of, y_of, one, into, at, n, loss, total, error, u, w, grad, hess)
            else:
                total, error = blocks(
                    p, c, of, y_of, one, into, at, n, loss, total, error, own, u, w, grad, hess
                )
        put(1.0, p.partial + chunk * 16, finish(simd.total(total), simd.total(error)))
        put(1.0, p.partial + chunk * 16 + 8, 0.0)
    if p.past_caches:
        fence()
