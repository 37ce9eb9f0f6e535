"""A few rows of very many classes, which threads share: the kernel that takes rows in pieces."""

import signal

import numpy as np
import pytest

import sce
from sce.problem import prepare

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")

from sce.backend import Answer
from sce_backends.cpu import pieces, plan

C = 2 * pieces.PIECE + 777


@pytest.fixture(autouse=True)
def already(monkeypatch):
    """Rows of this length are long enough: where it pays is a matter of time."""
    monkeypatch.setattr(plan, "_MANY", 2 * pieces.PIECE)


def some(n=2, c=C, dtype=np.float32):
    rng = np.random.default_rng(8)
    return (rng.standard_normal((n, c)) * 3).astype(dtype), rng.integers(0, c, n)


def agree(logits, target, **options):
    got = sce.loss_and_grad(logits, target, backend="cpu", **options)
    want = sce.loss_and_grad(logits, target, backend="reference", **options)
    step = np.finfo(logits.dtype).eps
    scale = np.abs(np.asarray(want[1], np.float64))
    if options:  # terms of both signs
        scale = scale + np.nanmax(scale) / C
    np.testing.assert_allclose(got[0], want[0], rtol=8 * step)
    off = np.abs(np.asarray(got[1], np.float64) - np.asarray(want[1], np.float64))
    np.testing.assert_array_equal(np.isnan(got[1]), np.isnan(want[1]))
    assert not (off > 20 * step * scale + np.finfo(logits.dtype).tiny).any()


def way(logits, target):
    problem = prepare(logits, target, outputs=("loss", "grad")).problem
    return plan.plan(problem, Answer(grad=np.empty(problem.logits.shape, logits.dtype)), False).way


def test_which_problems_it_takes():
    assert way(*some(1)) == way(*some(4)) == "pieces"
    assert way(*some(5)) == way(*some(1, C // 2)) == "tiles"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("c", [2 * pieces.PIECE, C, 3 * pieces.PIECE + 1])
def test_values(dtype, c):
    agree(*some(2, c, dtype))


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"z_loss": 1e-2},
        {"temperature": 0.5, "logit_bias": np.linspace(-3, 3, C)},
        {"softcap": 5.0, "logit_bias": np.linspace(-3, 3, C)},
        {"class_weight": np.linspace(0.5, 2, C), "reduction": "none"},
        {"ignore_index": 5, "sample_weight": np.array([2.0, 0.0])},
    ],
    ids=lambda options: "+".join(options),
)
def test_options(options):
    x, y = some()
    y[1] = 5
    agree(x, y, **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [0, pieces.PIECE - 1, pieces.PIECE, C - 1])
@pytest.mark.parametrize("height", [40.0, 300.0, 1e6, np.inf, np.nan, -np.inf])
def test_an_outlier_in_any_piece(dtype, place, height):
    x, y = some(1, dtype=dtype)
    x[0, place] = height
    agree(x, y)
    agree(x, np.array([place]))


@pytest.mark.parametrize("masked", [slice(0, pieces.PIECE), slice(pieces.PIECE, None), slice(0, None)])
@pytest.mark.parametrize("nan", [None, 3, pieces.PIECE + 3])
def test_pieces_of_nothing_but_minus_infinity(masked, nan):
    x, _ = some(1)
    x[0, masked] = -np.inf
    if nan is not None:
        x[0, nan] = np.nan
    for target in (5, pieces.PIECE + 5):
        agree(x, np.array([target]))
        agree(x - 500, np.array([target]))  # far below 0, which no pivot may be taken for
    if nan is None:
        loss = sce.cross_entropy(x, [pieces.PIECE + 5], label_smoothing=0.1, backend="cpu")
        assert loss == sce.cross_entropy(x, [pieces.PIECE + 5], label_smoothing=0.1, backend="reference") or (
            masked == slice(0, None) and np.isnan(loss)
        )


def test_the_same_bits_for_any_number_of_threads_and_in_place(monkeypatch):
    monkeypatch.setattr("sce.settings.usable_cores", lambda: 4)
    x, y = some(3)
    with sce.threads(1):
        want = sce.loss_and_grad(x, y, backend="cpu")
    for _ in range(20):
        got = sce.loss_and_grad(x, y, backend="cpu")
        assert got[0].tobytes() == want[0].tobytes()
        assert got[1].tobytes() == want[1].tobytes()
    sce.loss_and_grad(x, y, out=x, backend="cpu")
    assert x.tobytes() == want[1].tobytes()


def test_a_row_alone_has_the_same_bits():
    x, y = some(3)
    whole = sce.loss_and_grad(x, y, reduction="none", backend="cpu")
    alone = sce.loss_and_grad(x[1:2], y[1:2], reduction="none", backend="cpu")
    assert alone[0][0].tobytes() == whole[0][1].tobytes()
    assert alone[1][0].tobytes() == whole[1][1].tobytes()


def test_strided_rows_and_guards():
    x, y = some(2)
    memory = np.full((2, C + 40), 7, np.float32)
    out = memory[:, 20 : 20 + C]
    sce.loss_and_grad(x, y, out=out, backend="cpu")
    np.testing.assert_array_equal(out, sce.loss_and_grad(x, y, backend="cpu")[1])
    assert (memory[:, :20] == 7).all()
    assert (memory[:, 20 + C :] == 7).all()
    agree(np.asfortranarray(x), y)
    agree(np.repeat(x, 2, axis=1)[:, ::2], y)


@pytest.mark.parametrize("depth", [-95, -101, -104])
def test_pieces_far_below_the_others(depth):
    x = np.full((1, C), -200, np.float32)
    x[0, 0], x[0, 1] = 0, -0.3
    x[0, pieces.PIECE : pieces.PIECE + 600] = depth
    x[0, pieces.PIECE + 700 : pieces.PIECE + 800] = depth + 30 + np.linspace(0, 1, 100)
    agree(x, np.array([5]))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no interval timers")
def test_a_signal_handler_may_call_between_the_passes():
    x, y = some(1)
    want = sce.loss_and_grad(x, y, backend="cpu")
    other = some(1, 40_000)
    sce.loss_and_grad(*other, backend="cpu")  # compiles, which Numba cannot do twice at a time in one thread
    before = signal.signal(signal.SIGALRM, lambda *_: sce.loss_and_grad(*other, backend="cpu"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.004, 0.004)
        for _ in range(100):
            got = sce.loss_and_grad(x, y, backend="cpu")
            assert got[0] == want[0]
            np.testing.assert_array_equal(got[1], want[1])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
