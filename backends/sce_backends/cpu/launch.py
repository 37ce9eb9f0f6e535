"""All rows: the parallel loop over workers, each with its scratch and a share of fixed chunks of rows.

A chunk's size depends on the shape alone; its rows are summed in order and the chunks' sums in order, with
the rounding errors kept (Neumaier 1974). So the loss has the same bits for any number of workers.

A kernel is made for each combination of switches that changes its machine code; what is off is None there and
compiled away. Everything else is a parameter. Kernels are C functions behind an address, so that the parallel
loop is compiled once and not with each of them: that halves the time of a first call.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import prange

from . import elements, rows
from .cache import intrinsic, jit, native_function
from .memory import MATRIX, clear, gather, row_at, scatter, view, view_of_records
from .vector_math import add, finish

_INTEGERS = (
    "rows", "inner", "classes",  # the shape: row i is [i // inner, i % inner]
    "chunk",  # rows per chunk
    "direct",  # every matrix's rows can be worked on where they lie
    "in_place",  # the gradient lies where the logits do
    "ignores", "ignored",  # is there an ignore_index, and which
)  # fmt: skip
_FLOATS = (
    "denominator", "grad_scale", "temperature", "softcap", "z_loss", "label_smoothing",
    "spare",  # target mass at no class: 1 for softmax
)  # fmt: skip
_VECTORS = (  # addresses of contiguous arrays; 0 where there is none
    "labels", "class_weight", "sample_weight", "logit_bias",
    "loss", "z_loss_rows", "lse", "log_prob", "entropy", "argmax", "correct",
    "shared_mass",  # label smoothing's mass per class, float64
    "partial",  # (chunks, 2): the sums of loss and of its z-loss part
)  # fmt: skip
_MATRICES = ("logits", "distribution", "grad", "hess_diag", "log_softmax")

PARAMETERS = np.dtype(
    [(name, np.int64) for name in _INTEGERS]
    + [(name, np.float64) for name in _FLOATS]
    + [(name, np.int64) for name in _VECTORS]
    + [(name, MATRIX) for name in _MATRICES]
)


@jit()
def target_of(i: Any, p: Any) -> Any:
    """(y, bump, s, counted) of row i: its class or -1, the mass it adds there, its scale, is it left out.

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
    s = u / p.denominator if counted and p.denominator != 0.0 else 0.0
    return y, bump, s if known or s == 0.0 else np.nan, counted


@jit()
def work(
    first: Any, last: Any, parameters: Any, one: Any, smooth: Any, affine: Any, capped: Any, soft: Any,
    entropy: Any, grad: Any, hess: Any, log_p: Any,
) -> None:  # fmt: skip
    """Chunks first .. last. `one` has the compute dtype; the switches after it are True or None."""
    p = view_of_records(PARAMETERS, parameters)[0]
    partial = view(1.0, p.partial, 2 * last)
    n, of = p.classes, type(one)
    bias = view(1.0, p.logit_bias, n if p.logit_bias else 0)
    class_weight = view(1.0, p.class_weight, n if p.class_weight else 0)
    scratch = np.empty(0 if p.direct else n, of)
    spare = np.empty(n if hess is not None or log_p is not None else 0, of)
    if affine is None:  # noqa: SIM108  Numba drops the branch of a None; in an expression it would type both
        lo = None
    else:
        lo = np.empty(n, of)
    if capped is None:
        slope = None
        curve = None
    else:
        slope = np.empty(n, of)
        curve = np.empty(n, of)
    y_row = np.empty(n if soft is not None and (p.log_prob or p.correct) else 0, np.float64)
    if soft is not None:
        q = np.empty(n, np.float64)
    elif smooth is not None:
        q = view(1.0, p.shared_mass, n)
    else:
        q = None
    wants_rows = p.lse or p.entropy or p.argmax  # what a row that is left out has to say, too
    by_t = p.temperature if capped is None else 1.0  # under a soft cap the slope has it

    for chunk in range(first, last):
        total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
        for i in range(chunk * p.chunk, min(p.rows, (chunk + 1) * p.chunk)):
            a, b = i // p.inner, i % p.inner
            y, bump, s, counted = target_of(i, p)
            loss, z_loss, log_prob, best, truth = 0.0, 0.0, 0.0, np.int64(0), y
            if s != 0.0 or counted or wants_rows or log_p is not None:
                z = view(one, row_at(p.logits, a, b), n)
                if not p.direct:
                    z = scratch
                    gather(p.logits, a, b, z)
                if p.argmax or p.correct:
                    best = rows.find_top(z, None)  # without a bias z grows with x, and rounding ties none
                if capped is not None:
                    elements.soft_cap(z, lo, slope, curve, p.temperature, p.softcap, bias)
                elif affine is not None:
                    elements.affine(z, lo, p.temperature, bias)
                if bias.size and (p.argmax or p.correct):
                    best = rows.find_top(z, lo)
                if soft is not None:
                    gather(p.distribution, a, b, q)
                    rows.spread_mass(q, class_weight, p.label_smoothing)
                st = rows.statistics(z, lo, q, y, bump, p.spare, entropy)

                z_slope = 0.0
                if p.z_loss != 0.0:
                    z_loss = p.z_loss * st.lse * st.lse
                    z_slope = 2.0 * p.z_loss * st.lse
                loss, z_loss = s * (st.core + z_loss), s * z_loss
                log_prob = st.gap_y - st.log_total
                if p.labels and y < 0:
                    log_prob = np.nan
                if soft is not None and (p.log_prob or p.correct):
                    gather(p.distribution, a, b, y_row)
                    log_prob = rows.soft_log_prob(z, lo, y_row, st)
                    truth = rows.find_top(y_row, None)
                if p.lse:
                    view(one, p.lse, p.rows)[i] = st.lse
                if entropy is not None:
                    view(one, p.entropy, p.rows)[i] = st.entropy
                if hess is not None and s != 0.0:
                    scale = s / (by_t * by_t)
                    rows.write_hess(z, lo, q, slope, curve, st, scale, z_slope, 2.0 * p.z_loss, spare)
                    scatter(spare, p.hess_diag, a, b)
                if log_p is not None:
                    elements.emit_log_softmax(z, lo, st.top, st.top_lo, of(st.log_total), spare)
                    scatter(spare, p.log_softmax, a, b)
                if grad is not None and s != 0.0:
                    scale = p.grad_scale * s / by_t
                    if p.direct and not p.in_place:
                        out = view(one, row_at(p.grad, a, b), n)
                        rows.write_grad(z, lo, q, slope, st, scale, z_slope, out)
                    else:
                        rows.write_grad(z, lo, q, slope, st, scale, z_slope, None)
                        if not p.direct:
                            scatter(z, p.grad, a, b)
            if s == 0.0:  # exact zeros, whatever the row holds
                loss, z_loss = 0.0, 0.0
                if hess is not None:
                    clear(p.hess_diag, a, b, n)
                if grad is not None:
                    clear(p.grad, a, b, n)
            if p.loss:
                view(one, p.loss, p.rows)[i] = loss
            if p.z_loss_rows:
                view(one, p.z_loss_rows, p.rows)[i] = z_loss
            if p.log_prob:
                view(one, p.log_prob, p.rows)[i] = log_prob if counted else 0.0
            if p.argmax:
                view(np.int64(0), p.argmax, p.rows)[i] = best
            if p.correct:
                view(np.uint8(0), p.correct, p.rows)[i] = counted and best == truth
            total, error = add(total, error, loss)
            z_total, z_error = add(z_total, z_error, z_loss)
        partial[2 * chunk] = finish(total, error)
        partial[2 * chunk + 1] = finish(z_total, z_error)


@cache
def kernel(dtype: str, switches: tuple[bool | None, ...]) -> Any:
    """The C function `void (first, last, parameters)` for a dtype and `work`'s switches.

    The object is kept, not its address alone: it owns the code.
    """
    one = np.dtype(dtype).type(1)
    smooth, affine, capped, soft, entropy, grad, hess, log_p = switches

    def chunks(first, last, parameters):  # type: ignore[no-untyped-def]
        work(first, last, parameters, one, smooth, affine, capped, soft, entropy, grad, hess, log_p)

    return native_function(nb.void(nb.int64, nb.int64, nb.int64))(chunks)


@intrinsic
def _call(typingctx: Any, function: Any, first: Any, last: Any, parameters: Any) -> Any:
    """Call a kernel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        pointer = ir.FunctionType(ir.VoidType(), [word, word, word]).as_pointer()
        builder.call(builder.inttoptr(args[0], pointer), args[1:])
        return context.get_dummy_value()

    return nb.void(nb.int64, nb.int64, nb.int64, nb.int64), codegen


@jit(parallel=True, nogil=True)
def launch(function: Any, parameters: Any, chunks: Any, workers: Any) -> None:
    """Run a kernel over all chunks."""
    for w in prange(workers):
        _call(function, chunks * w // workers, chunks * (w + 1) // workers, parameters)


@jit(nogil=True)
def launch_here(function: Any, parameters: Any, chunks: Any) -> None:
    """The same on the calling thread: waking the others costs more than a small problem takes."""
    _call(function, 0, chunks, parameters)


@jit()
def sum_up(partial: Any) -> Any:
    """The sums over all chunks of the losses and of their z-loss parts."""
    total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
    for chunk in range(partial.shape[0]):
        total, error = add(total, error, partial[chunk, 0])
        z_total, z_error = add(z_total, z_error, partial[chunk, 1])
    return finish(total, error), finish(z_total, z_error)
