"""A model's mean negative log-likelihood in the units that people compare: perplexity, and bits per token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sce.functions import cross_entropy

from .rows import to_host


def perplexity(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    validate: bool = True,
    backend: str | None = None,
) -> np.float64:
    """exp of the mean cross-entropy: how many equally likely classes would leave one as undecided.

    C for uniform predictions, 1 where every target has probability 1; NaN where no row counts. Arguments and
    errors as in `sce.loss_and_grad`. Of a data set in parts add up the losses, not perplexities:
    `perplexity_of` takes the mean of the whole.

    >>> import numpy as np, sce
    >>> round(float(sce.information.perplexity(np.zeros((3, 8)), [1, 2, -100], ignore_index=-100)), 12)
    8.0
    """
    loss = cross_entropy(
        logits,
        target,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        validate=validate,
        backend=backend,
    )
    return np.float64(perplexity_of(to_host(loss, "loss")))


def bits_per_token(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    validate: bool = True,
    backend: str | None = None,
) -> np.float64:
    """The mean cross-entropy in bits: the length of a target in a code made of the predictions.

    log2 of the `perplexity`; NaN where no row counts. Arguments and errors as in `sce.loss_and_grad`.

    >>> import numpy as np, sce
    >>> float(sce.information.bits_per_token(np.zeros((3, 8)), [1, 2, -100], ignore_index=-100))
    3.0
    """
    loss = cross_entropy(
        logits,
        target,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        validate=validate,
        backend=backend,
    )
    return np.float64(bits_of(to_host(loss, "loss")))


def perplexity_of(loss: Any) -> Any:
    """exp(loss) in float64, of a mean cross-entropy in nats, or an array of them; inf where it overflows.

    >>> import math, sce
    >>> round(float(sce.information.perplexity_of(math.log(50_000))))
    50000
    """
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(loss, np.float64))


def bits_of(nats: Any) -> Any:
    """nats / log 2 in float64: of a loss, an entropy, a divergence, or an array of them.

    Bits per byte of a text are `bits_of(sce.cross_entropy(..., reduction="sum")) / bytes`; unlike bits per
    token they compare models of different vocabularies.

    >>> import math, sce
    >>> float(sce.information.bits_of(math.log(8)))
    3.0
    """
    return np.asarray(nats, np.float64)[()] / math.log(2)
