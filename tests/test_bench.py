"""The core of the benchmarks: the clock, the limits, the tasks, the contests. No test asserts a speed."""

from __future__ import annotations

import math
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import sce
from sce import machine
from sce.bench import clock, limit, suites
from sce.bench import contest as contests
from sce.bench import task as tasks
from sce.bench.clock import Rounds, Times, alternate
from sce.bench.contest import contest
from sce.bench.contestant import Answer, Run
from sce.bench.task import OPTIONS, Task

ONCE = Rounds(least=1, enough=0, most=1)
SMALL = Task("loss_and_grad", 60, 7)
DTYPES = ("float32", "float64", "float16", "bfloat16")
ISSUE = (2, 3, 10, 32, 100, 1000, 8192, 32000, 50257, 128256, 262144)  # the classes that must be covered


# The clock


class Clock:
    """Moved by calls of known cost alone."""

    def __init__(self, monkeypatch):
        self.now, self.log = 0.0, []
        settle = lambda seconds: self.log.append("settle")  # noqa: E731
        monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: self.now, sleep=settle))

    def call(self, name, cost, after_another=0.0):
        """After another's call it costs more: that one has pushed things out of the caches."""

        def run():
            again = next((ran for ran in reversed(self.log) if ran != "settle"), None) == name
            self.log.append(name)
            self.now += cost + (0.0 if again else after_another)

        return run


def test_turns_alternate_until_each_has_enough(monkeypatch):
    fake = Clock(monkeypatch)
    times = alternate({"a": fake.call("a", 0.1), "b": fake.call("b", 0.2)}, Rounds(least=2, enough=0.35))
    assert times == {"a": Times(pytest.approx((0.1,) * 4)), "b": Times(pytest.approx((0.2,) * 2))}
    turns = [ran for ran in fake.log if ran != "settle"]
    assert turns == ["a", "b"] + ["a", "b"] * 2 + ["a"] * 2  # first a call of each, to see how long it takes
    assert fake.log[2:] == [word for ran in turns[2:] for word in ("settle", ran)]


def test_short_calls_are_repeated_and_warmed_up(monkeypatch):
    fake = Clock(monkeypatch)
    calls = {"a": fake.call("a", 1e-5, after_another=5e-4), "b": fake.call("b", 0.1, after_another=0.2)}
    times = alternate(calls, Rounds(least=3, enough=0))
    assert times["a"].seconds == pytest.approx((1e-5,) * 3)  # per call, and of the warm ones alone
    assert times["b"].seconds == pytest.approx((0.3,) * 3)  # a long call is timed as it comes
    last = "".join(fake.log).split("settle")[-2]
    assert 100 <= last.count("a") < 200  # a turn lasts a millisecond


def test_a_call_beyond_all_patience_has_the_turn_that_it_had(monkeypatch):
    fake = Clock(monkeypatch)
    times = alternate({"a": fake.call("a", 2.5), "b": fake.call("b", 0.5)}, Rounds(least=3, patience=2.0))
    assert times == {"a": Times((2.5,)), "b": Times((0.5,) * 3)}
    assert fake.log.count("a") == 1


@pytest.mark.parametrize(
    ("turns", "spent", "done"),
    [
        (7, 0.1, False),
        (6, 0.3, False),
        (7, 0.2, True),
        (2, 99.0, False),
        (3, 2.0, True),
        (2000, 0.0, True),
    ],
)
def test_when_a_contestant_has_had_enough(turns, spent, done):
    assert Rounds().done(turns, spent) is done
    assert Rounds(least=1).done(1, 2.0)


def test_median_and_quartiles():
    times = Times((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (times.median, times.quartiles) == (3, (2, 4))
    assert Times((7.0,)).quartiles == (7, 7)


# The limits


@pytest.fixture
def pool(monkeypatch):
    """Three threads on a machine without caches: every way there is."""
    monkeypatch.setattr(machine, "threads", lambda: 3)
    monkeypatch.setattr(machine, "last_level_cache", lambda: 0)
    with ThreadPoolExecutor(3) as made:
        yield made


@pytest.fixture(params=["numba", "numpy"])
def kernels(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(limit, "_kernels", lambda: None)
    elif limit._kernels() is None:
        pytest.skip("Numba is not installed.")
    return request.param


def part_of(size, start, seed=None):
    """Bytes amid others, from an address that is `start` over a multiple of 64."""
    whole = np.zeros(size + 192, np.uint8)
    if seed is not None:
        whole[:] = np.random.default_rng(seed).integers(1, 255, whole.size)
    at = -whole.ctypes.data % 64 + start
    return whole, whole[at : at + size]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 12289, 100_003])
@pytest.mark.parametrize(("source", "target"), [(0, 0), (0, 1), (24, 63), (7, 0)])
def test_a_copy_moves_every_byte_and_no_other(size, source, target, pool, kernels):
    _, src = part_of(size, source, seed=1)
    whole, dst = part_of(size, target)
    ways = limit.copies(src, dst, pool)
    assert len([way for way in ways if way.startswith("streaming")]) == (kernels == "numba")
    assert ("plain, 3 threads" in ways) == (size > 2 * 4096 * 1.5)  # a part is whole pages
    for name, way in ways.items():
        whole[:] = 0
        way()
        np.testing.assert_array_equal(dst, src, name)
        assert whole.sum(dtype=int) == src.sum(dtype=int), name


@pytest.mark.parametrize("size", [8, 4096, 12296, 100_000])
@pytest.mark.parametrize("start", [0, 1, 24])
def test_a_read_sees_every_word(size, start, pool, kernels):
    _, src = part_of(size, start, seed=2)
    total = sum(int.from_bytes(src[i : i + 8].tobytes(), sys.byteorder) for i in range(0, size, 8))
    for name, way in limit.reads(src, pool).items():
        found = way()
        parts = found if isinstance(found, list) else [found]
        assert sum(map(int, parts)) % 2**64 == total % 2**64, name


def test_streaming_is_for_what_leaves_the_cache(pool, monkeypatch):
    x = np.ones(100_000, np.uint8)
    monkeypatch.setattr(limit, "_kernels", lambda: (np.copyto, np.sum))
    for cache, streaming in ((2 * x.nbytes - 1, True), (2 * x.nbytes, False)):
        monkeypatch.setattr(machine, "last_level_cache", lambda cache=cache: cache)
        assert ("streaming, 3 threads" in limit.copies(x, x.copy(), pool)) is streaming


def test_without_numba_there_are_no_kernels(monkeypatch):
    monkeypatch.delattr("sce.bench.stream", raising=False)
    monkeypatch.setitem(sys.modules, "sce.bench.stream", None)
    assert limit._kernels.__wrapped__() is None


def test_the_bytes_of_an_array():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for whole in (x, x.T, x[:0]):
        assert limit.as_bytes(whole).size == whole.nbytes
    assert np.shares_memory(limit.as_bytes(x.T), x)
    with pytest.raises(ValueError, match="contiguous"):
        limit.as_bytes(x[:, ::2])


# The tasks


@pytest.mark.parametrize(
    ("task", "moved"),
    [
        (Task("loss", 6, 5), 6 * 5 * 4 + 48),
        (Task("loss_and_grad", 6, 5), 2 * 6 * 5 * 4 + 48),
        (Task("loss_and_grad", 6, 5, "float64"), 2 * 6 * 5 * 8 + 48),
        (Task("loss_and_grad", 6, 5, "float16"), 2 * 6 * 5 * 2 + 48),
        (Task("loss", 6, 5, "bfloat16"), 6 * 5 * 2 + 48),
        (Task("loss", 6, 5, "float16", "distribution"), 2 * 6 * 5 * 2),
        (Task("loss_and_grad", 6, 5, "float32", "distribution"), 3 * 6 * 5 * 4),
        (Task("loss_and_grad", 6, 5, "float32", "soft cap"), 2 * 6 * 5 * 4 + 48),
        (Task("loss_and_grad", 16, 5, layout="channels"), 2 * 16 * 5 * 4 + 128),
    ],
    ids=str,
)
def test_the_bytes_that_must_move_are_those_of_the_arrays(task, moved):
    given = tasks.inputs(task)
    assert task.bytes == moved
    grad = given.logits.nbytes if task.op == "loss_and_grad" else 0
    assert moved == given.logits.nbytes + given.target.nbytes + grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "channels"])
def test_inputs_are_reproducible(dtype, layout):
    task = Task("loss", 64, 30, dtype, layout=layout)
    first, second = tasks.inputs(task), tasks.inputs(task)
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.target, second.target)
    assert first.logits.dtype.name == dtype
    assert first.logits.shape == ((64, 30) if layout == "rows" else (1, 30, 8, 8))
    assert 2.7 < first.logits.astype(float).std() < 3.3
    assert set(np.unique(first.target)) <= set(range(30))
    assert len(np.unique(first.target)) > 15


def test_inputs_have_the_option():
    target = tasks.inputs(SMALL._replace(n=1000, option="ignored labels")).target
    assert 50 < np.count_nonzero(target == tasks.IGNORED) < 150
    soft = tasks.inputs(SMALL._replace(option="distribution", dtype="float64")).target
    np.testing.assert_allclose(soft.sum(axis=1), 1, rtol=1e-6)
    shapes = {
        option: [np.shape(value) for value in tasks.inputs(SMALL._replace(option=option)).options.values()]
        for option in OPTIONS
    }
    assert shapes["class weights"] == shapes["logit bias"] == [(7,)]
    assert shapes["sample weights"] == [(60,)]


@pytest.mark.parametrize(
    ("layout", "option"),
    [("rows", option) for option in (None, *OPTIONS)]
    + [("channels", option) for option in (None, "class weights", "ignored labels", "distribution")],
)
@pytest.mark.parametrize("op", ["loss", "loss_and_grad"])
def test_the_expected_answer_is_that_of_one_call(op, layout, option, monkeypatch):
    """Whatever the rows at a time, the last of them fewer."""
    task = Task(op, 112, 7, "float64", option, layout)  # 7 images of 4 x 4
    given = tasks.inputs(task)
    loss, grad = sce.loss_and_grad(
        given.logits, given.target, axis=task.axis, backend="reference", **given.options
    )
    for piece in (tasks.PIECE, 2 * 16 * 7):
        monkeypatch.setattr(tasks, "PIECE", piece)
        found = tasks.expected(task, given)
        assert found.loss == pytest.approx(float(loss), rel=1e-13)
        if op == "loss":
            assert found.grad is None
        else:
            np.testing.assert_allclose(found.grad, grad, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize(("n", "images"), [(7, (7, 1)), (48, (3, 4)), (4096, (1, 64)), (8192 * 3, (6, 64))])
def test_rows_as_images(n, images):
    assert tasks.channels(n) == images


# The suites


def a_machine(monkeypatch, memory, cache=32 << 20):
    monkeypatch.setattr(machine, "memory", lambda: memory)
    monkeypatch.setattr(machine, "last_level_cache", lambda: cache)


def test_the_full_suite_has_every_shape_dtype_and_option():
    full = set(suites.full())
    plain = {(t.op, t.dtype, t.c) for t in full if (t.option, t.layout, t.where) == (None, "rows", "memory")}
    assert set(ISSUE) <= suites.CLASSES.keys()
    assert all(suites.CLASSES.values())  # each with its reason
    assert plain >= {("loss_and_grad", dtype, c) for dtype in ("float32", "float64") for c in ISSUE}
    assert plain >= {("loss_and_grad", dtype, c) for dtype in DTYPES for c in suites.HALVES}
    assert plain >= {("loss", "float32", c) for c in ISSUE}
    assert Task("loss_and_grad", 1, 10, where="call") in full
    assert {t.c for t in full if t.layout == "channels"} == {3, 21, 150}
    assert {t.c for t in full if t.where == "cache"} >= {10, 1000, 32000}
    with_option = [t for t in full if t.option]
    assert {(t.option, t.c) for t in with_option} == {(o, c) for o in OPTIONS for c in suites.TYPICAL}
    assert {t._replace(option=None) for t in with_option} <= full  # what its cost is measured against


@pytest.mark.parametrize("cache", [1 << 20, 32 << 20, 256 << 20])
def test_matrices_are_well_past_the_cache(cache, monkeypatch):
    a_machine(monkeypatch, 1 << 40, cache)
    for suite, times in ((suites.full, 3.5), (suites.quick, 1.8)):
        sizes = [t.matrix_bytes for t in suite() if t.where == "memory"]
        assert min(sizes) > times * cache
    assert all(t.matrix_bytes <= 2 << 20 for t in suites.full() if t.where == "cache")


def test_matrices_fit_into_a_small_memory(monkeypatch):
    a_machine(monkeypatch, 1 << 30, 256 << 20)
    assert max(t.matrix_bytes for t in (*suites.full(), *suites.quick())) <= (1 << 30) // 32


def test_the_quick_suite_is_a_part_of_the_scale():
    quick = list(suites.quick())
    assert {t.c for t in quick} <= set(ISSUE)
    assert [t.where for t in quick] == ["memory"] * 4 + ["call"]
    assert {(t.op, t.dtype, t.option) for t in quick} == {("loss_and_grad", "float32", None)}


def test_the_smoke_suite_has_every_kind_of_task():
    kinds = {(t.op, t.dtype, t.option, t.layout) for t in suites.smoke()}
    full = {(t.op, t.dtype, t.option, t.layout) for t in suites.full()}
    assert kinds == full
    assert max(t.matrix_bytes for t in suites.smoke()) < 10_000


# Contests


class Contestant:
    """A right one, unless `spoil` changes its answer."""

    def __init__(self, name="mine", ours=True, spoil=lambda loss, grad: (loss, grad), **says):
        self.name, self.ours, self.spoil, self.says, self.calls = name, ours, spoil, says, 0

    def missing(self):
        return self.says.get("missing")

    def refuses(self, task):
        return self.says.get("refuses")

    def buffers(self, task):
        return self.says.get("buffers", ("fresh",))

    def prepare(self, task, given, buffers):
        def call():
            self.calls += 1
            return self.spoil(*sce.loss_and_grad(given.logits, given.target, backend="reference"))

        return Run(call, lambda got: Answer(float(got[0]), got[1] if task.op == "loss_and_grad" else None))


def changed(index, value):
    def spoil(loss, grad):
        grad[index] = value
        return loss, grad

    return spoil


WRONG = {
    "halved": lambda loss, grad: (loss, grad / 2),
    "first element": changed((0, 0), 0.1),
    "last element": changed((-1, -1), 0.1),
    "NaN at the end": changed((-1, -1), math.nan),
    "NaN in the middle": changed((31, 3), math.nan),
    "infinite": changed((5, 5), -math.inf),
    "transposed": lambda loss, grad: (loss, grad.T),
    "a row too few": lambda loss, grad: (loss, grad[1:]),
    "no gradient": lambda loss, grad: (loss, None),
    "wrong loss": lambda loss, grad: (loss * 1.001, grad),
    "NaN loss": lambda loss, grad: (math.nan, grad),
}


@pytest.mark.parametrize("spoil", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_not_timed(spoil, monkeypatch):
    monkeypatch.setattr(contests, "PIECE", 7 * 11)  # 60 rows: the last piece is smaller
    bad, good = Contestant("bad", spoil=spoil), Contestant("good")
    wrong, right, copy = contest(SMALL, [bad, good], ONCE)
    assert (wrong.status, wrong.seconds, wrong.turns, bad.calls) == ("wrong", None, (), 1)
    assert wrong.why.startswith("off by ")
    assert wrong.why.endswith("where 0.0001 is allowed.")
    assert "nan" not in wrong.why
    assert (right.status, copy.status, right.why) == ("ok", "ok", None)
    assert right.seconds > 0
    assert max(right.loss_error, right.grad_error) < 1e-6


def test_of_a_loss_alone_the_loss_counts():
    task = SMALL._replace(op="loss")
    right, wrong, *limits = contest(task, [Contestant(), Contestant("b", spoil=WRONG["wrong loss"])], ONCE)
    assert (right.status, right.grad_error, wrong.status) == ("ok", None, "wrong")
    assert [r.contestant for r in limits] == ["copy", "read"]
    assert [r.bytes for r in limits] == [2 * task.matrix_bytes, task.matrix_bytes]


def test_what_half_precision_cannot_hold_is_no_error():
    task = Task("loss_and_grad", 10**6, 2, "float16")
    wanted = tasks.Expected(1.0, np.full((9, 2), 1e-8, np.float32))
    zeros = Answer(1.0, np.zeros((9, 2), np.float16))
    assert contests.errors(task, zeros, wanted) == (0, 0)
    assert contests.errors(task._replace(dtype="float32"), zeros, wanted)[1] == pytest.approx(0.01)


def raising(loss, grad):
    raise RuntimeError("on fire\nand more")


def warning(seen):
    def spoil(loss, grad):
        if not seen:  # once, as Python shows them
            seen.append(warnings.warn("will go away", DeprecationWarning, stacklevel=2))
        return loss, grad

    return spoil


def test_what_does_not_run_is_listed_with_the_reason():
    entered = [
        Contestant("raises", spoil=raising),
        Contestant("absent", missing="not here.", buffers=("reused", "fresh")),
        Contestant("picky", refuses="takes nothing."),
        Contestant("warns", ours=False, spoil=warning([])),  # a peer's deprecations are its own
        Contestant("ours warns", spoil=warning([])),
    ]
    found = [(r.contestant, r.buffers, r.status, r.why) for r in contest(SMALL, entered, ONCE)[:-1]]
    assert found == [
        ("raises", "fresh", "failed", "RuntimeError: on fire"),
        ("absent", "reused", "missing", "not here."),
        ("absent", "fresh", "missing", "not here."),
        ("picky", "fresh", "refused", "takes nothing."),
        ("warns", "fresh", "ok", None),
        ("ours warns", "fresh", "failed", "DeprecationWarning: will go away"),
    ]
    assert [entered[i].calls for i in (1, 2)] == [0, 0]


@pytest.fixture
def faked(monkeypatch):
    """Times by name, or by name and buffers; of the limits, each way's by its order."""

    def fake(**seconds):
        def timed(calls, rounds):
            ways = {name: iter(seconds.get(name, ())) for name in contests.LIMITS}
            found = {}
            for name, other in calls:
                median = next(ways[name], 9.0) if name in ways else seconds[f"{name}_{other}"]
                found[name, other] = Times((0.5 * median, median, 2 * median))
            return found

        monkeypatch.setattr(contests, "alternate", timed)

    return fake


def test_shares_and_speed_ups(faked, pool):
    faked(
        cpu_reused=0.004, cpu_fresh=0.02, torch_fresh=0.04, torch_reused=0.01, bad_fresh=1e-9, copy=(8, 0.002)
    )
    policies = ("reused", "fresh")
    entered = [
        Contestant("cpu", buffers=policies),
        Contestant("torch", ours=False, buffers=policies),
        Contestant("bad", ours=False, spoil=WRONG["halved"]),  # its time would be the best
    ]
    task = SMALL._replace(n=6000)  # of which each thread copies whole pages
    reused, fresh, *theirs, bad, copy = contest(task, entered, ONCE)
    assert (copy.contestant, copy.why, copy.seconds) == ("copy", "plain, 3 threads", 0.002)
    assert (copy.bytes, copy.share_of_copy, copy.speed_up) == (2 * 6000 * 28, 1, None)
    assert reused.share_of_copy == pytest.approx((2 * 6000 * 28 + 6000 * 8) / (2 * 6000 * 28) * 0.002 / 0.004)
    assert reused.gb_per_s == pytest.approx((2 * 6000 * 28 + 6000 * 8) / 0.004 / 1e9)
    assert fresh.share_of_copy == pytest.approx(reused.share_of_copy / 5)
    assert (reused.speed_up, fresh.speed_up) == (pytest.approx(2.5), pytest.approx(0.5))
    assert [r.speed_up for r in (*theirs, bad)] == [None] * 3
    assert (reused.low, reused.high) == (pytest.approx(0.003), pytest.approx(0.006))
    assert bad.gb_per_s is bad.share_of_copy is None


def test_a_tiny_call_has_no_limit_and_ours_alone_no_speed_up(faked):
    faked(mine_fresh=0.5)
    (alone,) = contest(Task("loss_and_grad", 1, 10, where="call"), [Contestant()], ONCE)
    assert (alone.seconds, alone.share_of_copy, alone.speed_up) == (0.5, None, None)
