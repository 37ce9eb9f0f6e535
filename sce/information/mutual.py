"""Mutual information of input and label, through a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sce import checks
from sce.functions import cross_entropy
from sce.problem import Request, prepare

from .rows import beside, nonnegative, to_host, weights

Vector = NDArray[np.float64]


def mutual_information(
    logits: Any,
    target: Any,
    *,
    trained_prior: Any,
    prior: Any = None,
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> np.float64:
    """An estimate of I(X; Y), in nats, from a classifier's logits of samples (x, y)::

        I = H(Y) - CE(z + log prior - log trained_prior),       H(Y) = -sum_k prior_k log prior_k

    The cross-entropy is that of the probability-corrected softmax: logits that hold log p(x | y), up to a
    term of x alone, become log p(y | x) under any prior by adding its logarithm; those that were trained by
    the plain softmax hold that of the training data already, which has to go first. On fresh samples the
    estimate is, on average, a lower bound of the true value, as tight as the classifier is good; on those
    that the classifier was fitted to it is too large.

    Parameters
    ----------
    logits, target, axis, sample_weight, ignore_index, temperature, softcap, validate, backend:
        As in `sce.loss_and_grad`, on the host or on a device; class indices only, weights not negative.
    trained_prior:
        (C,) prior that the logits already hold. After training with the plain softmax, as most classifiers
        are, the class frequencies in the training data: ``np.bincount(labels) / len(labels)``. None: none,
        because it was the corrected softmax that was trained, `logit_bias=log(prior)`, or all classes alike.
        It has no default: with the wrong one of these the prior counts twice, or not at all, and the
        estimate, though finite, is too small.
    prior:
        (C,) probabilities of the classes where the samples are from; None: their frequencies in the labels,
        by weight. 0 removes a class; a sample of it then makes the estimate -inf.

    Returns
    -------
    float64
        At most H(Y); negative where the classifier does worse than the prior alone. Exactly 0 for one class
        or one row (Y has no entropy); NaN where no row counts.

    Raises
    ------
    ValueError
        A prior that is negative, does not sum to 1, or has a class that `trained_prior` has not; a
        distribution as the target; otherwise as `sce.loss_and_grad`.

    Examples
    --------
    >>> import numpy as np, sce
    >>> labels = np.array([0, 1, 1, 1])
    >>> prior = np.bincount(labels) / len(labels)
    >>> sure = 100.0 * np.eye(2)[labels]  # the label is known from x: I = H(Y)
    >>> round(float(sce.information.mutual_information(sure, labels, trained_prior=prior)), 6)
    0.562335
    >>> doubt = np.tile(np.log(prior), (4, 1))  # x says nothing: the plain softmax learns the prior
    >>> float(sce.information.mutual_information(doubt, labels, trained_prior=prior).round(12))
    0.0

    References
    ----------
    Z. Qin, D. Kim, T. Gedeon (2019), "Rethinking softmax with cross-entropy: neural network classifier as
    mutual information estimator", arXiv:1911.10688.
    """
    nonnegative("sample_weight", sample_weight)
    options: dict[str, Any] = {
        "axis": axis, "sample_weight": sample_weight, "ignore_index": ignore_index,
        "temperature": temperature, "softcap": softcap, "validate": validate,
    }  # fmt: skip
    request = prepare(logits, target, outputs=("loss",), **options)
    if request.problem.target != "index":
        raise ValueError("mutual_information takes class indices (integers), not a distribution per row.")
    classes = request.problem.classes
    held = _prior("trained_prior", trained_prior, classes)
    given = _prior("prior", prior, classes)
    if given is None:
        given = _frequencies(request, target, sample_weight, ignore_index)
    if given is None:
        return np.float64(np.nan)
    bias = beside(_log_ratio(given, held), logits)
    loss = cross_entropy(logits, target, logit_bias=bias, backend=backend, **options)
    some = given[given > 0]
    return np.float64(0 - (some * np.log(some)).sum() - to_host(loss, "loss").astype(np.float64))


def _prior(name: str, value: Any, classes: int) -> Vector | None:
    """Probabilities of the classes, with a sum of exactly 1."""
    v = checks.vector(name, value, (classes,), "one probability per class", True)
    if v is None:
        return None
    nonnegative(name, v)
    if abs(v.sum() - 1) > 1e-6:
        raise ValueError(f"{name} sums to {v.sum():.9g}, not 1: divide it by its sum.")
    return np.asarray(v / v.sum())


def _frequencies(
    request: Request, target: Any, sample_weight: Any, ignore_index: int | None
) -> Vector | None:
    """Of the labels, by weight; None where no row counts."""
    problem, shape = request.problem, request.layout.rows_shape
    labels = to_host(target, "target")
    y = checks.labels(labels, problem.classes, ignore_index, problem.validated).reshape(-1)
    u = weights(labels, shape, sample_weight, ignore_index)
    counted = (u > 0) & (y >= 0) & (y < problem.classes)  # without validation the loss will be NaN
    found = np.bincount(y[counted], weights=u[counted], minlength=problem.classes)
    return np.asarray(found / found.sum()) if counted.any() else None


def _log_ratio(prior: Vector, held: Vector | None) -> Vector:
    """log prior - log trained_prior, -inf where there is none of a class."""
    held = np.ones_like(prior) if held is None else held
    if (missing := (prior > 0) & (held == 0)).any():
        k = int(np.argmax(missing))
        raise ValueError(
            f"trained_prior has nothing of class {k}, prior has {prior[k]:.6g}: it was never trained."
        )
    found = np.full_like(prior, -np.inf)
    np.log(prior, out=found, where=prior > 0)
    return found - np.log(held, out=np.zeros_like(held), where=held > 0)
