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

        def empty(shape, dtype, device):
            return Held(np.full(shape, np.nan, dtype))

        types = {name: np.dtype(name) for name in ("float16", "float32", "float64")}
        return SimpleNamespace(empty=empty, nan_to_num=nan_to_num, concat=concat, **types)

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
def test_values(options, rows):
    want_loss, want = sce.linear_loss_and_grad(X, W, Y, bias=BIAS, backend="reference", **options)
    there = {name: held(v) for name, v in options.items()}
    loss, grads = sce.linear_loss_and_grad(
        held(X), held(W), held(Y), bias=held(BIAS), backend=PLACED, **there
    )
    assert all(isinstance(a, Held) for a in (loss, *grads))
    np.testing.assert_allclose(loss.memory, want_loss, rtol=1e-13)
    for got, right in zip(grads, want, strict=True):
        np.testing.assert_allclose(got.memory, right, rtol=0, atol=1e-13)
    there.pop("grad_scale", None)
    loss = sce.linear_cross_entropy(held(X), held(W), held(Y), bias=held(BIAS), backend=PLACED, **there)
    np.testing.assert_allclose(loss.memory, want_loss, rtol=1e-13)


def test_distributions_and_what_is_wanted(rows):
    soft = rng.dirichlet(np.ones(C), N)
    want = sce.linear_loss_and_grad(X, W, soft, backend="reference")[1]
    grads = sce.linear_loss_and_grad(held(X), held(W), held(soft), want=("W",), backend=PLACED)[1]
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-13)
    assert (grads.X, grads.bias) == (None, None)


def test_half_precision_is_added_up_in_float32(rows):
    x, w = X.astype("f2"), W.astype("f2")
    want = sce.linear_loss_and_grad(x, w, Y, backend="reference")[1]
    out = LinearGrad(W=held(np.empty((D, C), "f4")))
    grads = sce.linear_loss_and_grad(held(x), held(w), held(Y), backend=PLACED)[1]
    assert grads.W.dtype == "f2"
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-3)
    again = sce.linear_loss_and_grad(held(x), held(w), held(Y), out=out, backend=PLACED)[1]
    assert again.W is out.W
    np.testing.assert_array_equal(out.W.memory.astype("f2"), grads.W.memory)


def test_gradients_go_where_the_caller_says(rows):
    want = sce.linear_loss_and_grad(X, W, Y, bias=BIAS, backend="reference")[1]
    out = LinearGrad(*(held(np.full_like(a, np.nan)) for a in want))
    grads = sce.linear_loss_and_grad(held(X), held(W), held(Y), bias=held(BIAS), out=out, backend=PLACED)[1]
    for got, into, right in zip(grads, out, want, strict=True):
        assert got is into
        np.testing.assert_allclose(into.memory, right, rtol=0, atol=1e-13)


def test_rows_left_out_may_hold_anything(rows):
    x, y = X.copy(), Y.copy()
    x[3], y[3] = np.nan, -1
    kept = np.arange(N) != 3
    want = sce.linear_loss_and_grad(X[kept], W, Y[kept], backend="reference")[1]
    grads = sce.linear_loss_and_grad(held(x), held(W), held(y), ignore_index=-1, backend=PLACED)[1]
    np.testing.assert_allclose(grads.W.memory, want.W, rtol=0, atol=1e-13)
    x[4] = np.nan  # this one counts
    grads = sce.linear_loss_and_grad(held(x), held(W), held(y), ignore_index=-1, backend=PLACED)[1]
    assert np.isnan(grads.W.memory).all()


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
    both = np.zeros(N * D + D * C)
    parts = LinearGrad(Held(both[: N * D].reshape(N, D)), Held(both[N * D - 1 : -1].reshape(D, C)))
    with pytest.raises(ValueError, match=r"out overlaps out\.X"):
        sce.linear_loss_and_grad(x, w, y, out=parts, backend=PLACED)
    with pytest.raises(ValueError, match="out overlaps W"):
        sce.linear_loss_and_grad(x, w, y, out=LinearGrad(W=w), backend=PLACED)
    with pytest.raises(ValueError, match=r"V has shape \(6, 4\)"):
        sce.linear_hvp(x, w, y, held(W.T), backend=PLACED)
    assert not pretended.problems
