"""`sce.linear.bound`: what solvers ask for hundreds of times is what the public functions say once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import sce
from sce.linear import bound
from sce.linear.bound import BoundRows
from sce.linear.bound_pair import BoundPair

N, D, C = 37, 5, 4


def numbers(dtype: Any) -> tuple[NDArray[Any], ...]:
    rng = np.random.default_rng(0)
    x, w, v = (rng.normal(size=shape).astype(dtype) for shape in ((N, D), (D, C), (D, C)))
    b, vb = (rng.normal(size=C).astype(dtype) for _ in range(2))
    return x, rng.integers(0, C, N), rng.uniform(0.5, 2, N), w, b, v, vb


# In one chunk; in several, of which the last is shorter; and with the logits computed anew for each product.
@pytest.fixture(params=["one chunk", "chunks", "nothing kept"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "one chunk":
        monkeypatch.setattr(bound, "_step", lambda X, classes: 8)
    if request.param == "nothing kept":
        monkeypatch.setattr(bound, "_KEPT", 0)
    return str(request.param)


Rows = BoundRows | BoundPair


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
class TestIsWhatThePublicFunctionsSay:
    def test_rows(self, pieces: str, form: Any, dtype: Any, intercept: bool, weighted: bool) -> None:
        self.same(C, lambda x, y, **options: BoundRows(form(x), y, C, **options), dtype, intercept, weighted)

    def test_a_pair(self, backend: str, form: Any, dtype: Any, intercept: bool, weighted: bool) -> None:
        """Two classes are one logit."""

        def bind(x: Any, y: Any, **options: Any) -> Rows:
            return BoundPair(form(x), y, **options | {"backend": backend})

        self.same(2, bind, dtype, intercept, weighted)

    def same(self, c: int, bind: Callable[..., Rows], dtype: Any, intercept: bool, weighted: bool) -> None:
        x, y, u, w, b, v, vb = numbers(dtype)
        y, w, b, v, vb = y % c, w[:, :c].copy(), b[:c], v[:, :c].copy(), vb[:c]
        options: dict[str, Any] = {
            "denominator": 3.0,
            "sample_weight": u if weighted else None,
            "label_smoothing": 0.1,
            "backend": "reference",
        }
        rows = bind(x, y, **options)
        biases = (b, vb) if intercept else (None, None)
        near = {"rtol": 1e-5, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-13}
        for scale in (1, 2):  # nothing of one place is left at the next
            into, into_bias = np.full((D, c), np.nan, dtype), np.full(c, np.nan, dtype) if intercept else None
            at = scale * w
            loss = rows.loss_and_grad(at, biases[0], into, into_bias)
            expected, grad = sce.linear_loss_and_grad(
                x, at, y, bias=biases[0], want=("W", "bias") if intercept else ("W",), **options
            )
            assert loss == pytest.approx(float(expected), rel=1e-6 if dtype == np.float32 else 1e-13)
            np.testing.assert_allclose(into, grad.W, **near)
            if intercept:
                np.testing.assert_allclose(into_bias, grad.bias, **near)
            rows.around(at, biases[0])
            rows.loss_and_grad(v, biases[1], np.empty_like(into), None)  # a line search, meanwhile
            rows.hvp(v, biases[1], into, into_bias)
            product = sce.linear_hvp(x, at, y, v, bias=biases[0], v_bias=biases[1], **options)
            np.testing.assert_allclose(into, product.W, **near)
            if intercept:
                np.testing.assert_allclose(into_bias, product.bias, **near)


def test_each_backend(backend: str) -> None:
    x, y, u, w, b, v, vb = numbers(np.float64)
    found = []
    for name in (backend, "reference"):
        rows = BoundRows(x, y, C, denominator=2.0, sample_weight=u, backend=name)
        into, into_bias = np.empty((2, D, C)), np.empty((2, C))
        loss = rows.loss_and_grad(w, b, into[0], into_bias[0])
        rows.around(w, b)
        rows.hvp(v, vb, into[1], into_bias[1])
        found.append((loss, into, into_bias))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


def test_nan_is_an_answer() -> None:
    x, y, _, w, _, _, _ = numbers(np.float64)
    x[3, 1] = np.nan
    pair = BoundPair(x, y % 2, denominator=1.0, backend="reference")
    for rows, c in ((BoundRows(x, y, C, denominator=1.0, backend="reference"), C), (pair, 2)):
        into = np.empty((D, c))
        assert np.isnan(rows.loss_and_grad(w[:, :c], None, into, None))
        assert np.isnan(into).all()


def test_bad_calls() -> None:
    x, y, _, w, _, v, _ = numbers(np.float64)
    rows = BoundRows(x, y, C, denominator=1.0, backend="reference")
    pair = BoundPair(x, y % 2, denominator=1.0, backend="reference")
    for each, classes in ((rows, C), (pair, 2)):
        with pytest.raises(ValueError, match=r"where is the Hessian\? Call around\(W, bias\) first"):
            each.hvp(v[:, :classes], None, np.empty((D, classes)), None)
    with pytest.raises(sce.BackendError, match="abacus"):
        BoundRows(x, y, C, denominator=1.0, backend="abacus").loss_and_grad(w, None, np.empty((D, C)), None)
