"""The synthetic experiment of Qin, Kim and Gedeon (2019): five Gaussians, their information by a classifier.

    python docs/experiments/mutual_information.py

Five classes; given class k, x is normal around m_k * (1, ..., 1) with unit covariance, in d dimensions. A
softmax regression on (x, x^2) is fitted to one sample, and I(X; Y) estimated on a fresh one. It prints the
table and draws the plot of docs/information.md. About a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from page import publish, table
from regression import fit
from scipy.integrate import quad

from sce.information import mutual_information

MEANS = np.array([0.0, 2.0, -2.0, 4.0, -4.0])
DIMENSIONS = (1, 2, 5, 10)
BALANCED = np.full(5, 10_000)
IMBALANCED = np.arange(5_000, 30_000, 5_000)
# Of the mean loss. Where classes hardly overlap (d = 10) a few rows decide on a hundred weights; without a
# penalty these grow until single fresh rows cost a hundred nats.
L2 = 1e-6
PLOT = Path(__file__).parents[1] / "information" / "mutual_information.svg"


class Result(NamedTuple):
    d: int
    balanced: float  # the true values
    imbalanced: float
    estimates: dict[str, tuple[float, float]]  # by name: the truth and the estimate


def truth(counts: Any, d: int) -> float:
    """I(X; Y) by quadrature: x tells of y only through s = sum(x) / sqrt(d), normal around sqrt(d) * m_y.

    I = h(s) - h(s | y), of which the second is that of a unit normal, log(2 pi e) / 2.
    """
    prior = counts / counts.sum()
    centres = np.sqrt(d) * MEANS

    def integrand(s: float) -> float:
        density = float(prior @ np.exp(-((s - centres) ** 2) / 2)) / np.sqrt(2 * np.pi)
        return -density * np.log(density)

    ends = centres.min() - 12, centres.max() + 12
    entropy, error = quad(integrand, *ends, points=np.sort(centres), epsabs=1e-10, epsrel=1e-10, limit=500)
    assert error < 1e-8
    return float(entropy - np.log(2 * np.pi * np.e) / 2)


def sample(rng: np.random.Generator, counts: Any, d: int) -> tuple[Any, Any]:
    """Features (x, x^2) and labels."""
    labels = np.repeat(np.arange(5), counts)
    x = rng.standard_normal((len(labels), d)) + MEANS[labels, None]
    return np.hstack([x, x**2]), labels


def run(d: int, seed: int = 0) -> Result:
    rng = np.random.default_rng([seed, d])
    even, skewed = truth(BALANCED, d), truth(IMBALANCED, d)
    prior = IMBALANCED / IMBALANCED.sum()

    features, labels = sample(rng, BALANCED, d)
    plain = fit(features, labels, 5, l2=L2)
    features, labels = sample(rng, IMBALANCED, d)
    corrected = fit(features, labels, 5, l2=L2, logit_bias=np.log(prior))  # probability-corrected softmax

    found = {}
    features, labels = sample(rng, BALANCED, d)
    even_prior = BALANCED / BALANCED.sum()
    found["balanced"] = even, mutual_information(plain.logits(features), labels, trained_prior=even_prior)
    features, labels = sample(rng, IMBALANCED, d)
    found["imbalanced"] = skewed, mutual_information(corrected.logits(features), labels, trained_prior=None)
    z = plain.logits(features)  # trained in balance, used out of it
    found["prior shift"] = skewed, mutual_information(z, labels, trained_prior=even_prior)
    # The same without a correction: as if these logits held this prior already.
    found["prior shift, uncorrected"] = skewed, mutual_information(z, labels, trained_prior=prior)
    return Result(d, even, skewed, {name: (true, float(got)) for name, (true, got) in found.items()})


def row(result: Result) -> list[str]:
    estimates = [f"{got:.4f} ({got - true:+.4f})" for true, got in result.estimates.values()]
    balanced, *others = estimates
    return [str(result.d), f"{result.balanced:.4f}", balanced, f"{result.imbalanced:.4f}", *others]


def draw(results: list[Result]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "sce"  # the same file from the same numbers
    figure, axes = plt.subplots(figsize=(5.2, 4.2), layout="constrained")
    axes.plot([0.7, 1.7], [0.7, 1.7], color="0.6", linewidth=1, zorder=1)
    styles = {
        "balanced": ("o", "C0"),
        "imbalanced": ("s", "C1"),
        "prior shift": ("^", "C2"),
        "prior shift, uncorrected": ("x", "C3"),
    }
    for name, (marker, colour) in styles.items():
        points = np.array([result.estimates[name] for result in results])
        axes.scatter(*points.T, marker=marker, color=colour, label=name, zorder=2)
    for result in results:
        axes.annotate(
            f"d = {result.d}", (result.balanced, result.balanced), (6, -12), textcoords="offset points"
        )
    axes.set_xlabel("true I(X; Y), nats")
    axes.set_ylabel("estimate, nats")
    axes.legend(frameon=False)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


HEADER = [
    "d", "truth, balanced", "balanced", "truth, imbalanced", "imbalanced", "prior shift",
    "prior shift, uncorrected",
]  # fmt: skip

if __name__ == "__main__":
    results = [run(d) for d in DIMENSIONS]
    publish("mutual information", table(HEADER, [row(result) for result in results]))
    draw(results)
