"""The CUDA kernels' own source in the emulator: right values, no races; and an emulator that finds faults."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import sce
from sce import conformance
from sce.backend import Answer
from sce.conformance.bounds import bounds
from sce.conformance.case import cast
from sce.conformance.compare import compare, same_bits
from sce.problem import prepare

pytest.importorskip("greenlet", reason="the emulator needs greenlet")

import sce_backends.cuda
from sce_backends import reference
from sce_backends.cuda import arithmetic, emulated, execute, kernels, plan
from sce_backends.cuda.emulate import NULL, Device, Fault, Pointer

HOME = Path(sce_backends.cuda.__file__).parent
SMALL = 1200  # elements: a thread costs tens of microseconds here
STRIDE = 29  # of the small cases of each group
# Jacobians are products there, rows of one problem: tests/test_cuda_arrays.py holds them to the reference.
GROUPS = tuple(dict.fromkeys(c.group for c in conformance.cases() if c.group != "Jacobians"))


def selection(group, start=0):
    """Every so many of a group's small cases."""
    small = [c for c in conformance.cases() if c.group == group and np.size(c.logits) <= SMALL]
    return small[start::STRIDE]


@pytest.mark.parametrize("group", GROUPS)
def test_the_kernels_conform(group):
    report = conformance.check("cuda-emulated", selection(group))
    assert report.passed
    assert not report.failures, "\n".join(f"{f.case} | {f.output}: {f.message}" for f in report.failures)


def test_binary_hessians_whose_temperature_squared_is_beyond_float64():
    cases = [c for c in conformance.cases() if c.group == "binary" and "temperature 1e" in c.name]
    report = conformance.check("cuda-emulated", cases)
    assert report.passed == len(cases) >= 10
    of_zero = sce.binary_loss_grad_hess(np.zeros(1), [1], temperature=1e-160, backend="cuda-emulated")
    assert of_zero[2] == np.inf  # 1 / 4 of 1e320


@pytest.mark.parametrize("group", ["options", "crossed", "edges", "confident", "binary"])
def test_they_conform_whoever_comes_first(group):
    """With the schedule reversed, and on a device without clusters."""

    class Reversed:
        on_device, debug, takes_binary = False, True, True
        refuses, missing = staticmethod(emulated.refuses), staticmethod(emulated.missing)

        @staticmethod
        def run(problem, answer):
            execute.execute(problem, answer, emulated.Machine((8, 0), 108, reverse=True))

    report = conformance.check(Reversed, selection(group, 7))
    assert report.passed
    assert not report.failures, "\n".join(f"{f.case} | {f.output}: {f.message}" for f in report.failures)


def solve(x, y, *, machine=None, grad_at=None, **options):
    """Loss and gradient in the emulator, the launches, and what is wrong with them by the suite's bounds."""
    problem = prepare(x, y, outputs=("loss", "grad"), **{"reduction": "none", **options}).problem
    grad = np.full_like(problem.logits, np.nan) if grad_at is None else grad_at
    loss = np.full(1 if problem.reduce else problem.rows, np.nan, plan.computed(problem))
    loss = loss.astype(np.float64) if problem.reduce else loss
    wide = np.longdouble if problem.dtype == "float64" else np.float64
    exact = Answer(loss=np.zeros(loss.shape, wide), grad=np.zeros(grad.shape, wide))
    reference.run(problem._replace(logits=problem.logits.astype(wide)), exact)
    known = {"loss": exact.loss, "grad": exact.grad.reshape(problem.rows, -1)}
    dtypes = {"loss": loss.dtype.name, "grad": grad.dtype.name}
    near = bounds(problem, known, dtypes)
    machine = machine or emulated.Machine()
    with np.errstate(all="ignore"):
        execute.execute(problem, Answer(loss=loss, grad=grad), machine)
    found = {"loss": loss, "grad": grad.reshape(problem.rows, -1)}
    wrong = [text for name in known if (text := compare(found[name], known[name], near[name])[0])]
    return found, machine.launches, wrong


# Classes, and which way a float32 row of so many takes: forced where it would take too many threads here.
WAYS = {
    "thread": (10, {}),
    "lanes": (100, {}),
    "lanes, unaligned": (101, {}),
    "warp with an edge": (515, {}),
    "block": (1100, {}),
    "block with an edge": (1101, {}),
    "cluster": (2500, {"BLOCK": 64, "GROUP_THREADS": 64, "WIDE_BLOCK": 64}),
    "split": (2501, {"BLOCK": 64, "GROUP_THREADS": 32, "WIDE_BLOCK": 64, "_LONG": 1}),
}


def ways(monkeypatch, way):
    classes, settings = WAYS[way]
    for name, value in settings.items():
        monkeypatch.setattr(plan, name, value)
    return classes


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_within_bounds_in_place_and_whoever_comes_first(monkeypatch, way, dtype):
    classes = ways(monkeypatch, way)
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(3, classes)) * 3
    y = rng.integers(0, classes, 3)
    x[1, y[1]] += 30  # sure of its label
    x, answers = cast(x, dtype), []
    for reverse in (False, True):
        for in_place in (False, True):
            own = x.copy()
            grad = own.reshape(3, 1, classes) if in_place else None
            machine = emulated.Machine(reverse=reverse)
            found, launches, wrong = solve(own, y, machine=machine, grad_at=grad)
            assert not wrong, wrong
            answers.append(found)
    spec = launches[0].spec
    assert spec.parts == {"cluster": "cluster", "split": "first"}.get(way, "one")
    assert (spec.lanes == 1) == (way == "thread")
    if dtype == "float32":
        assert spec.edge == (way in ("warp with an edge", "block with an edge", "split"))
    for other in answers[1:]:
        assert all(same_bits(answers[0][name], other[name]) for name in other)


OPTIONS = {
    "z-loss": {"z_loss": 0.03},
    "both": {"z_loss": 2.0, "temperature": 0.7},
    "weights": {"z_loss": 1e-4, "sample_weight": np.array([2.0, 0.5, -1.0])},
}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [*((words, "float32") for words in OPTIONS), ("both", "float64"), ("both", "bfloat16")],
)
@pytest.mark.parametrize("way", WAYS)
def test_options_within_bounds_in_every_way(monkeypatch, way, options, dtype):
    classes, options = ways(monkeypatch, way), OPTIONS[options]
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(3, classes)) * 3
    y = rng.integers(0, classes, 3)
    x[1, y[1]] += 30
    x[2, y[2]] -= 50
    x, answers = cast(x, dtype), []
    for reverse in (False, True):
        own = x.copy()
        grad = own.reshape(3, 1, classes)
        machine = emulated.Machine(reverse=reverse)
        found, launches, wrong = solve(own, y, machine=machine, grad_at=grad, **options)
        assert not wrong, wrong
        answers.append(found)
    spec = launches[-1].spec
    assert isinstance(spec, plan.Rows)
    assert spec.squared
    assert all(same_bits(answers[0][name], answers[1][name]) for name in found)


@pytest.mark.parametrize("offset", [0.0, 3e4, 1e6, -1e8])
@pytest.mark.parametrize("options", [{"temperature": 0.7}, OPTIONS["z-loss"], OPTIONS["both"]])
def test_options_far_from_zero(offset, options):
    """Whatever all logits have in common; and a target far above the others, whose exponentials fade."""
    x = np.random.default_rng(8).normal(size=(4, 70)) * 5 + offset
    y = np.array([3, 69, 0, 7])
    x[1, 69] += 200
    x[2, 0] -= 300
    _, launches, wrong = solve(x.astype("f4"), y, **options)
    assert isinstance(launches[-1].spec, plan.Rows)
    assert not wrong, wrong


@pytest.mark.parametrize("way", WAYS)
def test_special_rows_in_every_way(monkeypatch, way):
    classes = ways(monkeypatch, way)
    x = np.random.default_rng(1).normal(size=(9, classes)).astype("f4")
    y = np.full(9, classes // 2)
    x[0, -1] = np.nan
    x[1, classes // 2] = np.inf
    x[2] = -np.inf
    x[3, classes // 2] = -np.inf
    x[4] = -np.inf
    x[4, classes // 2] = 1
    x[5] += 1e6
    x[6, classes // 2] = 200
    y[7], y[8] = -100, classes
    x[7, 0] = np.nan
    weights = np.array([2.0, 1, 1, 1, 1, 1, -1, 1, 1])
    for options in ({}, {"z_loss": 0.1}, {"temperature": 0.7, "sample_weight": weights, "z_loss": 0.1}):
        _, _, wrong = solve(x, y, ignore_index=-100, validate=False, **options)
        assert not wrong, wrong


def test_the_bars_of_float32_in_the_confident_regime():
    """Loss within 4 ulp and gradient within 8 where p is nearly 1; the suite asks for 2 and 3."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 60)).astype("f4")
    y = rng.integers(0, 60, 40)
    x[np.arange(40), y] += np.linspace(5, 80, 40).astype("f4")
    found, _, wrong = solve(x, y)
    assert not wrong
    z = x.astype(np.longdouble) - x[np.arange(40), y][:, None]
    others = np.exp(z)
    others[np.arange(40), y] = 0
    r = others.sum(axis=1)
    want = -(r / (1 + r)).astype(np.float64)
    assert (np.abs(found["loss"] - np.log1p(r)) <= 4 * np.spacing(found["loss"])).all()
    assert (np.abs(found["grad"][np.arange(40), y] - want) <= 8 * np.spacing(np.abs(want).astype("f4"))).all()
    assert (found["loss"] > 0).all()


def test_a_sum_of_many_rows_takes_several_launches(monkeypatch):
    from sce_backends.cuda import totals

    monkeypatch.setattr(totals, "CHUNK", 512)
    monkeypatch.setattr(plan, "CHUNK", 512)
    x, y = np.random.default_rng(2).normal(size=(1500, 2)).astype("f4"), np.zeros(1500, int)
    _, launches, wrong = solve(x, y, reduction="mean")
    assert not wrong
    assert [type(launch.spec).__name__ for launch in launches] == ["Rows", "Totals", "Totals"]


# What the emulator finds. Kernels that are wrong on purpose: first small ones.


def launched(make, *arrays, block=64, grid=1, cluster=1, reverse=False):
    device = Device(reverse)
    device.launch(make(device.words), grid, block, [Pointer(a) for a in arrays], cluster)


def beyond(d):
    def kernel(x):
        x[d.cuda.threadIdx.x] = 1

    return kernel


def misaligned(d):
    fetch, local = d.fetcher("float32", np.float32), d.cuda.local

    def kernel(x):
        fetch(x, d.cuda.threadIdx.x + 1, local.array(4, np.float32), 0)

    return kernel


def diverging(d):
    def kernel(x):
        if d.cuda.threadIdx.x < 7:
            d.cuda.syncthreads()

    return kernel


def diverging_warp(d):
    def kernel(x):
        if d.cuda.threadIdx.x < 7:
            d.cuda.shfl_xor_sync(0xFFFFFFFF, 1, 1)
        d.cuda.shfl_xor_sync(0xFFFFFFFF, 1, 1)

    return kernel


def racing(d):
    def kernel(x):
        t = d.cuda.threadIdx.x
        shared = d.cuda.shared.array(64, np.float32)
        shared[t] = t
        x[t] = shared[63 - t]

    return kernel


def never_written(d):
    def kernel(x):
        x[0] = d.cuda.shared.array(64, np.float32)[0]

    return kernel


def two_writers(d):
    def kernel(x):
        d.cuda.shared.array(1, np.float32)[0] = d.cuda.threadIdx.x

    return kernel


def leaving_early(d):
    def kernel(x):
        mine = d.cuda.shared.array(1, np.float32)
        if d.cuda.threadIdx.x == 0:
            mine[0] = 1
        d.cuda.syncthreads()
        x[0] = d.peer(mine, 0, 1 - d.rank())

    return kernel


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "reversed"])
@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (beyond, "out of bounds"),
        (misaligned, "not aligned to 16 bytes"),
        (diverging, "meet at different places"),
        (diverging_warp, "meet at different places"),
        (racing, "what .* may be about to write|before anyone wrote"),
        (never_written, "before anyone wrote to it"),
        (two_writers, "is written by threads"),
        (leaving_early, "what .* may be about to write|before anyone wrote"),
    ],
)
def test_a_faulty_kernel_is_found(kernel, words, reverse):
    cluster = 2 if kernel is leaving_early else 1
    memory = np.zeros(63 if kernel is beyond else 256, "f4")
    with pytest.raises(Fault, match=words):
        launched(kernel, memory, grid=cluster, cluster=cluster, reverse=reverse)


def test_a_null_pointer_is_found():
    for use in (lambda: NULL[0], lambda: NULL.__setitem__(0, 1)):
        with pytest.raises(Fault, match="a null pointer is"):
            use()


# Then the product's, each with one line changed: what keeps them right is looked after by something above.

MUTANTS = {
    "no barrier": (
        "group",
        "            cuda.syncthreads()\n",
        "",
        1100,
        "what .* may be about to write|before",
    ),
    "no head": ("rows", "((16 - past_16(x, start)) & 15) // bytes_each", "0", 1101, "not aligned"),
    "one vector more": (
        "rows",
        "            if v < full:\n                if width > 1:\n                    fetch",
        "            if v <= full:\n                if width > 1:\n                    fetch",
        1100,
        "out of bounds",
    ),
    "the target is summed": (
        "rows",
        "kept_here[q * width + j] = minus_inf\n            for j in range(width):\n",
        "pass\n            for j in range(width):\n",
        100,
        "wrong",
    ),
    "the target's logit is read late": (
        "rows",
        "            if second:\n                x_y = read_word(",
        "            if first and second:\n                x_y = read_word(",
        2501,
        "wrong",
    ),
    "plain sums": (
        "arithmetic",
        "        return s, b - (s - a)\n",
        "        return s, b - b\n",
        1100,
        "wrong",
    ),
    "no fading": ("rows", "fade = exponential(", "fade = one_real + zero * exponential(", 10, "wrong"),
    "rows that are left out are multiplied": (
        "rows",
        "                if counted:\n                    by, by_tail",
        "                if known:\n                    by, by_tail",
        10,
        "wrong",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_changed_kernel_is_found(monkeypatch, mutant):
    name, old, new, classes, words = MUTANTS[mutant]
    monkeypatch.setattr(kernels, "_HOME", {**kernels._HOME, plan.Rows: changed(monkeypatch, name, old, new)})
    if classes == 2501:
        ways(monkeypatch, "split")
    rng = np.random.default_rng(3)
    x = (rng.normal(size=(4, classes)) - 7).astype("f4")
    x[:, 1] = 0
    y = np.array([0, classes - 1, 3, classes // 2])
    x[1] = 0
    x[1, -1] = 120
    x[2, 0] = np.nan
    try:
        found = solve(x, y, ignore_index=3, grad_at=x.reshape(4, 1, classes))[2]
        said = "wrong" if found else ""
    except Fault as fault:
        said = str(fault)
    assert said, f"nobody noticed {mutant}"
    assert re.search(words, said), said


Z_LOSS_MUTANTS = {
    "half a slope": ("bend, bend_t = bend + bend, bend_t + bend_t", "pass"),
    "a faded sum": ("        if faded:\n            h, t = add", "        if False:\n            h, t = add"),
    "the base is forgotten": ("whole, whole_t = base, zero", "whole, whole_t = zero, zero"),
    "the target's slope": ("q_h, q_t = add(q_h, q_t, -g, -error)", "pass"),
}


@pytest.mark.parametrize("mutant", Z_LOSS_MUTANTS)
def test_a_change_to_the_z_loss_is_found(monkeypatch, mutant):
    old, new = Z_LOSS_MUTANTS[mutant]
    monkeypatch.setattr(
        kernels, "_HOME", {**kernels._HOME, plan.Rows: changed(monkeypatch, "rows", old, new)}
    )
    classes = ways(monkeypatch, "warp with an edge")
    x = (np.random.default_rng(3).normal(size=(3, classes)) * 3).astype("f4")
    y = np.array([0, classes - 1, classes // 2])
    x[1, -1] = 200
    x[2] += 40000
    _, _, wrong = solve(x, y, z_loss=0.1)
    assert wrong, f"nobody noticed {mutant}"


def changed(monkeypatch, name, old, new):
    """rows.py, with one line of it, or of what it stands on, changed."""
    text = (HOME / f"{name}.py").read_text("utf-8")
    assert old in text, f"{name}.py has changed: so must this test"
    made = {name: module(name, text.replace(old, new))}
    if name == "rows":
        return made[name]
    for part, value in made.items():
        monkeypatch.setitem(sys.modules, f"sce_backends.cuda.{part}", value)
    return module("rows", (HOME / "rows.py").read_text("utf-8"))


def module(name, text):
    spec = importlib.util.spec_from_loader(f"sce_backends.cuda.{name}", None)
    made = importlib.util.module_from_spec(spec)
    made.__file__ = str(HOME / f"{name}.py")
    exec(compile(text, f"changed {name}.py", "exec"), made.__dict__)
    return made


# The arithmetic, against numbers of many digits.


@pytest.mark.parametrize(("dtype", "exp_bound"), [("float32", 0.70), ("float64", 0.85)])
def test_exp_and_logarithms(dtype, exp_bound):
    mpmath = pytest.importorskip("mpmath")
    math = arithmetic.arithmetic(Device().words, dtype)
    real, eps = math.real, float(np.finfo(dtype).eps)
    rng = np.random.default_rng(4)

    def exact(v):
        return mpmath.mpf(float(v))

    with mpmath.workprec(200), np.errstate(all="ignore"):
        for _ in range(800):
            top = real(rng.normal() * rng.choice([1, 50, 1e4, 1e6]))
            z = real(float(top) - rng.exponential() * rng.choice([0.1, 5, 60]))
            base, k = math.pivot(top)
            e = math.exponential(real(z - base), real(0), *math.shifted_by(k))
            want = mpmath.exp(exact(z) - exact(base) - exact(k) * mpmath.log(2))
            if want > 1e-37:
                assert abs(exact(e) - want) <= exp_bound * eps * want
            for function, name, at in ((math.log, "log", -0.35), (math.log1p, "log1p", -60)):
                h = real(np.exp(rng.uniform(at, 30)))
                t = real(rng.normal() * float(h) * eps * 0.2)
                got = function(h, t)
                want = getattr(mpmath, name)(exact(h) + exact(t))
                assert abs(exact(got[0]) + exact(got[1]) - want) <= 0.05 * eps * abs(want)
