"""`sce train` as a user meets it: real data, its table, its plots, its errors."""

from __future__ import annotations

import json
import re
import sys
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sce.cli import train
from sce.cli.app import app
from sce.cli.tables import console


def run(*arguments: object) -> Any:
    found = CliRunner().invoke(app, ["train", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def fails(*arguments: object) -> str:
    found = run(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.count("\n") == 1
    return str(found.stderr).removeprefix("Error: ").rstrip("\n")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_ROUNDS", train.Rounds(least=1, enough=0.0))


def test_digits(tmp_path: Path) -> None:
    """The main job, on the backend that is chosen by itself."""
    files = ("--json", tmp_path / "d.json", "--plot", tmp_path / "plots")
    found = run("digits", "--tol", 1e-6, "--max-iter", 2000, *files)
    assert found.exit_code == 0, found.stdout
    told = json.loads((tmp_path / "d.json").read_text())
    assert told["rows"] == {"train": 1077, "calibrate": 360, "test": 360}
    assert "1077 rows to train, 360 to calibrate, 360 to test" in found.stdout
    test, calibrated = told["judged"]["test"], told["judged"]["test, calibrated"]
    assert test["accuracy"] > 0.95
    assert calibrated["accuracy"] == test["accuracy"]
    assert calibrated["loss"] < test["loss"]
    assert f"{test['loss']:.4f}" in found.stdout
    assert told["converged"]
    assert len(told["loss_curve"]) == told["steps"] + 1
    counts = np.array(told["confusion"])
    assert counts.sum() == 360
    assert counts.trace() == round(360 * test["accuracy"])
    assert told["logistic_regression"]["converged"]
    rival = told["logistic_regression"]
    assert rival["difference"] < 1e-5
    assert rival["objective"] == pytest.approx(told["loss_curve"][-1], abs=1e-6)
    assert f"to {rival['objective']:.6g}; both fitted to a gradient of 1e-08" in found.stdout
    assert "scikit-learn's LogisticRegression: " in found.stdout
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == ["digits-confusion.png", "digits-loss.png", "digits-reliability.png"]
    for name in drawn:
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
        assert re.search(rf"^drawn: .*{re.escape(name)}$", found.stdout, re.MULTILINE)


def test_their_objective_is_ours() -> None:
    """At the same tolerance the coefficients differ where it is flat: what is compared is its value."""
    from sklearn.linear_model import LogisticRegression

    from sce.sklearn import SoftmaxRegression

    for name in ("wine", "breast_cancer"):
        rows = train.load(name, 0).train
        options = {"tol": 1e-8, "max_iter": 1000, "C": 0.3}
        ours = SoftmaxRegression(backend="reference", **options).fit(*rows)
        theirs = LogisticRegression(**options).fit(*rows)
        assert train.objective(theirs, rows) == pytest.approx(ours.loss_curve_[-1], rel=1e-9)


def test_json_to_standard_output() -> None:
    """Nothing else goes there; the table is on the standard error."""
    found = run("iris", "--backend", "reference", "--json", "-")
    assert found.exit_code == 0
    assert json.loads(found.stdout)["classes"] == ["setosa", "versicolor", "virginica"]
    assert "30 to test" in found.stderr
    assert not Path("-").exists()


def test_without_a_temperature(tmp_path: Path) -> None:
    """All labels to calibrate on are predicted right: no row in the table, one panel in the plot."""
    found = run("wine", "--backend", "reference", "--json", tmp_path / "w.json", "--plot", tmp_path)
    told = json.loads((tmp_path / "w.json").read_text())
    assert (told["calibrated"], told["temperature"], list(told["judged"])) == (False, 1, ["train", "test"])
    assert "not calibrated: no temperature fits" in found.stdout
    assert "their labels are all predicted right" in found.stdout
    assert "test, calibrated" not in found.stdout
    assert (tmp_path / "wine-reliability.png").exists()


def test_calibration_that_harms_says_so() -> None:
    found = run("breast_cancer", "--backend", "reference")
    assert "it makes the test's loss worse, 0.1188 instead of 0.0835" in found.stdout
    assert "it makes" not in run("digits", "--backend", "reference", "--C", 100).stdout


@pytest.fixture(scope="module")
def result() -> train.Training:
    options = {"solver": "lbfgs", "C": 1.0, "tol": 1e-4, "max_iter": 200, "label_smoothing": 0.0}
    log = console(stderr=True)
    return train.train(train.load("breast_cancer", 0), options | {"backend": "reference"}, log)


def test_plots(result: train.Training) -> None:
    from sce.cli import training_plots

    (loss,) = training_plots._loss(result).axes
    assert all(tick == int(tick) for tick in loss.get_xticks())
    (confusion,) = training_plots._confusion(result).axes
    for axis in (confusion.xaxis, confusion.yaxis):
        assert [tick.get_text() for tick in axis.get_ticklabels()] == ["malignant", "benign"]
    assert len(training_plots._reliability(result).axes) == 4
    for axes in training_plots._reliability(result).axes[2:]:
        assert sum(int(text.get_text()) for text in axes.texts) == 114
    panel, rows = training_plots._reliability(result._replace(uncalibrated="why")).axes
    assert not panel.texts
    assert rows.get_xlabel() == "probability of the predicted class"
    assert panel.get_title().startswith("as fitted")


@pytest.mark.parametrize("fall", [1.05, 1.3, 4.0, 30.0, 1000.0])
def test_the_loss_has_ticks(result: train.Training, fall: float) -> None:
    from sce.cli import training_plots

    changed = copy(result.model)
    changed.loss_curve_ = np.array([1.0986, 1.0986 / fall])
    (axes,) = training_plots._loss(result._replace(model=changed)).axes
    low, high = axes.get_ylim()
    assert 4 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 12


def test_without_a_finite_minimum() -> None:
    """Two minimisers that go on for ever do not agree."""
    found = run("iris", "--C", "inf", "--backend", "reference")
    assert "agree to" not in found.stdout
    assert "of the largest: without a penalty there is no finite minimum" in found.stdout


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--solver", "sgd"), "no solver sgd"),
        (("--label-smoothing", 0.1), "no label smoothing"),
        (("--solver", "sgd", "--label-smoothing", 0.1), "no solver sgd and no label smoothing"),
    ],
)
def test_what_is_not_compared(options: tuple[Any, ...], why: str, tmp_path: Path) -> None:
    """And the objective is that of the coefficients, not the mean over the last epoch."""
    from sce.sklearn import SoftmaxRegression

    found = run("iris", *options, "--backend", "reference", "--json", tmp_path / "i.json")
    assert f"not compared with scikit-learn: its LogisticRegression has {why}\n" in found.stdout
    told = json.loads((tmp_path / "i.json").read_text())
    assert f"the training objective is {told['objective']:.6g}\n" in found.stdout
    rows = train.load("iris", 0).train
    again = SoftmaxRegression(**told["options"]).fit(*rows)
    z = rows.x @ again.coef_.T + again.intercept_
    log_p = z - np.logaddexp.reduce(z, axis=1)[:, None]
    eps = again.label_smoothing
    loss = -(1 - eps) * log_p[np.arange(len(rows.y)), rows.y].mean() - eps * log_p.mean()
    assert told["objective"] == pytest.approx(loss + (again.coef_**2).sum() / (2 * len(rows.y)), rel=1e-9)


def test_sgd_that_does_not_converge_says_why() -> None:
    found = run("wine", "--solver", "sgd", "--C", "inf", "--backend", "reference")
    assert found.exit_code == 1
    assert "\nsgd did not converge: its loss stopped falling" in found.stdout
    assert "raise --max-iter" not in found.stdout


@pytest.mark.parametrize("solver", ["lbfgs", "newton-cg", "sgd"])
@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_other_data(name: str, solver: str, tmp_path: Path) -> None:
    found = run(name, "--solver", solver, "--backend", "reference", "--json", tmp_path / "t.json")
    assert found.exit_code == 0, found.stdout
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["judged"]["test"]["accuracy"] > 0.9
    assert told["backend"] == "reference"
    assert told["options"]["solver"] == solver
    assert (told["logistic_regression"] is None) == (solver == "sgd")
    assert ("LogisticRegression: " in found.stdout) == (solver != "sgd")


def test_a_seed_is_a_split() -> None:
    first, second, other = (train.load("iris", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.x, second.train.x)
    assert not np.array_equal(first.train.x, other.train.x)
    np.testing.assert_array_equal(np.bincount(first.test.y), [10, 10, 10])
    np.testing.assert_allclose(first.train.x.mean(axis=0), 0, atol=1e-12)
    rows = {tuple(row) for part in (first.train, first.calibrate, first.test) for row in part.x}
    assert len(rows) == len(np.unique(np.vstack([first.train.x, first.calibrate.x, first.test.x]), axis=0))


def test_options_reach_the_fit(tmp_path: Path) -> None:
    options = ("--C", 0.1, "--label-smoothing", 0.1, "--seed", 3, "--backend", "reference")
    found = run("wine", *options, "--json", tmp_path / "w.json")
    told = json.loads((tmp_path / "w.json").read_text())
    given = {
        name: told["options"][name] for name in ("C", "label_smoothing", "random_state", "tol", "max_iter")
    }
    assert given == {"C": 0.1, "label_smoothing": 0.1, "random_state": 3, "tol": 1e-4, "max_iter": 200}
    assert told["logistic_regression"] is None  # it has no smoothing
    assert found.exit_code == 0


def test_what_does_not_converge() -> None:
    found = run("digits", "--max-iter", 3, "--backend", "reference")
    assert found.exit_code == 1
    assert "not converged: raise --max-iter or --tol (0.0001)" in found.stdout


def test_backend_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.registry, "missing", lambda name: "no such processor.")
    found = run("iris", "--backend", "reference")
    assert found.exit_code == 1
    assert "reference did not run: no such processor." in found.stdout


def test_backend_of_the_environment_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCE_BACKEND", "nope")
    found = run("iris")
    assert found.exit_code == 2
    assert "unknown backend 'nope'" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mnist",), "DATA: there is no 'mnist'. Choose one of digits, iris, wine, breast_cancer."),
        (("iris", "--solver", "saga"), "solver must be one of 'lbfgs', 'newton-cg', 'sgd', got 'saga'."),
        (("iris", "--C", "0"), "C must be a number in (0, inf], got 0.0."),
        (("iris", "--tol", "-1"), "tol must be a number in [0, inf), got -1.0."),
        (("iris", "--max-iter", "0"), "max_iter must be an integer of at least 1, got 0."),
        (("iris", "--label-smoothing", "2"), "label_smoothing must be a number in [0, 1], got 2.0."),
        (("iris", "--seed", "-1"), "--seed must be in [0, 2**32), got -1."),
        (("iris", "--json", "nowhere/t.json"), "--json: 'nowhere/t.json' cannot be written: there is no"),
        (("iris", "--plot", "file"), "--plot: 'file' cannot be made: File exists."),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert fails(*arguments).startswith(words)


def test_unknown_backend() -> None:
    assert "abacus" in fails("iris", "--backend", "abacus")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    words = fails("iris")
    assert words.startswith("training needs scikit-learn (")
    assert words.endswith("). Try: pip install 'sce[cli]'.")


def test_the_table_is_plain_text(result: train.Training, capsys: pytest.CaptureFixture[str]) -> None:
    train.show(result, console())
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["rows", "loss", "accuracy", "calibration", "error"]
    assert [line.split()[0] for line in lines[4:7]] == ["train", "test", "test,"]
