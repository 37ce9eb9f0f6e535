"""The Hessian's diagonal with its scale and floor, and the Hessian times v.

Evidence that owes the library nothing: second differences of the loss with 120 digits, finite differences of
the gradient, JAX. The backends are held to the reference by the conformance suite.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

import sce
from sce import registry
from sce.backend import Answer
from sce.problem import prepare

U = 2.0**-53
NAN, INF = float("nan"), float("inf")
MP = mpmath.MPContext()
MP.dps = 120
STEP = MP.mpf(10) ** -25  # truncation costs its square, rounding 10^-120 over its square


def exact_loss(x, q, lam, o):
    """One row's loss before its factor s, with 120 digits."""
    t, cap, bias = MP.mpf(o.get("temperature", 1.0)), o.get("softcap"), o.get("logit_bias")
    z = [v / t for v in x]
    z = z if cap is None else [cap * MP.tanh(v / cap) for v in z]
    z = z if bias is None else [v + MP.mpf(float(b)) for v, b in zip(z, bias, strict=True)]
    lse = MP.log(MP.fsum(MP.exp(v) for v in z))
    return MP.fsum(a * (lse - v) for a, v in zip(q, z, strict=True)) + MP.mpf(lam) * lse**2


def second_difference(x, v, k, q, lam, o):
    """d2 loss / dt dx_k along x + t v."""

    def at(t, r):
        moved = [a + t * b for a, b in zip(x, v, strict=True)]
        moved[k] += r
        return exact_loss(moved, q, lam, o)

    h = STEP
    return (at(h, h) - at(h, -h) - at(-h, h) + at(-h, -h)) / (4 * h * h)


def spread(p, w):
    """sum_j p_j |w_k - w_j|."""
    return (np.abs(w[:, :, None] - w[:, None, :]) * p[:, None, :]).sum(axis=2)


def drawn(rng, n, classes):
    """A random set of options, for index targets or distributions."""
    o = {"reduction": str(rng.choice(["none", "sum", "mean"]))}
    draw = {
        "class_weight": lambda: rng.uniform(0.2, 2, classes),
        "sample_weight": lambda: rng.normal(size=n),
        "label_smoothing": lambda: float(rng.uniform(0, 0.5)),
        "temperature": lambda: float(rng.uniform(0.5, 3)),
        "softcap": lambda: float(rng.uniform(2, 20)),
        "logit_bias": lambda: rng.normal(size=classes),
        "z_loss": lambda: float(rng.uniform(0, 0.3)),
    }
    o |= {name: make() for name, make in draw.items() if rng.random() < 0.4}
    soft = rng.random() < 0.5
    y = rng.dirichlet(np.ones(classes), n) if soft else rng.integers(0, classes, n)
    return y, o


@pytest.mark.parametrize("seed", range(40))
def test_the_product_is_the_second_difference_of_the_loss(seed):
    rng = np.random.default_rng(seed)
    n, classes = 3, int(rng.integers(1, 6))
    x = rng.normal(size=(n, classes)) * rng.choice([1, 5])
    if seed % 2:
        x[0, rng.integers(classes)] += 30  # 1 - p is far below an ulp of 1
    v = rng.normal(size=x.shape) + rng.choice([0, 50])
    y, o = drawn(rng, n, classes)
    got = sce.hvp(x, y, v, backend="reference", **o)
    eps, lam, w = o.get("label_smoothing", 0.0), o.get("z_loss", 0.0), o.get("class_weight", np.ones(classes))
    share = np.eye(classes)[y] if y.dtype.kind == "i" else y
    mass = w * ((1 - eps) * share + eps / classes)
    total = sce.evaluate(x, y, outputs=("denominator",), backend="reference", **o).denominator
    s = o.get("sample_weight", np.ones(n)) / total
    p = np.array([[float(g) for g in row] for row in softmax(x, o)])
    slope, curve = slopes(x, o)
    # As in sce/conformance/bounds.py: the terms' magnitudes, and what rounding z and its slope costs.
    rounding = 1 + (
        0 if len(o.keys() & {"temperature", "softcap", "logit_bias"}) == 0 else 40 + np.abs(x).max()
    )
    front = mass.sum(axis=1, keepdims=True) + 2 * lam * (np.abs(x).max() + 3)
    size = (
        slope * p * (front * spread(p, slope * v) + 2 * lam * (p * np.abs(slope * v)).sum(1, keepdims=True))
    )
    if "softcap" in o:
        size += (
            slope * p * front * (np.abs(slope * v) * (1 - p) + (p * np.abs(slope * v)).sum(1, keepdims=True))
        )
        size += np.abs(curve * v) * (front * p + mass)
    for i in range(n):
        row, along = ([MP.mpf(float(a)) for a in z[i]] for z in (x, v))
        q = [MP.mpf(float(a)) for a in mass[i]]
        for k in range(classes):
            want = second_difference(row, along, k, q, lam, o) * MP.mpf(float(s[i]))
            bound = 16 * U * rounding * abs(s[i]) * size[i, k] + 1e-40
            assert abs(MP.mpf(float(got[i, k])) - want) <= bound, (i, k, float(got[i, k]), float(want))


def softmax(x, o):
    t, cap, bias = o.get("temperature", 1.0), o.get("softcap"), o.get("logit_bias", np.zeros(x.shape[1]))
    for row in x:
        z = [MP.mpf(float(a)) / MP.mpf(t) for a in row]
        z = z if cap is None else [cap * MP.tanh(a / cap) for a in z]
        e = [MP.exp(a + MP.mpf(float(b))) for a, b in zip(z, bias, strict=True)]
        total = MP.fsum(e)
        yield [a / total for a in e]


def slopes(x, o):
    t, cap = o.get("temperature", 1.0), o.get("softcap")
    if cap is None:
        return np.full(x.shape, 1 / t), np.zeros(x.shape)
    tanh = np.tanh(x / t / cap)
    slope = np.cosh(x / t / cap) ** -2 / t
    return slope, -2 * tanh * slope / (t * cap)


@pytest.mark.parametrize("seed", range(30))
def test_finite_differences_of_the_gradient(seed):
    rng = np.random.default_rng(seed)
    n, classes = 4, int(rng.integers(2, 9))
    x, v = rng.normal(size=(n, classes)) * 2, rng.normal(size=(n, classes))
    y, o = drawn(rng, n, classes)
    h = 1e-5
    up, down = (sce.loss_and_grad(x + t * v, y, backend="reference", **o)[1] for t in (h, -h))
    got = sce.hvp(x, y, v, backend="reference", **o)
    np.testing.assert_allclose(got, (up - down) / (2 * h), rtol=1e-7, atol=2e-9 * np.abs(got).max() + 1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 4.0, "temperature": 0.7, "z_loss": 0.1, "label_smoothing": 0.2}]
)
def test_jax_agrees(options, backend):
    jax = pytest.importorskip("jax", reason="no JAX to compare with: pip install jax")
    jnp = jax.numpy
    rng = np.random.default_rng(3)
    x, v, y = (
        rng.normal(size=(5, 7)).astype("f4"),
        rng.normal(size=(5, 7)).astype("f4"),
        rng.integers(0, 7, 5),
    )
    cap, t, lam, eps = (
        options.get(k, d)
        for k, d in (("softcap", None), ("temperature", 1.0), ("z_loss", 0.0), ("label_smoothing", 0.0))
    )

    def loss(logits):
        z = logits / t if cap is None else cap * jnp.tanh(logits / (t * cap))
        lse = jax.scipy.special.logsumexp(z, axis=1)
        q = (1 - eps) * jnp.eye(7)[y] + eps / 7
        return ((q * (lse[:, None] - z)).sum(axis=1) + lam * lse**2).mean()

    want = np.asarray(jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(v),))[1])
    got = sce.hvp(x, y, v, backend=backend, **options)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-6)
    diagonal = np.stack(
        [
            np.asarray(jax.jvp(jax.grad(loss), (jnp.asarray(x),), (jnp.asarray(unit(k, x)),))[1])[:, k]
            for k in range(7)
        ],
        axis=1,
    )
    np.testing.assert_allclose(
        sce.loss_grad_hess(x, y, backend=backend, **options)[2], diagonal, rtol=2e-4, atol=2e-6
    )


def unit(k, x):
    e = np.zeros_like(x)
    e[:, k] = 1
    return e


def test_the_diagonal_is_the_product_with_unit_vectors(backend):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    options = {"softcap": 6.0, "z_loss": 0.2, "class_weight": rng.uniform(1, 2, 5), "backend": backend}
    loss, grad, hess = sce.loss_grad_hess(x, y, **options)
    want = np.stack([sce.hvp(x, y, unit(k, x), **options)[:, k] for k in range(5)], axis=1)
    np.testing.assert_allclose(hess, want, rtol=1e-12)
    same = sce.loss_and_grad(x, y, **options)
    np.testing.assert_allclose(loss, same[0], rtol=1e-14)
    np.testing.assert_allclose(grad, same[1], rtol=1e-12, atol=1e-17)


def test_the_hessian_is_symmetric_and_semidefinite(backend):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(6, 5)), rng.dirichlet(np.ones(5), 6)
    u, v = rng.normal(size=(2, 6, 5))
    hu, hv = (sce.hvp(x, y, a, z_loss=0.1, backend=backend) for a in (u, v))
    assert math.isclose((u * hv).sum(), (v * hu).sum(), rel_tol=1e-12)
    assert (v * hv).sum() > 0


def test_equal_shifts_are_in_the_kernel_exactly(backend):
    """Of a constant v not even rounding is left: every difference is 0."""
    x = np.random.default_rng(0).normal(size=(4, 300)) * 5
    for dtype in (np.float32, np.float64):
        got = sce.hvp(x.astype(dtype), [0, 1, 2, 3], np.full(x.shape, 0.1, dtype), backend=backend)
        assert not got.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("sure", ["target", "another"])
def test_confident_rows_keep_their_digits(dtype, classes, sure, backend):
    """p (1 - p) of a class 60 above the others, in a form that nobody computes: e^-60 times its factors."""
    x = np.zeros((2, classes), dtype)
    x[:, classes // 2] = 60
    y = np.full(2, classes // 2 if sure == "target" else 0)
    r = (classes - 1) * math.exp(-60)
    top, rest = r / (1 + r) ** 2, math.exp(-60) / (1 + r) * (1 - math.exp(-60) / (1 + r))
    want = np.where(np.arange(classes) == classes // 2, top, rest)
    hess = sce.loss_grad_hess(x, y, reduction="sum", backend=backend)[2]
    close = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(hess, [want, want], rtol=close)
    v = (np.arange(classes) == classes // 2).astype(dtype)
    product = sce.hvp(x, y, np.stack([v, v]), reduction="sum", backend=backend)
    np.testing.assert_allclose(product[0, classes // 2], top, rtol=close)


# The scale and the floor.


def test_scale_and_floor(backend):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(8, 4)).astype("f4") * 4, rng.integers(0, 4, 8)
    weight = np.array([1, 0, 2, 1, -1, 1, 1, 0.5])
    options = {"sample_weight": weight, "reduction": "sum", "backend": backend}
    loss, grad, plain = sce.loss_grad_hess(x, y, **options)
    scaled = sce.loss_grad_hess(x, y, hess_scale=2.5, hess_min=0.125, **options)
    assert (scaled[0], scaled[1].tobytes()) == (loss, grad.tobytes())
    want = np.maximum(2.5 * plain, 0.125)
    want[weight == 0] = 0
    np.testing.assert_allclose(scaled[2], want, rtol=1e-6)
    assert (scaled[2][weight < 0] == 0.125).all()  # a negative weight makes it negative: below any floor
    assert (scaled[2][weight == 0] == 0).all()


@pytest.mark.parametrize("classes", [3, 100, 600])
def test_rows_left_out_have_no_floor_whatever_they_hold(classes, backend):
    x = np.random.default_rng(5).normal(size=(6, classes)).astype("f4")
    y = np.array([0, -1, 2, 1, -1, 0])
    x[1], x[4, 0] = NAN, INF
    _, _, hess = sce.loss_grad_hess(x, y, ignore_index=-1, hess_min=0.5, backend=backend)
    assert (hess[[1, 4]] == 0).all()
    assert (hess[[0, 2, 3, 5]] == 0.5).all()
    _, _, hess = sce.loss_grad_hess(x, np.full(6, -1), ignore_index=-1, hess_min=0.5, backend=backend)
    assert not hess.any()


@pytest.mark.parametrize("classes", [3, 100, 600])
def test_nan_is_not_floored(classes, backend):
    x = np.zeros((3, classes), "f4")
    x[1, 1] = NAN
    _, _, hess = sce.loss_grad_hess(x, [0, 0, 0], hess_min=1.0, backend=backend)
    assert np.isnan(hess[1]).all()
    assert (hess[[0, 2]] == 1).all()


def test_boosting_libraries(backend):
    """XGBoost: max(2 p (1 - p) w, 1e-16). LightGBM: K / (K - 1) p (1 - p) w."""
    rng = np.random.default_rng(6)
    x, y, w = rng.normal(size=(50, 3)).astype("f4"), rng.integers(0, 3, 50), rng.uniform(0.5, 2, 50)
    x[0] = [80, 0, 0]
    p = np.exp(x.astype("f8") - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    given = {"sample_weight": w, "reduction": "sum", "backend": backend}
    _, grad, hess = sce.loss_grad_hess(x, y, hess_scale=2.0, hess_min=1e-16, **given)
    np.testing.assert_allclose(hess, np.maximum(2 * p * (1 - p) * w[:, None], 1e-16), rtol=1e-5)
    np.testing.assert_allclose(grad, (p - np.eye(3)[y]) * w[:, None], rtol=1e-5, atol=1e-15)
    _, _, hess = sce.loss_grad_hess(
        x[1:], y[1:], hess_scale=1.5, sample_weight=w[1:], reduction="sum", backend=backend
    )
    np.testing.assert_allclose(hess, 1.5 * (p * (1 - p) * w[:, None])[1:], rtol=1e-5)


# Edges and memory of the product.


def test_rows_left_out_and_empty_means_are_exactly_zero(backend):
    x, v = np.zeros((3, 4)), np.ones((3, 4))
    x[1], v[1, 2] = NAN, INF
    got = sce.hvp(x, [0, 9, 1], v, ignore_index=9, backend=backend)
    assert not got[1].any()
    assert not sce.hvp(x, [9, 9, 9], v, ignore_index=9, backend=backend).any()
    assert sce.hvp(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4)), backend=backend).shape == (0, 4)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_is_not_finite_in_v_shows_in_its_whole_row(bad, at, backend):
    x, v = np.array([[0.0, -INF, 2.0], [0.0, 1.0, 2.0]]), np.ones((2, 3))
    v[0, at] = bad
    got = sce.hvp(x, [0, 0], v, backend=backend)
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_a_masked_class_is_exactly_zero(backend):
    x = np.array([[0.0, -INF, 2.0]])
    got = sce.hvp(x, [0], np.array([[1.0, 1e300, 0.0]]), backend=backend)
    assert got[0, 1] == 0
    np.testing.assert_allclose(
        got[0, [0, 2]], sce.hvp(x[:, [0, 2]], [0], np.array([[1.0, 0.0]]), backend=backend)[0]
    )


@pytest.mark.parametrize("over", ["v", "logits"])
@pytest.mark.parametrize("classes", [5, 300])
def test_in_place(over, classes, backend):
    rng = np.random.default_rng(7)
    x, v = rng.normal(size=(2, 9, classes)).astype("f4")
    y = rng.integers(0, classes, 9)
    want = sce.hvp(x, y, v, backend=backend)
    into = v if over == "v" else x
    assert sce.hvp(x, y, v, out=into, backend=backend) is into
    assert into.tobytes() == want.tobytes()


def test_v_of_another_dtype(backend):
    rng = np.random.default_rng(8)
    x, v, y = rng.normal(size=(4, 5)).astype("f4"), rng.normal(size=(4, 5)), [0, 1, 2, 3]
    got = sce.hvp(x, y, v, backend=backend)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, sce.hvp(x.astype("f8"), y, v, backend="reference"), rtol=1e-5)


# Wrong arguments.

X, Y, V = np.zeros((2, 3)), np.zeros(2, int), np.zeros((2, 3))


@pytest.mark.parametrize(
    ("v", "error", "words"),
    [
        (
            np.zeros(3),
            ValueError,
            r"v has shape \(3,\), and logits \(2, 3\): they need the same, nothing broadcasts",
        ),
        (np.zeros((2, 3), int), TypeError, r"v has dtype int64.*\.astype\(np\.float32\)"),
        (np.zeros((2, 3), complex), TypeError, "v has dtype complex128"),
        (None, TypeError, "v"),
        (np.ma.masked_array(V), TypeError, "v is a masked array"),
    ],
)
def test_a_wrong_v(v, error, words):
    out = np.full((2, 3), 7.0)
    with pytest.raises(error, match=words):
        sce.hvp(X, Y, v, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"hess_scale": NAN}, ValueError, "hess_scale must be finite, got nan"),
        ({"hess_scale": "2"}, TypeError, "hess_scale must be a real number"),
        ({"hess_min": INF}, ValueError, "hess_min must be finite, got inf"),
        ({"hess_min": True}, TypeError, "hess_min must be a real number"),
        ({"reduction": "max"}, ValueError, "unknown reduction"),
    ],
)
def test_wrong_options(options, error, words):
    with pytest.raises(error, match=words):
        sce.loss_grad_hess(X, Y, **options)


def test_out_may_not_overlap_otherwise():
    memory = np.zeros((3, 3))
    with pytest.raises(ValueError, match=r"out overlaps v.*pass out=v itself, or separate memory"):
        sce.hvp(X, Y, memory[1:], out=memory[:2])
    with pytest.raises(ValueError, match="out overlaps logits"):
        sce.hvp(memory[1:], Y, V, out=memory[:2])


def test_the_reference_in_longdouble_agrees_with_itself():
    """What the conformance suite takes its expected values from: the same formulas, more digits."""
    rng = np.random.default_rng(9)
    x, y, v = rng.normal(size=(5, 6)) * 3, rng.integers(0, 6, 5), rng.normal(size=(5, 6))
    problem = prepare(x, y, outputs=("hvp",), v=v, softcap=5.0, z_loss=0.1, reduction="sum").problem
    wide = problem._replace(
        logits=problem.logits.astype(np.longdouble), direction=problem.direction.astype(np.longdouble)
    )
    got = np.empty(wide.logits.shape, np.longdouble)
    registry.load("reference").run(wide, Answer(hvp=got))
    np.testing.assert_allclose(
        got.reshape(5, 6).astype(float),
        sce.hvp(x, y, v, softcap=5.0, z_loss=0.1, reduction="sum", backend="reference"),
        rtol=1e-12,
    )
