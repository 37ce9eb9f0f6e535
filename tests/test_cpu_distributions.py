"""Targets that are distributions, on the CPU: which kernel, every number of classes, every place."""

from __future__ import annotations

import numpy as np
import pytest

import sce
from sce import conformance
from sce.backend import Answer
from sce.conformance.case import BOTH, LOSS, POISON, Case, cast
from sce.conformance.cases_layouts import ARRANGE
from sce.problem import prepare

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes: pip install 'sce[bfloat16]'")
from sce_backends.cpu import plan

LINE = 64
PAIRS = [
    ("float32", "float32"), ("float32", "float64"), ("float64", "float64"),
    ("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"),
]  # fmt: skip


@pytest.fixture(params=["plain", "streaming"])
def stores(request, monkeypatch):
    """What goes past the caches is written by other instructions; small matrices stand for it here."""
    if request.param == "streaming":
        monkeypatch.setattr(plan, "_PAST_CACHES", 0)


def some(n, c, dtype="float32", of="float32", seed=0):
    """Logits, and targets of which some are 0 and none adds up to 1."""
    rng = np.random.default_rng(seed)
    q = rng.random((n, c)) * (rng.random((n, c)) < 0.7)
    return cast(rng.standard_normal((n, c)) * 3, dtype), cast(q, of)


def way(c, outputs=BOTH, dtype="float32", of="float32", out=None, **options):
    x, q = some(4, c, dtype, of)
    q = options.pop("target", q)
    problem = prepare(x, q, outputs=outputs, **options).problem
    like = np.empty(problem.logits.shape, out or x.dtype)
    return plan.plan(problem, Answer(**{name: like for name in outputs if name != "loss"}), False).way


@pytest.mark.parametrize(
    ("c", "options", "expected"),
    [
        (3, {}, "columns"),
        (64, {"temperature": 2.0, "sample_weight": np.ones(4), "logit_bias": np.ones(64)}, "columns"),
        (160, {}, "columns"),
        (161, {}, "tiles"),
        (2_000_000, {"z_loss": 0.1, "temperature": 3.0}, "tiles"),
        (3, {"outputs": ("grad",)}, "columns"),
        (300, {"outputs": LOSS}, "tiles"),
        (300, {"outputs": ("loss", "grad", "argmax")}, "rows"),
        (300, {"outputs": ("loss", "grad", "hess_diag")}, "rows"),
        (3, {"label_smoothing": 0.1}, "rows"),
        (3, {"class_weight": np.ones(3)}, "rows"),
        (300, {"softcap": 9.0}, "rows"),
        (3, {"of": "float16"}, "rows"),
        (3, {"dtype": "float64"}, "rows"),
        (300, {"dtype": "float16", "out": np.float32}, "rows"),
        (300, {"target": some(4, 600)[1][:, ::2]}, "rows"),
        (30, {"target": some(4, 60)[1][:, ::2]}, "columns"),
    ],
)
def test_which_kernel(c, options, expected):
    assert way(c, **options) == expected


@pytest.mark.parametrize(("dtype", "of"), PAIRS)
def test_which_dtypes(dtype, of):
    assert (way(3, dtype=dtype, of=of), way(300, dtype=dtype, of=of)) == ("columns", "tiles")


def conforms(cases):
    report = conformance.check("cpu", cases)
    assert not report.failures, "\n".join(f"{f.case} | {f.output}: {f.message}" for f in report.failures[:9])
    assert report.passed == len(cases)


def case(title, x, q, outputs=BOTH, **options):
    return Case("", title, x, q, {"reduction": "none", **options}, outputs)


@pytest.mark.parametrize(("dtype", "of"), PAIRS)
def test_every_number_of_classes(dtype, of):
    shapes = [(5, c) for c in range(1, 140)]
    shapes += [(5, c) for c in range(161, 230)]
    shapes += [(130, c) for c in (*range(1, 20), 31, 32, 33, 63, 64, 65, 66, 129, 161, 511, 512, 513, 1025)]
    conforms([case(f"{n}x{c}", *some(n, c, dtype, of)) for n, c in shapes])


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_options(dtype):
    of = "float64" if dtype == "float64" else "float32"
    options = (
        {"temperature": 3.0}, {"z_loss": 0.05}, {"z_loss": 3.0}, {"grad_scale": 1e-20}, {"reduction": "mean"},
        {"sample_weight": np.array([2.0, 0.0, -1.0, 1e-30, 1.0])}, {"denominator": 0.0, "reduction": "mean"},
    )  # fmt: skip
    cases = []
    for c in (1, 2, 7, 64, 200, 700):
        x, q = some(5, c, dtype, of)
        bias = np.linspace(-3, 3, c)
        for given in (
            *options,
            {"logit_bias": bias},
            {"logit_bias": np.where(np.arange(c) % 3 == 1, -np.inf, bias)},
        ):
            cases.append(case(f"{c} {given}", x, q, **given))
            cases.append(case(f"{c} {given} alone", x, q, LOSS, **given))
    conforms(cases)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "shape", ["one-hot at the largest", "one-hot elsewhere", "own", "signed", "zero", "flat"]
)
def test_targets_where_terms_might_cancel(shape, dtype):
    """A confident row whose mass is at its largest class costs next to nothing, and that has to be exact."""
    cases = []
    for c in (2, 10, 160, 161, 512, 600, 3000):
        for height in (0.0, 1.0, 8.0, 60.0, 1e4, 1e6):
            x, q = some(20, c, dtype, dtype, seed=c)
            t = np.arange(20) * (c - 1) // 19
            x[np.arange(20), t] = x.max(axis=1) + np.asarray(height, dtype)
            if shape.startswith("one-hot"):
                q[:] = np.eye(c)[t if "largest" in shape else (t + 1) % c]
            elif shape == "own":
                e = np.exp(x.astype(float) - x.max(axis=1, keepdims=True))
                q[:] = e / e.sum(axis=1, keepdims=True)
            elif shape == "signed":
                q *= np.where(np.arange(c) % 2, 1, -1)
            else:
                q[:] = 0.0 if shape == "zero" else 1 / c
            cases.append(case(f"{c} {height}", x, q, z_loss=0.01 if shape == "zero" else 0.0))
    conforms(cases)


@pytest.mark.parametrize(
    ("dtype", "of"), [("float32", "float64"), ("float64", "float64"), ("float16", "float32")]
)
@pytest.mark.parametrize("where", ["logits", "masses"])
def test_values_at_the_edges(where, dtype, of):
    cases = []
    for c in (1, 2, 7, 64, 170, 600, 1300):
        for value in (np.nan, np.inf, -np.inf):
            for place in (0, c // 2, c - 1, slice(None), slice(0, (c + 1) // 2)):
                x, q = some(4, c, dtype, of)
                if where == "logits":
                    x[1, place] = x[2, place] = value
                    q[1, place] = 0.0
                elif np.isnan(value):
                    q[1, place] = value
                cases.append(case(f"{c} {value} {place}", x, q))
    conforms(cases)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_class_is_found_late(dtype):
    """Block after block has a larger one, by more and by less than the pivot can stand."""
    cases = []
    for step in (0.5, 5.0, 20.0, 31.0, 33.0, 200.0, 40_000.0):
        x, q = some(6, 2600, dtype, dtype)
        x += (np.arange(2600) // 512 * step).astype(dtype)
        x[3:] = x[3:, ::-1]
        cases.append(case(f"{step}", x, q))
    x, q = some(3, 2600, dtype, dtype)
    x[:, :600], x[1, :2599], x[2] = -np.inf, -np.inf, -np.inf
    cases.append(case("masked", x, np.where(np.isinf(x), 0, q)))
    cases.append(case("masked mass", x, q))
    conforms(cases)


@pytest.mark.parametrize("arrange", ARRANGE)
def test_every_layout(arrange, stores):
    cases = []
    for dtype, of in (("float32", "float64"), ("bfloat16", "bfloat16")):
        for n, c in ((12, 10), (36, 170), (144, 5)):
            x, q = some(n, c, dtype, of)
            laid, axis = ARRANGE[arrange](x)
            alike, _ = ARRANGE[arrange](q)
            plain = np.ascontiguousarray(alike)
            for out in (None, "own", "strided"):
                for title, target in (("alike", alike), ("plain", plain)):
                    options = {"axis": axis, "reduction": "none"}
                    cases.append(Case("", f"{n}x{c} {title} {out}", laid, target, options, out=out))
            if laid.ndim == 2 and axis != 0:
                cases.append(case(f"{n}x{c} target alone", x, alike))
    conforms(cases)


def lines(size):
    raw = np.full(size + LINE, POISON, np.uint8)
    return raw[-raw.ctypes.data % LINE :][:size]


@pytest.mark.parametrize("c", [5, 32, 170, 600])
@pytest.mark.parametrize(("dtype", "of"), PAIRS)
def test_any_address_and_nothing_beside_the_gradient(c, dtype, of, stores):
    x, q = some(5, c, dtype, of)
    want = sce.loss_and_grad(x, q, backend="cpu")[1]
    for at in range(LINE):
        given = lines(at + q.nbytes)
        target = np.ndarray(q.shape, q.dtype, given, at)
        target[...] = q
        memory = lines(3 * LINE + want.nbytes)
        right = memory.copy()
        to = LINE + (5 * at + 3) * x.itemsize % LINE
        np.ndarray(want.shape, want.dtype, right, to)[...] = want
        sce.loss_and_grad(x, target, out=np.ndarray(want.shape, want.dtype, memory, to), backend="cpu")
        assert (memory == right).all(), (at, to)
    own = x.copy()
    sce.loss_and_grad(own, q, out=own, backend="cpu")
    np.testing.assert_array_equal(own, want)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 50_000.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_left_out_and_neighbours(dtype, bad, stores):
    """A row left out is 0 whatever it and its target hold; no row's bits depend on another."""
    for n, c in ((40, 3), (40, 64), (20, 170), (20, 600), (300, 10)):
        x, q = some(n, c, dtype, dtype)
        skipped = np.arange(n) % 3 == 1
        want = sce.loss_and_grad(x, q, reduction="none", backend="cpu")
        for spoilt in (
            (x, q),
            (
                np.where(skipped[:, None], x.dtype.type(bad), x),
                np.where(skipped[:, None], q.dtype.type(bad), q),
            ),
        ):
            loss, grad = sce.loss_and_grad(
                *spoilt, sample_weight=np.where(skipped, 0.0, 1.0), reduction="none", backend="cpu"
            )
            assert (loss[skipped] == 0).all()
            assert (grad[skipped] == 0).all()
            np.testing.assert_array_equal(loss[~skipped], want[0][~skipped])
            np.testing.assert_array_equal(grad[~skipped], want[1][~skipped])


def test_any_number_of_threads_gives_the_same_bits(stores):
    for n, c in ((50_000, 3), (9_000, 170)):
        x, q = some(n, c)
        with sce.threads(1):
            want = sce.loss_and_grad(x, q, backend="cpu")
        got = sce.loss_and_grad(x, q, backend="cpu")
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
