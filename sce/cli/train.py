"""`sce train`: a softmax regression on data that come with scikit-learn, trained, calibrated, and judged."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from sce import cross_entropy, registry
from sce.backend import Array, BackendError
from sce.bench.clock import Rounds, alternate
from sce.information import Reliability, reliability

from .files import UsageError
from .tables import Note, duration, percent, print_line, print_notes, say, table

DATA = ("digits", "iris", "wine", "breast_cancer")
_HELD_OUT = 0.2  # of the rows to calibrate on, and as many to test on
_BINS = 10
_EXACT = {"solver": "newton-cg", "tol": 1e-8, "max_iter": 1000}
_SAME = 1e-3  # a difference between coefficients, up to which they agree
_ROUNDS = Rounds(least=5, enough=0.1, patience=2.0)


class Split(NamedTuple):
    """Features (N, D) and labels (N,) of one part of the data."""

    x: Array
    y: Array


class Data(NamedTuple):
    """Real data in three parts, each with all classes in the same shares; features as in the first part."""

    name: str
    classes: tuple[str, ...]
    train: Split
    calibrate: Split
    test: Split


class Judgement(NamedTuple):
    """How good predictions are on some rows."""

    rows: int
    loss: float
    accuracy: float
    reliability: Reliability


class Training(NamedTuple):
    data: Data
    model: Any  # the fitted SoftmaxRegression
    judged: dict[str, Judgement]  # by what: "train", "test", and "test, calibrated" if it is
    seconds: float
    rival: Rival | None
    backend: str
    objective: float  # that of the fitted coefficients, over the rows to train on
    unconverged: str  # why the fit did not converge; empty if it did
    uncalibrated: str  # why no temperature suits best; empty if one does


class Rival(NamedTuple):
    """scikit-learn's LogisticRegression on the same rows, with the same solver, C and tolerance."""

    seconds: float
    steps: int
    converged: bool
    objective: float  # ours, of its coefficients
    difference: float  # of the coefficients where both are fitted to `_EXACT`, largest over largest


def load(name: str, seed: int) -> Data:
    """One of DATA, 60 : 20 : 20, each feature with mean 0 and variance 1 over the rows to train on."""
    if name not in DATA:
        raise UsageError(f"DATA: there is no {name!r}. Choose one of {', '.join(DATA)}.")
    try:
        import sklearn.datasets
        from sklearn.model_selection import train_test_split
        from sklearn.preprocessing import StandardScaler
    except ImportError as exc:
        raise UsageError(f"training needs scikit-learn ({exc}). Try: pip install 'sce[cli]'.") from exc
    if not 0 <= seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2**32), got {seed}.")
    found = getattr(sklearn.datasets, f"load_{name}")()
    x, y, classes = found.data, found.target, tuple(map(str, found.target_names))
    options = {"random_state": seed}
    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=_HELD_OUT, stratify=y, **options)
    share = _HELD_OUT / (1 - _HELD_OUT)
    x, cal_x, y, cal_y = train_test_split(rest_x, rest_y, test_size=share, stratify=rest_y, **options)
    scale = StandardScaler().fit(x).transform
    return Data(name, classes, Split(scale(x), y), Split(scale(cal_x), cal_y), Split(scale(test_x), test_y))


def missing(named: Sequence[str]) -> dict[str, str]:
    """Why the named backend does not run here."""
    reasons = {name: registry.missing(name) for name in named}
    return {name: why for name, why in reasons.items() if why is not None}


def train(data: Data, options: dict[str, Any], log: Console) -> Training:
    """Fit, in turns with scikit-learn's estimator; then calibrate and judge."""
    from sce import explain
    from sce.sklearn import SoftmaxRegression

    model = SoftmaxRegression(**options)
    rival = _rival(options)
    contestants = {"sce": model.fit} | ({} if rival is None else {"scikit-learn": rival.fit})
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        try:
            seconds = _times(contestants, data.train, log)
        except (ValueError, BackendError) as exc:  # a parameter out of range, or SCE_BACKEND
            raise UsageError(f"{exc}") from exc
        unconverged = _about(model, complaints)
        judged = {"train": judge(model, data.train), "test": judge(model, data.test)}
        beside = None if rival is None else _beside(model, rival, seconds["scikit-learn"], data.train)
    reached = objective(model, data.train)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        model.fit_temperature(*data.calibrate)
    uncalibrated = "".join(str(complaint.message) for complaint in complaints)
    if not uncalibrated:
        judged["test, calibrated"] = judge(model, data.test)
    ran = str(explain(model.decision_function(data.test.x), backend=options["backend"]).chosen)
    seconds_each = seconds["sce"]
    return Training(data, model, judged, seconds_each, beside, ran, reached, unconverged, uncalibrated)


def _about(model: Any, complaints: Sequence[warnings.WarningMessage]) -> str:
    """What our estimator, not the other, said of its convergence."""
    ours = (f"{model.solver} did not converge", f"{model.solver} diverged")
    said = [str(complaint.message) for complaint in complaints]
    return "" if model.converged_ else next(text for text in said if text.startswith(ours))


def _rival(options: dict[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression

    if _unrivalled(options):
        return None
    shared = ("C", "solver", "tol", "max_iter")
    return LogisticRegression(**{name: options[name] for name in shared})


def _unrivalled(options: dict[str, Any]) -> str:
    """Which of the options scikit-learn's estimator has not, if any."""
    lacks = [("solver sgd", options["solver"] == "sgd"), ("label smoothing", options["label_smoothing"] > 0)]
    return " and no ".join(what for what, asked in lacks if asked)


def _beside(model: Any, rival: Any, seconds: float, rows: Split) -> Rival:
    """At a tolerance meant for use both stop short of the minimum, each on its own side of it."""
    from sklearn.base import clone

    ours, theirs = (clone(each).set_params(**_EXACT).fit(*rows) for each in (model, rival))
    return Rival(
        seconds,
        int(rival.n_iter_.max()),
        int(rival.n_iter_.max()) < rival.max_iter,
        objective(rival, rows),
        float(np.abs(ours.coef_ - theirs.coef_).max() / np.abs(theirs.coef_).max()),
    )


def objective(fitted: Any, rows: Split) -> float:
    """What both minimise, before any temperature: the mean loss and the penalty."""
    log_p = fitted.predict_log_proba(rows.x)
    at = np.searchsorted(fitted.classes_, rows.y)
    smoothing = getattr(fitted, "label_smoothing", 0.0)  # LogisticRegression has none
    loss = cross_entropy(log_p, at, label_smoothing=smoothing, backend="reference")
    return float(loss + (fitted.coef_**2).sum() / (2 * fitted.C * len(rows.y)))


def _times(fits: dict[str, Callable[..., Any]], rows: Split, log: Console) -> dict[str, float]:
    """The median time of each fit, in turns; the first, which compiles or loads kernels, does not count."""
    calls = {name: partial(fit, *rows) for name, fit in fits.items()}
    for name, call in calls.items():
        say(log, f"{name}: a first fit")
        call()
    say(log, f"{' and '.join(calls)}: timed")
    return {name: times.median for name, times in alternate(calls, _ROUNDS).items()}


def judge(model: Any, rows: Split) -> Judgement:
    log_p = model.predict_log_proba(rows.x)
    at = np.searchsorted(model.classes_, rows.y)
    right = model.predict(rows.x) == rows.y
    return Judgement(
        len(rows.y),
        float(cross_entropy(log_p, at, backend=model.backend)),  # log-probabilities are logits
        float(right.mean()),
        reliability(log_p, at, bins=_BINS, backend=model.backend),
    )


def show(result: Training, out: Console) -> None:
    data, model = result.data, result.model
    print_line(
        out,
        f"{data.name}: {data.train.x.shape[1]} features, {len(model.classes_)} classes; {len(data.train.y)}"
        f" rows to train, {len(data.calibrate.y)} to calibrate, {len(data.test.y)} to test",
    )
    out.print()
    lines = table("", "rows", "loss", "accuracy", "calibration error")
    for name, judged in result.judged.items():
        error = f"{judged.reliability.error:.3f}"
        lines.add_row(name, f"{judged.rows}", f"{judged.loss:.4f}", percent(judged.accuracy), error)
    out.print(lines)
    print_notes(_notes(result), out)


def _notes(result: Training) -> Iterator[Note]:
    model, rival = result.model, result.rival
    unit = "epochs" if model.solver == "sgd" else "steps"
    yield (
        f"{model.solver}: {duration(result.seconds)}, {model.n_iter_} {unit}, on the backend"
        f" {result.backend}; the training objective is {result.objective:.6g}",
        None,
    )
    if rival is not None:
        yield (
            f"scikit-learn's LogisticRegression: {duration(rival.seconds)}, {rival.steps} steps, to"
            f" {rival.objective:.6g}; {_agreement(result, rival)}",
            None,
        )
    else:
        yield (
            "not compared with scikit-learn: its LogisticRegression has no"
            f" {_unrivalled(model.get_params())}",
            None,
        )
    if not result.uncalibrated:
        yield f"temperature {model.temperature_:.3g}, fitted on the rows to calibrate", None
        before, after = result.judged["test"], result.judged["test, calibrated"]
        if after.loss > before.loss:
            yield (
                f"it makes the test's loss worse, {after.loss:.4f} instead of {before.loss:.4f}: that is what"
                f" {len(result.data.calibrate.y)} rows to calibrate on are worth",
                "yellow",
            )
    else:
        yield f"not calibrated: {result.uncalibrated.rstrip('.')}", "yellow"
    if "Raise max_iter" in result.unconverged:
        yield f"not converged: raise --max-iter or --tol ({model.tol:g})", "red"
    elif result.unconverged:
        yield result.unconverged.rstrip("."), "red"
    if rival is not None and not rival.converged:
        yield "LogisticRegression has not converged", "yellow"


def _agreement(result: Training, rival: Rival) -> str:
    """Where both go on to a small gradient, the coefficients are the same, if the minimum is one place."""
    both = f"both fitted to a gradient of {_EXACT['tol']:g}, coefficients"
    if rival.difference <= _SAME:
        return f"{both} agree to {rival.difference:.1e} of the largest"
    why = (
        "without a penalty there is no finite minimum where a class can be separated from the others"
        if np.isinf(result.model.C)
        else "the objective is flat around its minimum"
    )
    return f"{both} differ by {rival.difference:.1e} of the largest: {why}"


def as_json(result: Training) -> dict[str, Any]:
    model = result.model
    parts = ("train", "calibrate", "test")
    return {
        "data": result.data.name,
        "rows": {part: len(getattr(result.data, part).y) for part in parts},
        "options": model.get_params(),
        "backend": result.backend,
        "seconds": result.seconds,
        "steps": model.n_iter_,
        "converged": model.converged_,
        "objective": result.objective,
        "loss_curve": model.loss_curve_.tolist(),
        "temperature": model.temperature_,
        "calibrated": not result.uncalibrated,
        "classes": list(result.data.classes),
        "judged": {
            name: {
                "rows": judged.rows,
                "loss": judged.loss,
                "accuracy": judged.accuracy,
                "calibration_error": judged.reliability.error,
            }
            for name, judged in result.judged.items()
        },
        "confusion": confusion(result).tolist(),
        "logistic_regression": None if result.rival is None else result.rival._asdict(),
    }


def confusion(result: Training) -> NDArray[np.int64]:
    """(C, C): rows of the test with this label (down) and that prediction (across)."""
    from sklearn.metrics import confusion_matrix

    test = result.data.test
    found: NDArray[np.int64] = confusion_matrix(test.y, result.model.predict(test.x))
    return found


def draw(result: Training, directory: Path) -> Sequence[Path]:
    from . import training_plots

    return training_plots.draw(result, directory)
