"""The command line as a user meets it: its tables, files, exit statuses and the words of every error."""

# ruff: noqa: E501 - the words of an error stay on one line, so that they can be searched for

from __future__ import annotations

import doctest
import importlib
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sce
from sce import conformance, machine, registry
from sce.backend import JACOBIANS
from sce.cli import agreement
from sce.cli.app import app
from sce.cli.check import as_json, check, choose
from sce.cli.demo import digits
from sce.problem import prepare

ROOT = Path(__file__).parents[1]
X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 3, 0, 1])

WRONG = {
    "halved": "def run(problem, answer):\n    reference.run(problem, answer)\n"
    "    if answer.grad is not None:\n        answer.grad[...] /= 2",
    "shifted": "def run(problem, answer):\n    reference.run(problem, answer)\n"
    "    if answer.loss is not None:\n        answer.loss[...] += 1e-3",
    "idle": "def run(problem, answer):\n    pass",
    "evasive": "def run(problem, answer):\n    reference.run(problem, answer)\n    answer.grad[...]",
    "raising": "def run(problem, answer):\n    raise OverflowError('the kernel is on fire')",
    "absent": "def missing():\n    return 'its library is not installed.'",
    "picky": "def refuses(problem):\n    return 'takes nothing.'",
    "slow": "debug = True",
}
BACKEND = """
from sce_backends import reference
on_device = debug = False
def refuses(problem):
    return None
def missing():
    return None
def run(problem, answer):
    reference.run(problem, answer)
"""


class Outcome:
    """What a command left behind."""

    def __init__(self, result: Any) -> None:
        self.status: int = result.exit_code
        self.out: str = result.stdout
        self.err: str = result.stderr
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception

    def cells(self, name: str) -> list[str]:
        """The cells of one line of a table."""
        return next(line.split() for line in self.out.splitlines() if line.startswith(f"{name} "))


def run(*arguments: object) -> Outcome:
    return Outcome(CliRunner().invoke(app, [str(a) for a in arguments]))


def fails(*arguments: object) -> str:
    """The one line of an error, after which nothing was computed."""
    outcome = run(*arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    return outcome.err.removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with good files in it."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    np.savez("both.npz", logits=X, target=Y)
    return tmp_path


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Deliberately wrong backends, each under an import path that no test shares with another."""
    package = f"wrong_{abs(hash(tmp_path))}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def make(name: str) -> str:
        (tmp_path / package / f"{name}.py").write_text(f"{BACKEND}{WRONG[name]}\n")
        return f"{package}.{name}"

    return make


# --- compare


def test_compare_digits(tmp_path: Path) -> None:
    """The main job: every backend of this machine, on real logits."""
    found = run("compare", "--json", tmp_path / "c.json", "--grad", tmp_path / "g.npy")
    assert found.status == 0, found.out
    assert "scikit-learn's digits: 1797 x 10 float32" in found.out
    assert "agree with the reference" in found.out
    kept = json.loads((tmp_path / "c.json").read_text())
    for name, why in sce.backends().items():
        entry = kept["backends"][name]
        if registry.load(name).debug:
            why = f"a debug backend: it runs when named, --backend {name}."
        if why is not None:
            assert entry == {"missing": why}
            assert f"{name} did not run: {why}" in found.out
            continue
        assert entry["agrees"] is True
        assert entry["complaint"] is None
        assert entry["accuracy"] == pytest.approx(0.979, abs=2e-3)
        assert entry["runs"] >= 1
        assert entry["gb_per_s"] == pytest.approx(kept["bytes_moved"] / entry["seconds"] / 1e9)
        assert entry["share_of_copy"] == pytest.approx(entry["gb_per_s"] / kept["copy"]["gb_per_s"])
        assert found.cells(name)[1] == f"{entry['loss']:#.7g}"
    assert kept["backends"]["reference"]["speed_up"] == 1
    assert kept["bytes_moved"] == 2 * 4 * 17970 + 8 * 1797
    x, y = digits()
    loss, grad = sce.loss_and_grad(x, y)
    assert kept["backends"]["reference"]["loss"] == pytest.approx(float(loss), rel=1e-6)
    np.testing.assert_allclose(np.load(tmp_path / "g.npy"), grad, rtol=1e-5, atol=1e-12)


def test_digits_are_the_same_every_time() -> None:
    first, second = digits(), digits()
    np.testing.assert_array_equal(first[0], second[0])
    assert first[0].dtype == np.float32


@pytest.mark.parametrize(
    "given", [("x.npy", "y.npy"), ("both.npz",), ("both.npz", "y.npy"), ("one.npz", "both.npz")]
)
def test_compare_files(files: Path, given: tuple[str, ...]) -> None:
    np.savez(files / "one.npz", anything=X)
    found = run("compare", *given, "--backend", "reference", "--grad", "g.npy")
    assert found.status == 0
    assert found.cells("reference")[1] == f"{sce.cross_entropy(X, Y):#.7g}"
    np.testing.assert_array_equal(np.load("g.npy"), sce.loss_and_grad(X, Y, backend="reference")[1])


def test_compare_leaves_other_members_of_an_npz_alone(files: Path) -> None:
    np.savez("more.npz", logits=X, target=Y, names=np.array([{}], dtype=object))
    assert run("compare", "more.npz", "--backend", "reference").status == 0


def test_compare_options(files: Path) -> None:
    w, u, b = np.linspace(1, 2, 4), np.array([1, 0.5, -1, 2, 0, 1]), np.array([0, -np.inf, 1, 0])
    y = np.array([0, 2, 2, 3, 0, -100])
    np.save("xt.npy", X.T)
    np.save("y.npy", y)
    for name, vector in {"w": w, "u": u, "b": b}.items():
        np.save(f"{name}.npy", vector)
    found = run(
        *("compare", "xt.npy", "y.npy", "--backend", "reference", "--axis", "0", "--ignore-index", "-100"),
        *("--label-smoothing", "0", "--temperature", "2", "--softcap", "5", "--z-loss", "0.01"),
        *("--class-weight", "w.npy", "--sample-weight", "u.npy", "--logit-bias", "b.npy"),
        *("--reduction", "sum", "--json", "c.json", "--grad", "g.npy"),
    )  # fmt: skip
    options: dict[str, Any] = {
        "axis": 0,
        "ignore_index": -100,
        "temperature": 2.0,
        "softcap": 5.0,
        "z_loss": 0.01,
        "class_weight": w,
        "sample_weight": u,
        "logit_bias": b,
        "reduction": "sum",
    }
    loss, grad = sce.loss_and_grad(X.T, y, backend="reference", **options)
    assert found.status == 0, found.out
    np.testing.assert_array_equal(np.load("g.npy"), grad)
    kept = json.loads(Path("c.json").read_text())
    line = kept["backends"]["reference"]
    assert line["loss"] == pytest.approx(float(loss))
    counted = (y != -100) & (u != 0)
    correct = sce.evaluate(X.T, y, outputs=("correct",), **options).correct
    assert line["accuracy"] == correct.sum() / counted.sum()
    assert kept["options"]["class_weight"] == "w.npy"
    assert kept["logits"] == {"shape": [4, 6], "dtype": "float32", "axis": 0}


def test_compare_denominator_and_smoothing(files: Path) -> None:
    found = run(
        "compare",
        "x.npy",
        "y.npy",
        "--denominator",
        "3",
        "--label-smoothing",
        "0.1",
        "--backend",
        "reference",
    )
    assert found.status == 0
    assert (
        found.cells("reference")[1] == f"{sce.cross_entropy(X, Y, denominator=3, label_smoothing=0.1):#.7g}"
    )


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_compare_dtypes_and_distributions(files: Path, dtype: str) -> None:
    np.save("x.npy", X.astype(dtype))
    np.save("y.npy", sce.softmax(-X).astype(np.float64))
    found = run("compare", "x.npy", "y.npy", "--backend", "reference", "--json", "c.json")
    assert found.status == 0, found.out
    ulp = json.loads(Path("c.json").read_text())["backends"]["reference"]["ulp"]
    assert 0 < ulp["grad"] < 4


@pytest.mark.parametrize(
    ("x", "y", "loss", "accuracy"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "nan", "-"),
        (np.zeros(4, np.float32), np.array(2), f"{math.log(4):#.7g}", "0 %"),
        (np.full((2, 3), np.nan), np.zeros(2, int), "nan", "100 %"),
    ],
)
def test_compare_edges(files: Path, x: Any, y: Any, loss: str, accuracy: str) -> None:
    np.save("x.npy", x)
    np.save("y.npy", y)
    found = run("compare", "x.npy", "y.npy", "--backend", "reference", "--json", "c.json")
    assert found.status == 0, found.out
    assert found.cells("reference")[1] == loss
    assert f" {accuracy} " in found.out
    json.loads(Path("c.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "halved",
            r"disagrees with the reference: grad .*got .*want .*off by .* ulp, bound 3 \(24 of 24 wrong\)",
        ),
        ("shifted", r"disagrees with the reference: loss got"),
        ("idle", r"disagrees with the reference: loss got .*; grad .*got nan"),
        ("evasive", r"disagrees with the reference: asked for correct it raised TypeError"),
        ("raising", r"did not run: raised OverflowError: the kernel is on fire"),
        ("absent", r"did not run: its library is not installed\."),
        ("picky", r"did not run: takes nothing\."),
    ],
)
def test_compare_says_who_is_wrong(files: Path, wrong: Callable[[str], str], name: str, words: str) -> None:
    backend = wrong(name)
    found = run("compare", "x.npy", "y.npy", "--backend", backend, "--grad", "g.npy", "--json", "c.json")
    assert found.status == 1
    assert any(backend in line and re.search(words, line) for line in found.out.splitlines()), found.out
    assert "g.npy not written: none agrees" in found.out
    assert not Path("g.npy").exists()
    assert found.cells("reference")[2:4] == ["16.7", "%"]  # the yardstick always runs
    entry = json.loads(Path("c.json").read_text())["backends"][backend]
    assert name != "idle" or entry["ulp"]["grad"] == "inf"
    assert entry.get("agrees") is False or re.search(words, f"did not run: {entry['missing']}")


def test_compare_runs_debug_backends_only_when_named(
    files: Path, wrong: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = wrong("slow")
    monkeypatch.setattr(registry, "registered", lambda: {slow: (), "reference": registry_entry("reference")})
    found = run("compare", "x.npy", "y.npy")
    assert found.status == 0
    assert f"{slow} did not run: a debug backend: it runs when named, --backend {slow}." in found.out
    assert choose(())[1] == {slow: f"a debug backend: it runs when named, --backend {slow}."}
    found = run("compare", "x.npy", "y.npy", "--backend", slow)
    assert found.status == 0
    assert found.cells(slow)
    assert choose((slow,)) == ([slow], {})


def registry_entry(name: str) -> Any:
    return (
        SimpleNamespace(
            value=f"sce_backends.{name}",
            dist=None,
            load=lambda: importlib.import_module(f"sce_backends.{name}"),
        ),
    )


def test_errors_are_found_in_every_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles must cover every row once, along either row axis, and say where the fault is."""
    monkeypatch.setattr(agreement, "_TILE", 8)
    x = np.random.default_rng(1).normal(size=(5, 4, 7)).astype(np.float32)
    y = np.random.default_rng(2).integers(0, 4, (5, 7))
    u = np.linspace(0.5, 2, 35).reshape(5, 7)
    request = prepare(x, y, outputs=("loss", "grad"), axis=1, sample_weight=u)
    loss, grad = sce.loss_and_grad(x, y, axis=1, sample_weight=u, backend="reference")
    good = agreement.errors(request, {"reference": (loss, grad)})["reference"]
    assert not good["grad"].message
    assert not good["loss"].message
    assert good["grad"].ulp <= 0.51
    for index in np.ndindex(x.shape):
        bad = grad.copy()
        bad[index] *= 1.001
        assert agreement.errors(request, {"bad": (loss, bad)})["bad"]["grad"].message


# --- bad input


def make_bad_files() -> None:
    """Every kind of file that cannot be used, in the working directory."""
    np.save("int.npy", Y)
    np.save("complex.npy", X.astype(complex))
    np.save("bf16.npy", X.astype(np.float16).view("V2"))
    np.save("objects.npy", np.array([{}], dtype=object))
    np.save("late.npy", np.array([0, 1, 9, 3, 0, 1]))
    np.save("short.npy", Y[:3])
    np.save("column.npy", Y[:, None])
    np.savez("none.npz")
    np.savez("others.npz", a=X, b=Y)
    np.savez("lonely.npz", logits=X)
    np.savez("object.npz", logits=np.array([{}], dtype=object), target=Y)
    Path("empty.npy").touch()
    Path("text.npy").write_text("1,2,3\n")
    Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-8])
    Path("cut.npz").write_bytes(Path("both.npz").read_bytes()[:-40])
    with zipfile.ZipFile("zip.npz", "w") as archive:
        archive.writestr("letter.txt", "dear reader")
    Path("folder").mkdir()
    np.save("nan.npy", np.array([1, np.nan, 1, 1]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("gone.npy y.npy", "LOGITS: 'gone.npy' cannot be read: No such file or directory."),
        ("x.npy gone.npy", "TARGET: 'gone.npy' cannot be read: No such file or directory."),
        ("folder y.npy", "LOGITS: 'folder' cannot be read: Is a directory."),
        ("text.npy y.npy", "LOGITS: 'text.npy' is neither .npy nor .npz: save the array with np.save."),
        ("empty.npy y.npy", "LOGITS: 'empty.npy' is neither .npy nor .npz: save the array with np.save."),
        ("cut.npy y.npy", "LOGITS: 'cut.npy' is damaged or cut short ("),
        ("cut.npz", "LOGITS: 'cut.npz' is damaged or cut short ("),
        ("zip.npz y.npy", "is a zip archive of other files, not a .npz: save it with np.savez."),
        ("objects.npy y.npy", "LOGITS: 'objects.npy' holds Python objects (dtype object), which sce does not unpickle: save an array of numbers."),
        ("object.npz", "LOGITS: 'object.npz' holds Python objects"),
        ("bf16.npy y.npy", "LOGITS: 'bf16.npy' has dtype |V2: NumPy's file format does not keep bfloat16. Save x.astype(np.float32), which holds the same values."),
        ("x.npy", "TARGET is missing: 'x.npy' holds the logits alone. Give the labels as a second file, or one .npz with arrays named logits and target."),
        ("others.npz", "LOGITS: 'others.npz' holds no array named logits or target (it holds a, b). Save both with np.savez(file, logits=..., target=...), or give TARGET as a second file."),
        ("lonely.npz", "LOGITS: 'lonely.npz' holds no array named target (it holds logits)."),
        ("none.npz", "LOGITS: 'none.npz' holds no array named logits or target (it holds nothing)."),
        ("others.npz y.npy", "LOGITS: 'others.npz' holds no array named logits (it holds a, b): save it with np.savez(file, logits=...)."),
        ("x.npy others.npz", "TARGET: 'others.npz' holds no array named target (it holds a, b)"),
        ("x.npy y.npy --class-weight others.npz", "--class-weight: 'others.npz' holds a, b: save the one array with np.save."),
        ("x.npy y.npy --class-weight gone.npy", "--class-weight: 'gone.npy' cannot be read: No such file"),
        ("int.npy y.npy", "logits have dtype int64, not one of float16, bfloat16, float32, float64: convert them"),
        ("complex.npy y.npy", "logits have dtype complex128"),
        ("x.npy late.npy", "label 9 at position 2 is outside [0, 4) for logits of 4 classes"),
        ("x.npy short.npy", "target of class indices has shape (3,); logits of shape (6, 4) need (6,)"),
        ("x.npy column.npy", "reshape it with .reshape(6,)"),
        ("x.npy y.npy --axis 5", "axis 5 is outside [-2, 2) for logits of 2 dimension(s)."),
        ("x.npy y.npy --label-smoothing 1.5", "label_smoothing must be in [0, 1], got 1.5."),
        ("x.npy y.npy --label-smoothing nan", "label_smoothing must be in [0, 1], got nan."),
        ("x.npy y.npy --temperature 0", "temperature must be finite and greater than 0, got 0.0."),
        ("x.npy y.npy --softcap -1", "softcap must be finite and greater than 0, got -1.0."),
        ("x.npy y.npy --z-loss -1", "z_loss must be finite and at least 0, got -1.0."),
        ("x.npy y.npy --reduction man", "unknown reduction 'man'; it is one of 'none', 'sum', 'mean'. Did you mean 'mean'?"),
        ("x.npy y.npy --reduction none", 'reduction "none" has a loss per row, and a table has one number: choose mean or sum.'),
        ("x.npy y.npy --reduction sum --denominator 2", 'denominator replaces that of reduction="mean"'),
        ("x.npy y.npy --class-weight y.npy", "class_weight has shape (6,), not (4,): one weight per class, nothing broadcasts."),
        ("x.npy y.npy --class-weight nan.npy", "class_weight must be finite: it holds nan at position 1."),
        ("x.npy y.npy --sample-weight nan.npy", "sample_weight has shape (4,), not (6,)"),
        ("x.npy x.npy --ignore-index 1", "ignore_index has no meaning for a target of distributions"),
        ("x.npy y.npy --backend refrence", "unknown backend 'refrence'; registered: "),
        ("x.npy y.npy --backend refrence", "Did you mean 'reference'?"),
        ("x.npy y.npy --backend no.such_module", "backend 'no.such_module' (no.such_module) failed to import: ModuleNotFoundError"),
        ("x.npy y.npy --backend os.path", "os.path is not a backend: it lacks on_device, debug, refuses, missing, run"),
        ("x.npy y.npy --json nowhere/c.json", "--json: 'nowhere/c.json' cannot be written: there is no directory 'nowhere'. Create it first."),
        ("x.npy y.npy --grad folder", "--grad: 'folder' cannot be written: it is a directory. Name a file in it."),
        ("x.npy y.npy --json text.npy/c.json", "--json: 'text.npy/c.json' cannot be written: "),
        ("x.npy y.npy --grad x.npy", "--grad: 'x.npy' is an input as well: name another file."),
        ("x.npy y.npy --grad out --json ./out", "--grad: 'out' is the file of --json as well: name another file."),
    ],
)  # fmt: skip
def test_bad_input(files: Path, arguments: str, words: str) -> None:
    make_bad_files()
    before = sorted(os.listdir())
    assert words in fails("compare", *arguments.split())
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_directory_that_is_read_only(files: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    words = "--json: 'locked/c.json' cannot be written: permission denied."
    assert words in fails("compare", "x.npy", "y.npy", "--json", "locked/c.json")


def test_malformed_options_have_typers_words() -> None:
    for arguments, words in {
        ("compare", "--axis", "x"): "Invalid value for '--axis'",
        ("compare", "--bakend", "x"): "No such option",
        ("compar",): "No such command 'compar'",
    }.items():
        found = run(*arguments)
        assert found.status == 2
        assert words in found.err


def test_files_are_replaced_whole_or_not_at_all(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sce.cli.files import Output, UsageError

    old = Path("out.json")
    old.write_text("old")
    link = Path("link.json")
    link.symlink_to(old)

    def full_disk(stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(os.listdir())
    with pytest.raises(UsageError, match=r"--json: 'out.json' cannot be written: No space left on device\."):
        Output(old, "--json").write(full_disk)
    assert old.read_text() == "old"
    Output(link, "--json").write_json({"x": [math.nan, -math.inf, np.float32(0.5), np.int64(3)]})
    assert link.is_symlink()
    assert json.loads(old.read_text()) == {"x": ["nan", "-inf", 0.5, 3]}
    assert sorted(os.listdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="no such file there")
def test_output_may_be_a_device(files: Path) -> None:
    assert run("info", "--json", os.devnull).status == 0
    assert Path(os.devnull).is_char_device()


# --- check


@pytest.fixture
def few_cases(monkeypatch: pytest.MonkeyPatch) -> tuple[conformance.Case, ...]:
    """Every 150th case: the command is tested here, and the cases elsewhere."""
    some = conformance.cases()[::150]
    monkeypatch.setattr(conformance, "cases", lambda: some)
    return some


def test_check(files: Path, few_cases: tuple[Any, ...]) -> None:
    found = run("check", "--backend", "reference", "--json", "c.json")
    assert found.status == 0, found.out
    report = conformance.check("reference", few_cases)
    counts = [report.passed, report.failed, report.skipped]
    assert found.cells("reference") == ["reference", *map(str, counts)]
    kept = json.loads(Path("c.json").read_text())
    assert kept == {
        "backends": {
            "reference": {
                "passed": report.passed,
                "failed": 0,
                "skipped": report.skipped,
                "worst_ulp": report.worst_ulp,
                "failures": [],
            }
        },
        "missing": {},
    }
    assert set(report.worst_ulp) <= {line.split("  ")[0] for line in found.out.splitlines()}


def test_check_rejects(files: Path, few_cases: tuple[Any, ...], wrong: Callable[[str], str]) -> None:
    backend = wrong("halved")
    found = run("check", "--backend", backend, "--json", "c.json")
    assert found.status == 1
    assert f"{backend} fails " in found.out
    assert f"{backend}: " in found.out
    assert " more failures: --json has them all." in found.out
    kept = json.loads(Path("c.json").read_text())["backends"][backend]
    assert kept["failed"] > 5
    assert len(kept["failures"]) >= kept["failed"]
    assert kept["failures"][0].keys() == {"case", "output", "message"}


def test_check_names_what_is_missing(
    files: Path, few_cases: tuple[Any, ...], wrong: Callable[[str], str]
) -> None:
    backend = wrong("absent")
    found = run("check", "--backend", backend, "--backend", "reference", "--json", "c.json")
    assert found.status == 1
    assert f"{backend} did not run: its library is not installed." in found.out
    kept = json.loads(Path("c.json").read_text())
    assert kept["missing"] == {backend: "its library is not installed."}
    assert kept["backends"].keys() == {"reference"}
    assert kept["backends"]["reference"]["failed"] == 0
    assert "unknown backend 'cpuu'" in fails("check", "--backend", "cpuu")


def test_check_lists_skips_by_reason(few_cases: tuple[Any, ...], wrong: Callable[[str], str]) -> None:
    """A backend that takes nothing has passed nothing."""
    backend = wrong("picky")
    found = run("check", "--backend", backend)
    assert found.status == 1
    binary = sum(case.function == "binary" for case in few_cases)
    jacobians = sum(case.function in JACOBIANS for case in few_cases)
    assert f"{backend} skipped {len(few_cases) - binary - jacobians}: takes nothing." in found.out
    assert f"{backend} skipped {binary}: it takes no binary problems." in found.out
    assert f"{backend} skipped {jacobians}: it forms no Jacobians." in found.out


def test_check_reports_progress(few_cases: tuple[Any, ...]) -> None:
    from sce.cli.tables import console

    (report,) = check(["reference"], console(stderr=True))
    assert report.passed + report.failed + report.skipped == len(few_cases)
    kept = as_json([report], {"cuda": "none here"})
    assert list(kept["backends"]) == ["reference"]
    assert kept["missing"] == {"cuda": "none here"}


def test_check_export(files: Path, few_cases: tuple[Any, ...]) -> None:
    assert fails("check", "--export", "cases", "--backend", "reference") == (
        "--export runs no backend: give it alone."
    )
    assert fails("check", "--export", "y.npy") == (
        "--export: 'y.npy' is a file: name a directory to export to."
    )
    assert fails("check", "--export", ".") == (
        "--export: '.' holds other files, such as 'x.npy': name an empty directory."
    )
    assert "cannot be written: Not a directory." in fails("check", "--export", "y.npy/cases")
    found = run("check", "--export", "cases")
    assert found.status == 0
    written = list(Path("cases").glob("*.npz"))
    assert found.out == f"{len(written)} cases written to cases\n"
    assert written


# --- info, and the command as a whole


def test_info(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCE_CACHE_DIR", "kernels")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    monkeypatch.setenv("UNRELATED_TOKEN", "secret")
    found = run("info", "--json", "i.json")
    assert found.status == 0
    kept = json.loads(Path("i.json").read_text())
    assert kept["sce"] == sce.__version__
    assert kept["versions"]["numpy"] == np.__version__
    assert kept["environment"]["SCE_CACHE_DIR"] == "kernels"
    assert kept["backends"]["cpu"] or kept["details"]["cpu"].keys() == {"threads", "kernel cache"}
    assert kept["machine"]["threads"] == 3
    assert kept["environment"]["NUMBA_NUM_THREADS"] == "3"
    assert kept["backends"] == sce.backends()
    assert "secret" not in found.out
    for words in (
        f"sce {sce.__version__}",
        "  numpy  ",
        "  processor  ",
        "  NUMBA_NUM_THREADS  ",
    ):
        assert words in found.out


@pytest.mark.parametrize("value", ["", "0", "many", "-2"])
def test_threads_ignore_what_numba_would_refuse(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    assert machine.threads() == machine.usable_cores()


def test_version_and_help() -> None:
    assert run("--version").out == f"sce {sce.__version__}\n"
    for command in ("compare", "check", "bench", "info"):
        shown = run(command, "--help")
        assert shown.status == 0
        assert "\x1b" not in shown.out
    assert "sce compare logits.npy labels.npy --backend cpu" in run("compare", "-h").out


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)


def test_module_is_the_command(files: Path) -> None:
    done = shell("-m", "sce", "compare", "both.npz", "--backend", "reference")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    header = next(line for line in done.stdout.splitlines() if line.startswith("backend"))
    assert " ".join(header.split()) == "backend loss accuracy max ulp time GB/s of copy speed-up"
    assert "…" not in done.stdout
    done = shell("-m", "sce", "compare", "gone.npy")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: LOGITS: 'gone.npy' cannot be read: No such file or directory.\n"


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_without_typer_or_rich(absent: str) -> None:
    code = f"import sys; sys.modules[{absent!r}] = None; from sce.cli import main; main()"
    done = shell("-c", code)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("sce: the command line needs typer and rich (")
    assert done.stderr.endswith("). Try: pip install 'sce[cli]'\n")
    assert done.stderr.count("\n") == 1


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    words = fails("compare")
    assert words.startswith("the digits come with scikit-learn (")
    assert words.endswith("). Try: pip install 'sce[cli]', or give LOGITS and TARGET.")


# --- the documents


def test_readme_example_runs() -> None:
    failed, tried = doctest.testfile(str(ROOT / "README.md"), module_relative=False, encoding="utf-8")
    assert tried >= 8
    assert failed == 0


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "backends/README.md"])
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("name", ["compare", "test"])
def test_readme_has_its_commands(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    between = text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0].splitlines()
    assert (between[0], between[-1], len(between)) == ("```bash", "```", 3)


def test_contributing_has_a_working_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = text.split("<!-- backend -->\n```python\n")[1].split("```\n<!-- /backend -->")[0]
    (tmp_path / "my_backends").mkdir()
    (tmp_path / "my_backends" / "__init__.py").touch()
    (tmp_path / "my_backends" / "plain.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    report = conformance.check("my_backends.plain")
    assert not report.failures
    assert report.passed > 50
