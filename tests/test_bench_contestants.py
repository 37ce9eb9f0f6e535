"""Who takes part in a benchmark: our backends under each policy of buffers, and the peers."""

from __future__ import annotations

import shutil
import sys
import types

import numpy as np
import pytest

import sce
from sce import registry
from sce.bench import contestant, suites
from sce.bench import task as tasks
from sce.bench.clock import Rounds
from sce.bench.contest import contest
from sce.bench.contestant import Backend
from sce.bench.peers import device_peers, peers
from sce.bench.task import OPTIONS, Task

ONCE = Rounds(least=1, enough=0, most=1)
SMALL = Task("loss_and_grad", 60, 7)
DTYPES = ("float32", "float64", "float16", "bfloat16")
PEERS = {peer.name: peer for peer in peers()}
COMPILED = "torch.compile"


# Our backends


@pytest.mark.parametrize("policy", ["reused", "fresh", "in place"])
def test_whose_memory_the_gradient_gets(backend, policy, monkeypatch):
    seen = []

    def spy(logits, target, out, **options):
        seen.append((logits, out))
        return sce.loss_and_grad(logits, target, out=out, **options)

    monkeypatch.setattr(contestant, "loss_and_grad", spy)
    given = tasks.inputs(SMALL)
    before = given.logits.copy()
    run = Backend(backend).prepare(SMALL, given, policy)
    (_, first), (_, second) = run.call(), run.call()
    np.testing.assert_array_equal(given.logits, before)  # everyone's
    assert np.shares_memory(first, second) is (policy != "fresh")
    assert {(out is None, out is logits) for logits, out in seen} == {
        (policy == "fresh", policy == "in place")
    }
    assert all((logits is given.logits) is (policy != "in place") for logits, _ in seen)


def test_the_policies_of_a_backend():
    assert Backend("cpu").buffers(SMALL) == ("reused", "fresh", "in place")
    assert Backend("cpu").buffers(SMALL._replace(op="loss")) == ("none",)
    assert Backend("cpu").buffers(SMALL._replace(where="call")) == ("fresh",)
    assert Backend("reference").buffers(SMALL) == ("fresh",)


@pytest.mark.parametrize("task", [*suites.smoke()], ids=str)
def test_every_option_reaches_a_backend(task):
    """The reference: `pytest bench` holds the others to it, which compile for each option."""
    assert {r.status for r in contest(task, [Backend("reference")], ONCE)} == {"ok"}


def module(monkeypatch, name, **names):
    """A backend by import path, made of the reference."""
    made = types.ModuleType(name)
    made.__dict__.update(vars(registry.load("reference")), **names)
    monkeypatch.setitem(sys.modules, name, made)
    return name


def test_why_a_backend_does_not_run(monkeypatch):
    assert "Did you mean 'reference'?" in Backend("refrence").missing()
    picky = Backend(module(monkeypatch, "bench_fakes.picky", refuses=lambda problem: "takes nothing."))
    assert (picky.missing(), picky.refuses(SMALL)) == (None, "takes nothing.")
    absent = Backend(module(monkeypatch, "bench_fakes.absent", missing=lambda: "not here."))
    assert absent.missing() == "not here."


def test_all_backends_are_entered_but_those_for_debugging(monkeypatch):
    debug = module(monkeypatch, "bench_fakes.debug", debug=True)
    names = {debug: (), "no.such_module": (), **dict.fromkeys(registry.registered(), ())}
    monkeypatch.setattr(contestant.registry, "registered", lambda: names)
    loaded = registry.load
    monkeypatch.setattr(contestant.registry, "load", lambda name: loaded(name))
    assert {c.name for c in contestant.backends()} == names.keys() - {debug, "cuda-emulated"}


# The peers


def here(name):
    if why := PEERS[name].missing():
        pytest.skip(why)
    return PEERS[name]


def test_every_peer_is_entered():
    assert list(PEERS) == ["numpy", "scipy", "torch", "torch.compile", "jax", "sklearn"]
    assert [peer.name for peer in device_peers()] == ["torch", "torch.compile", "liger", "quack"]
    assert not any(peer.ours for peer in (*peers(), *device_peers()))


@pytest.mark.parametrize(
    ("name", "op", "dtype"),
    [(COMPILED, "loss_and_grad", "float32")]  # some seconds for each kind of task: the benches try them all
    + [
        (name, op, dtype)
        for name in PEERS
        if name != COMPILED
        for op in ("loss", "loss_and_grad")
        for dtype in DTYPES
    ],
)
def test_a_peer_is_right_on_what_it_takes(name, op, dtype):
    peer, task = here(name), Task(op, 60, 7, dtype)
    found = [r for r in contest(task, [peer], ONCE) if r.contestant == name]
    takes = name != "sklearn" or dtype in ("float32", "float64")
    assert [r.status for r in found] == ["ok" if takes else "refused"] * len(peer.buffers(task))


@pytest.mark.parametrize("name", PEERS)
def test_what_a_peer_refuses(name):
    refuses = PEERS[name].refuses
    assert refuses(SMALL) is None
    assert {refuses(SMALL._replace(option=option)) for option in OPTIONS} == {"measured without options."}
    other = refuses(SMALL._replace(layout="channels"))
    assert other == (None if name.startswith("torch") else "measured with the class axis last.")
    assert (refuses(SMALL._replace(c=2)) is None) is (name != "sklearn")


def test_torch_takes_the_class_axis_where_it_is():
    task = Task("loss_and_grad", 64, 21, layout="channels")
    assert contest(task, [here("torch")], ONCE)[0].status == "ok"


@pytest.mark.parametrize("name", [name for name in PEERS if name != COMPILED])
def test_whose_memory_a_peers_gradient_gets(name):
    peer = here(name)
    for policy in peer.buffers(SMALL):
        run = peer.prepare(SMALL, tasks.inputs(SMALL), policy)
        first, second = run.call(), run.call()
        if name == "sklearn":  # whose answers show the memory
            assert np.shares_memory(first[1], second[1]) is (policy == "reused")
        else:
            assert policy == "fresh"


@pytest.mark.parametrize(
    ("name", "gone", "package"),
    [
        ("scipy", "scipy.special", "scipy"),
        ("torch", "torch", "torch"),
        ("torch.compile", "torch", "torch"),
        ("jax", "jax", "jax"),
        ("jax", "optax", "optax"),
        ("sklearn", "sklearn._loss.loss", "scikit-learn"),
        ("liger", "liger_kernel.transformers.functional", "liger-kernel"),
        ("quack", "quack.cross_entropy", "quack-kernels"),
    ],
)
def test_a_missing_peer_says_what_to_install(name, gone, package, monkeypatch):
    if gone == "optax":
        here("jax")
    monkeypatch.setitem(sys.modules, gone, None)
    (peer,) = {peer.name: peer for peer in (*peers(), *device_peers()) if peer.name == name}.values()
    assert peer.missing().startswith("ModuleNotFoundError: ")
    assert peer.missing().endswith(f". Try: pip install {package}")


def test_torch_compile_needs_a_compiler(monkeypatch):
    here("torch")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert PEERS[COMPILED].missing() == "torch.compile needs a C++ compiler, and none is on the PATH."
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "clang++" else None)
    assert PEERS[COMPILED].missing() is None
