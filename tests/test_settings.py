"""`sce.threads` and SCE_NUM_THREADS: who may say how many, for whom, and what is refused."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

import sce
from sce import machine, settings
from sce.backend import thread_limit


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.delenv(settings.ENV_THREADS, raising=False)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    for module in (settings, machine):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)


def test_there_is_no_limit_unless_one_is_set():
    assert thread_limit() is None


def test_the_innermost_block_counts_and_ends():
    with sce.threads(3):
        assert thread_limit() == 3
        with sce.threads(np.int64(8)):
            assert thread_limit() == 8
        with pytest.raises(KeyError), sce.threads(1):
            raise KeyError
        assert thread_limit() == 3
    assert thread_limit() is None


def test_the_environment_is_read_at_each_call_and_a_block_comes_before_it(monkeypatch):
    for value, limit in (("2", 2), (" 5 ", 5), ("", None)):
        monkeypatch.setenv(settings.ENV_THREADS, value)
        assert thread_limit() == limit
        with sce.threads(4):
            assert thread_limit() == 4


@pytest.mark.parametrize(
    ("n", "kind", "words"),
    [
        (0, ValueError, r"sce\.threads is 0: this process has 8 core\(s\), so it takes 1 to 8\."),
        (-1, ValueError, r"sce\.threads is -1: .* 1 to 8"),
        (9, ValueError, r"sce\.threads is 9: .* 1 to 8"),
        (2.0, TypeError, r"sce\.threads takes an integer, got float\."),
        ("2", TypeError, r"integer, got str"),
        (None, TypeError, r"integer, got NoneType"),
        (True, TypeError, r"integer, got bool"),
    ],
)
def test_wrong_numbers(n, kind, words):
    with pytest.raises(kind, match=words), sce.threads(n):
        pytest.fail("the block ran")
    assert thread_limit() is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0", r"SCE_NUM_THREADS is 0: this process has 8 core\(s\), so it takes 1 to 8\."),
        ("-3", r"SCE_NUM_THREADS is -3: .* 1 to 8"),
        ("9", r"SCE_NUM_THREADS is 9: .* 1 to 8"),
        ("many", r"SCE_NUM_THREADS is 'many': it takes an integer, or unset it\."),
        ("2.5", r"SCE_NUM_THREADS is '2\.5'"),
    ],
)
def test_wrong_environments(monkeypatch, value, words):
    monkeypatch.setenv(settings.ENV_THREADS, value)
    with pytest.raises(ValueError, match=words):
        thread_limit()
    assert machine.threads() == 8  # a report about a wrong setting does not break


def test_reports_count_the_limit(monkeypatch):
    monkeypatch.setenv(settings.ENV_THREADS, "3")
    assert machine.threads() == 3
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    assert machine.threads() == 2


def test_it_is_local_to_a_thread_and_to_a_task():
    seen = []
    with sce.threads(2):
        other = threading.Thread(target=lambda: seen.append(thread_limit()))
        other.start()
        other.join()
    assert seen == [None]

    async def task(n):
        with sce.threads(n):
            await asyncio.sleep(0.01)
            return thread_limit()

    async def both():
        return await asyncio.gather(task(1), task(2))

    assert asyncio.run(both()) == [1, 2]
