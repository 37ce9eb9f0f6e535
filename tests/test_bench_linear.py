"""The bench of the linear model: everyone computes the same, and what the page says is what was measured."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import sce
from sce.bench import linear
from sce.bench.cold.fresh import Reply, ask
from sce.bench.cold.worker import why_no_memory
from sce.bench.linear import LinearTask, inputs
from sce.bench.markdown import marked, put
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
def test_everyone_computes_the_same(contestant):
    if why := contestant.missing():
        pytest.skip(why)
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
    monkeypatch.setattr(linear.chunks, "_MOST", 10 * 4 * TINY.c)
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
    reply = ask(linear.measure, CONTESTANTS["sce"], TINY, {"SCE_BACKEND": "reference"})
    assert reply.status == "ok", reply.why
    timed = ("gradients", "bare gradients", "likelihood", "bare likelihood")
    assert all(len(reply.figures[name]) >= 5 for name in timed)
    assert all(len(reply.figures[f"memory of {name}"]) == 1 for name in ("gradients", "likelihood"))
    x, w, y = inputs(TINY)
    assert reply.figures["loss"] == pytest.approx([sce.linear_cross_entropy(x, w, y)], rel=1e-6)


class Slow(linear.Ours):
    def __new__(cls, called):
        self = super().__new__(cls)
        self.called = called
        return self

    def prepare(self, given):
        return linear.Prepared({name: partial(self.call, name) for name in self.called}, lambda got: got)

    def call(self, name):
        self.called[name] += 1
        return 1.0, np.ones((2, 2)), np.ones((2, 3))


def test_long_calls_are_few(monkeypatch):
    """Of a call of half a minute: the first, the one whose memory is measured, and what a quotient takes."""
    if why := why_no_memory():
        pytest.skip(why)
    monkeypatch.setattr(linear, "_LONG", 0.0)
    monkeypatch.setattr(linear, "alternate", None)
    for turns, names in (
        (2, ("gradients", "bare gradients", "likelihood", "bare likelihood")),
        (1, ("gradients", "likelihood")),
    ):
        slow = Slow(dict.fromkeys(names, 0))
        figures = linear.measure(slow, TINY)
        assert {name: len(figures[name]) for name in names} == dict.fromkeys(names, turns)
        assert slow.called == {name: turns + (not name.startswith("bare")) for name in names}


def test_who_does_not_fit_into_memory_is_not_started(monkeypatch):
    task, torch, chunked = linear.TASKS[0], linear.Torch(), linear.Torch("in chunks", chunked=True)
    monkeypatch.setattr(linear, "free_memory", lambda: 8 << 30)
    assert "not enough memory" in torch.refuses(task)
    assert "14.8 GB, 8.6 GB are free" in linear.Jax().refuses(task)
    assert chunked.refuses(task) is None
    assert linear.Ours().refuses(task) is None
    for free in (64 << 30, None):
        monkeypatch.setattr(linear, "free_memory", lambda free=free: free)
        assert torch.refuses(task) is None


class Killed(linear.Ours):
    def prepare(self, given):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
def test_a_process_that_was_killed_is_reported_as_such():
    reply = ask(linear.measure, Killed(), TINY)
    assert reply.status == "failed"
    assert "killed, as Linux does where memory runs out" in reply.why


def test_the_tables_go_between_the_marks_and_other_scripts_keep_them():
    page = put("# A page\n\ntext\n", "bench/linear.py", "one\n")
    assert page == "# A page\n\ntext\n\n<!-- bench/linear.py -->\none\n<!-- /bench/linear.py -->\n"
    page = put(page + "\nafter\n", "bench/other.py", "three")
    page = put(page, "bench/linear.py", "two")
    assert page.index("two") < page.index("after") < page.index("three")
    assert "one" not in page
    assert marked(page) == [
        "<!-- bench/linear.py -->\ntwo\n<!-- /bench/linear.py -->",
        "<!-- bench/other.py -->\nthree\n<!-- /bench/other.py -->",
    ]
    empty = "<!-- bench/a.py --flag -->\n<!-- /bench/a.py --flag -->\n\nbetween\n\n"
    page = put(empty + page, "bench/linear.py", "four")
    assert page.startswith(empty)
    assert "two" not in page
    page = put(page, "bench/a.py --flag", "five")
    assert page.startswith("<!-- bench/a.py --flag -->\nfive\n<!-- /bench/a.py --flag -->\n\nbetween\n\n")
    assert put("", "bench/linear.py", "x") == "<!-- bench/linear.py -->\nx\n<!-- /bench/linear.py -->\n"


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
    made = script.section(document, "python bench/linear.py")
    assert made.startswith("## The linear model\n")
    assert "| command | `python bench/linear.py` |" in made
    assert "### 1000 rows, 100 features, 10 classes: an example" in made
    assert "All logits: 0.0400 MB. Products: 0.00600 GFLOP." in made
    assert (
        "| sce | 500 ms | 450 ms - 550 ms | 3 | 0.0120 | 1.20 | 33.0 MB | 200 ms | 2.00 | 32.0 MB |" in made
    )
    assert "| torch | 500 ms | 450 ms - 550 ms | 3 | 0.0120 |  | 33.0 MB | 200 ms |  | 32.0 MB |" in made
    assert "- **jax**: missing: not \\| there" in made
    assert "/somewhere" not in made
