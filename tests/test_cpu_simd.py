"""Vectors in compiled code, lane by lane against NumPy, and what is computed with them against mpmath."""

import ctypes
import mmap
import os
from fractions import Fraction

import mpmath
import numpy as np
import pytest

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
import numba

from sce_backends.cpu import simd, vector_math
from sce_backends.cpu.cache import inline
from sce_backends.cpu.reading import low_of
from sce_backends.cpu.simd import load, select, splat, store

DTYPES = [np.float32, np.float64]
LINE = simd.LINE
both = pytest.mark.parametrize("dtype", DTYPES)
compiled = numba.njit(error_model="numpy")
F1 = np.float32(1)
rng = np.random.default_rng(7)
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 3.5]


def lanes(dtype):
    return LINE // np.dtype(dtype).itemsize


def at(array):
    return array.ctypes.data


def aligned(count, dtype):
    """Zeros at an address that vectors may be streamed to."""
    plain = np.zeros(count * np.dtype(dtype).itemsize + LINE, np.uint8)
    start = -at(plain) % LINE
    return plain[start : start + count * np.dtype(dtype).itemsize].view(dtype)


def some(dtype, count=1):
    return rng.standard_normal(count * lanes(dtype)).astype(dtype)


def same(got, want):
    """Bit for bit; one NaN is as good as another."""
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got[got == got]), np.signbit(want[want == want]))


# Memory. A number of each of the types that lie there, NumPy's name for it, and the vector's type.

STORED = [
    (np.float32(0), np.dtype(np.float32), np.float32),
    (np.float64(0), np.dtype(np.float64), np.float64),
    (np.int16(0), np.dtype(np.float16), np.float32),
    (np.uint16(0), "bfloat16", np.float32),
]
stored = pytest.mark.parametrize(
    ("of", "kept", "dtype"), STORED, ids=lambda x: getattr(x, "name", x) if x is not None else None
)


def kept_as(kept):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16) if kept == "bfloat16" else kept


@compiled
def move(of, into, one, source, to):
    store(into, to, load(of, source, one))


@compiled
def move_past_caches(of, into, one, source, to):
    simd.stream(into, to, load(of, source, one))


@compiled
def move_first_in(of, one, source, n, other, to):
    store(one, to, simd.load_first(of, source, one, n, other))


@compiled
def move_first_out(into, one, source, to, n):
    simd.store_first(into, to, load(one, source, one), n)


@compiled
def widen_all(of, one, source, to, vectors):
    for i in range(vectors):
        store(one, to + i * 64, load(of, source + i * 32, one))


@compiled
def narrow_all(into, one, source, to, vectors):
    for i in range(vectors):
        store(into, to + i * 32, load(one, source + i * 64, one))


@stored
@pytest.mark.parametrize("moving", [move, move_past_caches], ids=["store", "stream"])
def test_whole_vectors(moving, of, kept, dtype):
    kept, n = kept_as(kept), lanes(dtype)
    x = some(dtype, 3).astype(kept)
    for offset in (0, 1, n):  # an address needs no alignment but for a number's; a streamed one does
        start = offset if moving is move else n
        out = aligned(4 * n, kept)
        out[:] = 7
        moving(of, of, dtype(0), at(x) + offset * kept.itemsize, at(out) + start * kept.itemsize)
        want = np.full_like(out, 7)
        want[start : start + n] = x[offset : offset + n]
        same(out, want)


def test_float32_read_as_float64():
    x, out = some(np.float32), np.zeros(8)
    move(np.float32(0), 0.0, 0.0, at(x), at(out))
    same(out, x[:8].astype(np.float64))


@stored
def test_first_lanes_out(of, kept, dtype):
    kept, n = kept_as(kept), lanes(dtype)
    x = some(dtype)
    for count in range(-1, n + 2):
        out = np.full(3 * n, 7, kept)
        move_first_out(of, dtype(0), at(x), at(out) + n * kept.itemsize, count)
        want, inside = np.full_like(out, 7), np.clip(count, 0, n)
        want[n : n + inside] = x[:inside].astype(kept)
        same(out, want)


@stored
@pytest.mark.skipif(os.name != "posix", reason="forbids a page with mprotect")
def test_first_lanes_in_from_memory_that_ends_there(of, kept, dtype):
    kept, n, page = kept_as(kept), lanes(dtype), mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(held := ctypes.c_char.from_buffer(pages))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(start + page, page, 0) == 0
    x, out = some(dtype).astype(kept), np.zeros(n, dtype)
    for count in range(-1, n + 2):
        inside = int(np.clip(count, 0, n))
        source = start + page - inside * kept.itemsize
        ctypes.memmove(source, at(x), inside * kept.itemsize)
        for other in (-np.inf, np.nan, 3.0):
            move_first_in(of, dtype(0), source, count, dtype(other), at(out))
            same(out, np.where(np.arange(n) < count, x.astype(dtype), dtype(other)))
    assert protect(start + page, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    del held
    pages.close()


@pytest.mark.parametrize(("of", "kept"), [(np.int16(0), np.dtype(np.float16)), (np.uint16(0), "bfloat16")])
def test_half_types(of, kept):
    """Every number of 16 bits as float32, and back what lies on, between and beside them."""
    kept, one = kept_as(kept), np.float32(0)
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(bits.size, np.float32)
    widen_all(of, one, at(bits), at(wide), bits.size // 16)
    with np.errstate(invalid="ignore"):
        same(wide, bits.view(kept).astype(np.float32))
    with np.errstate(invalid="ignore", over="ignore"):
        ties = ((wide.astype(np.float64) + np.roll(wide, -1)) / 2).astype(np.float32)
        beside = [np.nextafter(ties, np.float32(to)) for to in (-np.inf, np.inf)]
    anything = rng.integers(0, 1 << 32, 1 << 17, dtype=np.uint32).view(np.float32)
    nans = np.array([0x7F800001, 0x7FFFFFFF, 0xFFC00000, 0xFF800001] * 4, np.uint32).view(np.float32)
    x = np.concatenate([wide, ties, *beside, anything, nans])
    back = np.empty(x.size, np.uint16)
    narrow_all(of, one, at(x), at(back), x.size // 16)
    with np.errstate(over="ignore", invalid="ignore"):
        same(back.view(kept).astype(np.float32), x.astype(kept).astype(np.float32))


@compiled
def columns_of(part, of, one, rows, apart, n, columns, step):
    if part == 1:
        simd.to_columns(of, one, rows, apart, n, columns, step)
    elif part == 2:
        simd.half_to_columns(of, one, rows, apart, n, columns, step)
    else:
        simd.quarter_to_columns(of, one, rows, apart, n, columns, step)


@compiled
def rows_of(part, one, into, columns, step, n, rows, apart):
    if part == 1:
        simd.to_rows(one, into, columns, step, n, rows, apart)
    elif part == 2:
        simd.half_to_rows(one, into, columns, step, n, rows, apart)
    else:
        simd.quarter_to_rows(one, into, columns, step, n, rows, apart)


@pytest.mark.parametrize("part", [1, 2, 4])
@stored
def test_rows_become_columns_and_columns_rows(of, kept, dtype, part):
    kept, one, count = kept_as(kept), dtype(0), lanes(dtype)
    most = count // part
    for apart in (count, count + 3):
        for n in {1, most // 2, most - 1, most} - {0}:
            x = rng.standard_normal((count, apart)).astype(kept)
            columns = np.full((most + 1, count + 1), 7, dtype)
            columns_of(
                part, of, one, at(x), apart * kept.itemsize, n, at(columns), (count + 1) * one.itemsize
            )
            same(columns[:n, :count], x[:, :n].T.astype(dtype))
            assert (columns[most:] == 7).all()
            assert (columns[:, count] == 7).all()
            rows = np.full((count, apart), 7, kept)
            columns[:] = rng.standard_normal(columns.shape)
            rows_of(
                part, one, of, at(columns), (count + 1) * one.itemsize, n, at(rows), apart * kept.itemsize
            )
            same(rows[:, :n], columns[:n, :count].T.astype(kept))
            assert (rows[:, n:] == 7).all()


# Operators and functions of lanes.


@inline(fastmath=())
def put_results(a, b, one, to):
    yes, no = splat(one) + 1.0, splat(one)
    store(one, to, a + b)
    store(one, to + LINE, a - b)
    store(one, to + 2 * LINE, a * b)
    store(one, to + 3 * LINE, a / b)
    store(one, to + 4 * LINE, select(a < b, yes, no))
    store(one, to + 5 * LINE, select(a > b, yes, no))
    store(one, to + 6 * LINE, select(a == b, yes, no))
    store(one, to + 7 * LINE, select(a != b, yes, no))


@compiled
def all_results(one, x, y, number, to):
    a, b = load(one, x, one), load(one, y, one)
    put_results(a, b, one, to)
    put_results(a, number, one, to + 8 * LINE)
    put_results(number, b, one, to + 16 * LINE)
    store(one, to + 24 * LINE, -a)


@both
@pytest.mark.parametrize("number", [2.5, 3, np.float32(-0.75)])
def test_operators(dtype, number):
    """Of two vectors, and of one and a number of any type, on either side."""
    x = np.resize(np.array([*SPECIAL, number]), 40 * lanes(dtype)).astype(dtype)
    y, n = np.repeat(x[: x.size // 40 * 9], 5)[: x.size], lanes(dtype)
    for a, b in zip(x.reshape(-1, n), y.reshape(-1, n), strict=True):
        out = np.zeros((25, n), dtype)
        all_results(dtype(0), at(a), at(b), number, at(out))
        with np.errstate(all="ignore"):
            for got, p, q in ((out, a, b), (out[8:], a, dtype(number)), (out[16:], dtype(number), b)):
                want = [p + q, p - q, p * q, p / q, p < q, p > q, p == q, p != q]
                same(got[:8], np.array(want, dtype))
            same(out[24], -a)


@compiled
def lane_by_lane(one, x, y, z, to):
    a, b, c = load(one, x, one), load(one, y, one), load(one, z, one)
    store(one, to, select(a > b, a, b))
    store(one, to + LINE, select(a != a, c, a))
    store(one, to + 2 * LINE, select(a > b, one, b))
    store(one, to + 3 * LINE, simd.rounded(a))
    store(one, to + 4 * LINE, simd.fused(a, b, c))
    store(one, to + 5 * LINE, simd.fused(a, b, -(a * b)))
    return simd.total(c), simd.anywhere(a > b), simd.anywhere(c != c)


@both
def test_select_rounded_fused_total_anywhere(dtype):
    one, out = dtype(0), np.zeros((6, lanes(dtype)), dtype)
    x = np.resize(np.array([*SPECIAL, 2.5, -0.5, 1.5, 0.3, 7e5 + 0.5, -2.5]), lanes(dtype)).astype(dtype)
    for a, b in ((x, np.roll(x, 1)), (np.roll(x, 1), x), (np.full_like(x, np.nan), x), (some(dtype),) * 2):
        c = some(dtype)
        found = lane_by_lane(one, at(a), at(b), at(c), at(out))
        with np.errstate(invalid="ignore"):
            same(out[0], np.where(a > b, a, b))
            same(out[1], np.where(a != a, c, a))
            same(out[2], np.where(a > b, one, b))
            same(out[3], np.rint(a))
            assert found[1] == (a > b).any()
            assert not found[2]
        pairs = c
        while pairs.size > 1:
            pairs = pairs[: pairs.size // 2] + pairs[pairs.size // 2 :]
        assert found[0] == pairs[0]
    a, b = some(dtype), some(dtype)
    lane_by_lane(one, at(a), at(b), at(c), at(out))
    lost = [
        Fraction(float(p)) * Fraction(float(q)) - Fraction(float(p * q)) for p, q in zip(a, b, strict=True)
    ]
    same(out[5], np.array([float(x) for x in lost]).astype(dtype))
    for lane in range(a.size):
        b = a.copy()
        b[lane] = -9
        c[lane] = np.nan
        assert lane_by_lane(one, at(a), at(b), at(c), at(out))[1:] == (True, True)
        c[lane] = 0
    assert not lane_by_lane(one, at(a), at(a), at(c), at(out))[1]


@compiled
def masks(one, n, to):
    store(one, to, select(simd.first(one, n), splat(one) + 1.0, 0.0))
    store(one, to + LINE, select(simd.only(one, n), splat(one) + 1.0, 0.0))


@both
def test_masks(dtype):
    out, numbers = np.zeros((2, lanes(dtype)), dtype), np.arange(lanes(dtype))
    for n in (*range(-2, numbers.size + 3), -(2**31), 2**31 - 1):
        masks(dtype(0), n, at(out))
        same(out[0], (numbers < n).astype(dtype))
        same(out[1], (numbers == n).astype(dtype))


@compiled
def largest_of(one, x, vectors):
    top = splat(one)
    for k in range(vectors):
        found = load(one, x + k * LINE, one)
        top = select(found > top, found, top)
    return simd.largest(top), simd.largest(load(one, x, one))


@both
def test_largest(dtype):
    low, n = dtype(-np.inf), lanes(dtype)
    for lane in range(n):
        x = some(dtype, 2)
        x[[lane, lane + n]] = np.nan, 9
        assert largest_of(low, at(x), 2)[0] == 9  # NaN never gets into the vector that a maximum is kept in
        x = some(dtype)
        x[lane] = 9
        assert largest_of(low, at(x), 1) == (9, 9)
    assert largest_of(low, at(np.full(n, np.nan, dtype)), 1)[0] == low
    assert largest_of(low, at(np.full(n, -np.inf, dtype)), 1) == (low, low)


@compiled
def apart_and_together(x, wide, narrow):
    a, b = simd.halves(load(np.float32(0), x, np.float32(0)))
    store(0.0, wide, a)
    store(0.0, wide + LINE, b)
    store(np.float32(0), narrow, simd.joined(a / 3.0, b * 1e30))


def test_halves_and_joined():
    x, wide, narrow = some(np.float32), np.zeros(16), np.zeros(16, np.float32)
    x[:4], x[-4:] = SPECIAL[:4], SPECIAL[-4:]
    x[5:11] *= 1e10  # joined overflows
    apart_and_together(at(x), at(wide), at(narrow))
    same(wide, x.astype(np.float64))
    with np.errstate(over="ignore"):
        same(narrow, np.concatenate([wide[:8] / 3, wide[8:] * 1e30]).astype(np.float32))


@compiled
def split_all(x, k, f, vectors):
    for i in range(vectors):
        a, b = simd.split(load(0.0, x + i * LINE, 0.0))
        store(0.0, k + i * LINE, a)
        store(0.0, f + i * LINE, b)


def test_split():
    x = 10.0 ** rng.uniform(-307, 308, 2000)
    x[:8] = 2.0**-1022, np.finfo(float).max, 1, 2, 0.5, np.sqrt(2), np.nextafter(np.sqrt(2), 1), np.sqrt(0.5)
    k, f = np.empty_like(x), np.empty_like(x)
    split_all(at(x), at(k), at(f), x.size // 8)
    same(np.ldexp(f, k.astype(int)), x)
    assert (k == np.rint(k)).all()
    assert np.sqrt(0.5) <= f.min()
    assert f.max() < np.sqrt(2)


# Functions of vectors, against mpmath.


@compiled
def exponentials(one, z, lo, k, out, other, vectors):
    """With a k for each vector, by `shifted_by`, and with one for each lane, by `shifts_by`."""
    for i in range(0, vectors * LINE, LINE):
        x, by, low = load(one, z + i, one), load(one, k + i, one), low_of(one, lo, i)
        shift, floor = vector_math.shifted_by(np.float64(simd.largest(by)), one)
        store(one, out + i, vector_math.exponential(x, low, splat(shift), splat(floor)))
        shifts, floors = vector_math.shifts_by(by)
        store(one, other + i, vector_math.exponential(x, low, shifts, floors))


def exponential(z, lo, k):
    """2^-k exp(z + lo), with the same k for each of a vector's lanes."""
    out, other = np.empty_like(z), np.empty_like(z)
    low = None if lo is None else at(lo)
    exponentials(z.dtype.type(0), at(z), low, at(k), at(out), at(other), z.nbytes // LINE)
    same(out, other)
    return out


def in_ulp(got, want):
    dtype = got.dtype.type
    steps = (np.spacing(abs(dtype(float(w)))) for w in want)
    pairs = zip(got.tolist(), want, steps, strict=True)
    return max(abs(mpmath.mpf(g) - w) / mpmath.mpf(float(step)) for g, w, step in pairs)


PIVOTS = [0, 1, -1, 5, -30, 333, -1000, 1023, 20_011, -20_011, 46_000, -46_000, 47_000, -47_274, 47_200]
DEEPEST = {np.float32: 126.4, np.float64: 1022.4}  # powers of 2 below which the result is 0


def below_a_pivot(dtype, count):
    """z of some vectors, near and far below k ln 2, and above it as far as the kernels let it rise."""
    n = lanes(dtype)
    k = np.repeat(np.array(PIVOTS * -(-count // len(PIVOTS))), n)
    d = np.concatenate([
        rng.uniform(-DEEPEST[dtype], 46, k.size // 2),
        rng.uniform(-3, 0.5, k.size // 4),
        -np.logspace(-12, 0, k.size - k.size // 2 - k.size // 4),
    ])  # fmt: skip
    z = ((k + rng.permutation(d)) * np.log(2)).astype(dtype)
    inside = abs(z) < vector_math.FAR
    return np.where(inside, z, (k * np.log(2)).astype(dtype)), k.astype(dtype)


WORST = [  # that a search of 10^8 float32 found: z, k, lo
    (37.77653884887695, 29.0, 0.0),
    (-5.861087799072266, 0.0, -1.0434363417743953e-07),
    (-59.95622253417969, 0.0, -1.6512821048308979e-06),
    (32662.13671875, 47200.0, -0.0007012621499598026),
]


@both
@pytest.mark.parametrize("with_lo", [False, True])
def test_exponential_is_within_its_bound(dtype, with_lo):
    z, k = below_a_pivot(dtype, 600)
    lo = (rng.uniform(-0.5, 0.5, z.size) * np.spacing(abs(z))).astype(dtype) if with_lo else None
    for i, (a, b, c) in enumerate(WORST if dtype == np.float32 else []):
        here = slice(i * lanes(dtype), (i + 1) * lanes(dtype))
        z[here], k[here] = a, b
        if with_lo:
            lo[here] = c
    got = exponential(z, lo, k)
    with mpmath.workdps(40):
        parts = zip(z.tolist(), k.tolist(), lo.tolist() if with_lo else [0.0] * z.size, strict=True)
        want = [mpmath.ldexp(mpmath.exp(mpmath.mpf(a) + mpmath.mpf(c)), -int(b)) for a, b, c in parts]
        assert in_ulp(got, want) <= (1.03 if with_lo and dtype == np.float32 else 1.0)


@both
def test_exponential_at_the_edges(dtype):
    n, least = lanes(dtype), -(DEEPEST[dtype] + 0.6) * np.log(2)
    for pivot in PIVOTS:
        k = np.full(n, pivot, dtype)
        top = dtype(pivot * np.log(2))
        floor = dtype(top + least)
        z = np.resize(np.array([
            -np.inf, np.nan, floor, np.nextafter(floor, dtype(-np.inf)), floor - 1, floor - 1000, -1e9, -1e37,
        ]), n).astype(dtype)  # fmt: skip
        for lo in (None, np.zeros(n, dtype), np.where(np.isfinite(z), 0, np.nan).astype(dtype)):
            same(exponential(z, lo, k), np.where(np.isnan(z), np.nan, 0).astype(dtype))
    for power in (-100, -1, 0, 1, 100):
        k = np.full(n, power, dtype)
        assert (exponential(np.zeros(n, dtype), None, k) == 2.0**-power).all()


@compiled
def log1p_all(x, out, vectors, short):
    for i in range(0, vectors * LINE, LINE):
        v = load(0.0, x + i, 0.0)
        store(0.0, out + i, vector_math.short_log1p(v) if short else vector_math.log1p(v))


@compiled
def short_exp_all(x, out, vectors):
    for i in range(0, vectors * LINE, LINE):
        store(0.0, out + i, vector_math.short_exponential(load(0.0, x + i, 0.0)))


def log1p(x, short=False):
    out = np.empty_like(x)
    log1p_all(at(x), at(out), x.size // 8, short)
    return out


def relatively(got, want):
    return max(abs(mpmath.mpf(g) / w - 1) for g, w in zip(got.tolist(), want, strict=True) if w)


def test_log1p_is_within_its_bound():
    x = [10.0 ** rng.uniform(-300, 299, 2000), rng.uniform(0, 4, 3000), 2.0 ** np.arange(-60, 60)]
    x = np.concatenate(
        [*x, np.nextafter(np.sqrt(2) - 1, [0, 1]), [np.sqrt(2) - 1, 1e300, 1e-320, 3.0, 0.4, 0.5]]
    )
    with mpmath.workdps(40):
        want = [mpmath.log1p(mpmath.mpf(v)) for v in x.tolist()]
        assert in_ulp(log1p(x), want) <= 1.5
        normal = x > 1e-300
        assert (
            relatively(log1p(x, True)[normal], [w for w, n in zip(want, normal, strict=True) if n])
            <= 2.0**-35
        )


@pytest.mark.parametrize(("short", "rtol"), [(False, 1e-15), (True, 2.0**-35)])
def test_log1p_elsewhere(short, rtol):
    x = np.concatenate([rng.uniform(-0.5, 0, 1000), [0.0, -0.5, np.nan] * 8])
    got = log1p(x, short)
    np.testing.assert_allclose(got, np.log1p(x), rtol=rtol)
    assert (got[x == 0] == 0).all()


def test_the_short_exponential_is_within_its_bound():
    x = np.concatenate([rng.uniform(-708, 708, 4000), rng.uniform(-1, 1, 2000), [0.0, -708.0] * 4])
    edges = np.array([-np.inf, np.nan, -709.0, -1e300, 0.0, -0.0, -708.1, -745.0])
    out, beyond = np.empty_like(x), np.empty_like(edges)
    short_exp_all(at(x), at(out), x.size // 8)
    short_exp_all(at(edges), at(beyond), 1)
    with mpmath.workdps(40):
        assert relatively(out, [mpmath.exp(mpmath.mpf(v)) for v in x.tolist()]) <= 2.0**-37
    same(beyond, np.array([0, np.nan, 0, 0, 1, 1, 0, 0.0]))


@compiled
def logistic_all(x, lo, outs, vectors):
    for i in range(0, vectors * LINE, LINE):
        e, e_lo, cost, one, one_lo = vector_math.logistic(load(F1, x + i, F1), load(F1, lo + i, F1))
        store(F1, outs + i, e)
        store(F1, outs + vectors * LINE + i, e_lo)
        store(F1, outs + 2 * vectors * LINE + i, cost)
        store(F1, outs + 3 * vectors * LINE + i, one)
        store(F1, outs + 4 * vectors * LINE + i, one_lo)


def logistic(x, lo):
    outs = np.empty((5, x.size), np.float32)
    logistic_all(at(x), at(lo), at(outs), x.size // 16)
    return outs


def test_exp_log1p_and_reciprocal_of_one_plus_exp_are_within_their_bounds():
    x = [-(10.0 ** rng.uniform(-9, 0, 4000)), rng.uniform(-87.3, 0, 4000), rng.uniform(-2, 0, 8000)]
    x = np.concatenate([*x, [0.0, -0.0, -87.3, -1e-30] * 4]).astype(np.float32)
    lo = (rng.uniform(-0.5, 0.5, x.size) * np.spacing(abs(x))).astype(np.float32)
    e, e_lo, cost, i, i_lo = logistic(x, lo)
    with mpmath.workdps(40):
        exact = [
            mpmath.exp(mpmath.mpf(a) + mpmath.mpf(b)) for a, b in zip(x.tolist(), lo.tolist(), strict=True)
        ]
        assert in_ulp(e, exact) <= 1
        assert in_ulp(cost, [mpmath.log1p(v) for v in exact]) <= 1.5
        normal = e > 2.0**-100  # where the second word is no subnormal number
        pairs = e.astype(float) + e_lo, i.astype(float) + i_lo
        for found, want in zip(pairs, (exact, [1 / (1 + v) for v in exact]), strict=True):
            assert (
                relatively(found[normal], [w for w, n in zip(want, normal, strict=True) if n]) <= 2.0**-23.6
            )


def test_the_logistic_function_at_its_edges():
    x = np.array([-np.inf, np.nan, -88.1, -200.0, -1e30, 0.0, -0.0, -np.inf] * 2, np.float32)
    e, e_lo, cost, i, i_lo = logistic(x, np.zeros_like(x))
    sure = np.array([0, np.nan, 0, 0, 0, 1, 1, 0] * 2, np.float32)
    same(e, sure)
    same(e_lo, sure - sure)
    np.testing.assert_allclose(cost, np.log1p(sure), rtol=1e-7)
    same(i, 1 / (1 + sure))
    same(i_lo, sure - sure)


@compiled
def labels_of(of, source, ignored, out, skips):
    is_one, known, skip = simd.load_labels(of, source, 0.0, ignored)
    store(0.0, out, select(is_one, splat(1.0), select(known, splat(0.0), splat(np.nan))))
    store(0.0, skips, select(skip, splat(1.0), splat(0.0)))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_labels_are_0_or_1_or_nan_and_compared_as_integers(dtype):
    big = {1: 127, 4: 2**31 - 1, 8: 2**62 + 1}[np.dtype(dtype).itemsize]
    x = np.array([0, 1, 2, big, big - 1, 1, 0, -1], dtype)
    want = np.array([0, 1, np.nan, np.nan, np.nan, 1, 0, np.nan])
    for ignored in (big, -1, 1, 7):
        out, skips = np.empty(8), np.empty(8)
        labels_of(dtype(0), at(x), ignored, at(out), at(skips))
        same(out, want)
        same(skips, (x == ignored).astype(float))
