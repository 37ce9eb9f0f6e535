"""Long-tailed digits: balanced error of softmax regression with and without logit adjustment.

    python docs/experiments/long_tail.py

scikit-learn's digits, the training part thinned out so that class frequencies fall geometrically; the test
part stays in balance. It prints the table of docs/information.md. Seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from page import publish, table
from regression import fit
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = 30
MOST, RATIO = 100, 50  # rows of the commonest class, and how many times fewer the rarest has
L2 = 1e-4  # of the mean loss, set before any error was seen
METHODS = ("plain", "class weights", "adjusted afterwards", "adjusted in the loss")


def long_tail(seed: int) -> tuple[Any, Any, Any, Any]:
    """Training features and labels, with a random class the commonest; test ones in balance."""
    digits = load_digits()
    x, x_test, y, y_test = train_test_split(
        digits.data / 16, digits.target, test_size=0.4, stratify=digits.target, random_state=seed
    )
    rng = np.random.default_rng(seed)
    counts = np.round(MOST * RATIO ** (-rng.permutation(10) / 9)).astype(int)
    chosen = np.concatenate(
        [rng.choice(np.flatnonzero(y == k), n, replace=False) for k, n in enumerate(counts)]
    )
    return x[chosen], y[chosen], x_test, y_test


def balanced_error(logits: Any, labels: Any, classes: Iterable[int] = range(10)) -> float:
    """The mean over classes of the share of their rows that are taken for another."""
    wrong = logits.argmax(axis=1) != labels
    return float(np.mean([wrong[labels == k].mean() for k in classes]))


def errors(seed: int) -> dict[str, tuple[float, float]]:
    """By method: the balanced error over all classes, and over the three rarest."""
    x, y, x_test, y_test = long_tail(seed)
    prior = np.bincount(y) / len(y)
    plain = fit(x, y, 10, l2=L2).logits(x_test)
    logits = {
        "plain": plain,
        "class weights": fit(x, y, 10, l2=L2, class_weight=1 / (10 * prior)).logits(x_test),
        "adjusted afterwards": plain - np.log(prior),
        "adjusted in the loss": fit(x, y, 10, l2=L2, logit_bias=np.log(prior)).logits(x_test),
    }
    rare = np.argsort(prior)[:3]
    return {name: (balanced_error(z, y_test), balanced_error(z, y_test, rare)) for name, z in logits.items()}


def measure(splits: int = SPLITS) -> Any:
    """(splits, methods, 2): every split's errors."""
    return np.array([[errors(seed)[name] for name in METHODS] for seed in range(splits)])


def rows(found: Any) -> list[list[str]]:
    """Means with their standard errors, and the difference to the plain loss, split by split."""
    lines = []
    for name, (all_, rare) in zip(METHODS, found.transpose(1, 2, 0), strict=True):
        cells = [
            percent(all_),
            percent(rare),
            "" if name == "plain" else percent(all_ - found[:, 0, 0], sign="+"),
        ]
        lines.append([name, *cells])
    return lines


def percent(values: Any, sign: str = "") -> str:
    return f"{100 * values.mean():{sign}.2f} ± {100 * values.std(ddof=1) / np.sqrt(len(values)):.2f}"


HEADER = ["trained", "balanced error, %", "of the three rarest classes, %", "against plain"]

if __name__ == "__main__":
    publish("long tail", table(HEADER, rows(measure())))
