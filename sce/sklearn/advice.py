"""What a fit that did not converge says: how it ended, and what would help."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from .objective import Objective
from .solvers import Trace

_FAR = 100.0  # spreads between a feature and 0, beyond which rounding is told to come from there


def advice(solver: str, trace: Trace, objective: Objective) -> str:
    unit = "epochs" if solver == "sgd" else "steps"
    gradient = f"the largest entry of the gradient is {trace.slope:.3g}, tol {trace.tol:g}"
    if trace.trouble == "diverged":
        return (
            f"sgd diverged: {trace.steps} epochs, the last of loss {trace.losses[-1]:.3g}, led nowhere below"
            " where they started, which is what was kept. Lower learning_rate, or scale the features."
        )
    if trace.trouble == "far":
        return (
            f"sgd did not converge: its loss stopped falling after {trace.steps} epochs, but the minimum is"
            f" estimated to be {trace.gap:.2g} lower. Scale the features, leave learning_rate at "
            f'"auto", or lower tol'
            f"{_no_minimum(objective)}."
        )
    if trace.trouble == "rounding":
        return (
            f"{solver} did not converge: after {trace.steps} steps rounding hides what F may still fall, an"
            f" estimated {trace.gap:.2g}; {gradient}. {_against_rounding(objective)}."
        )
    if solver == "sgd":
        gradient = "the loss still fell by more than tol, or the steps had not shrunk yet"
    scale = ", or scale the features" if solver == "sgd" else ""
    return (
        f"{solver} did not converge in {trace.steps} {unit}: {gradient}. Raise max_iter or tol{scale}"
        f"{_no_minimum(objective)}."
    )


def _no_minimum(objective: Objective) -> str:
    return "" if objective.ridge else ". Without a penalty (C=inf), separable rows have no finite minimum"


def _against_rounding(objective: Objective) -> str:
    """Names the feature farthest from 0, if any is far: its differences are lost in products."""
    double = " or pass X in float64" if objective.x.dtype == np.float32 else ""
    if not sparse.issparse(objective.x):
        mean = objective.x.mean(axis=0, dtype=np.float64)
        spread = objective.x.std(axis=0, dtype=np.float64)
        far = np.divide(np.abs(mean), spread, out=np.zeros_like(mean), where=spread > 0)
        if far.size and far.max() > _FAR:
            at = int(far.argmax())
            where = f"column {at} of X has mean {mean[at]:.3g} and standard deviation {spread[at]:.3g}"
            return f"Centre the features ({where}){double}"
    return f"Scale the features, raise tol{double}"
