"""Coordinates in which an objective is easy to minimise: its Hessian is near the identity there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.linalg import cholesky, solve_triangular

from .objective import Floats, Objective, overflow

_TOGETHER = 1024  # features; with more, each is scaled alone: the factor would cost too much
_RIDGE = 1e-10  # keeps the factor of a singular curvature (collinear or constant features) finite


class Scaling(NamedTuple):
    """w = d * (L^-T v): parameters w (D + 1, C), easy coordinates v. Without L, each is scaled alone."""

    d: Floats  # (D + 1, 1)
    lower: Floats | None = None  # L
    inverse: Floats | None = None  # L^-T

    def parameters(self, v: Floats) -> Floats:
        return self.d * (v if self.inverse is None else self.inverse @ v)

    def coordinates(self, w: Floats) -> Floats:
        v = w / self.d
        return v if self.lower is None else self.lower.T @ v

    def gradient(self, grad: Floats) -> Floats:
        """By the coordinates, of one by the parameters."""
        g = self.d * grad
        return g if self.inverse is None else self.inverse.T @ g


def scaling(objective: Objective, w: Floats, expected: float = 1.0) -> Scaling:
    """The scaling for steps from w on, where the loss is `expected` to bend this much of what it does at w.

    The Hessian is the sum over rows of (diag(p) - p p^T) (x) x x^T, and the ridge. With the first factor
    replaced by its mean curvature (`Objective.spread`), one matrix M (D + 1, D + 1) serves all classes. d and
    L with diag(1/d) L L^T diag(1/d) = M make it the identity.
    """
    x, bend = objective.spread(w)
    return _scaling(objective, x, bend * expected)


def remaining(objective: Objective, w: Floats, grad: Floats) -> float:
    """An estimate of F(w) - min F: |g|^2 / 2 in coordinates in which the Hessian is near the identity.

    Of features far from 0 the Hessian of W and b together is singular but for rounding, which would hide what
    is left. Dense ones are centred for that: (x - m) W + (b + m W) are the same logits.
    """
    x, bend = objective.spread(w)
    if objective.intercept and not sparse.issparse(x):
        mean = bend @ x / bend.sum()
        x = x - mean
        grad = np.vstack([grad[:-1] - mean[:, None] * grad[-1:], grad[-1:]])
    g = _scaling(objective, x, bend).gradient(grad)
    return 0.5 * float(np.vdot(g, g))


@np.errstate(over="ignore", invalid="ignore")  # an error says so below
def _scaling(objective: Objective, x: Any, bend: Floats) -> Scaling:
    size = objective.shape[0]
    heavy = x.multiply(bend[:, None]).tocsr() if sparse.issparse(x) else x * bend[:, None]
    if size > _TOGETHER:
        products = heavy.multiply(x) if sparse.issparse(x) else heavy * x
        diagonal = np.asarray(products.sum(axis=0)).ravel() + objective.ridge
        return Scaling(_scale(np.append(diagonal, bend.sum())[:size]))
    matrix = _weighted_gram(x, heavy, bend)[:size, :size]
    features = np.arange(objective.features)
    matrix[features, features] += objective.ridge
    d = _scale(matrix.diagonal())
    matrix *= d
    matrix *= d.T
    matrix[np.arange(size), np.arange(size)] += _RIDGE
    lower = cholesky(matrix, lower=True, check_finite=False)
    inverse = solve_triangular(lower, np.eye(size), lower=True, check_finite=False)
    return Scaling(d, lower, np.ascontiguousarray(inverse.T))


def _weighted_gram(x: Any, heavy: Any, bend: Floats) -> Floats:
    """sum_i bend_i x_i x_i^T, each x_i with a 1 at its end."""
    features = x.shape[1]
    gram = heavy.T @ x
    found = np.empty((features + 1, features + 1))
    found[:features, :features] = gram.toarray() if sparse.issparse(gram) else gram
    found[features, :features] = found[:features, features] = x.T @ bend
    found[features, features] = bend.sum()
    return found


def _scale(diagonal: Floats) -> Floats:
    """1 over the root. A feature that is 0 throughout, unpenalised, has no scale."""
    if not np.isfinite(diagonal).all():
        raise overflow(int(np.argmin(np.isfinite(diagonal))))
    return np.where(diagonal > 0, diagonal, 1.0)[:, None] ** -0.5
