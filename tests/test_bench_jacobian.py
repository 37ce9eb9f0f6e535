"""The bench of Jacobians: everyone computes the same, and the page gets its tables."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from sce.bench.clock import Rounds

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
SCRIPT = Path(__file__).parents[1] / "bench" / "jacobian.py"


@pytest.fixture
def script():
    pytest.importorskip("typer", reason="bench/jacobian.py is a command")
    pytest.importorskip("numba", reason="it measures the cpu backend")
    spec = importlib.util.spec_from_file_location("bench_jacobian", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_everyone_computes_the_same_and_who_does_not_is_found(script):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 7, 5))
    for name in script.JACOBIANS + script.PRODUCTS:
        out = np.zeros((7, 5, 5) if name in script.JACOBIANS else (7, 5))
        calls = dict(script.contestants(name, x, v, rng.integers(0, 5, 7), out))
        assert list(calls)[:2] == ["sce", "NumPy"]
        assert script.wrong(calls, x.dtype) == set()
        more = {
            name: lambda made=calls["NumPy"], by=by: made() * by
            for name, by in (("off", 1.001), ("nan", np.nan))
        }
        assert script.wrong(calls | more, x.dtype) == {"off", "nan"}


def test_the_page_gets_its_tables(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "CLASSES", (3,))
    monkeypatch.setattr(script, "ROUNDS", Rounds(least=1, enough=0, patience=0))
    page = tmp_path / "page.md"
    page.write_text(
        "# Before\n\n<!-- bench/jacobian.py -->\nan older section\n<!-- /bench/jacobian.py -->\n\nAfter.\n"
    )
    script.main(page, megabytes=1)
    text = page.read_text("utf-8")
    assert "an older section" not in text
    assert text.startswith("# Before\n\n<!-- bench/jacobian.py -->\n## Jacobians")
    assert text.endswith("<!-- /bench/jacobian.py -->\n\nAfter.\n")
    for name in script.JACOBIANS + script.PRODUCTS:
        assert text.count(f"\n| `{name}` | 3 |") == 2
