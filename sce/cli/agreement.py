"""How far a backend's loss and gradient are from the exact ones, held to the conformance suite's bounds.

Exact here means the reference in the next wider precision: float64 for half-precision and float32 logits,
longdouble for float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sce import registry
from sce.backend import Answer, Array, Problem
from sce.checks import loss_dtype
from sce.conformance import bounds
from sce.conformance.compare import compare
from sce.problem import Request

_TILE = 1 << 19  # elements compared at once: the bounds hold some twenty float64 arrays of this size


class Error(NamedTuple):
    """The largest error of one output."""

    ulp: float = 0.0  # of the output's dtype, at the scale that the bound states
    message: str = ""  # where it exceeds the bound, or ""


class _Tile(NamedTuple):
    """Some of the rows: `problem` restricted to logits[at]."""

    problem: Problem
    at: tuple[slice, slice]
    first: int  # number of its first row


def errors(request: Request, answers: dict[str, tuple[Any, Array]]) -> dict[str, dict[str, Error]]:
    """The errors of each backend's (loss, gradient), by name and output.

    Tile by tile, so that neither the exact gradient nor its bounds exist as a whole.
    """
    problem = request.problem
    dtypes = {"loss": loss_dtype(request.like.dtype).name, "grad": problem.dtype}
    grads = {name: request.layout.read(grad) for name, (_, grad) in answers.items()}
    worst = {name: Error() for name in answers}
    total: Any = 0.0
    unit = allowed = 0.0
    for tile in _tiles(problem):
        want = _exact(tile.problem)
        limit = bounds.bounds(tile.problem, want, dtypes)
        total = total + want["loss"][0]
        unit += float(limit["loss"].ulp[0])
        allowed += float(limit["loss"].allowed[0])
        for name, grad in grads.items():
            message, ulp = _error(grad[tile.at].reshape(want["grad"].shape), want["grad"], limit["grad"])
            if message and tile.first:
                message = f"from row {tile.first} on: {message}"
            worst[name] = Error(max(ulp, worst[name].ulp), worst[name].message or message)
    if problem.denominator:
        # The tiles' shares, and one rounding more: that of their sum to the loss's dtype.
        want_loss = np.asarray(total)
        unit = max(unit, float(bounds.ulp(want_loss, dtypes["loss"])))
        limit_loss = bounds.Bound(np.asarray(allowed + unit), np.asarray(unit))
    else:
        want_loss, limit_loss = np.asarray(request.empty), bounds.Bound(np.zeros(()), np.ones(()))
    found = {}
    for name, (loss, _) in answers.items():
        message, ulp = _error(np.asarray(loss), want_loss, limit_loss)
        found[name] = {"loss": Error(ulp, message), "grad": worst[name]}
    return found


def _error(got: Array, want: Array, limit: bounds.Bound) -> tuple[str, float]:
    """What is wrong, and the largest error in ulp: infinite where a NaN or an infinity is out of place."""
    message, ulp = compare(got, want, limit)
    misplaced = message and (np.isfinite(got) != np.isfinite(want)).any()
    return message, np.inf if misplaced else ulp


def _tiles(problem: Problem) -> Iterator[_Tile]:
    outer, inner, classes = problem.logits.shape
    step, wide = max(1, _TILE // max(1, classes * inner)), max(1, _TILE // classes)
    for a in range(0, outer, step):
        for b in range(0, inner, wide):
            at = (slice(a, a + step), slice(b, b + wide))
            logits = problem.logits[at]
            first, n = a * inner + b, logits.shape[0] * logits.shape[1]
            rows = slice(first, first + n)  # of the row vectors: either step or wide is 1, or b covers all
            part = problem._replace(
                rows=n,
                logits=logits,
                labels=None if problem.labels is None else problem.labels[rows],
                distribution=None if problem.distribution is None else problem.distribution[at],
                sample_weight=None if problem.sample_weight is None else problem.sample_weight[rows],
            )
            yield _Tile(part, at, first)


def _exact(problem: Problem) -> dict[str, Array]:
    wide = np.dtype(np.longdouble if problem.dtype == "float64" else np.float64)
    logits, soft = problem.logits.astype(wide), problem.distribution
    answer = Answer(loss=np.zeros(1, wide), grad=np.empty(logits.shape, wide))
    wider = problem._replace(logits=logits, distribution=None if soft is None else soft.astype(wide))
    registry.load("reference").run(wider, answer)
    rows = (problem.rows, problem.classes)
    assert answer.loss is not None
    assert answer.grad is not None
    return {"loss": answer.loss, "grad": answer.grad.reshape(rows)}
