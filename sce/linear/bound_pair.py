"""A linear model's rows with two classes, bound once: one logit for each row, and half the work."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np

from sce.backend import Answer, Array, Backend, Problem
from sce.binary import prepare_binary
from sce.select import obtain


class BoundPair:
    """`BoundRows` for two classes: the same W (D, 2), the same answers.

    Softmax cross-entropy of two logits is the binary one of their difference, d = X (W_1 - W_0) + b_1 - b_0.
    With r = dloss/dd the gradients are X^T r and the sum of r for class 1, and less the same for class 0; the
    Hessian times v is the gradient with r = d2loss/dd2 * (X (V_1 - V_0) + ...). N numbers need no chunks.

    A BackendError if the backend takes no binary problems.
    """

    def __init__(
        self,
        X: Any,
        y: Array,
        *,
        denominator: float,
        sample_weight: Array | None = None,
        label_smoothing: float = 0.0,
        backend: str | None = None,
    ) -> None:
        self._X, self._y = X, y.astype(np.int8)
        self._options: dict[str, Any] = {
            "denominator": denominator,
            "sample_weight": sample_weight,
            "label_smoothing": label_smoothing,
            "validate": False,
        }
        self._ones = np.ones(X.shape[0], X.dtype)
        self._d, self._curvature = np.empty((2, X.shape[0]), X.dtype)
        self._loss = np.zeros(1)
        problem = self._problem("loss", "grad")
        self._backend = obtain(problem, backend)
        self._evaluate = self._call(
            problem, Answer(loss=self._loss, grad=self._d.reshape(problem.logits.shape))
        )
        self._placed = False

    @np.errstate(all="ignore")  # NaN and infinities in a row are the answer, not a warning
    def loss_and_grad(self, W: Array, bias: Array | None, into: Array, into_bias: Array | None) -> float:
        """The loss; its gradients go `into` two arrays."""
        self._differences(W, bias)
        self._evaluate()
        self._gradients(into, into_bias)
        return float(self._loss[0])

    @np.errstate(all="ignore")
    def around(self, W: Array, bias: Array | None) -> None:
        """From now on, `hvp` is of the Hessian at this W and bias."""
        self._differences(W, bias)
        self._bend()
        self._placed = True

    @np.errstate(all="ignore")
    def hvp(self, V: Array, v_bias: Array | None, into: Array, into_bias: Array | None) -> None:
        """The Hessian, where `around` was told, times (V, v_bias)."""
        if not self._placed:
            raise ValueError("where is the Hessian? Call around(W, bias) first.")
        self._differences(V, v_bias)
        self._d *= self._curvature
        self._gradients(into, into_bias)

    @cached_property
    def _bend(self) -> Callable[[], None]:
        problem = self._problem("hess_diag")
        return self._call(problem, Answer(hess_diag=self._curvature.reshape(problem.logits.shape)))

    def _problem(self, *outputs: str) -> Problem:
        return prepare_binary(self._d, self._y, outputs=outputs, **self._options).problem

    def _call(self, problem: Problem, answer: Answer) -> Callable[[], None]:
        backend: Backend = self._backend
        repeat: Callable[[Problem, Answer], Callable[[], None]] | None = getattr(backend, "repeat", None)
        return partial(backend.run, problem, answer) if repeat is None else repeat(problem, answer)

    def _differences(self, W: Array, bias: Array | None) -> None:
        """Class 1's logits less those of class 0."""
        w = W[:, 1] - W[:, 0]
        if isinstance(self._X, np.ndarray):
            np.matmul(self._X, w, out=self._d)
        else:
            self._d[...] = self._X @ w
        if bias is not None:
            self._d += bias[1] - bias[0]

    def _gradients(self, into: Array, into_bias: Array | None) -> None:
        into[:, 1] = self._X.T @ self._d
        np.negative(into[:, 1], out=into[:, 0])
        if into_bias is not None:
            into_bias[1] = self._ones @ self._d
            into_bias[0] = -into_bias[1]
