"""A fit leaves SciPy's own BLAS one thread, and gives it back what it had."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
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
    if not any(part in path for path in counts() for part in ("scipy.libs", "scipy/.dylibs")):
        pytest.skip("SciPy shares NumPy's BLAS here, which is left alone")
    found = {library["filepath"] for library in threads._blas_of_scipy().info()}
    assert found
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


def test_of_several_fits_one_sets_and_lifts_it(own: set[str]) -> None:
    before, inside, over = counts(), threading.Event(), threading.Event()

    def other() -> None:
        with threads.alone():
            inside.set()
            over.wait(10)

    thread = threading.Thread(target=other)
    with threads.alone():
        thread.start()
        assert inside.wait(10)
        assert all(counts()[path] == 1 for path in own)
    over.set()
    thread.join()
    assert counts() == before
    with threads.alone():
        assert all(counts()[path] == 1 for path in own)
    assert counts() == before


def test_packages_behind_a_link(own: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    package = Path(threads.scipy.__file__).parent
    (tmp_path / "packages").symlink_to(package.parent, target_is_directory=True)
    there = tmp_path / "packages" / package.name / "__init__.py"
    monkeypatch.setattr(threads.scipy, "__file__", str(there))
    found = threads._blas_of_scipy.__wrapped__().info()
    assert {library["filepath"] for library in found} == own


def test_a_limit_that_fails_is_none(own: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def limit(self, limits: int) -> None:
            raise OSError

    before = counts()
    with monkeypatch.context() as patch:
        patch.setattr(threads, "_blas_of_scipy", Broken)
        with pytest.raises(OSError, match=r"^$"), threads.alone():
            pass
    with threads.alone():
        assert all(counts()[path] == 1 for path in own)
    assert counts() == before


# In a process of its own: libraries that other tests have loaded do not like to be forked.
FORKED = """
import os, threading, warnings
from sce.sklearn import threads

inside, over = threading.Event(), threading.Event()

def other():
    with threads.alone():
        inside.set()
        over.wait(10)

thread = threading.Thread(target=other)
thread.start()
assert inside.wait(10)
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is the point
child = os.fork()
if not child:
    with threads.alone():
        limited = threads._one_fit.locked()
    os._exit(0 if limited and not threads._one_fit.locked() else 1)
over.set()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_limits_its_own_fits() -> None:
    """It was forked while a thread of the parent was fitting, which it has not got."""
    ran = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr


def test_a_blas_that_both_share_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(threads.scipy, "__file__", str(tmp_path / "scipy" / "__init__.py"))
    monkeypatch.setattr(threads, "_blas_of_scipy", threads._blas_of_scipy.__wrapped__)
    before = counts()
    with threads.alone():
        assert counts() == before
    assert counts() == before
