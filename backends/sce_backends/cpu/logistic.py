"""Loss, gradient and Hessian of one logit per element, four lines at once. Docs/math.md has the formulas.

Float32 logits without options are computed in float32, with second words where a rounding would show; with
options, weights or a Hessian what follows the exponential is float64, because a weight may be any number.

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
from .memory import copy_bytes, fence, get, narrow, put, size_of, view_of_records
from .simd import (
    F32,
    F64,
    first,
    fused,
    halves,
    load,
    load_labels,
    narrowed,
    select,
    several,
    store,
    widened,
)
from .transforms import scaled
from .vector_math import (
    difference_error,
    exponential,
    finish,
    log1p,
    logistic,
    shifted_by,
)

WIDE, OPTIONS = 64, 32  # elements at once: four lines of float32, or of float64
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
    "plain",  # float32 will do: no options, weights, or Hessian
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
Constants = _tuple_of("Constants", (*FLOATS, "ignores", "ignored", "plain", "factor", "factor_lo"))
LABELS = (nb.int8, nb.int32, nb.int64)

# Witnesses as in tile.py: `one` of the compute dtype, `of`, `y_of` and `into` of logits, target and gradient
# in memory. All else is asked at run time: a branch that always goes the same way costs nothing beside a
# vector's exponentials, and a kernel for each combination of options would be seconds of compiling.


def target_of(y_of: Any, address: Any, c: Any, s: Any) -> Any:
    """(y, s) of some elements: s = 0 where the label is ignored, y is NaN where it is none."""


@overload(target_of, jit_options={"forceinline": True})
def _target_of(y_of: Any, address: Any, c: Any, s: Any) -> Any:
    if y_of not in LABELS:

        def probability(y_of: Any, address: Any, c: Any, s: Any) -> Any:
            return load(y_of, address, s), s

        return probability

    def label(y_of: Any, address: Any, c: Any, s: Any) -> Any:
        is_one, known, ignored = load_labels(y_of, address, s, c.ignored)
        if c.ignores:
            s = select(ignored, 0.0, s)
        return select(is_one, 1.0, select(known, several(0.0), np.nan)), s

    return label


@inline(fastmath=())
def masses(c: Any, y_of: Any, at: Any, k: Any, n: Any) -> Any:
    """(s, q_1, q_0) of the elements from the k-th on; from the n-th on s is 0."""
    s = several(c.unit)
    if at.sample_weight:
        s = load(1.0, at.sample_weight + k * 8, s) / c.denominator
    y, s = target_of(y_of, at.target + k * size_of(y_of), c, s)
    if n - k < OPTIONS:
        s = select(first(s, n - k), s, 0.0)
    weight = several(c.pos_weight_of_all)
    if at.pos_weight:
        weight = load(1.0, at.pos_weight + k * 8, s)
    return s, weight * fused(y, c.keep, c.spread), fused(1.0 - y, c.keep, c.spread)


@inline(fastmath=())  # or a vector and a rest of one might fuse other operations, and differ
def answer(c: Any, s: Any, q1: Any, q0: Any, z: Any, cost: Any, sure: Any, other: Any) -> Any:
    """(loss, gradient, Hessian), all of float64.

    cost is log(1 + e) with e = exp(-|z|), sure the likelier class's p, 1 / (1 + e), and other e times that.
    """
    up, here = z > 0.0, s != 0.0
    q_sure, q_other = select(up, q1, q0), select(up, q0, q1)
    mass = q0 + q1
    loss = s * fused(mass, cost, select(q_other != 0.0, q_other * abs(z), 0.0))  # 0 * inf = 0
    grad = (s * c.of_grad) * fused(q_other, sure, -(q_sure * other))
    hess = (s * c.of_hess) * (mass * (sure * other)) * c.by
    hess = select(hess < c.hess_min, c.hess_min, hess)
    return select(here, loss, 0.0), select(here, select(up, grad, -grad), 0.0), select(here, hess, 0.0)


def plain(c: Any, y_of: Any, address: Any, x: Any) -> Any:
    """(loss, gradient) of float32 logits without options, the loss not yet divided by D.

    The error of a gradient is that of e, and of one rounding.
    """


@overload(plain, jit_options={"forceinline": True})
def _plain(c: Any, y_of: Any, address: Any, x: Any) -> Any:
    if y_of not in LABELS:

        def of_probabilities(c: Any, y_of: Any, address: Any, x: Any) -> Any:
            y = load(y_of, address, x)
            e, e_lo, cost, i, i_lo = logistic(-abs(x), None)
            up = x > 0.0
            q_sure, q_other = select(up, y, 1.0 - y), select(up, 1.0 - y, y)
            loss = select(q_other != 0.0, fused(q_other, abs(x), cost), cost)  # 0 * inf = 0
            grad = slope(c, fused(-q_sure, e, q_other), -(q_sure * e_lo), i, i_lo)
            return loss, select(up, grad, -grad)

        return of_probabilities

    def of_labels(c: Any, y_of: Any, address: Any, x: Any) -> Any:
        is_one, known, ignored = load_labels(y_of, address, x, c.ignored)
        wrong = select(is_one, -x, x)  # the margin by which the other class is the likelier
        # Not `select(known, x, nan)`: a masked load that misses the TLB takes a hundred times as long.
        e, e_lo, cost, i, i_lo = logistic(select(known, -abs(x), np.nan), None)
        up = wrong > 0.0
        loss = cost + select(up, wrong, 0.0)
        grad = slope(c, select(up, 1.0, e), select(up, 0.0, e_lo), i, i_lo)
        grad = select(is_one, -grad, grad)
        if c.ignores:
            loss, grad = select(ignored, 0.0, loss), select(ignored, 0.0, grad)
        return loss, grad

    return of_labels


@inline(fastmath=())
def slope(c: Any, mass: Any, mass_lo: Any, i: Any, i_lo: Any) -> Any:
    """mass * i times the gradient's factor, rounded once."""
    p = mass * i
    p_lo = fused(mass_lo, i, fused(mass, i_lo, fused(mass, i, -p)))
    return fused(p, c.factor, fused(p_lo, c.factor, p * c.factor_lo))


@inline(fastmath=())
def plain_step(c: Any, of: Any, y_of: Any, into: Any, at: Any, k: Any) -> Any:
    """The WIDE elements from the k-th on to where they go; the sum of their losses, as `step`."""
    x = load(of, at.logits + k * size_of(of), several(F32(1.0)))
    loss, grad = plain(c, y_of, at.target + k * size_of(y_of), x)
    if at.grad:
        store(into, at.grad + k * size_of(into), grad)
    if at.loss:
        store(F32(1.0), at.loss + k * 4, loss)
    first_half, last = halves(loss)
    return first_half + last


def step(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
    """A vector of elements from the k-th on, of which those before the n-th count, to where it goes.

    Returns the sum of the losses, as a vector of float64.
    """


@overload(step, jit_options={"forceinline": True, "error_model": "numpy"})
def _step(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
    def for32(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
        """exp, log and quotient are of float32, all else of float64: z, too, and lo is what z lacks of it."""
        s, q1, q0 = masses(c, y_of, at, k, n)
        exact = load(of, at.logits + k * size_of(of), s) * c.by
        z = narrowed(exact)
        lo = narrowed(exact - widened(z))
        e, _, cost, i, i_lo = logistic(-abs(z), select(z > 0.0, -lo, lo))
        sure = widened(i) + widened(i_lo)
        loss, grad, hess = answer(c, s, q1, q0, exact, widened(cost), sure, widened(e) * sure)
        if at.grad:
            store(into, at.grad + k * size_of(into), narrowed(grad))
        if at.hess_diag:
            store(of, at.hess_diag + k * size_of(of), narrowed(hess))
        if at.loss:
            store(one, at.loss + k * 4, narrowed(loss))
        return loss

    def for64(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, k: Any, n: Any) -> Any:
        s, q1, q0 = masses(c, y_of, at, k, n)
        z, lo = scaled(load(of, at.logits + k * 8, s), c.by, c.by_lo)
        shift, floor = shifted_by(0.0, 1.0)
        e = exponential(-abs(z), select(z > 0.0, -lo, lo), shift, floor)
        total = e + 1.0
        lost = difference_error(e, -1.0, total)
        i = 1.0 / total
        i_lo = i * (fused(-i, total, 1.0) - i * lost)
        other = fused(e, i, e * i_lo)
        loss, grad, hess = answer(c, s, q1, q0, z, log1p(e), i + i_lo, other)
        if at.grad:
            store(into, at.grad + k * 8, grad)
        if at.hess_diag:
            store(of, at.hess_diag + k * 8, hess)
        if at.loss:
            store(one, at.loss + k * 8, loss)
        return loss

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
    for k in range(0, n, OPTIONS):
        total, error = added(one, total, error, step(c, of, y_of, one, into, at, k, n))
    return total, error


def plain_elements(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any) -> Any:
    """`elements` without options, in float32."""


@overload(plain_elements, jit_options={"error_model": "numpy"})
def _plain_elements(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any) -> Any:
    def for32(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any) -> Any:
        for k in range(0, n, WIDE):
            total = total + plain_step(c, of, y_of, into, at, k)
        return total

    def for64(c: Any, of: Any, y_of: Any, one: Any, into: Any, at: Any, n: Any, total: Any) -> Any:
        return total

    return for32 if one == F32 and y_of != F64 else for64


@jit()
def fill(of: Any, y_of: Any, x: Any, y: Any, n: Any) -> None:
    """What follows n elements in scratch costs nothing: it is sure, and right."""
    for k in range(n, WIDE):
        put(of, x + k * size_of(of), narrow(F32(-np.inf), of))
        put(y_of, y + k * size_of(y_of), 0)


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
    lanes, k = WIDE if c.plain else OPTIONS, np.int64(0)
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
        if c.plain:
            if not direct:
                fill(of, y_of, here.logits, here.target, size)
            total = plain_elements(c, of, y_of, one, into, here, size, total)
        else:
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
    factor = p.unit * p.of_grad
    factor_lo = np.float32(factor - np.float64(np.float32(factor)))
    c = Constants(
        p.denominator, p.unit, p.by, p.by_lo, p.pos_weight_of_all, p.keep, p.spread, p.of_grad, p.of_hess,
        p.hess_min, p.ignores, p.ignored, p.plain, np.float32(factor), factor_lo,
    )  # fmt: skip
    own = p.scratch + worker * SLOTS * p.slot
    for chunk in range(begin, end):
        total, error = several(0.0), several(0.0)
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
        loss = finish(simd.total(total), simd.total(error))
        put(1.0, p.partial + chunk * 16, loss * p.unit if p.plain else loss)
        put(1.0, p.partial + chunk * 16 + 8, 0.0)
    if p.past_caches:
        fence()
