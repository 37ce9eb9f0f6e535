"""The way to a GPU and back, on one that is not there: bench/pretended_cuda.py runs what is launched."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import sce

pytest.importorskip("greenlet", reason="the emulator needs greenlet")
pytest.importorskip("platformdirs", reason="the kernels' cache needs platformdirs")

from sce import binary, problem
from sce.bench.device import functions
from sce_backends.cuda import absence, gpu, plan

spec = importlib.util.spec_from_file_location(
    "pretended_cuda", Path(__file__).parents[1] / "bench" / "pretended_cuda.py"
)
pretence = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pretence)

rng = np.random.default_rng(6)


@pytest.fixture
def world():
    with pretence.pretended(pretence.World(((9, 0), (8, 6), (7, 5)))) as found:
        yield found


@pytest.fixture
def on(world):
    """Puts an array on a pretended device."""

    def put(x, index=0, offset=0, **options):
        x = np.asarray(x)
        return pretence.Tensor(world.array(x.shape, x.dtype, x, offset), index, **options)

    return put


def both(on, x, y, index=0, **options):
    """The answer on the device and the reference's, as arrays."""
    there = {k: on(v, index) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    got = sce.loss_and_grad(on(x, index), on(y, index), backend="cuda", **there)
    options.pop("validate", None)
    return got, sce.loss_and_grad(x, y, backend="reference", **options)


def same(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert isinstance(mine, pretence.Tensor)
        np.testing.assert_allclose(mine.memory, theirs, rtol=2e-6, atol=1e-12)


def launched(world):
    return [event[1] for event in world.events if event[0] == "launch"]


WEIGHTS = {"class_weight": rng.uniform(1, 2, 7), "sample_weight": rng.normal(size=5)}
OPTIONS = {
    "plain": {},
    "each row": {"reduction": "none"},
    "weights": WEIGHTS,
    "ignored": {"ignore_index": 2},
    "general": {"softcap": 5.0, "class_weight": WEIGHTS["class_weight"]},
    "bias": {"logit_bias": rng.normal(size=7)},
}


@pytest.fixture
def made(monkeypatch):
    """What is worked out: a problem for the device, or an array described."""
    found = []
    for where, name in ((gpu, "Bound"), (gpu, "Recorder"), (problem, "describe"), (binary, "describe")):
        before = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *given, name=name, before=before: found.append(name) or before(*given)
        )
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("validate", [True, False])
def test_calls_that_are_alike_are_worked_out_once(world, on, made, options, validate):
    counts = []
    for _ in range(3):
        x, y = rng.normal(size=(5, 7)).astype("f4"), rng.integers(0, 7, 5)
        same(*both(on, x, y, validate=validate, **options))
        counts.append(len(made))
    assert counts[0] == counts[-1] > 0
    assert len(problem._known) == 1


def matrices(n):
    return [rng.normal(size=(5, 7)).astype("f4") for _ in range(n)]


def labelled(n=1):
    x, *v = matrices(n)
    return x, rng.integers(0, 7, 5), *v


def of_two_classes(kind=np.int64):
    return *matrices(1), rng.integers(0, 2, (5, 7)).astype(kind)


def weighed(**of_class_1):
    def inputs():
        return {"sample_weight": rng.uniform(0, 1, 5), **of_class_1}

    return inputs


def by_label():
    return {"pos_weight": rng.uniform(1, 2, 7).astype("f4"), "sample_weight": rng.uniform(0, 1, (5, 7))}


CALLS = {  # function, arrays by position, options
    "diagonal": (sce.loss_grad_hess, labelled, dict),
    "diagonal, all weights": (
        sce.loss_grad_hess,
        labelled,
        lambda: {"class_weight": rng.uniform(1, 2, 7), "hess_scale": 2.0, "hess_min": 0.1, **weighed()()},
    ),
    "Hessian times v": (sce.hvp, lambda: labelled(2), dict),
    "the same, of distributions": (sce.hvp, lambda: matrices(3), lambda: {"softcap": 3.0, "z_loss": 0.1}),
    "the same, all weights": (
        sce.hvp,
        lambda: labelled(2),
        lambda: {"class_weight": rng.uniform(1, 2, 7), "logit_bias": rng.normal(size=7), **weighed()()},
    ),
    "softmax_jvp": (sce.softmax_jvp, lambda: matrices(2), lambda: {"temperature": 0.7}),
    "softmax_vjp": (sce.softmax_vjp, lambda: matrices(2), lambda: {"temperature": 0.7}),
    "log_softmax_jvp": (sce.log_softmax_jvp, lambda: matrices(2), lambda: {"temperature": 0.7}),
    "log_softmax_vjp": (sce.log_softmax_vjp, lambda: matrices(2), lambda: {"temperature": 0.7}),
    "binary": (sce.binary_loss_and_grad, of_two_classes, dict),
    "binary loss": (sce.binary_cross_entropy, lambda: of_two_classes(bool), weighed(pos_weight=2.0)),
    "binary diagonal": (sce.binary_loss_grad_hess, lambda: of_two_classes("f4"), by_label),
    "binary, each": (sce.binary_loss_and_grad, of_two_classes, lambda: {"reduction": "none", **by_label()}),
    "binary, ignored": (sce.binary_loss_and_grad, of_two_classes, lambda: {"ignore_index": 1}),
}


def compare(on, function, arrays, options, tolerance=2e-6, backend="cuda"):
    """What a function answers on the device is the reference's answer."""
    there = {k: on(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    got = function(*map(on, arrays), backend=backend, **there)
    want = function(*arrays, backend="reference", **options)
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else ((got, want),)
    for mine, theirs in pairs:
        assert isinstance(mine, pretence.Tensor)
        assert mine.memory.dtype == np.asarray(theirs).dtype
        np.testing.assert_allclose(mine.memory, theirs, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize(("function", "arrays", "options"), CALLS.values(), ids=CALLS.keys())
def test_so_are_calls_of_every_function(world, on, made, function, arrays, options):
    counts = []
    for _ in range(3):
        compare(on, function, arrays(), options())
        counts.append(len(made))
    assert counts[0] == counts[-1] > 0
    assert len(problem._known) == 1


@pytest.mark.parametrize(("function", "arrays", "options"), CALLS.values(), ids=CALLS.keys())
def test_another_backend_is_told_where_all_arrays_are(world, on, pretended, function, arrays, options):
    for backend in ("cuda", pretended.__name__):
        compare(on, function, arrays(), options(), backend=backend)
    assert len(problem._known) == len(pretended.problems) == 1


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_a_product_goes_over_v_over_the_logits_over_both_or_elsewhere(world, on, made, order):
    counts = []
    for _ in range(2):
        for way in order:
            x, y, v = labelled(2)
            given = [on(x), on(v)]
            if way == 3:
                v, given = x, given[:1] * 2
            out = on(np.zeros_like(x)) if way == 2 else given[way % 2]
            assert sce.hvp(given[0], on(y), given[1], out=out, backend="cuda") is out
            want = sce.hvp(x, y, v, backend="reference")
            np.testing.assert_allclose(out.memory, want, rtol=2e-6, atol=1e-7)
        counts.append(len(made))
    assert counts[0] == counts[-1] > 0
    assert len(problem._known) == len(order)


def test_a_product_over_memory_that_overlaps_is_refused_also_when_the_call_is_known(world, on):
    x, y, v = map(on, labelled(2))
    sce.hvp(x, y, v, out=on(matrices(1)[0]), backend="cuda")
    memory = world.array(80, "f4", 1)
    first, second = (pretence.Tensor(memory[i : i + 35].reshape(5, 7)) for i in (0, 16))
    with pytest.raises(ValueError, match="out overlaps v"):
        sce.hvp(x, y, first, out=second, backend="cuda")
    with pytest.raises(ValueError, match="out overlaps logits"):
        sce.hvp(first, y, v, out=second, backend="cuda")
    sce.log_softmax_vjp(x, v, out=on(matrices(1)[0]), backend="cuda")
    with pytest.raises(ValueError, match="out overlaps v"):  # which it reads when it has written already
        sce.log_softmax_vjp(x, v, out=v, backend="cuda")


def test_binary_options_are_told_apart(world, on):
    """Numbers and arrays, weights of samples and of elements, label dtypes, and what `out` lies over."""
    for _ in range(2):
        x, y = of_two_classes()
        for options in (
            {},
            {"pos_weight": 2.0},
            {"pos_weight": 3.0},
            {"pos_weight": np.full(7, 2.0)},
            {"sample_weight": rng.random(5)},
            {"sample_weight": rng.random((5, 7))},
            {"temperature": 2.0},
        ):
            compare(on, sce.binary_loss_and_grad, (x, y), options)
        compare(on, sce.binary_loss_and_grad, (x, y.astype("i1")), {})
        compare(on, sce.binary_loss_and_grad, (x, y.astype("f8")), {})
        own = on(x)
        got = sce.binary_loss_and_grad(own, on(y), out=own, backend="cuda")
        assert got[1] is own
        same(got, sce.binary_loss_and_grad(x, y, backend="reference"))
    assert len(problem._known) == 10


def test_bad_binary_input_is_found_in_a_call_that_is_known(world, on):
    x, y = of_two_classes()
    u = np.ones(5)
    into = on(np.full_like(x, 7))
    sce.binary_loss_and_grad(on(x), on(y), sample_weight=on(u), out=on(x), backend="cuda")
    y[2, 1] = 2
    with pytest.raises(sce.LabelError, match=r"label 2 at position \(2, 1\) is outside \[0, 2\)"):
        sce.binary_loss_and_grad(on(x), on(y), sample_weight=on(u), out=into, backend="cuda")
    y[2, 1], u[3] = 1, np.inf
    with pytest.raises(ValueError, match=r"sample_weight must be finite: it is not for the element at 3, 0"):
        sce.binary_loss_and_grad(on(x), on(y), sample_weight=on(u), out=into, backend="cuda")
    assert (into.memory == 7).all()
    with pytest.raises(TypeError, match="pos_weight must be a real number"):
        sce.binary_loss_and_grad(on(x), on(y), pos_weight=True, backend="cuda")


def test_what_differs_is_worked_out_anew(world, on):
    x, y = rng.normal(size=(4, 8)).astype("f4"), rng.integers(0, 8, 4)
    want = sce.loss_and_grad(x, y, backend="reference")
    wide = np.zeros((4, 12), "f4")
    wide[:, :8] = x
    forms = [on(x), on(x, offset=4), on(x.T.copy()), on(wide)]
    forms[2].memory = forms[2].memory.T
    forms[3].memory = forms[3].memory[:, :8]
    for form in forms * 2:
        tensor = pretence.Tensor(form.memory)
        same(sce.loss_and_grad(tensor, on(y), backend="cuda", validate=False), want)
    assert len(problem._known) == len(forms)
    same(sce.loss_and_grad(on(x), on(y.astype("i4")), backend="cuda"), want)
    same(sce.loss_and_grad(on(x, 1), on(y, 1), backend="cuda"), want)
    assert len(problem._known) == len(forms) + 2


def test_out_and_in_place(world, on):
    for _ in range(3):
        x, y = rng.normal(size=(4, 8)).astype("f4"), rng.integers(0, 8, 4)
        want = sce.loss_and_grad(x, y, backend="reference")
        into, own = on(np.zeros_like(x)), on(x)
        for given, out in ((on(x), into), (own, own)):
            got = sce.loss_and_grad(given, on(y), out=out, backend="cuda")
            assert got[1] is out
            same(got, want)
    assert len(problem._known) == 2


def test_memory_that_overlaps_is_refused_also_when_the_call_is_known(world, on):
    x, y = rng.normal(size=(4, 8)).astype("f4"), on(np.zeros(4, int))
    sce.loss_and_grad(on(x), y, out=on(x), backend="cuda")
    both_in = world.array(64, "f4", 0)
    first, second = (pretence.Tensor(both_in[i : i + 32].reshape(4, 8)) for i in (0, 16))
    with pytest.raises(ValueError, match="out overlaps logits"):
        sce.loss_and_grad(first, y, out=second, backend="cuda")


def test_options_are_told_apart_by_their_type(world, on):
    x, y = on(np.zeros((2, 3), "f4")), on(np.zeros(2, int))
    sce.loss_and_grad(x, y, backend="cuda", validate=True, temperature=1.0, ignore_index=1)
    with pytest.raises(TypeError, match="validate must be True or False"):
        sce.loss_and_grad(x, y, backend="cuda", validate=1, temperature=1.0, ignore_index=1)
    with pytest.raises(TypeError, match="temperature must be a real number"):
        sce.loss_and_grad(x, y, backend="cuda", validate=True, temperature=True, ignore_index=1)
    with pytest.raises(TypeError, match="temperature must be a real number"):
        sce.loss_and_grad(x, y, backend="cuda", temperature=[1.0])


def test_a_bad_label_is_found_in_a_call_that_is_known(world, on):
    x, y = rng.normal(size=(4, 8)).astype("f4"), rng.integers(0, 8, 4)
    into = on(np.full_like(x, 7))
    sce.loss_and_grad(on(x), on(y), out=on(x), backend="cuda")
    y[2] = 8
    with pytest.raises(sce.LabelError, match=r"label 8 at position 2 is outside \[0, 8\)"):
        sce.loss_and_grad(on(x), on(y), out=into, backend="cuda")
    assert (into.memory == 7).all()


def test_functions_that_change_what_was_prepared(world, on):
    for temperature in (1.0, 2.0, 0.5, 2.0):
        x = rng.normal(size=(5, 40)).astype("f4")
        for function in (sce.softmax, sce.log_softmax, sce.logsumexp):
            got = function(on(x), temperature=temperature, backend="cuda")
            want = function(x, temperature=temperature, backend="reference")
            np.testing.assert_allclose(got.memory, want, rtol=2e-6)


def test_the_denominator_is_that_of_each_call(world, on):
    for _ in range(2):
        x, y, u = rng.normal(size=(5, 7)), rng.integers(0, 7, 5), rng.random(5)
        got = sce.evaluate(on(x), on(y), sample_weight=on(u), outputs=("loss", "denominator"), backend="cuda")
        assert got.denominator == pytest.approx(u.sum())
        want = sce.cross_entropy(x, y, sample_weight=u, backend="reference")
        np.testing.assert_allclose(got.loss.memory, want, rtol=1e-12)


def test_backends_are_told_apart(world, on):
    x, y = rng.normal(size=(5, 7)), rng.integers(0, 7, 5)
    sce.cross_entropy(on(x), on(y), backend="cuda")
    with pytest.raises(sce.BackendError, match="logits live on a device"):
        sce.cross_entropy(on(x), on(y), backend="reference")


def test_a_gradient_is_asked_to_be_left_out(on):
    x, y = np.zeros((2, 3), "f4"), np.zeros(2, int)
    sce.cross_entropy(on(x), on(y), backend="cuda")
    with pytest.raises(TypeError, match=r"logits cannot be read.*Pass x\.detach\(\)"):
        sce.cross_entropy(on(x, requires_grad=True), on(y), backend="cuda")


# Streams, contexts, memory.


@pytest.mark.parametrize(("stream", "handle"), [(0, 1), (2, 2), (77, 77)])
def test_all_is_on_the_callers_stream_and_nothing_waits(world, on, stream, handle):
    for _ in range(2):
        x, y = rng.normal(size=(5, 7)).astype("f4"), rng.integers(0, 7, 5)
        world.stream = stream
        same(*both(on, x, y, validate=False))
        assert launched(world) == ["Rows", "Totals"]
        assert "sync" not in [event[0] for event in world.events]
        assert [event[0] for event in world.events if event[0] in ("allocate", "launch", "free")] == [
            "allocate", "launch", "launch", "free",
        ]  # fmt: skip
        assert {event[2] for event in world.events if event[0] in ("allocate", "launch", "free")} == {handle}
        world.events.clear()


def test_streams_change_from_call_to_call(world, on):
    for world.stream in (5, 6, 5):
        same(*both(on, rng.normal(size=(5, 7)).astype("f4"), rng.integers(0, 7, 5), validate=False))
    assert [event[2] for event in world.events if event[0] == "allocate"] == [5, 6, 5]


def test_where_out_may_lie_is_asked_of_each_call(world, on):
    """Over the logits and v it may, and that is remembered; over as many, one of them the target, not."""
    x, q, v = (on(m) for m in matrices(3))
    sce.hvp(x, q, x, out=x, backend="cuda")
    for given in ((x, x, v), (v, x, x)):
        with pytest.raises(ValueError, match="out overlaps target"):
            sce.hvp(*given, out=x, backend="cuda")


def test_an_array_is_worked_on_where_it_is(world, on):
    """On its own device, whatever is current, and what is current stays so."""
    x, y = rng.normal(size=(5, 7)).astype("f4"), rng.integers(0, 7, 5)
    for contexts in ([0], [1000], [4242], [1001]):
        world.contexts = contexts.copy()
        world.events.clear()
        same(*both(on, x, y, index=1))
        assert {event[1] for event in world.events if event[0] == "asked for the stream of"} == {1}
        assert {event[3] for event in world.events if event[0] in ("allocate", "launch", "free")} == {1}
        assert world.contexts == contexts


def test_what_is_current_stays_so_also_when_a_launch_fails(world, on, monkeypatch):
    x, y = on(np.zeros((5, 7), "f4"), 1), on(np.zeros(5, int), 1)
    sce.loss_and_grad(x, y, backend="cuda", validate=False)
    (alike,) = problem._known.values()
    (call,) = alike.calls.values()

    def fails(*given):
        raise RuntimeError("out of order")

    call.bound._played._start = fails
    world.events.clear()
    with pytest.raises(RuntimeError, match="out of order"):
        sce.loss_and_grad(x, y, backend="cuda", validate=False)
    assert world.contexts == [0]
    assert [event[0] for event in world.events if event[0] in ("allocate", "free")] == ["allocate", "free"]


def test_a_device_that_is_too_old_is_named(on):
    x, y = on(np.zeros((5, 7), "f4"), 2), on(np.zeros(5, int), 2)
    with pytest.raises(sce.BackendError, match=r"device 2 \(Pretended\): compute capability 7\.5: .* 8\.0"):
        sce.loss_and_grad(x, y, backend="cuda")


def test_clusters_are_launched_as_such(world, on, monkeypatch):
    for name in ("BLOCK", "GROUP_THREADS", "WIDE_BLOCK"):
        monkeypatch.setattr(plan, name, 64)
    for _ in range(2):
        same(*both(on, rng.normal(size=(3, 2500)).astype("f4"), rng.integers(0, 2500, 3), validate=False))
    clusters = [event[4:] for event in world.events if event[:2] == ("launch", "Rows")]
    assert clusters == [(2, 3)] * 2  # the grid counts clusters: one for each row


def test_nothing_is_read_back_from_a_stream_that_is_captured(world, on):
    x, y = on(np.zeros((5, 7), "f4")), on(np.zeros(5, int))
    world.capturing = True
    with pytest.raises(sce.BackendError, match=r"captured into a graph.*pass validate=False"):
        sce.loss_and_grad(x, y, backend="cuda")
    assert launched(world) == []
    sce.loss_and_grad(x, y, backend="cuda", validate=False)
    assert launched(world) == ["Rows", "Totals"]


def test_threads_call_at_once(world, on):
    x, y = rng.normal(size=(5, 7)).astype("f4"), rng.integers(0, 7, 5)
    want = sce.loss_and_grad(x, y, backend="reference")
    failed = []

    def work():
        try:
            for _ in range(3):
                same(sce.loss_and_grad(on(x), on(y), backend="cuda", validate=False), want)
        except BaseException as exc:
            failed.append(exc)

    world.contexts = [1000]  # of all threads here
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_be_spawned(world, on, monkeypatch):
    x, y = on(np.zeros((5, 7), "f4")), on(np.zeros(5, int))
    sce.loss_and_grad(x, y, backend="cuda")
    monkeypatch.setattr(absence, "started", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX, where another test has imported it, warns of any fork
        child = os.fork()
    if not child:
        status = 1
        try:
            sce.loss_and_grad(x, y, backend="cuda")
        except sce.BackendError as exc:
            status = 0 if "spawn" in str(exc) and absence.absent() == absence.FORKED else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sce.loss_and_grad(x, y, backend="cuda")


# Host arrays.


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_host_arrays_go_there_and_back(world, options):
    x, y = rng.normal(size=(7, 10)).astype("f4")[:, 3:].T.copy().T[:5], rng.integers(0, 7, 5)
    got = sce.loss_and_grad(x, y, backend="cuda", **options)
    want = sce.loss_and_grad(x, y, backend="reference", **options)
    for mine, theirs in zip(got, want, strict=True):
        assert type(mine) is type(theirs)
        np.testing.assert_allclose(mine, theirs, rtol=2e-6, atol=1e-12)
    assert [event[0] for event in world.events].count("allocate") <= 2
    assert not world.memory
    assert world.contexts == [0]


def test_all_of_an_evaluation_of_host_arrays(world):
    x, y = rng.normal(size=(2, 3, 4)), rng.random((2, 3, 4))
    got = sce.evaluate(x, y, outputs=sce.checks.OUTPUTS, axis=1, backend="cuda")
    want = sce.evaluate(x, y, outputs=sce.checks.OUTPUTS, axis=1, backend="reference")
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


# Other libraries.


def test_cupy_is_asked_for_the_stream_of_the_arrays_device(monkeypatch):
    asked = []

    class Array:
        dtype, shape, strides = np.dtype("f4"), (2, 3), (12, 4)
        data = SimpleNamespace(ptr=4096, device_id=1)
        device = SimpleNamespace(id=1)

        def __dlpack_device__(self):
            return 2, 1

    Array.__module__ = "cupy"

    def current(index):
        asked.append(index)
        return SimpleNamespace(ptr=0)

    monkeypatch.setitem(
        sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(get_current_stream=current))
    )
    from sce.device import describe, glance, place_of

    place = place_of(Array())
    assert place == (1, 1, False, "cupy")
    view = describe(Array(), "x", place)
    assert (view.__array_interface__["data"][0], view.shape, view.strides) == (4096, (2, 3), (12, 4))
    seen = glance([Array(), None, Array()])
    assert (seen.at, seen.stream) == ((4096, 4096), 1)
    assert asked == [1, 1]


# What bench/on_gpu.py asks of a machine with a GPU.


class Pretended:
    """A library of the device contests, whose arrays have no arithmetic of their own."""

    name, missing = "pretended", staticmethod(lambda: None)

    def __init__(self, on):
        self.put = on

    def get(self, x):
        return np.asarray(x.memory, np.float64)


# All but those in which the arrays' own library computes, too.
OF_US_ALONE = [
    case
    for case in functions.CASES
    if not any(part in case.name for part in ("linear", "divergence", "jacobian"))
]


@pytest.mark.parametrize("case", OF_US_ALONE, ids=[case.name for case in OF_US_ALONE])
def test_the_cases_for_a_gpu_are_right(world, on, monkeypatch, case):
    monkeypatch.setattr(functions, "_N", 5)
    monkeypatch.setattr(functions, "_C", 9)
    row = functions.checked(case, "float32", Pretended(on), "cuda")
    assert row["status"] == "ok", row
    assert launched(world)
    assert len(problem._known) == (case.name != "information.entropy")  # the second call is recognised
