"""The CPU kernels for second derivatives: who is called for what, every number of classes, every place."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import sce
from sce import conformance
from sce.backend import DTYPES, Answer
from sce.conformance.case import FUNCTIONS, POISON, Case, cast
from sce.conformance.cases_layouts import ARRANGE
from sce.problem import prepare

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes: pip install 'sce[bfloat16]'")
from sce_backends.cpu import jacobian, plan

LINE = 64
LGH, LOG_ALONG = ("loss", "grad", "hess_diag"), ("log_softmax_jvp",)


@pytest.fixture(params=["plain", "streaming"])
def stores(request, monkeypatch):
    """What goes past the caches is written by other instructions; small matrices stand for it here."""
    if request.param == "streaming":
        monkeypatch.setattr(plan, "_PAST_CACHES", 0)
        monkeypatch.setattr(jacobian, "_PAST_CACHES", 0)


def some(n, c, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return cast(rng.standard_normal((n, c)) * 3, dtype), rng.integers(0, c, n)


def way(c, outputs, dtype=np.float32, of_v=None, **options):
    x, y = some(4, c, np.dtype(dtype).name)
    v = {"v": np.zeros(x.shape, of_v or dtype)} if outputs in (("hvp",), LOG_ALONG) else {}
    target = {} if outputs == LOG_ALONG else {"target": options.pop("target", y)}
    problem = prepare(x, **target, outputs=outputs, **v, **options).problem
    like = np.empty(problem.logits.shape, x.dtype)
    return plan.plan(problem, Answer(**{name: like for name in outputs if name != "loss"}), False).way


@pytest.mark.parametrize(
    ("c", "options", "expected"),
    [
        (3, {}, "columns"),
        (64, {"temperature": 2.0, "class_weight": np.ones(64), "logit_bias": np.ones(64)}, "columns"),
        (65, {}, "tiles"),
        (10_000, {"label_smoothing": 0.1}, "tiles"),
        (3, {"dtype": np.float64}, "columns"),
        (3, {"z_loss": 0.1}, "rows"),
        (3, {"softcap": 9.0}, "rows"),
        (3, {"target": np.full((4, 3), 1 / 3)}, "rows"),
    ],
)
def test_which_kernel_for_the_diagonal(c, options, expected):
    assert way(c, LGH, **options) == expected


@pytest.mark.parametrize(
    ("c", "options", "expected"),
    [
        (3, {}, "columns"),
        (3, {"label_smoothing": 0.1, "class_weight": np.ones(3), "dtype": np.float64}, "columns"),
        (65, {}, "along"),
        (65, {"temperature": 0.5, "sample_weight": np.ones(4)}, "along"),
        (3, {"temperature": 1e30}, "along"),
        (2000, {"logit_bias": np.ones(2000)}, "columns"),
        (3000, {"logit_bias": np.ones(3000)}, "rows"),
        (3, {"of_v": np.float64}, "rows"),
        (3, {"z_loss": 0.1}, "rows"),
        (3, {"softcap": 9.0}, "rows"),
        (3, {"target": np.full((4, 3), 1 / 3)}, "rows"),
    ],
)
def test_which_kernel_for_the_product(c, options, expected):
    assert way(c, ("hvp",), **options) == expected


@pytest.mark.parametrize(
    ("c", "options", "expected"),
    [
        (3, {}, "columns"),
        (64, {"temperature": 2.0, "dtype": np.float64}, "columns"),
        (65, {}, "along"),
        (3, {"temperature": 1e-30}, "along"),
        (3, {"of_v": np.float64}, "rows"),
        (3, {"logit_bias": np.ones(3)}, "rows"),
    ],
)
def test_which_kernel_for_log_softmax_along_v(c, options, expected):
    assert way(c, LOG_ALONG, **options) == expected


def cases(dtype, shapes, arrange="contiguous", **options):
    for n, c in shapes:
        x, y = some(n, c, dtype)
        x, axis = ARRANGE[arrange](x)
        given = {"reduction": "none", "axis": axis, **options}
        y = y.reshape(np.moveaxis(x, axis, -1).shape[:-1])
        name = f"{dtype} {n}x{c} {arrange}"
        yield Case("", f"{name} {LGH}", x, y, {**given, "hess_min": 1e-3}, LGH, function="loss_grad_hess")
        v = np.empty_like(x, x.dtype.newbyteorder("="))
        v[...] = cast(np.random.default_rng(1).standard_normal(x.shape), dtype)
        free = {"axis": axis, "v": v} | {key: options[key] for key in options if key == "temperature"}
        for out in (None, "over v"):
            title = f"{name} {out}"
            yield Case("", title, x, y, {**given, "v": v}, FUNCTIONS["hvp"], function="hvp", out=out)
            log = "log_softmax_jvp"
            yield Case("", f"{title} {log}", x, None, free, FUNCTIONS[log], function=log, out=out)


def conforms(found):
    report = conformance.check("cpu", found)
    assert not report.failures, "\n".join(f"{f.case} | {f.output}: {f.message}" for f in report.failures[:9])
    assert report.passed


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_classes(dtype):
    shapes = [(5, c) for c in range(1, 140)]
    shapes += [
        (130, c) for c in (*range(1, 20), 31, 32, 33, 63, 64, 65, 66, 127, 129, 511, 512, 513, 600, 1025)
    ]
    conforms(cases(dtype, shapes))


@pytest.mark.parametrize("arrange", ARRANGE)
def test_every_layout(arrange, stores):
    for dtype in ("float32", "bfloat16"):
        conforms(cases(dtype, [(12, 10), (36, 70), (144, 5)], arrange))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_left_out_beside_others(dtype, stores):
    """Rows of a vector and of a tile that count nothing, NaN in them and in v, between rows that count."""
    for n, c in ((40, 3), (40, 64), (20, 70), (20, 600)):
        x, y = some(n, c, dtype)
        weight = np.where(np.arange(n) % 3 == 1, 0.0, 2.0)
        x[weight == 0] = np.nan
        v = np.where(weight[:, None] == 0, np.nan, 1.0).astype(dtype) * np.arange(c)
        options = {"reduction": "none", "sample_weight": weight}
        conforms(
            [
                Case("", "diagonal", x, y, {**options, "hess_min": 0.5}, LGH, function="loss_grad_hess"),
                Case("", "product", x, y, {**options, "v": v.astype(dtype)}, ("hvp",), function="hvp"),
            ]
        )


def lines(size):
    raw = np.full(size + LINE, POISON, np.uint8)
    return raw[-raw.ctypes.data % LINE :][:size]


@pytest.mark.parametrize("c", [5, 32, 65, 600])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nothing_beside_the_product_is_written(c, dtype, stores):
    x, y = some(5, c, dtype)
    v = x[::-1].copy()
    for product in (partial(sce.hvp, x, y, v), partial(sce.log_softmax_jvp, x, v)):
        want = product(backend="cpu")
        for at in range(0, LINE, x.itemsize):
            memory = lines(2 * LINE + want.nbytes)
            right = memory.copy()
            np.ndarray(want.shape, want.dtype, right, at)[...] = want
            product(out=np.ndarray(want.shape, want.dtype, memory, at), backend="cpu")
            assert (memory == right).all(), at


def test_any_number_of_threads_gives_the_same_bits(stores):
    for n, c in ((50_000, 3), (9_000, 70)):
        x, y = some(n, c)
        v = x[::-1].copy()
        with sce.threads(1):
            want = (*sce.loss_grad_hess(x, y, backend="cpu"), sce.hvp(x, y, v, backend="cpu"))
        got = (*sce.loss_grad_hess(x, y, backend="cpu"), sce.hvp(x, y, v, backend="cpu"))
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_jacobians_of_every_number_of_classes(dtype, stores):
    for c in range(1, 70):
        x = some(19, c, dtype)[0]
        for name in ("softmax_jacobian", "log_softmax_jacobian"):
            conforms([Case("", f"{dtype} {c} classes, {name}", x, None, {}, (name,), function=name)])


@pytest.mark.parametrize(("c", "dtype"), [(3, "float32"), (16, "float64"), (17, "float16"), (400, "float32")])
def test_nothing_beside_the_jacobian_is_written(c, dtype, stores):
    x = some(21 if c < 100 else 2, c, dtype)[0]
    want = sce.softmax_jacobian(x, backend="cpu")
    for at in range(0, LINE, x.itemsize):
        memory = lines(2 * LINE + want.nbytes)
        right = memory.copy()
        np.ndarray(want.shape, want.dtype, right, at)[...] = want
        sce.softmax_jacobian(x, out=np.ndarray(want.shape, want.dtype, memory, at), backend="cpu")
        assert (memory == right).all(), at


@pytest.mark.parametrize(("n", "c"), [(60_000, 3), (900, 40), (3, 1000)])
def test_jacobians_have_the_same_bits_for_any_number_of_threads(n, c, stores):
    x = some(n, c)[0]
    with sce.threads(1):
        want = sce.softmax_jacobian(x, backend="cpu")
    assert np.array_equal(sce.softmax_jacobian(x, backend="cpu"), want)
