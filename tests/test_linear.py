"""The linear model against its definition: the logits written out, in float64, by the reference."""

from __future__ import annotations

import sys
import tracemalloc
import types

import ml_dtypes
import numpy as np
import pytest

import sce
from sce import LinearGrad, registry
from sce.linear import chunks, host

N, D, C = 23, 6, 5
rng = np.random.default_rng(3)
X, W, BIAS = rng.normal(size=(N, D)), rng.normal(size=(D, C)), rng.normal(size=C)
Y = rng.integers(0, C, N)
Y[[2, 11]] = -1
SOFT = rng.dirichlet(np.ones(C), N)
V, V_BIAS = rng.normal(size=(D, C)), rng.normal(size=C)

OPTIONS = {
    "plain": {},
    "ignored": {"ignore_index": -1},
    "weights": {"class_weight": rng.uniform(0.5, 2, C), "sample_weight": rng.uniform(0.5, 2, N)},
    "signed weights": {"sample_weight": np.where(np.arange(N) % 3, 1.0, -0.5), "reduction": "sum"},
    "rows left out": {"sample_weight": (np.arange(N) % 3 > 0).astype(float)},
    "smoothing": {"label_smoothing": 0.1, "class_weight": rng.uniform(0.5, 2, C)},
    "temperature": {"temperature": 0.7},
    "soft cap": {"softcap": 2.0, "temperature": 1.3},
    "logit bias": {"logit_bias": np.array([0.5, -np.inf, 0.0, 1.0, -1.0])},
    "z-loss": {"z_loss": 0.1, "label_smoothing": 0.2},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none", "l2": 0.0},
    "given denominator": {"denominator": 7.5, "ignore_index": -1},
    "grad scale": {"grad_scale": 8.0},
    "no penalty": {"l2": 0.0},
    "not validated": {"validate": False},
}
TWICE = {
    k: {**v} for k, v in OPTIONS.items() if k != "grad scale"
}  # differentiable twice by the same options


def labels(options):
    """Labels that are legal under the options."""
    y = Y if "ignore_index" in options else np.where(Y < 0, 0, Y)
    return np.where(y == 1, 2, y) if "logit_bias" in options else y  # class 1 is removed by it


def dense(x, w, y, bias, options):
    """Loss and gradients in float64, with all logits at once."""
    x, w = np.asarray(x, float), np.asarray(w, float)
    bias = np.zeros(w.shape[1]) if bias is None else np.asarray(bias, float)
    some = {k: v for k, v in options.items() if k != "l2"}
    scale, l2 = options.get("grad_scale", 1.0), options.get("l2", 0.0)
    loss, g = sce.loss_and_grad(x @ w + bias, y, backend="reference", **some)
    return loss + l2 * (w**2).sum(), LinearGrad(g @ w.T, x.T @ g + 2 * l2 * scale * w, g.sum(axis=0))


def near(got, want, tolerance, scale=1.0):
    np.testing.assert_allclose(
        got, want, rtol=0, atol=tolerance * scale * max(1.0, np.abs(want).max(initial=0))
    )


@pytest.fixture(params=[1000, 4], ids=["one chunk", "chunks"])
def step(request, monkeypatch):
    monkeypatch.setattr(host, "_step", lambda *call, **named: request.param)


@pytest.fixture(params=[0, 1 << 20], ids=["by class", "by row"])
def order(request, monkeypatch):
    """How a chunk's logits lie in memory."""
    monkeypatch.setattr(chunks, "_DEEP", request.param)


def test_a_chunk_of_few_classes_lies_class_after_class():
    memory = np.empty(4096)
    for classes, features, by_class in ((64, 48, True), (65, 48, False), (64, 47, False)):
        z = chunks.matrix_in(memory, 20, np.empty((features, classes)))
        assert z.shape == (20, classes)
        assert z.T.flags.c_contiguous == by_class
        assert z.flags.c_contiguous != by_class
        assert np.shares_memory(z, memory)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options(options, step, order, backend):
    options = {"l2": 0.05, **options}
    y = labels(options)
    want_loss, want = dense(X, W, y, BIAS, options)
    loss, grads = sce.linear_loss_and_grad(X, W, y, bias=BIAS, backend=backend, **options)
    near(loss, want_loss, 1e-14)
    for got, right in zip(grads, want, strict=True):
        near(got, right, 1e-14, options.get("grad_scale", 1.0))
    assert np.shape(loss) == np.shape(want_loss)
    some = {k: v for k, v in options.items() if k != "grad_scale"}
    near(sce.linear_cross_entropy(X, W, y, bias=BIAS, backend=backend, **some), want_loss, 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtypes(dtype, step, order):
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    x, w = X.astype(kind), W.astype(kind)
    want_loss, want = dense(x, w, labels({}), BIAS, {"l2": 0.05})
    loss, grads = sce.linear_loss_and_grad(x, w, labels({}), bias=BIAS, l2=0.05)
    assert loss.dtype == (np.float64 if dtype == "float64" else np.float32)
    computing = 2.0**-52 if dtype == "float64" else 2.0**-23
    near(loss, want_loss, 16 * computing)
    rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0) + 16 * computing
    for got, right in zip(grads, want, strict=True):
        assert got.dtype == kind
        near(got.astype(float), right, rounding)
    if kind.itemsize == 2:
        out = LinearGrad(*(np.empty(a.shape, "f4") for a in grads))
        sce.linear_loss_and_grad(x, w, labels({}), bias=BIAS, l2=0.05, out=out)
        for got, right in zip(out, want, strict=True):
            near(got, right, 16 * computing)


def ordered(x, how):
    """The same values, elsewhere in memory."""
    if how == "gaps":
        wide = np.full((2 * x.shape[0], 3 * x.shape[1]), np.nan)
        wide[::2, ::3] = x
        return wide[::2, ::3]
    if how == "backwards":
        return np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    if how == "foreign":
        return x.astype(x.dtype.newbyteorder())
    return np.array(x, order=how)


@pytest.mark.parametrize("of_w", ["C", "F", "gaps", "backwards", "foreign"])
@pytest.mark.parametrize("of_x", ["C", "F", "gaps", "foreign"])
def test_any_memory_order(of_x, of_w, step, order):
    want_loss, want = dense(X, W, labels({}), None, {"l2": 0.1})
    x, w = ordered(X, of_x), ordered(W, of_w)
    out = LinearGrad(ordered(np.zeros_like(X), of_x.replace("foreign", "C")), None)
    for into in (None, out):
        loss, grads = sce.linear_loss_and_grad(x, w, labels({}), l2=0.1, out=into)
        near(loss, want_loss, 1e-14)
        near(grads.W, want.W, 1e-14)
        near(grads.X, want.X, 1e-14)
        assert grads.bias is None
    if of_w in ("C", "F"):
        assert grads.W.flags[f"{of_w}_CONTIGUOUS"]


@pytest.mark.parametrize("of_w", ["C", "F", "gaps", "backwards"])
def test_gradients_go_where_the_caller_says(of_w, step, order):
    want = dense(X, W, labels({}), BIAS, {"l2": 0.1})[1]
    out = LinearGrad(np.full((N, D), np.nan), ordered(np.full((D, C), np.nan), of_w), np.full(C, np.nan))
    _, grads = sce.linear_loss_and_grad(X, W, labels({}), bias=BIAS, l2=0.1, out=out)
    for got, into, right in zip(grads, out, want, strict=True):
        assert got is into
        near(into, right, 1e-14)


@pytest.mark.parametrize("want", [("W",), ("X",), ("bias",), ("bias", "X"), ("X", "W", "bias")])
def test_only_what_is_wanted(want, step):
    loss, grads = sce.linear_loss_and_grad(X, W, labels({}), bias=BIAS, want=want)
    right_loss, right = dense(X, W, labels({}), BIAS, {})
    near(loss, right_loss, 1e-14)
    for name in ("X", "W", "bias"):
        if name not in want:
            assert getattr(grads, name) is None
        else:
            near(getattr(grads, name), getattr(right, name), 1e-14)


def test_a_bias_that_is_not_there_has_no_gradient():
    loss, grads = sce.linear_loss_and_grad(X, W, labels({}), want=("W", "bias"), backend="reference")
    right_loss, right = dense(X, W, labels({}), None, {})
    near(loss, right_loss, 1e-14)
    near(grads.W, right.W, 1e-14)
    assert grads.X is grads.bias is None


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"sample_weight": np.arange(N) % 2.0}])
def test_distributions(options, step):
    want_loss, want = dense(X, W, SOFT, BIAS, options)
    loss, grads = sce.linear_loss_and_grad(X, W, SOFT, bias=BIAS, **options)
    near(loss, want_loss, 1e-14)
    for got, right in zip(grads, want, strict=True):
        near(got, right, 1e-14)


def test_rows_left_out_may_hold_anything(step):
    x = X.copy()
    x[2], x[11] = np.nan, np.inf
    for y, options in ((Y, {"ignore_index": -1}), (labels({}), {"sample_weight": (Y >= 0).astype(float)})):
        kept = Y >= 0
        want_loss, want = dense(X[kept], W, Y[kept], BIAS, {})
        loss, grads = sce.linear_loss_and_grad(x, W, y, bias=BIAS, **options)
        near(loss, want_loss, 1e-14)
        near(grads.W, want.W, 1e-14)
        near(grads.bias, want.bias, 1e-14)
        near(grads.X[kept], want.X, 1e-14)
        assert (grads.X[~kept] == 0).all()
        hv = sce.linear_hvp(x, W, y, V, **options)
        near(hv.W, sce.linear_hvp(X[kept], W, Y[kept], V).W, 1e-14)


def test_nan_is_seen_and_nobody_warns(step):
    x = X.copy()
    x[3, 1] = np.nan
    loss, grads = sce.linear_loss_and_grad(x, W, labels({}), bias=BIAS, reduction="none")
    assert np.isnan(loss).tolist() == (np.arange(N) == 3).tolist()
    assert np.isnan(grads.X).any(axis=1).tolist() == (np.arange(N) == 3).tolist()
    assert np.isnan(grads.W).all()
    x[3, 1] = np.inf
    assert np.isnan(sce.linear_cross_entropy(x, W, labels({})))


def test_the_same_bits_again():
    x, w = rng.normal(size=(300, 40)).astype("f4"), rng.normal(size=(40, 70)).astype("f4")
    y = rng.integers(0, 70, 300)
    first, again = (sce.linear_loss_and_grad(x, w, y, l2=0.1) for _ in range(2))
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1].W, again[1].W)
    np.testing.assert_array_equal(first[1].X, again[1].X)


# ---------------------------------------------------------------- derivatives


def shifted(t, options, y):
    """Loss and gradients at (W, bias) + t (V, V_BIAS)."""
    return sce.linear_loss_and_grad(X, W + t * V, y, bias=BIAS + t * V_BIAS, backend="reference", **options)


@pytest.mark.parametrize("options", TWICE.values(), ids=TWICE.keys())
def test_finite_differences(options, step, order):
    """The gradient is the loss's derivative along a direction, the product is the gradient's."""
    options = {"l2": 0.05, **options}
    y, e = labels(options), 1e-5
    up, down = shifted(e, options, y), shifted(-e, options, y)
    grads = shifted(0.0, options, y)[1]
    slope = (np.sum(up[0]) - np.sum(down[0])) / (2 * e)
    near((grads.W * V).sum() + (grads.bias * V_BIAS).sum(), slope, 1e-8)
    got = sce.linear_hvp(X, W, y, V, bias=BIAS, v_bias=V_BIAS, **options)
    assert got.X is None
    near(got.W, (up[1].W - down[1].W) / (2 * e), 1e-8)
    near(got.bias, (up[1].bias - down[1].bias) / (2 * e), 1e-8)


def test_the_gradient_of_x_by_finite_differences():
    U, e = rng.normal(size=X.shape), 1e-5
    up, down = (sce.linear_cross_entropy(X + t * U, W, labels({}), softcap=3.0) for t in (e, -e))
    grad = sce.linear_loss_and_grad(X, W, labels({}), softcap=3.0, want=("X",))[1].X
    near((grad * U).sum(), (up - down) / (2 * e), 1e-9)


def test_hvp_without_a_bias_and_without_its_direction(step):
    full = sce.linear_hvp(X, W, labels({}), V, bias=BIAS, v_bias=np.zeros(C))
    some = sce.linear_hvp(X, W, labels({}), V, bias=BIAS)
    np.testing.assert_array_equal(full.W, some.W)
    np.testing.assert_array_equal(full.bias, some.bias)
    out = LinearGrad(W=np.empty((D, C)))
    got = sce.linear_hvp(X, W, labels({}), V, out=out)
    assert got.W is out.W
    assert got.bias is None
    near(got.W, sce.linear_hvp(X, W, labels({}), V, bias=np.zeros(C)).W, 1e-15)


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_hvp_in_single_and_half_precision(dtype, step):
    x, w, v = X.astype(dtype), W.astype(dtype), V.astype(dtype)
    want = sce.linear_hvp(x.astype(float), w.astype(float), labels({}), v.astype(float), l2=0.1)
    got = sce.linear_hvp(x, w, labels({}), v, l2=0.1)
    assert got.W.dtype == dtype
    near(got.W.astype(float), want.W, 2.0**-10 if dtype == "f2" else 2.0**-18)


def test_torch_agrees():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    y, options = labels({}), {"label_smoothing": 0.1, "class_weight": np.arange(1.0, C + 1)}
    given = [torch.tensor(a, requires_grad=True) for a in (X, W, BIAS)]

    def loss(x, w, b):
        entropy = torch.nn.functional.cross_entropy(
            x @ w + b, torch.tensor(y), weight=torch.tensor(options["class_weight"]), label_smoothing=0.1
        )
        return entropy + 0.05 * (w**2).sum()

    value = loss(*given)
    value.backward()
    got, grads = sce.linear_loss_and_grad(X, W, y, bias=BIAS, l2=0.05, **options)
    near(got, value.item(), 1e-14)
    for mine, theirs in zip(grads, given, strict=True):
        near(mine, theirs.grad.numpy(), 1e-14)


def test_jax_agrees():
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    y = labels({})

    def loss(w, b):
        logits = 3.0 * jax.numpy.tanh((X @ w + b) / 3.0)
        lse = jax.scipy.special.logsumexp(logits, axis=1)
        return (lse - logits[np.arange(N), y] + 0.1 * lse**2).mean() + 0.05 * (w**2).sum()

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        (gw, gb), (hw, hb) = jax.jvp(jax.grad(loss, argnums=(0, 1)), (W, BIAS), (V, V_BIAS))
    finally:
        jax.config.update("jax_enable_x64", before)
    options = {"softcap": 3.0, "z_loss": 0.1, "l2": 0.05, "bias": BIAS}
    grads = sce.linear_loss_and_grad(X, W, y, **options)[1]
    product = sce.linear_hvp(X, W, y, V, v_bias=V_BIAS, **options)
    for mine, theirs in ((grads.W, gw), (grads.bias, gb), (product.W, hw), (product.bias, hb)):
        near(mine, np.asarray(theirs), 1e-14)


# ---------------------------------------------------------------- sparse X


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix"])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_sparse(kind, dtype, step):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = np.where(X > 0.3, X, 0).astype(dtype)
    w, options = W.astype(dtype), {"bias": BIAS, "l2": 0.1, "ignore_index": -1}
    tolerance = 1e-14 if dtype == "f8" else 1e-6
    want_loss, want = dense(x, w, Y, BIAS, {"l2": 0.1, "ignore_index": -1})
    loss, grads = sce.linear_loss_and_grad(getattr(sparse, kind)(x), w, Y, want=("W", "bias"), **options)
    near(loss, want_loss, tolerance)
    near(grads.W, want.W, tolerance)
    near(grads.bias, want.bias, tolerance)
    assert type(grads.W) is np.ndarray
    assert grads.W.dtype == dtype
    near(sce.linear_cross_entropy(getattr(sparse, kind)(x), w, Y, **options), want_loss, tolerance)
    got = sce.linear_hvp(getattr(sparse, kind)(x), w, Y, V.astype(dtype), **options)
    near(got.W, sce.linear_hvp(x, w, Y, V.astype(dtype), **options).W, tolerance)


def test_a_sparse_x_has_no_gradient_by_default(step):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    for x, y in ((X, Y), (X[:0], Y[:0])):
        loss, grads = sce.linear_loss_and_grad(
            sparse.csr_array(x), W, y, bias=BIAS, ignore_index=-1, l2=0.1, empty="zero"
        )
        want_loss, want = dense(x, W, y, BIAS, {"ignore_index": -1, "l2": 0.1, "empty": "zero"})
        near(loss, want_loss, 1e-14)
        assert grads.X is None
        near(grads.W, want.W, 1e-14)
        near(grads.bias, want.bias, 1e-14)
    assert sce.linear_loss_and_grad(sparse.csr_array(X), W, labels({}))[1].bias is None


def test_sparse_is_refused_where_it_cannot_be_taken():
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = sparse.csr_array(X)
    with pytest.raises(ValueError, match=r'would be dense: pass want=\("W", "bias"\), or leave it out'):
        sce.linear_loss_and_grad(x, W, Y, ignore_index=-1, want=("X", "W"))
    with pytest.raises(TypeError, match=r"format csc: rows are taken from CSR, so pass X\.tocsr"):
        sce.linear_cross_entropy(x.tocsc(), W, Y)
    with pytest.raises(TypeError, match=r"sparse of dtype int64: convert it"):
        sce.linear_cross_entropy(x.astype(np.int64), W, Y)


# ---------------------------------------------------------------- singular cases


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("case", ["no rows", "all ignored", "weights of 0", "denominator of 0"])
def test_an_empty_mean_is_the_penalty_alone(case, empty, step):
    x, y, options = np.full((4, D), np.nan), np.full(4, -1), {"ignore_index": -1}
    if case == "no rows":
        x, y = x[:0], y[:0]
    elif case == "weights of 0":
        y, options = np.zeros(4, int), {"sample_weight": np.zeros(4)}
    elif case == "denominator of 0":
        y, options = np.zeros(4, int), {"denominator": 0.0}
    loss, grads = sce.linear_loss_and_grad(x, W, y, bias=BIAS, l2=0.5, empty=empty, **options)
    want = np.nan if empty == "nan" else 0.5 * (W**2).sum()
    np.testing.assert_allclose(loss, want, rtol=1e-15)
    np.testing.assert_array_equal(grads.X, np.zeros_like(x))
    np.testing.assert_array_equal(grads.W, W)
    np.testing.assert_array_equal(grads.bias, np.zeros(C))
    grads = sce.linear_loss_and_grad(x, W, y, empty=empty, **options)[1]
    np.testing.assert_array_equal(grads.W, np.zeros((D, C)))
    np.testing.assert_array_equal(sce.linear_hvp(x, W, y, V, l2=0.5, **options).W, V)


def test_no_features(step):
    x, w, y = np.empty((N, 0)), np.empty((0, C)), labels({})
    loss, grads = sce.linear_loss_and_grad(x, w, y, bias=BIAS, l2=1.0)
    want_loss, g = sce.loss_and_grad(np.tile(BIAS, (N, 1)), y)
    near(loss, want_loss, 1e-15)
    assert (grads.X.shape, grads.W.shape) == ((N, 0), (0, C))
    near(grads.bias, g.sum(axis=0), 1e-15)
    assert sce.linear_hvp(x, w, y, w, bias=BIAS).W.shape == (0, C)
    near(sce.linear_cross_entropy(x, w, y), np.log(C), 1e-15)


def test_one_class(step):
    loss, grads = sce.linear_loss_and_grad(X, W[:, :1], np.zeros(N, int), bias=BIAS[:1])
    assert loss == 0
    assert not any(a.any() for a in grads)
    assert not sce.linear_hvp(X, W[:, :1], np.zeros(N, int), V[:, :1]).W.any()


def test_one_row(step):
    want_loss, want = dense(X[:1], W, Y[:1], None, {})
    loss, grads = sce.linear_loss_and_grad(X[:1], W, Y[:1])
    near(loss, want_loss, 1e-15)
    near(grads.W, want.W, 1e-15)


def test_what_calls_have_in_common_is_no_answer_of_theirs(backend):
    """Calls alike but for the labels share their facts; what depends on the labels is each call's own."""
    none = np.full(N, -1)
    for y in (Y, np.roll(Y, 3), none, Y[::-1], Y.astype(np.int8), Y):
        want_loss, want = dense(X, W, y, BIAS, {"ignore_index": -1})
        loss, grads = sce.linear_loss_and_grad(X, W, y, bias=BIAS, ignore_index=-1, backend=backend)
        np.testing.assert_allclose(loss, want_loss, rtol=1e-14)
        near(grads.W, want.W, 1e-14)
    for bad in (C, -2):
        with pytest.raises(
            sce.LabelError, match=rf"label {bad} at position 4 is outside \[0, 5\) for W of 5"
        ):
            sce.linear_cross_entropy(X, W, np.where(np.arange(N) == 4, bad, Y), ignore_index=-1)
    y = labels({})
    sce.linear_cross_entropy(X, W, y, temperature=1.0, validate=True)
    for option in ({"temperature": True}, {"validate": 1}):  # they equal what was legal a moment ago
        with pytest.raises(TypeError):
            sce.linear_cross_entropy(X, W, y, **option)
    with pytest.raises(TypeError, match=r"temperature must be a real number, got \[1\.0\]"):
        sce.linear_cross_entropy(X, W, y, temperature=[1.0])


def test_lists_will_do():
    loss, grads = sce.linear_loss_and_grad([[1.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [1], bias=[0.0, 0.0])
    assert loss == pytest.approx(np.log(2))
    np.testing.assert_allclose(grads.W, [[0.5, -0.5], [1.0, -1.0]])


# ---------------------------------------------------------------- memory


@pytest.fixture
def idle(monkeypatch):
    """A backend that touches nothing, for what is not about values."""
    module = types.ModuleType("idle.backend")
    module.on_device, module.debug, module.problems = False, False, []
    module.refuses = lambda problem: None
    module.missing = lambda: None
    module.run = lambda problem, answer: module.problems.append(problem)
    monkeypatch.setitem(sys.modules, "idle", types.ModuleType("idle"))
    monkeypatch.setitem(sys.modules, "idle.backend", module)
    yield module
    registry.load.cache_clear()
    registry._ready.discard("idle.backend")


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("of", [sce.linear_loss_and_grad, sce.linear_cross_entropy])
def test_a_large_vocabulary_takes_little_memory(of, left_out, idle):
    """The stated bound of 64 MB, where all logits are 525 MB. NumPy tells tracemalloc what it allocates."""
    n, d, c = 1024, 8, 128256
    x, w, y = np.ones((n, d), "f4"), np.zeros((d, c), "f4"), np.zeros(n, int)
    y[1] = -1
    out = {"out": LinearGrad(np.empty_like(x), np.empty_like(w))} if of is sce.linear_loss_and_grad else {}
    options = {"ignore_index": -1} if left_out else {"ignore_index": None, "validate": False}
    of(x[:1], w, y[:1], backend="idle.backend")  # imports
    tracemalloc.start()
    try:
        of(x, w, y, backend="idle.backend", **options, **out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(idle.problems) > 2
    assert peak <= 64e6


def test_an_ignored_row_is_not_computed(idle):
    sce.linear_cross_entropy(X, W, Y, ignore_index=-1, backend="idle.backend")
    assert sum(problem.rows for problem in idle.problems) == N - 2


# ---------------------------------------------------------------- bad input

BAD = {
    "X of integers": ({"X": X.astype(int)}, TypeError, r"X has dtype int64, not one of float16"),
    "X of one dimension": ({"X": X[0]}, ValueError, r"X has shape \(6,\): it must be \(N, D\), a row"),
    "W of three": ({"W": W[None]}, ValueError, r"W has shape \(1, 6, 5\): it must be \(D, C\), a column"),
    "W as PyTorch has it": ({"W": W.T}, ValueError, r"shape \(23, 6\) and W of shape \(5, 6\).*Pass W\.T\."),
    "two dtypes": ({"X": X.astype("f4")}, TypeError, r"X has dtype float32 and W float64: convert one"),
    "no classes": ({"W": W[:, :0]}, ValueError, r"W of shape \(6, 0\) has no classes"),
    "masked X": ({"X": np.ma.masked_array(X)}, TypeError, r"X is a masked array"),
    "bias of another length": ({"bias": BIAS[1:]}, ValueError, r"bias has shape \(4,\), not \(5,\)"),
    "bias of text": ({"bias": BIAS.astype(str)}, TypeError, r"bias has dtype <U"),
    "negative l2": ({"l2": -1.0}, ValueError, r"l2 must be finite and at least 0, got -1"),
    "l2 of rows": ({"l2": 0.1, "reduction": "none"}, ValueError, r'reduction="none" it belongs to no row'),
    "label out of range": (
        {"y": np.full(N, C)},
        sce.LabelError,
        r"label 5 at position 0 is outside \[0, 5\) for W of 5 classes",
    ),
    "labels of another length": (
        {"y": Y[1:]},
        ValueError,
        r"y of class indices has shape \(22,\); X of 23 rows and W of 5 classes need \(23,\): nothing broadc",
    ),
    "labels as a column": ({"y": Y[:, None]}, ValueError, r"so reshape it with \.reshape\(23,\)"),
    "one-hot integers": (
        {"y": np.eye(C, dtype=int)[Y]},
        ValueError,
        r"shape \(23, 5\).*For a distribution per row convert it with \.astype\(X\.dtype\)",
    ),
    "labels that are floating": (
        {"y": Y.astype(float)},
        ValueError,
        r"y of distributions \(floating\) has shape \(23,\).*need \(23, 5\)\. For class indices convert it",
    ),
    "truth values": ({"y": Y > 0}, TypeError, r"y has dtype bool: class indices are integers \(shape \(23,"),
    "a masked y": ({"y": np.ma.masked_array(Y)}, TypeError, r"y is a masked array"),
    "a weight of NaN": ({"sample_weight": np.full(N, np.nan)}, ValueError, r"sample_weight must be finite"),
    "unknown reduction": ({"reduction": "avg"}, ValueError, r"unknown reduction 'avg'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(change, kind, words, idle):
    given = {"X": X, "W": W, "y": labels({}), **change}
    arrays = [given.pop(name) for name in ("X", "W", "y")]
    for of in (sce.linear_loss_and_grad, sce.linear_cross_entropy):
        with pytest.raises(kind, match=words):
            of(*arrays, backend="idle.backend", **given)
    with pytest.raises(kind, match=words):
        sce.linear_hvp(*arrays, V, backend="idle.backend", **given)
    assert not idle.problems


WANT = {
    "nothing": ((), r"at least one gradient and each once, got \(\); the loss alone is linear_cross_entropy"),
    "twice": (("W", "W"), r"each once"),
    "unknown": (("w",), r"unknown gradient 'w'"),
}


@pytest.mark.parametrize(("want", "words"), WANT.values(), ids=WANT.keys())
def test_bad_want(want, words):
    with pytest.raises(ValueError, match=words):
        sce.linear_loss_and_grad(X, W, Y, ignore_index=-1, want=want)
    with pytest.raises(
        ValueError, match=r'want is \("bias",\), and there is no bias: pass bias=np\.zeros\(C\)'
    ):
        sce.linear_loss_and_grad(X, W, Y, ignore_index=-1, want=("bias",))
    with pytest.raises(TypeError, match="want must be a sequence of names"):
        sce.linear_loss_and_grad(X, W, Y, want="W")


def frozen(x):
    x = x.copy()
    x.flags.writeable = False
    return x


BOTH = np.zeros(N * D + D * C)
OUT = {
    "an array": (np.empty((D, C)), TypeError, r"out must be sce\.LinearGrad\(X=.*got ndarray"),
    "shape": (
        LinearGrad(W=np.empty((C, D))),
        ValueError,
        r"out\.W has shape \(5, 6\); it must have \(6, 5\)",
    ),
    "dtype": (LinearGrad(X=np.empty((N, D), "f4")), TypeError, r"out\.X has dtype float32"),
    "read-only": (LinearGrad(W=frozen(W)), ValueError, r"out\.W is read-only"),
    "W itself": (LinearGrad(W=W), ValueError, r"out overlaps W.*pass separate memory"),
    "X itself": (LinearGrad(X=X), ValueError, r"out overlaps X.*pass separate memory"),
    "no such gradient": (LinearGrad(bias=np.empty(C)), ValueError, r"out\.bias is given, but .* no bias"),
    "each other": (
        LinearGrad(BOTH[: N * D].reshape(N, D), BOTH[N * D - 1 : -1].reshape(D, C)),
        ValueError,
        r"out overlaps out\.W",
    ),
}


@pytest.mark.parametrize(("out", "kind", "words"), OUT.values(), ids=OUT.keys())
def test_bad_out(out, kind, words, idle):
    with pytest.raises(kind, match=words):
        sce.linear_loss_and_grad(X, W, labels({}), out=out, backend="idle.backend")
    assert not idle.problems


def test_bad_direction(idle):
    for v, kind, words in (
        (V.T, ValueError, r"V has shape \(5, 6\): a direction of W has its shape, \(6, 5\)"),
        (V > 0, TypeError, r"V has dtype bool, not one of"),
    ):
        with pytest.raises(kind, match=words):
            sce.linear_hvp(X, W, labels({}), v, backend="idle.backend")
    for dtype in ("f2", "f4"):
        with pytest.raises(
            TypeError, match=r"V has dtype float64, .*in float32, .*pass V\.astype\(np\.float32\)"
        ):
            sce.linear_hvp(X.astype(dtype), W.astype(dtype), labels({}), V, backend="idle.backend")
    with pytest.raises(ValueError, match="v_bias is a direction of the bias: pass bias, too"):
        sce.linear_hvp(X, W, labels({}), V, v_bias=V_BIAS, backend="idle.backend")
    with pytest.raises(ValueError, match="out overlaps V"):
        sce.linear_hvp(X, W, labels({}), V, out=LinearGrad(W=V), backend="idle.backend")


@pytest.mark.parametrize(("of", "along"), [("f8", "f4"), ("f8", "f2"), ("f4", "f2"), ("f2", "f4")])
def test_a_direction_may_be_of_a_narrower_type(of, along):
    x, w, v = X.astype(of), W.astype(of), V.astype(along)
    computing = np.float64 if of == "f8" else np.float32
    got = sce.linear_hvp(x, w, labels({}), v, l2=0.1, backend="reference").W
    wide = [a.astype(computing) for a in (x, w, v)]
    want = sce.linear_hvp(wide[0], wide[1], labels({}), wide[2], l2=0.1, backend="reference").W
    assert got.dtype == of
    near(got, want, 1e-14 if of == "f8" else 1e-6 if of == "f4" else 2e-3)


def test_an_unknown_backend_is_named():
    with pytest.raises(sce.BackendError, match="nobody"):
        sce.linear_loss_and_grad(X, W, labels({}), backend="nobody")


def test_a_damaged_sparse_matrix():
    """SciPy reads wherever the indices point; with validate=False that is the caller's to know."""
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    y = np.array([0, 1, 2, 0, 1, 2, 0])
    for spoil, words in (
        (lambda x: x.indices.__setitem__(5, 50_000_000), r"X.indices\[5\] is 50000000, outside \[0, 4\)"),
        (lambda x: x.indices.__setitem__(0, -1), r"X.indices\[0\] is -1"),
        (lambda x: x.indptr.__setitem__(3, 99), r"X.indptr does not rise from 0 to the 28 numbers"),
        (lambda x: x.indptr.__setitem__(7, 29), r"X.indptr does not rise"),
        (lambda x: x.indptr.__setitem__(0, -1), r"X.indptr does not rise"),
    ):
        x = sparse.csr_matrix(np.ones((7, 4)))
        spoil(x)
        with pytest.raises(ValueError, match=words):
            sce.linear_loss_and_grad(x, np.zeros((4, 3)), y)


def test_none_for_an_array():
    x, w, y = np.ones((2, 2)), np.ones((2, 3)), [0, 1]
    for call, name in (
        (lambda: sce.linear_loss_and_grad(None, w, y), "X"),
        (lambda: sce.linear_loss_and_grad(x, None, y), "W"),
        (lambda: sce.linear_hvp(x, w, y, None), "V"),
    ):
        with pytest.raises(TypeError, match=f"^{name} is None: pass "):
            call()
