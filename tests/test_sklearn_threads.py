"""A fit leaves SciPy's own BLAS one thread, and gives it back what it had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.linalg  # noqa: F401  # loads its BLAS
from threadpoolctl import ThreadpoolController, threadpool_limits

from sce.sklearn import SoftmaxRegression, threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """On one core a BLAS has one thread anyway."""
    with threadpool_limits(2, "blas"):
        yield


def counts() -> dict[str, int]:
    return {found["filepath"]: found["num_threads"] for found in ThreadpoolController().info()}


@pytest.fixture
def own() -> set[str]:
    found = {library["filepath"] for library in threads._blas_of_scipy().info()}
    if not found:
        pytest.skip("SciPy shares NumPy's BLAS here, which is left alone")
    return found


def fit() -> None:
    rng = np.random.default_rng(0)
    model = SoftmaxRegression(backend="reference", verbose=1)  # it prints, within its solver
    model.fit(rng.normal(size=(30, 3)), rng.integers(0, 3, 30))


def test_only_scipys_has_one(own: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = counts()
    seen: list[dict[str, int]] = []
    monkeypatch.setattr("builtins.print", lambda *_, **__: seen.append(counts()))
    fit()
    assert seen
    for during in seen:
        assert {path for path in during if during[path] != before[path]} == own
        assert all(during[path] == 1 for path in own)
    assert counts() == before


def test_a_fit_that_fails_gives_it_back(own: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = counts()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.print", fail)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert counts() == before


def test_the_last_of_several_fits_gives_it_back(own: set[str]) -> None:
    before, inside, over = counts(), threading.Event(), threading.Event()

    def other() -> None:
        with threads.alone():
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=other)
    with threads.alone():
        thread.start()
        assert inside.wait(10)
    assert all(counts()[path] == 1 for path in own)  # the other is at work still
    over.set()
    thread.join()
    assert counts() == before


def test_a_blas_that_both_share_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(threads.scipy, "__file__", str(tmp_path / "scipy" / "__init__.py"))
    monkeypatch.setattr(threads, "_blas_of_scipy", threads._blas_of_scipy.__wrapped__)
    before = counts()
    with threads.alone():
        assert counts() == before
    assert counts() == before
