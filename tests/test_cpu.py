"""What the Numba backend promises beyond its answers: error bounds and vector code.

Threads, the cache and memory layouts have files of their own.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest

import sce

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
import numba

from sce_backends.cpu import elements, memory, vector_math


@numba.njit(error_model="numpy")
def exp_all(d, err, out):
    for k in range(d.size):
        out[k] = vector_math.exp(d[k], err[k])


@numba.njit
def widen_all(x, out):
    for k in range(x.size):
        out[k] = memory.widen(x[k])


@numba.njit
def narrow_all(x, witness, out):
    for k in range(x.size):
        out[k] = memory.narrow(x[k], witness)


@numba.njit
def maximum_of(a, b):
    return vector_math.maximum(a, b)


@pytest.mark.parametrize(("dtype", "lowest"), [(np.float32, -87.3), (np.float64, -708.3)])
def test_exp_is_within_its_bound(dtype, lowest):
    rng = np.random.default_rng(1)
    d = np.concatenate([rng.uniform(lowest, 40, 6000), -np.logspace(-12, 0, 500), [0.0]]).astype(dtype)
    err = (rng.uniform(-0.5, 0.5, d.size) * np.spacing(np.abs(d))).astype(dtype)
    got = np.empty_like(d)
    exp_all(d, err, got)
    with mpmath.workdps(40):
        want = [mpmath.exp(mpmath.mpf(float(a)) + mpmath.mpf(float(b))) for a, b in zip(d, err, strict=True)]
        ulp = [
            abs(mpmath.mpf(float(g)) - w) / mpmath.mpf(float(np.spacing(dtype(float(w)))))
            for g, w in zip(got, want, strict=True)
        ]
    assert max(ulp) <= 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_at_the_edges(dtype):
    d = np.array([0.0, -np.inf, np.nan, -1e30, -800.0], dtype)
    got = np.empty_like(d)
    exp_all(d, np.zeros_like(d), got)
    np.testing.assert_array_equal(got, np.array([1, 0, np.nan, 0, 0], dtype))


# mpmath 1.4 wants the order that 1.3 does not have, and PyTorch's sympy keeps to 1.3.
@pytest.mark.filterwarnings("ignore:Descending:DeprecationWarning")
def test_the_polynomials_are_chebyshev_fits():
    """The coefficients in the source are what mpmath finds.

    p is that of (exp(r) - 1 - r) / r^2, q of (exp(r) - 1) / r, on |r| <= ln(2) / 2; in p(z) of (log((1 + s) /
    (1 - s)) - 2 s) / s^3 with z = s^2, for s up to (sqrt(2) - 1) / (sqrt(2) + 1).
    """
    source = Path(vector_math.__file__).read_text(encoding="utf-8")
    number = r"(?:F32\()?([\d.e+-]+)\)?"
    scalar = re.findall(rf"p = {number}\n((?: +p = p \* r \+ .*\n)+)", source)
    found = [("p", "r", [first, *re.findall(rf"\+ {number}", rest)]) for first, rest in scalar]
    vectors = rf"([pq]) = fused\(([rz]), {number}, {number}\)\n((?: +\1 = fused\(\1, \2, .*\)\n)+)"
    for name, of, a, b, rest in re.findall(vectors, source):
        found.append((name, of, [a, b, *re.findall(rf", [rz], {number}", rest)]))
    known = [
        ("p", "r", 6),
        ("p", "r", 11),
        ("q", "r", 6),
        ("q", "r", 11),
        ("p", "z", 7),
        ("p", "r", 7),
        ("p", "z", 4),
    ]
    assert [(name, of, len(written)) for name, of, written in found] == known
    with mpmath.workdps(50):
        half = mpmath.log(2) / 2 * mpmath.mpf("1.0002")
        root = mpmath.sqrt(2)
        most = ((root - 1) / (root + 1)) ** 2

        def tail(r):
            return (mpmath.expm1(r) - r) / r**2 if abs(r) > 1e-12 else mpmath.mpf(1) / 2 + r / 6

        def whole(r):
            return mpmath.expm1(r) / r if abs(r) > 1e-12 else 1 + r / 2

        def atanh(z):
            s = mpmath.sqrt(z)
            return 2 * (mpmath.atanh(s) - s) / s**3 if z > 1e-20 else mpmath.mpf(2) / 3 + 2 * z / 5

        functions = {"pr": (tail, -half, half), "qr": (whole, -half, half), "pz": (atanh, 0, most)}
        for k, (name, of, written) in enumerate(found):
            dtype = np.float32 if k in (0, 2) else np.float64
            function, low, high = functions[name + of]
            fitted = mpmath.chebyfit(function, [low, high], len(written))
            assert [dtype(v) for v in written] == [dtype(float(c)) for c in fitted]


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_types_convert_like_numpy(name):
    half = np.dtype(np.float16)
    if name == "bfloat16":
        half = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    integer = np.int16 if name == "float16" else np.uint16
    everything = np.arange(1 << 16, dtype=np.uint16)
    wide = np.empty(1 << 16, np.float32)
    widen_all(everything.view(integer), wide)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(wide, everything.view(half).astype(np.float32))
    rng = np.random.default_rng(2)
    x = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    x = np.concatenate([x, np.array([np.nan, -np.nan, np.inf, -np.inf, 65519.0, 65520.0, 1e-8], np.float32)])
    back = np.empty(x.size, integer)
    narrow_all(x, integer(0), back)
    with np.errstate(over="ignore", invalid="ignore"):
        want = x.astype(half)
    np.testing.assert_array_equal(back.view(half).astype(np.float32), want.astype(np.float32))


def test_maximum_keeps_nan():
    for dtype in (np.float32, np.float64):
        nan, one = dtype(np.nan), dtype(1)
        assert np.isnan(maximum_of(nan, one))
        assert np.isnan(maximum_of(one, nan))
        assert maximum_of(dtype(-np.inf), one) == 1


Z, ONE, WIDE = np.zeros(64, np.float32), np.float32(0), np.zeros(64)
LOOPS = {
    "largest": ("largest", (Z,), r"v?maxps|vcmp\w*ps"),
    "put_exp": ("put_exp", (Z, None, ONE, ONE, Z), None),
    "put_exp, transformed": ("put_exp", (Z, Z, ONE, ONE, Z), None),
    "sum_of": ("sum_of", (Z, 64), "v?addpd"),
    "sum_exp_gap": ("sum_exp_gap", (Z, None, ONE, ONE), None),
    "sum_mass_gap": ("sum_mass_gap", (Z, None, WIDE, ONE, ONE), None),
    "emit_grad in place": ("emit_grad", (Z, None, None, None, ONE, ONE, (ONE,) * 4, None), None),
    "emit_grad": ("emit_grad", (Z, None, None, None, ONE, ONE, (ONE,) * 4, Z), None),
    "emit_grad, all options": ("emit_grad", (Z, Z, WIDE, WIDE, ONE, ONE, (ONE,) * 4, None), None),
    "emit_hess": ("emit_hess", (Z, *(None,) * 4, ONE, ONE, (ONE, ONE, 0.0, 0.0, 0.0, 1.0, 0.0), Z), None),
    "sum_along": ("sum_along", (Z, WIDE, None, 0.0), "v?addpd"),
    "sum_along, soft cap": ("sum_along", (Z, WIDE, WIDE, 0.0), "v?addpd"),
    "emit_centred": ("emit_centred", (WIDE, None, 0.0, 0.0, 0.0, Z), "v?addpd"),
    "emit_hvp": (
        "emit_hvp",
        (Z, None, None, WIDE, None, None, ONE, ONE, (ONE, ONE, *(0.0,) * 5, 1.0), Z),
        None,
    ),
    "emit_log_softmax": ("emit_log_softmax", (Z, None, ONE, ONE, ONE, Z), "v?subps"),
    "soft_cap": ("soft_cap", (Z, Z, WIDE, WIDE, 1.0, 1.0, WIDE), None),
    "affine": ("affine", (Z, Z, 1.0, Z, Z), None),
    "put_exp in place": ("put_exp", (Z, None, ONE, ONE, None), None),
}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 register names")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_loops_are_vector_code(loop):
    """A scalar loop is an order of magnitude slower, and nothing but the machine code tells."""
    name, args, instruction = LOOPS[loop]
    compiled = getattr(elements, name)
    fastmath = compiled.targetoptions.get("fastmath", False)
    function = numba.njit(error_model="numpy", fastmath=fastmath)(compiled.py_func)
    function(*args)
    (asm,) = function.inspect_asm().values()
    packed = instruction or r"v?(?:fmadd|fnmadd|mul)\w*p[sd]"
    assert len(re.findall(rf"\s(?:{packed})\s.*%[xyz]mm", asm)) >= 2, asm


def some(n, c, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, c)) * 3).astype(dtype), rng.integers(0, c, n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("c", [127, 129, 1023, 1024, 1025, 2048, 4099])
def test_targets_and_maxima_at_the_edges_of_blocks(c, dtype):
    """Sums run in blocks of 128 or 1024 between the target and the maximum; every border must be right."""
    borders = [k for k in (0, 1, 127, 128, 129, 1022, 1023, 1024, 1025, 2047, 2048, c - 2, c - 1) if k < c]
    logits, _ = some(len(borders) ** 2, c, dtype)
    target = np.repeat(borders, len(borders))
    logits[np.arange(len(target)), np.tile(borders, len(borders))] += 20
    got, want = (
        sce.loss_and_grad(logits, target, backend=name, reduction="none") for name in ("cpu", "reference")
    )
    ulp = np.finfo(dtype).eps  # a class lost or counted twice is off by 1e-9 of the row, a rounding by ulps
    np.testing.assert_allclose(got[0], want[0], rtol=6 * ulp)
    np.testing.assert_allclose(got[1], want[1], rtol=8 * ulp)


STARVED = """
import resource, numpy as np, sce
x = np.zeros((1, 60_000_000), np.float16)
out = np.full_like(x, 7)
sce.loss_and_grad(x[:, : 1 << 21], [0], backend="cpu")  # compiles
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150_000_000, -1))
try:
    sce.loss_and_grad(x, [0], out=out, backend="cpu", validate=False)
except MemoryError:
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    print("MemoryError", set(out[0, ::1_000_000].tolist()))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads this process's size from /proc")
def test_too_little_memory_is_an_error_before_anything_is_written():
    done = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "MemoryError {7.0}\n", done.stdout + done.stderr


def test_a_numba_that_cannot_run_kernels_is_a_reason():
    code = "import sce; print(sce.backends()['cpu']); print(sce.explain([[0.0, 1.0]], [0]).chosen)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    reason, chosen = done.stdout.strip().rsplit("\n", 1)
    assert "NUMBA_DISABLE_JIT is set" in reason
    assert chosen == "reference"
