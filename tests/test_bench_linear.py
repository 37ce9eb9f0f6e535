"""The bench of the linear model: everyone computes the same, and what the page says is what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

import sce
from sce.bench import linear
from sce.bench.cold.fresh import Reply, ask
from sce.bench.cold.worker import why_no_memory
from sce.bench.linear import LinearTask, inputs
from sce.linear import products

TINY = LinearTask(40, 6, 7, "tiny")
CONTESTANTS = {contestant.name: contestant for contestant in linear.contestants()}
SCRIPT = Path(__file__).parents[1] / "bench" / "linear.py"


@pytest.fixture
def script():
    pytest.importorskip("typer", reason="bench/linear.py is a command")
    spec = importlib.util.spec_from_file_location("bench_linear", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize("contestant", CONTESTANTS.values(), ids=CONTESTANTS.keys())
def test_everyone_computes_the_same(contestant, monkeypatch):
    if why := contestant.missing():
        pytest.skip(why)
    monkeypatch.setattr(products, "_gemm", products._gemm)  # one of them replaces it
    x, w, y = given = inputs(TINY)
    want_loss, g = sce.loss_and_grad(x.astype(float) @ w, y, backend="reference")
    ready = contestant.prepare(given)
    for _ in range(2):  # nothing of the first call is in the second's answer
        loss, dx, dw = ready.answer(ready.calls["gradients"]())
        assert loss == pytest.approx(want_loss, rel=1e-6)
        np.testing.assert_allclose(dx, g @ w.T, atol=1e-6)
        np.testing.assert_allclose(dw, x.T @ g, atol=1e-6)
    assert float(ready.calls["likelihood"]()) == pytest.approx(want_loss, rel=1e-6)


def test_the_bare_products_are_those_of_a_call(monkeypatch):
    """As many, of the same shapes: a bar that leaves one out, or takes other chunks, is no bar."""
    pytest.importorskip("scipy", reason="the products are added up by it")
    seen = []

    def spy(name):
        function = getattr(products, name)

        def seeing(a, b, into):
            seen.append((name, a.shape, b.shape))
            return function(a, b, into)

        return seeing

    for name in ("multiply", "add_product"):
        spied = spy(name)
        monkeypatch.setattr(products, name, spied)
        monkeypatch.setattr(linear.host, name, spied)
    monkeypatch.setattr(linear.host, "_MOST", 10 * 4 * TINY.c)
    calls = linear.Ours().prepare(inputs(TINY)).calls
    for call in ("gradients", "likelihood"):
        seen.clear()
        calls[call]()
        ours = seen.copy()
        seen.clear()
        calls[f"bare {call}"]()
        assert seen == ours
        assert len(seen) == {"gradients": 4 + 3, "likelihood": 4}[call]  # the first chunk adds to nothing


def test_a_measurement_in_a_fresh_process():
    if why := why_no_memory():
        pytest.skip(why)
    reply = ask(linear.measure, CONTESTANTS["sce, NumPy alone"], TINY, {"SCE_BACKEND": "reference"})
    assert reply.status == "ok", reply.why
    timed = ("gradients", "bare gradients", "likelihood", "bare likelihood")
    assert all(len(reply.figures[name]) >= 5 for name in timed)
    assert all(len(reply.figures[f"memory of {name}"]) == 1 for name in ("gradients", "likelihood"))
    x, w, y = inputs(TINY)
    assert reply.figures["loss"] == pytest.approx([sce.linear_cross_entropy(x, w, y)], rel=1e-6)


FIGURES = {
    "loss": [2.0],
    "dX": [1.0, -0.5],
    "dW": [0.25, 0.0],
    "gradients": [0.6, 0.5, 0.4],
    "bare gradients": [0.5, 0.4, 0.4],
    "likelihood": [0.2, 0.2, 0.2],
    "bare likelihood": [0.1, 0.1, 0.1],
    "memory of gradients": [33e6],
    "memory of likelihood": [32e6],
}


def test_who_is_far_from_ours_has_no_times(script):
    off = {**FIGURES, "dW": [0.2507, 0.0]}
    lost = {**FIGURES, "loss": [float("nan")]}
    near = {**FIGURES, "dX": [1.0005, -0.5]}
    found = {name: Reply("ok", None, figures) for name, figures in
             {"sce": FIGURES, "off": off, "lost": lost, "near": near}.items()}  # fmt: skip
    found["gone"] = Reply("missing", "not there")
    judged = script.agreed(found)
    assert {name: reply.status for name, reply in judged.items()} == {
        "sce": "ok", "off": "failed", "lost": "failed", "near": "ok", "gone": "missing",
    }  # fmt: skip
    assert judged["off"].why == "its dW is not ours"


def test_the_page(script):
    peer = {k: v for k, v in FIGURES.items() if not k.startswith("bare")}
    contestants = {
        "sce": Reply("ok", None, FIGURES)._asdict(),
        "torch": Reply("ok", None, peer)._asdict(),
        "jax": Reply("missing", "not | there")._asdict(),
    }
    task = LinearTask(1000, 100, 10, "an example")
    document = {
        "machine": {"processor": "P", "usable_cores": 2, "threads": 2, "system": "S"},
        "commit": "abc",
        "versions": {"numpy": "2"},
        "environment": {"SCE_X": "1", "SCE_CACHE_DIR": "/somewhere"},
        "shapes": [{"task": task._asdict(), "contestants": contestants}],
    }
    made = script.page(document, "python bench/linear.py")
    assert "## 1000 rows, 100 features, 10 classes: an example" in made
    assert "All logits: 0.0400 MB. Products: 0.00600 GFLOP." in made
    assert "| sce | 500 ms | 450 ms - 550 ms | 0.0120 | 1.20 | 33.0 MB | 200 ms | 2.00 | 32.0 MB |" in made
    assert "| torch | 500 ms | 450 ms - 550 ms | 0.0120 |  | 33.0 MB | 200 ms |  | 32.0 MB |" in made
    assert "- **jax**: missing: not \\| there" in made
    assert "/somewhere" not in made
    assert made.startswith("<!-- Generated by: python bench/linear.py -- do not edit: run that again. -->")
