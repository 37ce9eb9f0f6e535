"""How undecided predictions are: the entropy of softmax(z), from the kernels that also give the loss."""

from __future__ import annotations

from typing import Any

from sce.functions import solve
from sce.problem import prepare
from sce.select import obtain

from .rows import Reduction, reduced, reduction_of


def entropy(
    logits: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    sample_weight: Any = None,
    reduction: Reduction = "none",
    validate: bool = True,
    backend: str | None = None,
) -> Any:
    """The entropy of the predictions p = softmax(z), in nats::

        H = -sum_k p_k log p_k          in [0, log C]

    computed as log S + sum_k p_k (max z - z_k), whose terms are positive: a confident row's small entropy
    keeps its relative accuracy.

    Parameters
    ----------
    logits, axis, temperature, softcap, logit_bias, validate, backend:
        As in `sce.loss_and_grad`, on the host or on a device.
    sample_weight:
        Of the rows in a sum or mean: not negative, shaped like the rows; 0 leaves a row out.
    reduction:
        "none": one per row, as `sce.logsumexp`'s answers: on a device where the logits are. "sum" or "mean",
        by weight: a float64 on the host, NaN for the mean of no rows.

    Examples
    --------
    >>> import sce
    >>> sce.information.entropy([[0.0, 0.0], [0.0, -50.0]])
    array([6.93147181e-01, 9.83662422e-21])
    """
    reduction = reduction_of(reduction, sample_weight)
    request = prepare(
        logits,
        outputs=("entropy",),
        axis=axis,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        sample_weight=sample_weight,
        reduction="none",
        validate=validate,
    )
    values = solve(request, obtain(request.problem, backend))["entropy"]
    return reduced(values, reduction, sample_weight)
