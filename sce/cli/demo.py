"""Real logits without a download: a softmax classifier fitted on the digits that scikit-learn brings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sce.backend import Array
from sce.functions import loss_and_grad

from .files import UsageError

_L2 = 1e-3  # 98 % of the digits right: confident rows, doubtful rows and wrong rows


def digits() -> tuple[Array, Array]:
    """float32 logits (1797, 10) and labels (1797,), the same on every run: fitted on the reference."""
    try:
        from scipy.optimize import minimize
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise UsageError(
            f"the digits come with scikit-learn ({exc}). Try: pip install 'sce[cli]',"
            " or give LOGITS and TARGET."
        ) from exc
    images, labels = load_digits(return_X_y=True)
    x = np.hstack([images / 16, np.ones((len(images), 1))])  # pixels are 0..16; the last column is the bias
    shape = (x.shape[1], 10)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat.reshape(shape)
        loss, grad = loss_and_grad(x @ weights, labels, backend="reference")
        pulled = weights.copy()
        pulled[-1] = 0  # the bias is not regularised
        return float(loss + _L2 / 2 * (pulled**2).sum()), (x.T @ grad + _L2 * pulled).ravel()

    fit = minimize(objective, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return (x @ fit.x.reshape(shape)).astype(np.float32), labels
