"""Parameters and labels of the estimator, checked: what is wrong, and what would be right."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array


def one_of(name: str, value: Any, legal: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in legal:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, legal))}, got {plain(value)!r}.")


def plain(value: Any) -> Any:
    """As Python writes it: a message says 0, not np.int64(0)."""
    return value.item() if isinstance(value, np.generic) else value


def is_switch(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def switch(name: str, value: Any) -> None:
    if not is_switch(value):
        raise TypeError(f"{name} must be True or False, got {plain(value)!r}.")


def is_word(value: Any, word: str) -> bool:
    """Is it this word? Not asked by ==, of which an array has many answers."""
    return isinstance(value, str) and value == word


def integer(name: str, value: Any, low: int, *, or_else: str = "") -> None:
    """`or_else` is what may be given besides, as the message has it."""
    legal = f"{or_else} or an integer" if or_else else "an integer"
    if not isinstance(value, numbers.Integral) or is_switch(value):
        raise TypeError(f"{name} must be {legal} of at least {low}, got {plain(value)!r}.")
    if value < low:
        raise ValueError(f"{name} must be {legal} of at least {low}, got {plain(value)!r}.")


def real(name: str, value: Any, low: float, high: float, *, ends: str, or_else: str = "") -> None:
    """`ends` are the brackets of the interval: "[)" has its low end in it and its high end not."""
    legal = f"{or_else} or a number" if or_else else "a number"
    legal = f"{name} must be {legal} in {ends[0]}{low:g}, {high:g}{ends[1]}, got {plain(value)!r}."
    if not isinstance(value, numbers.Real) or is_switch(value):
        raise TypeError(legal)
    number = float(value)
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):  # NaN is neither
        raise ValueError(legal)


def class_weight(value: Any) -> None:
    if value is None or is_word(value, "balanced"):
        return
    if not isinstance(value, dict):
        what = f'class_weight must be None, "balanced" or a dict of label: weight, got {plain(value)!r}.'
        raise (ValueError if isinstance(value, str) else TypeError)(what)
    for label, weight in value.items():
        legal = isinstance(weight, numbers.Real) and not is_switch(weight)
        if not legal or not 0 <= float(weight) < np.inf:
            error = ValueError if legal else TypeError
            name = f"class_weight[{plain(label)!r}]"
            raise error(f"{name} must be a number in [0, inf), got {plain(weight)!r}.")


def sample_weight(value: Any, rows: int) -> NDArray[np.float64]:
    """A new array of a weight for each row; one number is for all of them."""
    if isinstance(value, numbers.Number):
        value = np.full(rows, value)
    found: NDArray[np.float64] = check_array(
        value, dtype=np.float64, ensure_2d=False, ensure_min_samples=0, copy=True, input_name="sample_weight"
    )
    if found.shape != (rows,):
        raise ValueError(f"sample_weight.shape is {found.shape}, not {(rows,)}: pass a weight for each row.")
    if (found < 0).any():
        row = int(np.argmax(found < 0))
        raise ValueError(f"sample_weight[{row}] is {found[row]}: weights must not be negative.")
    return found


def positions(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.intp]:
    """Where these labels are among the classes, both sorted and without repetition."""
    if (unknown := ~np.isin(labels, classes)).any():
        label = plain(labels[unknown][0])
        raise ValueError(f"y holds {label!r}, which is none of the classes {classes!r}.")
    return np.searchsorted(classes, labels)


def class_weights(
    asked: Any, classes: NDArray[Any], y: NDArray[np.intp], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A weight per class. Balanced: the rows of each class weigh the same, all together what they did."""
    if isinstance(asked, dict):
        labels = classes.tolist()
        # A fold may lack some of the labels. Where it lacks all of them, they are written in another way.
        if asked and not any(label in labels for label in asked):
            raise ValueError(
                f"class_weight names {plain(next(iter(asked)))!r}, which is none of the classes {classes!r},"
                " and no other label that is: leave it out, or write it as y has it."
            )
        return np.array([asked.get(label, 1.0) for label in labels], np.float64)
    counts = np.bincount(y, weight, len(classes))
    with np.errstate(divide="ignore"):
        found = weight.sum() / (np.count_nonzero(counts) * counts)
    return np.where(counts > 0, found, 0.0)
