"""sce.information: each number against its definition, worked out another way, and its singular cases."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest

import sce
from sce import information
from sce.information import divergence

NAN, INF = math.nan, math.inf


@pytest.fixture
def on(backend):
    with sce.use(backend):
        yield backend


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sample(shape=(40, 6), seed=0, scale=3.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal(shape)).astype(dtype), rng.integers(0, shape[-1], shape[:-1])


# ---------------------------------------------------------------- entropy


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.5}, {"softcap": 4.0}, {"logit_bias": np.linspace(-1, 1, 6)}, {"axis": 0}],
    ids=lambda o: next(iter(o), "plain"),
)
def test_entropy_is_its_definition(on, options):
    x, _ = sample((6, 6))
    z = np.moveaxis(x, options.get("axis", -1), -1) / options.get("temperature", 1.0)
    if cap := options.get("softcap"):
        z = cap * np.tanh(z / cap)
    p = softmax(z + options.get("logit_bias", 0.0))
    want = -(p * np.log(p)).sum(axis=-1)
    np.testing.assert_allclose(information.entropy(x, **options), want, rtol=1e-13)
    u = np.arange(6.0)
    got = information.entropy(x, reduction="mean", sample_weight=u, **options)
    np.testing.assert_allclose(got, want @ u / 15, rtol=1e-13)
    np.testing.assert_allclose(information.entropy(x, reduction="sum", **options), want.sum(), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_entropy_of_confident_rows_and_extremes(on, dtype):
    found = information.entropy(np.array([[0, -30], [0, 0], [0, -INF]], dtype))
    assert found.dtype == (np.float64 if dtype == np.float64 else np.float32)
    small = math.exp(-30)
    want = [math.log1p(small) + small * 30 / (1 + small), math.log(2), 0.0]
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert found[2] == 0


def test_entropy_of_nothing_and_of_rows_left_out(on):
    assert information.entropy(np.zeros((0, 3))).shape == (0,)
    assert np.isnan(information.entropy(np.zeros((0, 3)), reduction="mean"))
    assert information.entropy(np.zeros((0, 3)), reduction="sum") == 0
    assert information.entropy(np.zeros((2, 1)), reduction="mean") == 0  # one class
    assert information.entropy(np.zeros(4)) == pytest.approx(math.log(4))
    left_out = information.entropy([[NAN, 0.0], [0.0, 0.0]], reduction="mean", sample_weight=[0, 2])
    assert left_out == pytest.approx(math.log(2))
    assert np.isnan(information.entropy([[NAN, 0.0], [0.0, 0.0]], reduction="mean"))


def test_means_of_rows_refuse_what_they_cannot_be():
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"unknown reduction 'avg'.*'none', 'sum', 'mean'"):
        information.entropy(x, reduction="avg")
    with pytest.raises(ValueError, match=r'sample_weight weighs the rows.*reduction="mean"'):
        information.entropy(x, sample_weight=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"sample_weight must not be negative.* holds -1.0 at position 1"):
        information.entropy(x, sample_weight=[1.0, -1.0], reduction="mean")
    with pytest.raises(ValueError, match=r"sample_weight has shape \(3,\), not \(2,\)"):
        information.entropy(x, sample_weight=[1.0, 1.0, 1.0], reduction="sum")
    with pytest.raises(TypeError, match="logits have dtype int64"):
        information.entropy(np.zeros((2, 3), int))


# ---------------------------------------------------------------- divergence


def exact_divergence(a, b, temperature=1.0, distribution=False):
    """By the definition, with digits to spare: its terms may be 10^300 times as large as their sum."""
    with mp.workdps(700):
        t = mp.mpf(float(temperature))
        p = [mp.mpf(float(v)) if distribution else mp.exp(mp.mpf(float(v)) / t) for v in a]
        q = [mp.exp(mp.mpf(float(v)) / t) for v in b]
        p, q = ([v / mp.fsum(m) for v in m] for m in (p, q))
        return mp.fsum(x * mp.log(x / y) for x, y in zip(p, q, strict=True) if x)


def pairs(n, seed):
    """Logits, and others that differ by 1e-14 to 300, in all or some classes, and by a constant."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        classes = int(rng.integers(2, 9))
        a = rng.normal(size=classes) * 10 ** rng.uniform(-2, 2.3)
        h = rng.normal(size=classes) * 10 ** rng.uniform(-14, 2.5)
        if i % 4 == 0:
            h[rng.random(classes) < 0.5] = 0
        yield a, a + h + rng.choice([0.0, 0.0, 1000.0, -3e5])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_keeps_its_relative_accuracy(temperature):
    """However near the two are; 50 units of roundoff, because an exponent of 100 is off by as many."""
    seen = []
    for a, b in pairs(60, seed=int(temperature)):
        got = float(information.kl_divergence(a, b, temperature=temperature))
        want = exact_divergence(a, b, temperature)
        seen.append(float(want))
        assert abs(got - want) <= 50 * 2.0**-53 * want + 1e-300, (a, b)
    assert min(s for s in seen if s) < 1e-20  # where p log p - p log q has not a digit
    assert max(seen) > 10


def test_divergence_of_a_distribution_is_that_of_probabilities_a_few_ulp_away():
    for b, a in pairs(60, seed=3):
        p = softmax(a)
        got = float(information.kl_divergence(p, b, p_is="distribution"))
        want = exact_divergence(p, b, distribution=True)
        # A relative change delta of p changes D by sqrt(2 D) delta + delta^2 at most, near D = 0.
        delta = 10 * 2.0**-53 * (1 + np.abs(np.log(p[p > 0])).max())
        assert abs(got - want) <= delta * (want + mp.sqrt(2 * want)) + delta**2


def test_divergence_at_the_edges():
    kl = information.kl_divergence
    x, _ = sample((5, 4))
    assert (kl(x, x) == 0).all()
    assert (kl(x, np.round(x, 3) + 0.0) > 0).all()
    assert (kl(np.ldexp(x, -20), np.ldexp(x, -20) + 8.0) < 1e-25).all()  # a constant; the sum is rounded
    assert (kl(np.round(x), np.round(x) - 1e9) == 0).all()
    assert (kl(np.zeros((3, 1)), np.ones((3, 1))) == 0).all()  # one class
    a = [
        [0, 0, -INF],
        [0, 0, 0],
        [0, -INF, -INF],
        [-INF] * 3,
        [NAN, 0, 0],
        [0, 0, 0],
        [0, INF, 0],
        [0, -900, 0],
    ]
    b = [[0, 0, 0], [0, 0, -INF], [0, 0, -INF], [0, 0, 0], [0, 0, -INF], [-INF] * 3, [0, 0, 0], [0, 0, 0]]
    want = [math.log(1.5), INF, math.log(2), NAN, NAN, NAN, NAN, math.log(1.5)]
    np.testing.assert_allclose(kl(a, b), want, rtol=1e-15)
    np.testing.assert_allclose(kl(b, a)[:3], [INF, math.log(1.5), INF], rtol=1e-15)
    assert np.isnan(kl(b, a)[3:7]).all()
    assert kl(b, a)[7] == pytest.approx(300 - math.log(1.5), rel=1e-14)  # sum of p (log p + 900 ...)
    assert kl([[0.0, 1.0, 1e308]], [[1e308, 0.0, 0.0]])[0] == pytest.approx(1e308)
    p = np.array([[0.25, 0.75, 0.0], [0.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
    q = np.log([[0.5, 0.25, 0.25]] * 3)
    want = 0.25 * math.log(0.5) + 0.75 * math.log(3)
    np.testing.assert_allclose(kl(p, q, p_is="distribution"), [want, NAN, want], rtol=1e-15)
    assert kl(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    assert np.isnan(kl(np.zeros((0, 3)), np.zeros((0, 3)), reduction="mean"))


def test_divergence_takes_any_layout_dtype_and_blocks(monkeypatch):
    kl = information.kl_divergence
    a, _ = sample((7, 5, 3), seed=1)
    b, _ = sample((7, 5, 3), seed=2)
    want = kl(a, b)
    assert want.shape == (7, 5)
    assert want[2, 3] == kl(a[2, 3], b[2, 3])
    np.testing.assert_array_equal(kl(np.moveaxis(a, -1, 1).copy(), np.moveaxis(b, -1, 1), axis=1), want)
    np.testing.assert_array_equal(kl(a.astype(">f8"), b[:, ::-1][:, ::-1]), want)
    narrow = kl(a.astype("f4"), b.astype("f4"))
    assert narrow.dtype == np.float32
    np.testing.assert_array_equal(
        narrow, kl(a.astype("f4").astype("f8"), b.astype("f4").astype("f8")).astype("f4")
    )
    u = np.arange(35.0).reshape(7, 5)
    np.testing.assert_allclose(
        kl(a, b, reduction="mean", sample_weight=u), (want * u).sum() / u.sum(), rtol=1e-14
    )
    monkeypatch.setattr(divergence, "_BLOCK", 7)  # two rows at a time
    np.testing.assert_array_equal(kl(a, b), want)


def test_divergence_refuses():
    kl = information.kl_divergence
    x = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"p has shape \(3,\), logits \(2, 3\): nothing broadcasts"):
        kl(np.zeros(3), x)
    with pytest.raises(TypeError, match="p has dtype int64"):
        kl(np.zeros((2, 3), int), x)
    with pytest.raises(ValueError, match=r"p must not be negative.*-0.5 at position \(1, 2\)"):
        kl(np.array([[1.0, 0, 0], [1.0, 0.5, -0.5]]), x, p_is="distribution")
    with pytest.raises(ValueError, match="unknown p_is 'probs'"):
        kl(x, x, p_is="probs")
    with pytest.raises(ValueError, match="temperature must be finite and greater than 0"):
        kl(x, x, temperature=0.0)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_divergence_by_the_arithmetic_of_other_libraries(library):
    """What arrays on a device take: here on the host, where the same functions are."""
    if library == "torch":
        xp = pytest.importorskip("torch")
        array, tolerance = xp.from_numpy, 1e-13
    else:
        jax = pytest.importorskip("jax")
        xp, array, tolerance = jax.numpy, jax.numpy.asarray, 1e-5  # 64 bits are off by default
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4, 6, 3)).astype("f4")
    b = a + rng.normal(size=a.shape).astype("f4") * np.float32([[[1e-3]], [[1]], [[30]], [[0]]])
    a[1, 2, 0] = b[1, 1, 1] = -INF
    a[1, 0, 2] = NAN
    for p, p_is in ((a, "logits"), (softmax(a), "distribution")):
        want = information.kl_divergence(p, b, axis=1, temperature=2.0, p_is=p_is)
        got = divergence.wide_divergence(xp, array(p), array(b), 1, 2.0, p_is, "float32")
        assert str(got.dtype).endswith("float32")
        far = np.isfinite(want) & (want < 1e-7) & (p_is == "distribution")  # where float32 has no digits
        np.testing.assert_allclose(np.asarray(got)[~far], want[~far], rtol=max(tolerance, 1e-7), atol=1e-12)


# ---------------------------------------------------------------- likelihood


def test_perplexity_and_bits(on):
    x, y = sample()
    y[::5] = -100
    u = np.linspace(0, 2, 40)
    options = {"ignore_index": -100, "sample_weight": u, "temperature": 1.5}
    p = softmax(x / 1.5)[np.arange(40), np.where(y < 0, 0, y)]
    counted = y >= 0
    nats = -(u * np.log(p))[counted].sum() / u[counted].sum()
    np.testing.assert_allclose(information.perplexity(x, y, **options), np.exp(nats), rtol=1e-13)
    np.testing.assert_allclose(information.bits_per_token(x, y, **options), np.log2(np.exp(nats)), rtol=1e-13)
    np.testing.assert_allclose(information.perplexity_of([nats, 800.0]), [np.exp(nats), INF], rtol=1e-13)
    np.testing.assert_allclose(information.bits_of([math.log(2), 0.0]), [1.0, 0.0])


def test_perplexity_of_extremes(on):
    assert information.perplexity(np.zeros((2, 1)), [0, 0]) == 1
    assert information.bits_per_token(np.zeros((2, 1)), [0, 0]) == 0
    assert np.isnan(information.perplexity(np.zeros((2, 3)), [-100, -100], ignore_index=-100))
    assert information.perplexity([[0.0, -INF]], [1]) == INF
    assert information.perplexity([[0.0, -INF]], [0]) == 1
    with pytest.raises(sce.LabelError, match="label 3 at position 1"):
        information.bits_per_token(np.zeros((2, 3)), [0, 3])


# ---------------------------------------------------------------- calibration


def bins_by_hand(confidence, correct, weight, edges):
    """The definition, a row at a time."""
    total = len(edges) - 1
    sums = np.zeros((3, total))
    for c, hit, u in zip(confidence, correct, weight, strict=True):
        b = next(b for b in range(total) if edges[b] < c <= edges[b + 1])
        sums[:, b] += u, u * c, u * hit
    error = sum(abs(hit - c) for _, c, hit in sums.T) / sums[0].sum()
    return sums, error


def same_bins(a, b):
    for got, want in zip(a, b, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bins_are_their_definition(on, strategy, dtype):
    x, y = sample((300, 4), dtype=dtype)
    y = np.where(np.arange(300) % 2, x.argmax(axis=1), y)
    y[::7] = -1
    u = np.random.default_rng(1).integers(0, 4, 300).astype(float)
    options = {"sample_weight": u, "ignore_index": -1, "bins": 6, "strategy": strategy}
    seen = information.reliability(x, y, **options)
    p = softmax(x.astype(np.float64))
    counted = y >= 0
    if strategy == "uniform":
        np.testing.assert_array_equal(seen.edges, np.linspace(0, 1, 7))
    edges = seen.edges.copy()
    edges[1:-1] *= 1 + 1e-6 * (strategy == "quantile")  # edges are confidences, of another softmax than p
    sums, error = bins_by_hand(p.max(axis=1)[counted], (p.argmax(axis=1) == y)[counted], u[counted], edges)
    np.testing.assert_array_equal(seen.weight, sums[0])
    held = sums[0] > 0
    np.testing.assert_allclose(seen.confidence[held], (sums[1] / np.where(held, sums[0], 1))[held], rtol=1e-6)
    np.testing.assert_allclose(seen.accuracy[held], (sums[2] / np.where(held, sums[0], 1))[held], rtol=1e-12)
    assert np.isnan(seen.confidence[~held]).all()
    tolerance = 1e-6 if dtype == np.float32 else 1e-12
    assert seen.error == pytest.approx(error, abs=tolerance)
    assert information.expected_calibration_error(x, y, **options) == seen.error
    assert seen.worst == np.abs(seen.accuracy - seen.confidence)[held].max()
    # Weights are repetitions.
    often = np.repeat(np.arange(300), u.astype(int))
    again = information.reliability(x[often], y[often], ignore_index=-1, bins=6, strategy=strategy)
    same_bins(again, seen)
    # The order of rows does not count.
    turned = information.reliability(x[::-1], y[::-1], **{**options, "sample_weight": u[::-1]})
    same_bins(turned, seen)


def test_bins_of_equal_weight_have_it(on):
    x, y = sample((600, 5))
    assert (information.reliability(x, y, bins=8, strategy="quantile").weight == 75).all()
    tied = information.reliability(np.zeros((10, 2)), np.zeros(10, int), bins=4, strategy="quantile")
    assert tied.weight.tolist() == [10, 0, 0, 0]  # rows of equal confidence share a bin
    assert tied.error == 0.5


def test_edges_belong_to_the_bin_below(on):
    x = np.log([[0.5, 0.5], [0.75, 0.25], [0.7500001, 0.2499999]])
    seen = information.reliability(x, [0, 0, 0], bins=4)
    assert seen.weight.tolist() == [0, 1, 1, 1]


def test_calibrated_predictions_have_little_error_and_temperature_shows(on):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40_000, 3)) * 1.5
    y = (x + rng.gumbel(size=x.shape)).argmax(axis=1)  # labels drawn from softmax(x)
    assert information.expected_calibration_error(x, y) < 0.01
    assert information.expected_calibration_error(3 * x, y) > 0.1
    assert information.expected_calibration_error(3 * x, y, temperature=3.0) < 0.01
    grid = x.reshape(200, 200, 3)
    assert information.expected_calibration_error(
        np.moveaxis(grid, -1, 0), y.reshape(200, 200), axis=0
    ) == pytest.approx(information.expected_calibration_error(x, y), rel=1e-12)


def test_calibration_of_nothing(on):
    for x, y, options in (
        (np.zeros((0, 3)), np.zeros(0, int), {}),
        (np.zeros((2, 3)), [-1, -1], {"ignore_index": -1}),
        (np.zeros((2, 3)), [0, 1], {"sample_weight": [0.0, 0.0]}),
    ):
        for strategy in ("uniform", "quantile"):
            seen = information.reliability(x, y, strategy=strategy, **options)
            assert seen.weight.sum() == 0
            assert np.isnan([seen.error, seen.worst, *seen.confidence, *seen.accuracy]).all()
    assert information.expected_calibration_error(np.zeros((4, 1)), [0] * 4) == 0  # one class
    assert information.expected_calibration_error(np.zeros(4), 0) == 0.75  # one row
    rows = [[NAN, 0.0], [0.0, 0.0]]
    assert np.isnan(information.expected_calibration_error(rows, [0, 0]))
    assert information.expected_calibration_error(rows, [-1, 0], ignore_index=-1) == 0.5
    soft = information.expected_calibration_error([[1.0, 0.0]], [[0.3, 0.7]])
    assert soft == pytest.approx(1 / (1 + math.exp(-1)))


def test_calibration_refuses():
    x, y = np.zeros((2, 3)), [0, 1]
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        information.reliability(x, y, bins=0)
    with pytest.raises(TypeError, match=r"bins must be an integer, got 2\.5"):
        information.reliability(x, y, bins=2.5)
    with pytest.raises(ValueError, match=r"unknown strategy 'mass'.*'uniform'.*'quantile'"):
        information.reliability(x, y, strategy="mass")
    with pytest.raises(ValueError, match=r"sample_weight must not be negative here.*-2.0 at position 0"):
        information.reliability(x, y, sample_weight=[-2.0, 1.0])
    with pytest.raises(sce.LabelError, match="label 7 at position 1"):
        information.reliability(x, [0, 7])


# ---------------------------------------------------------------- mutual information


def information_of(logits, target, trained_prior=None, **options):
    """Of logits that hold no prior, unless said otherwise."""
    return information.mutual_information(logits, target, trained_prior=trained_prior, **options)


def joint(seed=0, cells=7, classes=4):
    """A joint distribution p(x, y) of two discrete variables, and its information by the definition."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(cells * classes, 0.5)).reshape(cells, classes)
    px, py = p.sum(axis=1, keepdims=True), p.sum(axis=0)
    return p, py, float((p * np.log(p / (px * py))).sum())


def every_pair(p):
    """Each (x, y) once: the cell of x, the label, its probability."""
    x, y = (i.reshape(-1) for i in np.indices(p.shape))
    return x, y, p.reshape(-1)


def test_information_of_a_table_is_exact(on):
    """With the true log p(x | y) as logits and the true weights there is no error of fit or sampling left."""
    p, py, want = joint()
    x, y, u = every_pair(p)
    corrected = np.log(p / py) + np.linspace(-3, 5, len(p))[:, None]  # a term of x alone does not matter
    estimate = information_of
    assert estimate(corrected[x], y, sample_weight=u) == pytest.approx(want, rel=1e-12)
    assert estimate(corrected[x], y, sample_weight=u, prior=py) == pytest.approx(want, rel=1e-12)
    plain = np.log(p / p.sum(axis=1, keepdims=True))  # log p(y | x), which holds the prior
    assert estimate(plain[x], y, sample_weight=u, trained_prior=py) == pytest.approx(want, rel=1e-12)
    assert estimate(plain[x], y, sample_weight=u) < want - 0.01  # the prior counted twice
    z = np.tanh(plain / 3) * 3
    unbounded = np.arctanh(z[x] / 4) * 4
    assert estimate(2 * unbounded, y, sample_weight=u, trained_prior=py, softcap=4.0, temperature=2.0) == (
        pytest.approx(estimate(z[x], y, sample_weight=u, trained_prior=py), rel=1e-12)
    )


def test_information_under_another_prior(on):
    """The same p(x | y), other class frequencies: the correction alone changes."""
    p, py, _ = joint()
    logits = np.log(p / py)
    other = np.array([0.1, 0.2, 0.3, 0.4])
    shifted = p / py * other
    px = shifted.sum(axis=1, keepdims=True)
    want = float((shifted * np.log(shifted / (px * other))).sum())
    x, y, u = every_pair(shifted)
    assert information_of(logits[x], y, sample_weight=u) == pytest.approx(want, rel=1e-12)
    held = np.log(p / p.sum(axis=1, keepdims=True))[x]  # trained plainly, under py
    options = {"sample_weight": u, "prior": other}
    assert information_of(held, y, trained_prior=py, **options) == pytest.approx(want, rel=1e-12)
    assert information_of(held, y, trained_prior=other, **options) < want - 0.01


def test_information_is_bounded_by_the_entropy_of_the_labels(on):
    y = np.repeat(np.arange(3), [1, 2, 5])
    prior = np.array([1, 2, 5]) / 8
    h = -(prior * np.log(prior)).sum()
    assert information_of(1e3 * np.eye(3)[y], y) == pytest.approx(h, rel=1e-12)
    assert information_of(np.zeros((8, 3)), y) == pytest.approx(0, abs=1e-12)
    assert information_of(-1e3 * np.eye(3)[y], y) < 0


def test_information_of_singular_cases(on):
    estimate = information_of
    assert estimate(np.ones((5, 1)), [0] * 5) == 0
    assert estimate([[3.0, -2.0, 1.0]], [1]) == 0
    assert estimate([3.0, -2.0, 1.0], 1) == 0
    assert np.isnan(estimate(np.zeros((2, 3)), [-1, -1], ignore_index=-1))
    assert np.isnan(estimate(np.zeros((2, 3)), [0, 1], sample_weight=[0.0, 0.0]))
    assert np.isnan(estimate(np.zeros((0, 3)), np.zeros(0, int)))
    assert np.isnan(estimate([[NAN, 0.0], [0.0, 0.0]], [0, 1]))
    # A class that nobody has is as good as no class.
    x, y = sample((50, 4))
    y %= 3
    assert estimate(x, y) == pytest.approx(estimate(x[:, :3], y), rel=1e-12)
    assert estimate(x, y, prior=[0.5, 0.5, 0.0, 0.0]) == -INF
    rows = [[9.0, 0.0, NAN], [0.0, 9.0, 0.0], [NAN] * 3]
    assert estimate(rows[1:] + rows[1:2], [1, 7, 0], ignore_index=7) < 1


def test_information_ignores_what_it_is_told_to(on):
    x, y = sample((60, 4))
    u = np.random.default_rng(5).uniform(0, 1, 60) * (np.arange(60) % 3 > 0)
    y[10:20] = 9
    kept = (u > 0) & (y != 9)
    want = information_of(x[kept], y[kept], sample_weight=u[kept])
    got = information_of(x, y, sample_weight=u, ignore_index=9)
    assert got == pytest.approx(want, rel=1e-12)


def test_information_refuses():
    estimate = information_of
    x, y = np.zeros((3, 2)), [0, 1, 1]
    with pytest.raises(ValueError, match=r"prior sums to 0.9, not 1: divide it by its sum"):
        estimate(x, y, prior=[0.5, 0.4])
    with pytest.raises(ValueError, match=r"prior must not be negative.*-0.5 at position 1"):
        estimate(x, y, prior=[1.5, -0.5])
    with pytest.raises(ValueError, match=r"trained_prior has shape \(3,\), not \(2,\)"):
        estimate(x, y, trained_prior=[0.2, 0.3, 0.5])
    with pytest.raises(ValueError, match=r"trained_prior has nothing of class 0, prior has 0.333333"):
        estimate(x, y, trained_prior=[0.0, 1.0])
    with pytest.raises(ValueError, match="prior must be finite"):
        estimate(x, y, prior=[NAN, 1.0])
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'trained_prior'"):
        information.mutual_information(x, y)
    with pytest.raises(ValueError, match="takes class indices"):
        estimate(x, np.full((3, 2), 0.5))
    with pytest.raises(ValueError, match="sample_weight must not be negative"):
        estimate(x, y, sample_weight=[1.0, -1.0, 1.0])
    with pytest.raises(sce.LabelError, match="label 2 at position 2"):
        estimate(x, [0, 1, 2])


def test_information_of_a_plain_softmax_does_not_count_the_prior_twice(on):
    """A classifier as most are, of imbalanced data: exact if told what it was trained on, else too small."""
    p, _, _ = joint(classes=3)
    p = p * [0.9, 0.08, 0.02]
    p /= p.sum()
    py = p.sum(axis=0)
    want = float((p * np.log(p / (p.sum(axis=1, keepdims=True) * py))).sum())
    x, y, u = every_pair(p)
    posterior = np.log(p / p.sum(axis=1, keepdims=True))[x]
    assert information_of(posterior, y, py, sample_weight=u) == pytest.approx(want, rel=1e-12)
    assert information_of(posterior, y, sample_weight=u) < want - 0.01
