"""All rows: the parallel loop over workers, each with its scratch and a share of fixed chunks of rows.

A chunk's size depends on the shape alone; its rows are summed in order and the chunks' sums in order, with the
rounding errors kept (Neumaier 1974). So the loss has the same bits for any number of workers.

A matrix is (witness, address, strides of A, B, C) as in memory.py; a vector is (witness, address, length).
What is None is compiled away.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba import prange

from . import elements, rows
from .cache import jit
from .memory import view

Facts = namedtuple("Facts", "rows inner classes chunk direct in_place spare ignores ignored")
Facts.__doc__ = """Shapes and switches known before the pass.

chunk: rows of a chunk; direct: every matrix's rows can be worked on where they lie; in_place: the gradient (or
log-softmax) lies where the logits do; spare: target mass at no class (1 for softmax); ignores, ignored: is
there an ignore_index, and which.
"""
Scales = namedtuple("Scales", "denominator grad temperature cap z_loss smoothing")
PerRow = namedtuple("PerRow", "loss z_loss lse log_prob entropy argmax correct")
PerRow.__doc__ = "Arrays of one value per row; an empty one is not wanted."


@jit()
def add(total: Any, error: Any, value: Any) -> Any:
    """One step of Neumaier's sum: the running total and the rounding error it has lost so far."""
    new = total + value
    if abs(total) >= abs(value):
        return new, error + ((total - new) + value)
    return new, error + ((value - new) + total)


@jit()
def finish(total: Any, error: Any) -> Any:
    """The sum. An infinite or NaN total has no error worth keeping."""
    return total + error if abs(total) < np.inf else total


@jit()
def at(matrix: Any, a: Any, b: Any) -> Any:
    """The address of a row."""
    return matrix[1] + a * matrix[2] + b * matrix[3]


@jit()
def target_of(i: Any, facts: Any, scales: Any, labels: Any, class_weight: Any, sample_weight: Any) -> Any:
    """(y, bump, s, counted) of a row: its class or -1, the mass there, its scale, and is it left out.

    A label out of range, which only `validate=False` lets through, makes the scale NaN.
    """
    u = sample_weight[i] if sample_weight.size else 1.0
    y, bump, known = np.int64(-1), 0.0, True
    if labels.size:
        y = labels[i]
        if facts.ignores and y == facts.ignored:
            u = 0.0
        if y < 0 or y >= facts.classes:
            y, known = np.int64(-1), False
        else:
            bump = 1.0 - scales.smoothing
            if class_weight.size:
                bump *= class_weight[y]
    counted = u != 0.0
    s = u / scales.denominator if counted and scales.denominator != 0.0 else 0.0
    return y, bump, s if known or s == 0.0 else np.nan, counted


@jit()
def work(
    first: Any, last: Any, one: Any, facts: Any, scales: Any, label_at: Any, class_weight_at: Any,
    sample_weight_at: Any, bias_at: Any, shared_mass: Any, affine: Any, capped: Any, entropy: Any, x: Any, soft: Any, grad: Any, hess: Any, log_p: Any, per_row: Any, partial: Any,
) -> None:  # fmt: skip
    """Chunks first .. last. `one` has the compute dtype; `shared_mass` is the q of label smoothing."""
    n = facts.classes
    labels = view(label_at[0], label_at[1], label_at[2])
    class_weight = view(class_weight_at[0], class_weight_at[1], class_weight_at[2])
    sample_weight = view(sample_weight_at[0], sample_weight_at[1], sample_weight_at[2])
    bias = view(bias_at[0], bias_at[1], bias_at[2])
    of = type(one)
    scratch = np.empty(0 if facts.direct else n, of)
    if affine is None:
        lo = None
    else:
        lo = np.empty(n, of)
    if capped is None:
        slope, curve = None, None
    else:
        slope, curve = np.empty(n, of), np.empty(n, of)
    if soft is None:
        q = shared_mass
    else:
        q = np.empty(n, of)
    if hess is not None or log_p is not None:
        wide = np.empty(n, of)
    # A row left out needs no pass where only its zeros are asked for.
    skip = log_p is None and not (per_row.lse.size or per_row.entropy.size or per_row.argmax.size)
    t_scale = scales.temperature if capped is None else 1.0  # under a soft cap the slope has it

    for chunk in range(first, last):
        total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
        for i in range(chunk * facts.chunk, min(facts.rows, (chunk + 1) * facts.chunk)):
            a, b = i // facts.inner, i % facts.inner
            y, bump, s, counted = target_of(i, facts, scales, labels, class_weight, sample_weight)
            loss, z_loss, log_prob, best, truth = 0.0, 0.0, 0.0, np.int64(0), y
            if s != 0.0 or not skip or (counted and (per_row.log_prob.size or per_row.correct.size)):
                z = view(one, at(x, a, b), n)
                if not facts.direct:
                    z = scratch
                    rows.gather(x[0], at(x, a, b), x[4], z)
                if per_row.argmax.size or per_row.correct.size:
                    best = rows.find_top(z, None)
                if capped is not None:
                    elements.soft_cap(z, lo, slope, curve, scales.temperature, scales.cap, bias)
                elif affine is not None:
                    elements.affine(z, lo, scales.temperature, bias)
                if bias.size:
                    best = rows.find_top(z, lo)
                if soft is not None:
                    rows.gather_mass(soft[0], at(soft, a, b), soft[4], class_weight, scales.smoothing, q)
                st = rows.statistics(z, lo, q, y, bump, facts.spare, entropy)
                z_slope = 0.0
                if scales.z_loss != 0.0:
                    z_loss = scales.z_loss * st.lse * st.lse
                    z_slope = 2.0 * scales.z_loss * st.lse
                loss, z_loss = s * (st.core + z_loss), s * z_loss
                log_prob = -(st.log_total - st.gap_y)
                if labels.size and y < 0:
                    log_prob = np.nan
                if soft is not None and per_row.log_prob.size:
                    log_prob = rows.soft_log_prob(soft[0], at(soft, a, b), soft[4], z, lo, st)
                if soft is not None and per_row.correct.size:
                    truth = rows.find_largest(soft[0], at(soft, a, b), soft[4], n)
                if per_row.lse.size:
                    per_row.lse[i] = st.lse
                if per_row.entropy.size:
                    per_row.entropy[i] = st.entropy
                if hess is not None and s != 0.0:
                    rows.write_hess(
                        z, lo, q, slope, curve, st, s / (t_scale * t_scale), z_slope, 2.0 * scales.z_loss, wide
                    )
                    rows.scatter(wide, hess[0], at(hess, a, b), hess[4])
                if log_p is not None:
                    elements.emit_log_softmax(z, lo, st.top, st.top_lo, of(st.log_total), wide)
                    rows.scatter(wide, log_p[0], at(log_p, a, b), log_p[4])
                if grad is not None and s != 0.0:
                    scale = scales.grad * s / t_scale
                    if facts.direct and not facts.in_place:
                        out = view(one, at(grad, a, b), n)
                        rows.write_grad(z, lo, q, slope, st, scale, z_slope, out)
                    else:
                        rows.write_grad(z, lo, q, slope, st, scale, z_slope, None)
                        if not facts.direct:
                            rows.scatter(z, grad[0], at(grad, a, b), grad[4])
            if s == 0.0:
                loss, z_loss = 0.0, 0.0
                if hess is not None:
                    rows.clear(hess[0], at(hess, a, b), hess[4], n)
                if grad is not None:
                    rows.clear(grad[0], at(grad, a, b), grad[4], n)
            if per_row.loss.size:
                per_row.loss[i] = loss
            if per_row.z_loss.size:
                per_row.z_loss[i] = z_loss
            if per_row.log_prob.size:
                per_row.log_prob[i] = log_prob if counted else 0.0
            if per_row.argmax.size:
                per_row.argmax[i] = best
            if per_row.correct.size:
                per_row.correct[i] = counted and best == truth
            total, error = add(total, error, loss)
            z_total, z_error = add(z_total, z_error, z_loss)
        partial[chunk, 0] = finish(total, error)
        partial[chunk, 1] = finish(z_total, z_error)


@jit(parallel=True)
def launch(
    workers: Any, one: Any, facts: Any, scales: Any, label_at: Any, class_weight_at: Any,
    sample_weight_at: Any, bias_at: Any, shared_mass: Any, affine: Any, capped: Any,
    entropy: Any, x: Any, soft: Any, grad: Any, hess: Any, log_p: Any, per_row: Any, partial: Any,
) -> Any:  # fmt: skip
    """Every row. Returns the sums of the losses and of their z-loss parts."""
    chunks = partial.shape[0]
    for w in prange(workers):
        work(
            chunks * w // workers, chunks * (w + 1) // workers, one, facts, scales, label_at,
            class_weight_at, sample_weight_at, bias_at, shared_mass, affine, capped, entropy, x, soft, grad, hess, log_p, per_row, partial,
        )  # fmt: skip
    total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
    for chunk in range(chunks):
        total, error = add(total, error, partial[chunk, 0])
        z_total, z_error = add(z_total, z_error, partial[chunk, 1])
    return finish(total, error), finish(z_total, z_error)
