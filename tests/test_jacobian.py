"""Jacobians of softmax and log-softmax, and their products with vectors from both sides."""

from __future__ import annotations

import tracemalloc

import mpmath
import numpy as np
import pytest

import sce

INF, NAN = float("inf"), float("nan")
MP = mpmath.MPContext()
MP.dps = 150  # 1 - p by subtraction, where p is e^-110 away from 1
rng = np.random.default_rng(0)


def exact(row, temperature):
    """(softmax's Jacobian, log-softmax's) of one row, rounded at the end."""
    z = [MP.mpf(float(v)) / MP.mpf(temperature) for v in row]
    e = [MP.exp(v) for v in z]
    p = [v / MP.fsum(e) for v in e]
    t, n = MP.mpf(temperature), len(p)
    of_log = [[((i == j) - p[j]) / t for j in range(n)] for i in range(n)]
    plain = [[p[i] * of_log[i][j] for j in range(n)] for i in range(n)]
    return (np.array([[float(v) for v in line] for line in m]) for m in (plain, of_log))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_entry_is_relatively_accurate(dtype, temperature, backend):
    x = (rng.normal(size=(6, 5)) * 3).astype(dtype)
    x[0, 2] += 9 if dtype is np.float16 else 60  # 1 - p_2 is far below an ulp of 1
    got = sce.softmax_jacobian(x, temperature=temperature, backend=backend)
    of_log = sce.log_softmax_jacobian(x, temperature=temperature, backend=backend)
    assert got.dtype == of_log.dtype == dtype
    info = np.finfo(dtype)
    for row, j, log_j in zip(x, got, of_log, strict=True):
        for mine, theirs in zip((j, log_j), exact(row, temperature), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=12 * info.eps, atol=2 * info.smallest_subnormal)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "row", [[50.0, 0.0, 0.0], [1000.0, 0.0], [88.7, -88.7, 0.0], [0.0] * 20 + [40.0], [300.0, 0.0, 299.5]]
)
def test_sure_rows(dtype, row, backend):
    """1 - p to a few ulp where p rounds to 1: in the Jacobians' diagonals, and in the Hessian's."""
    x = np.array(row, dtype)
    plain, of_log = exact(x, 1.0)
    info = np.finfo(dtype)
    near = {"rtol": 4 * info.eps, "atol": 2 * info.smallest_subnormal}
    if dtype is np.float32:
        near["atol"] = info.smallest_normal  # what is below may be flushed
    np.testing.assert_allclose(sce.softmax_jacobian(x, backend=backend), plain, **near)
    np.testing.assert_allclose(sce.log_softmax_jacobian(x, backend=backend), of_log, **near)
    for y in range(x.size):
        hess = sce.loss_grad_hess(x, y, backend=backend)[2]
        np.testing.assert_allclose(hess, np.diag(plain), **near)


def test_one_jacobian_in_float16_is_rounded_once():
    x = rng.normal(size=(50, 7)).astype(np.float16)
    j = sce.softmax_jacobian(x, backend="reference")
    want = sce.softmax_jacobian(x.astype(np.float64), backend="reference")
    np.testing.assert_allclose(j, want, rtol=0.501 * np.finfo(np.float16).eps, atol=2.0**-25)


@pytest.mark.parametrize("function", ["softmax", "log_softmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((4,), 0), ((3, 4), -1), ((4, 3), 0), ((2, 4, 3), 1), ((2, 3, 2, 4), 3)]
)
def test_products_are_those_with_the_jacobian(function, shape, axis, backend):
    """J[..., i, j] = d output_i / d input_j, whatever the class axis was."""
    x, v = rng.normal(size=shape), rng.normal(size=shape)
    options = {"axis": axis, "temperature": 0.7, "backend": backend}
    j = getattr(sce, f"{function}_jacobian")(x, **options)
    rows = np.moveaxis(x, axis, -1).shape
    assert j.shape == (*rows, rows[-1])
    last = np.moveaxis(v, axis, -1)
    for side, want in (
        ("jvp", np.einsum("...ij,...j->...i", j, last)),
        ("vjp", np.einsum("...ij,...i->...j", j, last)),
    ):
        got = getattr(sce, f"{function}_{side}")(x, v, **options)
        assert got.shape == x.shape
        np.testing.assert_allclose(np.moveaxis(got, axis, -1), want, rtol=1e-12, atol=1e-15)


def test_finite_differences(backend):
    x, h = rng.normal(size=5), 1e-6
    for name in ("softmax", "log_softmax"):
        function = getattr(sce, name)
        steps = np.eye(5) * h
        want = np.stack(
            [(function(x + e, temperature=2.0) - function(x - e, temperature=2.0)) / (2 * h) for e in steps],
            1,
        )
        got = getattr(sce, f"{name}_jacobian")(x, temperature=2.0, backend=backend)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "classes"), [(0, 3), (1, 1), (7, 1), (700, 2), (4000, 3), (700, 10), (30, 40), (2, 300)]
)
def test_any_size(classes, rows, backend):
    x = rng.normal(size=(rows, classes)).astype(np.float32)
    p = sce.softmax(x.astype(np.float64), backend="reference")
    want = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
    got = sce.softmax_jacobian(x, backend=backend)
    assert got.shape == (rows, classes, classes)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-8)
    of_log = sce.log_softmax_jacobian(x, backend=backend)
    np.testing.assert_allclose(of_log, np.eye(classes) - p[:, None, :], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("function", [sce.softmax_jacobian, sce.log_softmax_jacobian])
def test_into_memory_that_exists(function, backend):
    x = rng.normal(size=(4, 5, 3)).astype(np.float32)
    out = np.full((4, 3, 5, 5), 7, np.float32)
    assert function(x, 1, out=out, backend=backend) is out
    assert (out == function(x, 1, backend=backend)).all()


def test_little_memory_beside_the_jacobian():
    """NumPy tells tracemalloc what it allocates, scratch included."""
    x = rng.normal(size=(1, 1200)).astype(np.float32)
    out = np.empty((1, 1200, 1200), np.float32)
    sce.softmax_jacobian(x, out=out, backend="cpu")  # compiles
    tracemalloc.start()
    try:
        sce.softmax_jacobian(x, out=out, backend="cpu")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < out.nbytes / 10


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (np.empty((2, 3, 3), np.float32), TypeError, "out has dtype float32"),
        (np.empty((2, 3)), ValueError, r"out has shape \(2, 3\); it must have \(2, 3, 3\)"),
        (np.empty((2, 3, 6))[..., ::2], ValueError, "out has gaps"),
        (np.empty((3, 3, 2)).T, ValueError, "out has gaps"),
        ([0.0], TypeError, "out must be a NumPy array"),
        (np.broadcast_to(0.0, (2, 3, 3)), ValueError, "out is read-only"),
    ],
)
def test_out_of_another_kind(out, error, words):
    with pytest.raises(error, match=words):
        sce.softmax_jacobian(np.zeros((2, 3)), out=out)


def test_the_jacobian_may_not_lie_over_the_logits():
    memory = np.zeros(18)
    with pytest.raises(ValueError, match="out overlaps x"):
        sce.softmax_jacobian(memory[:6].reshape(2, 3), out=memory.reshape(2, 3, 3))


@pytest.mark.parametrize("function", [sce.softmax, sce.softmax_jacobian, sce.log_softmax_jacobian])
def test_advice_about_masked_arrays(function):
    with pytest.raises(TypeError, match=r"x is a masked array.*x\.filled\(-np\.inf\) to leave classes out"):
        function(np.ma.masked_array([0.0, 1.0], [True, False]))


def test_a_backend_without_jacobians_is_asked_for_products(monkeypatch):
    from sce import registry

    x = rng.normal(size=(3, 4)).astype(np.float32)
    want = sce.softmax_jacobian(x, backend="reference"), sce.log_softmax_jacobian(x, backend="reference")
    module = registry.load("reference")
    monkeypatch.setattr(module, "takes_jacobians", False)
    for function, expected in zip((sce.softmax_jacobian, sce.log_softmax_jacobian), want, strict=True):
        out = np.empty((3, 4, 4), np.float32)
        got = function(x, backend="reference")
        assert function(x, backend="reference", out=out) is out
        assert (got == out).all()
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)


def test_masked_classes_and_rows_without_an_answer(backend):
    x = np.array([[0.0, -INF, 1.0], [0.0, NAN, 1.0], [-INF, -INF, -INF], [0.0, INF, 1.0]])
    j, log_j = (f(x, backend=backend) for f in (sce.softmax_jacobian, sce.log_softmax_jacobian))
    assert (j[0, 1] == 0).all()
    assert (j[0, :, 1] == 0).all()
    assert log_j[0].T[1].tolist() == [0, 1, 0]
    assert np.isnan(j[1:]).all()
    assert np.isnan(log_j[1:]).all()
    v = np.ones((4, 3))
    for function in (sce.softmax_jvp, sce.softmax_vjp, sce.log_softmax_jvp, sce.log_softmax_vjp):
        got = function(x, v, backend=backend)
        assert np.isfinite(got[0]).all()
        assert np.isnan(got[1:]).all()


@pytest.mark.parametrize("name", ["softmax_jvp", "log_softmax_jvp"])
def test_in_place(name, backend):
    x, v = rng.normal(size=(2, 7, 9)).astype(np.float32)
    function = getattr(sce, name)
    want = function(x, v, backend=backend)
    for into in (v.copy(), x.copy()):
        mine, theirs = (into, v) if (into == x).all() else (x, into)
        assert function(mine, theirs, out=into, backend=backend) is into
        assert into.tobytes() == want.tobytes()


def test_what_may_not_be_written_over():
    x, v = np.zeros((2, 2, 3))
    with pytest.raises(ValueError, match="out overlaps v"):
        sce.log_softmax_vjp(x, v, out=v)
    assert sce.log_softmax_vjp(x, v, out=x) is x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sce.softmax_jacobian(np.zeros((2, 3), int)), TypeError, "x has dtype int64"),
        (lambda: sce.softmax_jacobian(np.zeros((2, 3)), axis=2), ValueError, "axis 2 is outside"),
        (lambda: sce.softmax_jacobian(np.zeros((2, 0))), ValueError, r"x of shape \(2, 0\) has no classes"),
        (lambda: sce.log_softmax_jacobian([0.0, 1.0], temperature=0), ValueError, "temperature must be"),
        (lambda: sce.softmax_vjp([0.0, 1.0], [1.0]), ValueError, r"v has shape \(1,\)"),
        (lambda: sce.log_softmax_vjp([0.0, 1.0], [1, 0]), TypeError, "v has dtype int64"),
        (lambda: sce.log_softmax_vjp([0.0, 1.0], None), TypeError, "v "),
        (lambda: sce.softmax_jvp([0.0, 1.0], [1.0, 0.0], backend="none"), sce.BackendError, "none"),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("function", [sce.softmax_jacobian, sce.log_softmax_jacobian])
def test_small_answers_are_no_errors_of_the_caller(function):
    with np.errstate(all="raise"):
        found = function(np.array([[0, -70, -70]], np.float32))
    assert np.isfinite(found).all()
