"""What a fit minimises, and the coordinates in which that is easy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cholesky, solve_triangular

import sce

Floats = NDArray[Any]

_DENSE = 1024  # features; with more, coordinates are scaled one by one: a factorisation would cost too much
_ROWS = 8  # per feature: as many rows tell the curvature well enough
_RIDGE = 1e-10  # keeps the factor of a singular curvature (collinear or constant features) finite


class Objective:
    """F(W) = sum_i u_i loss_i(X W + b) / sum_i u_i  +  ridge / 2 * sum of squares of W without b.

    The parameters are one float64 array of shape (D + 1, C): a column per class, the intercepts b in the last
    row; (D, C) without intercept. X (N, D) is dense or CSR, y (N,) holds indices, u (N,) is positive or None.
    The product with X is done in the dtype of X, all else in float64.
    """

    def __init__(
        self,
        x: Any,
        y: NDArray[np.intp],
        weight: NDArray[np.float64] | None,
        classes: int,
        *,
        ridge: float,
        intercept: bool,
        label_smoothing: float,
        backend: str | None,
    ) -> None:
        self.x, self.y, self.weight = x, y, weight
        self.ridge, self.intercept, self.backend = ridge, intercept, backend
        self.label_smoothing = label_smoothing
        self.rows, self.features = x.shape
        self.total = float(self.rows) if weight is None else float(weight.sum())
        self.shape = (self.features + intercept, classes)

    def __call__(self, w: Floats) -> tuple[float, Floats]:
        """F and its gradient."""
        return self._value(w, self.x, self.y, self.weight, self.total)

    def batch(self, w: Floats, rows: NDArray[np.intp]) -> tuple[float, Floats]:
        """The same of some rows, in expectation equal to that of all."""
        weight = None if self.weight is None else self.weight[rows]
        return self._value(w, self.x[rows], self.y[rows], weight, self.total * len(rows) / self.rows)

    def _value(
        self, w: Floats, x: Any, y: Any, weight: Floats | None, denominator: float
    ) -> tuple[float, Floats]:
        z = self.logits(w, x)
        loss, _ = sce.loss_and_grad(
            z,
            y,
            sample_weight=weight,
            label_smoothing=self.label_smoothing,
            denominator=denominator,
            out=z,
            validate=False,
            backend=self.backend,
        )
        grad = self._pulled(x, z)
        pull = self.ridge * w[: self.features]
        grad[: self.features] += pull
        return float(loss) + 0.5 * float(np.vdot(w[: self.features], pull)), grad

    def curvature(self, w: Floats) -> Any:
        """The Hessian of F at w, as a function of a direction v: H v."""
        p = sce.softmax(self.logits(w, self.x), backend=self.backend)
        share = self._share(self.weight)

        def times(v: Floats) -> Floats:
            u = self.logits(v, self.x)
            u -= np.einsum("ij,ij->i", p, u)[:, None]
            u *= p
            u *= share
            found = self._pulled(self.x, u)
            found[: self.features] += self.ridge * v[: self.features]
            return found

        return times

    def logits(self, w: Floats, x: Any) -> Floats:
        w = w.astype(x.dtype, copy=False)
        z: Floats = x @ w[: self.features]
        if self.intercept:
            z += w[-1]
        return z

    def _pulled(self, x: Any, dz: Floats) -> Floats:
        """What a derivative by the logits is by the parameters."""
        grad = np.empty(self.shape)
        grad[: self.features] = x.T @ dz
        if self.intercept:
            dz.sum(axis=0, dtype=np.float64, out=grad[-1])
        return grad

    def _share(self, weight: Floats | None) -> Any:
        """What a row counts in the mean."""
        return 1 / self.total if weight is None else (weight / self.total)[:, None].astype(self.x.dtype)

    def scaling(self, w: Floats) -> Scaling:
        """Coordinates in which the Hessian at w is near the identity.

        Row i adds u_i (diag(p_i) - p_i p_i^T) (x) x_i x_i^T to it. With the first factor replaced by the mean of
        its C - 1 eigenvalues that are not 0, (1 - |p_i|^2) / (C - 1), what is left is one matrix (D + 1, D + 1)
        for all classes. At w = 0 nothing is lost by that. An evenly spaced part of the rows suffices.
        """
        size, classes = self.shape
        step = max(1, self.rows // (_ROWS * size))
        x = self.x[::step]
        p = sce.softmax(self.logits(w, x), backend=self.backend)
        h = (1 - np.einsum("ij,ij->i", p, p, dtype=np.float64)) / (classes - 1)
        h = np.maximum(h, np.finfo(np.float64).eps)  # a row beyond doubt still has a direction
        weight = None if self.weight is None else self.weight[::step]
        h *= 1 / len(h) if weight is None else weight / weight.sum()
        if sparse.issparse(x):
            x = x.astype(np.float64)
            scaled = x.multiply(h[:, None]).tocsr()
        else:
            x = x.astype(np.float64, copy=False)
            scaled = x * h[:, None]
        if size > _DENSE:
            squares = x.multiply(scaled).sum(axis=0) if sparse.issparse(x) else (x * scaled).sum(axis=0)
            diagonal = np.append(np.asarray(squares).ravel() + self.ridge, h.sum())[:size]
            return Scaling(_positive(diagonal) ** -0.5)
        matrix = np.empty((size, size))
        gram = scaled.T @ x
        matrix[: self.features, : self.features] = gram.toarray() if sparse.issparse(gram) else gram
        matrix[np.arange(self.features), np.arange(self.features)] += self.ridge
        if self.intercept:
            matrix[-1, : self.features] = matrix[: self.features, -1] = x.T @ h
            matrix[-1, -1] = h.sum()
        d = _positive(matrix.diagonal()) ** -0.5
        matrix *= d
        matrix *= d[:, None]
        matrix[np.arange(size), np.arange(size)] += _RIDGE
        lower = cholesky(matrix, lower=True, check_finite=False)
        inverse = solve_triangular(lower, np.eye(size), lower=True, check_finite=False)
        return Scaling(d, lower, np.ascontiguousarray(inverse.T))


    def largest_curvatures(self, steps: int) -> tuple[float, float]:
        """Bounds of the largest eigenvalue of the Hessian: of F, and of the worst row's part alone.

        diag(p) - p p^T has no eigenvalue above 1/2. What X adds is found by power iteration on some rows.
        """
        step = max(1, self.rows // (_ROWS * self.shape[0]))
        x = self.x[::step]
        weight = np.ones(x.shape[0]) if self.weight is None else self.weight[::step]
        v, largest = np.ones(self.shape[0]), 0.0
        for _ in range(steps):
            v /= np.linalg.norm(v) or 1.0
            xv = x @ v[: self.features] + (v[-1] if self.intercept else 0.0)
            xv *= weight / weight.sum()
            v = np.append(x.T @ xv, xv.sum())[: self.shape[0]]
            largest = float(np.linalg.norm(v))
        squares = self.x.multiply(self.x).sum(axis=1) if sparse.issparse(self.x) else np.square(self.x).sum(axis=1)
        rows = np.asarray(squares, dtype=np.float64).ravel() + self.intercept
        if self.weight is not None:
            rows = rows * self.weight * (self.rows / self.total)
        return largest / 2 + self.ridge, float(rows.max()) / 2 + self.ridge


class Scaling(NamedTuple):
    """w = d * (L^-T v): parameters w, easy coordinates v. Without L, each coordinate is scaled alone."""

    d: Floats  # (D + 1,)
    lower: Floats | None = None  # L
    inverse: Floats | None = None  # L^-T

    def parameters(self, v: Floats) -> Floats:
        w = v if self.inverse is None else self.inverse @ v
        return self.d[:, None] * w

    def coordinates(self, w: Floats) -> Floats:
        v = w / self.d[:, None]
        return v if self.lower is None else self.lower.T @ v

    def gradient(self, grad: Floats) -> Floats:
        """By the coordinates, of one by the parameters."""
        g = self.d[:, None] * grad
        return g if self.inverse is None else self.inverse.T @ g


def _positive(diagonal: Floats) -> Floats:
    """A feature that is 0 throughout, unpenalised, has no scale: 1."""
    return np.where(diagonal > 0, diagonal, 1.0)
