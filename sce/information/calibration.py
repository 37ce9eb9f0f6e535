"""Does a classifier that is 80 % sure hit 80 % of the time? Bins of confidence, and their mean error."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sce import checks
from sce.functions import evaluate

from .rows import nonnegative, to_host, weights

Vector = NDArray[np.float64]
_STRATEGIES = {"uniform": "bins of equal width", "quantile": "bins of equal weight"}


class Reliability(NamedTuple):
    """Bins of confidence: bin b holds the rows with edges[b] < confidence <= edges[b + 1].

    `confidence` and `accuracy` are means over the bin's rows by weight, NaN where it holds none. A
    reliability diagram is `accuracy` drawn over `confidence`: on the diagonal where they are calibrated.
    """

    edges: Vector  # (B + 1,), from 0 to 1
    weight: Vector  # (B,): sum of the rows' sample weights; without them, the number of rows
    confidence: Vector  # (B,): mean probability of the predicted class
    accuracy: Vector  # (B,): share of the rows whose label is the predicted class

    @property
    def error(self) -> np.float64:
        """The expected calibration error: mean of abs(accuracy - confidence) by weight; NaN of no rows."""
        held = self.weight > 0
        return np.float64(np.average(self._gap, weights=self.weight[held]) if held.any() else np.nan)

    @property
    def worst(self) -> np.float64:
        """The maximum calibration error: abs(accuracy - confidence) of the worst bin; NaN of no rows."""
        return np.float64(self._gap.max() if self._gap.size else np.nan)

    @property
    def _gap(self) -> Vector:
        held = self.weight > 0
        return np.abs(self.accuracy[held] - self.confidence[held])


def reliability(
    logits: Any,
    target: Any,
    *,
    bins: int = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    validate: bool = True,
    backend: str | None = None,
) -> Reliability:
    """Confidence and accuracy of the predicted class, in bins of confidence.

    A row's prediction is its argmax, its confidence the probability max_k p_k of that class::

        bin_b        = {rows i: edges_b < confidence_i <= edges_{b+1}},   W_b = sum of their weights u_i
        confidence_b = sum_{i in bin_b} u_i confidence_i / W_b
        accuracy_b   = sum_{i in bin_b} u_i [argmax_i = y_i] / W_b

    Parameters
    ----------
    logits, target, axis, sample_weight, ignore_index, temperature, softcap, logit_bias, validate, backend:
        As in `sce.loss_and_grad`, on the host or on a device; sample weights are not negative. Of a
        distribution the label is the class with the largest mass.
    bins:
        How many, at least 1.
    strategy:
        "uniform": bins of equal width, edges b / bins. "quantile": bins of equal weight, edges at quantiles
        of the confidences; rows of equal confidence share a bin, so ties may leave others empty.

    Returns
    -------
    Reliability
        The bins, float64 on the host, with the mean error over them (`error`) and the largest (`worst`).
        A NaN in a counted row makes its bin NaN, and so the errors.

    Raises
    ------
    ValueError
        Negative sample weights, no bins; otherwise as `sce.loss_and_grad`.

    Examples
    --------
    >>> import numpy as np, sce
    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    >>> seen = sce.information.reliability(logits, [0, 1, 0], bins=2)
    >>> seen.confidence.round(3), seen.accuracy.round(3)
    (array([nan, 0.8]), array([  nan, 0.667]))

    References
    ----------
    M. P. Naeini, G. F. Cooper, M. Hauskrecht (2015), "Obtaining well calibrated probabilities using Bayesian
    binning"; C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger (2017), "On calibration of modern neural networks",
    equations 2, 3 and 5, for the top label of many classes.
    """
    bins = checks.integer("bins", bins, low=1)
    checks.one_of("strategy", strategy, _STRATEGIES)
    nonnegative("sample_weight", sample_weight)
    view: dict[str, Any] = {
        "axis": axis, "temperature": temperature, "softcap": softcap, "logit_bias": logit_bias,
        "reduction": "none", "validate": validate, "backend": backend,
    }  # fmt: skip
    seen = evaluate(
        logits,
        target,
        outputs=("argmax", "correct"),
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        **view,
    )
    # The predicted class as the label: its log-probability is the confidence's, in rows left out, too.
    log_prob = evaluate(logits, seen.argmax, outputs=("log_prob",), **view).log_prob
    correct = to_host(seen.correct, "correct")
    u = weights(target, correct.shape, sample_weight, ignore_index)
    counted = u > 0
    confidence = np.exp(to_host(log_prob, "log_prob").reshape(-1)[counted].astype(np.float64))
    return _binned(confidence, correct.reshape(-1)[counted], u[counted], bins, strategy)


def expected_calibration_error(
    logits: Any,
    target: Any,
    *,
    bins: int = 15,
    strategy: Literal["uniform", "quantile"] = "uniform",
    axis: int = -1,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    validate: bool = True,
    backend: str | None = None,
) -> np.float64:
    """The mean distance between confidence and accuracy over bins of confidence, by their weight W_b::

        ECE = sum_b W_b * abs(accuracy_b - confidence_b) / sum_b W_b

    In [0, 1]; NaN where no row counts. It is biased upwards by few rows per bin. Options, errors and
    references: see `reliability`, which gives the bins themselves; this is its `error`.

    >>> import numpy as np, sce
    >>> logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    >>> round(float(sce.information.expected_calibration_error(logits, [0, 1, 0])), 4)  # (0.8 + 0.4) / 3
    0.4
    """
    return reliability(
        logits,
        target,
        bins=bins,
        strategy=strategy,
        axis=axis,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        validate=validate,
        backend=backend,
    ).error


def _binned(
    confidence: Vector, correct: NDArray[np.bool_], u: Vector, bins: int, strategy: str
) -> Reliability:
    """Sort rows into bins that are closed on the right."""
    edges = np.linspace(0, 1, bins + 1)
    if strategy == "quantile" and len(u):
        edges[1:-1] = _quantiles(confidence, u, bins)
    place = np.searchsorted(edges[1:-1], confidence, side="left")  # NaN goes last

    def total(value: Vector) -> Vector:
        return np.bincount(place, weights=value, minlength=bins).astype(np.float64)  # of no rows: integers

    weight = total(u)
    with np.errstate(invalid="ignore"):  # 0 / 0: an empty bin has no mean
        return Reliability(edges, weight, total(u * confidence) / weight, total(u * correct) / weight)


def _quantiles(confidence: Vector, u: Vector, bins: int) -> Vector:
    """The inner edges: the smallest confidence up to which there is b / bins of the weight."""
    order = np.argsort(confidence, kind="stable")
    upto = np.cumsum(u[order])
    # Multiplied, not divided: exact for counts of rows.
    first = np.searchsorted(upto * bins, np.arange(1, bins) * upto[-1], side="left")
    return np.asarray(confidence[order[first]])
