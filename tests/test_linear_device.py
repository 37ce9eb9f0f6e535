"""The linear model on a device: the host's part of it, with arrays and a backend that only pretend."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import sce
from sce import LinearGrad
from sce.linear import device

pytest.importorskip("greenlet", reason="the emulator needs greenlet")


PLACED = "pretended.cuda"
N, D, C = 11, 4, 6
rng = np.random.default_rng(5)
X, W, BIAS = rng.normal(size=(N, D)), rng.normal(size=(D, C)), rng.normal(size=C)
Y = rng.integers(0, C - 1, N)


def memory_of(x):
    return x.memory if isinstance(x, Held) else x


class Held:
    """An array that says it is on a device, computes there as CuPy's do, and cannot be read from the host."""

    def __init__(self, memory):
        self.memory, self.device = np.asarray(memory), SimpleNamespace(id=0)

    dtype = property(lambda self: self.memory.dtype)
    shape = property(lambda self: self.memory.shape)
    T = property(lambda self: Held(self.memory.T))

    @property
    def __cuda_array_interface__(self):
        return {**self.memory.__array_interface__, "version": 3, "stream": 7}

    def __array__(self, *args, **kwargs):
        raise AssertionError("device memory was read from the host")

    def __array_namespace__(self):
        def nan_to_num(x, **named):
            return Held(np.nan_to_num(x.memory, **named))

        def concat(arrays):
            return Held(np.concatenate([a.memory for a in arrays]))

        def stack(arrays):
            return Held(np.stack([a.memory for a in arrays]))

        def matmul(a, b, out):
            np.matmul(a.memory, b.memory, out=out.memory)

        def empty(shape, dtype, device):
            return Held(np.full(shape, np.nan, dtype))

        types = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
        made = SimpleNamespace(empty=empty, nan_to_num=nan_to_num, concat=concat, **types)
        made.stack, made.matmul = stack, matmul
        return made

    def __getitem__(self, key):
        return Held(self.memory[key])

    def __setitem__(self, key, value):
        self.memory[key] = memory_of(value)

    def __matmul__(self, other):
        return Held(self.memory @ other.memory)

    def __iadd__(self, other):
        self.memory += memory_of(other)
        return self

    def __add__(self, other):
        return Held(self.memory + memory_of(other))

    def __mul__(self, other):
        return Held(self.memory * memory_of(other))

    __radd__, __rmul__ = __add__, __mul__

    def astype(self, dtype):
        return Held(self.memory.astype(dtype))

    def __pow__(self, other):
        return Held(self.memory**other)

    def sum(self, axis=None, dtype=None):
        return Held(self.memory.sum(axis=axis, dtype=dtype))


@pytest.fixture(autouse=True)
def always(pretended):
    """The backend there is for them."""


@pytest.fixture(params=[1000, 4], ids=["one chunk", "chunks"])
def rows(request, monkeypatch):
    """How many rows a chunk has; the blocks are small, too."""
    monkeypatch.setattr(device, "_CHUNK", request.param * C * 8)
    monkeypatch.setattr(device, "_BLOCK", 2 * D * 8)
    return request.param


def held(x):
    return Held(np.array(x)) if isinstance(x, np.ndarray) else x


@pytest.fixture(params=["as CuPy's", "torch"])
def put(request, monkeypatch):
    """Puts an array there: of the class above, or a tensor of the host's that says it is on a device."""
    return held if request.param != "torch" else tensors(monkeypatch)


def tensors(monkeypatch):
    torch = pytest.importorskip("torch")

    class Tensor(torch.Tensor):
        is_cuda = True

        def get_device(self):
            return 0

        def __dlpack_device__(self):
            return 2, 0

        def __dlpack__(self, **options):
            return self.as_subclass(torch.Tensor).__dlpack__()

        @property
        def memory(self):
            return self.as_subclass(torch.Tensor).numpy()

    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, **named: empty(*given, **named).as_subclass(Tensor))
    return lambda x: torch.tensor(x).as_subclass(Tensor) if isinstance(x, np.ndarray) else x


def numpy_of(x):
    return np.asarray(x.memory)


OPTIONS = {
    "plain": {},
    "penalty": {"l2": 0.3, "grad_scale": 4.0},
    "ignored": {"ignore_index": 2},
    "weights": {"class_weight": rng.uniform(1, 2, C), "sample_weight": rng.integers(0, 3, N).astype(float)},
    "given denominator": {"denominator": 3.0, "ignore_index": 2},
    "smoothing": {"label_smoothing": 0.1, "reduction": "sum"},
    "none": {"reduction": "none", "softcap": 2.0},
    "not validated": {"validate": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_values(options, rows, put):
    want_loss, want = sce.linear_loss_and_grad(X, W, Y, bias=BIAS, backend="reference", **options)
    there = {name: put(v) for name, v in options.items()}
    arrays = put(X), put(W), put(Y)
    loss, grads = sce.linear_loss_and_grad(*arrays, bias=put(BIAS), backend=PLACED, **there)
    assert all(type(a) is type(arrays[0]) for a in (loss, *grads))
    np.testing.assert_allclose(loss.memory, want_loss, rtol=1e-13)
    for got, right in zip(grads, want, strict=True):
        np.testing.assert_allclose(got.memory, right, rtol=0, atol=1e-13)
    there.pop("grad_scale", None)
    loss = sce.linear_cross_entropy(*arrays, bias=put(BIAS), backend=PLACED, **there)
    np.testing.assert_allclose(loss.memory, want_loss, rtol=1e-13)


def test_distributions_and_what_is_wanted(rows):
    soft = rng.dirichlet(np.ones(C), N)
    want = sce.linear_loss_and_grad(X, W, soft, backend="reference")[1]
    grads = sce.linear_loss_and_grad(held(X), held(W), held(soft), want=("W",), backend=PLACED)[1]
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-13)
    assert (grads.X, grads.bias) == (None, None)


def test_half_precision_is_added_up_in_float32(rows, put):
    x, w = X.astype("f2"), W.astype("f2")
    want = sce.linear_loss_and_grad(x, w, Y, backend="reference")[1]
    out = LinearGrad(W=put(np.empty((D, C), "f4")))
    grads = sce.linear_loss_and_grad(put(x), put(w), put(Y), backend=PLACED)[1]
    assert grads.W.memory.dtype == "f2"
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-3)
    again = sce.linear_loss_and_grad(put(x), put(w), put(Y), out=out, backend=PLACED)[1]
    assert again.W is out.W
    np.testing.assert_array_equal(out.W.memory.astype("f2"), grads.W.memory)


def test_a_penalty_is_added_up_in_float64(rows, put):
    """In half precision the square of 300 is infinite, and a thousandth of 300 has three digits."""
    w = np.full((D, C), 300, "f2")
    out = LinearGrad(W=put(np.empty((D, C), "f4")))
    loss, grads = sce.linear_loss_and_grad(
        put(np.zeros((2, D), "f2")), put(w), put(np.zeros(2, int)), l2=5e-4, out=out, backend=PLACED
    )
    np.testing.assert_allclose(loss.memory, np.log(C) + 5e-4 * 300**2 * D * C, rtol=1e-6)
    np.testing.assert_allclose(grads.W.memory, np.full((D, C), 0.3), rtol=1e-6)


def test_gradients_have_the_memory_order_of_the_arrays(rows, put):
    """PyTorch's Linear has the transpose of W."""
    want = sce.linear_loss_and_grad(X, W, Y, backend="reference")[1]
    grads = sce.linear_loss_and_grad(put(X), put(W.T.copy()).T, put(Y), backend=PLACED)[1]
    assert grads.W.memory.flags.f_contiguous
    assert grads.X.memory.flags.c_contiguous
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-13)
    np.testing.assert_allclose(grads.X.memory, want.X, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("features", "classes"), [(4, 128256), (4096, 10)])
@pytest.mark.parametrize("skips", [False, True])
def test_a_chunk_fits_the_memory_that_is_promised(features, classes, skips):
    """Whether logits or features are many: both are copied, where rows may be left out."""
    of = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (1 << 22, features), (0, 0))
    w = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (features, classes), (0, 0))
    model = SimpleNamespace(of_X=of, of_W=w, skips=skips)
    rows = device._step(model, 1)
    needs = rows * 4 * (classes + features * skips)
    assert 0.9 * device._CHUNK < needs <= device._CHUNK
    assert needs + device._BLOCK <= 64 << 20


def test_gradients_go_where_the_caller_says(rows):
    want = sce.linear_loss_and_grad(X, W, Y, bias=BIAS, backend="reference")[1]
    out = LinearGrad(*(held(np.full_like(a, np.nan)) for a in want))
    grads = sce.linear_loss_and_grad(held(X), held(W), held(Y), bias=held(BIAS), out=out, backend=PLACED)[1]
    for got, into, right in zip(grads, out, want, strict=True):
        assert got is into
        np.testing.assert_allclose(into.memory, right, rtol=0, atol=1e-13)


def test_rows_left_out_may_hold_anything(rows, put):
    x, y = X.copy(), Y.copy()
    x[3], y[3] = np.nan, -1
    kept = np.arange(N) != 3
    want = sce.linear_loss_and_grad(X[kept], W, Y[kept], backend="reference")[1]
    grads = sce.linear_loss_and_grad(put(x), put(W), put(y), ignore_index=-1, backend=PLACED)[1]
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-13)
    x[4] = np.nan  # this one counts
    grads = sce.linear_loss_and_grad(put(x), put(W), put(y), ignore_index=-1, backend=PLACED)[1]
    assert np.isnan(grads.W.memory).all()
    grads = sce.linear_loss_and_grad(put(x), put(W), put(Y), denominator=0.0, backend=PLACED)[1]
    assert not numpy_of(grads.W).any()  # nothing counts


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("n", [0, 3])
def test_an_empty_mean_is_the_penalty_alone(n, empty, rows):
    x, y = np.ones((n, D)), np.full(n, -1)
    loss, grads = sce.linear_loss_and_grad(
        held(x), held(W), held(y), ignore_index=-1, l2=0.5, empty=empty, backend=PLACED
    )
    np.testing.assert_allclose(loss.memory, np.nan if empty == "nan" else 0.5 * (W**2).sum())
    np.testing.assert_array_equal(grads.W.memory, W)
    np.testing.assert_array_equal(grads.X.memory, np.zeros((n, D)))


def test_hvp(rows, monkeypatch):
    """The rows' product is the host's here: what is looked at is what is made of it."""

    def of_rows(z, y, r, *, out, backend, **options):
        assert out is r
        assert backend == PLACED
        options = {name: memory_of(v) for name, v in options.items()}
        on_host(z.memory, y.memory, r.memory, out=out.memory, backend="reference", **options)
        return out

    on_host, (v, v_bias) = sce.linear.hvp, (rng.normal(size=(D, C)), rng.normal(size=C))
    options = {"sample_weight": rng.integers(0, 3, N).astype(float), "softcap": 2.0, "l2": 0.3}
    want = sce.linear_hvp(X, W, Y, v, bias=BIAS, v_bias=v_bias, backend="reference", **options)
    monkeypatch.setattr(sce.linear, "hvp", of_rows)
    there = {name: held(a) for name, a in options.items()}
    got = sce.linear_hvp(
        held(X), held(W), held(Y), held(v), bias=held(BIAS), v_bias=held(v_bias), backend=PLACED, **there
    )
    np.testing.assert_allclose(got.W.memory, want.W, rtol=0, atol=1e-13)
    np.testing.assert_allclose(got.bias.memory, want.bias, rtol=0, atol=1e-13)


def test_labels_are_looked_at_once_and_before_anything_is_written(rows, pretended):
    y = Y.copy()
    sce.linear_cross_entropy(held(X), held(W), held(y), backend=PLACED)
    assert len(pretended.inspected) == 1
    y[7] = C
    pretended.problems.clear()
    out = LinearGrad(W=held(np.full((D, C), 7.0)))
    with pytest.raises(sce.LabelError, match=r"label 6 at position 7 is outside \[0, 6\)"):
        sce.linear_loss_and_grad(held(X), held(W), held(y), out=out, backend=PLACED)
    assert not pretended.problems
    assert (out.W.memory == 7).all()
    pretended.inspected.clear()
    loss = sce.linear_cross_entropy(held(X), held(W), held(y), validate=False, backend=PLACED)
    assert np.isnan(loss.memory)
    assert not pretended.inspected


def test_cupy_is_told_to_compute_where_the_arrays_are():
    current = []

    class Gpu:
        def __enter__(self):
            current.append(1)

        def __exit__(self, *raised):
            current.pop()

    class Array:
        device = Gpu()

    @device._there
    def asked(model, more):
        return current.copy(), more

    model = SimpleNamespace(X=Array())
    assert asked(model, 5) == ([], 5)
    model.X = type("Array", (Array,), {"__module__": "cupy"})()
    assert asked(model, 5) == ([1], 5)
    assert current == []


def test_bad_input(pretended):
    class Jax(Held):
        def block_until_ready(self):
            return self

    x, w, y = held(X), held(W), held(Y)
    for arrays, kind, words in (
        ((x, W, y), sce.BackendError, r"X, y: on a CUDA device; W: on the host\. Move them"),
        ((Jax(X), w, y), TypeError, r"X is a .*Jax: .* pass what CuPy or PyTorch make of it"),
        ((x, held(W.T), y), ValueError, r"X of shape \(11, 4\) and W of shape \(6, 4\)"),
        ((x, held(W.astype("f4")), y), TypeError, r"X has dtype float64 and W float32"),
        ((held(Y), w, y), TypeError, r"X has dtype int64"),
        (
            (x, w, held(Y[1:])),
            ValueError,
            r"y of class indices has shape \(10,\); X of 11 rows and W of 6 cl",
        ),
    ):
        with pytest.raises(kind, match=words):
            sce.linear_loss_and_grad(*arrays, backend=PLACED)
    with pytest.raises(ValueError, match=r"bias has shape \(6,\) and dtype float32, not \(6,\) and float64"):
        sce.linear_cross_entropy(x, w, y, bias=held(BIAS.astype("f4")), backend=PLACED)
    with pytest.raises(TypeError, match=r"X is a .*Held and bias a other\.Array: pass arrays of one library"):
        sce.linear_cross_entropy(x, w, y, bias=type("Array", (Held,), {"__module__": "other"})(BIAS))
    there = held(W)
    there.device.id = 1
    with pytest.raises(sce.BackendError, match="several devices: X on 0, W on 1, y on 0"):
        sce.linear_cross_entropy(x, there, y, backend=PLACED)
    with pytest.raises(sce.BackendError, match=r"several devices: X on 0, out\.W on 1"):
        sce.linear_loss_and_grad(x, w, y, out=LinearGrad(W=there), backend=PLACED)
    with pytest.raises(sce.BackendError, match=r"several devices: X on 0, V on 1"):
        sce.linear_hvp(x, w, y, there, backend=PLACED)
    both = np.zeros(N * D + D * C)
    parts = LinearGrad(Held(both[: N * D].reshape(N, D)), Held(both[N * D - 1 : -1].reshape(D, C)))
    with pytest.raises(ValueError, match=r"out overlaps out\.X"):
        sce.linear_loss_and_grad(x, w, y, out=parts, backend=PLACED)
    with pytest.raises(ValueError, match="out overlaps W"):
        sce.linear_loss_and_grad(x, w, y, out=LinearGrad(W=w), backend=PLACED)
    with pytest.raises(ValueError, match=r"V has shape \(6, 4\)"):
        sce.linear_hvp(x, w, y, held(W.T), backend=PLACED)
    assert not pretended.problems
