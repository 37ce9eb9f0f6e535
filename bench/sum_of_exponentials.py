"""Why the CPU backend sums exponentials through a buffer: the three ways, timed and checked.

python bench/sum_of_exponentials.py
"""

from __future__ import annotations

import time

import numba
import numpy as np

from sce_backends.cpu import elements
from sce_backends.cpu.elements import gap_at
from sce_backends.cpu.vector_math import exp

SUM = {"reassoc", "nsz", "contract"}
BLOCK = 1024


@numba.njit(error_model="numpy", fastmath=SUM)
def in_float32(z, top, buffer):
    s = np.float32(0)
    for k in range(z.size):
        d, err = gap_at(z, None, top, top, k)
        s += exp(d, err)
    return np.float64(s)


@numba.njit(error_model="numpy", fastmath=SUM)
def in_float64(z, top, buffer):
    s = 0.0
    for k in range(z.size):
        d, err = gap_at(z, None, top, top, k)
        s += np.float64(exp(d, err))
    return s


@numba.njit(error_model="numpy")
def buffered(z, top, buffer):  # the product's
    zero = z.dtype.type(0)
    elements.put_exp(z, None, top, zero, buffer)
    return elements.sum_of(buffer, z.size)


def row_sum(block_sum):
    @numba.njit
    def over_blocks(z, top, buffer):
        s = 0.0
        for a in range(0, z.size, BLOCK):
            s += block_sum(z[a : a + BLOCK], top, buffer)
        return s

    return over_blocks


def main(classes: int = 1 << 15, rounds: int = 200) -> None:
    z = (np.random.default_rng(0).standard_normal(classes) * 3).astype(np.float32)
    top, buffer = z.max(), np.empty(BLOCK, np.float32)
    want = np.exp(z.astype(np.float64) - np.float64(top)).sum()
    ways = {f.__name__: row_sum(f) for f in (in_float32, in_float64, buffered)}
    errors = {name: abs(f(z, top, buffer) / want - 1) for name, f in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):  # alternating, so that a busy machine is busy for all
        for name, f in ways.items():
            began = time.perf_counter()
            f(z, top, buffer)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        median = float(np.median(seconds))
        print(
            f"{name:<11} {median * 1e6:6.1f} us  {classes / median / 1e9:5.2f} G/s  error {errors[name]:.1e}"
        )


if __name__ == "__main__":
    main()
