"""Arrays on a device, by the protocols they speak. The device is the emulator: its memory is the host's."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import sce
from sce.device import describe, library_of, place_of

pytest.importorskip("greenlet", reason="the emulator needs greenlet")

from sce_backends.cuda import emulated, execute

STREAM = 77
PLACED = "pretended.cuda"
rng = np.random.default_rng(0)


class Placed:
    """An array that says it is on a device, as CuPy's do, and has no other way to be read."""

    def __init__(self, memory):
        self.memory, self.device = memory, SimpleNamespace(id=0)

    @property
    def dtype(self):
        return self.memory.dtype

    @property
    def __cuda_array_interface__(self):
        return {**self.memory.__array_interface__, "version": 3, "stream": STREAM}

    def __array__(self, *args, **kwargs):
        raise AssertionError("device memory was read from the host")

    def __array_namespace__(self):
        made = SimpleNamespace(
            empty=lambda shape, dtype, device: Placed(poisoned(shape, dtype)),
            eye=lambda n, dtype, device: Placed(np.eye(n, dtype=dtype)),
        )
        made.float32, made.float64, made.float16, made.int64 = np.float32, np.float64, np.float16, np.int64
        made.bool = np.bool_
        return made


def poisoned(shape, dtype):
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 1, dtype)


def placed(x):
    return None if x is None else Placed(np.array(x))


@pytest.fixture(autouse=True)
def always(pretended):
    """The backend there is for them."""


def both(x, y, outputs=("loss", "grad"), **options):
    """The answer on the device, and the reference's."""
    arrays = {key: placed(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    got = sce.evaluate(placed(x), placed(y), outputs=outputs, backend=PLACED, **arrays)
    return got, sce.evaluate(x, y, outputs=outputs, backend="reference", **options)


def close(got, want):
    for name in want._fields:
        mine, theirs = getattr(got, name), np.asarray(getattr(want, name))
        if name == "denominator":
            assert mine == theirs
            continue
        assert isinstance(mine, Placed), name
        assert mine.memory.shape == theirs.shape
        assert mine.memory.dtype == theirs.dtype
        np.testing.assert_allclose(mine.memory, theirs, rtol=2e-6, atol=1e-12, equal_nan=True)


OPTIONS = {
    "plain": {},
    "ignored": {"ignore_index": 2},
    "weights": {"class_weight": rng.uniform(1, 2, 6), "sample_weight": rng.normal(size=9)},
    "float32 weights": {"class_weight": np.ones(6, "f4"), "sample_weight": np.arange(9, dtype="f4")},
    "integer weights": {"sample_weight": np.arange(9)},
    "given denominator": {"denominator": 3.0, "ignore_index": 2},
    "general": {"label_smoothing": 0.1, "class_weight": rng.uniform(1, 2, 6), "ignore_index": 2},
    "bias": {"logit_bias": np.append(rng.normal(size=5), -np.inf)},
    "sum": {"reduction": "sum", "sample_weight": rng.normal(size=9)},
    "none": {"reduction": "none", "sample_weight": rng.normal(size=9)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("validate", [True, False])
def test_values_and_types(options, validate):
    x, y = rng.normal(size=(9, 6)).astype("f4"), rng.integers(0, 5, 9)
    close(*both(x, y, validate=validate, **options))


def test_all_outputs():
    x, y = rng.normal(size=(9, 6)), rng.integers(0, 6, 9)
    options = {"ignore_index": 1, "z_loss": 0.1}
    close(*both(x, y, (*sce.checks.OUTPUTS,), **options))


def test_distributions():
    x, y = rng.normal(size=(9, 6)), rng.random((9, 6))
    close(*both(x, y, sample_weight=rng.random(9)))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u4", "i4", "u8"])
def test_labels_of_any_integer_dtype_are_read_as_they_are(dtype):
    x, y = rng.normal(size=(9, 6)).astype("f4"), rng.integers(0, 6, 9).astype(dtype)
    close(*both(x, y, class_weight=rng.random(6)))


@pytest.mark.parametrize(("axis", "order"), [(1, (0, 1, 2)), (0, (0, 1, 2)), (-1, (0, 2, 1)), (1, (0, 2, 1))])
def test_any_axis_and_strides_without_a_copy(axis, order):
    x = np.ascontiguousarray(rng.normal(size=(4, 5, 3)).astype("f4").transpose(order)).transpose(order)
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    close(*both(x, y, axis=axis))


def test_a_layout_that_needs_a_copy_is_refused():
    x = rng.normal(size=(3, 4, 5, 6)).astype("f4").transpose(2, 1, 0, 3)
    y = rng.integers(0, 6, x.shape[:3])
    with pytest.raises(sce.BackendError, match="on a device nothing is copied: pass contiguous arrays"):
        sce.loss_and_grad(Placed(x), placed(y), backend=PLACED)
    with pytest.raises(ValueError, match="target has gaps: on a device pass a contiguous array"):
        sce.loss_and_grad(placed(rng.normal(size=(4, 6))), Placed(np.zeros(8, int)[::2]), backend=PLACED)


def test_in_place_and_out():
    x, y = rng.normal(size=(9, 300)).astype("f4"), rng.integers(0, 300, 9)
    want = sce.loss_and_grad(x, y, backend="reference")[1]
    into, own = placed(np.zeros_like(x)), placed(x)
    assert sce.loss_and_grad(placed(x), placed(y), out=into, backend=PLACED)[1] is into
    assert sce.loss_and_grad(own, placed(y), out=own, backend=PLACED)[1] is own
    for got in (into, own):
        np.testing.assert_allclose(got.memory, want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("rows", [0, 4])
def test_an_empty_mean_is_known_on_the_device_alone(empty, rows, pretended):
    x, y = np.full((rows, 6), np.nan, "f4"), np.full(rows, -100)
    loss, grad = sce.loss_and_grad(placed(x), placed(y), ignore_index=-100, empty=empty, backend=PLACED)
    assert pretended.problems[-1].own_denominator
    np.testing.assert_array_equal(loss.memory, np.float32(np.nan if empty == "nan" else 0))
    np.testing.assert_array_equal(grad.memory, np.zeros_like(x))


def test_a_bad_label_is_found_before_anything_is_written(pretended):
    x, y = rng.normal(size=(2, 3, 6)).astype("f4"), rng.integers(0, 6, (2, 3)).astype("i4")
    y[1, 1], y[1, 2] = 6, -1
    into = placed(np.full_like(x, 7))
    with pytest.raises(sce.LabelError, match=r"label 6 at position \(1, 1\) is outside \[0, 6\)"):
        sce.loss_and_grad(placed(x), placed(y), out=into, backend=PLACED)
    assert (into.memory == 7).all()
    assert [type(launch.spec).__name__ for launch in pretended.launches] == ["Survey"]
    y[1, 1] = -1  # now two are left out, and the last but one is not
    y[1, 0] = -2
    with pytest.raises(sce.LabelError, match=r"label -2 at position \(1, 0\)"):
        sce.loss_and_grad(placed(x), placed(y), ignore_index=-1, out=into, backend=PLACED)


def test_an_unsigned_label_is_never_a_negative_one():
    x, y = rng.normal(size=(3, 6)).astype("f4"), np.array([0, 2**64 - 1, 3], "u8")
    with pytest.raises(sce.LabelError, match=f"label {2**64 - 1} at position 1"):
        sce.loss_and_grad(placed(x), placed(y), ignore_index=-1, backend=PLACED)
    options = {"ignore_index": -1, "validate": False, "reduction": "none"}
    loss, _ = sce.loss_and_grad(placed(x), placed(y), backend=PLACED, **options)
    assert np.isnan(loss.memory).tolist() == [False, True, False]


def test_many_rows_are_surveyed_in_chunks():
    y = np.zeros(40_000, "i4")
    y[[33_333, 33_400]] = 9
    x, labels = placed(np.zeros((40_000, 2), "f2")), placed(y)
    problem = sce.problem.prepare(x, labels, outputs=("loss",)).problem
    found = execute.illegal(problem, emulated.Machine(), np.copy)
    assert found == sce.backend.Illegal(33_333, 9)
    ignoring = sce.problem.prepare(x, labels, outputs=("loss",), ignore_index=0).problem
    assert execute.total_weight(ignoring, emulated.Machine())[0] == 2


@pytest.mark.parametrize("name", ["class_weight", "sample_weight", "logit_bias"])
def test_a_bad_weight_is_found(name):
    x, y = rng.normal(size=(6, 6)).astype("f4"), rng.integers(0, 6, 6)
    weight = np.ones(6, "f4")
    weight[[4, 5]] = np.nan
    with pytest.raises(ValueError, match=f"{name} must be finite.*it is not at position 4"):
        sce.loss_and_grad(placed(x), placed(y), backend=PLACED, **{name: placed(weight)})


def test_not_validated_a_bad_label_makes_its_row_nan_and_nothing_waits(pretended):
    x, y = rng.normal(size=(4, 6)).astype("f4"), np.array([0, 6, -1, 2**40])
    options = {"reduction": "none", "validate": False}
    loss, grad = sce.loss_and_grad(placed(x), placed(y), backend=PLACED, **options)
    assert np.isnan(loss.memory).tolist() == [False, True, True, True]
    assert np.isnan(grad.memory).all(axis=1).tolist() == [False, True, True, True]
    assert "Survey" not in [type(launch.spec).__name__ for launch in pretended.launches]


def test_the_callers_stream_goes_with_the_problem(pretended):
    sce.cross_entropy(placed(np.zeros((2, 3))), placed(np.zeros(2, int)), backend=PLACED)
    assert (pretended.problems[-1].stream, pretended.problems[-1].wait) == (STREAM, False)


def test_softmax_and_logsumexp():
    x = rng.normal(size=(5, 40)).astype("f4")
    for function in (sce.softmax, sce.log_softmax, sce.logsumexp):
        got, want = function(placed(x), backend=PLACED), function(x, backend="reference")
        assert isinstance(got, Placed)
        np.testing.assert_allclose(got.memory, want, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0, "z_loss": 0.1, "ignore_index": 1}])
def test_second_derivatives(options, pretended):
    x, y, v = rng.normal(size=(9, 6)).astype("f4"), rng.integers(0, 6, 9), rng.normal(size=(9, 6))
    got = sce.hvp(placed(x), placed(y), placed(v), backend=PLACED, **options)
    assert isinstance(got, Placed)
    np.testing.assert_allclose(got.memory, sce.hvp(x, y, v, backend="reference", **options), rtol=2e-6)
    options = {"hess_scale": 2.0, "hess_min": 0.01, **options}
    found = sce.loss_grad_hess(placed(x), placed(y), backend=PLACED, **options)
    for mine, theirs in zip(found, sce.loss_grad_hess(x, y, backend="reference", **options), strict=True):
        np.testing.assert_allclose(mine.memory, theirs, rtol=2e-6)


def test_a_product_over_v():
    x, y, v = (
        rng.normal(size=(9, 300)).astype("f4"),
        rng.integers(0, 300, 9),
        rng.normal(size=(9, 300)).astype("f4"),
    )
    want = sce.hvp(x, y, v, backend="reference")
    for over in (0, 2):
        given = [placed(a) for a in (x, y, v)]
        assert sce.hvp(*given, out=given[over], backend=PLACED) is given[over]
        np.testing.assert_allclose(given[over].memory, want, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", ["softmax_jvp", "softmax_vjp", "log_softmax_jvp", "log_softmax_vjp"])
def test_products_with_jacobians(name):
    x, v = rng.normal(size=(5, 40)).astype("f4"), rng.normal(size=(5, 40)).astype("f4")
    got = getattr(sce, name)(placed(x), placed(v), temperature=0.7, backend=PLACED)
    want = getattr(sce, name)(x, v, temperature=0.7, backend="reference")
    np.testing.assert_allclose(got.memory, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["softmax_jacobian", "log_softmax_jacobian"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4,), 0), ((3, 5), 1), ((5, 3), 0), ((2, 3, 4), -1), ((2, 4, 3), 1)]
)
def test_jacobians(name, shape, axis):
    x = rng.normal(size=shape).astype("f4")
    x.reshape(-1)[0] += 30
    options = {"axis": axis, "temperature": 0.7}
    got = getattr(sce, name)(placed(x), backend=PLACED, **options)
    want = getattr(sce, name)(x.astype("f8"), backend="reference", **options)
    assert isinstance(got, Placed)
    assert got.memory.shape == want.shape
    out = placed(np.zeros(want.shape, "f4"))
    assert getattr(sce, name)(placed(x), out=out, backend=PLACED, **options) is out
    assert out.memory.tobytes() == got.memory.tobytes()
    np.testing.assert_allclose(
        got.memory, want, rtol=5e-6, atol=1e-43
    )  # some are below float32's normal numbers


def test_auto_moves_nothing():
    x, y = placed(np.zeros((2, 3), "f4")), placed(np.zeros(2, int))
    decision = sce.explain(x, y)
    assert decision.chosen in (None, "cuda")
    assert (
        "cpu",
        "auto never moves data between host and device.",
    ) in decision.passed_over or decision.chosen
    with pytest.raises(sce.BackendError, match="logits live on a device"):
        sce.loss_and_grad(x, y, backend="reference")


class Packed:
    """An array that speaks DLPack alone, as NumPy's does, and says that it is on a device."""

    def __init__(self, memory, index=0):
        self.memory, self.index = memory, index

    def __dlpack_device__(self):
        return (2, self.index)

    def __dlpack__(self, *, stream):
        assert stream == 1
        return self.memory.__dlpack__()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "u4", "i8"])
def test_dlpack(dtype):
    x = np.arange(24).astype(dtype).reshape(4, 6)[::2, 1::2]
    place = place_of(Packed(x, 3))
    assert place[:3] == (3, 1, True)
    view = describe(Packed(x), "x", place)
    assert (view.ctypes.data, view.shape, view.strides, view.dtype) == (
        x.ctypes.data, x.shape, x.strides, x.dtype,
    )  # fmt: skip


class Jax(Packed):
    """As JAX's: it waits, and may be shared."""

    waited = 0

    def block_until_ready(self):
        self.waited += 1


def test_what_a_library_keeps_to_itself_is_waited_for_and_never_written_to():
    x = Jax(np.zeros((2, 3)))
    assert place_of(x)[:3] == (0, 1, True)
    assert x.waited == 1
    with pytest.raises(ValueError, match="out is read-only"):
        sce.loss_and_grad(x, Jax(np.zeros(2, int)), out=x, backend=PLACED)
    assert not x.memory.any()


def test_read_only_memory_is_no_place_for_a_gradient():
    class ReadOnly(Placed):
        @property
        def __cuda_array_interface__(self):
            facts = super().__cuda_array_interface__
            return {**facts, "data": (facts["data"][0], True)}

    x = ReadOnly(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="out is read-only"):
        sce.loss_and_grad(x, placed(np.zeros(2, int)), out=x, backend=PLACED)


class Numba:
    """As numba.cuda's: no DLPack, and a default stream whose name it does not tell."""

    def __init__(self, memory, index=0, stream=0):
        self.memory, self.dtype, self.stream = memory, memory.dtype, stream
        self.gpu_data = SimpleNamespace(context=SimpleNamespace(device=SimpleNamespace(id=index)))

    @property
    def __cuda_array_interface__(self):
        return {**self.memory.__array_interface__, "version": 3, "stream": self.stream or None}


Numba.__module__ = "numba.cuda.cudadrv.devicearray"


def test_numbas_arrays_are_on_their_device_and_its_default_stream(monkeypatch, pretended):
    assert place_of(Numba(np.zeros(2), 1))[:3] == (1, 1, False)
    assert place_of(Numba(np.zeros(2), 1, 77))[:3] == (1, 77, False)
    current = []

    class Gpu:
        def __init__(self, index):
            self.index = index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *raised):
            current.pop()

    made = ModuleType("numba.cuda")
    made.gpus = [Gpu(0), Gpu(1)]
    made.device_array = lambda shape, dtype, stream: Numba(poisoned(shape, dtype), current[-1], stream)
    monkeypatch.setitem(sys.modules, "numba.cuda", made)
    x, y = rng.normal(size=(4, 6)), rng.integers(0, 6, 4)
    loss, grad = sce.loss_and_grad(Numba(x, 1, 77), Numba(y, 1, 77), backend=PLACED)
    assert (place_of(loss)[:3], place_of(grad)[:3]) == ((1, 77, False),) * 2
    np.testing.assert_allclose(grad.memory, sce.loss_and_grad(x, y, backend="reference")[1], rtol=1e-12)


def test_a_subclass_belongs_to_the_library_it_inherits_from():
    assert library_of(type("Mine", (Numba,), {"__module__": "mine"})) == "numba"
    assert library_of(Placed) == Placed.__module__.partition(".")[0]


def test_several_devices_are_refused():
    x, y = Packed(np.zeros((2, 3)), 0), Packed(np.zeros(2, int), 1)
    with pytest.raises(sce.BackendError, match=r"several devices: logits on 0, target on 1"):
        sce.loss_and_grad(x, y)


def test_what_cannot_make_its_own_type_is_refused():
    x, y = Packed(np.zeros((2, 3))), Packed(np.zeros(2, int))
    with pytest.raises(TypeError, match="no way to make an array of its own type"):
        sce.loss_and_grad(x, y, backend=PLACED)


# One logit per element.

BINARY = {
    "plain": {},
    "ignored": {"ignore_index": -1},
    "per sample": {"sample_weight": rng.normal(size=9), "ignore_index": -1},
    "per element": {"sample_weight": rng.normal(size=(9, 6)).astype("f4")},
    "integer weights": {"sample_weight": np.arange(9)},
    "per label": {"pos_weight": rng.uniform(1, 2, 6).astype("f4")},
    "a number": {"pos_weight": 2.5, "label_smoothing": 0.1, "temperature": 0.7},
    "none": {"reduction": "none", "sample_weight": rng.normal(size=9), "ignore_index": -1},
    "given denominator": {"denominator": -3.0, "ignore_index": -1, "hess_min": 0.01},
    "no element": {"ignore_index": 0, "empty": "zero"},
}


def both_binary(x, y, **options):
    arrays = {key: placed(v) if isinstance(v, np.ndarray) else v for key, v in options.items()}
    got = sce.binary_loss_grad_hess(placed(x), placed(y), backend=PLACED, **arrays)
    return got, sce.binary_loss_grad_hess(x, y, backend="reference", **options)


@pytest.mark.parametrize("options", BINARY.values(), ids=BINARY.keys())
@pytest.mark.parametrize("validate", [True, False])
def test_binary_values_and_types(options, validate):
    x, y = rng.normal(size=(9, 6)).astype("f4"), rng.integers(-1, 2, (9, 6)).astype(np.int8)
    if "ignore_index" not in options:
        y = np.abs(y)
    if options.get("ignore_index") == 0:
        y[:] = 0
    for mine, theirs in zip(*both_binary(x, y, validate=validate, **options), strict=True):
        assert isinstance(mine, Placed)
        assert (mine.memory.shape, mine.memory.dtype) == (np.shape(theirs), np.asarray(theirs).dtype)
        np.testing.assert_allclose(mine.memory, theirs, rtol=2e-6, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("y", [np.eye(3, dtype=bool), np.eye(3, dtype="u2"), rng.uniform(size=(3, 3))])
def test_binary_targets_in_any_order_in_memory(y):
    x = np.asfortranarray(rng.normal(size=(3, 3)))
    arrays = Placed(x), Placed(np.asfortranarray(y))
    loss, grad = sce.binary_loss_and_grad(*arrays, reduction="none", out=Placed(x.copy("F")), backend=PLACED)
    want = sce.binary_loss_and_grad(x, y, reduction="none", backend="reference")
    np.testing.assert_allclose(loss.memory, want[0], rtol=1e-14)
    np.testing.assert_allclose(grad.memory, want[1], rtol=1e-14)


def test_illegal_binary_labels_and_weights_are_found_on_the_device():
    x, y = placed(np.zeros((4, 3))), np.zeros((4, 3), int)
    y[2, 1] = 7
    out = placed(np.full((4, 3), 5.0))
    with pytest.raises(sce.LabelError, match=r"label 7 at position \(2, 1\) is outside \[0, 2\) of a binary"):
        sce.binary_loss_and_grad(x, placed(y), out=out, backend=PLACED)
    legal = placed(np.zeros((4, 3), int))
    weight = placed(np.array([1, np.nan, 1, np.nan]))
    with pytest.raises(ValueError, match=r"sample_weight must be finite: it is not for the element at 1, 0"):
        sce.binary_loss_and_grad(x, legal, sample_weight=weight, out=out, backend=PLACED)
    with pytest.raises(ValueError, match=r"pos_weight must be finite: it is not for the element at 0, 2"):
        sce.binary_loss_and_grad(
            x, legal, pos_weight=placed(np.array([1, 1, np.nan])), out=out, backend=PLACED
        )
    assert (out.memory == 5).all()


def test_binary_answers_go_to_no_read_only_memory():
    x, y = np.zeros((2, 3), "f4"), placed(np.zeros((2, 3), int))
    x.setflags(write=False)
    with pytest.raises(ValueError, match="out is read-only"):
        sce.binary_loss_and_grad(Placed(x), y, out=Placed(x), backend=PLACED)


def test_a_large_unsigned_binary_label_is_not_a_negative_one():
    y = placed(np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(sce.LabelError):
        sce.binary_loss_and_grad(placed(np.zeros(2)), y, ignore_index=-1, backend=PLACED)


def test_binary_arrays_in_two_orders_are_refused_on_a_device():
    x = Placed(np.zeros((2, 3, 4)))
    y = Placed(np.zeros((3, 2, 4), int).transpose(1, 0, 2))
    with pytest.raises(sce.BackendError, match=r"different orders.*pass contiguous arrays"):
        sce.binary_loss_and_grad(x, y, backend=PLACED)
    with pytest.raises(sce.BackendError, match=r"logits: on a CUDA device; target: on the host"):
        sce.binary_loss_and_grad(x, y.memory, backend=PLACED)


class Fetched(Placed):
    """One that can be copied to the host when asked, as CuPy's `get` does, and made from a host array."""

    def get(self):
        return self.memory.copy()

    def __array_namespace__(self):
        made = super().__array_namespace__()
        made.empty = lambda shape, dtype, device: Fetched(poisoned(shape, dtype))
        made.asarray = lambda x, device: Fetched(np.array(x))
        return made


def test_information_of_arrays_on_a_device():
    x = (3 * rng.normal(size=(40, 6))).astype("f4")
    y = np.where(np.arange(40) % 2, x.argmax(axis=1), rng.integers(0, 6, 40))
    y[:4] = -1
    u = rng.uniform(0, 1, 40)
    there = {"sample_weight": Fetched(u), "ignore_index": -1, "backend": PLACED}
    here = {"sample_weight": u, "ignore_index": -1, "backend": "reference"}
    for name in ("perplexity", "bits_per_token", "expected_calibration_error", "mutual_information"):
        function = getattr(sce.information, name)
        held = {"trained_prior": None} if name == "mutual_information" else {}
        got = function(Fetched(x), Fetched(y), **there, **held)
        assert got == pytest.approx(function(x, y, **here, **held), rel=1e-5), name
        assert isinstance(got, np.float64)
    rows = sce.information.entropy(Fetched(x), backend=PLACED)
    assert isinstance(rows, Fetched)  # stays there
    np.testing.assert_allclose(rows.memory, sce.information.entropy(x, backend="reference"), rtol=1e-5)
    mean = sce.information.entropy(Fetched(x), reduction="mean", sample_weight=Fetched(u), backend=PLACED)
    assert mean == pytest.approx(sce.information.entropy(x, reduction="mean", sample_weight=u), rel=1e-5)


def test_divergence_needs_arithmetic_on_the_device():
    x = Fetched(np.zeros((2, 3), "f4"))
    with pytest.raises(sce.BackendError, match=r"Fetched has no arithmetic of its own: pass what CuPy"):
        sce.information.kl_divergence(x, x)
    with pytest.raises(sce.BackendError, match="p and logits are not in one place"):
        sce.information.kl_divergence(x, x.memory)
