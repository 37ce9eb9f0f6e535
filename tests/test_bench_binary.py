"""The bench of the binary loss: everyone computes the same, and the page gets its tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from sce.bench.clock import Rounds

SCRIPT = Path(__file__).parents[1] / "bench" / "binary.py"


@pytest.fixture
def script():
    pytest.importorskip("typer", reason="bench/binary.py is a command")
    spec = importlib.util.spec_from_file_location("bench_binary", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def problem():
    rng = np.random.default_rng(1)
    return (rng.normal(size=300) * 4).astype(np.float32), rng.integers(0, 2, 300).astype(np.int8)


def test_who_computes_something_else_is_found(script, problem):
    x, y = problem
    calls = dict(script.contestants(x, y, {}))
    assert len(calls) >= 5  # ours and NumPy at least
    script.check(calls, x, y)
    for wrong in (lambda: (calls["NumPy"]()[0] * 1.001, None), lambda: (calls["NumPy"]()[0], y / x.size)):
        with pytest.raises(AssertionError, match="wrong"):
            script.check({"wrong": wrong}, x, y)


def test_the_tables_go_between_the_marks(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ROUNDS", Rounds(least=1, enough=0.0, most=1))
    monkeypatch.setattr(script, "PEERS", {"NumPy": script.numpy_textbook, "gone": lambda x, y: missing()})
    page = tmp_path / "page.md"
    page.write_text(
        "# Benchmarks\n\n<!-- bench/binary.py -->\nstale figures\n<!-- /bench/binary.py -->\n\nafter\n"
    )
    script.main(page, 5000)
    found = page.read_text()
    assert found.startswith("# Benchmarks\n\n<!-- bench/binary.py -->\n## The binary loss, 5000 elements")
    assert found.endswith("<!-- /bench/binary.py -->\n\nafter\n")
    assert "stale figures" not in found
    assert "gone is missing: not here." in found
    assert found.count("### float") == found.count("| **sce** `cpu` |") == found.count("| NumPy |") == 4
    for line in found.splitlines():
        assert not line.startswith("|") or line.count("|") in (3, 6)


def missing():
    raise ImportError("not here")


def test_the_bar_is_the_fastest_copy_and_for_a_loss_the_fastest_read(script):
    times = {"copy, a": 4.0, "copy, b": 2.0, "read, a": 1.0, "ours": 6.0, "the loss alone": 3.0}
    found = {name: script.Times((seconds,)) for name, seconds in times.items()}
    lines = {line[0]: (line[-2], line[-1]) for line in script.rows(found, 1_000_000_000)}
    assert lines == {
        "copy, b": ("2.00 ns", "1.00"),
        "read, a": ("1.00 ns", "1.00 reads"),
        "ours": ("6.00 ns", "3.00"),
        "the loss alone": ("3.00 ns", "3.00 reads"),
    }
