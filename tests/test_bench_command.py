"""`sce bench` and `pytest bench` as a user meets them; the document they write, and the machine it is of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.testing import CliRunner

from sce import machine, registry, strict_json
from sce.bench import findings
from sce.bench.cold import Cost
from sce.bench.contest import Result
from sce.bench.document import document, row
from sce.bench.markdown import number
from sce.bench.peers.textbook import NumPy
from sce.bench.task import Task
from sce.cli import bench
from sce.cli.app import app

ROOT = Path(__file__).parents[1]
TINY = (
    Task("loss_and_grad", 64, 10),
    Task("loss_and_grad", 32, 100),
    Task("loss_and_grad", 1, 10, where="call"),
)
RESULT = Result(
    TINY[0], "cpu", True, "reused", "ok", bytes=TINY[0].bytes, seconds=2e-6, low=1e-6, high=4e-6,
    turns=(2e-6,) * 5, loss_error=1e-7, grad_error=2e-7, share_of_copy=0.5, speed_up=3.0,
)  # fmt: skip
MISSING = Result(TINY[0], "torch", False, "fresh", "missing", "not here.", TINY[0].bytes)
COST = Cost("call", "cpu", 1, 10, median_s=6e-5, low_s=5e-5, high_s=7e-5, runs=9)


# The document


def test_a_row_has_what_the_issue_asks_for():
    told = row(RESULT)
    asked = {
        "op",
        "contestant",
        "n",
        "c",
        "dtype",
        "buffers",
        "median_s",
        "gb_per_s",
        "share_of_copy",
        "status",
    }
    assert asked <= told.keys()
    assert told["gb_per_s"] == pytest.approx((2 * 64 * 10 * 4 + 64 * 8) / 2e-6 / 1e9)
    told = {name: told[name] for name in ("n", "c", "low_s", "high_s", "turns", "speed_up_over_peers")}
    assert told == {"n": 64, "c": 10, "low_s": 1e-6, "high_s": 4e-6, "turns": 5, "speed_up_over_peers": 3.0}
    absent = row(MISSING)
    assert (absent["median_s"], absent["gb_per_s"], absent["why"]) == (None, None, "not here.")


def test_a_document_is_read_as_it_was_written(tmp_path):
    made = document("sce bench", [RESULT, MISSING], [COST])
    assert made.keys() == {"machine", "commit", "versions", "environment", "command", "results", "costs"}
    assert made["costs"] == [COST._asdict()]
    assert made["versions"].keys() >= {"sce", "python", "numpy"}
    (tmp_path / "run.json").write_text(strict_json.text(made), "utf-8")
    assert findings.read(tmp_path / "run.json") == made
    assert [gap.contestants for gap in findings.absences(made)] == [("torch",)]


# The machine


def test_the_commit(monkeypatch, tmp_path):
    asked, said = [], "abc-dirty\n"

    def run(words, **options):
        asked.append(words)
        return SimpleNamespace(stdout=said)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "sce" / "machine.py"))
    assert machine.commit() is None  # installed: git would answer for whatever lies around
    assert not asked
    (tmp_path / ".git").touch()
    assert machine.commit() == "abc-dirty"
    assert tmp_path.resolve() in asked[0]
    said = ""
    assert machine.commit() is None
    monkeypatch.setattr(subprocess, "run", lambda words, **options: (tmp_path / "git").read_text())
    assert machine.commit() is None


def test_the_largest_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert machine.last_level_cache() == 32 << 20
    for i, size in enumerate(("32K", "16M\n", "1024K", "512")):
        where = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{i}"
        where.mkdir(parents=True)
        (where / "size").write_text(size)
    assert machine.last_level_cache() == 16 << 20


def test_the_memory(monkeypatch):
    facts = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}
    monkeypatch.setattr(os, "sysconf", facts.__getitem__, raising=False)
    assert machine.memory() == 4096 * 1000

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", unknown)
    assert machine.memory() == 8 << 30


# `sce bench`


class Absent(NumPy):
    name = "torch"

    def missing(self):
        return "ModuleNotFoundError: No module named 'torch'. Try: pip install torch"


def run(*arguments):
    found = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def fails(*arguments):
    """The one line of an error, after which nothing was measured."""
    found = run(*arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("Error: ")
    assert found.stderr.count("\n") == 1
    return found.stderr.removeprefix("Error: ").rstrip("\n")


@pytest.fixture
def tiny(monkeypatch):
    """Three tiny tasks, two peers, and no processes: the costs have their own tests."""
    monkeypatch.setattr(bench.suites, "quick", lambda: iter(TINY))
    monkeypatch.setattr(bench, "peers", lambda: iter((NumPy(), Absent())))
    monkeypatch.setattr(bench, "_QUICK", bench.Rounds(least=2, enough=0, most=2))

    def costs(entered, *, quick, say):
        assert quick
        say("asked")
        missing = {"status": "missing", "why": "no memory is told here."}
        return iter((COST._replace(contestant="reference"), Cost("memory", "reference", **missing)))

    monkeypatch.setattr(bench.cold, "costs", costs)


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(bench, "contest", lambda *arguments: pytest.fail("measured"))


def test_bench(tiny, tmp_path):
    files = ("--json", tmp_path / "b.json", "--plot", tmp_path / "plots")
    done = run("--quick", "--peers", "--backend", "reference", *files)
    assert done.exit_code == 0, done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    kept = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert kept["command"] == "sce bench --quick --peers --backend reference"
    of = {(row["contestant"], row["c"], row["where"]): row for row in kept["results"]}
    assert of.keys() == {
        (who, task.c, task.where)
        for who in ("reference", "numpy", "torch", "copy")
        for task in TINY
        if who != "copy" or task.where != "call"
    }
    assert lines[lines.index("Loss and gradient, float32") + 1] == "C rows time copy of copy numpy"
    line = next(line.split() for line in lines if line.startswith("reference, fresh 100 32"))
    ours, peer = of["reference", 100, "memory"], of["numpy", 100, "memory"]
    share = f"{100 * ours['share_of_copy']:.3g}"
    assert line[-4:] == [share, "%", f"{peer['median_s'] / ours['median_s']:.2g}", "x"]
    assert ours["speed_up_over_peers"] == pytest.approx(peer["median_s"] / ours["median_s"])
    assert "one warm call, (1, 10) 60 us" in lines
    low, high = sorted(100 * of["reference", task.c, "memory"]["share_of_copy"] for task in TINY[:2])
    near = f"{number(low)} to {number(high)} % of the fastest copy"
    low, high = sorted(of["reference", task.c, "memory"]["speed_up_over_peers"] for task in TINY[:2])
    ahead = f"{number(low)} to {number(high)} times as fast as the strongest peer"
    for words in (
        f"Loss and gradient, float32: reference runs at {near}, {ahead}.",  # for those who read no tables
        "A peer's column: how many times as long as ours it takes, with the memory that suits it best.",
        "torch: missing (everywhere): ModuleNotFoundError: No module named 'torch'. Try: pip install torch",
        "reference: missing (memory): no memory is told here.",
    ):
        assert words in lines
    drawn = sorted((tmp_path / "plots").glob("*.png"))
    assert {path.stem for path in drawn} >= {"roofline", "peers", "cold"}
    assert {line for line in lines if line.startswith("drawn: ")} == {f"drawn: {path}" for path in drawn}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_without_peers_there_is_no_talk_of_them(tiny):
    done = run("--quick", "--backend", "reference")
    assert done.exit_code == 0
    assert "peer" not in done.stdout
    assert "numpy  " not in done.stdout


def test_all_our_backends_are_entered(tiny):
    timed = {name for name in registry.registered() if not registry.load(name).debug}
    assert {entered.name for entered in bench.contestants((), False)} == timed
    names = [entered.name for entered in bench.contestants(("reference",), True)]
    assert names == ["reference", "numpy", "torch"]


def fake(monkeypatch, name, **names):
    """A backend by import path, made of the reference."""
    made = ModuleType(name)
    made.__dict__.update(vars(registry.load("reference")), **names)
    monkeypatch.setitem(sys.modules, name, made)
    return name


def halved(problem, answer):
    registry.load("reference").run(problem, answer)
    if answer.grad is not None:
        answer.grad[...] /= 2


def on_fire(problem, answer):
    raise OverflowError("the kernel is on fire")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("halved", {"run": halved}, "wrong (loss and gradient, float32: C = 10, 100): off by "),
        ("raising", {"run": on_fire}, "failed ("),
        ("absent", {"missing": lambda: "its library is not installed."}, "missing (everywhere): its library"),
        ("picky", {"refuses": lambda problem: "takes nothing."}, "refused ("),
    ],
)
def test_the_exit_status_tells_that_one_of_ours_is_bad(tiny, monkeypatch, name, changes, words):
    backend = fake(monkeypatch, f"bench_command_fakes.{name}", **changes)
    done = run("--quick", "--backend", "reference", "--backend", backend)
    assert done.exit_code == 1
    assert f"{backend}: {words}" in done.stdout
    assert "reference, fresh" in done.stdout  # the others are measured all the same


def test_whose_fault_it_is():
    absent = RESULT._replace(contestant="cuda", status="missing", why="no GPU.", seconds=None)
    assert not bench.broken({"results": [row(RESULT), row(absent)]}, ())
    assert bench.broken({"results": [row(RESULT), row(absent)]}, ("cuda",))
    for status in ("wrong", "failed"):
        assert bench.broken({"results": [row(RESULT), row(absent._replace(status=status))]}, ())
        assert not bench.broken({"results": [row(RESULT), row(MISSING._replace(status=status))]}, ())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--backend", "refrence"), "Did you mean 'reference'?"),
        (("--plot", "file"), "--plot: 'file' cannot be made: File exists."),
        (("--plot", "file/plots"), "--plot: 'file/plots' cannot be made: Not a directory."),
        (("--json", "nowhere/b.json"), "--json: 'nowhere/b.json' cannot be written: there is no directory"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_measured(
    arguments, words, tmp_path, monkeypatch, nothing_runs
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert words in fails("--quick", *arguments)


def test_without_matplotlib(tmp_path, monkeypatch, nothing_runs):
    monkeypatch.delitem(sys.modules, "sce.bench.plots.style", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    words = fails("--quick", "--plot", tmp_path / "plots")
    assert words.startswith("--plot needs matplotlib (")
    assert words.endswith("). Try: pip install 'sce[plot]'.")


# `pytest bench`

_FEW = """
import sys, pytest
from sce.bench import clock, contestant, peers, suites
from sce.bench.task import Task
suites.full = lambda: iter([Task("loss_and_grad", 500, 10), Task("loss", 500, 10)])
contestant.backends = lambda: iter([contestant.Backend("reference")])
peers.peers = lambda: iter([])
clock.Rounds.__new__.__defaults__ = (4, 0.0, 4, 0.5)
sys.exit(pytest.main(["bench", "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def test_pytest_benchmark_shows_what_was_measured(tmp_path):
    """Its medians are those of the alternating rounds, whatever it runs itself."""
    kept = tmp_path / "run.json"
    words = [sys.executable, "-c", _FEW, f"--benchmark-json={kept}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(words, cwd=ROOT, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = json.loads(kept.read_text("utf-8"))["benchmarks"]
    assert {each["group"] for each in found} == {"loss_and_grad 500x10 float32", "loss 500x10 float32"}
    assert len(found) == 5  # the reference and the copy of each, and the read of the loss
    for each in found:
        assert each["stats"]["rounds"] == 4
        matrix = 500 * 10 * 4
        every = matrix * (1 + ("grad" in each["group"])) + 500 * 8
        moved = 2 * matrix if " copy " in each["name"] else matrix if " read " in each["name"] else every
        assert each["extra_info"]["gb_per_s"] == pytest.approx(moved / each["stats"]["median"] / 1e9)
