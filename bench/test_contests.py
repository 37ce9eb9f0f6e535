"""`pytest bench`: the contests of `sce bench`, with pytest-benchmark's tables, histograms and storage.

A group for each task, a test for each contestant: its answer is right, and this is how long it takes.
With --benchmark-disable every kind of task runs once, tiny, and nothing is timed.

pytest-benchmark runs its tests one after the other, and a machine that slows down in between would favour
whoever was early. So the first test of a group measures the whole group in alternating rounds, and each test
of it hands its own turns to pytest-benchmark, by a clock that shows what was measured.
"""

from __future__ import annotations

from functools import cache

import pytest

from sce.bench.clock import Rounds
from sce.bench.contest import LIMITS, Result, contest
from sce.bench.contestant import Contestant, backends
from sce.bench.peers import peers
from sce.bench.suites import full, smoke
from sce.bench.task import Task

ONCE = Rounds(least=1, enough=0, most=1)


class Replay:
    """A clock that moves on by the next of `left` when `turn` is run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.left: list[float] = []

    def __call__(self) -> float:
        return self.now

    def turn(self) -> None:
        self.now += self.left.pop()


replay = Replay()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    tasks = smoke() if metafunc.config.getoption("benchmark_disable") else full()
    metafunc.parametrize(
        ("task", "name", "buffers"),
        [
            pytest.param(
                task,
                name,
                buffers,
                id=f"{task} {name} {buffers}",
                marks=pytest.mark.benchmark(group=str(task), timer=replay),
            )
            for task in tasks
            for name, buffers in entries(task)
        ],
    )


@cache
def everyone() -> tuple[Contestant, ...]:
    return (*backends(), *peers())


def entries(task: Task) -> list[tuple[str, str]]:
    """Who takes the task, and under which policy. Those that are missing are skipped, and tell why."""
    limits = () if task.where == "call" else LIMITS if task.op == "loss" else LIMITS[:1]
    entered = [who for who in everyone() if who.missing() or not who.refuses(task)]
    found = [(who.name, str(buffers)) for who in entered for buffers in who.buffers(task)]
    return found + [(name, "reused") for name in limits]


@cache
def measured(task: Task, once: bool) -> dict[tuple[str, str], Result]:
    results = contest(task, everyone(), ONCE if once else Rounds())
    return {(r.contestant, r.buffers): r for r in results}


def test_contest(task: Task, name: str, buffers: str, request: pytest.FixtureRequest) -> None:
    result = measured(task, request.config.getoption("benchmark_disable"))[name, buffers]
    if result.status == "missing":
        pytest.skip(f"{name}: {result.why}")
    assert result.status == "ok", result.why
    benchmark = request.getfixturevalue("benchmark")  # not before: a skipped test must not ask for it
    benchmark.extra_info |= {"gb_per_s": result.gb_per_s, "share_of_copy": result.share_of_copy}
    replay.left = [*reversed(result.turns)]
    benchmark.pedantic(replay.turn, rounds=len(result.turns))
