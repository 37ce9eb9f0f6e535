"""The three kernels of the Numba backend: who is called for what, and what each of them does by itself."""

import signal

import numpy as np
import pytest

import sce
from sce.problem import prepare

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
import numba

from sce.backend import Answer
from sce_backends.cpu import memory, plan, tile


def some(n, c, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, c)) * 3).astype(dtype), rng.integers(0, c, n)


def way(logits, target, outputs=("loss", "grad"), **options):
    problem = prepare(logits, target, outputs=outputs, **options).problem
    return plan.plan(problem, Answer(grad=np.empty(problem.logits.shape, logits.dtype)), False).way


def agree(logits, target, roundings=8, **options):
    got = sce.loss_and_grad(logits, target, backend="cpu", **options)
    want = sce.loss_and_grad(logits, target, backend="reference", **options)
    step = np.finfo(logits.dtype).eps
    np.testing.assert_allclose(got[0], want[0], rtol=roundings * step)
    np.testing.assert_allclose(got[1], want[1], rtol=roundings * step, atol=np.finfo(logits.dtype).tiny)


@pytest.mark.parametrize(
    ("c", "options", "expected"),
    [
        (10, {}, "columns"),
        (64, {}, "columns"),
        (65, {}, "tiles"),
        (100_000, {}, "tiles"),
        (10, {"temperature": 2.0, "softcap": 9.0, "z_loss": 0.1, "label_smoothing": 0.1}, "columns"),
        (100, {"class_weight": np.ones(100)}, "tiles"),
        (100, {"class_weight": np.ones(100), "label_smoothing": 0.1}, "rows"),
        (10, {"outputs": ("loss", "argmax")}, "rows"),
    ],
)
def test_which_kernel(c, options, expected):
    assert way(*some(4, c), **options) == expected


def test_which_kernel_for_other_inputs():
    x, y = some(6, 100)
    assert way(x, np.abs(x)) == "columns"  # a distribution
    assert way(x.astype(np.float64), y) == "tiles"
    assert way(x.astype(np.float64), y, label_smoothing=0.1) == "rows"
    images = np.zeros((2, 500, 4, 4), np.float32)
    assert way(images, np.zeros((2, 4, 4), int), axis=1) == "columns"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, 511, 512, 1500, 2999])
@pytest.mark.parametrize("height", [20.0, 40.0, 300.0, np.inf, np.nan, -np.inf])
def test_a_row_that_rises_above_its_first_block(dtype, place, height):
    """The pivot is the first block's maximum, until that is too low."""
    x, y = some(3, 3000, dtype)
    x[1, place] = height
    agree(x, y)
    agree(x, np.full(3, place))


def test_rows_whose_first_blocks_are_masked():
    x, y = some(4, 2000)
    x[:, :1024] = -np.inf
    x[2] = -np.inf
    agree(x, y)


@pytest.mark.parametrize("shape", [(2, 7, 13, 11), (3, 200, 8, 17), (1, 3, 1, 300), (130, 5, 2, 2)])
def test_tiles_that_end_with_an_image(shape):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape).astype(np.float32)
    y = rng.integers(0, shape[1], (shape[0], *shape[2:]))
    agree(x, y, axis=1)
    out = np.zeros(shape[1:] + shape[:1], np.float32).transpose(3, 0, 1, 2)
    grad = sce.loss_and_grad(x, y, axis=1, out=out, backend="cpu")[1]
    np.testing.assert_array_equal(grad, sce.loss_and_grad(x, y, axis=1, backend="cpu")[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("c", [3, 64, 65, 100, 511, 512, 513, 2047, 2048, 5001])
def test_streaming_changes_no_bit(monkeypatch, dtype, c):
    """Gradients past the caches are written by other instructions; small ones stand for them here."""
    x, y = some(37, c, dtype)
    plain = sce.loss_and_grad(x, y, backend="cpu")[1]
    monkeypatch.setattr(plan, "_PAST_CACHES", 0)
    memory_of = np.full(37 * c + 64, 7, dtype)
    for offset in range(0, 32, 5):  # where the output lies against cache lines
        out = memory_of[offset : offset + 37 * c].reshape(37, c)
        sce.loss_and_grad(x, y, out=out, backend="cpu")
        np.testing.assert_array_equal(out, plain)
        assert (memory_of[offset + 37 * c :] == 7).all()
        assert (memory_of[:offset] == 7).all()
        memory_of[:] = 7


@numba.njit
def copy(to, of, size, past_caches):
    memory.copy_bytes(to, of, size, past_caches)


@pytest.mark.parametrize("past_caches", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200, 1000])
def test_copies_write_all_bytes_and_no_others(past_caches, size):
    source = np.arange(1200, dtype=np.uint16).astype(np.uint8)
    for to in (0, 1, 17, 63, 64):
        for of in (0, 3, 64):
            target = np.zeros(1200, np.uint8)
            copy(target.ctypes.data + to, source.ctypes.data + of, size, past_caches)
            want = np.zeros(1200, np.uint8)
            want[to : to + size] = source[of : of + size]
            np.testing.assert_array_equal(target, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("neighbour", [50_000.0, np.nan, np.inf, -np.inf])
def test_a_row_does_not_depend_on_its_neighbours(dtype, neighbour):
    for c in (5, 40, 100, 700):
        x, y = some(40, c, dtype)
        whole = sce.loss_and_grad(x, y, reduction="none", backend="cpu")
        x[7] = neighbour
        beside = sce.loss_and_grad(x, y, reduction="none", backend="cpu")
        others = np.arange(40) != 7
        assert beside[0][others].tobytes() == whole[0][others].tobytes()
        assert beside[1][others].tobytes() == whole[1][others].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [3, 100, 2000])
@pytest.mark.parametrize("lse", [0.001, 0.03, 0.3, -0.2])
def test_z_loss_where_the_sum_is_near_1(dtype, c, lse):
    """Of the largest term not an ulp may be lost: it is the whole of lse."""
    x = np.full((20, c), -50.0, dtype)
    x[np.arange(20), np.arange(20) % c] = lse * (1 + np.arange(20) / 50)
    y = (np.arange(20) + 1) % c
    got = sce.evaluate(x, y, outputs=("z_loss",), z_loss=1e-4, reduction="none", backend="cpu").z_loss
    want = sce.evaluate(x, y, outputs=("z_loss",), z_loss=1e-4, reduction="none", backend="reference").z_loss
    np.testing.assert_allclose(got, want, rtol=(4 + np.log2(c) / 2) * np.finfo(dtype).eps)


@pytest.mark.parametrize("lam", [0.01, 0.125, 0.2])
@pytest.mark.parametrize("weights", ["no weights", "no weight at the target", "a tiny weight at the target"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [1, 2, 100, 2000])
def test_z_loss_as_a_part_of_the_loss_where_it_is_all_of_it(c, dtype, weights, lam):
    """The row is confident, or its target counts nothing: lse^2 is left, and lse is near 0."""
    x = np.full((20, c), -60.0, dtype)
    x[:, 0] = np.linspace(1e-5, 0.3, 20)
    w, y = np.ones(c), np.zeros(20, np.int64)
    if weights != "no weights":
        y[:] = c - 1
        w[c - 1] = 0.0 if weights == "no weight at the target" else 1e-12
    options = {"z_loss": lam, "class_weight": None if weights == "no weights" else w, "reduction": "none"}
    loss, grad = sce.loss_and_grad(x, y, backend="cpu", **options)
    want, want_grad = sce.loss_and_grad(x, y, backend="reference", **options)
    rtol = (4 + np.log2(c) / 2) * np.finfo(dtype).eps
    np.testing.assert_allclose(loss, want, rtol=rtol)
    np.testing.assert_allclose(grad[:, 0], want_grad[:, 0], rtol=rtol)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [5, 200, 1000])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_counted_row_that_is_nan_says_so_even_if_its_target_weighs_nothing(bad, c, dtype):
    x, y = np.zeros((3, c), dtype), np.full(3, c - 1)
    x[1, 0] = bad
    x[2] = -np.inf
    w = np.ones(c)
    w[c - 1] = 0.0
    loss, grad = sce.loss_and_grad(x, y, class_weight=w, reduction="none", backend="cpu")
    np.testing.assert_array_equal(loss, [0, np.nan, np.nan])
    assert np.isnan(grad[1:]).all()
    x[:] = 0.0
    x[:, c - 1] = -np.inf  # a masked target that weighs nothing costs nothing
    loss, grad = sce.loss_and_grad(x, y, class_weight=w, reduction="none", backend="cpu")
    assert (loss == 0).all()
    assert (grad == 0).all()


@pytest.mark.parametrize("cap", [1.0, 30.0, 1023.0, 1024.0, 1025.0])
@pytest.mark.parametrize("c", [5, 100, 1000])
def test_soft_caps_are_as_exact_as_in_the_reference(c, cap):
    x, y = some(40, c)
    x *= np.float32(cap / 10)
    options = {"softcap": cap, "reduction": "none"}
    loss, grad = sce.loss_and_grad(x, y, backend="cpu", **options)
    want, want_grad = sce.loss_and_grad(x.astype(np.float64), y, backend="reference", **options)
    # Exponentials below the smallest normal number are flushed to zero.
    np.testing.assert_allclose(loss, want, rtol=3e-7, atol=1e-36)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-6, atol=1e-36)


def test_a_row_does_not_depend_on_its_place_in_a_tile():
    for c in (5, 100, 700):
        x, y = some(tile.TILE + 9, c)
        whole = sce.loss_and_grad(x, y, reduction="none", backend="cpu")
        for i in (0, 1, 15, 16, tile.TILE - 1, tile.TILE, tile.TILE + 8):
            alone = sce.loss_and_grad(x[i : i + 1], y[i : i + 1], reduction="none", backend="cpu")
            assert alone[0][0].tobytes() == whole[0][i].tobytes()
            assert alone[1][0].tobytes() == whole[1][i].tobytes()


def test_ignored_rows_of_nan_stay_zero_in_a_tile():
    for c in (5, 100, 3000):
        x, y = some(20, c)
        x[3:6] = np.nan
        y[3:6] = -1
        grad = sce.loss_and_grad(x, y, ignore_index=-1, backend="cpu")[1]
        assert (grad[3:6] == 0).all()
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("c", [10, 100, 600])
def test_a_wide_soft_cap_hides_nothing(c):
    """1 - exp(-2 u) has no digits left where u is tiny."""
    x, y = some(3, c)
    for cap in (1e3, 1e9, 1e15, 1e30):
        agree(x, y, softcap=cap)


@pytest.mark.parametrize("c", [10, 100, 600])
def test_smoothing_over_a_class_that_is_never_seen(c):
    x, y = some(3, c)
    x[0, 7], y[0] = -np.inf, 1
    for options in ({}, {"temperature": 2.0}, {"softcap": 5.0}):
        loss = sce.cross_entropy(x, y, label_smoothing=0.1, reduction="none", backend="cpu", **options)
        want = sce.cross_entropy(x, y, label_smoothing=0.1, reduction="none", backend="reference", **options)
        np.testing.assert_allclose(loss, want, rtol=1e-5)


@pytest.mark.parametrize("c", [10, 100, 600])
@pytest.mark.parametrize("denominator", [0.0, 2.0])
def test_labels_out_of_range_wherever_they_stand(c, denominator):
    x, _ = some(11, c)
    options = {"denominator": denominator, "empty": "zero", "validate": False}
    got = sce.loss_and_grad(x, np.full(11, c + 3), backend="cpu", **options)
    want = sce.loss_and_grad(x, np.full(11, c + 3), backend="reference", **options)
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.parametrize("grad_scale", [1.0, 1e-20, 1e-30])
def test_a_rise_above_the_first_block_costs_a_small_gradient_nothing(grad_scale):
    x = np.full((1, 2000), -200, np.float32)
    x[0, :600] = -31
    x[0, 700:800] = np.linspace(-1, 0, 100)
    agree(x, np.array([5]), grad_scale=grad_scale)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
@pytest.mark.parametrize("c", [10, 200])
def test_a_signal_handler_may_call_meanwhile(c):
    x, y = some(300_000 // c * 10, c)
    want = sce.loss_and_grad(x, y, backend="cpu")
    other = some(50, c, seed=1)
    calls = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(sce.loss_and_grad(*other, backend="cpu")))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        for _ in range(30):
            got = sce.loss_and_grad(x, y, backend="cpu")
            assert got[0] == want[0]
            np.testing.assert_array_equal(got[1], want[1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls
