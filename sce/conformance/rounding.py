"""What the rounding of z = x / T + b, or of its soft-capped form, costs in float64.

An absolute error in an exponent is a relative error in the result, and it comes from both ends: z_k is
rounded, and so are the logits that it is compared with. With u = 2^-53, a = |x_k| / (T cap), and every
operation at its worst, u times own_k is what z_k may be off:

    own_k  = |x_k / T| if T != 1, + |z_k| if there is a bias: a quotient and a sum, rounded once each
             Under a cap, v_k = cap tanh(a), the first term becomes |v_k| (r a / (sinh a cosh a) + 4 + 1):
             a by tanh's condition, tanh itself to 2 ulp, a product.
    r      = 1, or 2 if T != 1: the roundings of a
    bent   = 2 r a tanh a + 2 * 4 + 2: the slope 1 / cosh(a)^2 by its condition, cosh to 2 ulp

The derivatives in z turn that into what an output may be off, again u times

    common = sum_j p_j own_j                                  lse
    off_k  = (1 - p_k) own_k + sum_{j != k} p_j own_j         log_softmax

and, with nlp, q, s, slope, curve and the scales of bounds.py,

    log_prob     sum_k |y_k| off_k
    entropy      sum_k p_k |nlp_k - entropy| own_k
    z_loss       |s| 2 lam |lse| common
    loss         |s| sum_k |q_k| off_k, and z_loss's
    dz           (sum |q| + 2 lam |lse|) p_k off_k + 2 lam p_k common
    grad         |s| slope (dz + bent g), g the scale of the gradient in z
    hess_diag    |s| slope^2 (d2z + 2 bent h) + |s curve| (dz + 2 bent g), h the scale of the Hessian in z
    log_softmax_jvp  d_k = (off_k + common) D_k + sum_j p_j own_j |w_k - w_j| + turn_k, where turn_k is off_k
                 with bent |w| in place of own: what the rounded slopes add
    Jacobians    of log-softmax slope p_j off_j; of softmax slope p_i p_j (off_i + off_j), and slope p_i off_i
                 on the diagonal
    hvp          |s| slope (sum |q| + 2 lam (|m| + log S)) p_k (d_k + (off_k + bent) D_k)
                 + |s| slope 2 lam p_k (common D_k + (off_k + bent + common) sum_j p_j |w_j|
                                        + sum_j p_j (own_j + bent) |w_j|)
                 + |s curve v_k| (dz + 2 bent g)
    d2z          (sum |q| + 2 lam (|m| + log S)) p_k off_k + 2 lam p_k (common + 2 off_k)

A temperature or a bias alone costs up to 2 Z ulp where the logits are about Z: one Z for z_k, one for the
others. A class without probability costs the others nothing, however large its logit.
"""

from __future__ import annotations

import numpy as np

from sce.backend import JACOBIANS, Array, Problem

from .magnitudes import Rows, along, dot, spread

_HALF_ULP = 2.0**-53
_LIBRARY = 4.0  # roundings that 2 ulp of tanh or cosh are worth: what the C libraries in use promise


def rounding_of_z(problem: Problem, rows: Rows, name: str) -> Array:
    """The absolute error that this output may have from it, per element."""
    plain = problem.temperature == 1 and problem.softcap is None and problem.logit_bias is None
    if problem.dtype != "float64" or plain:
        return np.zeros(())
    own, bent = _own(problem, rows)
    common, off = _off(rows, own)
    return _HALF_ULP * _shift(problem, rows, name, own, bent, common, off)


def _own(problem: Problem, rows: Rows) -> tuple[Array, Array]:
    divided = float(problem.temperature != 1)
    bias = rows.z * float(problem.logit_bias is not None)
    if problem.softcap is None:
        return rows.scaled * divided + bias, np.zeros_like(rows.z)
    a, r = rows.stretch, 1 + divided
    condition = np.where(a == 0, 1.0, 2 * a / np.sinh(2 * np.maximum(a, 1e-300)))
    bent = np.where(rows.slope == 0, 0.0, 2 * r * a * np.tanh(a) + 2 * _LIBRARY + 2)
    return rows.scaled * (r * condition + _LIBRARY + 1) + bias, bent


def _off(rows: Rows, own: Array) -> tuple[Array, Array]:
    """common and off_k. At the maximum the others are added up; elsewhere p_k <= 1/2, and nothing is lost."""
    weighted = rows.p * own
    common = weighted.sum(axis=1)
    others = np.maximum(common[:, None] - weighted, 0.0)
    i = np.arange(len(own))
    weighted[i, rows.top] = 0
    others[i, rows.top] = weighted.sum(axis=1)
    return common, rows.rest * own + others


def _shift(
    problem: Problem, rows: Rows, name: str, own: Array, bent: Array, common: Array, off: Array
) -> Array:
    s, p, lam = rows.s, rows.p, problem.z_loss
    of_lam = 2 * lam * np.abs(rows.lse) if lam else 0 * s  # an infinite lse times 0
    if name in JACOBIANS:
        turned = (rows.slope * p * off)[:, None, :]
        if name == "log_softmax_jacobian":
            return np.asarray(np.broadcast_to(turned, (len(p), *p.shape[1:] * 2)))
        shift = p[:, :, None] * (turned + rows.slope[:, None, :] * p[:, None, :] * off[:, :, None])
        i = np.arange(p.shape[1])
        shift[:, i, i] = turned[:, 0]
        return np.asarray(shift)
    if name in ("hvp", "log_softmax_jvp"):
        return _shift_along(problem, rows, name, own, bent, common, off)
    if name == "lse":
        return common
    if name == "log_softmax":
        return off
    if name == "log_prob":
        return dot(rows.target, off)
    if name == "entropy":
        entropy = rows.log_s + dot(p, rows.depth)
        return dot(p, np.abs(rows.nlp - entropy[:, None]) * own)
    if name == "z_loss":
        return s * of_lam * common
    if name == "loss":
        return s * (dot(rows.q, off) + of_lam * common)
    of_lse = 2 * lam * p * common[:, None]
    dz = (rows.mass + of_lam)[:, None] * p * off + of_lse
    if name == "grad":
        return np.asarray(np.abs(problem.grad_scale) * s[:, None] * rows.slope * (dz + bent * rows.dz))
    s = np.abs(problem.hess_scale) * s
    d2z = (rows.front[:, None] + 4 * lam) * p * off + of_lse + 2 * bent * rows.d2z
    by, curve = s[:, None] * rows.slope, s[:, None] / problem.temperature * rows.curve
    return np.asarray(by * rows.slope * d2z + curve * (dz + 2 * bent * rows.dz))


def _shift_along(
    problem: Problem, rows: Rows, name: str, own: Array, bent: Array, common: Array, off: Array
) -> Array:
    v, w, spreads, mean = along(problem, rows)
    p, size, common = rows.p, np.abs(w), common[:, None]
    centred = off * spreads + spread(p * own, w) + common * spreads + _off(rows, bent * size)[1]
    if name == "log_softmax_jvp":
        return np.asarray(centred)
    s, lam2 = np.abs(problem.hess_scale) * rows.s[:, None], 2 * problem.z_loss
    of_mean = (off + bent + common) * mean + dot(p, (own + bent) * size)[:, None]
    along_z = rows.front[:, None] * (centred + (off + bent) * spreads) + lam2 * (common * spreads + of_mean)
    of_lse = lam2 * np.abs(rows.lse) if lam2 else 0 * rows.mass  # an infinite lse times 0
    dz = (rows.mass + of_lse)[:, None] * p * off + lam2 * p * common
    bent_z = s * (rows.curve * v) / problem.temperature * (dz + 2 * bent * rows.dz)
    return np.asarray(s * rows.slope * p * along_z + bent_z)
