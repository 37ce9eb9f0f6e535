"""The kernel for everything: any target, any output, any strides, any dtype, in float64 throughout.

A group of threads has a row and goes over its classes three times: for the maximum, for the sums, to write.
The formulas are docs/math.md's: the maximum t and the target y stay out of the sums, differences keep their
rounding errors. Bytes: at most three reads of the row, the second and third mostly out of the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arithmetic import arithmetic
from .group import group


class General(NamedTuple):
    """What the machine code depends on. Dtypes are names; of what there is none, "float64"."""

    logits: str
    soft: str  # of the distribution
    direction: str
    labels: str
    class_weight: str
    sample_weight: str
    bias: str
    grad: str  # also of the other matrices but the Hessian's diagonal
    loss: str  # also of the other values of a row
    of_sum: str  # the dtype of a row's loss and z-loss: float64 where they are summed
    target: str
    outputs: tuple[str, ...]
    weighted: bool
    sampled: bool
    biased: bool
    capped: bool
    ignores: bool
    device_total: bool  # the denominator is read from the device
    lanes: int
    rows: int  # of a block


MATRICES = ("logits", "soft", "direction", "grad", "hess_diag", "log_softmax", "hvp", "log_softmax_jvp")
VECTORS = (
    "labels", "class_weight", "sample_weight", "bias", "total",
    "loss", "z_loss", "lse", "log_prob", "entropy", "argmax", "correct",
)  # fmt: skip
INTEGERS = ("n", "inner", "classes", "ignored")
FLOATS = ("smoothing", "temperature", "cap", "lam", "denominator", "grad_scale", "hess_scale", "hess_min")


def arguments(spec: General) -> tuple[tuple[str, str], ...]:
    """The kernel's arguments in order: name, and the dtype of what it points at, or int64 or float64."""
    of = {
        "logits": spec.logits, "soft": spec.soft, "direction": spec.direction, "grad": spec.grad,
        "hess_diag": spec.logits, "log_softmax": spec.grad, "hvp": spec.grad, "log_softmax_jvp": spec.grad,
        "labels": spec.labels, "class_weight": spec.class_weight,
        "sample_weight": spec.sample_weight, "bias": spec.bias, "total": "float64", "loss": spec.of_sum,
        "z_loss": spec.of_sum, "argmax": "int64", "correct": "uint8",
    }  # fmt: skip
    found: list[tuple[str, str]] = []
    for name in MATRICES:
        found += [(name, f"*{of[name]}"), *((f"{name}_{axis}", "int64") for axis in "abc")]
    found += [(name, f"*{of.get(name, spec.loss)}") for name in VECTORS]
    found += [(name, "int64") for name in INTEGERS] + [(name, "float64") for name in FLOATS]
    return tuple(found)


def kernel(d: Any, spec: General) -> Callable[..., None]:
    math = arithmetic(d, "float64")
    team = group(d, math, spec.lanes)
    cuda, exp, log1p, tanh, cosh, times = d.cuda, d.exp, d.log1p, d.tanh, d.cosh, d.times
    two_sum, accumulate, finish = math.two_sum, math.accumulate, math.finish
    better, best, gather = team.better, team.best, team.total
    lanes, rows_of_block = spec.lanes, spec.rows
    inf, nan = np.inf, np.nan
    read = d.reader(spec.logits, np.float64)
    read_soft, read_v = d.reader(spec.soft, np.float64), d.reader(spec.direction, np.float64)
    read_label = d.reader(spec.labels, np.int64)
    read_class, read_sample = (d.reader(x, np.float64) for x in (spec.class_weight, spec.sample_weight))
    read_bias = d.reader(spec.bias, np.float64)
    read_total = d.reader("float64", np.float64)
    write_grad, write_hess, write_log = (d.writer(x, np.float64) for x in (spec.grad, spec.logits, spec.grad))
    write_value, write_sum = d.writer(spec.loss, np.float64), d.writer(spec.of_sum, np.float64)
    write_index, write_flag = d.writer("int64", np.int64), d.writer("uint8", np.int64)
    index, soft = spec.target == "index", spec.target == "distribution"
    spare = 1.0 if spec.target == "none" else 0.0
    weighted, sampled, biased, capped = spec.weighted, spec.sampled, spec.biased, spec.capped
    ignores, device_total = spec.ignores, spec.device_total
    wants = set(spec.outputs)
    wants_loss, wants_z, wants_grad = "loss" in wants, "z_loss" in wants, "grad" in wants
    wants_hess, wants_log, wants_lse = "hess_diag" in wants, "log_softmax" in wants, "lse" in wants
    wants_prob, wants_entropy = "log_prob" in wants, "entropy" in wants
    wants_argmax, wants_correct = "argmax" in wants, "correct" in wants
    wants_hvp, wants_jvp = "hvp" in wants, "log_softmax_jvp" in wants
    along = wants_hvp or wants_jvp
    writes = wants_grad or wants_hess or wants_log or along
    wide = spec.logits == "float64"

    @d.inline
    def transform(v, bias, k, temperature, cap):
        """z of a logit: cap * tanh(x / (T * cap)) + b. Infinities pass through the soft cap."""
        z = v / temperature
        if capped and abs(z) < inf:
            z = cap * tanh(z / cap)
        if biased:
            z = z + read_bias(bias, k)
        return z

    @d.inline
    def bend(v, temperature, cap):
        """1 - tanh^2 of a logit under the soft cap."""
        c = cosh(v / temperature / cap)
        return 1.0 / (c * c)

    @d.inline
    def along_v(v, at, x, x_at, temperature, cap):
        """w = v dz/dx; without a soft cap the slope is one number, which is left to the end."""
        w = read_v(v, at)
        if capped:  # not fused: w_t - w_t is 0
            w = times(w, bend(read(x, x_at), temperature, cap) / temperature)
        return w

    @d.inline
    def gap(z, top):
        """z - top and its rounding error, 0 where that is infinite."""
        h, t = two_sum(z, -top)
        return h, t if abs(h) < inf else 0.0

    @d.inline
    def gaps(m, top_at, lane, classes, top, x, x_at, x_c, v, v_at, v_c, bias, temperature, cap):
        """This lane's part of the sum over k != t of exp(z_k - top) (m - w_k)."""
        found_h, found_t = 0.0, 0.0
        k = np.int64(lane)
        while k < classes:
            if k != top_at:
                h, t = gap(transform(read(x, x_at + k * x_c), bias, k, temperature, cap), top)
                w = along_v(v, v_at + k * v_c, x, x_at + k * x_c, temperature, cap)
                found_h, found_t = accumulate(found_h, found_t, times(exp(h) * (1.0 + t), m - w))
            k += lanes
        return found_h, found_t

    @d.inline
    def mass_of(y, k, class_weight, keep, spread):
        """q of a class whose share of the target is y."""
        q = keep * y + spread
        if weighted:
            q = q * read_class(class_weight, k)
        return q

    def general(
        x, x_a, x_b, x_c, y, y_a, y_b, y_c, v, v_a, v_b, v_c, g, g_a, g_b, g_c, hess, h_a, h_b, h_c,
        logp, l_a, l_b, l_c, hv, hv_a, hv_b, hv_c, jvp, j_a, j_b, j_c, labels, class_weight, sample_weight,
        bias, total, loss, z_loss, lse, log_prob, entropy, argmax, correct, n, inner, classes, ignored,
        smoothing, temperature, cap, lam, denominator, grad_scale, hess_scale, hess_min,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        lane = thread % lanes
        row = np.int64(cuda.blockIdx.x) * rows_of_block + thread // lanes
        active = row < n
        if not active:  # it keeps the others company, and writes nothing
            row = n - 1
        a, b = row // inner, row % inner
        x_at, y_at, v_at = a * x_a + b * x_b, a * y_a + b * y_b, a * v_a + b * v_b
        keep, spread = 1.0 - smoothing, smoothing / classes

        # The target, and the row's scale s = u / D.
        u, label, known = 1.0, np.int64(-1), True
        if sampled:
            u = read_sample(sample_weight, row)
        if index:
            label = read_label(labels, row)
            known = label >= 0 and label < classes
            if ignores and label == ignored:
                u = 0.0
            if not known:
                label = np.int64(-1)
        counted = u != 0.0
        divisor = denominator
        if device_total:
            divisor = read_total(total, 0)
        s = u / divisor if counted and divisor != 0.0 else 0.0

        # The maximum: without a bias z grows with x, and x decides what rounding ties in z.
        top_key, at, y_key, y_best = -inf, classes, -inf, classes
        k = np.int64(lane)
        while k < classes:
            key = read(x, x_at + k * x_c)
            if biased:
                key = transform(key, bias, k, temperature, cap)
            top_key, at = better(top_key, at, key, k)
            if soft and wants_correct:
                y_key, y_best = better(y_key, y_best, read_soft(y, y_at + k * y_c), k)
            k += lanes
        top_key, at = best(top_key, at)
        if soft and wants_correct:
            y_key, y_best = best(y_key, y_best)
        top = transform(read(x, x_at + at * x_c), bias, at, temperature, cap)
        apart = index and label >= 0 and label != at
        gap_y, exp_y = 0.0, 0.0
        if apart:
            z_y = transform(read(x, x_at + label * x_c), bias, label, temperature, cap)
            gap_y, error = gap(z_y, top)
            exp_y = exp(gap_y) * (1.0 + error)
            gap_y += error

        # Sums over the classes that are neither t nor y.
        rest_h, rest_t, deep_h, deep_t = 0.0, 0.0, 0.0, 0.0
        mass_h, mass_t, core_h, core_t = 0.0, 0.0, 0.0, 0.0
        prob_h, prob_t, share_h, share_t = 0.0, 0.0, 0.0, 0.0
        k = np.int64(lane)
        while k < classes:
            h, t = gap(transform(read(x, x_at + k * x_c), bias, k, temperature, cap), top)
            d_k = h + t
            if k != at and not (apart and k == label):
                e = exp(h) * (1.0 + t)
                rest_h, rest_t = accumulate(rest_h, rest_t, e)
                if wants_entropy and h > -inf:
                    deep_h, deep_t = accumulate(deep_h, deep_t, -times(e, d_k))
            share = 0.0
            if soft:
                share = read_soft(y, y_at + k * y_c)
                if wants_prob:
                    share_h, share_t = accumulate(share_h, share_t, share)
                    if share != 0.0:
                        prob_h, prob_t = accumulate(prob_h, prob_t, times(share, d_k))
            if soft or (index and (smoothing != 0.0)):
                q = mass_of(share, k, class_weight, keep, spread)
                if k != at and not (apart and k == label):
                    mass_h, mass_t = accumulate(mass_h, mass_t, q)
                    if q != 0.0:
                        core_h, core_t = accumulate(core_h, core_t, -times(q, d_k))
            k += lanes
        rest_h, rest_t = gather(rest_h, rest_t)
        rest = finish(rest_h, rest_t)
        not_a_number = top - top  # 0; NaN for a row with NaN or +inf, or of nothing but -inf
        total_e = rest + exp_y + 1.0 + not_a_number
        log_total = log1p(rest + exp_y + not_a_number)
        row_lse = top + log_total if top != -inf else top
        mass, core = 0.0, 0.0
        if soft or (index and (smoothing != 0.0)):
            mass_h, mass_t = gather(mass_h, mass_t)
            core_h, core_t = gather(core_h, core_t)
            mass, core = finish(mass_h, mass_t), finish(core_h, core_t)
        if wants_entropy:
            deep_h, deep_t = gather(deep_h, deep_t)
        if soft and wants_prob:
            prob_h, prob_t = gather(prob_h, prob_t)
            share_h, share_t = gather(share_h, share_t)

        # The target's mass at the two pivots.
        q_t, q_y = 0.0, 0.0
        if soft:
            q_t = mass_of(read_soft(y, y_at + at * y_c), at, class_weight, keep, spread)
        elif index:
            hit = 1.0 if not apart and label == at else 0.0
            q_t = mass_of(hit, at, class_weight, keep, spread)
            if apart:
                q_y = mass_of(1.0, label, class_weight, keep, spread)
                if q_y != 0.0:
                    core -= times(q_y, gap_y)
        core = core + (mass + q_t + q_y + spare) * log_total
        if spare != 0.0:
            core = row_lse
        z_slope, of_z = 0.0, 0.0
        if lam != 0.0:
            z_slope, of_z = 2.0 * lam * row_lse, lam * row_lse * row_lse

        # w_k - p.w = (w_k - m) + sum_j p_j (m - w_j), where m is w_t, so that the maximum's term is 0. In
        # float64 only where that has half of the probability, else the w nearest to the mean: a w_t far from
        # the others would cancel.
        near, shift = 0.0, 0.0
        if along:
            w_t = along_v(v, v_at + at * v_c, x, x_at + at * x_c, temperature, cap)
            near = w_t
            if wide and total_e > 2.0:
                mean_h, mean_t = gaps(
                    0.0, at, lane, classes, top, x, x_at, x_c, v, v_at, v_c, bias, temperature, cap
                )
                mean_h, mean_t = gather(mean_h, mean_t)
                mean = (w_t - finish(mean_h, mean_t)) / total_e
                closest, chosen = -inf, classes
                k = np.int64(lane)
                while k < classes:
                    w = along_v(v, v_at + k * v_c, x, x_at + k * x_c, temperature, cap)
                    closest, chosen = better(closest, chosen, -abs(w - mean), k)
                    k += lanes
                closest, chosen = best(closest, chosen)
                near = along_v(v, v_at + chosen * v_c, x, x_at + chosen * x_c, temperature, cap)
            shift_h, shift_t = gaps(
                near, at, lane, classes, top, x, x_at, x_c, v, v_at, v_c, bias, temperature, cap
            )
            shift_h, shift_t = gather(shift_h, shift_t)
            shift = (finish(shift_h, shift_t) + (near - w_t)) / total_e
            shift += shift - shift  # NaN where w is not finite

        p_t, p_y = 1.0 / total_e, exp_y / total_e
        rest_of_t, rest_of_y = (rest + exp_y) / total_e, (rest + 1.0) / total_e
        if lanes <= 32:  # a shuffle orders no memory: the gradient may go over the logits
            cuda.syncwarp()
        if writes:
            front = mass + q_t + q_y + spare
            k = np.int64(lane)
            while k < classes and active:
                logit = read(x, x_at + k * x_c)
                z = transform(logit, bias, k, temperature, cap)
                h, t = gap(z, top)
                share = 0.0
                if soft:
                    share = read_soft(y, y_at + k * y_c)
                q, others, p, one_less = 0.0, front, 0.0, 0.0
                if k == at:
                    p, one_less, q, others = p_t, rest_of_t, q_t, mass + q_y + spare
                elif apart and k == label:
                    p, one_less, q, others = p_y, rest_of_y, q_y, mass + q_t + spare
                else:
                    p = exp(h) * (1.0 + t) / total_e
                    one_less = 1.0 - p
                    if soft or index:
                        q = mass_of(share, k, class_weight, keep, spread)
                    others = front - q
                slope, bent, curve = 1.0 / temperature, 1.0, 0.0
                if capped:
                    bent = bend(logit, temperature, cap)
                    slope = bent / temperature
                    curve = -2.0 * tanh(logit / temperature / cap) * bent / (temperature * cap)
                dz = others * p - q * one_less + z_slope * p
                if not known:
                    dz = nan
                if wants_hess:
                    d2z = (front + z_slope) * p * one_less + 2.0 * lam * p * p
                    value = 0.0
                    if s != 0.0:
                        value = s * ((d2z * slope * bent + dz * curve) * hess_scale / temperature)
                        if value < hess_min:
                            value = hess_min
                    write_hess(hess, a * h_a + b * h_b + k * h_c, value)
                if wants_log:
                    write_log(logp, a * l_a + b * l_b + k * l_c, (h - log_total) + t)
                if along:
                    direct = read_v(v, v_at + k * v_c)
                    w = times(direct, slope) if capped else direct
                    centred = (w - near) + shift
                    if wants_hvp:
                        product = (front + z_slope) * p * centred + 2.0 * lam * p * (near - shift)
                        # The square of an extreme temperature is beyond float64: one 1 / T comes last.
                        product = product * bent + dz * curve * direct if capped else product * slope
                        if not known:
                            product = nan
                        value = s * (product * hess_scale / temperature) if s != 0.0 else 0.0
                        write_grad(hv, a * hv_a + b * hv_b + k * hv_c, value)
                    if wants_jvp:
                        value = centred if capped else centred * slope
                        write_grad(jvp, a * j_a + b * j_b + k * j_c, value)
                if wants_grad:
                    value = s * (grad_scale * (dz * slope)) if s != 0.0 else 0.0
                    write_grad(g, a * g_a + b * g_b + k * g_c, value)
                k += lanes
        if lane == 0 and active:
            if not known:
                core = nan
            if wants_loss:
                write_sum(loss, row, s * (core + of_z) if s != 0.0 else 0.0)
            if wants_z:
                write_sum(z_loss, row, (s * of_z if known else nan) if s != 0.0 else 0.0)
            if wants_lse:
                write_value(lse, row, row_lse)
            if wants_entropy:
                deep = finish(deep_h, deep_t) - exp_y * gap_y if exp_y != 0.0 else finish(deep_h, deep_t)
                write_value(entropy, row, log_total + deep / total_e)
            if wants_prob:
                value = gap_y - log_total
                if soft:
                    value = finish(prob_h, prob_t) - finish(share_h, share_t) * log_total
                if not known:
                    value = nan
                write_value(log_prob, row, value if counted else 0.0)
            if wants_argmax:
                write_index(argmax, row, at)
            if wants_correct:
                truth = y_best if soft else label
                write_flag(correct, row, np.int64(counted and known and at == truth))

    return general
