"""`sce.sklearn.SoftmaxRegression`: scikit-learn's own checks, and its LogisticRegression as the measure."""

from __future__ import annotations

import doctest
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import sce
from sce.linear.bound import BoundRows
from sce.linear.bound_pair import BoundPair
from sce.sklearn import SoftmaxRegression
from sce.sklearn.objective import Objective
from sce.sklearn.scaling import scaling
from sce.sklearn.solvers import stable_rate

Data = tuple[NDArray[Any], NDArray[Any]]
LOADERS = {"digits": load_digits, "iris": load_iris, "wine": load_wine, "cancer": load_breast_cancer}
EXACT = ("lbfgs", "newton-cg")


def data(name: str) -> Data:
    x, y = LOADERS[name](return_X_y=True)
    return x, y


def scaled(name: str) -> Data:
    x, y = data(name)
    return StandardScaler().fit_transform(x), y


def model(**options: Any) -> SoftmaxRegression:
    """On the reference, which compiles nothing; to the last digits, unless said otherwise."""
    return SoftmaxRegression(**({"backend": "reference", "tol": 1e-9, "max_iter": 1000} | options))


def objective(fitted: SoftmaxRegression, x: Any, y: Any, weight: Any = None) -> float:
    """F as the docstring has it, in NumPy alone."""
    z = x @ fitted.coef_.T + fitted.intercept_
    z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
    at = np.searchsorted(fitted.classes_, y)
    eps, u = fitted.label_smoothing, np.ones(len(y)) if weight is None else weight
    log_p = z - np.logaddexp.reduce(z, axis=1)[:, None]
    loss = -(1 - eps) * log_p[np.arange(len(y)), at] - eps * log_p.mean(axis=1)
    return float((u * loss).sum() / u.sum() + (fitted.coef_**2).sum() / (2 * fitted.C * u.sum()))


def largest_difference(a: SoftmaxRegression, b: Any) -> float:
    """Relative to the largest coefficient; the intercepts to theirs."""
    pairs = ((a.coef_, b.coef_), (a.intercept_, b.intercept_))
    return float(max(np.abs(p - q).max() / np.abs(q).max() for p, q in pairs))


# --- scikit-learn's checks

SHUFFLED = (
    "a row of weight 2 is in one mini-batch, a row that is there twice in two: equal in expectation only"
)


def expected(estimator: SoftmaxRegression) -> dict[str, str]:
    names = (
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    )
    return dict.fromkeys(names, SHUFFLED) if estimator.solver == "sgd" else {}


# The checks allow five steps, which is not always enough, and say nothing of it.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [SoftmaxRegression(solver=solver, backend="reference") for solver in (*EXACT, "sgd")],
    expected_failed_checks=expected,
)
def test_scikit_learn_checks(estimator: SoftmaxRegression, check: Any) -> None:
    check(estimator)


# --- agreement


@pytest.fixture(scope="module")
def theirs() -> Any:
    """LogisticRegression to the last digits, each fitted once."""
    known: dict[str, LogisticRegression] = {}

    def fit(name: str) -> LogisticRegression:
        if name not in known:
            x, y = data(name)
            known[name] = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=200).fit(x, y)
        return known[name]

    return fit


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("name", LOADERS)
def test_coefficients_are_those_of_logistic_regression(name: str, solver: str, theirs: Any) -> None:
    """On features as they come: of several magnitudes, correlated, some constant."""
    x, y = data(name)
    ours = SoftmaxRegression(solver=solver, tol=1e-8, max_iter=1000).fit(x, y)
    assert ours.converged_
    assert ours.coef_.shape == theirs(name).coef_.shape
    assert largest_difference(ours, theirs(name)) < 1e-4
    np.testing.assert_allclose(ours.predict_proba(x), theirs(name).predict_proba(x), atol=1e-4)
    np.testing.assert_array_equal(ours.predict(x), theirs(name).predict(x))


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize(
    "options",
    [
        {"C": 0.01},
        {"C": 1e4},
        {"fit_intercept": False},
        {"class_weight": "balanced"},
        {"class_weight": {0: 3.0, 2: 0.25}},
    ],
    ids=str,
)
def test_options_are_those_of_logistic_regression(options: dict[str, Any], solver: str) -> None:
    x, y = data("wine")
    x, y = x[30:], y[30:]  # classes of different sizes
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=500, **options).fit(x, y)
    ours = model(solver=solver, **options).fit(x, y)
    assert np.abs(ours.coef_ - theirs.coef_).max() < 1e-4 * np.abs(theirs.coef_).max()


def test_weights_in_the_balance() -> None:
    """Balanced is about what the rows weigh, not how many they are."""
    x, y = scaled("iris")
    weight = np.random.default_rng(0).uniform(0.1, 2, len(y))
    totals = np.bincount(y, weight)
    by_hand = {k: weight.sum() / (3 * totals[k]) for k in range(3)}
    balanced = model(class_weight="balanced").fit(x, y, weight)
    assert largest_difference(balanced, model(class_weight=by_hand).fit(x, y, weight)) < 1e-8


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("name", ["iris", "cancer"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_near_the_minimum_is_lower(name: str, smoothing: float, solver: str) -> None:
    """The objective is written down once more here: penalty, weights and smoothing included."""
    x, y = scaled(name)
    weight = np.random.default_rng(1).uniform(0, 2, len(y))
    fitted = model(solver=solver, C=0.3, label_smoothing=smoothing, tol=1e-10).fit(x, y, weight)
    shape = fitted.coef_.shape

    def moved(flat: NDArray[np.float64]) -> float:
        other = clone(fitted)
        other.classes_ = fitted.classes_
        other.coef_, other.intercept_ = flat[: -shape[0]].reshape(shape), flat[-shape[0] :]
        return objective(other, x, y, weight)

    at = np.concatenate([fitted.coef_.ravel(), fitted.intercept_])
    assert np.abs(approx_fprime(at, moved, 1e-6)).max() < 2e-6
    assert fitted.loss_curve_[-1] == pytest.approx(moved(at), rel=1e-12)


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
def test_the_loss_falls(solver: str) -> None:
    x, y = scaled("wine")
    fitted = model(solver=solver, tol=1e-4, random_state=0).fit(x, y)
    losses = fitted.loss_curve_
    assert fitted.converged_
    assert len(losses) == fitted.n_iter_ + (solver != "sgd")
    if solver == "sgd":
        assert losses[-1] < 0.25 * losses[0]
    else:
        assert losses[0] == pytest.approx(np.log(3))
        assert (np.diff(losses) < 0).all()


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "cancer"])
def test_mini_batches_come_near(name: str) -> None:
    x, y = scaled(name)
    best = objective(model().fit(x, y), x, y)
    fitted = model(solver="sgd", tol=1e-4, batch_size=32, random_state=0).fit(x, y)
    assert best < objective(fitted, x, y) < 1.05 * best


def test_mini_batches_are_unbiased() -> None:
    """The mean over all mini-batches is the whole, weights and penalty included."""
    x, y = scaled("iris")
    weight = np.random.default_rng(2).uniform(0.1, 3, len(y))
    whole = Objective(x, y, weight, 3, ridge=0.3, intercept=True, label_smoothing=0.1, backend="reference")
    w = np.random.default_rng(3).normal(size=whole.shape)
    parts = [whole.batch(w, rows) for rows in np.random.default_rng(4).permutation(150).reshape(15, 10)]
    loss, grad = whole(w)
    assert np.mean([part[0] for part in parts]) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(np.mean([part[1] for part in parts], axis=0), grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
def test_coordinates_make_the_first_hessian_the_identity(weighted: bool, intercept: bool) -> None:
    """At W = 0, where no class stands out, and with so few rows that all of them count."""
    x, y = data("iris")
    x, y = x[::5], y[::5]
    weight = np.random.default_rng(0).uniform(0.5, 2, len(y)) if weighted else None
    whole = Objective(
        x, y, weight, 3, ridge=0.1, intercept=intercept, label_smoothing=0.0, backend="reference"
    )
    w = np.zeros(whole.shape)
    easy = scaling(whole, w)
    v = np.random.default_rng(5).normal(size=whole.shape)
    v -= v.mean(axis=1, keepdims=True)  # all classes together have no curvature but the ridge's
    whole.around(w)
    np.testing.assert_allclose(easy.gradient(whole.curvature(easy.parameters(v))), v, atol=1e-7)
    np.testing.assert_allclose(easy.coordinates(easy.parameters(v)), v, atol=1e-9)


def test_curvature_bounds_the_steps() -> None:
    x, y = data("iris")
    whole = Objective(x, y, None, 3, ridge=0.1, intercept=True, label_smoothing=0.0, backend="reference")
    ones = np.hstack([x, np.ones((150, 1))])
    largest = np.linalg.eigvalsh(ones.T @ ones / 150)[-1] / 2 + 0.1
    worst = (ones**2).sum(axis=1).max() / 2 + 0.1
    assert 1 / stable_rate(whole, 150) == pytest.approx(largest, rel=0.02)  # of every third row
    assert 1 / stable_rate(whole, 1) == pytest.approx(worst)
    assert largest < 1 / stable_rate(whole, 20) < worst


def test_many_features_are_scaled_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data("wine")
    together = model(tol=1e-6).fit(x, y)
    monkeypatch.setattr("sce.sklearn.scaling._TOGETHER", 5)
    for given in (x, sparse.csr_array(x)):
        alone = model(tol=1e-6).fit(given, y)
        assert largest_difference(alone, together) < 1e-3
        assert alone.n_iter_ > together.n_iter_  # which is why they are scaled together where they can be


# --- data


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
@pytest.mark.parametrize("form", ["csr", "csc", "coo"])
def test_sparse_is_dense(form: str, solver: str) -> None:
    x, y = data("digits")
    x, y = x[:300] / 16, y[:300]
    options = {"solver": solver, "tol": 1e-5, "random_state": 0}
    dense, thin = model(**options).fit(x, y), model(**options)
    thin.fit(getattr(sparse, f"{form}_array")(x), y)
    assert largest_difference(thin, dense) < 1e-6
    np.testing.assert_allclose(thin.predict_proba(sparse.csr_matrix(x)), dense.predict_proba(x), atol=1e-7)


@pytest.mark.parametrize("solver", EXACT)
def test_a_weight_is_a_number_of_rows(solver: str) -> None:
    x, y = data("wine")
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    weighted = model(solver=solver).fit(x, y, weight)
    repeated = model(solver=solver).fit(np.repeat(x, weight, axis=0), np.repeat(y, weight))
    assert largest_difference(weighted, repeated) < 1e-6


def test_a_row_of_weight_0_is_not_there() -> None:
    """Nor is a class that has no other rows: its intercept would fall for ever."""
    x, y = scaled("iris")
    fitted = model().fit(x, y, (y != 1).astype(float))
    np.testing.assert_array_equal(fitted.classes_, [0, 2])
    assert fitted.coef_.shape == (1, 4)
    same = model().fit(x[y != 1], y[y != 1])
    np.testing.assert_array_equal(fitted.coef_, same.coef_)
    np.testing.assert_array_equal(model(class_weight={1: 0}).fit(x, y).coef_, same.coef_)


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
def test_float32_stays_float32(solver: str) -> None:
    x, y = scaled("digits")
    options = {"solver": solver, "tol": 1e-4, "random_state": 0}
    single, double = model(**options).fit(x.astype(np.float32), y), model(**options).fit(x, y)
    for found in (single.coef_, single.intercept_, single.predict_proba(x.astype(np.float32))):
        assert found.dtype == np.float32
    assert double.coef_.dtype == np.float64
    assert objective(single, x, y) == pytest.approx(objective(double, x, y), rel=1e-3)


def test_labels_of_any_kind() -> None:
    x, y = scaled("iris")
    numbered = model().fit(x, y)
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)
    named = model(class_weight={"setosa": 1.0}).fit(x, names[y])
    np.testing.assert_array_equal(named.coef_, numbered.coef_)
    np.testing.assert_array_equal(named.predict(x), names[numbered.predict(x)])
    assert named.score(x, names[y]) == numbered.score(x, y)


@pytest.mark.parametrize("solver", EXACT)
def test_features_that_say_nothing(solver: str) -> None:
    """Constant ones are penalised to 0, or are as good as the intercept; copies share."""
    x, y = scaled("iris")
    more = np.hstack([x, np.zeros((150, 1)), x[:, :1]])
    fitted = model(solver=solver).fit(more, y)
    np.testing.assert_allclose(fitted.coef_[:, 4], 0, atol=1e-12)
    np.testing.assert_allclose(fitted.coef_[:, 0], fitted.coef_[:, 5], rtol=1e-5)
    constant = model(solver=solver).fit(np.ones((150, 2)), y)
    np.testing.assert_allclose(constant.coef_, 0, atol=1e-7)
    np.testing.assert_allclose(constant.predict_proba(np.ones((1, 2))), 1 / 3, atol=1e-7)


def test_without_penalty() -> None:
    x, y = data("iris")
    x, y = x[50:], y[50:]  # the two classes that are not separable
    theirs = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10, max_iter=200).fit(x, y)
    for solver in EXACT:
        assert largest_difference(model(C=np.inf, solver=solver).fit(x, y), theirs) < 1e-4
        nothing = model(C=np.inf, solver=solver).fit(np.hstack([x, np.zeros((100, 1))]), y)
        assert nothing.coef_[0, 4] == 0


# --- use


def test_warm_start() -> None:
    x, y = data("wine")
    fitted = model(warm_start=True, tol=1e-6).fit(x, y)
    first = fitted.coef_
    fitted.fit(x, y)
    assert fitted.n_iter_ == 0
    np.testing.assert_allclose(fitted.coef_, first, rtol=1e-12)
    cold = model(C=1.5, tol=1e-6).fit(x, y)
    warm = fitted.set_params(C=1.5).fit(x, y)
    assert 0 < warm.n_iter_ < cold.n_iter_
    assert largest_difference(warm, cold) < 1e-4
    two = model(warm_start=True, tol=1e-6).fit(*data("cancer"))
    assert two.fit(*data("cancer")).n_iter_ == 0
    with pytest.raises(
        ValueError, match=r"classes array\(\[0, 1\]\), these\s+data have array\(\[0, 1, 2\]\)"
    ):
        two.fit(x, y)
    with pytest.raises(ValueError, match=r"shape \(3, 14\), these data\s+need \(3, 3\)"):
        model(warm_start=True).fit(x, y).fit(x[:, :2], y)


def test_partial_fit_is_fit_epoch_by_epoch() -> None:
    x, y = scaled("digits")
    options = {"solver": "sgd", "random_state": 0, "tol": 0.0, "batch_size": 50, "learning_rate": 0.01}
    with pytest.warns(ConvergenceWarning, match="sgd did not converge in 3 epochs"):
        whole = model(max_iter=3, **options).fit(x, y)
    parts, all_of_it = model(**options), {"total_weight": len(y)}
    parts.partial_fit(x, y, classes=np.arange(10), **all_of_it).partial_fit(x, y, **all_of_it)
    parts.partial_fit(x, y, classes=np.arange(10), **all_of_it)
    np.testing.assert_allclose(parts.coef_, whole.coef_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-12)
    assert (parts.n_iter_, parts.converged_) == (3, False)
    whole.set_params(max_iter=200, tol=1e-2).fit(x, y)
    steps = whole.n_iter_
    assert whole.converged_
    whole.partial_fit(x, y)
    assert (whole.n_iter_, len(whole.loss_curve_), whole.converged_) == (steps + 1, steps + 1, False)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("told", [False, True])
def test_many_small_batches_come_near_the_minimum(told: bool, strength: float, weighted: bool) -> None:
    """The penalty is that of all rows: those of a stream as they come, or those of many epochs, as told."""
    x, y = scaled("iris")
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.5, 1.5, len(y)) if weighted else np.ones(len(y))
    epochs = 40
    times = 1 if told else epochs  # a stream in which each row comes so often is that many rows
    whole = model(C=strength).fit(np.tile(x, (times, 1)), np.tile(y, times), np.tile(weight, times))
    best = objective(whole, np.tile(x, (times, 1)), np.tile(y, times), np.tile(weight, times))
    stream = model(C=strength, solver="sgd", random_state=0)
    for part in np.concatenate([np.split(rng.permutation(150), 10) for _ in range(epochs)]):
        total = {"total_weight": weight.sum()} if told else {}
        stream.partial_fit(x[part], y[part], np.arange(3), weight[part], **total)
    found = objective(stream, np.tile(x, (times, 1)), np.tile(y, times), np.tile(weight, times))
    assert best < found < 1.1 * best
    assert stream.n_iter_ == len(stream.loss_curve_) == 10 * epochs


def test_partial_fit_of_what_comes() -> None:
    """Classes that are not in the first rows, and single rows."""
    x, y = scaled("iris")
    stream = model(solver="sgd", random_state=0)
    stream.partial_fit(x[:100], y[:100], classes=[0, 1, 2])
    assert not (stream.predict(x) == 2).any()
    for row in np.random.default_rng(0).permutation(np.tile(np.arange(150), 4)):
        stream.partial_fit(x[row : row + 1], y[row : row + 1])
    assert stream.score(x, y) > 0.9
    assert not hasattr(model(), "partial_fit")


def test_partial_fit_of_nothing() -> None:
    x, y = scaled("iris")
    stream = model(solver="sgd", random_state=0).partial_fit(x, y, [0, 1, 2], np.zeros(150))
    assert (stream.n_iter_, stream.converged_, len(stream.loss_curve_)) == (0, False, 0)
    assert not stream.coef_.any()
    np.testing.assert_allclose(stream.predict_proba(x), 1 / 3)
    other = model(solver="sgd", random_state=0)
    for each in (stream, other):
        each.partial_fit(x, y, [0, 1, 2])
    stream.temperature_ = 2.0
    before = stream.coef_.copy()
    stream.partial_fit(x, y, None, np.zeros(150))
    np.testing.assert_array_equal(stream.coef_, before)
    assert (stream.n_iter_, len(stream.loss_curve_), stream.temperature_) == (1, 1, 2.0)
    for each in (stream, other):
        each.partial_fit(x, y)
    np.testing.assert_array_equal(stream.coef_, other.coef_)


def test_partial_fit_tells_its_progress(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = scaled("iris")
    stream = model(solver="sgd", verbose=1).partial_fit(x, y, [0, 1, 2]).partial_fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{n + 1}: loss {loss:.8g}" for n, loss in enumerate(stream.loss_curve_)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, y: m.partial_fit(x, y), "classes must be passed on the first call to partial_fit"),
        (lambda m, x, y: m.partial_fit(x, y, classes=[0, 1]), r"y holds .*2.*, which is none of the classes"),
        (
            lambda m, x, y: m.partial_fit(x, y, classes=[0, 1, 2]).partial_fit(x, y, classes=[0, 1]),
            "is not what the first call said",
        ),
        (
            lambda m, x, y: m.set_params(class_weight="balanced").partial_fit(x, y, classes=[0, 1, 2]),
            "needs all rows at once",
        ),
        (
            lambda m, x, y: m.partial_fit(x, y, classes=[0, 1, 2], total_weight=0),
            r"total_weight must be a number in \(0, inf\), got 0",
        ),
        (lambda m, x, y: m.set_params(learning_rate=1e200).fit(1e150 * x, y), "Lower learning_rate"),
        (
            lambda m, x, y: m.set_params(learning_rate=1e200).partial_fit(1e150 * x, y, classes=[0, 1, 2]),
            "Lower learning_rate",
        ),
    ],
)
def test_bad_mini_batches(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(model(solver="sgd"), *scaled("iris"))


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
def test_the_same_every_time(solver: str) -> None:
    x, y = scaled("iris")
    first, second = (model(solver=solver, tol=1e-4, random_state=7).fit(x, y) for _ in range(2))
    np.testing.assert_array_equal(first.coef_, second.coef_)
    assert pickle.loads(pickle.dumps(first)).predict_proba(x).tobytes() == first.predict_proba(x).tobytes()
    again = clone(first)
    assert not hasattr(again, "coef_")
    np.testing.assert_array_equal(again.fit(x, y).coef_, first.coef_)


def test_in_a_pipeline_and_a_grid() -> None:
    x, y = data("wine")
    line = make_pipeline(StandardScaler(), model(tol=1e-4))
    grid = GridSearchCV(line, {"softmaxregression__C": [1e-3, 1.0]}, cv=3, scoring="neg_log_loss").fit(x, y)
    assert grid.best_params_ == {"softmaxregression__C": 1.0}
    assert grid.best_estimator_.score(x, y) > 0.98


@pytest.mark.parametrize("name", ["iris", "cancer"])
def test_probabilities(name: str) -> None:
    x, y = scaled(name)
    fitted = model(C=1e3, tol=1e-6).fit(x, y)
    p, log_p = fitted.predict_proba(x), fitted.predict_log_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-12)
    np.testing.assert_array_equal(fitted.classes_[p.argmax(axis=1)], fitted.predict(x))
    far = fitted.predict_log_proba(1e3 * x)
    assert np.isfinite(far).all()  # where the probabilities themselves are 0 and 1
    assert (fitted.predict_proba(1e3 * x) == 0).any()


def test_backends(backend: str) -> None:
    x, y = scaled("iris")
    fitted = model(backend=backend, tol=1e-7).fit(x, y)
    assert largest_difference(fitted, model(tol=1e-7).fit(x, y)) < 1e-4
    assert fitted.score(x, y) > 0.95


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = model(verbose=1, tol=1e-4).fit(*scaled("iris"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(fitted.loss_curve_)
    assert lines[0].startswith("0: loss 1.0986123, largest entry of its gradient 0.")
    assert f"loss {fitted.loss_curve_[-1]:.8g}" in lines[-1]
    model().fit(*scaled("iris"))
    assert capsys.readouterr().out == ""


# --- calibration


@pytest.mark.parametrize("name", ["digits", "cancer"])
def test_calibration(name: str) -> None:
    """An overconfident model becomes less so: the held-out loss falls to where its slope is 0."""
    x, y = scaled(name)
    x, held_out, y, labels = train_test_split(x, y, test_size=0.5, random_state=0, stratify=y)
    fitted = model(C=1e3, tol=1e-5).fit(x, y)
    said, logits = fitted.predict(held_out), fitted.decision_function(held_out)
    before = log_loss(labels, fitted.predict_proba(held_out))
    assert fitted.fit_temperature(held_out, labels) is fitted
    best = log_loss(labels, fitted.predict_proba(held_out))
    assert best < before - 0.01
    assert fitted.temperature_ > 1
    np.testing.assert_array_equal(fitted.predict(held_out), said)
    np.testing.assert_array_equal(fitted.decision_function(held_out), logits)
    found = fitted.temperature_
    for factor in (0.99, 1.01):
        fitted.temperature_ = factor * found
        assert log_loss(labels, fitted.predict_proba(held_out)) > best
    assert clone(fitted).fit(x, y).temperature_ == 1
    assert fitted.fit(x, y).temperature_ == 1


def test_calibration_undoes_a_temperature() -> None:
    """Labels drawn from softmax(z / 3): nearly that is found, and weights count as rows do."""
    rng = np.random.default_rng(0)
    fitted = model().fit(*scaled("iris"))
    x = rng.normal(size=(4000, 4))
    p = sce.softmax(fitted.decision_function(x), temperature=3.0)
    y = (p.cumsum(axis=1) < rng.uniform(size=(4000, 1))).sum(axis=1)
    assert fitted.fit_temperature(x, y).temperature_ == pytest.approx(3, rel=0.1)
    weight = rng.integers(0, 3, len(y))
    weighted = fitted.fit_temperature(x, y, weight).temperature_
    repeated = fitted.fit_temperature(np.repeat(x, weight, axis=0), np.repeat(y, weight)).temperature_
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_calibration_without_an_answer() -> None:
    x, y = scaled("iris")
    fitted = model().fit(x, y)
    flat = model().fit(x, y)
    flat.coef_, flat.intercept_ = np.zeros((3, 4)), np.zeros(3)
    worst = fitted.decision_function(x).argmin(axis=1)
    right, chance = "their labels are all predicted right", "no better than chance"
    for which, labels, why in (
        (fitted, fitted.predict(x), right),
        (fitted, worst, chance),
        (flat, y, chance),
    ):
        which.temperature_ = 2.0
        words = f"no temperature fits these rows best, so it stays 1: .*{why}"
        with pytest.warns(ConvergenceWarning, match=words):
            which.fit_temperature(x, labels)
        assert which.temperature_ == 1
    with pytest.raises(ValueError, match="which is none of the classes"):
        fitted.fit_temperature(x, y + 1)
    with pytest.raises(NotFittedError):
        model().fit_temperature(x, y)


# --- bad input


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"C": 0}, ValueError, r"C must be a number in \(0, inf\], got 0"),
        ({"C": float("nan")}, ValueError, r"C must be a number in \(0, inf\], got nan"),
        ({"C": "1"}, TypeError, r"C must be a number in \(0, inf\], got '1'"),
        ({"C": True}, TypeError, r"C must be a number in \(0, inf\], got True"),
        ({"solver": "saga"}, ValueError, "solver must be one of 'lbfgs', 'newton-cg', 'sgd', got 'saga'"),
        ({"tol": -1e-4}, ValueError, r"tol must be a number in \[0, inf\), got -0.0001"),
        ({"max_iter": 0}, ValueError, "max_iter must be an integer of at least 1, got 0"),
        ({"max_iter": 1.5}, TypeError, "max_iter must be an integer of at least 1, got 1.5"),
        ({"max_iter": True}, TypeError, "max_iter must be an integer of at least 1, got True"),
        ({"label_smoothing": 1.1}, ValueError, r"label_smoothing must be a number in \[0, 1\], got 1.1"),
        ({"momentum": 1.0}, ValueError, r"momentum must be a number in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, ValueError, 'batch_size must be "auto" or an integer of at least 1, got 0'),
        (
            {"batch_size": "all"},
            TypeError,
            'batch_size must be "auto" or an integer of at least 1, got .all.',
        ),
        (
            {"learning_rate": 0.0},
            ValueError,
            r'learning_rate must be "auto" or a number in \(0, inf\), got 0.0',
        ),
        (
            {"learning_rate": "fast"},
            TypeError,
            r'learning_rate must be "auto" or a number in \(0, inf\), got .fast.',
        ),
        (
            {"class_weight": "even"},
            ValueError,
            r'class_weight must be None, "balanced" or a dict .*, got .even.',
        ),
        ({"class_weight": [1.0, 2.0, 1.0]}, TypeError, r"a dict of label: weight, got \[1.0, 2.0, 1.0\]"),
        ({"class_weight": {0: "1"}}, TypeError, r"class_weight\[0\] must be a number in \[0, inf\), got '1'"),
        ({"class_weight": {1: np.nan}}, ValueError, r"class_weight\[1\] must be a number in .*, got nan"),
        (
            {"class_weight": {7: 1.0}},
            ValueError,
            "class_weight names 7, which is none of .*leave it out",
        ),
        (
            {"class_weight": {0: -1.0}},
            ValueError,
            r"class_weight\[0\] must be a number in \[0, inf\), got -1.0",
        ),
        ({"fit_intercept": 1}, TypeError, "fit_intercept must be True or False, got 1"),
        ({"warm_start": None}, TypeError, "warm_start must be True or False, got None"),
        ({"verbose": -1}, ValueError, "verbose must be an integer of at least 0, got -1"),
        ({"backend": "abacus"}, sce.BackendError, "abacus"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_parameters(options: dict[str, Any], error: type[Exception], words: str) -> None:
    fitted = model(**options)
    with pytest.raises(error, match=words):
        fitted.fit(*data("iris"))
    assert not hasattr(fitted, "coef_")


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y, u: (x, np.zeros_like(y), u), "holds only one class, .*0.*at least 2 classes"),
        (lambda x, y, u: (x, y, np.where(y == 2, u, 0)), "holds only one class, .*2"),
        (lambda x, y, u: (x[:1], y[:1], u[:1]), "one class"),
        (lambda x, y, u: (x, y, 0 * u), "all rows have weight zero: there is nothing to fit"),
        (lambda x, y, u: (x, y, u - 1.5), r"sample_weight\[0\] is -0.5: weights must not be negative"),
        (lambda x, y, u: (x, y, np.where(y == 1, np.nan, u)), "NaN"),
        (lambda x, y, u: (x, y, u[:-1]), "sample_weight.shape"),
        (lambda x, y, u: (np.where(x > 5, np.nan, x), y, u), "NaN"),
        (lambda x, y, u: (np.where(x > 5, np.inf, x), y, u), "infinity"),
        (lambda x, y, u: (x[:, :0], y, u), r"0 feature\(s\)"),
        (lambda x, y, u: (x[:0], y[:0], u[:0]), r"0 sample\(s\)"),
        (lambda x, y, u: (x, y[:-1], u), "inconsistent numbers"),
        (lambda x, y, u: (x, y + 0.5, u), "Unknown label type"),
    ],
)
def test_bad_data(change: Any, words: str, solver: str) -> None:
    x, y = data("iris")
    x, y, weight = change(x, y, np.ones(len(y)))
    with pytest.raises(ValueError, match=words):
        model(solver=solver).fit(x, y, weight)


@pytest.mark.parametrize("solver", EXACT)
def test_data_that_overflow(solver: str) -> None:
    x, y = data("iris")
    x[:, 2] *= 1e200
    with pytest.raises(ValueError, match="the squares of X overflow, first in column 2: scale the features"):
        model(solver=solver).fit(x, y)


@pytest.mark.parametrize("solver", [*EXACT, "sgd"])
def test_what_does_not_converge_says_so(solver: str) -> None:
    with pytest.warns(ConvergenceWarning, match=f"{solver} did not converge in 2 .*Raise max_iter or tol"):
        fitted = model(solver=solver, max_iter=2).fit(*data("wine"))
    assert (fitted.n_iter_, fitted.converged_) == (2, False)


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tolerance_of_nothing_ends(solver: str, dtype: Any) -> None:
    """Rounding is the end then: no endless line search, and close to the minimum."""
    x, y = scaled("wine")
    best = model().fit(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = model(solver=solver, tol=0.0, max_iter=200).fit(x.astype(dtype), y)
    assert largest_difference(fitted, best) < (1e-3 if dtype == np.float32 else 1e-6)


def test_mini_batches_that_diverge() -> None:
    """Nothing was lower than the start: that is kept, and not called a minimum."""
    x, y = data("iris")
    with pytest.warns(ConvergenceWarning, match="sgd diverged: .* Lower learning_rate, or scale"):
        fitted = model(solver="sgd", learning_rate=1e3, tol=1e-4, random_state=0).fit(x, y)
    assert not fitted.converged_
    assert objective(fitted, x, y) == pytest.approx(np.log(3))


def test_a_first_partial_fit_that_fails_leaves_nothing() -> None:
    x, y = data("iris")
    fitted = model(solver="sgd", learning_rate=1e300)
    with pytest.raises(ValueError, match="too large"):
        fitted.partial_fit(x * 1e200, y, classes=[0, 1, 2, 3])
    with pytest.raises(NotFittedError):
        fitted.predict(x)
    assert fitted.set_params(learning_rate="auto").partial_fit(x, y, classes=[0, 1, 2]).n_iter_ == 1


def test_mini_batches_return_the_best_epoch() -> None:
    """Of steps that never shrink, the last place is one of many in a cloud."""
    x, y = scaled("iris")
    options = {"solver": "sgd", "learning_rate": 2.0, "tol": 0.0, "random_state": 0}
    found = []
    for epochs in range(1, 5):  # as many as patience allows
        with pytest.warns(ConvergenceWarning):
            found.append(objective(model(max_iter=epochs, **options).fit(x, y), x, y))
    assert max(found) < np.log(3)


@pytest.mark.parametrize("name", LOADERS)
def test_idle_mini_batches_far_from_the_minimum(name: str) -> None:
    """Features as they come: the epochs are idle, and the objective is far above what it could be."""
    x, y = data(name)
    least = objective(model(tol=1e-6).fit(x, y), x, y)
    words = "its loss stopped falling .* the minimum is estimated to be .* lower. Scale the features"
    with pytest.warns(ConvergenceWarning, match=words) as said:
        fitted = model(solver="sgd", tol=1e-4, random_state=0).fit(x, y)
    assert not fitted.converged_
    gap = objective(fitted, x, y) - least
    told = float(str(said[0].message).split("estimated to be ")[1].split()[0])
    assert gap / 3 < told < 3 * gap
    assert model(solver="sgd", tol=1e-4, random_state=0).fit(*scaled(name)).converged_


def far_from_zero(dtype: Any) -> Data:
    rng = np.random.default_rng(0)
    x = 1.7e9 + 100 * rng.normal(size=(200, 1))
    return x.astype(dtype), (x[:, 0] + 50 * rng.normal(size=200) > 1.7e9).astype(int)


@pytest.mark.parametrize("solver", EXACT)
def test_rounding_is_no_minimum(solver: str) -> None:
    """Differences in a feature of 1.7e9 are lost in float32: both solvers stop, and both say so."""
    x, y = far_from_zero(np.float32)
    words = "rounding hides what F may still fall.* Centre the features .column 0 of X .* in float64"
    with pytest.warns(ConvergenceWarning, match=words) as said:
        fitted = model(solver=solver, tol=1e-4).fit(x, y)
    assert "max_iter" not in str(said[0].message)
    assert not fitted.converged_
    assert model(solver=solver, tol=1e-4).fit(x - x.mean(dtype=np.float64), y).converged_
    assert model(solver=solver, tol=1e-4).fit(*far_from_zero(np.float64)).converged_


@pytest.mark.parametrize("solver", EXACT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_minimum_as_far_as_rounding_allows(solver: str, dtype: Any) -> None:
    """A tolerance below it is no fault of the fit's."""
    x, y = scaled("iris")
    fitted = model(solver=solver, tol=1e-20).fit(x.astype(dtype), y)
    assert fitted.converged_
    assert objective(fitted, x, y) == pytest.approx(objective(model().fit(x, y), x, y), rel=1e-5)


def test_class_weights_of_a_fold() -> None:
    """Labels that these rows lack are ignored, as in LogisticRegression."""
    x, y = scaled("iris")
    x, y = x[:100], y[:100]
    with_more = model(class_weight={0: 2.0, 1: 1.0, 2: 5.0}).fit(x, y)
    np.testing.assert_array_equal(with_more.coef_, model(class_weight={0: 2.0}).fit(x, y).coef_)


def test_intercepts_that_come_and_go() -> None:
    x, y = scaled("iris")
    for first in (True, False):
        stream = model(solver="sgd", fit_intercept=first).partial_fit(x, y, [0, 1, 2])
        before = stream.coef_.copy()
        with pytest.raises(ValueError, match=f"fit_intercept={not first} is not what it was"):
            stream.set_params(fit_intercept=not first).partial_fit(x, y)
        np.testing.assert_array_equal(stream.coef_, before)
        with pytest.raises(ValueError, match="X has 3 features, but SoftmaxRegression is expecting 4"):
            stream.set_params(fit_intercept=first).partial_fit(x[:, :3], y)


def test_partial_fit_of_another_solver() -> None:
    with pytest.raises(AttributeError) as said:
        _ = model(solver="newton-cg").partial_fit
    assert "partial_fit needs solver='sgd': the solver is 'newton-cg'." in str(said.value.__cause__)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"C": np.float64(0)}, "got 0.0."),
        ({"max_iter": np.int64(0)}, "got 0."),
        ({"tol": np.bool_(True)}, "got True."),
        (
            {"class_weight": {np.int64(1): np.float64(-1)}},
            "class_weight[1] must be a number in [0, inf), got -1.0.",
        ),
    ],
)
def test_messages_have_plain_numbers(options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError)) as said:
        model(**options).fit(*data("iris"))
    assert str(said.value).endswith(words)
    for labels in (np.zeros(150, int), np.full(150, 2)):
        with pytest.raises(ValueError, match=f"only one class, {labels[0]}, in"):
            model().fit(data("iris")[0], labels)


def test_verbose_is_a_switch_too(capsys: pytest.CaptureFixture[str]) -> None:
    model(verbose=True, tol=1e-2).fit(*scaled("iris"))
    assert capsys.readouterr().out.startswith("0: loss 1.0986123")
    model(verbose=np.bool_(False), tol=1e-2).fit(*scaled("iris"))
    assert capsys.readouterr().out == ""


def test_separable_rows_without_a_penalty() -> None:
    words = "Without a penalty .C=inf., separable rows have no finite minimum"
    with pytest.warns(ConvergenceWarning, match=words):
        model(C=np.inf, max_iter=2).fit(*scaled("wine"))


def test_the_page() -> None:
    page = Path(__file__).parents[1] / "docs" / "regression.md"
    failed, tried = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert tried > 5
    assert failed == 0


def test_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None\nimport sce\nimport sce.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: sce.sklearn needs scikit-learn (")
    assert last.endswith("). Try: pip install 'sce[sklearn]'")


@pytest.mark.parametrize("seed", range(5))
def test_mini_batches_that_gain_nothing_are_not_converged(seed: int) -> None:
    """Features far from 0: the labels' own loss is near log 2, and what is left of it is most of the way."""
    rng = np.random.default_rng(seed)
    x = np.c_[rng.normal(size=400), rng.normal(size=400) * 50 + 200]
    y = (x[:, 0] * 0.6 + rng.logistic(size=400) > 0).astype(int)
    fitted = model(solver="sgd", random_state=seed, tol=1e-4)
    with pytest.warns(ConvergenceWarning, match="sgd d"):
        fitted.fit(x, y)
    assert not fitted.converged_


@pytest.mark.parametrize("seed", range(5))
def test_mini_batches_find_a_weak_signal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 3))
    y = (x[:, 0] * 0.3 + rng.logistic(size=300) > 0).astype(int)
    fitted = model(solver="sgd", random_state=seed, tol=1e-4).fit(x, y)  # without a warning
    exact = model().fit(x, y)
    gained = np.log(2) - objective(exact, x, y)
    assert np.log(2) - objective(fitted, x, y) > 0.9 * gained


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "sgd"])
def test_features_whose_squares_overflow(solver: str) -> None:
    x = np.array([[1.0, 1e200], [2.0, 1.0], [3.0, 0.0]])
    with pytest.raises(ValueError, match="squares of X overflow, first in column 1: scale the features"):
        model(solver=solver).fit(x, [0, 1, 0])
    with pytest.raises(ValueError, match="squares of X overflow, first in column 1"):
        model(solver=solver).fit(sparse.csr_array(x), [0, 1, 0])


def test_weights_whose_sum_overflows() -> None:
    x, y, weight = [[1.0], [2.0]], [0, 1], [1e308, 1e308]
    with pytest.raises(ValueError, match="the weights add up to more than float64 holds"):
        model().fit(x, y, weight)
    with pytest.raises(ValueError, match="the weights add up to more than float64 holds"):
        model().fit(x, y).fit_temperature(x, y, weight)


def test_partial_fit_of_one_class() -> None:
    with pytest.raises(ValueError, match="classes holds 1 label: name all that there will be, at least 2"):
        model(solver="sgd").partial_fit([[1.0], [2.0]], [0, 0], classes=[0])


@pytest.mark.parametrize("index", [-1, 4, 50_000_000])
def test_a_damaged_sparse_matrix(index: int) -> None:
    x = sparse.csr_matrix(np.ones((7, 4)))
    fitted = model().fit(x, np.arange(7) % 3)
    x.indices[5] = index
    for call in (lambda: model().fit(x, np.arange(7) % 3), lambda: fitted.predict(x)):
        with pytest.raises(ValueError, match=rf"X.indices\[5\] is {index}, outside \[0, 4\)"):
            call()


def test_two_classes_are_bound_as_a_pair_where_the_backend_takes_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = scaled("cancer")
    pair = model().fit(x, y)
    asked = {"ridge": 1.0, "intercept": True, "label_smoothing": 0.0, "backend": "reference"}
    assert isinstance(Objective(x, y, None, 2, **asked)._bound, BoundPair)
    monkeypatch.setattr(sce.registry.load("reference"), "takes_binary", False)
    assert isinstance(Objective(x, y, None, 2, **asked)._bound, BoundRows)
    np.testing.assert_allclose(model().fit(x, y).coef_, pair.coef_, rtol=1e-6, atol=1e-9)
