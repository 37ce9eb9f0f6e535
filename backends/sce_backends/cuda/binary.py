"""One logit per element: loss, gradient and Hessian of the binary loss, each element on its own.

A thread has some vectors of 16 bytes of logits, a block's apart; their targets come one by one. With `flat`
all matrices are contiguous, and an element's number is its place; else, and for weights, which may be
repeated along an axis, a place is a * stride_a + b * stride_b. Bytes, per element: the logit, the target, the
gradient, and what is asked for besides; two words per block for the loss.

With e = exp(-|z|) the likelier class has p = 1 / (1 + e) and the other e times that. A is the mass on the
other class and B that on the likelier one; M = A + B:

    loss = s (M log1p(e) + A |z|)     gradient = +-s p (A - B e)     Hessian = s M e p^2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arithmetic import arithmetic
from .group import group

THREADS = 256
VECTORS = {1: 1, 4: 2, 8: 1}  # of a thread, by their width: all of their code is unrolled


class Binary(NamedTuple):
    """What the machine code depends on. Dtypes are names; `grad` is "" where no gradient is wanted."""

    real: str  # what is computed in
    logits: str
    target: str
    sample_weight: str
    pos_weight: str
    grad: str
    hess: bool
    loss: str  # "pairs": two words per block, to be summed; a dtype: one value each; "": not wanted
    width: int  # logits of a vector: what 16 bytes hold, or 1
    flat: bool
    labelled: bool
    sampled: bool
    weighted: bool
    smooth: bool  # label smoothing, or a number that weighs class 1
    tempered: bool
    ignores: bool
    floored: bool
    device_total: bool
    blocks: int  # of a processor, for which registers must suffice


MATRICES = ("logits", "target", "sample_weight", "pos_weight", "grad", "hess_diag")
INTEGERS = ("n", "inner", "ignored", *(f"{name}_{axis}" for name in MATRICES for axis in "ab"))
PAIRS = ("unit", "of_grad", "of_hess", "over_t", "keep", "spread", "positive")


def arguments(spec: Binary) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    of = {
        "logits": spec.logits, "target": spec.target, "sample_weight": spec.sample_weight,
        "pos_weight": spec.pos_weight, "grad": spec.grad or spec.real, "hess_diag": spec.logits,
        "loss": _of_loss(spec), "total": "float64",
    }  # fmt: skip
    return (
        *((name, f"*{dtype}") for name, dtype in of.items()),
        *((name, "int64") for name in INTEGERS),
        *((f"{name}{word}", spec.real) for name in PAIRS for word in ("", "_tail")),
        ("hess_min", spec.real),
    )


def _of_loss(spec: Binary) -> str:
    """The dtype of the loss's memory: one value each may be narrower than what is computed in."""
    return spec.real if spec.loss in ("", "pairs") else spec.loss


def kernel(d: Any, spec: Binary) -> Callable[..., None]:
    math = arithmetic(d, spec.real)
    real, inf = math.real, math.inf
    gather = group(d, math, THREADS).total
    cuda, fma, times = d.cuda, d.fma, d.times
    two_sum, fast_two_sum, add = math.two_sum, math.fast_two_sum, math.add
    multiply, divide, finish, log1p = math.multiply, math.divide, math.finish, math.log1p
    exponential, exponential_of_pair, shifted_by = math.exponential, math.exponential_of_pair, math.shifted_by
    zero, one, nan = real(0), real(1), real(np.nan)
    read, fetch = d.reader(spec.logits, real), d.fetcher(spec.logits, real)
    read_label = d.reader(spec.target if spec.labelled else "int64", np.int64)
    read_y = d.reader("float64" if spec.labelled else spec.target, real)
    read_u, read_w = d.reader(spec.sample_weight, real), d.reader(spec.pos_weight, real)
    read_total, write_loss = d.reader("float64", np.float64), d.writer(_of_loss(spec), real)
    to = spec.grad or spec.logits
    write_grad, put_grad = d.writer(to, real), d.putter(to, real)
    write_hess, put_hess = d.writer(spec.logits, real), d.putter(spec.logits, real)
    width, flat, vectors = spec.width, spec.flat, VECTORS[spec.width]
    kept = vectors * width
    labelled, sampled, weighted, smooth = spec.labelled, spec.sampled, spec.weighted, spec.smooth
    tempered, ignores, floored, device_total = spec.tempered, spec.ignores, spec.floored, spec.device_total
    wants_grad, wants_hess = bool(spec.grad), spec.hess
    wants_loss, pairs = bool(spec.loss), spec.loss == "pairs"
    places = not flat or sampled or weighted
    exact = labelled and not weighted and not smooth  # masses are 0 and 1

    @d.inline
    def place(i, a, b, of_a, of_b):
        """Where element i = (a, b) of a matrix is."""
        return i if flat else a * of_a + b * of_b

    @d.inline
    def masses(y, w, w_tail, keep, keep_tail, spread, spread_tail):
        """The mass on class 1 and on class 0, two pairs."""
        h, t = y, zero
        g, r = two_sum(one, -y)
        if smooth:
            h, t = multiply(h, t, keep, keep_tail)
            h, t = add(h, t, spread, spread_tail)
            g, r = multiply(g, r, keep, keep_tail)
            g, r = add(g, r, spread, spread_tail)
        if smooth or weighted:
            h, t = multiply(h, t, w, w_tail)
        return h, t, g, r

    def binary(
        x, target, sample_weight, pos_weight, grad, hess, loss, total, n, inner, ignored, x_a, x_b, y_a, y_b,
        u_a, u_b, w_a, w_b, g_a, g_b, h_a, h_b, unit, unit_tail, of_grad, of_grad_tail, of_hess, of_hess_tail,
        over_t, over_t_tail, keep, keep_tail, spread, spread_tail, positive, positive_tail, hess_min,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        block = np.int64(cuda.blockIdx.x)
        if device_total:
            divisor = read_total(total, 0)
            inverse = 0.0
            if divisor != 0.0:
                inverse = 1.0 / divisor
            unit = real(inverse)
            unit_tail = real(inverse - np.float64(unit)) if abs(unit) < inf else zero
        shift_0, floor = shifted_by(zero)

        # All logits and targets, in flight together.
        logits_here = cuda.local.array(kept, real)
        targets_here = cuda.local.array(kept, real)
        here = cuda.local.array(kept, np.int32)  # does the element count?
        for q in range(vectors):
            first = (block * vectors + q) * (THREADS * width) + thread * width
            if width > 1 and first + width <= n:
                fetch(x, first, logits_here, q * width)
            for j in range(width):
                i = first + j
                k = q * width + j
                here[k] = np.int32(0)
                targets_here[k] = zero
                if i < n:
                    a, b = np.int64(0), np.int64(0)
                    if not flat:
                        a = i // inner
                        b = i - a * inner
                    if width == 1 or first + width > n:
                        logits_here[k] = read(x, place(i, a, b, x_a, x_b))
                    here[k] = np.int32(1)
                    if labelled:
                        label = read_label(target, place(i, a, b, y_a, y_b))
                        y = nan
                        if label == 0:
                            y = zero
                        if label == 1:
                            y = one
                        targets_here[k] = y
                        if ignores and label == ignored:
                            here[k] = np.int32(0)
                    else:
                        targets_here[k] = read_y(target, place(i, a, b, y_a, y_b))
                else:
                    logits_here[k] = zero

        sum_h, sum_t = zero, zero
        for q in range(vectors):
            first = (block * vectors + q) * (THREADS * width) + thread * width
            slopes = cuda.local.array(width, real)
            curves = cuda.local.array(width, real)
            for j in range(width):
                k = q * width + j
                i = first + j
                w, w_tail, s, s_tail = positive, positive_tail, unit, unit_tail
                counted = here[k] != 0 and unit != zero
                if places and i < n:
                    a = i // inner
                    b = i - a * inner
                    if weighted:
                        w, w_tail = read_w(pos_weight, a * w_a + b * w_b), zero
                    if sampled:
                        u = read_u(sample_weight, a * u_a + b * u_b)
                        counted = counted and u != zero
                        s, s_tail = multiply(u, zero, unit, unit_tail)
                q1, q1_tail, q0, q0_tail = masses(
                    targets_here[k], w, w_tail, keep, keep_tail, spread, spread_tail
                )

                # z as a pair, and -|z|.
                z, z_tail = logits_here[k], zero
                if tempered:
                    z = times(logits_here[k], over_t)
                    z_tail = fma(logits_here[k], over_t, -z) + times(logits_here[k], over_t_tail)
                up = z > zero
                low, low_tail = z, z_tail
                against, against_tail, along, along_tail = q1, q1_tail, q0, q0_tail
                if up:
                    low, low_tail = -z, -z_tail
                    against, against_tail, along, along_tail = q0, q0_tail, q1, q1_tail
                if tempered:
                    e = exponential_of_pair(low, low_tail, shift_0, floor)
                else:
                    e = exponential(low, zero, shift_0, floor)
                p, p_tail = fast_two_sum(one, e)
                p, p_tail = divide(one, zero, p, p_tail)
                mass, mass_tail = against + along, zero  # 1, or NaN of no label
                if not exact:
                    mass, mass_tail = add(against, against_tail, along, along_tail)

                loss_h, loss_t = zero, zero
                if wants_loss and counted:
                    loss_h, loss_t = log1p(e, zero)
                    if not exact:
                        loss_h, loss_t = multiply(loss_h, loss_t, mass, mass_tail)
                    if against != zero:  # 0 * inf = 0
                        if low > -inf:
                            h, t = multiply(against, against_tail, -low, -low_tail)
                            loss_h, loss_t = add(loss_h, loss_t, h, t)
                        else:
                            loss_h, loss_t = loss_h - against * low, zero
                    if abs(loss_h) < inf:
                        loss_h, loss_t = multiply(loss_h, loss_t, s, s_tail)
                    else:
                        loss_h, loss_t = loss_h * s, zero
                    sum_h, sum_t = add(sum_h, sum_t, loss_h, loss_t)
                if wants_loss and not pairs and i < n:
                    write_loss(loss, i, finish(loss_h, loss_t))

                slopes[j] = zero
                if wants_grad and counted:
                    by, by_tail = multiply(s, s_tail, of_grad, of_grad_tail)
                    by, by_tail = multiply(by, by_tail, p, p_tail)
                    if exact:
                        h = against - along * e
                        h = fma(h, by, times(h, by_tail))
                    else:
                        h = times(along, e)
                        t = against_tail - (fma(along, e, -h) + times(along_tail, e))
                        h, r = two_sum(against, -h)
                        h, t = multiply(h, r + t, by, by_tail)
                        h = finish(h, t)
                    slopes[j] = h if up else -h
                curves[j] = zero
                if wants_hess and counted:
                    h, t = multiply(p, p_tail, p, p_tail)
                    h, t = multiply(h, t, e, zero)
                    h, t = multiply(h, t, mass, mass_tail)
                    by, by_tail = multiply(s, s_tail, of_hess, of_hess_tail)
                    h, t = multiply(h, t, by, by_tail)
                    if tempered:
                        if abs(h * over_t) < inf:
                            h, t = multiply(h, t, over_t, over_t_tail)
                        else:
                            h, t = h * over_t, zero
                    h = finish(h, t)
                    if floored and h < hess_min:
                        h = hess_min
                    curves[j] = h
            if width > 1 and first + width <= n:
                if wants_grad:
                    put_grad(grad, first, slopes, 0)
                if wants_hess:
                    put_hess(hess, first, curves, 0)
            else:
                for j in range(width):
                    i = first + j
                    if i < n:
                        a, b = np.int64(0), np.int64(0)
                        if not flat:
                            a = i // inner
                            b = i - a * inner
                        if wants_grad:
                            write_grad(grad, place(i, a, b, g_a, g_b), slopes[j])
                        if wants_hess:
                            write_hess(hess, place(i, a, b, h_a, h_b), curves[j])
        if pairs:
            sum_h, sum_t = gather(sum_h, sum_t)
            if thread == 0:
                write_loss(loss, 2 * block, sum_h)
                write_loss(loss, 2 * block + 1, sum_t)

    return binary
