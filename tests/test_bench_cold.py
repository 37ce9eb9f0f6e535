"""What a fresh process pays: every figure is of what it says, and what goes wrong is a row with the reason.

No test asserts that something is fast. Contestants of known cost must be seen to cost it: they sleep,
allocate, fail, and write down what they find, in processes of their own.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from sce.bench import cold
from sce.bench.cold import fresh, worker
from sce.bench.contestant import Answer, Backend, Run
from sce.bench.task import Task

SMALL = Task("loss_and_grad", 8, 10)
MB = 1 << 20
ANSWER = Answer(0.0, None)


class Fake(NamedTuple):
    """A contestant whose call does nothing, but that its subclasses override. They are sent by name."""

    name: str = "fake"
    ours: bool = False
    log: str = ""  # a file: what the calls write down

    def missing(self):
        return None

    def refuses(self, task):
        return None

    def buffers(self, task):
        return ("fresh",)

    def prepare(self, task, given, buffers):
        return Run(lambda: self.call(given.logits), lambda got: ANSWER)

    def call(self, logits):
        print("what a framework prints is not read as the figures")

    def note(self, text):
        with open(self.log, "a", encoding="utf-8") as file:
            print(text, file=file)

    def noted(self):
        return Path(self.log).read_text(encoding="utf-8").splitlines()


class Missing(Fake):
    def missing(self):
        return "its package is not here."


class Refusing(Fake):
    def refuses(self, task):
        return "takes nothing."


class Raising(Fake):
    def call(self, logits):
        raise RuntimeError("broken on purpose\n")


class Dying(Fake):
    def call(self, logits):
        os._exit(3)


class DyingAtExit(Fake):
    """Answers first: a crash when a framework's threads are torn down."""

    def call(self, logits):
        atexit.register(os._exit, 4)


class Hanging(Fake):
    def call(self, logits):
        print("about to hang", file=sys.stderr, flush=True)
        time.sleep(600)


class Flaky(Fake):
    """Works in the first two processes."""

    def call(self, logits):
        self.note("called")
        if len(self.noted()) > 2:
            raise RuntimeError("worn out")


class Slow(Fake):
    def missing(self):
        time.sleep(0.1)

    def prepare(self, task, given, buffers):
        time.sleep(0.2)
        return super().prepare(task, given, buffers)

    def call(self, logits):
        time.sleep(0.4)


class Caching(Fake):
    """Finds out whether its cache was filled before."""

    def call(self, logits):
        caches = [Path(os.environ[name]) for name in ("SCE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")]
        self.note(" ".join("warm" if (path / self.name).exists() else "empty" for path in caches))
        for path in caches:
            path.mkdir(parents=True, exist_ok=True)
            (path / self.name).touch()


class Threaded(Fake):
    def prepare(self, task, given, buffers):
        names = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        self.note(" ".join(os.environ[name] for name in names))
        return super().prepare(task, given, buffers)


class Allocating(Fake):
    """64 MB that are freed again, in one piece."""

    def call(self, logits):
        np.ones(64 * MB, np.uint8)


class Piecewise(Fake):
    """64 MB in pieces that the allocator may keep for later."""

    def call(self, logits):
        [np.ones(MB // 16, np.uint8) for _ in range(1024)]


class Compiling(Fake):
    """64 MB in its first call alone."""

    def prepare(self, task, given, buffers):
        left = [64 * MB]
        return Run(lambda: np.ones(left.pop() if left else 1, np.uint8), lambda got: ANSWER)


class Returning(Fake):
    """64 MB that are its answer, and 16 beside it."""

    def call(self, logits):
        gradient = np.ones(64 * MB, np.uint8)
        np.ones(16 * MB, np.uint8)
        return gradient


class Keeping(Fake):
    """Its answer, which it keeps until the next call, as torch does with .grad."""

    def prepare(self, task, given, buffers):
        kept = []

        def call():
            kept.clear()
            kept.append(np.ones(64 * MB, np.uint8))

        return Run(call, lambda got: ANSWER)


@pytest.fixture(autouse=True)
def _processes_find_this_module(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.fspath(Path(__file__).resolve().parents[__name__.count(".")]))
    monkeypatch.setattr(cold, "RUNS", 2)


def silent(text):
    pass


def by_cost(rows):
    return {(row.cost, row.contestant, row.cache): row for row in rows}


def test_first_answer_is_the_sum_of_all_that_happens_before_it():
    rows = by_cost(cold.starts([Slow()], silent, empty=False, task=SMALL))
    assert rows["import", "fake", None].median_s >= 0.1
    assert rows["first_call", "fake", "warm"].median_s >= 0.4
    first = rows["first_answer", "fake", "warm"]
    assert first.median_s >= 0.7
    assert first.process_s >= first.median_s  # the parent sees the interpreter start and end, too
    assert first.runs == 2
    assert ("first_call", "fake", "empty") not in rows


def test_sce_is_part_of_what_ours_import_and_not_of_peers():
    ours, peer = (
        cold._with_sums(fresh.ask(worker.start, Fake(ours=ours), SMALL), ours).figures
        for ours in (True, False)
    )
    assert ours["import"][0] == pytest.approx(ours["sce"][0] + ours["load"][0])
    assert peer["import"] == peer["load"]
    rows = by_cost(cold.starts([Fake()], silent, empty=False, task=SMALL))
    assert rows["import", "sce", None].median_s > rows["import", "fake", None].median_s > 0


def test_caches_are_empty_then_warm(tmp_path):
    contestant = Caching(log=os.fspath(tmp_path / "log"))
    rows = by_cost(cold.starts([contestant], silent, empty=True, task=SMALL))
    assert contestant.noted() == ["empty empty"] * 2 + ["warm warm"] * 2
    assert rows["first_call", "fake", "empty"].runs == rows["first_call", "fake", "warm"].runs == 2


def test_quick_takes_the_users_cache_and_fills_it_first(tmp_path, monkeypatch):
    monkeypatch.setenv("SCE_CACHE_DIR", os.fspath(tmp_path / "kernels"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", os.fspath(tmp_path / "inductor"))
    contestant = Caching(ours=True, log=os.fspath(tmp_path / "log"))
    rows = by_cost(cold.starts([contestant], silent, empty=False, task=SMALL))
    assert contestant.noted() == ["empty empty", "warm warm", "warm warm"]
    assert (tmp_path / "kernels" / "fake").exists()
    assert rows["first_call", "fake", "warm"].runs == 2


@pytest.mark.parametrize(
    ("contestant", "status", "why"),
    [
        (Missing(), "missing", "its package is not here."),
        (Refusing(), "refused", "takes nothing."),
        (Raising(), "failed", "exit status 1: RuntimeError: broken on purpose"),
        (Dying(), "failed", "exit status 3"),
        (DyingAtExit(), "failed", "exit status 4"),
        (Hanging(), "failed", "no answer within 3 s: about to hang"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Fake) else "",
)
def test_what_does_not_run_is_a_row_of_every_cost(contestant, status, why, monkeypatch):
    monkeypatch.setattr(fresh, "PATIENCE", 3.0)
    rows = list(cold.starts([contestant, Fake("other")], silent, empty=True, task=SMALL))
    bad = [row for row in rows if row.contestant == "fake"]
    assert [(row.cost, row.cache) for row in bad] == [
        ("import", None),
        ("first_answer", "empty"),
        ("first_answer", "warm"),
        ("first_call", "empty"),
        ("first_call", "warm"),
    ]
    assert {(row.status, row.why, row.median_s, row.runs) for row in bad} == {(status, why, None, 0)}
    assert all(row.status == "ok" for row in rows if row.contestant == "other")


def test_failing_once_is_failing(tmp_path):
    rows = by_cost(cold.starts([Flaky(log=os.fspath(tmp_path / "log"))], silent, empty=True, task=SMALL))
    assert rows["first_call", "fake", "empty"].status == "ok"
    assert rows["first_call", "fake", "warm"].status == "failed"
    assert "worn out" in rows["first_call", "fake", "warm"].why


def test_a_call_of_ours_is_told_in_its_parts():
    rows = list(cold.calls([Backend("reference"), Fake(), Raising("raising")], silent))
    assert [(row.contestant, row.cost, row.status) for row in rows] == [
        ("reference", "decide", "ok"),
        ("reference", "prepare", "ok"),
        ("reference", "call", "ok"),
        ("fake", "call", "ok"),
        ("raising", "call", "failed"),
    ]
    decide, prepare, call = (row.median_s for row in rows[:3])
    assert 0 < decide < call  # a call does both, and the work
    assert 0 < prepare < call


@pytest.mark.skipif(worker.why_no_memory() is not None, reason=str(worker.why_no_memory()))
@pytest.mark.parametrize(
    ("contestant", "wanted"),
    [(Fake(), 0), (Allocating(), 64), (Piecewise(), 64), (Compiling(), 0), (Returning(), 16), (Keeping(), 0)],
    ids=lambda value: type(value).__name__ if isinstance(value, Fake) else "",
)
def test_memory_is_what_a_call_frees_again(contestant, wanted):
    (row,) = cold.memory([contestant], silent, SMALL)
    assert row.status == "ok", row.why
    assert row.bytes == pytest.approx(wanted * MB, abs=4 * MB)
    assert (row.cost, row.median_s) == ("memory", None)


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_memory_elsewhere_is_missing(platform, monkeypatch):
    monkeypatch.setattr(worker.sys, "platform", platform)
    (row,) = cold.memory([Fake()], silent, SMALL)
    assert (row.status, row.bytes) == ("missing", None)
    assert "only Linux" in row.why


def test_memory_where_the_peak_cannot_be_reset_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(worker.sys, "platform", "linux")
    monkeypatch.setattr(worker, "_CLEAR_REFS", tmp_path / "nowhere" / "clear_refs")
    (row,) = cold.memory([Fake()], silent, SMALL)
    assert row.status == "missing"
    assert "does not let a process reset" in row.why


def test_scaling_is_by_powers_of_two_up_to_all(tmp_path):
    contestant = Threaded("cpu", log=os.fspath(tmp_path / "log"))
    rows = list(cold.scaling([contestant, Fake("slow")], silent, tasks=[SMALL], most=3))
    assert [(row.contestant, row.threads, row.status) for row in rows] == [
        (name, threads, "ok") for threads in (1, 2, 3) for name in ("cpu", "copy")
    ]
    assert contestant.noted() == [" ".join([str(threads)] * 4) for threads in (1, 2, 3)]


def test_quick_is_of_ours_alone_and_needs_no_more():
    rows = list(cold.costs([Backend("reference"), Fake()], quick=True, say=silent))
    assert {row.contestant for row in rows} == {"sce", "reference"}
    assert {row.cost for row in rows} == {"import", "first_answer", "first_call", "decide", "prepare", "call"}
    for row in rows:
        assert json.loads(json.dumps(row._asdict())) == row._asdict()  # flat, and plain
        assert row.status == "ok", row.why
        assert row.low_s <= row.median_s <= row.high_s


def test_the_same_name_twice_is_refused():
    with pytest.raises(ValueError, match="names of their own: fake is there twice"):
        next(cold.costs([Fake(), Fake()], quick=False, say=silent))


def test_a_class_that_no_process_can_import_is_an_error():
    class Local(Fake):
        pass

    with pytest.raises(TypeError, match=r"'fake' cannot be sent .* at the top of a module"):
        fresh.ask(worker.call, Local(), SMALL)
