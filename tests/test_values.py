"""The contract of values, on every backend that runs here: what comes back at the edges and in which types.

One test per promise, with values that can be worked out by hand. Accuracy over the whole option lattice is
the conformance suite's business; here a bound is a few units in the last place of the output's dtype.
"""

from __future__ import annotations

import math
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest

import sce
from sce.problem import prepare

INF, NAN = math.inf, math.nan
BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = [np.dtype(np.float16), BF16, np.dtype(np.float32), np.dtype(np.float64)]
PER_ROW = ("lse", "log_prob", "argmax", "correct", "entropy")
EVERYTHING = ("loss", "grad", *PER_ROW, "hess_diag", "z_loss", "denominator")
INTEGERS = [np.dtype(c).newbyteorder(order) for c in "bBhHiIlLqQ" for order in "<>"]


@pytest.fixture(autouse=True)
def _on_backend(backend):
    """Every call of this module goes to the backend under test."""
    with sce.use(backend):
        yield


def loss_dtype(dtype):
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def near(got, want, ulps=4, dtype=None):
    """Relative, in units in the last place of the dtype; infinities and zeros exactly."""
    got = np.asarray(got)
    eps = float(ml_dtypes.finfo(dtype or got.dtype).eps)
    return np.allclose(got.astype(np.float64), want, rtol=ulps * eps, atol=0)


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def all_zero(x):
    """Exactly zero; -0.0 is zero."""
    return bool((np.asarray(x).astype(np.float64) == 0).all())


def sample(rng_seed=0, shape=(6, 5), dtype=np.float64):
    rng = np.random.default_rng(rng_seed)
    return (rng.standard_normal(shape) * 3).astype(dtype), rng.integers(0, shape[-1], shape[:-1])


def by_hand(x, y):
    """Loss per row and its gradient for a modest float64 matrix."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(y)), y]), p - np.eye(x.shape[1])[y]


# ---------------------------------------------------------------- means over nothing, nothing at all


@pytest.mark.parametrize(
    "given",
    [
        {"ignore_index": 1},
        {"sample_weight": [0.0, 0.0]},
        {"class_weight": [1.0, 0.0, 1.0]},
        {"sample_weight": [1.0, -1.0]},
        {"denominator": 0.0},
    ],
    ids=lambda g: next(iter(g)) + str(next(iter(g.values()))),
)
@pytest.mark.parametrize(("empty", "loss"), [("nan", NAN), ("zero", 0.0)])
def test_a_mean_over_nothing(given, empty, loss):
    x = np.array([[1.0, 2.0, 3.0], [0.5, NAN if "ignore_index" in given else 0.0, 0.0]])
    fields = ("loss", "z_loss", "grad", "hess_diag", "denominator")
    seen = sce.evaluate(x, [1, 1], outputs=fields, empty=empty, z_loss=0.1, **given)
    assert np.array_equal([seen.loss, seen.z_loss], [loss, loss], equal_nan=True)
    assert all_zero(seen.grad)
    assert all_zero(seen.hess_diag)
    assert seen.denominator == 0


def test_empty_concerns_the_mean_alone():
    x, y = np.zeros((2, 3)), np.array([1, 1])
    assert sce.cross_entropy(x, y, ignore_index=1, reduction="sum") == 0
    assert all_zero(sce.cross_entropy(x, y, ignore_index=1, reduction="none"))
    # a micro-batch of ignored rows adds nothing to a sum over micro-batches
    assert sce.cross_entropy(x, y, ignore_index=1, denominator=8) == 0
    assert sce.cross_entropy(x, y, empty="zero") == pytest.approx(math.log(3))


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 0, 3)])
@pytest.mark.parametrize("kind", ["index", "distribution"])
def test_no_rows(shape, kind):
    x = np.zeros(shape, np.float32)
    y = np.zeros(shape[:-1], int) if kind == "index" else np.zeros(shape)
    rows = sce.evaluate(x, y, outputs=EVERYTHING, reduction="none")
    assert rows.loss.shape == rows.lse.shape == rows.argmax.shape == shape[:-1]
    assert rows.grad.shape == rows.hess_diag.shape == shape
    assert rows.grad.dtype == rows.loss.dtype == np.float32
    assert sce.cross_entropy(x, y, reduction="sum") == 0
    assert np.isnan(sce.cross_entropy(x, y))
    assert sce.cross_entropy(x, y, empty="zero") == 0
    assert sce.softmax(x).shape == sce.log_softmax(x).shape == shape
    assert sce.logsumexp(x).shape == shape[:-1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_class_costs_nothing(dtype):
    loss, grad = sce.loss_and_grad(np.array([[3.0], [-70.0]], dtype), [0, 0], reduction="none")
    assert all_zero(loss)
    assert all_zero(grad)
    assert np.array_equal(sce.softmax(np.array([3.0], dtype)).astype(float), [1.0])


# ---------------------------------------------------------------- rows left out


@pytest.mark.parametrize("junk", [NAN, -NAN, INF, -INF])
@pytest.mark.parametrize(
    ("how", "kind"),
    [("ignore_index", "index"), ("sample_weight", "index"), ("sample_weight", "distribution")],
)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_row_left_out_is_exactly_zero_even_with_nan(junk, how, reduction, kind):
    x, y = sample(1, (4, 3))
    y[2] = -100 if how == "ignore_index" else 1
    left = {"ignore_index": -100} if how == "ignore_index" else {"sample_weight": [1, 1, 0, 1]}
    target = np.eye(3)[y % 3] if kind == "distribution" else y
    dirty = x.copy()
    dirty[2] = junk
    if kind == "distribution":
        target[2] = junk
    fields = ("loss", "grad", "hess_diag", "z_loss", "log_prob", "correct")
    seen = sce.evaluate(
        dirty, target, outputs=fields, reduction=reduction, z_loss=0.1, label_smoothing=0.1, **left
    )
    keep = [0, 1, 3]
    want = sce.evaluate(x[keep], target[keep], outputs=fields, reduction=reduction, z_loss=0.1,
                        label_smoothing=0.1)  # fmt: skip
    assert all_zero(seen.grad[2])
    assert all_zero(seen.hess_diag[2])
    assert seen.log_prob[2] == 0
    assert not seen.correct[2]
    assert near(seen.grad[keep], want.grad)
    assert near(seen.hess_diag[keep], want.hess_diag)
    if reduction == "none":
        assert seen.loss[2] == seen.z_loss[2] == 0
        assert near(seen.loss[keep], want.loss)
    else:
        assert near(seen.loss, want.loss)
        assert near(seen.z_loss, want.z_loss)


def test_what_a_left_out_row_still_says():
    x = np.array([[1.0, 5.0, 2.0]])
    for given in ({"ignore_index": 1}, {"sample_weight": [0.0]}):
        seen = sce.evaluate(x, [1], outputs=PER_ROW, reduction="sum", **given)
        free = sce.evaluate(x, [1], outputs=PER_ROW, reduction="sum")
        assert seen.argmax == 1
        assert seen.lse == free.lse
        assert seen.entropy == free.entropy
        assert (seen.log_prob[0], seen.correct[0]) == (0, False)


def test_ignore_index_inside_the_classes_drops_rows_not_the_class():
    x, y = sample(2, (5, 3))
    y[:] = [0, 1, 2, 1, 0]
    loss, grad = sce.loss_and_grad(x, y, ignore_index=1)
    rows, rows_grad = by_hand(x, y)
    keep = [0, 2, 4]
    assert near(loss, rows[keep].mean())
    assert near(grad[keep], rows_grad[keep] / 3, 8)
    assert all_zero(grad[[1, 3]])
    assert (grad[keep][:, 1] > 0).all()  # the class keeps its share of the softmax


@pytest.mark.parametrize(
    ("dtype", "label"),
    [("int8", -128), ("int8", 127), ("uint8", 255), ("int16", -100), ("uint64", 2**63 - 1)],
)
def test_an_ignored_label_may_be_anything(dtype, label):
    x = np.zeros((2, 3))
    loss, grad = sce.loss_and_grad(x, np.array([label, 1], dtype), ignore_index=label)
    assert near(loss, math.log(3))
    assert all_zero(grad[0])


def test_minus_one_never_matches_an_unsigned_label():
    with pytest.raises(sce.LabelError, match=r"label 255 at position 0"):
        sce.cross_entropy(np.zeros((1, 3)), np.array([255], np.uint8), ignore_index=-1)
    rows = sce.cross_entropy(
        np.zeros((3, 3)), np.array([2**64 - 1, 1, 2**63], np.uint64), ignore_index=-1, validate=False,
        reduction="none",
    )  # fmt: skip
    assert near(rows[1], math.log(3))
    assert np.isnan(rows[[0, 2]]).all()


@pytest.mark.parametrize("order", "<>")
def test_an_unsigned_label_does_not_wrap_into_ignore_index_without_validation(order):
    labels = np.array([2**64 - 1, 1], np.dtype(np.uint64).newbyteorder(order))
    rows = sce.cross_entropy(np.zeros((2, 3)), labels, ignore_index=-1, validate=False, reduction="none")
    assert np.isnan(rows[0])


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.str)
def test_every_integer_dtype_is_a_label(dtype):
    x, y = sample(3)
    want = sce.loss_and_grad(x, y.astype(np.int64))
    got = sce.loss_and_grad(x, y.astype(dtype))
    assert same_bits(got[0], want[0])
    assert same_bits(got[1], want[1])


def test_labels_of_any_layout():
    x, y = sample(4, (6, 5))
    want = sce.cross_entropy(x, y, reduction="none")
    spread = np.zeros(18, np.int32)
    spread[::-3] = y
    raw = np.zeros(6 * 8 + 1, np.uint8)
    unaligned = raw[1:].view(np.int64)
    unaligned[:] = y
    for labels in (spread[::-3], unaligned, y.tolist(), tuple(y), np.asfortranarray(y)):
        assert same_bits(sce.cross_entropy(x, labels, reduction="none"), want)
    same = np.broadcast_to(np.int64(2), 6)
    assert same_bits(
        sce.cross_entropy(x, same, reduction="none"), sce.cross_entropy(x, np.full(6, 2), reduction="none")
    )


def test_unaligned_weights():
    x, y = sample(4, (6, 5))

    def shifted(v):
        raw = np.zeros(len(v) * 8 + 1, np.uint8)[1:].view(np.float64)
        raw[:] = v
        assert not raw.flags.aligned
        return raw

    w, u, b = np.arange(1.0, 6), np.arange(1.0, 7), np.linspace(-1, 1, 5)
    want = sce.loss_and_grad(x, y, class_weight=w, sample_weight=u, logit_bias=b)
    got = sce.loss_and_grad(x, y, class_weight=shifted(w), sample_weight=shifted(u), logit_bias=shifted(b))
    assert same_bits(got[0], want[0])
    assert same_bits(got[1], want[1])


@pytest.mark.parametrize("bad", [-1, 3, -100, 2**40, -(2**62)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_validation_a_bad_label_makes_its_row_nan_and_no_other(bad, dtype):
    x, y = sample(5, (5, 3), dtype)
    want = sce.evaluate(x, y, outputs=EVERYTHING, reduction="none", z_loss=0.1)
    y[3] = bad
    seen = sce.evaluate(x, y, outputs=EVERYTHING, reduction="none", z_loss=0.1, validate=False)
    for name in ("loss", "grad", "hess_diag", "log_prob"):
        got = np.asarray(getattr(seen, name), np.float64)
        assert np.isnan(got[3]).all(), name
        assert np.array_equal(
            np.delete(got, 3, 0), np.delete(np.asarray(getattr(want, name), float), 3, 0)
        ), name
    assert not seen.correct[3]
    assert same_bits(seen.lse, want.lse)
    assert same_bits(seen.argmax, want.argmax)
    assert np.isnan(sce.cross_entropy(x, y, validate=False))


def test_without_validation_good_labels_are_the_same():
    x, y = sample(5)
    assert same_bits(sce.cross_entropy(x, y, validate=False), sce.cross_entropy(x, y))


# ---------------------------------------------------------------- infinities and NaN


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_masked_class_costs_nothing(dtype):
    x = np.array([[1.0, -INF, 2.0, 0.0]], dtype)
    loss, grad = sce.loss_and_grad(x, [2])
    want, want_grad = by_hand(np.array([[1.0, 2.0, 0.0]]), [1])
    assert near(loss, want[0])
    assert near(grad[:, [0, 2, 3]], want_grad)
    assert grad[0, 1] == 0
    soft = np.array([[0.25, 0.0, 0.5, 0.25]])
    loss, grad = sce.loss_and_grad(x, soft)
    assert np.isfinite(loss)
    assert grad[0, 1] == 0
    assert sce.softmax(x)[0, 1] == 0
    assert sce.log_softmax(x)[0, 1] == -INF


@pytest.mark.parametrize(
    "bits", [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF0000000000001, 0xFFFFFFFFFFFFFFFF]
)
def test_zero_times_minus_infinity_is_zero_but_nan_is_nan(bits):
    """Either sign bit, signalling or not: NaN in, NaN out, in that row alone."""
    x = np.array([[0.0, 0.0, -INF], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    x[1].view(np.uint64)[2] = bits
    for dtype in (np.float64, np.float32):
        with np.errstate(invalid="ignore"):  # converting a signalling NaN
            z = x.astype(dtype)
        loss, grad = sce.loss_and_grad(z, np.array([0, 0, 0]), reduction="none")
        assert near(loss[[0, 2]], [math.log(2), by_hand(x[[2]], [0])[0][0]])
        assert np.isnan(loss[1])
        assert np.isnan(grad[1]).all()
        assert np.isfinite(grad[[0, 2]]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", [0, 1, 4])
@pytest.mark.parametrize("junk", [NAN, -NAN, INF, "row of -inf"])
@pytest.mark.parametrize("kind", ["index", "distribution"])
@pytest.mark.parametrize(
    "options",
    [{}, {"softcap": 5.0, "temperature": 0.5}, {"z_loss": 0.1}],
    ids=lambda o: "+".join(o) or "plain",
)
def test_nan_in_nan_out_in_that_row_alone(dtype, where, junk, kind, options):
    x, y = sample(6, (5, 5), dtype)
    target = np.eye(5)[y] if kind == "distribution" else y
    fields = ("loss", "grad", "hess_diag", "log_prob")
    clean = sce.evaluate(x, target, outputs=fields, reduction="none", **options)
    dirty = x.copy()
    dirty[2] = -INF if isinstance(junk, str) else dirty[2]
    if not isinstance(junk, str):
        dirty[2, where] = junk
    seen = sce.evaluate(dirty, target, outputs=fields, reduction="none", **options)
    for name in fields:
        got = np.asarray(getattr(seen, name)).astype(float)
        want = np.asarray(getattr(clean, name)).astype(float)
        assert np.isnan(got[2]).all(), name
        assert np.array_equal(np.delete(got, 2, 0), np.delete(want, 2, 0)), name
    loss, grad = sce.loss_and_grad(dirty, target, **options)
    assert np.isnan(loss)
    assert np.isfinite(np.delete(grad.astype(float), 2, 0)).all()
    assert np.isnan(sce.softmax(dirty)[2].astype(float)).all()


@pytest.mark.parametrize("junk", [NAN, INF, "row of -inf"])
def test_log_softmax_is_nan_where_softmax_is(junk):
    """SciPy answers [nan, -inf] for [inf, 0]; here log_softmax and softmax are NaN in the same entries."""
    x = (
        np.array([[junk, 0.0], [1.0, 0.0]])
        if not isinstance(junk, str)
        else np.array([[-INF, -INF], [1.0, 0.0]])
    )
    log_p = sce.log_softmax(x)
    assert np.isnan(log_p[0]).all()
    assert np.isfinite(log_p[1]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logsumexp_at_the_edges(dtype):
    rows = np.array(
        [[-INF, -INF], [0.0, -INF], [-INF, 2.0], [NAN, 0.0], [0.0, -NAN], [INF, 0.0], [INF, INF]], dtype
    )
    with np.errstate(all="raise"):
        lse = sce.logsumexp(rows)
    assert lse.dtype == loss_dtype(dtype)
    assert lse[:3].tolist() == [-INF, 0.0, 2.0]
    assert np.isnan(lse[3:]).all()
    assert same_bits(np.isnan(sce.evaluate(rows, np.zeros(7, int), outputs=("lse",)).lse), np.isnan(lse))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_masked_target_costs_infinity(dtype):
    x = np.array([[0.0, -INF, 0.0], [1.0, 1.0, 1.0]], dtype)
    loss, grad = sce.loss_and_grad(x, [1, 0], reduction="none")
    assert loss[0] == INF
    assert near(grad[0], [0.5, -1, 0.5])
    assert near(loss[1], math.log(3))
    assert sce.cross_entropy(x, [1, 0]) == INF
    seen = sce.evaluate(x, [1, 0], outputs=("log_prob", "correct", "entropy"))
    assert seen.log_prob[0] == -INF
    assert near(seen.entropy[0], math.log(2))


def test_a_masked_target_of_weight_zero_costs_nothing():
    x = np.array([[0.0, -INF, 0.0]])
    loss, grad = sce.loss_and_grad(x, [1], class_weight=[1, 0, 1], reduction="sum")
    assert loss == 0
    assert all_zero(grad)
    assert sce.cross_entropy(x, [1], sample_weight=[0], reduction="sum") == 0


def test_smoothing_puts_mass_on_a_masked_class():
    x = np.array([[0.0, -INF, 0.0]])
    assert sce.cross_entropy(x, [0], label_smoothing=0.1) == INF
    assert np.isfinite(sce.cross_entropy(x, [0], label_smoothing=0.1, class_weight=[1, 0, 1]))


def test_negative_mass_on_a_masked_class_earns_infinity():
    assert sce.cross_entropy(np.array([[0.0, -INF]]), np.array([[1.0, -0.5]])) == -INF


def test_infinities_of_both_signs_sum_to_nan_without_a_warning():
    x = np.array([[0.0, -INF], [0.0, -INF]])
    assert np.isnan(sce.cross_entropy(x, [1, 1], sample_weight=[1, -1], reduction="sum"))


def test_minus_infinity_passes_through_a_soft_cap():
    x = np.array([[1.0, -INF, 2.0]])
    seen = sce.evaluate(x, [0], outputs=("loss", "grad", "hess_diag", "lse"), softcap=3.0, temperature=2.0)
    z = 3 * np.tanh(np.array([[1.0, 2.0]]) / 6)
    assert near(seen.loss, by_hand(z, [0])[0][0])
    assert seen.grad[0, 1] == seen.hess_diag[0, 1] == 0
    assert np.isfinite(seen.hess_diag).all()
    assert sce.cross_entropy(x, [1], softcap=3.0) == INF


def test_a_bias_of_minus_infinity_removes_the_class():
    x, y = sample(7, (6, 5))
    y[y == 3] = 0
    keep = [0, 1, 2, 4]
    bias = np.array([0.0, 0.5, -1.0, -INF, 2.0])
    seen = sce.evaluate(x, y, outputs=("loss", "grad", "argmax", "entropy"), logit_bias=bias)
    want = sce.evaluate(
        x[:, keep],
        np.searchsorted(keep, y),
        outputs=("loss", "grad", "argmax", "entropy"),
        logit_bias=bias[keep],
    )
    assert near(seen.loss, want.loss)
    assert near(seen.grad[:, keep], want.grad, 16)
    assert all_zero(seen.grad[:, 3])
    assert np.array_equal(seen.argmax, np.array(keep)[want.argmax])
    assert near(seen.entropy, want.entropy, 8)
    assert np.isnan(sce.cross_entropy(x, y, logit_bias=np.full(5, -INF)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_warning_and_no_floating_point_error_on_extreme_rows(dtype):
    """Overflow and underflow are the rows' answers, whatever the caller's np.seterr says."""
    top = float(ml_dtypes.finfo(dtype).max)
    x = np.array([[top, -top], [top, 0], [-top, -top], [top, top], [0, -INF], [NAN, 0], [INF, 1]], dtype)
    y = np.ones(7, int)
    with np.errstate(all="raise"):
        for reduction in ("none", "sum", "mean"):
            sce.evaluate(x, y, outputs=EVERYTHING, reduction=reduction, z_loss=0.1, temperature=0.5)
        sce.evaluate(x, y, outputs=EVERYTHING, softcap=2.0, grad_scale=1e30)
        sce.softmax(x), sce.log_softmax(x), sce.logsumexp(x)


def test_a_sum_beyond_float32_is_infinite_without_a_warning():
    x = np.array([[3e38, 0.0], [3e38, 0.0]], np.float32)
    assert sce.cross_entropy(x, [1, 1], reduction="sum") == INF
    assert near(sce.cross_entropy(x, [1, 1]), np.float32(3e38))


def test_a_gradient_beyond_its_dtype_is_infinite_without_a_warning():
    _, grad = sce.loss_and_grad(np.array([[1.0, 2.0]], np.float16), [0], grad_scale=1e6)
    assert grad.tolist() == [[-INF, INF]]


# ---------------------------------------------------------------- accuracy at the edges


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("margin", [20.0, 40.0, 80.0])
def test_a_confident_row_keeps_its_relative_accuracy(dtype, margin):
    x = np.array([[margin, 0.0, 0.0], [0.0, -margin, -margin]], dtype)
    seen = sce.evaluate(x, [0, 0], outputs=("loss", "grad", "log_prob", "hess_diag"), reduction="none")
    r = 2 * math.exp(-margin)
    assert near(seen.loss, math.log1p(r))
    assert near(seen.log_prob, -math.log1p(r))
    if dtype != np.float16:  # whose smallest number is 6e-8
        assert near(seen.grad[:, 0], -r / (1 + r))
        assert near(seen.hess_diag[:, 0], r / (1 + r) ** 2)
        assert near(sce.log_softmax(x)[:, 0], -math.log1p(r))


@pytest.mark.parametrize(
    ("dtype", "offset"), [(np.float32, 2.0**26), (np.float64, 1e8), (np.float64, -(2.0**40))]
)
def test_a_common_offset_costs_no_accuracy(dtype, offset):
    step = 8.0 if dtype == np.float32 else 2.0**-4  # exact beside the offset
    near_zero = np.array([[3.0, 0.0, -2.0], [0.0, 1.0, 1.0]]) * step
    loss, grad = sce.loss_and_grad((near_zero + offset).astype(dtype), [0, 1], reduction="none")
    want = sce.loss_and_grad(near_zero.astype(dtype), [0, 1], reduction="none")
    # Not the same bits: far from 0 a backend may take something else off than near it.
    assert near(loss, want[0], 2)
    assert near(grad, want[1], 3)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_a_mean_of_many_narrow_rows_is_reduced_in_float64(dtype):
    """float16 overflows in this sum and bfloat16 sticks at 256 terms where the input dtype accumulates."""
    x = np.zeros((100_000, 3), dtype)
    assert near(sce.cross_entropy(x, np.zeros(100_000, int)), math.log(3), 1)
    assert near(sce.cross_entropy(x, np.zeros(100_000, int), reduction="sum"), 100_000 * math.log(3), 1)


def test_grad_scale_keeps_a_narrow_gradient_of_a_large_mean():
    x, y = np.zeros((40_000, 4), np.float16), np.zeros(40_000, int)
    loss, grad = sce.loss_and_grad(x, y, grad_scale=40_000.0)
    assert near(grad[0], [-0.75, 0.25, 0.25, 0.25], 1)
    assert same_bits(loss, sce.cross_entropy(x, y))
    _, negative = sce.loss_and_grad(x, y, grad_scale=-40_000.0)
    assert np.array_equal(negative, -grad)


# ---------------------------------------------------------------- weights, denominators, distributions


def test_weighted_means_divide_by_the_weights_that_counted():
    x, y = sample(8, (6, 4))
    y[4] = -1
    w, u = np.array([0.5, 2.0, 1.0, 3.0]), np.array([1.0, 0.0, 2.0, -0.5, 9.0, 1.5])
    rows, rows_grad = by_hand(x, np.where(y < 0, 0, y))
    each = np.where(y < 0, 0, u * w[y])
    seen = sce.evaluate(
        x, y, outputs=("loss", "grad", "denominator"), class_weight=w, sample_weight=u, ignore_index=-1
    )
    assert near(seen.denominator, each.sum())
    assert near(seen.loss, (each * rows).sum() / each.sum(), 32)
    assert near(seen.grad, each[:, None] * rows_grad / each.sum(), 32)


def test_a_negative_total_weight_is_divided_by():
    x, y = sample(9, (3, 4))
    rows, _ = by_hand(x, y)
    assert near(sce.cross_entropy(x, y, sample_weight=[-1, -2, 1]), (rows @ [-1, -2, 1]) / -2, 16)


def test_distributions_divide_by_sample_weights_not_class_weights():
    x, _ = sample(10, (4, 3))
    soft = np.random.default_rng(0).random((4, 3))
    w, u = np.array([0.5, 2.0, 4.0]), np.array([1.0, 3.0, 0.5, 0.0])
    rows = sce.cross_entropy(x, soft, class_weight=w, reduction="none")
    assert near(sce.cross_entropy(x, soft, class_weight=w), rows.sum() / 4, 8)
    seen = sce.evaluate(x, soft, outputs=("loss", "denominator"), class_weight=w, sample_weight=u)
    assert near(seen.loss, (rows * u).sum() / 4.5, 8)
    assert seen.denominator == 4.5


@pytest.mark.parametrize("target_dtype", [*DTYPES, np.dtype(">f8"), np.dtype(">f4")], ids=str)
def test_a_distribution_is_never_normalised(target_dtype):
    x, _ = sample(11, (2, 3))
    soft = np.array([[2.0, 0.5, 0.0], [-1.0, 0.25, 0.5]]).astype(target_dtype)
    loss, grad = sce.loss_and_grad(x, soft, reduction="none")
    q = soft.astype(np.float64)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert near(loss, -(q * np.log(p)).sum(axis=1), 64)
    assert np.allclose(grad, q.sum(axis=1, keepdims=True) * p - q, rtol=1e-13, atol=1e-15)


def test_smoothing_with_weights_and_ignored_rows():
    """(1 - eps) w_y nll + eps / C sum_c w_c (-log p_c), divided by the sum of w_y of the rows that count."""
    x, y = sample(12, (5, 4))
    y[1] = 9
    w, eps = np.array([0.5, 2.0, 1.0, 3.0]), 0.2
    log_p = sce.log_softmax(x)
    label = np.where(y == 9, 0, y)
    rows = -(1 - eps) * w[label] * log_p[np.arange(5), label] - eps / 4 * (w * log_p).sum(axis=1)
    want = rows[y != 9].sum() / w[y[y != 9]].sum()
    assert near(sce.cross_entropy(x, y, class_weight=w, label_smoothing=eps, ignore_index=9), want, 16)


def test_smoothing_at_its_ends():
    x, y = sample(13, (5, 4))
    assert same_bits(sce.cross_entropy(x, y, label_smoothing=0), sce.cross_entropy(x, y))
    uniform = sce.cross_entropy(x, np.full((5, 4), 0.25))
    assert near(sce.cross_entropy(x, y, label_smoothing=1), uniform, 16)


def test_z_loss_has_the_sample_weight_the_same_denominator_and_no_class_weight():
    x, y = sample(14, (4, 3))
    w, u = np.array([0.5, 2.0, 4.0]), np.array([1.0, 3.0, 0.5, 2.0])
    seen = sce.evaluate(
        x, y, outputs=("loss", "z_loss", "lse", "denominator"), class_weight=w, sample_weight=u, z_loss=0.3
    )
    assert near(seen.z_loss, (0.3 * u * seen.lse**2).sum() / (u * w[y]).sum(), 16)
    plain = sce.cross_entropy(x, y, class_weight=w, sample_weight=u)
    assert near(seen.loss, plain + seen.z_loss, 16)
    assert sce.evaluate(x, y, outputs=("z_loss",)).z_loss == 0


def test_micro_batches_with_a_denominator_add_up_to_the_whole():
    x, y = sample(15, (12, 5))
    loss, grad = sce.loss_and_grad(x, y)
    parts = [sce.loss_and_grad(x[i : i + 4], y[i : i + 4], denominator=12) for i in (0, 4, 8)]
    assert near(sum(part[0] for part in parts), loss, 8)
    assert same_bits(np.concatenate([part[1] for part in parts]), grad)


def test_sum_and_none_divide_by_one():
    x, y = sample(16, (4, 3))
    w = np.array([0.5, 2.0, 4.0])
    rows, rows_grad = by_hand(x, y)
    seen = sce.evaluate(x, y, outputs=("loss", "grad", "denominator"), class_weight=w, reduction="none")
    assert near(seen.loss, w[y] * rows, 16)
    assert np.allclose(seen.grad, w[y][:, None] * rows_grad, rtol=1e-13, atol=1e-16)
    assert seen.denominator == 1
    total = sce.evaluate(x, y, outputs=("loss", "grad"), class_weight=w, reduction="sum")
    assert near(total.loss, seen.loss.sum(), 8)
    assert same_bits(total.grad, seen.grad)


@pytest.mark.parametrize("name", ["class_weight", "sample_weight", "logit_bias"])
def test_weights_may_be_any_real_numbers_in_any_layout(name):
    x, y = sample(17, (4, 4))
    values = np.array([1.0, 3.0, 2.0, 5.0])
    want = sce.cross_entropy(x, y, **{name: values})
    forms = [values.astype(kind) for kind in (np.int8, np.uint64, np.float16, ">f4", BF16)]
    forms += [values.tolist(), np.repeat(values, 3)[::3], values[::-1].copy()[::-1]]
    for form in forms:
        assert same_bits(sce.cross_entropy(x, y, **{name: form}), want)


def test_softmax_is_the_gradient_of_logsumexp():
    x, _ = sample(18, (4, 5))
    h = 1e-6
    for k in range(5):
        step = np.zeros(5)
        step[k] = h
        slope = (sce.logsumexp(x + step) - sce.logsumexp(x - step)) / (2 * h)
        assert np.allclose(slope, sce.softmax(x)[:, k], rtol=1e-6, atol=1e-9)


def test_temperature_divides_the_logits():
    x, y = sample(19, (4, 5))
    x = np.round(x * 64) / 64
    loss, grad = sce.loss_and_grad(x, y, temperature=4.0)
    want, want_grad = sce.loss_and_grad(x / 4, y)
    assert near(loss, want, 2)
    assert near(grad, want_grad / 4, 2)
    assert near(sce.softmax(x, temperature=4.0), sce.softmax(x / 4), 2)
    assert near(sce.log_softmax(x, temperature=4.0), sce.log_softmax(x / 4), 2)
    assert near(sce.logsumexp(x, temperature=4.0), sce.logsumexp(x / 4), 2)
    assert near(sce.softmax([3.0], temperature=49.0), [1.0], 1)


# ---------------------------------------------------------------- types and shapes of what comes back


@pytest.mark.parametrize(
    ("dtype", "order"), [(d, o) for d in DTYPES for o in "<>" if d != BF16 or o == "<"], ids=str
)  # bfloat16 exists in native byte order alone
def test_types_of_the_answers(dtype, order):
    x, y = sample(20, (3, 4), dtype)
    x = x if dtype == BF16 else x.astype(dtype.newbyteorder(order))
    scalar, seen = loss_dtype(dtype), sce.evaluate(x, y, outputs=EVERYTHING, z_loss=0.1)
    assert seen._fields == EVERYTHING
    for name in ("loss", "z_loss"):
        assert type(getattr(seen, name)) is scalar.type, name
    assert type(seen.denominator) is np.float64
    rows = sce.evaluate(x, y, outputs=EVERYTHING, z_loss=0.1, reduction="none")
    for name in ("loss", "z_loss", "lse", "log_prob", "entropy"):
        value = getattr(rows, name)
        assert (value.shape, value.dtype) == ((3,), scalar), name
    assert (rows.argmax.dtype, rows.argmax.shape) == (np.int64, (3,))
    assert (rows.correct.dtype, rows.correct.shape) == (np.bool_, (3,))
    for value in (rows.grad, rows.hess_diag, sce.softmax(x), sce.log_softmax(x)):
        assert (value.shape, value.dtype) == ((3, 4), dtype)
        assert value.dtype.isnative
        assert type(value) is np.ndarray
    assert sce.logsumexp(x).dtype == scalar
    assert type(sce.cross_entropy(x, y)) is scalar.type
    for value in rows:
        assert not isinstance(value, np.ndarray) or value.flags.writeable


def test_byte_order_changes_no_bit():
    for dtype in (np.float16, np.float32, np.float64):
        x, y = sample(21, (5, 4), dtype)
        want = sce.loss_and_grad(x, y)
        got = sce.loss_and_grad(x.astype(np.dtype(dtype).newbyteorder(">")), y.astype(">i4"))
        assert same_bits(got[0], want[0])
        assert same_bits(got[1], want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_row_without_a_batch_axis(dtype):
    x = np.array([1.0, 2.0, 0.5], dtype)
    seen = sce.evaluate(x, 1, outputs=EVERYTHING, reduction="none", sample_weight=2.0, z_loss=0.1)
    two = sce.evaluate(x[None], [1], outputs=EVERYTHING, reduction="none", sample_weight=[2.0], z_loss=0.1)
    for name in EVERYTHING:
        a, b = getattr(seen, name), np.asarray(getattr(two, name))
        assert same_bits(a, b[0] if b.ndim else b), name
    kinds = {"loss": loss_dtype(dtype).type, "argmax": np.int64, "correct": np.bool_}
    for name, kind in kinds.items():
        assert type(getattr(seen, name)) is kind
    assert seen.grad.shape == (3,)
    assert near(sce.cross_entropy(x, np.array([0.0, 1.0, 0.0])), sce.cross_entropy(x, 1))
    assert type(sce.logsumexp(x)) is loss_dtype(dtype).type
    assert np.isscalar(sce.cross_entropy(x, np.int8(1)))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axis(axis):
    rng = np.random.default_rng(22)
    shape = (3, 4, 5)
    x = rng.standard_normal(shape)
    rows = np.delete(shape, axis)
    y = rng.integers(0, shape[axis], rows)
    u = rng.random(rows)
    last = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    seen = sce.evaluate(x, y, outputs=EVERYTHING, axis=axis, reduction="none", sample_weight=u)
    want = sce.evaluate(last, y, outputs=EVERYTHING, reduction="none", sample_weight=u)
    for name in EVERYTHING:
        a, b = np.asarray(getattr(seen, name)), np.asarray(getattr(want, name))
        a = np.moveaxis(a, axis, -1) if name in ("grad", "hess_diag") else a
        assert a.shape == b.shape
        assert np.allclose(a, b, rtol=1e-14, atol=0), name
    soft = rng.random(shape)
    assert near(
        sce.cross_entropy(x, soft, axis=axis, reduction="none"),
        sce.cross_entropy(last, np.moveaxis(soft, axis, -1), reduction="none"),
        8,
    )
    assert np.allclose(
        np.moveaxis(sce.softmax(x, axis=axis), axis, -1), sce.softmax(last), rtol=1e-14, atol=0
    )
    assert sce.logsumexp(x, axis=axis).shape == tuple(rows)


def test_lists_and_array_likes():
    class Tensor:
        """What a CPU tensor offers NumPy."""

        def __init__(self, array):
            self.array = array

        def __array__(self, dtype=None, copy=None):
            return self.array

    class Capsule:
        """What an array library offers NumPy by DLPack."""

        def __init__(self, array):
            self.array = array

        def __dlpack__(self, **options):
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    x, y = sample(23, (4, 3))
    want = sce.loss_and_grad(x, y)
    for wrap in (Tensor, Capsule, np.ndarray.tolist):
        got = sce.loss_and_grad(wrap(x), wrap(y), sample_weight=wrap(np.ones(4)))
        assert type(got[1]) is np.ndarray
        assert same_bits(got[0], want[0])
        assert same_bits(got[1], want[1])
    x = x.astype(np.float32)
    assert sce.loss_and_grad(Tensor(x), y)[1].dtype == np.float32


def test_an_ndarray_subclass_comes_back_as_a_plain_array():
    class Mine(np.ndarray):
        pass

    x, y = sample(23, (4, 3))
    loss, grad = sce.loss_and_grad(x.view(Mine), y.view(Mine))
    assert type(grad) is np.ndarray
    assert type(loss) is np.float64
    assert same_bits(grad, sce.loss_and_grad(x, y)[1])
    assert type(sce.cross_entropy(x.view(Mine), y, reduction="none")) is np.ndarray


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_numpy_matrix_is_its_numbers():
    """np.matrix cannot be reshaped to three dimensions, and products with sparse matrices still make one."""
    x, y = sample(23, (4, 3))
    assert same_bits(sce.loss_and_grad(np.matrix(x), y)[1], sce.loss_and_grad(x, y)[1])


# ---------------------------------------------------------------- evaluate


def test_the_record_has_the_fields_asked_for_in_that_order():
    x, y = sample(24)
    names = ("correct", "loss", "lse")
    seen = sce.evaluate(x, y, outputs=names)
    assert seen._fields == names
    assert not hasattr(seen, "grad")
    with pytest.raises(AttributeError):
        seen.loss = 0.0
    assert sce.evaluate(x, y)._fields == ("loss", "log_prob", "argmax", "correct")
    assert sce.evaluate(x, y, outputs=("denominator",)) == (6.0,)
    assert sce.evaluate(x, y, outputs=list(names))._fields == names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_field_is_the_same_whatever_else_is_asked(dtype):
    """To the last bit, or, where loss and gradient have a kernel of their own, to the bounds of rounding."""
    x, y = sample(25, (40, 7), dtype)
    given = {"z_loss": 0.1, "label_smoothing": 0.1, "sample_weight": np.linspace(0.5, 2, 40)}
    whole = sce.evaluate(x, y, outputs=EVERYTHING, **given)
    for name in EVERYTHING:
        alone = getattr(sce.evaluate(x, y, outputs=(name,), **given), name)
        if name in ("loss", "z_loss", "grad"):
            assert nearly_the_same(alone, getattr(whole, name)), name
        else:
            assert same_bits(alone, getattr(whole, name)), name
    loss, grad = sce.loss_and_grad(x, y, **given)
    assert nearly_the_same(loss, whole.loss)
    assert nearly_the_same(grad, whole.grad)
    assert same_bits(sce.cross_entropy(x, y, **given), loss)


def nearly_the_same(a, b):
    """Within a few roundings of the largest entry: under smoothing an entry is a difference of such."""
    step = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}[a.dtype.name]
    a, b = np.float64(a), np.float64(b)
    return np.abs(a - b).max() <= 4 * step * np.abs(b).max()


def test_argmax_is_the_lowest_of_a_tie_and_correct_follows_it():
    x = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [-INF, -INF, -INF], [3.0, 1.0, 3.0]])
    seen = sce.evaluate(x, [1, 1, 0, 2], outputs=("argmax", "correct"))
    assert seen.argmax.tolist() == [1, 0, 0, 0]
    assert seen.correct[[0, 1, 3]].tolist() == [True, False, False]
    bias = np.array([0.0, 0.0, 1.0])
    assert sce.evaluate(x[:2], [2, 2], outputs=("argmax",), logit_bias=bias).argmax.tolist() == [2, 2]


def test_argmax_of_a_row_with_nan_is_the_first_nan():
    x = np.array([[1.0, NAN, 5.0, NAN], [5.0, 1.0, 2.0, -NAN]])
    assert sce.evaluate(x, [0, 0], outputs=("argmax",)).argmax.tolist() == [1, 3]


def test_correct_for_a_distribution_compares_the_two_largest():
    x = np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    soft = np.array([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    assert sce.evaluate(x, soft, outputs=("correct",)).correct.tolist() == [True, False]


def test_log_prob_is_the_targets_own_whatever_the_weights():
    x, y = sample(26, (4, 3))
    want = sce.log_softmax(x)[np.arange(4), y]
    seen = sce.evaluate(
        x, y, outputs=("log_prob",), class_weight=[0, 2, 3], label_smoothing=0.5, sample_weight=[1, 2, -1, 4]
    )
    assert near(seen.log_prob, want)


def test_entropy_and_perplexity_of_a_uniform_row():
    x = np.full((2, 8), 7.0)
    seen = sce.evaluate(x, [0, 1], outputs=("entropy", "log_prob", "lse"))
    assert near(seen.entropy, math.log(8))
    assert near(np.exp(-seen.log_prob), 8.0)
    assert near(seen.lse, 7 + math.log(8))


def test_the_hessian_diagonal_has_no_grad_scale():
    x, y = sample(27, (4, 3))
    scaled = sce.evaluate(x, y, outputs=("grad", "hess_diag"), grad_scale=8.0)
    plain = sce.evaluate(x, y, outputs=("grad", "hess_diag"))
    assert same_bits(scaled.hess_diag, plain.hess_diag)
    assert same_bits(scaled.grad, 8 * plain.grad)
    p = sce.softmax(x)
    assert np.allclose(plain.hess_diag, p * (1 - p) / 4, rtol=1e-13, atol=0)


# ---------------------------------------------------------------- memory: inputs, out, in place


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_never_written_and_may_be_read_only(dtype):
    x, y = sample(28, (6, 5), dtype)
    given = {
        "class_weight": np.arange(1.0, 6),
        "sample_weight": np.arange(6.0),
        "logit_bias": np.linspace(-1, 1, 5),
    }
    soft = np.random.default_rng(0).random((6, 5))
    arrays = [x, y, soft, *given.values()]
    before = [a.tobytes() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    sce.evaluate(x, y, outputs=EVERYTHING, softcap=4.0, z_loss=0.1, ignore_index=2, **given)
    sce.evaluate(x, soft, outputs=EVERYTHING, softcap=4.0, z_loss=0.1, **given)
    sce.softmax(x), sce.log_softmax(x), sce.logsumexp(x)
    assert [a.tobytes() for a in arrays] == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "distribution"])
def test_in_place_gives_the_same_bits(dtype, kind):
    x, y = sample(29, (6, 5), dtype)
    y = np.eye(5)[y] if kind == "distribution" else y
    options = {"label_smoothing": 0.1, "z_loss": 0.1, "softcap": 20.0, "logit_bias": np.linspace(-1, 1, 5)}
    want = sce.evaluate(x, y, outputs=EVERYTHING, **options)
    work = x.copy()
    seen = sce.evaluate(work, y, outputs=EVERYTHING, out=work, **options)
    assert seen.grad is work
    for name in EVERYTHING:
        assert same_bits(getattr(seen, name), getattr(want, name)), name
    for function in (sce.softmax, sce.log_softmax):
        work = x.copy()
        assert function(work, out=work) is work
        assert same_bits(work, function(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place_on_a_strided_view_touches_nothing_else(dtype):
    base = np.full((12, 14), 7.0, dtype)
    view = base[1::2, 2:12:2]
    x, y = sample(30, (6, 5), dtype)
    view[...] = x
    loss, grad = sce.loss_and_grad(view, y, out=view)
    want = sce.loss_and_grad(x, y)
    assert grad is view
    assert near(loss, want[0], 2)
    assert near(view, want[1].astype(float), 2)
    untouched = np.ones(base.shape, bool)
    untouched[1::2, 2:12:2] = False
    assert (base[untouched] == 7).all()


def test_in_place_where_no_view_of_the_rows_exists():
    rng = np.random.default_rng(31)
    base = rng.standard_normal((6, 8, 10, 4))
    view = base[::2, ::2, ::2]  # three row axes that cannot merge into two
    y = rng.integers(0, 4, view.shape[:-1])
    want = sce.loss_and_grad(view.copy(), y)
    assert sce.loss_and_grad(view, y, out=view)[1] is view
    assert np.allclose(view, want[1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("make", [
    lambda shape, dtype: np.full(shape, 9, dtype),
    lambda shape, dtype: np.full(shape, 9, dtype, order="F"),
    lambda shape, dtype: np.full((shape[0], 2 * shape[1]), 9, dtype)[:, ::2],
    lambda shape, dtype: np.full(shape, 9, dtype)[::-1, ::-1],
], ids=["C", "F", "strided", "negative"])  # fmt: skip
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_of_any_layout_is_filled_and_returned(make, dtype):
    x, y = sample(32, (6, 5), dtype)
    want = sce.loss_and_grad(x, y)
    out = make((6, 5), dtype)
    loss, grad = sce.loss_and_grad(x, y, out=out)
    assert grad is out
    assert near(loss, want[0], 2)
    assert near(out, want[1].astype(float), 2)
    p = make((6, 5), dtype)
    assert sce.softmax(x, out=p) is p
    assert near(p, sce.softmax(x).astype(float), 2)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_float32_gradient_of_narrow_logits(dtype):
    x, y = sample(33, (6, 5), dtype)
    out = np.empty((6, 5), np.float32)
    loss, grad = sce.loss_and_grad(x, y, out=out)
    want = sce.loss_and_grad(x.astype(np.float64), y)
    assert grad is out
    assert near(out, want[1], 8)
    assert near(loss, want[0], 4)


def test_out_of_a_scalar_answer_and_of_logsumexp():
    x, _ = sample(34, (6, 5))
    out = np.empty(6)
    assert sce.logsumexp(x, out=out) is out
    assert same_bits(out, sce.logsumexp(x))
    single = np.empty(())
    assert sce.logsumexp(x[0], out=single) is single
    assert single == sce.logsumexp(x[0])


def test_answers_are_fresh_arrays():
    x, y = sample(35)
    first, second = sce.loss_and_grad(x, y), sce.loss_and_grad(x, y)
    assert not np.shares_memory(first[1], second[1])
    assert not np.shares_memory(first[1], x)


# ---------------------------------------------------------------- the same bits, always


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1000, 3), (67, 1000), (3, 20_000)], ids=str)
def test_the_same_call_gives_the_same_bits(dtype, shape):
    x, y = sample(36, shape, dtype)
    first = sce.loss_and_grad(x, y, label_smoothing=0.1)
    for _ in range(3):
        again = sce.loss_and_grad(x.copy(), y, label_smoothing=0.1)
        assert same_bits(again[0], first[0])
        assert same_bits(again[1], first[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 3), (67, 130), (5, 3000)], ids=str)
def test_a_row_never_depends_on_the_others(dtype, shape):
    x, y = sample(37, shape, dtype)
    fields = ("loss", "grad", "hess_diag", *PER_ROW)
    whole = sce.evaluate(x, y, outputs=fields, reduction="none", z_loss=0.1)
    for rows in (slice(0, 1), slice(1, 4), slice(2, None), slice(-1, None)):
        part = sce.evaluate(x[rows].copy(), y[rows], outputs=fields, reduction="none", z_loss=0.1)
        for name in fields:
            assert same_bits(getattr(part, name), getattr(whole, name)[rows]), (name, rows)


def test_threads_of_the_caller_get_the_same_bits(backend):
    x, y = sample(38, (2000, 10), np.float32)
    want = sce.loss_and_grad(x, y)
    got, errors = [], []

    def work():
        try:
            for _ in range(5):
                got.append(sce.loss_and_grad(x, y, backend=backend))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(got) == 20
    assert all(same_bits(loss, want[0]) and same_bits(grad, want[1]) for loss, grad in got)


def test_many_classes():
    x = np.zeros((2, 150_000), np.float32)
    loss, grad = sce.loss_and_grad(x, [0, 149_999], reduction="none")
    assert near(loss, math.log(150_000))
    assert near(grad[0, 1:], 1 / 150_000)
    assert near(grad[1, -1], 1 / 150_000 - 1)


def test_an_evaluation_can_be_pickled():
    seen = sce.evaluate([[0.0, 1.0]], [1], outputs=("loss", "correct"), backend="reference")
    again = pickle.loads(pickle.dumps(seen))
    assert again == seen
    assert again._fields == ("loss", "correct")


def test_the_caller_s_errstate_is_not_about_our_arithmetic(backend):
    """What underflows is the answer; raised, it would leave `out` overwritten and nothing returned."""
    options = {"class_weight": [1e-310, 1.0], "label_smoothing": 0.1, "backend": backend}
    for dtype in (np.float32, np.float16):
        logits = np.array([[0.0, -99.0], [0.0, 60000.0]], dtype)
        want = sce.loss_and_grad(logits, [0, 0], **options)
        with np.errstate(all="raise"):
            got = sce.loss_and_grad(logits, [0, 0], out=logits, **options)
        assert got[1] is logits
        np.testing.assert_array_equal(got[1], want[1])
        np.testing.assert_array_equal(got[0], want[0])


def test_out_may_be_a_memory_map(backend, tmp_path):
    out = np.memmap(tmp_path / "grad", np.float64, "w+", shape=(2, 3))
    logits = np.arange(6.0).reshape(2, 3)
    grad = sce.loss_and_grad(logits, [0, 1], out=out, backend=backend)[1]
    assert grad is out
    np.testing.assert_array_equal(out, sce.loss_and_grad(logits, [0, 1], backend=backend)[1])


def test_signed_weights_that_cancel_are_added_exactly(backend):
    """Summed from left to right these make 0, an empty mean; the total is 1."""
    logits = np.zeros((3, 2))
    seen = sce.evaluate(
        logits, [0, 0, 0], sample_weight=[1e16, 1.0, -1e16], outputs=("denominator",), backend=backend
    )
    assert seen.denominator == 1


def test_a_label_beyond_int64_is_never_the_ignored_one(backend):
    labels = np.array([2**63 + 5, 0], np.uint64)
    for ignored in (2**63 - 1, -1):
        loss = sce.cross_entropy(
            np.zeros((2, 2)), labels, ignore_index=ignored, validate=False, reduction="none", backend=backend
        )
        assert np.isnan(loss[0])
        assert np.isfinite(loss[1])


def test_a_backend_cannot_write_to_its_inputs():
    """They are the caller's arrays, handed over without a copy."""
    problem = prepare(
        np.zeros((2, 3)),
        np.zeros(2, int),
        outputs=("loss",),
        class_weight=np.ones(3),
        sample_weight=np.ones(2),
    ).problem
    for name in ("logits", "labels", "class_weight", "sample_weight"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(problem, name)[...] = 1
