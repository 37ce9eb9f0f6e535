"""The CPU backend's memory: any address, any number of classes, any strides, and matrices past 2^31 elements.

What the conformance suite holds every backend to with a few small shapes, here for each of the kernels and
where those read and write by vectors and cache lines: nothing beside the gradient may change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sce
from sce import conformance
from sce.backend import DTYPES
from sce.conformance.case import FULL, POISON, Case, cast
from sce.conformance.cases_layouts import ARRANGE, places
from sce.conformance.compare import compare
from sce.conformance.expected import expected

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes: pip install 'sce[bfloat16]'")
from sce_backends.cpu import plan

LINE = 64


def some(n, c, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    return cast(rng.standard_normal((n, c)) * 3, dtype), rng.integers(0, c, n)


def conforms(cases):
    report = conformance.check("cpu", cases)
    assert not report.failures, "\n".join(f"{f.case} | {f.output}: {f.message}" for f in report.failures[:9])
    assert report.passed == len(cases)


def lines(size):
    """Poisoned bytes that begin with a cache line."""
    raw = np.full(size + LINE, POISON, np.uint8)
    return raw[-raw.ctypes.data % LINE :][:size]


def placed(x, memory, at):
    """An array like `x`, of the bytes from `at` on."""
    return np.ndarray(x.shape, x.dtype, memory, at)


@pytest.fixture(params=["plain", "streaming"])
def stores(request, monkeypatch):
    """Gradients past the caches are written by other instructions; small ones stand for them here."""
    if request.param == "streaming":
        monkeypatch.setattr(plan, "_PAST_CACHES", 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_of_classes(dtype):
    shapes = [(5, c) for c in range(1, 301)]
    shapes += [(130, c) for c in (*range(1, 20), 31, 32, 33, 63, 64, 65, 66, 127, 129, 255, 257, 300)]
    conforms([Case("", f"{dtype} {n}x{c}", *some(n, c, dtype), {"reduction": "none"}) for n, c in shapes])


KERNELS = {
    "columns": (5, ("loss", "grad")),
    "columns, one vector": (32, ("loss", "grad")),
    "tiles": (65, ("loss", "grad")),
    "tiles, blocks": (600, ("loss", "grad")),
    "rows": (33, ("loss", "grad", "argmax")),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_any_address_and_nothing_beside_the_gradient(kernel, dtype, stores):
    """The same bits wherever logits and gradient begin; and of the memory around these, none changes.

    Logits may begin at any byte, a gradient at whole elements only (see test_bad_input.py).
    """
    c, outputs = KERNELS[kernel]
    x, y = some(5, c, dtype)

    def gradient(logits, out):
        return sce.evaluate(logits, y, outputs=outputs, out=out, reduction="none", backend="cpu").grad

    for of in {np.dtype(x.dtype), np.dtype(np.float32)} if x.itemsize == 2 else {x.dtype}:
        want = gradient(x, np.empty(x.shape, of))
        for at in range(LINE):
            given = lines(at + x.nbytes)
            logits = placed(x, given, at)
            logits[...] = x
            before = given.copy()
            memory = lines(LINE + want.nbytes + 2 * LINE)
            right = memory.copy()
            to = LINE + (5 * at + 3) * of.itemsize % LINE  # each of both with many of the other
            placed(want, right, to)[...] = want
            gradient(logits, placed(want, memory, to))
            assert (memory == right).all(), (of, at, to)
            assert (given == before).all(), (of, at, to)
            if at % x.itemsize == 0 and of == x.dtype:
                placed(want, before, at)[...] = want
                gradient(logits, logits)
                assert (given == before).all(), ("in place", at)


WAYS_TO_LIE = {
    "rows padded": lambda memory, n, c: memory[: n * (c + 3)].reshape(n, c + 3)[:, :c],
    "every other row": lambda memory, n, c: memory[: 2 * n * c].reshape(2 * n, c)[::2],
    "every third class": lambda memory, n, c: memory[: 3 * n * c].reshape(n, 3 * c)[:, ::3],
    "rows reversed": lambda memory, n, c: memory[: n * c].reshape(n, c)[::-1],
    "classes reversed": lambda memory, n, c: memory[: n * c].reshape(n, c)[:, ::-1],
    "Fortran": lambda memory, n, c: memory[: n * c].reshape(c, n).T,
    "Fortran, padded": lambda memory, n, c: memory[: (n + 3) * c].reshape(c, n + 3)[:, :n].T,
    "both reversed, gaps": lambda memory, n, c: memory[: 4 * n * c].reshape(2 * n, 2 * c)[::-2, ::-2],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lies", WAYS_TO_LIE)
def test_a_gradient_in_any_strides_leaves_the_gaps_alone(lies, dtype, stores):
    """In memory of its own and in place, with gaps between its elements and memory around them."""
    for n, c in ((9, 7), (9, 70), (3, 1100), (70, 40)):
        x, y = some(n, c, dtype)
        known = expected(Case("", "", x, y))
        for in_place in (False, True):
            memory = lines(4 * (n + 3) * (c + 3) * x.itemsize + 2 * LINE)
            before = memory.copy()
            out, rest = (WAYS_TO_LIE[lies](m[LINE:-LINE].view(x.dtype), n, c) for m in (memory, before))
            if in_place:
                out[...] = x
            grad = sce.loss_and_grad(out if in_place else x, y, out=out, backend="cpu")[1]
            assert grad is out
            assert not compare(out, known.want["grad"], known.bound["grad"])[0]
            rest[...] = out
            assert (memory == before).all(), (n, c, in_place)


NOWHERE = {
    "one number everywhere": lambda x: (np.broadcast_to(x[0, 0], x.shape), -1),
    "one row everywhere on two axes": lambda x: (np.broadcast_to(x[0], (3, len(x) // 3, x.shape[1])), -1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c"), [(132, 10), (12, 100), (12, 1300)])
def test_logits_in_any_strides(dtype, n, c):
    """The suite's arrangements, at sizes for each kernel: transposed, reversed, sliced, broadcast."""
    x, y = some(n, c, dtype)
    cases = []
    for name, arrange in (ARRANGE | NOWHERE).items():
        logits, axis = arrange(x)
        target = y.reshape(np.moveaxis(logits, axis, -1).shape[:-1])
        options = {"axis": axis, "reduction": "none"}
        cases += [
            Case("", f"{name}, out {out}", logits, target, options, out=out)
            for out in (None, *places(logits, dtype))
        ]
        cases.append(Case("", f"{name}, all outputs", logits, target, options, FULL))
    conforms(cases)


def free_memory():
    """Bytes, as far as Linux tells; else 0."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = int(dict(line.split(":") for line in lines)["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
        return free
    except (OSError, KeyError, ValueError):
        return 0


@pytest.mark.skipif(free_memory() < 12 << 30, reason="takes 4.3 GB of memory: run where 12 GB are free")
def test_more_than_2_to_the_31_elements():
    """No index is counted in 32 bits: rows past 2^31 elements and 2^32 bytes are their own, and written."""
    n, c = (1 << 14) + 16, 1 << 17
    few, _ = some(61, c, "float16")  # a prime: a row and the one 2^31 elements before it are not alike
    x = np.empty((n, c), np.float16)
    for first in range(0, n, len(few)):
        x[first : first + len(few)] = few[: n - first]
    y = np.arange(n) * 7 % c
    looked_at = [0, 1, (1 << 13) - 1, 1 << 13, (1 << 14) - 1, 1 << 14, (1 << 14) + 1, n - 2, n - 1]
    known = expected(Case("", "", x[looked_at], y[looked_at], {"reduction": "none"}))
    loss, grad = sce.loss_and_grad(x, y, out=x, reduction="none", backend="cpu")
    assert not compare(loss[looked_at], known.want["loss"], known.bound["loss"])[0]
    assert not compare(grad[looked_at], known.want["grad"], known.bound["grad"])[0]
    assert (grad[np.arange(n), y] < -0.9).all()
    small = np.abs(grad[:, ::509]) < 0.01  # logits that nobody replaced are larger
    assert (small.mean(axis=1) > 0.9).all()
