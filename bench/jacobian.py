"""Jacobians and derivatives along v, as a share of moving the same bytes.

python bench/jacobian.py [megabytes]

A Jacobian beside a copy of itself, into memory that exists (`out=`) and into new memory; a product with v
beside the sum of two matrices into a third, which reads and writes as much. The rounds alternate, so that a
machine that slows down slows both.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

import sce
from sce.bench.clock import Rounds, alternate

CLASSES = (3, 10, 30, 100, 1000)
ROUNDS = Rounds(least=9, enough=0.5, patience=6.0)
DTYPES = ("float32", "float64", "float16")


def ratios(calls: dict[str, Callable[[], object]]) -> str:
    """Each call's best time over that of the first."""
    for call in calls.values():
        call()
    best = {name: min(times.seconds) for name, times in alternate(calls, ROUNDS).items()}
    first, *others = best
    return "  ".join(f"{name} {best[name] / best[first]:.2f} x" for name in others)


def jacobians(dtype: str, classes: int, size: int) -> str:
    rows = max(1, size // (classes * classes * np.dtype(dtype).itemsize))
    x = np.random.default_rng(0).normal(size=(rows, classes)).astype(dtype)
    out = np.zeros((rows, classes, classes), dtype)
    other = np.ones_like(out)
    calls: dict[str, Callable[[], object]] = {"copy": lambda: np.copyto(other, out)}
    for name in ("softmax_jacobian", "log_softmax_jacobian"):
        function = getattr(sce, name)
        calls[name] = lambda function=function: function(x, out=out, backend="cpu")
        calls[f"{name}, new memory"] = lambda function=function: function(x, backend="cpu")
    return ratios(calls)


def products(dtype: str, classes: int, size: int) -> str:
    rows = max(1, size // (3 * classes * np.dtype(dtype).itemsize))
    x, v = np.random.default_rng(0).normal(size=(2, rows, classes)).astype(dtype)
    y, out = np.zeros(rows, np.int64), np.zeros_like(x)
    calls: dict[str, Callable[[], object]] = {"sum": lambda: np.add(x, v, out=out)}
    for name in ("softmax_jvp", "log_softmax_jvp", "log_softmax_vjp"):
        function = getattr(sce, name)
        calls[name] = lambda function=function: function(x, v, out=out, backend="cpu")
    calls["hvp"] = lambda: sce.hvp(x, y, v, out=out, backend="cpu")
    return ratios(calls)


def main() -> None:
    size = (int(sys.argv[1]) if len(sys.argv) > 1 else 100) << 20
    for dtype in DTYPES:
        for classes in CLASSES:
            print(f"{dtype} C = {classes}: {jacobians(dtype, classes, size)}")
        for classes in (*CLASSES, 10_000):
            print(f"{dtype} C = {classes}: {products(dtype, classes, size)}")


if __name__ == "__main__":
    main()
