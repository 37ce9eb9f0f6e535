"""Parameters and labels of the estimator, checked: what is wrong, and what would be right."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def one_of(name: str, value: Any, legal: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {value!r}.")


def switch(name: str, value: Any) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")


def integer(name: str, value: Any, low: int) -> None:
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value!r}.")


def real(name: str, value: Any, low: float, high: float, *, ends: str) -> None:
    """`ends` are the brackets of the interval: "[)" has its low end in it and its high end not."""
    if not isinstance(value, numbers.Real) or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    number = float(value)
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):  # NaN is neither
        raise ValueError(f"{name} must be in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value!r}.")


def positions(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Where these labels are among the classes, both sorted and without repetition."""
    if (unknown := ~np.isin(labels, classes)).any():
        raise ValueError(f"y holds {labels[unknown][0]!r}, which is none of the classes {classes!r}.")
    return np.searchsorted(classes, labels)


def class_weights(
    asked: Any, classes: NDArray[Any], y: NDArray[np.intp], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A weight per class. Balanced: the rows of each class weigh the same, all together what they did."""
    if isinstance(asked, dict):
        if unknown := [label for label in asked if label not in classes.tolist()]:
            raise ValueError(f"class_weight names {unknown[0]!r}, which is none of the classes {classes!r}.")
        found = np.array([asked.get(label, 1.0) for label in classes.tolist()], np.float64)
        if not (np.isfinite(found).all() and (found >= 0).all()):
            raise ValueError(f"class_weight must be finite and not negative, got {asked!r}.")
        return found
    counts = np.bincount(y, weight, len(classes))
    with np.errstate(divide="ignore"):
        found = weight.sum() / (np.count_nonzero(counts) * counts)
    return np.where(counts > 0, found, 0.0)
