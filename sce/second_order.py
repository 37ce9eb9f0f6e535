"""Second derivatives of the loss: the Hessian's diagonal, and its product with a vector."""

from __future__ import annotations

from typing import Any, Literal

from .backend import Array
from .functions import solve
from .problem import prepare
from .select import obtain


def loss_grad_hess(
    logits: Any,
    target: Any,
    *,
    hess_scale: float = 1.0,
    hess_min: float | None = None,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    grad_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> tuple[Any, Any, Any]:
    """The loss, its gradient and the diagonal of its Hessian with respect to the logits, in one pass.

    With z, lse, q and loss of `loss_and_grad`, Q = sum_k q_k, p = softmax(z) and s = sample_weight / D::

        hess = hess_scale * d2 loss / d x_k^2
             = hess_scale * s * ((Q + 2 z_loss lse) p_k (1 - p_k) + 2 z_loss p_k^2) * (dz_k/dx_k)^2
               + hess_scale * (d loss / d z_k) * d2z_k/dx_k^2             (0 without a soft cap)
        hess = max(hess, hess_min)                                        where a hess_min is given

    1 - p_k is the sum of the others, so that the diagonal keeps its relative accuracy in confident rows.

    Parameters
    ----------
    hess_scale:
        Finite real; multiplies the Hessian's diagonal alone.
    hess_min:
        Finite real, or None for no floor. It comes after all weights and `hess_scale`, and only in rows that
        count: in a row left out, and under an empty mean, the diagonal is exactly 0. NaN stays NaN. What is
        below the smallest number of the logits' dtype (6e-8 of float16's) is 0 there.
    out:
        Where the gradient goes, as in `loss_and_grad`.

    The other options, shapes and errors are those of `loss_and_grad`.

    Returns
    -------
    (loss, grad, hess)
        hess has the logits' shape and dtype.

    Boosting libraries take the sum over rows, ``reduction="sum"``. XGBoost's softmax objective has
    ``hess_scale=2.0, hess_min=1e-16``, LightGBM's ``hess_scale=C / (C - 1)``; the true derivative has 1.

    Examples
    --------
    >>> import numpy as np, sce
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 60.0]])
    >>> loss, grad, hess = sce.loss_grad_hess(logits, [0, 2], reduction="sum", hess_min=1e-16)
    >>> hess[0].round(4)
    array([0.2227, 0.1848, 0.0819])
    >>> hess[1]  # the true values are 8.8e-27 and twice that
    array([1.e-16, 1.e-16, 1.e-16])

    References
    ----------
    docs/math.md derives the formula; J. Friedman, T. Hastie, R. Tibshirani (2000), "Additive logistic
    regression", for the diagonal in boosting.
    """
    request = prepare(
        logits,
        target,
        outputs=("loss", "grad", "hess_diag"),
        axis=axis,
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        grad_scale=grad_scale,
        hess_scale=hess_scale,
        hess_min=hess_min,
        out=out,
        validate=validate,
        recognise=True,
    )
    values = solve(request, obtain(request.problem, backend))
    return values["loss"], values["grad"], values["hess_diag"]


def hvp(
    logits: Any,
    target: Any,
    v: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> Any:
    """The Hessian of the reduced loss with respect to the logits, times v: what a Newton step solves with.

    With z, lse, q of `loss_and_grad`, Q = sum_k q_k, p = softmax(z), s = sample_weight / D and
    w_k = v_k dz_k/dx_k::

        Hv_k = s * ((Q + 2 z_loss lse) p_k (w_k - p.w) + 2 z_loss p_k (p.w)) * dz_k/dx_k
               + (d loss / d z_k) * d2z_k/dx_k^2 * v_k                     (0 without a soft cap)

    The Hessian is never formed. It is block diagonal, a block per row, so a row's product depends on that
    row of v alone. w_k - p.w is the sum over the others of p_j (w_k - w_j), and keeps its relative accuracy
    in confident rows. The Hessian is singular: of v = 1 the product is 0 without z-loss and soft cap.

    Parameters
    ----------
    v:
        Floating, shaped like the logits; its dtype may be another one. Nothing broadcasts. NaN or an
        infinity makes its row NaN; in a row that is left out nothing of it matters.
    out:
        Where the product goes: an array of the logits' shape and dtype (or float32 for half-precision
        logits). It may be `v` or the logits themselves.

    The other options, shapes and errors are those of `loss_and_grad`.

    Returns
    -------
    The logits' shape and dtype. Rows that are left out, and all under an empty mean, are exactly 0; so is a
    class without probability (masked by -inf).

    Examples
    --------
    >>> import numpy as np, sce
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> sce.hvp(logits, [0, 2], np.array([[1.0, 0.0, 0.0], [3.0, 0.0, 0.0]]), reduction="sum").round(4)
    array([[ 0.2227, -0.1628, -0.0599],
           [ 0.6667, -0.3333, -0.3333]])

    References
    ----------
    B. A. Pearlmutter (1994), "Fast exact multiplication by the Hessian"; docs/math.md derives the formula.
    """
    request = prepare(
        logits,
        target,
        outputs=("hvp",),
        axis=axis,
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        v=v,
        out=out,
        validate=validate,
        recognise=True,
    )
    return solve(request, obtain(request.problem, backend))["hvp"]
