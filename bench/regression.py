"""Softmax regression against scikit-learn's LogisticRegression: coefficients and time, side by side.

    python bench/regression.py [--write docs/benchmarks.md] [--quick] [--one-thread]

The same rows, the same objective, the same solver. The exact coefficients are those of a third fit, to a
gradient of 1e-8 or less (LogisticRegression's newton-cholesky or newton-cg). Two questions for each problem:
what does a fit cost as both come, to a gradient of 1e-4, and what does it cost to have the coefficients to
1e-4? For the second, each has the loosest tolerance of 1e-4, 1e-5, ... at which its own are that near, within
a thousand steps: where none is, its time is how long it tried, and its error says how near it came. Fits are
timed in turns; the median counts, of one turn where it takes longer than some seconds. Memory is the most
that Python and NumPy have during a fit beyond what was there before. `--write` puts the table into that page,
`--quick` leaves out the synthetic problem, which takes minutes. `--one-thread` is for a section of its own:
there every BLAS has one thread, because in small fits more of them take more time than they give.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tracemalloc
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import sklearn.datasets
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import sce
from sce import machine
from sce.bench.clock import Rounds, alternate
from sce.bench.markdown import put, table
from sce.cli.tables import duration
from sce.sklearn import SoftmaxRegression

NEAR = 1e-4
TOLERANCES = tuple(10.0**-power for power in range(4, 11))
STEPS = 1_000  # ten times what both have if not told
ROUNDS = Rounds(least=5, enough=0.5, most=200, patience=4.0)
EVEN = 1.05  # a ratio of times that is no difference
MARK = "bench/regression.py"
HEADING = "## Softmax regression"
ONE = "## Softmax regression, every BLAS on one thread"
HOW = "How it is measured: [regression.md](regression.md#against-logisticregression)."
HEADER = (
    "problem", "features", "solver", "to", "sce", "scikit-learn", "theirs over ours", "steps", "error",
    "above the minimum", "memory, MB",
)  # fmt: skip


class Problem(NamedTuple):
    name: str
    features: str
    x: Any
    y: Any


class Exact(NamedTuple):
    coef: Any
    objective: float


class Fit(NamedTuple):
    model: Any
    error: float  # of the coefficients: largest over the largest
    above: float  # the objective's minimum


class Line(NamedTuple):
    name: str
    ratio: float  # of the times, theirs over ours
    cells: Sequence[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    parser.add_argument("--quick", action="store_true", help="without the synthetic problem")
    parser.add_argument("--one-thread", action="store_true", help="every BLAS on one thread")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # what does not converge shows in its error
    lines = []
    with threadpool_limits(1 if args.one_thread else None, "blas"):
        for problem in problems(args.quick):
            for line in compared(problem):
                print(" | ".join(line.cells), flush=True)
                lines.append(line)
    legend = "Of steps, errors, objectives and memory, ours is the first number and theirs the second."
    rows = [line.cells for line in lines]
    options = [flag for flag in ("--quick", "--one-thread") if flag in sys.argv]
    text = "\n\n".join([about(options), table(HEADER, rows, words=(0, 1, 2, 3)), legend, verdict(lines)])
    print(f"\n{text}")
    if args.write is not None:
        heading, mark = (ONE, f"{MARK} --one-thread") if args.one_thread else (HEADING, MARK)
        section = "\n\n".join([heading, HOW, text])
        args.write.write_text(put(args.write.read_text("utf-8"), mark, section), "utf-8")


def problems(quick: bool) -> Iterator[Problem]:
    for name in ("digits", "iris", "wine", "breast_cancer"):
        x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        yield Problem(name, "as they come", x, y)
        yield Problem(name, "scaled", StandardScaler().fit_transform(x), y)
    if not quick:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(100_000, 100))
        z = x @ (0.3 * rng.normal(size=(100, 50)))
        y = (z + rng.gumbel(size=z.shape)).argmax(axis=1)  # drawn from softmax(z)
        yield Problem("100 000 x 100 x 50", "normal", x, y)


def compared(problem: Problem) -> Iterator[Line]:
    """A line for each solver and question."""
    best = exact(problem)
    kinds = {"sce": SoftmaxRegression, "scikit-learn": LogisticRegression}
    for solver in ("lbfgs", "newton-cg"):
        first = {name: fit(kind, problem, solver, TOLERANCES[0], best) for name, kind in kinds.items()}
        yield line(problem, solver, "a gradient of 1e-4", first)
        near = {name: nearest(kind, problem, solver, best, first[name]) for name, kind in kinds.items()}
        yield line(problem, solver, "coefficients to 1e-4", near)


def exact(problem: Problem) -> Exact:
    """Of few coefficients by a factorisation, of many by conjugate gradients."""
    few = problem.x.shape[1] < 100
    how = {"solver": "newton-cholesky", "tol": 1e-10} if few else {"solver": "newton-cg", "tol": 1e-8}
    model = LogisticRegression(max_iter=100_000, **how).fit(problem.x, problem.y)
    return Exact(model.coef_, objective(model, problem))


def nearest(kind: Any, problem: Problem, solver: str, best: Exact, first: Fit) -> Fit:
    found = first
    for tol in TOLERANCES[1:]:
        if found.error <= NEAR or steps(found.model) >= STEPS:
            break
        found = fit(kind, problem, solver, tol, best)
    return found


def fit(kind: Any, problem: Problem, solver: str, tol: float, best: Exact) -> Fit:
    model = kind(solver=solver, tol=tol, max_iter=STEPS).fit(problem.x, problem.y)
    error = float(np.abs(model.coef_ - best.coef).max() / np.abs(best.coef).max())
    return Fit(model, error, max(0.0, objective(model, problem) - best.objective))


def steps(model: Any) -> int:
    return int(np.max(model.n_iter_))


def objective(model: Any, problem: Problem) -> float:
    """What both minimise: the mean loss and the penalty, in float64."""
    z = problem.x @ model.coef_.T + model.intercept_
    z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
    loss = sce.cross_entropy(z, problem.y, backend="reference")
    return float(loss + (model.coef_**2).sum() / (2 * model.C * len(problem.y)))


def memory(model: Any, problem: Problem) -> float:
    """Megabytes at the most. All of it is there after some steps."""
    few = clone(model).set_params(max_iter=3)
    tracemalloc.start()
    few.fit(problem.x, problem.y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def line(problem: Problem, solver: str, aim: str, fits: dict[str, Fit]) -> Line:
    calls = {name: partial(found.model.fit, problem.x, problem.y) for name, found in fits.items()}
    times = alternate(calls, ROUNDS)
    ours, theirs = times["sce"].median, times["scikit-learn"].median
    both = list(fits.values())
    cells = (
        problem.name,
        problem.features,
        solver,
        aim,
        duration(ours),
        duration(theirs),
        f"{theirs / ours:.2g}",
        " / ".join(str(steps(found.model)) for found in both),
        " / ".join(f"{found.error:.0e}" for found in both),
        " / ".join(f"{found.above:.0e}" for found in both),
        " / ".join(f"{memory(found.model, problem):.2g}" for found in both),
    )
    return Line(f"{problem.name} {problem.features} ({solver}, {aim})", theirs / ours, cells)


def verdict(lines: Sequence[Line]) -> str:
    """Where it wins and loses."""
    lost = [f"{each.name}: {each.ratio:.2g}" for each in lines if each.ratio * EVEN < 1]
    won = sum(each.ratio > EVEN for each in lines)
    even = len(lines) - won - len(lost)
    told = f"In {won} of {len(lines)} lines sce takes less time, in {even} the same (within {EVEN - 1:.0%})"
    return f"{told}, in {len(lost)} more" + (f" ({'; '.join(lost)})." if lost else ".")


def about(options: Sequence[str]) -> str:
    versions = {"sce": sce.__version__, "scikit-learn": sklearn.__version__, "NumPy": np.__version__}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine.processor()}, {machine.usable_cores()} cores; Python {platform.python_version()}, {told};"
        f" backend {sce.explain([[0.0, 1.0]]).chosen}; `{' '.join(('python bench/regression.py', *options))}`"
    )


if __name__ == "__main__":
    main()
