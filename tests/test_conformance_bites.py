"""The conformance suite rejects wrong backends, each one a mistake that someone made or could make.

A wrong backend is the reference with one mistake. `mistake("group", ...)` names the groups of cases of which
at least one must catch it; the reference itself passes all of them by the same path.
"""

from __future__ import annotations

import ctypes
import itertools
import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from sce import conformance, registry
from sce.conformance import check

MISTAKES = {}
reference = registry.load("reference")


def mistake(*groups):
    def register(run):
        MISTAKES[run.__name__] = (run, groups)
        return run

    return register


def backend(run):
    return SimpleNamespace(
        __name__=run.__name__,
        on_device=False,
        debug=False,
        takes_binary=True,
        takes_jacobians=True,
        refuses=lambda _: None,
        missing=lambda: None,
        run=run,
    )


@cache
def every_case():
    return conformance.cases()


def caught(run, groups):
    """The first failure in these groups, or None."""
    for case in every_case():
        if case.group in groups and (failures := check(backend(run), [case]).failures):
            return failures[0]
    return None


# What the mistakes are made with: float64 rows of the problem, and answers by row.


def rows_of(problem, dtype=np.float64):
    x = problem.logits.reshape(problem.rows, problem.classes).astype(np.float64)
    if problem.softcap is not None:
        cap = problem.temperature * problem.softcap
        x = np.where(np.isinf(x), x, problem.softcap * np.tanh(x / cap))
    else:
        x = x / problem.temperature
    return (x if problem.logit_bias is None else x + problem.logit_bias).astype(dtype)


def softmax_of(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def counted(problem):
    rows = np.ones(problem.rows, bool)
    if problem.ignore_index is not None:
        rows &= problem.labels != problem.ignore_index
    return rows if problem.sample_weight is None else rows & (problem.sample_weight != 0)


USUAL = {
    "class_weight": None,
    "sample_weight": None,
    "ignore_index": None,
    "label_smoothing": 0.0,
    "temperature": 1.0,
    "softcap": None,
    "logit_bias": None,
    "z_loss": 0.0,
    "denominator": 1.0,
    "grad_scale": 1.0,
    "hess_scale": 1.0,
    "hess_min": None,
}


def plain(problem):
    """An index target, no options that change the formula: where textbook code applies."""
    usual = all(value is None or getattr(problem, name) == value for name, value in USUAL.items())
    usual &= all(getattr(problem, name) is None for name, value in USUAL.items() if value is None)
    return usual and problem.target == "index" and problem.validated


def by_rows(matrix, problem):
    """A writable view (or copy) as rows; write it back with `put`."""
    return matrix.reshape(problem.rows, problem.classes)


def put(matrix, rows):
    if matrix is not None:
        with np.errstate(all="ignore"):
            matrix[...] = rows.reshape(matrix.shape)


def put_loss(answer, problem, loss):
    if answer.loss is not None:
        answer.loss[...] = loss.astype(np.float64).sum() if problem.reduce else loss


def instead(**changes):
    """The reference, on a problem with other options."""

    def run(problem, answer):
        new = {name: change(problem) if callable(change) else change for name, change in changes.items()}
        reference.run(problem._replace(**new), answer)

    return run


def options_ignored():
    for name, value in USUAL.items():
        run = instead(**{name: value})
        run.__name__ = f"ignores_{name}"
        mistake("options")(run)


options_ignored()


def after(change):
    """The reference, then a change of its answer."""

    def run(problem, answer):
        reference.run(problem, answer)
        with np.errstate(all="ignore"):
            change(problem, answer)

    run.__name__ = change.__name__
    return run


# Arithmetic.


@mistake("magnitudes")
@after
def no_max_shift(problem, answer):
    if plain(problem):
        z = rows_of(problem, np.float32)
        loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), problem.labels]
        put_loss(answer, problem, loss)


@mistake("magnitudes")
@after
def max_of_the_whole_batch(problem, answer):
    if plain(problem) and answer.grad is not None:
        z = rows_of(problem)
        e = np.exp(z - z.max())
        y = np.eye(problem.classes)[problem.labels]
        put(answer.grad, e / e.sum(axis=1, keepdims=True) - y)


@mistake("magnitudes")
@after
def max_starts_at_zero(problem, answer):
    if plain(problem):
        z = rows_of(problem)
        top = np.maximum(z.max(axis=1), 1e-38)
        put_loss(
            answer,
            problem,
            np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), problem.labels],
        )


@mistake("shapes")
@after
def halved_gradient(problem, answer):
    if answer.grad is not None:
        answer.grad[...] = answer.grad / 2


@mistake("shapes")
@after
def negated_gradient(problem, answer):
    if answer.grad is not None:
        answer.grad[...] = -answer.grad


@mistake("shapes")
def label_off_by_one(problem, answer):
    y = problem.labels
    reference.run(problem if y is None else problem._replace(labels=(y + 1) % problem.classes), answer)


@mistake("confident")
@after
def loss_as_lse_minus_logit_in_float32(problem, answer):
    if plain(problem) and problem.dtype != "float64":
        z = rows_of(problem, np.float32)
        top = z.max(axis=1)
        lse = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        put_loss(answer, problem, lse - z[np.arange(len(z)), problem.labels])


@mistake("magnitudes")
@after
def loss_loses_the_common_offset(problem, answer):
    if plain(problem) and problem.dtype == "float32":
        z = rows_of(problem, np.float32)
        top = z.max(axis=1)
        lse = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
        if abs(top).max(initial=0) > 1e6:
            put_loss(answer, problem, lse - z[np.arange(len(z)), problem.labels])


@mistake("confident")
@after
def loss_as_minus_log_p(problem, answer):
    if plain(problem):
        p = softmax_of(rows_of(problem))
        put_loss(answer, problem, -np.log(p[np.arange(len(p)), problem.labels]))


@mistake("confident")
@after
def gradient_as_p_minus_one_in_float32(problem, answer):
    if plain(problem) and answer.grad is not None:
        put(
            answer.grad,
            softmax_of(rows_of(problem)).astype(np.float32)
            - np.eye(problem.classes, dtype="f4")[problem.labels],
        )


@mistake("confident")
@after
def gradient_as_p_minus_one_in_float64_for_float64(problem, answer):
    if plain(problem) and answer.grad is not None and problem.dtype == "float64":
        put(answer.grad, softmax_of(rows_of(problem)) - np.eye(problem.classes)[problem.labels])


@mistake("confident")
@after
def hessian_by_subtraction(problem, answer):
    if plain(problem) and answer.hess_diag is not None:
        p = softmax_of(rows_of(problem)).astype(answer.hess_diag.dtype)
        put(answer.hess_diag, p * (1 - p))


@mistake("softmax")
@after
def log_softmax_as_log_of_softmax(problem, answer):
    if answer.log_softmax is not None:
        put(answer.log_softmax, np.log(softmax_of(rows_of(problem))))


@mistake("confident")
@after
def small_probabilities_flushed(problem, answer):
    if answer.grad is not None:
        answer.grad[...] = np.where(np.abs(answer.grad) < 1e-12, 0, answer.grad)


@mistake("shapes")
@after
def gradient_one_and_a_half_times_its_bound_off(problem, answer):
    if answer.grad is not None and problem.dtype == "float32" and problem.classes > 2:
        answer.grad[...] = answer.grad + 4.5 * np.spacing(answer.grad)


@mistake("shapes")
@after
def loss_off_by_three_ulp(problem, answer):
    if answer.loss is not None and problem.dtype == "float32" and not problem.reduce:
        answer.loss[...] = answer.loss + 3 * np.spacing(answer.loss)


@mistake("shapes")
def float32_inside_float64(problem, answer):
    x = problem.logits
    reference.run(problem._replace(logits=x.astype(np.float32) if x.dtype == np.float64 else x), answer)


@mistake("shapes")
@after
def float32_sums_for_float64(problem, answer):
    if answer.loss is not None and problem.dtype == "float64":
        answer.loss[...] = answer.loss.astype(np.float32)


@mistake("magnitudes")
@after
def sums_in_the_logits_dtype(problem, answer):
    if answer.loss is not None and problem.reduce:
        answer.loss[...] = answer.loss.astype(problem.logits.dtype)


@mistake("shapes")
@after
def gradient_through_float16(problem, answer):
    if answer.grad is not None and problem.dtype == "float32":
        answer.grad[...] = answer.grad.astype(np.float16)


@mistake("layouts")
@after
def float32_out_rounded_to_half(problem, answer):
    if answer.grad is not None and problem.logits.dtype.itemsize == 2:
        answer.grad[...] = answer.grad.astype(problem.logits.dtype)


@mistake("shapes")
def half_gradient_truncated(problem, answer):
    if answer.grad is None or problem.dtype != "float16" or answer.grad.dtype != np.float16:
        return reference.run(problem, answer)
    wide = np.empty(answer.grad.shape)
    reference.run(problem, answer._replace(grad=wide))
    near = wide.astype(np.float16)
    answer.grad[...] = np.where(np.abs(near) > np.abs(wide), np.nextafter(near, np.float16(0)), near)


@mistake("shapes")
@after
def entropy_in_bits(problem, answer):
    if answer.entropy is not None:
        answer.entropy[...] = answer.entropy / np.log(2)


# Formulas.


@mistake("options")
def smoothing_over_the_other_classes(problem, answer):
    eps, c = problem.label_smoothing, problem.classes
    reference.run(problem._replace(label_smoothing=eps * c / max(c - 1, 1)), answer)


@mistake("pairs")
def smoothing_without_class_weights(problem, answer):
    if problem.class_weight is not None and problem.target == "index" and problem.label_smoothing:
        u = problem.class_weight.take(problem.labels, mode="clip")
        u = u if problem.sample_weight is None else u * problem.sample_weight
        problem = problem._replace(class_weight=None, sample_weight=u)
    reference.run(problem, answer)


@mistake("options")
@after
def gradient_without_one_over_temperature(problem, answer):
    if answer.grad is not None and problem.temperature != 1:
        answer.grad[...] = answer.grad * problem.temperature


@mistake("options")
@after
def gradient_without_the_soft_cap_chain(problem, answer):
    if answer.grad is not None and problem.softcap is not None:
        cap = problem.softcap * problem.temperature
        x = problem.logits.astype(np.float64)
        answer.grad[...] = answer.grad * np.cosh(np.minimum(np.abs(x), 1e2) / cap) ** 2


@mistake("options")
@after
def hessian_without_temperature_chain(problem, answer):
    if answer.hess_diag is not None:
        answer.hess_diag[...] = answer.hess_diag * problem.temperature


@mistake("options")
def hessian_without_soft_cap_curvature(problem, answer):
    reference.run(problem, answer)
    if answer.hess_diag is not None and problem.softcap is not None:
        with np.errstate(all="ignore"):
            x = problem.logits.astype(np.float64)
            v = x / (problem.temperature * problem.softcap)
            slope = np.cosh(v) ** -2 / problem.temperature
            h = np.empty(x.shape)
            z = rows_of(problem).reshape(x.shape)
            plain_z = problem._replace(
                logits=z, softcap=None, temperature=1.0, logit_bias=None, dtype="float64"
            )
            reference.run(plain_z, type(answer)(hess_diag=h))
            answer.hess_diag[...] = h * slope**2


@mistake("options")
@after
def product_without_temperature_chain(problem, answer):
    if answer.hvp is not None and problem.temperature != 1:
        answer.hvp[...] = answer.hvp * problem.temperature


def products(problem):
    """(p, w - p.w, p.w) of a problem along v, in float64 and as textbooks have it."""
    p = softmax_of(rows_of(problem))
    w = problem.direction.reshape(p.shape).astype(np.float64)
    mean = (p * w).sum(axis=1, keepdims=True)
    return p, w - mean, mean


@mistake("confident")
@after
def product_where_one_minus_p_cancels(problem, answer):
    if answer.hvp is not None and plain(problem):
        p, centred, _ = products(problem)
        put(answer.hvp, p * centred)


@mistake("closed forms")
@after
def product_relative_to_the_maximum(problem, answer):
    """(v_k - v_t) + sum_j p_j (v_t - v_j) loses digits where v_t is far from the others and p_t small."""
    if answer.hvp is not None and plain(problem):
        p, _, _ = products(problem)
        v = problem.direction.reshape(p.shape).astype(np.float64)
        top = np.take_along_axis(v, p.argmax(axis=1)[:, None], 1)
        put(answer.hvp, p * ((v - top) + (p * (top - v)).sum(axis=1, keepdims=True)))


@mistake("options")
@after
def product_without_z_loss_of_the_mean(problem, answer):
    if answer.hvp is not None and problem.z_loss and problem.softcap is None and not problem.own_denominator:
        p, _, mean = products(problem)
        u = np.ones(problem.rows) if problem.sample_weight is None else problem.sample_weight
        s = np.where(counted(problem), u, 0) / (problem.denominator or np.inf) * problem.hess_scale
        less = 2 * problem.z_loss * s[:, None] * p * mean / problem.temperature**2
        put(answer.hvp, answer.hvp.reshape(p.shape) - less.astype(answer.hvp.dtype))


@mistake("options")
def product_without_soft_cap_curvature(problem, answer):
    reference.run(problem, answer)
    if answer.hvp is not None and problem.softcap is not None:
        x = problem.logits.astype(np.float64)
        slope = np.cosh(x / (problem.temperature * problem.softcap)) ** -2 / problem.temperature
        z, v = rows_of(problem).reshape(x.shape), problem.direction * slope
        flat = problem._replace(
            logits=z, direction=v, softcap=None, temperature=1.0, logit_bias=None, dtype="float64"
        )
        h = np.empty(x.shape)
        reference.run(flat, type(answer)(hvp=h))
        answer.hvp[...] = h * slope


@mistake("layouts")
@after
def product_with_v_of_the_first_row(problem, answer):
    if answer.hvp is not None:
        v = np.broadcast_to(problem.direction[:1, :1], problem.direction.shape)
        reference.run(problem._replace(direction=v), answer)


@mistake("edges")
@after
def product_of_zero_where_v_is_nan(problem, answer):
    if answer.hvp is not None:
        answer.hvp[...] = np.where(np.isnan(problem.direction), 0, answer.hvp)


@mistake("edges")
@after
def nan_of_v_in_rows_left_out(problem, answer):
    if answer.hvp is not None:
        hvp = by_rows(answer.hvp, problem).astype(np.float64)
        out = ~counted(problem)
        hvp[out] = 0 * by_rows(problem.direction, problem)[out].astype(np.float64)
        put(answer.hvp, hvp)


@mistake("edges")
@after
def floor_in_rows_left_out(problem, answer):
    if answer.hess_diag is not None and problem.hess_min is not None:
        answer.hess_diag[...] = np.maximum(answer.hess_diag, problem.hess_min)


@mistake("options")
def floor_before_the_weights(problem, answer):
    if answer.hess_diag is not None and problem.hess_min is not None and problem.sample_weight is not None:
        floor = problem.hess_min * np.abs(problem.sample_weight / (problem.denominator or 1.0))
        reference.run(problem._replace(hess_min=None), answer)
        hess = by_rows(answer.hess_diag, problem)
        put(answer.hess_diag, np.maximum(hess, floor[:, None].astype(hess.dtype)))
    else:
        reference.run(problem, answer)


@mistake("options")
@after
def gradient_times_the_scale_of_the_hessian(problem, answer):
    if answer.grad is not None and answer.hess_diag is not None:
        answer.grad[...] = answer.grad * problem.hess_scale


@mistake("softmax")
@after
def log_softmax_along_v_around_the_plain_mean(problem, answer):
    if answer.log_softmax_jvp is not None:
        v = problem.direction.astype(np.float64)
        answer.log_softmax_jvp[...] = (v - v.mean(axis=-1, keepdims=True)) / problem.temperature


@mistake("Jacobians")
@after
def jacobian_with_one_minus_p_as_a_difference(problem, answer):
    if answer.log_softmax_jacobian is not None:
        found = answer.log_softmax_jacobian
        k = np.arange(problem.classes)
        p = -np.roll(found, 1, axis=-2)[..., k, k].astype(np.float64) * problem.temperature
        if problem.classes > 1:
            found[..., k, k] = (1 - p) / problem.temperature


@mistake("Jacobians")
@after
def jacobian_of_log_softmax_turned(problem, answer):
    if answer.log_softmax_jacobian is not None:
        answer.log_softmax_jacobian[...] = answer.log_softmax_jacobian.swapaxes(-1, -2).copy()


@mistake("Jacobians")
@after
def jacobian_without_the_temperature(problem, answer):
    for found in (answer.softmax_jacobian, answer.log_softmax_jacobian):
        if found is not None:
            found[...] = found * problem.temperature


@mistake("Jacobians")
@after
def jacobian_that_ends_in_a_whole_vector(problem, answer):
    if answer.softmax_jacobian is not None and problem.classes % 8 and problem.classes > 8:
        answer.softmax_jacobian[..., -1, problem.classes // 8 * 8 + 1 :] = 0


@mistake("options")
def z_loss_without_gradient(problem, answer):
    reference.run(problem, answer._replace(grad=None))
    if answer.grad is not None:
        only = type(answer)(grad=answer.grad)
        reference.run(problem._replace(z_loss=0.0, outputs=frozenset({"grad"})), only)


@mistake("pairs")
def z_loss_with_class_weight(problem, answer):
    if problem.target == "index" and problem.class_weight is not None and problem.z_loss:
        u = np.ones(problem.rows) if problem.sample_weight is None else problem.sample_weight
        w = problem.class_weight.take(problem.labels, mode="clip")
        problem = problem._replace(class_weight=None, sample_weight=u * w)
    reference.run(problem, answer)


@mistake("soft targets")
def distribution_normalised(problem, answer):
    if problem.distribution is not None:
        y = problem.distribution.astype(np.float64)
        problem = problem._replace(distribution=y / np.abs(y.sum(axis=-1, keepdims=True) + 1e-300))
    reference.run(problem, answer)


@mistake("soft targets")
@after
def gradient_as_p_minus_q(problem, answer):
    if answer.grad is not None and problem.distribution is not None and problem.class_weight is None:
        y = problem.distribution.reshape(problem.rows, problem.classes).astype(np.float64)
        if not problem.label_smoothing:
            put(answer.grad, (softmax_of(rows_of(problem)) - y) / problem.denominator)


@mistake("options")
def signed_weights_made_positive(problem, answer):
    u = problem.sample_weight
    reference.run(problem if u is None else problem._replace(sample_weight=np.abs(u)), answer)


@mistake("pairs")
def mean_over_all_rows(problem, answer):
    reference.run(problem._replace(denominator=float(problem.rows)) if problem.reduce else problem, answer)


@mistake("options")
def mean_over_rows_for_none_too(problem, answer):
    reference.run(problem if problem.reduce else problem._replace(denominator=float(problem.rows)), answer)


@mistake("options")
def absolute_denominator(problem, answer):
    reference.run(problem._replace(denominator=abs(problem.denominator)), answer)


@mistake("options")
@after
def gradient_scale_on_the_loss(problem, answer):
    if answer.loss is not None:
        answer.loss[...] = answer.loss * problem.grad_scale


@mistake("options")
@after
def gradient_scale_on_the_hessian(problem, answer):
    if answer.hess_diag is not None:
        answer.hess_diag[...] = answer.hess_diag * problem.grad_scale


@mistake("options")
@after
def z_loss_output_is_the_whole_loss(problem, answer):
    if answer.z_loss is not None and answer.loss is not None:
        answer.z_loss[...] = answer.loss


@mistake("edges", "pairs")
def bias_of_minus_infinity_made_finite(problem, answer):
    b = problem.logit_bias
    reference.run(problem if b is None else problem._replace(logit_bias=np.maximum(b, -1e4)), answer)


# Edges.


@mistake("edges")
@after
def nan_from_ignored_rows(problem, answer):
    if answer.grad is not None:
        x = problem.logits.reshape(problem.rows, problem.classes).astype(np.float64)
        out = ~counted(problem)
        grad = by_rows(answer.grad, problem).astype(np.float64)
        grad[out] = 0 * x[out]
        put(answer.grad, grad)


@mistake("edges", "options")
def ignored_rows_left_unwritten(problem, answer):
    if answer.grad is None:
        return reference.run(problem, answer)
    before = answer.grad.copy().reshape(problem.rows, problem.classes)
    reference.run(problem, answer)
    grad = answer.grad.copy().reshape(problem.rows, problem.classes)
    grad[~counted(problem)] = before[~counted(problem)]
    put(answer.grad, grad)


@mistake("edges")
@after
def last_argmax_of_a_tie(problem, answer):
    if answer.argmax is not None:
        x = rows_of(problem)
        answer.argmax[...] = problem.classes - 1 - x[:, ::-1].argmax(axis=1)


@mistake("edges")
@after
def nan_swallowed(problem, answer):
    if answer.grad is not None:
        answer.grad[...] = np.where(np.isnan(answer.grad), 0, answer.grad)


@mistake("edges")
def nan_skipped_by_the_maximum(problem, answer):
    x = problem.logits
    reference.run(problem._replace(logits=np.where(np.isnan(x), np.array(-np.inf, x.dtype), x)), answer)


@mistake("edges")
@after
def zero_times_infinity_is_nan(problem, answer):
    if answer.loss is not None and not problem.reduce and problem.distribution is not None:
        z = rows_of(problem)
        answer.loss[(z == -np.inf).any(axis=1) & counted(problem)] = np.nan


@mistake("edges")
@after
def masked_target_costs_a_large_number(problem, answer):
    if answer.loss is not None:
        answer.loss[...] = np.where(answer.loss == np.inf, 1e30, answer.loss)


@mistake("edges")
@after
def lse_of_nothing_is_nan(problem, answer):
    if answer.lse is not None:
        answer.lse[answer.lse == -np.inf] = np.nan


@mistake("edges")
@after
def softmax_of_nothing_is_uniform(problem, answer):
    if answer.grad is not None and problem.target == "none":
        grad = by_rows(answer.grad, problem).copy()
        grad[(rows_of(problem) == -np.inf).all(axis=1)] = 1 / problem.classes
        put(answer.grad, grad)


@mistake("edges")
@after
def bad_label_is_finite(problem, answer):
    if answer.grad is not None and not problem.validated and problem.labels is not None:
        bad = (problem.labels < 0) | (problem.labels >= problem.classes)
        grad = by_rows(answer.grad, problem).copy()
        grad[bad & counted(problem)] = 0
        put(answer.grad, grad)


@mistake("edges")
def bad_label_wraps_around(problem, answer):
    y = problem.labels
    if y is not None and not problem.validated:
        ignored = problem.ignore_index is not None and y == problem.ignore_index
        problem = problem._replace(labels=np.where(ignored, y, y % problem.classes))
    reference.run(problem, answer)


@mistake("edges")
@after
def bad_label_spoils_the_batch(problem, answer):
    if answer.grad is not None and np.isnan(answer.grad).any() and not problem.validated:
        answer.grad[...] = np.nan


@mistake("edges")
@after
def empty_mean_divides_by_zero(problem, answer):
    if answer.grad is not None and not problem.denominator:
        answer.grad[...] = np.nan


@mistake("options", "edges")
@after
def correct_counts_ignored_rows(problem, answer):
    if answer.correct is not None and problem.labels is not None:
        answer.correct[...] = rows_of(problem).argmax(axis=1) == problem.labels
    if answer.correct is not None and problem.distribution is not None:
        y = problem.distribution.reshape(problem.rows, problem.classes)
        answer.correct[...] = rows_of(problem).argmax(axis=1) == y.argmax(axis=1)


@mistake("options")
@after
def log_prob_of_ignored_rows(problem, answer):
    if answer.log_prob is not None:
        answer.log_prob[~counted(problem)] = -1.0


# Memory, repetition, exceptions.


def toggling():
    """Every other call is one ulp off: within every bound, but not the same bits."""
    odd = itertools.cycle((False, True))

    @mistake("shapes")
    @after
    def not_deterministic(problem, answer):
        if answer.loss is not None and next(odd):
            answer.loss[...] = np.nextafter(answer.loss, 0)


toggling()


@mistake("shapes")
@after
def last_bit_depends_on_the_batch(problem, answer):
    if answer.grad is not None and problem.rows % 2 and answer.grad.dtype in (np.float32, np.float64):
        answer.grad[...] = np.nextafter(answer.grad, 0)


def overwrite(x):
    """The first element, by its address: a compiled kernel asks no flag for leave to write."""
    ctypes.memset(x.__array_interface__["data"][0], 1, x.itemsize)


@mistake("shapes")
@after
def writes_into_logits(problem, answer):
    if problem.rows and not np.may_share_memory(problem.logits, answer.grad):
        overwrite(problem.logits)


@mistake("shapes")
@after
def writes_into_labels(problem, answer):
    if problem.labels is not None and problem.rows:
        overwrite(problem.labels)


@mistake("options")
@after
def writes_into_weights(problem, answer):
    if problem.class_weight is not None:
        problem.class_weight[...] = 1


@mistake("layouts")
def takes_every_input_for_contiguous(problem, answer):
    x = problem.logits
    if x.strides[-1] != x.itemsize or x.strides[1] < 0:
        problem = problem._replace(logits=x[..., ::-1])
    reference.run(problem, answer)


@mistake("layouts")
def takes_every_output_for_contiguous(problem, answer):
    reference.run(problem, answer)
    if answer.grad is not None and answer.grad.strides[-1] != answer.grad.itemsize:
        answer.grad[...] = answer.grad[..., ::-1].copy()


@mistake("layouts")
@after
def writes_between_the_elements_of_out(problem, answer):
    g = answer.grad
    if g is not None and g.strides[-1] == 2 * g.itemsize and g.base is not None and g.base.dtype == np.uint8:
        g.base[...] = np.where(np.arange(g.base.size) % (2 * g.itemsize) < g.itemsize, g.base, 0)


@mistake("shapes")
def adds_into_out(problem, answer):
    before = None if answer.grad is None else answer.grad.copy()
    reference.run(problem, answer)
    if before is not None:
        with np.errstate(all="ignore"):
            answer.grad[...] = answer.grad + before


@mistake("shapes")
def adds_into_the_total(problem, answer):
    before = None if answer.loss is None else answer.loss.copy()
    reference.run(problem, answer)
    if before is not None and problem.reduce:
        answer.loss[...] = answer.loss + before


@mistake("layouts")
def reads_logits_after_writing_in_place(problem, answer):
    if answer.grad is not None:
        reference.run(problem._replace(outputs=frozenset({"grad"})), type(answer)(grad=answer.grad))
        rest = problem.outputs - {"grad"}
        reference.run(problem._replace(outputs=rest), answer._replace(grad=None))
    else:
        reference.run(problem, answer)


@mistake("shapes")
def last_row_left_unwritten(problem, answer):
    before = None if answer.grad is None else answer.grad.copy().reshape(problem.rows, -1)[-1]
    reference.run(problem, answer)
    if before is not None and problem.rows > 64:
        grad = answer.grad.copy().reshape(problem.rows, -1)
        grad[-1] = before
        put(answer.grad, grad)


@mistake("shapes")
def correct_left_unwritten(problem, answer):
    if answer.correct is not None:
        answer = answer._replace(correct=np.empty_like(answer.correct))
    reference.run(problem, answer)


@mistake("shapes")
def fails_on_long_rows(problem, answer):
    if problem.classes > 65536:
        raise MemoryError("a row does not fit.")
    reference.run(problem, answer)


@mistake("shapes")
def warns(problem, answer):
    warnings.warn("not a caller's business", stacklevel=1)
    reference.run(problem, answer)


# Options that are right for a small contiguous matrix and wrong elsewhere.


def elsewhere(where, **changes):
    """Options changed where `where(problem)` says so, and only if they are on."""

    def run(problem, answer):
        off = {"class_weight": None, "sample_weight": None, "logit_bias": None, "label_smoothing": 0.0}
        off |= {"temperature": 1.0, "ignore_index": None}
        if where(problem) and problem.target != "none":
            problem = problem._replace(**{name: off[name] for name in changes if changes[name]})
        reference.run(problem, answer)

    return run


PLACES = {
    "two row axes": lambda p: p.logits.shape[0] > 1 and p.logits.shape[1] > 1,
    "strided classes": lambda p: p.logits.strides[2] != p.logits.itemsize,
    "more than 130 classes": lambda p: p.classes > 130,
    "more than 1100 classes": lambda p: p.classes > 1100,
    "more than 1000 rows": lambda p: p.rows > 1000,
}
for place, where in PLACES.items():
    for option in (
        "class_weight", "sample_weight", "logit_bias", "label_smoothing", "temperature", "ignore_index",
    ):  # fmt: skip
        wrong = elsewhere(where, **{option: True})
        wrong.__name__ = f"no {option} for {place}"
        mistake("crossed")(wrong)


# One logit per element.


def of_binary(change):
    """A mistake with the loss, gradient and Hessian of binary problems, in float64."""

    def run(problem, answer):
        reference.run(problem, answer)
        if problem.binary and problem.validated:
            with np.errstate(all="ignore"):
                found = change(problem, problem.logits.astype(np.float64) / problem.temperature)
            for name, value in found.items():
                into = getattr(answer, name)
                if into is not None:
                    put(into, value.sum(keepdims=True) if into.size == 1 and problem.reduce else value)

    run.__name__ = change.__name__
    return mistake("binary")(run)


def binary_parts(problem):
    """(y, s) of a plain problem."""
    if problem.labels is not None:
        y = (problem.labels == 1).astype(float)
        known = problem.labels != (problem.ignore_index if problem.ignore_index is not None else -99)
    else:
        y, known = problem.distribution.astype(float), True
    u = 1.0 if problem.sample_weight is None else problem.sample_weight
    return y, np.where(known, u, 0) / (problem.denominator or np.inf)


def plain_binary(problem):
    usual = problem.label_smoothing == 0 and problem.temperature == 1 and problem.grad_scale == 1
    return usual and isinstance(problem.pos_weight, float) and problem.pos_weight == 1


@of_binary
def binary_loss_as_minus_log_p(problem, z):
    y, s = binary_parts(problem)
    p = 1 / (1 + np.exp(-z))
    return {"loss": -s * (y * np.log(p) + (1 - y) * np.log(1 - p))} if plain_binary(problem) else {}


@of_binary
def binary_loss_as_log_of_one_plus(problem, z):
    y, s = binary_parts(problem)
    loss = s * (np.maximum(z, 0) - z * y + np.log(1 + np.exp(-np.abs(z))))
    return {"loss": loss} if plain_binary(problem) and np.isfinite(loss).all() else {}


@of_binary
def binary_loss_as_a_difference(problem, z):
    """The form of the textbooks, max(x, 0) - x y + log1p(exp(-|x|)): 0 * inf, and nothing else wrong."""
    y, s = binary_parts(problem)
    return (
        {"loss": s * (np.maximum(z, 0) - z * y + np.log1p(np.exp(-np.abs(z))))}
        if plain_binary(problem)
        else {}
    )


@of_binary
def binary_gradient_as_p_minus_y(problem, z):
    y, s = binary_parts(problem)
    grad = s * (1 / (1 + np.exp(-z)) - y)
    return {"grad": grad} if plain_binary(problem) and np.isfinite(grad).all() else {}


@of_binary
def binary_hessian_by_subtraction(problem, z):
    _, s = binary_parts(problem)
    p = (1 / (1 + np.exp(-z))).astype(np.float32)
    usual = plain_binary(problem) and problem.hess_scale == 1 and problem.hess_min is None
    return {"hess_diag": s * p * (1 - p)} if usual and np.isfinite(z).all() else {}


@of_binary
def binary_left_out_times_zero(problem, z):
    y, s = binary_parts(problem)
    grad = s * (1 / (1 + np.exp(-z)) - y)
    return {"grad": np.where(s == 0, grad, 0) + 0} if plain_binary(problem) and (s == 0).all() else {}


def binary_instead(name, **changes):
    def run(problem, answer):
        new = {key: change(problem) if callable(change) else change for key, change in changes.items()}
        reference.run(problem._replace(**new) if problem.binary else problem, answer)

    run.__name__ = name
    mistake("binary")(run)


for option, off in {
    "sample_weight": None, "ignore_index": None, "label_smoothing": 0.0, "temperature": 1.0,
    "denominator": 1.0, "grad_scale": 1.0, "hess_scale": 1.0, "hess_min": None, "pos_weight": 1.0,
}.items():  # fmt: skip
    binary_instead(f"binary_ignores_{option}", **{option: off})

binary_instead(
    "one_pos_weight_for_all_labels",
    pos_weight=lambda p: float(np.ravel(p.pos_weight)[0]) if np.size(p.pos_weight) else 1.0,
)
binary_instead(
    "weights_read_as_if_contiguous",
    sample_weight=lambda p: (
        p.sample_weight
        if p.sample_weight is None or not p.sample_weight.size
        else np.resize(np.unique(p.sample_weight), p.sample_weight.shape)
    ),
)
binary_instead(
    "probabilities_clipped",
    distribution=lambda p: None if p.distribution is None else np.clip(p.distribution.astype(float), 0, 1),
)
binary_instead(
    "infinite_logits_clipped",
    logits=lambda p: np.clip(p.logits, -1e4, 1e4).astype(p.logits.dtype),
)
binary_instead(
    "any_label_but_0_is_1",
    labels=lambda p: p.labels if p.labels is None or p.validated else (p.labels != 0).astype(np.int64),
)
binary_instead(
    "labels_of_a_byte_compared_as_signed",
    labels=lambda p: (
        p.labels.view(np.int8) if p.labels is not None and p.labels.dtype == np.uint8 else p.labels
    ),
)
binary_instead(
    "memory_order_for_element_order",
    logits=lambda p: (
        np.ravel(p.logits, "K").reshape(p.logits.shape)
        if p.logits.size > 1 and 0 not in p.logits.strides[:2]
        else p.logits
    ),
)


@mistake("binary")
@after
def binary_hess_min_where_nothing_counts(problem, answer):
    if problem.binary and answer.hess_diag is not None and problem.hess_min is not None:
        answer.hess_diag[...] = np.maximum(answer.hess_diag, problem.hess_min)


@mistake("binary")
def binary_hess_min_before_the_weights(problem, answer):
    if problem.binary and answer.hess_diag is not None and problem.hess_min is not None:
        _, s = binary_parts(problem)
        reference.run(problem._replace(hess_min=None), answer)
        put(answer.hess_diag, np.maximum(answer.hess_diag, problem.hess_min * np.abs(s)))
    else:
        reference.run(problem, answer)


@mistake("binary")
@after
def binary_remainder_left_out(problem, answer):
    n = problem.rows % 16
    if problem.binary and answer.grad is not None and problem.rows > 16 and n:
        answer.grad.reshape(-1)[-1] = 0
        put(
            answer.grad,
            np.where(np.arange(problem.rows).reshape(answer.grad.shape) == problem.rows - 1, 0, answer.grad),
        )


@mistake("binary")
@after
def binary_sums_in_the_logits_dtype(problem, answer):
    if problem.binary and answer.loss is not None and problem.reduce:
        answer.loss[...] = answer.loss.astype(problem.logits.dtype)


# The tests.


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_caught(name):
    run, groups = MISTAKES[name]
    assert caught(run, groups) is not None, f"no case of {groups} rejects it"


def test_there_are_many():
    assert len(MISTAKES) >= 60


@pytest.mark.parametrize("group", sorted({g for _, groups in MISTAKES.values() for g in groups}))
def test_the_reference_passes_the_same_way(group):
    assert caught(reference.run, (group,)) is None
