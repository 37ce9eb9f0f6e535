"""Softmax regression against scikit-learn's LogisticRegression: coefficients and time, side by side.

    python bench/regression.py [--write docs/regression.md] [--quick]

The same rows, the same objective, the same solver. The exact coefficients are those of a third fit, to a
gradient of 1e-10 (LogisticRegression's newton-cholesky or newton-cg). Two questions for each problem: what
does a fit cost as both come, to a gradient of 1e-4, and what does it cost to have the coefficients to 1e-4?
For the second, each has the loosest tolerance of 1e-4, 1e-5, ... at which its own are that near. Fits are
timed in turns; the median counts. `--write` puts the table between the marks in that page, `--quick` leaves
out the synthetic problem.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import sklearn.datasets
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import sce
from sce import machine
from sce.bench.clock import Rounds, alternate
from sce.bench.markdown import table
from sce.cli.tables import duration
from sce.sklearn import SoftmaxRegression

NEAR = 1e-4
TOLERANCES = tuple(10.0**-power for power in range(4, 11))
STEPS = 100_000
ROUNDS = Rounds(least=5, enough=0.5, most=200, patience=20.0)
START, END = "<!-- bench/regression.py -->", "<!-- /bench/regression.py -->"
HEADER = (
    "problem", "features", "solver", "to", "sce", "scikit-learn", "theirs over ours", "steps, sce",
    "steps, theirs", "error, sce", "error, theirs",
)  # fmt: skip


class Problem(NamedTuple):
    name: str
    features: str
    x: Any
    y: Any


class Fit(NamedTuple):
    model: Any
    tol: float
    error: float  # of the coefficients: largest over the largest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    parser.add_argument("--quick", action="store_true", help="without the synthetic problem")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # what does not converge shows in its error
    lines = []
    for problem in problems(args.quick):
        for solver in ("lbfgs", "newton-cg"):
            for line in compared(problem, solver):
                print(" | ".join(line), flush=True)
                lines.append(line)
    text = "\n\n".join([about(), table(HEADER, lines, words=(0, 1, 2, 3))])
    print(f"\n{text}")
    if args.write is not None:
        page = args.write.read_text("utf-8")
        before, _, rest = page.partition(START)
        _, _, after = rest.partition(END)
        args.write.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")


def problems(quick: bool) -> Iterator[Problem]:
    for name in ("digits", "iris", "wine"):
        x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        yield Problem(name, "as they come", x, y)
        yield Problem(name, "scaled", StandardScaler().fit_transform(x), y)
    if not quick:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(100_000, 100))
        z = x @ (0.3 * rng.normal(size=(100, 50)))
        y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)  # drawn from softmax(z)
        yield Problem("100 000 x 100 x 50", "normal", x, y)


def compared(problem: Problem, solver: str) -> Iterator[Sequence[str]]:
    """A line for each question."""
    best = exact(problem)
    kinds = {"sce": SoftmaxRegression, "scikit-learn": LogisticRegression}
    first = {name: fit(kind, problem, solver, TOLERANCES[0], best) for name, kind in kinds.items()}
    yield line(problem, solver, "a gradient of 1e-4", first)
    near = {name: nearest(kind, problem, solver, best) for name, kind in kinds.items()}
    yield line(problem, solver, "coefficients to 1e-4", near)


def exact(problem: Problem) -> Any:
    """Of few coefficients by a factorisation, of many by conjugate gradients."""
    solver = "newton-cholesky" if problem.x.shape[1] < 100 else "newton-cg"
    return LogisticRegression(solver=solver, tol=1e-10, max_iter=STEPS).fit(problem.x, problem.y).coef_


def nearest(kind: Any, problem: Problem, solver: str, best: Any) -> Fit:
    for tol in TOLERANCES:
        found = fit(kind, problem, solver, tol, best)
        if found.error <= NEAR:
            break
    return found


def fit(kind: Any, problem: Problem, solver: str, tol: float, best: Any) -> Fit:
    model = kind(solver=solver, tol=tol, max_iter=STEPS).fit(problem.x, problem.y)
    return Fit(model, tol, float(np.abs(model.coef_ - best).max() / np.abs(best).max()))


def line(problem: Problem, solver: str, aim: str, fits: dict[str, Fit]) -> Sequence[str]:
    calls = {name: lambda m=found.model: m.fit(problem.x, problem.y) for name, found in fits.items()}
    times = alternate(calls, ROUNDS)
    ours, theirs = times["sce"].median, times["scikit-learn"].median
    steps = [str(int(np.max(found.model.n_iter_))) for found in fits.values()]
    errors = [f"{found.error:.0e}" for found in fits.values()]
    cells = (duration(ours), duration(theirs), f"{theirs / ours:.2g}")
    return (problem.name, problem.features, solver, aim, *cells, *steps, *errors)


def about() -> str:
    versions = {"sce": sce.__version__, "scikit-learn": sklearn.__version__, "NumPy": np.__version__}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine.processor()}, {machine.usable_cores()} cores; Python {platform.python_version()}, {told};"
        f" backend {sce.explain([[0.0, 1.0]]).chosen}; `python bench/regression.py`"
    )


if __name__ == "__main__":
    main()
