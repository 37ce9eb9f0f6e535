"""The reference backend against evidence that owes it nothing.

Every other backend is held to the reference, so the reference needs its own oracle. Here: the formulas of
docs/math.md evaluated naively with 60 digits, finite differences of that loss, closed forms, identities,
published values and other libraries.

How errors are bounded. `oracle` returns each value with a `scale`: the sum of the absolute values of the
terms that make it up, magnified by R where rounding z matters (a z of size 30 rounded in its last place moves
exp(z) by 30 ulp; with no temperature, soft cap and bias z is exact and R is 0). The error must stay below
K units of roundoff of that scale. Where nothing cancels (loss, log-probability and gradient of an index
target, entropy, softmax) the scale is the value itself times (1 + R), so that bound is strictly relative.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss

import sce
from sce.backend import Answer, Problem
from sce_backends import reference

U = 2.0**-53  # unit roundoff of float64
K = 8  # exp, log1p and cosh are good to about 1 ulp; a result chains at most three, plus a few roundings
MP = mpmath.MPContext()
MP.dps = 60
INF = float("inf")
PER_ROW = ("loss", "z_loss", "lse", "log_prob", "entropy")
MATRICES = ("grad", "hess_diag")
FIELDS = (*PER_ROW, *MATRICES, "denominator")


def exact(v: object) -> mpmath.mpf:
    """The number itself: float64, and longdouble as a sum of two float64."""
    high = float(v)  # type: ignore[arg-type]
    low = float(v - high) if math.isfinite(high) else 0.0  # type: ignore[operator]
    return MP.mpf(high) + MP.mpf(low)


def times(weight: mpmath.mpf, value: mpmath.mpf) -> mpmath.mpf:
    """0 * inf = 0."""
    return MP.zero if weight == 0 else weight * value


def transform(x, k, o):
    """z_k of one row, from design: cap * tanh(x / (T cap)) + b."""
    t = exact(o.temperature)
    v = x[k] / t
    if o.softcap is not None and MP.isfinite(v):
        cap = exact(o.softcap)
        v = cap * MP.tanh(v / cap)
    return v if o.logit_bias is None else v + exact(o.logit_bias[k])


def options(classes, given):
    o = SimpleNamespace(
        class_weight=None, sample_weight=None, ignore_index=None, label_smoothing=0.0, temperature=1.0,
        softcap=None, logit_bias=None, z_loss=0.0, reduction="mean", denominator=None, grad_scale=1.0,
    )  # fmt: skip
    vars(o).update(given)
    return o


def one_hot(target, classes):
    if np.issubdtype(np.asarray(target).dtype, np.integer):
        return [[MP.one if k == y else MP.zero for k in range(classes)] for y in target]
    return [[exact(v) for v in row] for row in target]


def coefficients(target, shape, o):
    """q, |q|, s and D with its absolute sum, row by row."""
    n, classes = shape
    y = one_hot(target, classes)
    w = [MP.one] * classes if o.class_weight is None else [exact(v) for v in o.class_weight]
    u = [MP.one] * n if o.sample_weight is None else [exact(v) for v in o.sample_weight]
    eps = exact(o.label_smoothing)
    q = [[w[k] * ((1 - eps) * y[i][k] + eps / classes) for k in range(classes)] for i in range(n)]
    q_abs = [
        [abs(w[k]) * ((1 - eps) * abs(y[i][k]) + eps / classes) for k in range(classes)] for i in range(n)
    ]
    index = np.asarray(target).dtype.kind in "iu"
    valid = [not (index and target[i] == o.ignore_index) for i in range(n)]
    weights = [u[i] * (w[int(target[i])] if index else 1) for i in range(n) if valid[i]]
    d, d_abs = MP.one, MP.one
    if o.reduction == "mean":
        d, d_abs = MP.fsum(weights), MP.fsum(weights, absolute=True)
        if o.denominator is not None:
            d, d_abs = exact(o.denominator), abs(exact(o.denominator))
    s = [u[i] / d if valid[i] else MP.zero for i in range(n)]
    return y, q, q_abs, s, d, d_abs


def row_loss(x, q, lam, o):
    """The loss of one row before its factor s."""
    z = [transform(x, k, o) for k in range(len(x))]
    lse = MP.log(MP.fsum(MP.exp(v) for v in z))
    return MP.fsum(times(q[k], lse - z[k]) for k in range(len(x))) + lam * lse**2


def oracle(logits, target, **given):
    """Each field as (values, scales), nested lists; see the module's docstring."""
    n, classes = logits.shape
    o = options(classes, given)
    y, q, q_abs, s, d, d_abs = coefficients(target, logits.shape, o)
    lam, g = exact(o.z_loss), exact(o.grad_scale)
    t = exact(o.temperature)
    got = {name: ([], []) for name in (*FIELDS, "argmax")}
    got["denominator"] = (d, d_abs)
    for i in range(n):
        x = [exact(v) for v in logits[i]]
        z = [transform(x, k, o) for k in range(classes)]
        lse = MP.log(MP.fsum(MP.exp(v) for v in z))
        p = [MP.exp(v - lse) for v in z]
        above = lse - max(z)  # log of the sum relative to the maximum
        finite = [k for k in range(classes) if MP.isfinite(z[k])]
        rough = MP.zero
        for k in finite:
            v = (abs(x[k] / t) if o.temperature != 1 else 0) + (abs(z[k]) if o.logit_bias is not None else 0)
            # two roundings in the argument of tanh, 2 ulp in tanh, one in the product
            v += 5 * abs(z[k] - exact(0 if o.logit_bias is None else o.logit_bias[k])) if o.softcap else 0
            rough = max(rough, 2 * v)
        r = 1 + 1.5 * rough  # 1.5: off the maximum lse - z is at least log 2, and 1 / log 2 < 1.5
        lse_scale = abs(lse) + above + rough
        share = abs(s[i]) * (1 if s[i] == 0 else d_abs / abs(d))
        mass, mass_abs = MP.fsum(q[i]), MP.fsum(q_abs[i])
        put = lambda name, value, scale: (got[name][0].append(value), got[name][1].append(scale))  # noqa: E731
        core = MP.fsum(times(q[i][k], lse - z[k]) for k in range(classes))
        core_scale = MP.fsum(times(q_abs[i][k], lse - z[k]) for k in range(classes)) * r
        zl, zl_scale = lam * lse**2, 2 * lam * abs(lse) * lse_scale
        put("loss", times(s[i], core + zl), times(share, core_scale + zl_scale))
        put("z_loss", times(s[i], zl), times(share, zl_scale))
        put("lse", lse, lse_scale)
        left_out = s[i] == 0
        put("log_prob", MP.zero if left_out else -MP.fsum(times(y[i][k], lse - z[k]) for k in range(classes)),
            MP.fsum(times(abs(y[i][k]), lse - z[k]) for k in range(classes)) * r)  # fmt: skip
        entropy = MP.fsum(times(p[k], lse - z[k]) for k in range(classes))
        put("entropy", entropy, entropy * r)
        got["argmax"][0].append(max(range(classes), key=lambda k: z[k]))
        grad, grad_scale, hess, hess_scale = [], [], [], []
        for k in range(classes):
            slope, curve, bend = 1 / t, MP.zero, MP.one
            if o.softcap is not None:
                cap = exact(o.softcap)
                arg = x[k] / (t * cap)
                tanh = MP.tanh(arg)
                slope = (1 - tanh**2) / t
                curve = -2 * tanh * (1 - tanh**2) / (t * t * cap)
                # 1 / cosh^2: three roundings of its own, and the two in its argument times 2 |argument|
                bend = 1.5 + 2 * abs(arg) if MP.isfinite(arg) else MP.one
            pull, pull_scale = mass + 2 * lam * lse, mass_abs + 2 * lam * lse_scale
            dz = pull * p[k] - q[i][k]
            rest = mass_abs - q_abs[i][k]
            # no p - 1 here: at an index target this is (1 - p), at the others p
            dz_scale = (rest * p[k] + q_abs[i][k] * (1 - p[k]) + 2 * lam * lse_scale * p[k]) * r
            h = pull * p[k] * (1 - p[k]) + 2 * lam * p[k] ** 2
            h_scale = (pull_scale * p[k] * (1 - p[k]) + 2 * lam * p[k] ** 2) * r
            grad.append(s[i] * g * dz * slope)
            grad_scale.append(share * abs(g) * dz_scale * slope * bend)
            hess.append(s[i] * (h * slope**2 + dz * curve))
            hess_scale.append(share * (h_scale * slope**2 + dz_scale * abs(curve)) * bend**2)
        put("grad", grad, grad_scale)
        put("hess_diag", hess, hess_scale)
    if o.reduction != "none":
        for name in ("loss", "z_loss"):
            got[name] = (MP.fsum(got[name][0]), MP.fsum(got[name][1]))
    return got


def assert_close(got, want, scale, roundoff=U, factor=K, name=""):
    """|got - want| <= factor * roundoff * scale, elementwise; infinities and zeros exactly."""
    got = np.asarray(got)
    if isinstance(want, list):
        assert got.shape[0] == len(want), name
        for g, w, s in zip(got, want, scale, strict=True):
            assert_close(g, w, s, roundoff, factor, name)
        return
    if not MP.isfinite(want):
        assert np.array_equal(got, float(want), equal_nan=True), f"{name}: {got} is not {want}"
        return
    assert np.isfinite(got), f"{name}: {got} is not finite, expected {MP.nstr(want, 17)}"
    tiny = np.finfo(got.dtype).smallest_subnormal if got.dtype.kind == "f" else 0
    error = abs(exact(got[()]) - want)
    limit = factor * roundoff * scale + exact(tiny)
    units = error / (roundoff * scale) if scale else MP.inf
    assert error <= limit, f"{name}: {got} is {MP.nstr(units, 4)} units off {MP.nstr(want, 20)}"


def assert_agrees(logits, target, **given):
    seen = sce.evaluate(logits, target, outputs=(*FIELDS, "argmax"), backend="reference", **given)
    want = oracle(logits, target, **given)
    for name in FIELDS:
        assert_close(getattr(seen, name), *want[name], name=name)
    assert seen.argmax.tolist() == want["argmax"][0], "argmax"


# ---------------------------------------------------------------- (a) 60 digits, over the option lattice

N, C = 4, 5
TARGETS = ("index", "distribution", "signed")
OPTIONS = {
    "temperature": (0.7, 3.0),
    "softcap": (4.0, 30.0),
    "logit_bias": ([0.3, -2.0, 0.1, 5.0, -0.7], [-INF, 0.0, 1.0, 0.5, -0.25]),
    "class_weight": ([0.5, 2.0, 1.1, 0.0, 3.0], [1.0, -0.4, 2.0, 0.3, 0.7]),
    "sample_weight": ([0.3, 0.0, 2.0, 1.0], [1.0, -0.5, 0.25, 3.0]),
    "ignore_index": (2, -100),
    "label_smoothing": (0.1, 1.0),
    "z_loss": (1e-4, 0.3),
    "reduction": ("none", "sum"),
    "denominator": (7.5, -2.0),
    "grad_scale": (1024.0, -0.3),
}


def make(seed, kind, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((N, C)) * scale
    if kind == "index":
        return logits, np.array([2, 0, 4, 1])
    soft = rng.standard_normal((N, C)) if kind == "signed" else rng.random((N, C))
    return logits, soft


def legal(names, kind):
    if "denominator" in names and "reduction" in names:
        return False
    return not ("ignore_index" in names and kind != "index")


LATTICE = [
    pytest.param(kind, names, id=f"{kind}-{'+'.join(names) or 'plain'}")
    for kind in TARGETS
    for size in (0, 1, 2)
    for names in itertools.combinations(OPTIONS, size)
    if legal(names, kind)
]


@pytest.mark.parametrize(("kind", "names"), LATTICE)
def test_options_alone_and_in_pairs_match_sixty_digits(kind, names):
    for choice in (0, 1):
        logits, target = make(len(names) * 10 + choice, kind)
        assert_agrees(logits, target, **{name: OPTIONS[name][choice] for name in names})


@pytest.mark.parametrize("seed", range(60))
def test_random_option_sets_match_sixty_digits(seed):
    rng = np.random.default_rng(1000 + seed)
    kind = TARGETS[seed % 3]
    names = [name for name in OPTIONS if rng.random() < 0.5]
    if "denominator" in names and "reduction" in names:
        names.remove("reduction" if seed % 2 else "denominator")
    if kind != "index" and "ignore_index" in names:
        names.remove("ignore_index")
    logits, target = make(seed, kind, scale=float(rng.choice([0.01, 1.0, 12.0])))
    assert_agrees(logits, target, **{name: OPTIONS[name][rng.integers(2)] for name in names})


def test_many_classes_and_blocks_match_sixty_digits():
    """More elements than one block of the reference, so that tiles meet; a few rows are checked."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((700, 1000)) * 4
    target = rng.integers(0, 1000, 700)
    seen = sce.evaluate(
        logits, target, outputs=(*PER_ROW, *MATRICES), reduction="none", z_loss=1e-3, backend="reference"
    )
    rows = [0, 261, 262, 263, 699]
    want = oracle(logits[rows], target[rows], reduction="none", z_loss=1e-3)
    for name in (*PER_ROW, *MATRICES):
        # 1000 terms: NumPy's pairwise sum adds log2(1000 / 8) + 8 roundings
        assert_close(np.asarray(getattr(seen, name))[rows], *want[name], factor=K + 16, name=name)


def test_sum_and_mean_add_up_the_rows():
    rng = np.random.default_rng(6)
    logits, target = rng.standard_normal((70_000, 6)), rng.integers(0, 6, 70_000)
    rows = sce.cross_entropy(logits, target, reduction="none", backend="reference")
    total = math.fsum(rows)
    # positive terms, pairwise within a tile: far fewer than 64 roundings deep
    assert (
        abs(sce.cross_entropy(logits, target, reduction="sum", backend="reference") - total) <= 64 * U * total
    )
    mean = sce.cross_entropy(logits, target, backend="reference")
    assert abs(mean - total / 70_000) <= 64 * U * mean


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_softmax_and_relatives_match_sixty_digits(temperature):
    logits, _ = make(7, "index", scale=8.0)
    p = sce.softmax(logits, temperature=temperature, backend="reference")
    log_p = sce.log_softmax(logits, temperature=temperature, backend="reference")
    lse = sce.logsumexp(logits, temperature=temperature, backend="reference")
    for i in range(N):
        z = [exact(v) / exact(temperature) for v in logits[i]]
        want = MP.log(MP.fsum(MP.exp(v) for v in z))
        rough = 1 + (0 if temperature == 1 else 6 * max(abs(v) for v in z))
        assert_close(lse[i], want, abs(want) + (want - max(z)) + rough - 1, name="logsumexp")
        for k in range(C):
            assert_close(p[i, k], MP.exp(z[k] - want), MP.exp(z[k] - want) * rough, name="softmax")
            assert_close(log_p[i, k], z[k] - want, (want - z[k]) * rough, name="log_softmax")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_narrow_logits_are_computed_in_float64_and_rounded_once(dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    logits, target = make(8, "index")
    narrow = logits.astype(kind)
    seen = sce.evaluate(
        narrow, target, outputs=("loss", "grad", "entropy"), reduction="none", backend="reference"
    )
    want = sce.evaluate(
        narrow.astype(np.float64), target, outputs=("loss", "grad", "entropy"), reduction="none",
        backend="reference",
    )  # fmt: skip
    assert seen.loss.dtype == seen.entropy.dtype == np.float32
    assert seen.grad.dtype == kind
    assert np.array_equal(seen.loss, want.loss.astype(np.float32))
    assert np.array_equal(seen.grad, want.grad.astype(kind))
    assert np.array_equal(seen.entropy, want.entropy.astype(np.float32))


# ---------------------------------------------------------------- (b) finite differences of the loss

FULL = {
    "temperature": 1.7,
    "softcap": 6.0,
    "logit_bias": [0.3, -2.0, 0.1, 1.0, -0.7],
    "z_loss": 0.2,
    "label_smoothing": 0.15,
    "class_weight": [0.5, 2.0, 1.1, 0.2, 3.0],
    "sample_weight": [0.3, 1.0, -2.0, 1.0],
}
DIFFERENCES = [
    {}, {"temperature": 0.6}, {"softcap": 3.0}, {"softcap": 3.0, "temperature": 0.6}, {"z_loss": 0.3},
    {"label_smoothing": 0.2}, {"class_weight": FULL["class_weight"], "label_smoothing": 0.2},
    {"softcap": 2.0, "z_loss": 0.3}, FULL,
]  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("given", DIFFERENCES, ids=lambda g: "+".join(g) or "plain")
def test_gradient_and_hessian_are_the_derivatives_of_the_loss(kind, given):
    """Central differences with 60 digits: steps of 1e-15 leave 30 exact digits even in the second."""
    logits, target = make(9, kind)
    seen = sce.evaluate(logits, target, outputs=("grad", "hess_diag"), backend="reference", **given)
    o = options(C, given)
    _, q, _, s, _, _ = coefficients(target, logits.shape, o)
    scale = oracle(logits, target, **given)
    h, lam = MP.mpf("1e-15"), exact(o.z_loss)
    for i in range(N):
        x = [exact(v) for v in logits[i]]
        middle = row_loss(x, q[i], lam, o)
        for k in range(C):
            up, down = (row_loss([*x[:k], x[k] + d, *x[k + 1 :]], q[i], lam, o) for d in (h, -h))
            first, second = s[i] * (up - down) / (2 * h), s[i] * (up - 2 * middle + down) / h**2
            assert_close(seen.grad[i, k], first, scale["grad"][1][i][k], name="grad")
            assert_close(seen.hess_diag[i, k], second, scale["hess_diag"][1][i][k], name="hess_diag")


# ---------------------------------------------------------------- (c) identities


@pytest.mark.parametrize("offset", [1.0, 2.0**27, -(2.0**30)])
def test_a_common_offset_changes_nothing_but_lse(offset):
    """Logits on a grid of 2^-20 stay exact under the offset, so every bit must stay, too."""
    logits, target = make(10, "index")
    logits = np.round(logits * 2**20) / 2**20
    assert np.array_equal((logits + offset) - offset, logits)
    fields = ("loss", "grad", "hess_diag", "log_prob", "entropy", "argmax")
    here = sce.evaluate(logits, target, outputs=fields, label_smoothing=0.1, backend="reference")
    there = sce.evaluate(logits + offset, target, outputs=fields, label_smoothing=0.1, backend="reference")
    for name in fields:
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    lse = sce.logsumexp(logits, backend="reference")
    assert np.allclose(sce.logsumexp(logits + offset, backend="reference"), lse + offset, rtol=2 * U, atol=0)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    "names", [(), ("class_weight",), ("label_smoothing",), ("logit_bias",), ("temperature",)]
)
def test_gradient_rows_sum_to_zero(kind, names):
    logits, target = make(11, kind)
    _, grad = sce.loss_and_grad(
        logits, target, reduction="none", backend="reference", **{n: OPTIONS[n][0] for n in names}
    )
    want = oracle(logits, target, reduction="none", **{n: OPTIONS[n][0] for n in names})
    scale = np.array([[float(v) for v in row] for row in want["grad"][1]])
    assert (np.abs(grad.sum(axis=1)) <= K * U * scale.sum(axis=1)).all()


def test_under_z_loss_gradient_rows_sum_to_its_own_derivative():
    logits, target = make(12, "index")
    _, grad = sce.loss_and_grad(logits, target, z_loss=0.5, reduction="none", backend="reference")
    lse = sce.logsumexp(logits, backend="reference")
    assert np.abs(grad.sum(axis=1) - 2 * 0.5 * lse).max() <= K * U * np.abs(lse).max() * 2


def test_equal_permutations_of_classes_permute_the_answer():
    logits, target = make(13, "distribution")
    order = np.array([3, 0, 4, 1, 2])
    fields = ("loss", "grad", "hess_diag", "lse", "log_prob", "entropy")
    given = {"label_smoothing": 0.2, "z_loss": 0.1, "softcap": 5.0}
    here = sce.evaluate(
        logits, target, outputs=fields, class_weight=np.arange(1.0, 6), backend="reference", **given
    )
    there = sce.evaluate(
        logits[:, order], target[:, order], outputs=fields, class_weight=np.arange(1.0, 6)[order],
        backend="reference", **given,
    )  # fmt: skip
    scale = oracle(logits, target, class_weight=np.arange(1.0, 6), **given)
    for name in fields:
        a, b = np.asarray(getattr(here, name)), np.asarray(getattr(there, name))
        a = a[:, order] if name in MATRICES else a
        bound = np.vectorize(float)(np.array(scale[name][1], dtype=object))
        bound = bound[:, order] if name in MATRICES else bound
        assert (np.abs(a - b) <= 2 * K * U * bound).all(), name


def test_rows_are_independent_bit_for_bit():
    logits, target = make(14, "index")
    order = np.array([2, 0, 3, 1])
    fields = ("loss", "grad", "hess_diag", "lse", "log_prob", "entropy", "argmax", "correct")
    given = {"reduction": "none", "outputs": fields, "backend": "reference", "z_loss": 0.1}
    together = sce.evaluate(logits, target, **given)
    shuffled = sce.evaluate(logits[order], target[order], **given)
    for name in fields:
        assert np.array_equal(getattr(together, name)[order], getattr(shuffled, name)), name
    for i in range(N):
        alone = sce.evaluate(logits[i], target[i], **given)
        for name in fields:
            assert np.array_equal(getattr(together, name)[i], getattr(alone, name)), name


def test_an_index_is_a_one_hot_distribution():
    logits, target = make(15, "index")
    soft = np.eye(C)[target]
    fields = ("loss", "grad", "hess_diag", "log_prob", "argmax", "correct")
    given = {"label_smoothing": 0.1, "z_loss": 0.1, "reduction": "sum", "class_weight": [0.5, 2, 1, 3, 1.5]}
    hard = sce.evaluate(logits, target, outputs=fields, backend="reference", **given)
    loose = sce.evaluate(logits, soft, outputs=fields, backend="reference", **given)
    for name in fields:
        assert np.allclose(getattr(hard, name), getattr(loose, name), rtol=K * U, atol=0), name


def test_two_classes_are_binary_cross_entropy():
    x = np.linspace(-30, 30, 25)
    logits = np.stack([np.zeros_like(x), x], axis=1)
    loss = sce.cross_entropy(logits, np.ones(25, int), reduction="none", backend="reference")
    assert np.allclose(loss, np.logaddexp(0, -x), rtol=8 * U, atol=0)


def test_policy_gradient_is_signed_sample_weights():
    logits, action = make(16, "index")
    advantage = np.array([1.5, -2.0, 0.0, 0.25])
    _, grad = sce.loss_and_grad(logits, action, sample_weight=advantage, reduction="sum", backend="reference")
    want = advantage[:, None] * (scipy.special.softmax(logits, axis=1) - np.eye(C)[action])
    assert np.allclose(grad, want, rtol=1e-14, atol=1e-15)


# ---------------------------------------------------------------- (d) the confident regime, in closed form

MARGINS = [m for size in (1e-3, 0.5, 1, 5, 17, 20, 36.7, 40, 100) for m in (size, -size)] + [0.0]


@pytest.mark.parametrize("margin", MARGINS)
def test_two_classes_in_closed_form(margin):
    """loss = log1p(exp(-m)), gradient at the target -1 / (1 + exp(m)): a few ulp on either side."""
    fields = ("loss", "grad", "hess_diag", "lse", "log_prob", "entropy")
    seen = sce.evaluate([margin, 0.0], 0, outputs=fields, reduction="none", backend="reference")
    with MP.workdps(150):
        m = exact(margin)
        loss, p, not_p = MP.log(1 + MP.exp(-m)), 1 / (1 + MP.exp(-m)), 1 / (1 + MP.exp(m))
        for name, want in {
            "loss": loss, "log_prob": -loss, "lse": loss + m, "entropy": p * loss + not_p * (loss + m),
        }.items():  # fmt: skip
            assert_close(getattr(seen, name), want, abs(want), factor=8, name=name)
        for got, want in zip(seen.grad, (-not_p, not_p), strict=True):
            assert_close(got, want, abs(want), factor=8, name="grad")
        for got in seen.hess_diag:
            assert_close(got, p * not_p, p * not_p, factor=8, name="hess_diag")


@pytest.mark.parametrize(
    "row", [[0.0, -40.0], [0.0, -40.0, -41.0], [1e8, 1e8 - 40, 1e8 - 50], [700.0, 0.0, -700.0], [0.0, -708.0]]
)
@pytest.mark.parametrize("y", [0, 1])
def test_confident_rows_keep_relative_accuracy(row, y):
    seen = sce.evaluate(
        row, y, outputs=("loss", "grad", "hess_diag", "entropy"), reduction="none", backend="reference"
    )
    with MP.workdps(700):
        x = [exact(v) for v in row]
        others = MP.fsum(MP.exp(v - x[y]) for k, v in enumerate(x) if k != y)
        assert_close(seen.loss, MP.log(1 + others), MP.log(1 + others), name="loss")
        p = [MP.exp(v - x[y]) / (1 + others) for v in x]
        log_p = [v - x[y] - MP.log(1 + others) for v in x]
        entropy = -MP.fsum(a * b for a, b in zip(p, log_p, strict=True))
        assert_close(seen.entropy, entropy, entropy, name="entropy")
        for k in range(len(row)):
            rest = MP.fsum(v for j, v in enumerate(p) if j != k)
            assert_close(seen.grad[k], -rest if k == y else p[k], rest if k == y else p[k], name="grad")
            assert_close(seen.hess_diag[k], p[k] * rest, p[k] * rest, name="hess_diag")


@pytest.mark.parametrize("margin", [20.0, 40.0, 100.0])
def test_log_softmax_is_accurate_where_p_is_nearly_one(margin):
    got = sce.log_softmax([margin, 0.0], backend="reference")
    with MP.workdps(150):
        want = -MP.log(1 + MP.exp(-exact(margin)))
        assert_close(got[0], want, abs(want), factor=8)


# ---------------------------------------------------------------- (e) published values


def log_of(probabilities):
    with np.errstate(divide="ignore"):
        return np.log(np.array(probabilities, dtype=np.float64))


def test_scikit_learn_log_loss_documented_values():
    # The example in the documentation of sklearn.metrics.log_loss: 0.21616...
    p = [[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]]
    loss = sce.cross_entropy(log_of(p), [1, 0, 0, 1], backend="reference")  # "spam" sorts after "ham"
    assert round(float(loss), 5) == 0.21616
    # The multi-class case that scikit-learn's own tests of log_loss expect to be 0.6904911.
    p = [[0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.6, 0.1, 0.3]]
    assert round(float(sce.cross_entropy(log_of(p), [1, 0, 2], backend="reference")), 7) == 0.6904911


def test_keras_documented_values():
    # Documentation of keras.losses.SparseCategoricalCrossentropy: rows 0.0513 and 2.303, mean 1.177, and
    # 0.814 with sample weights 0.3 and 0.7: Keras divides the weighted sum by the batch size.
    logits = log_of([[0.05, 0.95, 0.0], [0.1, 0.8, 0.1]])
    rows = sce.cross_entropy(logits, [1, 2], reduction="none", backend="reference")
    assert rows.round(4).tolist() == [0.0513, 2.3026]
    assert round(float(sce.cross_entropy(logits, [1, 2], backend="reference")), 3) == 1.177
    weighted = sce.cross_entropy(logits, [1, 2], sample_weight=[0.3, 0.7], denominator=2, backend="reference")
    assert round(float(weighted), 3) == 0.814


def test_cs231n_notes():
    # CS231n notes, "Linear classification": scores -2.85, 0.86, 0.28 with true class 2: loss 1.04 (natural
    # logarithm), normalised probabilities 0.016, 0.631, 0.353 (from rounded exponentials: 0.0154 is right).
    scores = np.array([-2.85, 0.86, 0.28])
    assert round(float(sce.cross_entropy(scores, 2, backend="reference")), 2) == 1.04
    p = sce.softmax(scores, backend="reference")
    assert np.abs(p - [0.016, 0.631, 0.353]).max() < 1e-3
    assert p[1:].round(3).tolist() == [0.631, 0.353]
    # The same page halves the scores 1, -2, 0, which is temperature 2.
    scores = np.array([1.0, -2.0, 0.0])
    assert sce.softmax(scores, backend="reference").round(2).tolist() == [0.71, 0.04, 0.26]
    assert sce.softmax(scores, temperature=2, backend="reference").round(2).tolist() == [0.55, 0.12, 0.33]
    # And its scores 123, 456, 789, which overflow a naive exponential.
    assert sce.softmax([123.0, 456.0, 789.0], backend="reference")[2] == 1.0
    # "Neural networks 3": the first loss of a 10-class softmax classifier is 2.302, that is -log 0.1.
    loss, grad = sce.loss_and_grad(np.zeros((6, 10)), np.arange(6), reduction="none", backend="reference")
    assert np.allclose(loss, math.log(10), rtol=2 * U, atol=0)
    assert np.allclose(grad, 0.1 - np.eye(10)[:6], rtol=4 * U, atol=0)


def test_wikipedia_softmax():
    # "Softmax function", numerical example.
    want = [0.024, 0.064, 0.175, 0.475, 0.024, 0.064, 0.175]
    assert sce.softmax([1.0, 2, 3, 4, 1, 2, 3], backend="reference").round(3).tolist() == want


def test_weighted_mean_as_pytorch_and_onnx_document_it():
    """The texts of torch.nn.CrossEntropyLoss (class indices) and of ONNX's SoftmaxCrossEntropyLoss agree:
    l_n = -w[y_n] log p, and "mean" is the sum of l_n over the sum of w[y_n], ignored rows in neither."""
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.2, 0.2, 0.6]])
    y, w = np.array([0, 2, 1, 0]), np.array([2.0, 3.0, 5.0])
    by_hand = (2 * -math.log(0.5) + 5 * -math.log(0.7) + 2 * -math.log(0.2)) / (2 + 5 + 2)
    loss = sce.cross_entropy(log_of(p), y, class_weight=w, ignore_index=1, backend="reference")
    assert math.isclose(loss, by_hand, rel_tol=8 * U)


def test_smoothed_weighted_loss_as_pytorch_documents_it():
    """The same page, for probabilities and label_smoothing: y (1 - eps) + eps / C, then weighted by class."""
    p, y, w, eps = np.array([0.2, 0.5, 0.3]), 1, np.array([2.0, 3.0, 5.0]), 0.3
    q = w * np.array([0.1, 0.8, 0.1])
    loss = sce.cross_entropy(log_of([p]), [y], class_weight=w, label_smoothing=eps, backend="reference")
    assert math.isclose(loss, -(q * np.log(p)).sum() / w[y], rel_tol=8 * U)


def test_softcap_bounds_the_logits():
    """Gemma 2 report (2024), section 2: logits become cap * tanh(logits / cap)."""
    lse = sce.evaluate([[1e30, -1e30]], [0], outputs=("lse",), softcap=30.0, backend="reference").lse
    assert lse[0] == 30.0


def test_z_loss_is_the_square_of_log_z():
    """PaLM (Chowdhery et al. 2022), section 5: an auxiliary loss of 1e-4 * log^2 Z."""
    seen = sce.evaluate(
        [[1.0, 2.0], [0.0, 0.0]], [0, 1], outputs=("z_loss", "lse"), z_loss=1e-4, backend="reference"
    )
    assert math.isclose(seen.z_loss, 1e-4 * (seen.lse**2).mean(), rel_tol=8 * U)


# ---------------------------------------------------------------- (f) other libraries


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_scipy_agrees(scale):
    x = np.random.default_rng(17).standard_normal((50, 20)) * scale
    p, log_p = sce.softmax(x, backend="reference"), sce.log_softmax(x, backend="reference")
    # SciPy rounds x - max before exp, so its relative error grows with the spread of the row.
    spread = np.ptp(x)
    assert np.allclose(p, scipy.special.softmax(x, axis=1), rtol=(2 * K + spread) * U, atol=0)
    # and its log of a sum close to 1 is only good to the roundoff of 1
    assert np.allclose(log_p, scipy.special.log_softmax(x, axis=1), rtol=2 * K * U, atol=8 * U)
    lse = scipy.special.logsumexp(x, axis=1)
    assert np.allclose(sce.logsumexp(x, backend="reference"), lse, rtol=2 * K * U, atol=2 * K * U)
    assert np.allclose(
        sce.evaluate(x, np.zeros(50, int), outputs=("entropy",), backend="reference").entropy,
        scipy.special.entr(scipy.special.softmax(x, axis=1)).sum(axis=1),
        rtol=1e-12,  # scipy's entr goes through log(p): p's own error counts in full
        atol=1e-15,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_log_loss_agrees(weighted):
    rng = np.random.default_rng(18)
    x, y = rng.standard_normal((200, 7)) * 2, rng.integers(0, 7, 200)
    u = rng.random(200) if weighted else None
    p = scipy.special.softmax(x, axis=1)
    want = log_loss(y, p / p.sum(axis=1, keepdims=True), sample_weight=u, labels=np.arange(7))
    got = sce.cross_entropy(x, y, sample_weight=u, backend="reference")
    assert math.isclose(got, want, rel_tol=64 * U)


# ---------------------------------------------------------------- (g) longdouble logits

LONG = float(np.finfo(np.longdouble).eps) / 2
LONG_SETS = [
    (),
    ("temperature",),
    ("softcap",),
    ("temperature", "softcap"),
    ("z_loss", "label_smoothing"),
    ("class_weight", "sample_weight", "reduction"),
    ("logit_bias", "z_loss", "grad_scale"),
    ("temperature", "softcap", "logit_bias", "class_weight", "label_smoothing", "z_loss", "grad_scale"),
]


@pytest.mark.skipif(LONG >= U, reason="longdouble is float64 on this machine")
@pytest.mark.parametrize("kind", ["index", "distribution"])
@pytest.mark.parametrize("names", LONG_SETS, ids=lambda n: "+".join(n) or "plain")
def test_longdouble_logits_are_computed_in_longdouble(kind, names):
    """The problem of a longdouble row, run by hand: no public function takes longdouble."""
    rng = np.random.default_rng(19)
    logits, target = make(19, kind)
    logits = logits.astype(np.longdouble) * (1 + rng.random((N, C)).astype(np.longdouble) * LONG * 2**20)
    assert (logits != logits.astype(np.float64)).any()
    given = {name: OPTIONS[name][0] for name in names} | {"reduction": "none"}
    coefficient = {k: v for k, v in given.items() if k != "reduction"}
    for name in ("class_weight", "sample_weight", "logit_bias"):
        if name in coefficient:
            coefficient[name] = np.array(coefficient[name])
    problem = Problem(
        rows=N, classes=C, dtype="longdouble", on_device=False, target=kind,
        outputs=frozenset((*PER_ROW, *MATRICES)), reduce=False, validated=True, logits=logits[:, None, :],
        labels=target if kind == "index" else None,
        distribution=target[:, None, :] if kind != "index" else None, **coefficient,
    )  # fmt: skip
    vectors = {name: np.empty(N, np.longdouble) for name in PER_ROW}
    matrices = {name: np.empty((N, 1, C), np.longdouble) for name in MATRICES}
    reference.run(problem, Answer(**vectors, **matrices))
    want = oracle(logits, target, **given)
    for name in PER_ROW:
        assert_close(vectors[name], *want[name], roundoff=LONG, name=name)
    for name in MATRICES:
        assert_close(matrices[name][:, 0], *want[name], roundoff=LONG, name=name)


@pytest.mark.skipif(LONG >= U, reason="longdouble is float64 on this machine")
def test_longdouble_constants_are_formed_in_longdouble():
    """A saturated soft cap, where the curvature term is nearly all of the Hessian: T * T * cap must not be
    a product of Python floats, which is only good to 2^-53."""
    logits = np.array([[8.0, 0.0]], np.longdouble)
    hess = np.empty((1, 1, 2), np.longdouble)
    problem = Problem(
        rows=1, classes=2, dtype="longdouble", on_device=False, target="index",
        outputs=frozenset(["hess_diag"]), reduce=False, validated=True, logits=logits[:, None, :],
        labels=np.array([1]), temperature=0.7, softcap=4.0,
    )  # fmt: skip
    reference.run(problem, Answer(hess_diag=hess))
    want = oracle(logits, [1], temperature=0.7, softcap=4.0, reduction="none")["hess_diag"][0][0]
    # 1 / cosh^2 of 2.86 is off by 2 * 2.86 * 2 roundings of its argument, and the products add a few
    assert_close(hess[0, 0, 0], want[0], abs(want[0]), roundoff=LONG, factor=32, name="hess_diag")


# ---------------------------------------------------------------- the oracle bites

SPOILT = {
    "grad, last bits": ("grad", lambda v: v * (1 + 2.0**-46)),
    "grad, halved": ("grad", lambda v: v / 2),
    "grad, transposed classes": ("grad", lambda v: v[..., ::-1]),
    "loss, absolute error": ("loss", lambda v: v + 1e-12),
    "hess_diag, absolute error": ("hess_diag", lambda v: v - 1e-13),
    "entropy, last bits": ("entropy", lambda v: v * (1 - 2.0**-46)),
    "lse, absolute error": ("lse", lambda v: v + 1e-12),
    "log_prob, sign": ("log_prob", lambda v: -v),
    "z_loss, doubled": ("z_loss", lambda v: 2 * v),
    "argmax, off by one": ("argmax", lambda v: (v + 1) % C),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_reference_is_caught(monkeypatch, how):
    field, spoil = SPOILT[how]
    honest = reference.run

    def spoilt(problem, answer):
        honest(problem, answer)
        into = getattr(answer, field)
        into[...] = spoil(into.copy())

    logits, target = make(20, "index")
    assert_agrees(logits, target, z_loss=0.1)
    monkeypatch.setattr(reference, "run", spoilt)
    with pytest.raises(AssertionError, match=field):
        assert_agrees(logits, target, z_loss=0.1)
