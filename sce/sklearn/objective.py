"""What a fit minimises: the penalised mean loss, its derivatives, and how it is curved."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import sce
from sce.linear.bound import BoundRows
from sce.linear.bound_pair import BoundPair

Floats = NDArray[Any]

# How many rows tell the curvature: at least so many per parameter of a class.
_ROWS, _WORTH, _MOST = 8, 4, 1 << 22
_POWER = 20  # steps of the power iteration that finds the largest curvature


class Objective:
    """F(W) = sum_i u_i loss_i(X W + b) / sum_i u_i  +  ridge / 2 * sum of squares of W without b.

    The parameters are one float64 array of shape (D + 1, C): a column per class, the intercepts b in the last
    row; (D, C) without intercept. Each row has sum 0. X (N, D) is dense or CSR, y (N,) holds indices, u (N,)
    is positive or None. F is computed in the dtype of X.
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
        denominator: float | None = None,  # instead of the sum of u
    ) -> None:
        self.x, self.y, self.weight = x, y, weight
        self.ridge, self.intercept, self.backend = ridge, intercept, backend
        self.label_smoothing = label_smoothing
        self.rows, self.features = int(x.shape[0]), int(x.shape[1])
        total = float(self.rows) if weight is None else float(weight.sum())
        self.total = total if denominator is None else denominator
        self.shape = (self.features + intercept, classes)

    def __call__(self, w: Floats) -> tuple[float, Floats]:
        """F and its gradient."""
        grad = np.empty(self.shape, self.x.dtype)
        loss = self._bound.loss_and_grad(*self._split(w), *self._split(grad))
        return self._penalised(loss, w), self._balanced(grad, w)

    def around(self, w: Floats) -> None:
        """From now on, `curvature` is that at w."""
        self._bound.around(*self._split(w))

    def curvature(self, v: Floats) -> Floats:
        """H v, where H is the Hessian of F at the place that `around` was told."""
        found = np.empty(self.shape, self.x.dtype)
        self._bound.hvp(*self._split(v), *self._split(found))
        return self._balanced(found, v)

    @cached_property
    def _bound(self) -> BoundRows | BoundPair:
        options: dict[str, Any] = {
            "denominator": self.total,
            "sample_weight": self.weight,
            "label_smoothing": self.label_smoothing,
            "backend": self.backend,
        }
        if self.shape[1] == 2:
            with suppress(sce.BackendError):  # another distribution's backend may take no binary problems
                return BoundPair(self.x, self.y, **options)
        return BoundRows(self.x, self.y, self.shape[1], **options)

    def _penalised(self, loss: float, w: Floats) -> float:
        coef = w[: self.features]
        return loss + 0.5 * self.ridge * float(np.vdot(coef, coef))

    def _balanced(self, grad: Floats, w: Floats) -> Floats:
        """With the penalty's part, and with sum 0 over the classes, as it is but for rounding.

        Nothing else would bring that back: a shift of all classes changes no probability, and without a
        penalty (the intercepts') no loss.
        """
        grad = grad.astype(np.float64, copy=False)
        grad[: self.features] += self.ridge * w[: self.features]
        grad -= grad.sum(axis=1, keepdims=True) * (1 / self.shape[1])
        return grad

    def batch(self, w: Floats, rows: NDArray[np.intp]) -> tuple[float, Floats]:
        """The same of some rows, in expectation equal to that of all."""
        weight = None if self.weight is None else self.weight[rows]
        grad = np.empty(self.shape, self.x.dtype)
        coef, bias = self._split(w)
        loss, _ = sce.linear_loss_and_grad(
            self.x[rows],
            coef,
            self.y[rows],
            bias=bias,
            sample_weight=weight,
            label_smoothing=self.label_smoothing,
            denominator=self.total * len(rows) / self.rows,
            want=("W", "bias"),
            out=sce.LinearGrad(None, *self._split(grad)),
            validate=False,
            backend=self.backend,
        )
        return self._penalised(float(loss), w), self._balanced(grad, w)

    def _split(self, w: Floats) -> tuple[Floats, Floats | None]:
        """W (D, C) and b (C,) or None, in the dtype of X: views of w, where it has that dtype."""
        w = w.astype(self.x.dtype, copy=False)
        return w[: self.features], w[-1] if self.intercept else None

    def spread(self, w: Floats) -> tuple[Any, Floats]:
        """Some rows of X, evenly spaced, and how much the loss of each bends at w: shares of F's Hessian.

        Row i adds u_i (diag(p_i) - p_i p_i^T) (x) x_i x_i^T to that. Its first factor has C - 1 eigenvalues
        that are not 0, of mean (1 - |p_i|^2) / (C - 1); at w = 0 all of them are alike.
        """
        x, share = self._some()
        if not w.any():
            return x.astype(np.float64, copy=False), share / self.shape[1]
        coef, bias = self._split(w)
        p = x @ coef if bias is None else x @ coef + bias
        p -= p.max(axis=1, keepdims=True)
        p = np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        bend = (1 - np.einsum("ij,ij->i", p, p, dtype=np.float64)) / (self.shape[1] - 1)
        bend = np.maximum(bend, np.finfo(np.float64).eps)  # a row beyond doubt still has a direction
        return x.astype(np.float64, copy=False), bend * share

    @np.errstate(over="ignore", invalid="ignore")  # an error says so below
    def largest_curvatures(self) -> tuple[float, float]:
        """Bounds of the largest eigenvalue of the Hessian: of F, and of N times the worst row's part of F.

        diag(p) - p p^T has no eigenvalue above 1/2. What X adds is found by power iteration on some rows.
        """
        x, share = self._some()
        v, mean = np.ones(self.shape[0]), 0.0
        for _ in range(_POWER):
            v /= np.linalg.norm(v) or 1.0
            along = x @ v[: self.features] + (v[-1] if self.intercept else 0.0)
            along *= share
            v = np.append(x.T @ along, along.sum())[: self.shape[0]]
            mean = float(np.linalg.norm(v))
        rows = (_squares(self.x) + self.intercept) * (self.rows / self.total)
        if self.weight is not None:
            rows *= self.weight
        if not np.isfinite(rows).all() or not math.isfinite(mean):
            columns = _squares(self.x.T.tocsr() if sparse.issparse(self.x) else self.x.T)
            raise overflow(int(np.argmin(np.isfinite(columns))))
        return mean / 2 + self.ridge, float(rows.max()) / 2 + self.ridge

    def _some(self) -> tuple[Any, Floats]:
        """Evenly spaced rows, enough to tell the curvature by, and their shares in F.

        The more, the fewer steps: as many as cost what `_WORTH` gradients do and fit into `_MOST` elements.
        """
        size, classes = self.shape
        worth = min(self.rows * _WORTH * 4 * classes // size, _MOST // (size + classes))
        step = max(1, -(-self.rows // max(_ROWS * size, worth, 1)))
        x = self.x[::step]
        if self.weight is None:
            return x, np.full(x.shape[0], self.rows / self.total / x.shape[0])
        weight = self.weight[::step]
        return x, weight / weight.sum() * (self.weight.sum() / self.total)


def overflow(column: int) -> ValueError:
    return ValueError(f"the squares of X overflow, first in column {column}: scale the features.")


def _squares(x: Any) -> Floats:
    """The sum of squares of each row."""
    if sparse.issparse(x):
        return np.asarray(x.multiply(x).sum(axis=1), np.float64).ravel()
    squares: Floats = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    return squares
