"""Softmax regression by L-BFGS, as small as it gets: what the experiments beside this file fit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

import sce


class Model(NamedTuple):
    mean: Any  # (D,): of the training features,
    scale: Any  # (D,): and their standard deviations
    weight: Any  # (D, C)
    intercept: Any  # (C,)

    def logits(self, features: Any) -> Any:
        return (features - self.mean) / self.scale @ self.weight + self.intercept


def fit(features: Any, labels: Any, classes: int, *, l2: float = 0.0, **options: Any) -> Model:
    """Minimise sce.cross_entropy(logits, labels, **options) + l2 * sum(weight**2)."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale == 0] = 1.0
    x = (features - mean) / scale
    shape = x.shape[1] + 1, classes

    def objective(flat: Any) -> tuple[float, Any]:
        weight, intercept = np.split(flat.reshape(shape), [-1])
        loss, grad = sce.linear_loss_and_grad(
            x, weight, labels, bias=intercept[0], l2=l2, want=("W", "bias"), **options
        )
        return float(loss), np.vstack([grad.W, grad.bias]).reshape(-1)

    found = minimize(
        objective,
        np.zeros(shape[0] * shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "maxfun": 4000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6},
    )
    if not found.success:
        raise RuntimeError(f"not converged: {found.message}")
    weight, intercept = np.split(found.x.reshape(shape), [-1])
    return Model(mean, scale, weight, intercept[0])
