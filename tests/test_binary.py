"""Binary cross-entropy: the two-class softmax with logits (0, x), sixty digits, peers, and bad arguments."""

from __future__ import annotations

import array
import inspect
import re
import sys
import types

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sce
from sce import conformance, registry

NAN, INF = float("nan"), float("inf")
U = 2.0**-53
MP = mpmath.MPContext()
MP.dps = 60
X = np.array([[0.5, -1.0, 2.0], [3.0, 0.0, -0.25]])
Y = np.array([[1, 0, 1], [0, 0, 1]])
SOFT = np.array([[0.5, 0.25, 1.0], [0.0, 0.125, 0.75]])
BACKENDS = [None, "auto", *sorted(registry.registered())]


# ---------------------------------------------------------------- what it is


@st.composite
def problems(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.normal(size=shape) * draw(st.sampled_from([0.1, 3.0, 30.0, 300.0]))
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "temperature": draw(st.sampled_from([1.0, 0.7, 4.0])),
        "grad_scale": draw(st.sampled_from([1.0, -3.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "mean"])),
    }
    if draw(st.booleans()):
        weight = rng.normal(size=shape)
        weight[rng.random(shape) < 0.2] = 0
        options["sample_weight"] = weight
    y = rng.uniform(-0.5, 1.5, shape) if draw(st.booleans()) else rng.integers(0, 2, shape)
    return x, y, draw(st.sampled_from([1.0, 2.5, 0.0, -1.0])), options


@settings(deadline=None, derandomize=True, max_examples=150)
@given(problems())
def test_it_is_the_softmax_of_two_classes(case):
    """Logits (0, x), class weights (1, pos_weight), the distribution (1 - y, y)."""
    x, y, weight, options = case
    loss, grad, hess = sce.binary_loss_grad_hess(x, y, pos_weight=weight, backend="reference", **options)
    two = np.stack([np.zeros_like(x), x], axis=-1)
    target = np.stack([1.0 - y, y * 1.0], axis=-1)
    want = sce.evaluate(
        two,
        target,
        outputs=("loss", "grad", "hess_diag"),
        class_weight=[1.0, weight],
        backend="reference",
        **options,
    )
    # Signed terms cancel: compared with what each of them is worth.
    positive = {**options, "sample_weight": np.abs(options.get("sample_weight", np.ones_like(x)))}
    if options["reduction"] == "mean":
        total = options.get("sample_weight", np.ones_like(x)).sum()
        positive |= {"reduction": "sum", "sample_weight": positive["sample_weight"] / (abs(total) or 1.0)}
    scale = sce.evaluate(
        two,
        np.abs(target),
        outputs=("loss",),
        class_weight=[1.0, abs(weight)],
        backend="reference",
        **positive | {"grad_scale": 1.0},
    ).loss
    near = {"rtol": 1e-12, "equal_nan": True}
    np.testing.assert_allclose(loss, want.loss, atol=1e-13 * np.max(scale, initial=0), **near)
    size = np.max(np.abs(want.grad), initial=0)
    np.testing.assert_allclose(grad, want.grad[..., 1], atol=1e-13 * size, **near)
    np.testing.assert_allclose(hess, want.hess_diag[..., 1], atol=1e-300, **near)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_labels_are_classes(reduction):
    """Where nothing is divided, labels are the index target 0 or 1, smoothing and weights included."""
    options = {"label_smoothing": 0.1, "reduction": reduction, "backend": "reference"}
    loss, grad = sce.binary_loss_and_grad(X, Y, pos_weight=3.0, **options)
    two = np.stack([np.zeros_like(X), X], axis=-1)
    want, of_two = sce.loss_and_grad(two, Y, class_weight=[1.0, 3.0], **options)
    np.testing.assert_allclose(loss, want, rtol=8 * U)
    np.testing.assert_allclose(grad, of_two[..., 1], rtol=8 * U)


def test_a_mean_divides_by_sample_weights_alone():
    """For labels and probabilities alike, as PyTorch does; a softmax's mean of labels has w[y] in it, too."""
    plain = {"reduction": "none", "pos_weight": 3.0}
    each = sce.binary_cross_entropy(X, Y, **plain)
    assert sce.binary_cross_entropy(X, Y, pos_weight=3.0) == pytest.approx(each.mean(), rel=1e-15)
    assert sce.binary_cross_entropy(X, Y * 1.0, pos_weight=3.0) == pytest.approx(each.mean(), rel=1e-15)
    u = np.array([[1.0, 2.0, 0.0], [0.5, 1.0, 3.0]])
    want = (each * u).sum() / u.sum()
    assert sce.binary_cross_entropy(X, Y, pos_weight=3.0, sample_weight=u) == pytest.approx(want, rel=1e-15)
    ignored = np.where(Y, Y, -1)
    want = (each * u * Y).sum() / (u * Y).sum()
    options = {"pos_weight": 3.0, "sample_weight": u, "ignore_index": -1}
    assert sce.binary_cross_entropy(X, ignored, **options) == pytest.approx(want, rel=1e-15)
    rows = np.array([2.0, 0.5])
    options["sample_weight"] = rows
    want = (each * rows[:, None] * Y).sum() / (rows[:, None] * Y).sum()
    assert sce.binary_cross_entropy(X, ignored, **options) == pytest.approx(want, rel=1e-15)


def test_torch_agrees(backend):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = torch.tensor(X, requires_grad=True)
    weight = torch.tensor([1.0, 2.5, 0.5], dtype=torch.float64)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(x, torch.tensor(SOFT), pos_weight=weight)
    loss.backward()
    got, grad = sce.binary_loss_and_grad(X, SOFT, pos_weight=weight, backend=backend)
    assert got == pytest.approx(loss.item(), rel=1e-14)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-13, atol=1e-17)


def test_scikit_learn_agrees(backend):
    losses = pytest.importorskip("sklearn._loss", reason="compares with scikit-learn")
    x, y = X.reshape(-1), Y.reshape(-1).astype(float)
    loss, grad, hess = sce.binary_loss_grad_hess(x, y, reduction="none", backend=backend)
    theirs = losses.HalfBinomialLoss()
    np.testing.assert_allclose(loss, theirs.loss(y, x), rtol=1e-14)
    for got, want in zip((grad, hess), theirs.gradient_hessian(y, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13)


# ---------------------------------------------------------------- how exact it is


def exactly(x, y, w, eps, t):
    """Loss, gradient and Hessian in sixty digits, and the magnitudes of their terms."""
    z, y, w, eps = MP.mpf(x) / MP.mpf(t), MP.mpf(y), MP.mpf(w), MP.mpf(eps)
    q1, q0 = w * ((1 - eps) * y + eps / 2), (1 - eps) * (1 - y) + eps / 2
    p, rest = 1 / (1 + MP.exp(-z)), 1 / (1 + MP.exp(z))
    of_1, of_0 = MP.log(1 + MP.exp(-z)), MP.log(1 + MP.exp(z))
    t = MP.mpf(t)
    return (
        (q1 * of_1 + q0 * of_0, abs(q1) * of_1 + abs(q0) * of_0),
        ((q0 * p - q1 * rest) / t, (abs(q0) * p + abs(q1) * rest) / t),
        ((q0 + q1) * p * rest / t**2, (abs(q0) + abs(q1)) * p * rest / t**2),
    )


@pytest.mark.parametrize("w", [1.0, 2.5, -0.75])
@pytest.mark.parametrize(("eps", "t"), [(0.0, 1.0), (0.1, 1.0), (0.0, 0.5), (0.3, 2.0)])
def test_the_reference_matches_sixty_digits(w, eps, t):
    """Down to exp(-700); temperatures here are powers of two, so that z is exact."""
    rng = np.random.default_rng(11)
    x = np.concatenate([rng.normal(size=40) * 5, np.linspace(-340, 340, 41), [0.0, 1e-9, -1e-9, 1e-300]])
    with MP.workdps(400):
        for y in (np.zeros(x.size), np.ones(x.size), rng.uniform(size=x.size), rng.normal(size=x.size)):
            options = {"pos_weight": w, "label_smoothing": eps, "temperature": t, "reduction": "none"}
            found = sce.binary_loss_grad_hess(x, y, backend="reference", **options)
            for k in range(x.size):
                for got, (want, scale) in zip(found, exactly(x[k], y[k], w, eps, t), strict=True):
                    assert abs(MP.mpf(float(got[k])) - want) <= 8 * U * scale, (x[k], y[k], got[k])


@pytest.mark.parametrize("margin", [20.0, 87.0, 300.0, 700.0])
def test_sure_elements_keep_their_digits(backend, margin):
    x = np.array([margin, -margin])
    loss, grad, hess = sce.binary_loss_grad_hess(x, [1, 0], reduction="none", backend=backend)
    with MP.workdps(700):
        e = MP.exp(-MP.mpf(margin))
        for got, want in ((loss, MP.log(1 + e)), (grad * [-1, 1], e / (1 + e)), (hess, e / (1 + e) ** 2)):
            for value in got.tolist():
                assert abs(MP.mpf(value) / want - 1) <= 4 * 2 * U, (backend, value)


@pytest.mark.parametrize("target", [np.array([1, 0, 1]), np.array([1.0, 0.0, 0.5])])
def test_the_square_of_a_temperature_may_be_beyond_float64(backend, target):
    """1 / T^2 is infinite, or has lost its digits; p (1 - p), or a weight, brings the Hessian back."""
    options = {"reduction": "none", "backend": backend}
    x = np.array([50.0, -100.0, 0.0]) * 1e-160
    hess = sce.binary_loss_grad_hess(x, target, temperature=1e-160, **options)[2]
    np.testing.assert_allclose(
        hess, [np.exp(-50.0) * 1e160 * 1e160, np.exp(-100.0) * 1e160 * 1e160, INF], 1e-13
    )
    for dtype, near in ((np.float64, 1e-14), (np.float32, 1e-6)):
        for weight, mass in (("pos_weight", target * 1e300 + (1 - target)), ("sample_weight", 1e300)):
            given = np.full(3, 1e300) if weight == "sample_weight" else 1e300
            x = np.zeros(3, dtype)
            hess = sce.binary_loss_grad_hess(x, target, temperature=1e160, **{weight: given}, **options)[2]
            np.testing.assert_allclose(hess, 0.25e-160 * mass * 1e-160, near, atol=1e-45)


def test_float32_keeps_what_peers_return_as_zero(backend):
    x = np.array([20.0, 60.0, 80.0], np.float32)
    loss, grad = sce.binary_loss_and_grad(x, [1, 1, 1], reduction="none", backend=backend)
    np.testing.assert_allclose(loss, np.exp(-x.astype(float)), rtol=3e-7)
    np.testing.assert_allclose(grad, -np.exp(-x.astype(float)), rtol=3e-7)


# ---------------------------------------------------------------- what callers get


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (0, 3), (3, 0)])
def test_shapes_and_types(backend, shape, dtype):
    kind = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype)
    x, y = np.ones(shape, kind), np.ones(shape, bool)
    loss, grad, hess = sce.binary_loss_grad_hess(x, y, reduction="none", backend=backend)
    of_loss = np.float64 if dtype == "float64" else np.float32
    assert (np.shape(loss), np.asarray(loss).dtype) == (shape, of_loss)
    assert (grad.shape, grad.dtype) == (hess.shape, hess.dtype) == (shape, kind)
    total = sce.binary_cross_entropy(x, y, reduction="sum", backend=backend)
    assert type(total) is of_loss
    mean = sce.binary_cross_entropy(x, y, backend=backend)
    assert np.isnan(mean) if x.size == 0 else mean == pytest.approx(np.log1p(np.exp(-1.0)), rel=1e-6)
    assert sce.binary_cross_entropy(x, y, empty="zero", backend=backend) == (0 if x.size == 0 else mean)


def test_the_loss_alone_is_the_same_number(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 7)) * 9, rng.integers(0, 2, (50, 7))
    for reduction in ("none", "sum", "mean"):
        alone = sce.binary_cross_entropy(x, y, reduction=reduction, backend=backend)
        both, _ = sce.binary_loss_and_grad(x, y, reduction=reduction, backend=backend)
        assert np.array_equal(alone, both)


def test_out_is_returned_and_may_be_the_logits(backend):
    want = sce.binary_loss_and_grad(X, Y, backend=backend)[1]
    out = np.empty_like(X)
    assert sce.binary_loss_and_grad(X, Y, out=out, backend=backend)[1] is out
    assert np.array_equal(out, want)
    x = X.copy()
    assert sce.binary_loss_grad_hess(x, Y, out=x, backend=backend)[1] is x
    assert np.array_equal(x, want)


def test_weights_per_label_and_per_sample_have_their_axes(backend):
    """In a square, where a vector fits either way, the name says which axis it is for."""
    x, y = np.zeros((2, 2)), np.array([[1, 1], [1, 1]])
    log2 = np.log(2)
    options = {"reduction": "none", "backend": backend}
    of_label = sce.binary_cross_entropy(x, y, pos_weight=[1.0, 3.0], **options)
    np.testing.assert_allclose(of_label, [[log2, 3 * log2]] * 2)
    of_sample = sce.binary_cross_entropy(x, y, sample_weight=[1.0, 3.0], **options)
    np.testing.assert_allclose(of_sample, [[log2] * 2, [3 * log2] * 2])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_label_is_a_softmax_of_its_own(backend, dtype):
    """Several labels, some missing, of weighted samples: a sum over columns of two-class softmaxes."""
    rng = np.random.default_rng(8)
    x, y = (rng.normal(size=(150, 3)) * 9).astype(dtype), rng.integers(-1, 2, (150, 3))
    of_label, of_sample = np.array([0.5, 1.0, 3.0]), rng.uniform(0, 2, 150)
    for plain in (True, False):
        options = {} if plain else {"label_smoothing": 0.2, "temperature": 0.7}
        mine = dict(options) if plain else {"pos_weight": of_label, "sample_weight": of_sample, **options}
        loss, grad, hess = sce.binary_loss_grad_hess(x, y, ignore_index=-1, backend=backend, **mine)
        alone, same = sce.binary_loss_and_grad(x, y, ignore_index=-1, backend=backend, **mine)
        counted = ((y >= 0) * (1.0 if plain else of_sample[:, None])).sum()
        total = 0.0
        for k in range(3):
            weights = {} if plain else {"class_weight": [1, of_label[k]], "sample_weight": of_sample}
            found = sce.evaluate(
                np.stack([np.zeros(150), x[:, k].astype(float)], axis=1),
                y[:, k],
                outputs=("loss", "grad", "hess_diag"),
                ignore_index=-1,
                denominator=counted,
                backend="reference",
                **weights,
                **options,
            )
            total += found.loss
            near = {"rtol": 1e-6 if dtype == np.float32 else 1e-13, "atol": 1e-9 if options else 0}
            for got in (grad, same):
                np.testing.assert_allclose(got[:, k], found.grad[:, 1], **near)
            np.testing.assert_allclose(hess[:, k], found.hess_diag[:, 1], **near)
        assert loss == pytest.approx(total, rel=1e-6 if dtype == np.float32 else 1e-13)
        assert alone == pytest.approx(loss, rel=1e-6 if dtype == np.float32 else 1e-14)


def test_nothing_to_count_is_an_empty_mean(backend):
    """No elements, none that counts, or weights of 0: NaN, or 0 if asked; the gradient is 0."""
    x, y = np.array([[NAN, 1.0], [INF, -3.0]], np.float32), np.array([[1, 1], [1, 1]])
    ways = ((x[:0], y[:0], {}), (x, y, {"ignore_index": 1}), (x, y, {"sample_weight": [0.0, 0.0]}))
    for logits, target, options in ways:
        for reduction, empty, want in (("mean", "nan", NAN), ("mean", "zero", 0.0), ("sum", "nan", 0.0)):
            loss, grad, hess = sce.binary_loss_grad_hess(
                logits, target, reduction=reduction, empty=empty, hess_min=0.5, backend=backend, **options
            )
            np.testing.assert_equal(float(loss), want)
            assert grad.shape == hess.shape == logits.shape
            assert not grad.any()
            assert not hess.any()


HOLDERS = {
    "list": list,
    "tuple": tuple,
    "NumPy array": np.array,
    "array": lambda w: w,
    "memoryview": memoryview,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_pos_weight_is_a_vector_whatever_holds_it(backend, holder):
    given = HOLDERS[holder](array.array("d", [0.5, 2.0, 3.0]))
    want = sce.binary_cross_entropy(X, Y, pos_weight=[0.5, 2.0, 3.0], backend=backend)
    assert sce.binary_cross_entropy(X, Y, pos_weight=given, backend=backend) == want


def test_missing_labels_cost_nothing_whatever_the_logit(backend):
    x = np.array([[NAN, 0.0], [INF, -INF]], np.float32)
    y = np.array([[-1, 1], [-1, -1]], np.int8)
    options = {"ignore_index": -1, "hess_min": 0.5, "backend": backend}
    loss, grad, hess = sce.binary_loss_grad_hess(x, y, **options)
    assert loss == pytest.approx(np.log(2), rel=1e-7)
    assert grad.tolist() == [[0, -0.5], [0, 0]]
    assert hess.tolist() == [[0, 0.5], [0, 0]]


def test_infinite_logits_are_sure(backend):
    x, y = [INF, INF, -INF, -INF], [1, 0, 0, 1]
    loss, grad, hess = sce.binary_loss_grad_hess(x, y, reduction="none", backend=backend)
    assert loss.tolist() == [0, INF, 0, INF]
    assert grad.tolist() == [0, 1, 0, -1]
    assert hess.tolist() == [0, 0, 0, 0]
    # Of the softmax of (0, x), +inf is NaN: there it has no class opposite.
    assert np.isnan(sce.cross_entropy([0.0, INF], 1, backend="reference"))


def test_the_denominator_may_be_given_and_may_be_negative(backend):
    plain = sce.binary_loss_and_grad(X, Y, reduction="sum", backend=backend)
    loss, grad = sce.binary_loss_and_grad(X, Y, denominator=-4.0, backend=backend)
    assert loss == pytest.approx(plain[0] / -4, rel=1e-15)
    np.testing.assert_allclose(grad, plain[1] / -4, rtol=1e-15)


def test_gradient_and_hessian_are_the_derivatives_of_the_loss():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(4, 5)) * 3, rng.uniform(size=(4, 5))
    options = {
        "pos_weight": rng.uniform(0.5, 2, 5),
        "sample_weight": rng.normal(size=4),
        "label_smoothing": 0.1,
        "temperature": 0.7,
        "reduction": "none",
        "backend": "reference",
    }
    _, grad, hess = sce.binary_loss_grad_hess(x, y, **options)
    h = 1e-5
    high, slope_up = sce.binary_loss_and_grad(x + h, y, **options)
    low, slope_down = sce.binary_loss_and_grad(x - h, y, **options)
    np.testing.assert_allclose(grad, (high - low) / (2 * h), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(hess, (slope_up - slope_down) / (2 * h), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_same_bits_for_any_number_of_threads_and_any_address(backend, dtype):
    """Enough elements for several chunks, and for a gradient that goes past the caches."""
    rng = np.random.default_rng(3)
    n = 4_300_001
    room, out = np.empty(n + 8, dtype), np.empty(n + 8, dtype)
    y = rng.integers(0, 2, n).astype(np.int8)
    values, want = rng.normal(size=n), None
    for threads, start in ((1, 0), (2, 0), (2, 1), (1, 5)):
        x, to = room[start : start + n], out[start : start + n]
        x[:] = values
        with sce.threads(threads):
            loss, grad = sce.binary_loss_and_grad(x, y, out=to, backend=backend)
        if want is None:
            want = loss, grad.copy()
        assert loss == want[0]
        assert np.array_equal(grad, want[1])


def test_a_backend_that_says_nothing_of_binary_problems_is_not_asked(monkeypatch):
    def asked(*_):
        raise AssertionError("it was asked")

    module = types.ModuleType("older.backend")
    module.on_device, module.debug = False, False
    module.refuses, module.missing, module.run = asked, lambda: None, asked
    monkeypatch.setitem(sys.modules, "older", types.ModuleType("older"))
    monkeypatch.setitem(sys.modules, "older.backend", module)
    registry.load.cache_clear()
    try:
        with pytest.raises(sce.BackendError, match=r"'older\.backend' cannot run this .*no binary problems"):
            sce.binary_cross_entropy(X, Y, backend="older.backend")
        cases = [case for case in conformance.cases() if case.group == "binary"][:3]
        report = conformance.check(module, cases)
        assert (report.passed, report.failed, report.skipped) == (0, 0, 3)
    finally:
        registry.load.cache_clear()
        registry._ready.discard("older.backend")


# ---------------------------------------------------------------- bad arguments


def complaint(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at type and words
        call()
    return type(caught.value), str(caught.value)


FUNCTIONS = (sce.binary_loss_and_grad, sce.binary_cross_entropy, sce.binary_loss_grad_hess)
BAD = {
    "integer logits": ({"logits": Y}, TypeError, r"logits have dtype int64, not one of float16"),
    "masked logits": ({"logits": np.ma.masked_array(X, X > 1)}, TypeError, r"logits is a masked array"),
    "masked target": ({"target": np.ma.masked_array(Y, Y > 0)}, TypeError, r"target is a masked array"),
    "text": ({"target": np.array([["a"] * 3] * 2)}, TypeError, r"target has dtype <U1: labels are integers"),
    "complex": ({"target": SOFT + 0j}, TypeError, r"dtype complex128.*probabilities one of float16"),
    "no target": ({"target": None}, TypeError, r"target is None: labels are integers"),
    "a label too many": ({"target": Y[:, :2]}, ValueError, r"shape \(2, 2\); logits of shape \(2, 3\) need"),
    "transposed": ({"target": Y.T}, ValueError, r"nothing broadcasts, so reshape it with \.reshape\(2, 3\)"),
    "a column": ({"logits": X[0], "target": Y[:1].T}, ValueError, r"\.reshape\(3,\)"),
    "a class index": ({"target": np.array([1, 0])}, ValueError, r"shape \(2,\); logits of shape \(2, 3\)"),
    "a label of 2": ({"target": Y + 1}, sce.LabelError, r"label 2 at position \(0, 0\) is outside \[0, 2\)"),
    "a label of -1": ({"target": Y - 1}, sce.LabelError, r"label -1 at position \(0, 1\).*ignore_index"),
    "-100": ({"target": np.where(Y, 1, -100)}, sce.LabelError, r"pass ignore_index=-100"),
    "255": ({"target": np.full((2, 3), 255, np.uint8)}, sce.LabelError, r"label 255 at position \(0, 0\)"),
    "ignored": ({"target": Y + 1, "ignore_index": 1}, sce.LabelError, r"label 2 at position \(0, 0\)"),
    "ignored probabilities": ({"target": SOFT, "ignore_index": -1}, ValueError, r"target of probabilities"),
    "ignore_index": ({"ignore_index": 1.0}, TypeError, r"ignore_index must be an integer"),
    "pos_weight": ({"pos_weight": NAN}, ValueError, r"pos_weight must be finite, got nan"),
    "infinite pos_weight": ({"pos_weight": [1, INF, 1]}, ValueError, r"holds inf at position 1"),
    "a set of pos_weight": ({"pos_weight": {1.0, 2.0}}, TypeError, r"pos_weight must be a real number"),
    "a short array": (
        {"pos_weight": array.array("d", [1.0, 2.0])},
        ValueError,
        r"pos_weight has shape \(2,\), not",
    ),
    "pos_weight of text": ({"pos_weight": "2"}, TypeError, r"pos_weight must be a real number"),
    "pos_weight of truth": ({"pos_weight": True}, TypeError, r"pos_weight must be a real number"),
    "one pos_weight": ({"pos_weight": [2.0]}, ValueError, r"pos_weight has shape \(1,\), not \(3,\): one"),
    "a pos_weight per sample": ({"pos_weight": [2.0, 1.0]}, ValueError, r"or a number for all, nothing"),
    "a pos_weight per element": ({"pos_weight": X}, ValueError, r"pos_weight has shape \(2, 3\), not \(3,\)"),
    "a weight per label": ({"sample_weight": [1, 2, 3]}, ValueError, r"has shape \(3,\), not \(2,\): one w"),
    "a single weight": ({"sample_weight": 2.0}, ValueError, r"shape \(\), not \(2, 3\).*per sample, \(2,\)"),
    "a column of weights": ({"sample_weight": [[1], [2]]}, ValueError, r"has shape \(2, 1\), not \(2, 3\)"),
    "a weight of NaN": ({"sample_weight": [1, NAN]}, ValueError, r"sample_weight must be finite.*position 1"),
    "weights of text": ({"sample_weight": ["a", "b"]}, TypeError, r"sample_weight has dtype <U1"),
    "too large weights": ({"sample_weight": np.full((2, 3), 1e308)}, ValueError, r"scale the weights down"),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, r"label_smoothing must be in \[0, 1\]"),
    "temperature": ({"temperature": 0.0}, ValueError, r"temperature must be finite and greater than 0"),
    "reduction": ({"reduction": "avg"}, ValueError, r"unknown reduction 'avg'"),
    "denominator": ({"reduction": "sum", "denominator": 2.0}, ValueError, r"denominator replaces that of"),
    "empty": ({"empty": "one"}, ValueError, r"unknown empty 'one'"),
    "validate": ({"validate": 1}, TypeError, r"validate must be True or False"),
    "grad_scale": ({"grad_scale": INF}, ValueError, r"grad_scale must be finite"),
    "out of a list": ({"out": [1.0]}, TypeError, r"out must be a NumPy array"),
    "out of a shape": ({"out": np.empty((3, 2))}, ValueError, r"out has shape \(3, 2\); it must have \(2, 3"),
    "out of a type": (
        {"out": np.empty((2, 3), "f4")},
        TypeError,
        r"out has dtype float32; it must have float",
    ),
    "hess_scale": ({"hess_scale": NAN}, ValueError, r"hess_scale must be finite"),
    "hess_min": ({"hess_min": "0"}, TypeError, r"hess_min must be a real number"),
    "an unknown option": ({"class_weight": [1.0, 2.0]}, TypeError, r"class_weight"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    """The same words on every backend, runnable or not: what is wrong is said before one is chosen."""
    arguments, kind, words = BAD[name]
    arguments = {"logits": X, "target": Y} | arguments
    tried = 0
    for function in FUNCTIONS:
        legal = inspect.signature(function).parameters
        if name != "an unknown option" and not legal.keys() >= arguments.keys():
            continue
        tried += 1
        for backend in BACKENDS:
            found, text = complaint(lambda: function(**arguments, backend=backend))  # noqa: B023
            assert found is kind, text
            assert re.search(words, text), text
    assert tried


def test_out_must_not_overlap_what_is_read():
    y = SOFT.copy()
    with pytest.raises(ValueError, match="out overlaps target"):
        sce.binary_loss_and_grad(X, y, out=y)
    shared = np.zeros((3, 3))
    with pytest.raises(ValueError, match="out overlaps logits"):
        sce.binary_loss_and_grad(shared[:2], Y, out=shared[1:])


def test_nothing_is_written_where_something_is_wrong():
    out = np.full_like(X, 7)
    for options in ({"target": Y + 1}, {"sample_weight": [1, NAN]}, {"pos_weight": [1.0, 2.0]}):
        with pytest.raises(ValueError, match=r"outside|finite|shape"):
            sce.binary_loss_and_grad(**{"logits": X, "target": Y, "out": out} | options)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64, np.int16])
def test_labels_that_are_not_validated_make_their_element_nan(backend, dtype):
    y = np.array([0, 1, 2, 100], dtype)
    options = {"validate": False, "reduction": "none", "backend": backend}
    loss, grad, hess = sce.binary_loss_grad_hess(np.zeros(4), y, **options)
    for found in (loss, grad, hess):
        assert np.isnan(found).tolist() == [False, False, True, True]


# ---------------------------------------------------------------- which backend


def test_explain_says_who_computes_a_binary_problem(backend):
    options = {"pos_weight": 2.0, "sample_weight": [1.0, 0.5], "reduction": "sum"}
    decision = sce.explain(X, Y, binary=True, backend=backend, **options)
    assert (decision.chosen, decision.asked_by) == (backend, "backend=")
    with pytest.raises(TypeError, match=r"no option 'class_weight'; .* of binary_loss_and_grad\."):
        sce.explain(X, Y, binary=True, class_weight=[1.0, 2.0])
    with pytest.raises(TypeError, match=r"no option 'pos_weight'; .* or with binary=True those"):
        sce.explain(X, Y[:, 0], pos_weight=2.0)
    with pytest.raises(sce.LabelError, match="label 2 at position"):
        sce.explain(X, Y + 1, binary=True)
