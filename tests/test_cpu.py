"""What the Numba backend promises beyond its answers: error bounds, vector code, threads, cache."""

import json
import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import mpmath
import numpy as np
import pytest

import sce

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
import numba

from sce_backends.cpu import cache, elements, memory, vector_math


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
    """The coefficients in the source are what mpmath finds for (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2."""
    source = Path(vector_math.__file__).read_text(encoding="utf-8")
    bodies = re.findall(r"p = (?:F32\()?([\d.e+-]+)\)?\n((?: +p = p \* r \+ .*\n)+)", source)
    assert len(bodies) == 2
    with mpmath.workdps(50):
        half = mpmath.log(2) / 2 * mpmath.mpf("1.0002")

        def tail(r):
            return (mpmath.expm1(r) - r) / r**2 if abs(r) > 1e-12 else mpmath.mpf(1) / 2 + r / 6

        for (first, rest), dtype in zip(bodies, (np.float32, np.float64), strict=True):
            written = [float(v) for v in [first, *re.findall(r"\+ (?:F32\()?([\d.e+-]+)", rest)]]
            fitted = mpmath.chebyfit(tail, [-half, half], len(written))
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
    "emit_hess": ("emit_hess", (Z, None, None, None, None, ONE, ONE, (ONE, ONE, 0.0, 0.0, 0.0), Z), None),
    "emit_log_softmax": ("emit_log_softmax", (Z, None, ONE, ONE, ONE, Z), "v?subps"),
    "soft_cap": ("soft_cap", (Z, Z, WIDE, WIDE, 1.0, 1.0, WIDE), None),
    "affine": ("affine", (Z, Z, 1.0, Z, Z), None),
    "put_exp in place": ("put_exp", (Z, None, ONE, ONE, None), None),
    "weigh": ("weigh", (Z, None, None, (ONE,) * 4), None),
    "weigh, all options": ("weigh", (Z, WIDE, WIDE, (ONE,) * 4), None),
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


@pytest.mark.parametrize(("n", "c"), [(1, 10), (20_000, 3), (4099, 129), (400, 3000), (5, 70_000)])
def test_the_same_bits_for_any_number_of_threads(n, c):
    logits, target = some(n, c)
    most = numba.get_num_threads()
    if most < 2:
        pytest.skip("this process has one thread")
    answers = []
    try:
        for threads in (1, 2, most):
            numba.set_num_threads(threads)
            loss, grad = sce.loss_and_grad(logits, target, backend="cpu")
            answers.append((loss.tobytes(), grad.tobytes()))
    finally:
        numba.set_num_threads(most)
    assert len(set(answers)) == 1


def test_threads_may_call_at_once():
    logits, target = some(6000, 50)
    want = sce.loss_and_grad(logits, target, backend="cpu")[1].tobytes()
    seen = []

    def call():
        seen.extend(sce.loss_and_grad(logits, target, backend="cpu")[1].tobytes() for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(seen) == 40
    assert set(seen) == {want}


FORKING = """
import multiprocessing, numpy as np, sce
logits, target = np.random.default_rng(0).normal(size=(6000, 50)), np.arange(6000) % 50
def call(_):
    return sce.loss_and_grad(logits, target, backend="cpu")[1].tobytes()
want = call(0)  # wakes the threads before the fork
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert set(pool.map(call, range(6))) == {want}
print("agreed")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_answers():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING], capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "agreed\n", done.stderr


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
sce.loss_and_grad(x[:, :10], [0], backend="cpu")  # compiles
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


CACHE_THREADS = """
import threading, numba, numpy as np, sce
before = numba.config.CACHE_DIR
x, y = np.eye(4, dtype=np.float32), np.arange(4)
options = [{}, {"label_smoothing": 0.1}, {"temperature": 2.0}, {"softcap": 5.0}]
start = threading.Barrier(4)
def call(kw):
    start.wait()
    sce.loss_and_grad(x, y, backend="cpu", **kw)
threads = [threading.Thread(target=call, args=(kw,)) for kw in options]
[t.start() for t in threads]; [t.join() for t in threads]
print(numba.config.CACHE_DIR == before)
"""


def test_first_calls_in_threads_leave_the_user_s_cache_directory_alone():
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", CACHE_THREADS], capture_output=True, text=True, check=True
        )
        assert done.stdout == "True\n"


CHILD = """
import json, sys, numpy as np, sce
loss, grad = sce.loss_and_grad(np.eye(4, dtype=np.float32), np.arange(4), backend="cpu")
from sce_backends.cpu import cache
print(json.dumps([float(loss), str(cache.directory())]))
"""


def child(**environment):
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1]), done.stdout


def test_a_second_process_takes_its_kernels_from_the_cache(tmp_path):
    (loss, where), _ = child(SCE_CACHE_DIR=str(tmp_path))
    assert where.startswith(str(tmp_path))
    written = sorted(tmp_path.rglob("*.nbc"))
    assert written
    stamps = [f.stat().st_mtime_ns for f in written]
    (again, _), log = child(SCE_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert "data loaded from" in log
    assert "data saved to" not in log
    assert [f.stat().st_mtime_ns for f in sorted(tmp_path.rglob("*.nbc"))] == stamps


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    (_, where), _ = child(SCE_CACHE_DIR=str(blocked / "below"))
    assert where == "None"
    assert blocked.read_text() == "not a directory"


def test_the_cache_is_named_after_every_source_file(monkeypatch, tmp_path):
    """Numba looks at one file per kernel: a change in a file that it calls must start a new cache, too."""
    monkeypatch.setenv("SCE_CACHE_DIR", str(tmp_path / "cache"))
    before = cache.directory.__wrapped__()
    package = tmp_path / "package"
    package.mkdir()
    for source in ("cache.py", "vector_math.py"):
        (package / source).write_bytes(b"# changed")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    assert cache.directory.__wrapped__() != before


def test_the_user_s_own_cache_directory_is_left_alone():
    assert os.environ.get("NUMBA_CACHE_DIR", "") == numba.config.CACHE_DIR


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("NUMBA_DISABLE_JIT", "1", "NUMBA_DISABLE_JIT is set"),
        ("NUMBA_THREADING_LAYER", "no-such-layer", "its check failed"),
    ],
)
def test_a_numba_that_cannot_run_kernels_is_a_reason(variable, value, words):
    code = "import sce; print(sce.backends()['cpu']); print(sce.explain([[0.0, 1.0]], [0]).chosen)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        check=True,
    )
    reason, chosen = done.stdout.strip().rsplit("\n", 1)
    assert words in reason
    assert chosen == "reference"
