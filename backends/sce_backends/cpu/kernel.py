"""A chunk of rows: what each row's target is, what is asked of it, and where that goes.

Parameters arrive as one record of numbers and addresses. What changes the machine code is a switch instead:
True, or None and compiled away. A kernel allocates nothing: an exception could not leave it, so all its
memory is made, and may fail, before anything is written.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from . import elements, rows
from .cache import jit
from .memory import clear, gather, row_at, scatter, slot, view, view_of_records
from .parameters import PARAMETERS
from .vector_math import add, finish

SLOTS = 4  # buffer of sums, z, lo, spare
WIDE_SLOTS = 5  # q, y, slope, curve, v

Values = namedtuple("Values", "loss z_loss log_prob best truth counted")
Values.__doc__ = "What a row says beside its matrices; best and truth are the two argmaxes."


@jit()
def target_of(i: Any, p: Any) -> Any:
    """(y, bump, s, counted) of row i: its class or -1, the mass it adds there, its scale, does it count.

    A label out of range, which only `validate=False` lets through, makes the scale NaN.
    """
    u = view(1.0, p.sample_weight, p.rows)[i] if p.sample_weight else 1.0
    y, bump, known = np.int64(-1), 0.0, True
    if p.labels:
        y = view(np.int64(0), p.labels, p.rows)[i]
        if p.ignores and y == p.ignored:
            u = 0.0
        if y < 0 or y >= p.classes:
            y, known = np.int64(-1), False
        else:
            bump = 1.0 - p.label_smoothing
            if p.class_weight:
                bump *= view(1.0, p.class_weight, p.classes)[y]
    counted = u != 0.0
    s = p.unit  # 1 / denominator: a division for each row would be felt where rows are short
    if u != 1.0:
        s = u / p.denominator if counted and p.denominator != 0.0 else 0.0
    return y, bump, s if known or s == 0.0 else np.nan, counted


@jit()
def write_values(i: Any, p: Any, one: Any, values: Any) -> None:
    """One value per row, where it is wanted."""
    if p.loss:
        view(one, p.loss, p.rows)[i] = values.loss
    if p.z_loss_rows:
        view(one, p.z_loss_rows, p.rows)[i] = values.z_loss
    if p.log_prob:
        view(one, p.log_prob, p.rows)[i] = values.log_prob if values.counted else 0.0
    if p.argmax:
        view(np.int64(0), p.argmax, p.rows)[i] = values.best
    if p.correct:
        view(np.uint8(0), p.correct, p.rows)[i] = values.counted and values.best == values.truth


@jit()
def write_matrices(
    a: Any, b: Any, p: Any, z: Any, lo: Any, q: Any, slope: Any, curve: Any, v: Any, spare: Any, buffer: Any,
    st: Any, s: Any, z_slope: Any, grad: Any, hess: Any, log_p: Any, hvp: Any, log_jvp: Any,
) -> None:  # fmt: skip
    """Row (a, b) of each matrix that is wanted. Gradient or product may lie over z: they are written last."""
    of = z.dtype.type
    by_t = p.temperature if slope is None else 1.0  # under a soft cap the slope has it
    if hess is not None and s != 0.0:
        lam2 = 2.0 * p.z_loss
        scale = p.hess_scale * s / by_t
        rows.write_hess(z, lo, q, slope, curve, st, scale, p.temperature, z_slope, lam2, p.hess_min, spare)
        scatter(spare, p.hess_diag, a, b, np.int64(0))
    if log_p is not None:
        elements.emit_log_softmax(z, lo, st.top, st.top_lo, of(st.log_total), spare)
        scatter(spare, p.log_softmax, a, b, np.int64(0))
    if v is not None:
        centre = rows.centre(z, lo, v, slope, st, buffer)
        if log_jvp is not None:
            rows.write_centred(v, slope, centre, 1.0 / by_t, spare)
            scatter(spare, p.log_softmax_jvp, a, b, np.int64(0))
        if hvp is not None and s != 0.0:
            scale, lam2 = p.hess_scale * s / by_t, 2.0 * p.z_loss
            rows.write_hvp(z, lo, q, v, slope, curve, st, centre, scale, p.temperature, z_slope, lam2, spare)
    if grad is not None and s != 0.0:
        scale = p.grad_scale * s / by_t
        if p.direct and not p.in_place:
            rows.write_grad(z, lo, q, slope, st, scale, z_slope, view(z[0], row_at(p.grad, a, b), z.size))
        else:
            rows.write_grad(z, lo, q, slope, st, scale, z_slope, None)
            if not p.direct:
                scatter(z, p.grad, a, b, np.int64(0))
    if hvp is not None and s != 0.0:
        scatter(spare, p.hvp, a, b, np.int64(0))


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, one: Any, smooth: Any, affine: Any, capped: Any,
    soft: Any, entropy: Any, grad: Any, hess: Any, log_p: Any, along: Any, hvp: Any,
    log_jvp: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, of N rows of n classes. Moves a row's n logits in and its n gradients out.

    `one` has the compute dtype; the switches after it are True or None.
    """
    p = view_of_records(PARAMETERS, parameters)[0]
    partial = view(1.0, p.partial, 2 * last)
    n = p.classes
    bias, bias_lo = view(one, p.bias, n if p.bias else 0), view(one, p.bias_lo, n if p.bias else 0)
    class_weight = view(1.0, p.class_weight, n if p.class_weight else 0)
    scratch, wide = worker * SLOTS, worker * WIDE_SLOTS
    buffer = slot(one, p.scratch, scratch, p.length, rows.BLOCK)
    spare = slot(one, p.scratch, scratch + 3, p.length, n)
    y_row = slot(1.0, p.wide, wide + 1, p.length, n)
    lo, q, slope, curve, v = None, None, None, None, None
    if affine is not None:
        lo = slot(one, p.scratch, scratch + 2, p.length, n)
    if capped is not None:
        slope = slot(1.0, p.wide, wide + 2, p.length, n)
        curve = slot(1.0, p.wide, wide + 3, p.length, n)
    if soft is not None:
        q = slot(1.0, p.wide, wide, p.length, n)
    elif smooth is not None:
        q = view(1.0, p.shared_mass, n)
    if along is not None:
        v = slot(1.0, p.wide, wide + 4, p.length, n)
    wants_rows = p.lse or p.entropy or p.argmax  # what a row that is left out has to say, too

    for chunk in range(first, last):
        total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
        for i in range(chunk * p.chunk, min(p.rows, (chunk + 1) * p.chunk)):
            a, b = i // p.inner, i % p.inner
            y, bump, s, counted = target_of(i, p)
            loss, z_loss, log_prob, best, truth = 0.0, 0.0, 0.0, np.int64(0), y
            if s != 0.0 or counted or wants_rows or log_p is not None or log_jvp is not None:
                z = view(one, row_at(p.logits, a, b), n)
                if not p.direct:
                    z = slot(one, p.scratch, scratch + 1, p.length, n)
                    gather(p.logits, a, b, np.int64(0), z)
                if p.argmax or p.correct:
                    best = rows.find_top(z, None)  # without a bias z grows with x, and rounding ties none
                if capped is not None:
                    elements.soft_cap(z, lo, slope, curve, p.temperature, p.softcap, bias)
                elif affine is not None:
                    elements.affine(z, lo, p.temperature, bias, bias_lo)
                if bias.size and (p.argmax or p.correct):
                    best = rows.find_top(z, lo)
                if soft is not None:
                    gather(p.distribution, a, b, np.int64(0), q)
                    rows.spread_mass(q, class_weight, p.label_smoothing)
                st = rows.statistics(z, lo, q, y, bump, p.spare, entropy, buffer)

                z_slope = 2.0 * p.z_loss * st.lse if p.z_loss != 0.0 else 0.0
                of_z = p.z_loss * st.lse * st.lse if p.z_loss != 0.0 else 0.0
                if s != 0.0:
                    loss, z_loss = s * (st.core + of_z), s * of_z
                log_prob = np.nan if p.labels and y < 0 else st.gap_y - st.log_total
                if soft is not None and (p.log_prob or p.correct):
                    gather(p.distribution, a, b, np.int64(0), y_row)
                    log_prob = rows.soft_log_prob(z, lo, y_row, st)
                    truth = rows.find_top(y_row, None)
                if p.lse:
                    view(one, p.lse, p.rows)[i] = st.lse
                if entropy is not None:
                    view(one, p.entropy, p.rows)[i] = st.entropy
                if along is not None:
                    gather(p.direction, a, b, np.int64(0), v)
                write_matrices(
                    a, b, p, z, lo, q, slope, curve, v, spare, buffer, st, s, z_slope, grad, hess, log_p, hvp,
                    log_jvp,
                )  # fmt: skip
            if s == 0.0 and hess is not None:  # exact zeros, whatever the row holds
                clear(p.hess_diag, a, b, n)
            if s == 0.0 and grad is not None:
                clear(p.grad, a, b, n)
            if s == 0.0 and hvp is not None:
                clear(p.hvp, a, b, n)
            write_values(i, p, one, Values(loss, z_loss, log_prob, best, truth, counted))
            total, error = add(total, error, loss)
            z_total, z_error = add(z_total, z_error, z_loss)
        partial[2 * chunk] = finish(total, error)
        partial[2 * chunk + 1] = finish(z_total, z_error)
