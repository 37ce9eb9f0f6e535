"""Long-tailed digits: balanced error with class weights and with logit adjustment.

    python docs/experiments/long_tail.py

scikit-learn's digits, the training part thinned out so that class frequencies fall geometrically; the test
part stays in balance. It writes the table of docs/information.md, and every split's errors. A minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import network
import numpy as np
import regression
from page import publish, table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = 20
MOST, RATIO = 100, 50  # rows of the commonest class, and how many times fewer the rarest has
METHODS = ("plain", "class weights", "adjusted afterwards", "adjusted in the loss")
MODELS = ("softmax regression", "network")
ERRORS = Path(__file__).parents[1] / "information" / "long_tail.csv"


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


def fit_regression(x: Any, y: Any, seed: int, **options: Any) -> Any:
    return regression.fit(x, y, 10, l2=1e-4, **options)


def fit_network(x: Any, y: Any, seed: int, **options: Any) -> Any:
    return network.fit(x, y, network.start(64, 64, 10, seed), steps=300, rate=0.1, **options)


def balanced_error(logits: Any, labels: Any, classes: Iterable[int] = range(10)) -> float:
    """The mean over classes of the share of their rows that are taken for another."""
    wrong = logits.argmax(axis=1) != labels
    return float(np.mean([wrong[labels == k].mean() for k in classes]))


def errors(fit: Callable[..., Any], seed: int) -> list[tuple[float, float]]:
    """By method: the balanced error over all classes, and over the three rarest."""
    x, y, x_test, y_test = long_tail(seed)
    prior = np.bincount(y) / len(y)
    plain = fit(x, y, seed).logits(x_test)
    weighted = fit(x, y, seed, class_weight=1 / (10 * prior)).logits(x_test)
    adjusted = fit(x, y, seed, logit_bias=np.log(prior)).logits(x_test)
    rare = np.argsort(prior)[:3]
    logits = plain, weighted, plain - np.log(prior), adjusted  # METHODS
    return [(balanced_error(z, y_test), balanced_error(z, y_test, rare)) for z in logits]


def measure(seeds: Iterable[int]) -> Any:
    """(splits, models, methods, 2): every split's errors."""
    return np.array([[errors(fit, seed) for fit in (fit_regression, fit_network)] for seed in seeds])


def rows(found: Any) -> list[list[str]]:
    """Means in per cent, with their standard errors."""
    mean, spread = 100 * found.mean(axis=0), 100 * found.std(axis=0, ddof=1) / np.sqrt(len(found))
    cells = [
        [f"{m:.1f} ± {s:.1f}" for m, s in zip(mean[:, k].flat, spread[:, k].flat, strict=True)]
        for k in range(4)
    ]
    return [[name, *line] for name, line in zip(METHODS, cells, strict=True)]


HEADER = ["balanced error, %", *(f"{model}{of}" for model in MODELS for of in ("", ", three rarest classes"))]

if __name__ == "__main__":
    found = measure(range(SPLITS))
    ERRORS.parent.mkdir(exist_ok=True)
    np.savetxt(ERRORS, found.reshape(SPLITS, -1), fmt="%.6f", delimiter=",")
    publish("long tail", table(HEADER, rows(found)))
