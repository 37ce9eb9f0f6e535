"""Why the CPU backend stores exponentials and sums them afterwards: three ways, timed and checked.

All three store them, for the gradient, and keep the maximum, as the product does. A float32 vector is dearer
to convert to float64 from registers than loaded again from the L1 cache; in float32 the sum loses accuracy.

python bench/sum_of_exponentials.py
"""

from __future__ import annotations

import time

import numba
import numpy as np

from sce_backends.cpu.reading import put_exp, sum_of
from sce_backends.cpu.simd import halves, largest, load, select, splat, store, total
from sce_backends.cpu.vector_math import exponential, shifted_by

BLOCK, LANES, LINE = 512, 16, 64
ONE = np.float32(0)


@numba.njit(error_model="numpy")
def in_float32(z, n, k, buffer):
    shift, floor = shifted_by(k, ONE)
    s, top = splat(ONE), splat(ONE)
    for at in range(0, n * 4, LINE):
        x = load(ONE, z + at, ONE)
        top = select(x > top, x, top)
        e = exponential(x, None, splat(shift), splat(floor))
        store(ONE, buffer + at, e)
        s = s + e
    return np.float64(total(s)), largest(top)


@numba.njit(error_model="numpy")
def in_float64(z, n, k, buffer):
    shift, floor = shifted_by(k, ONE)
    s, t, top = splat(0.0), splat(0.0), splat(ONE)
    for at in range(0, n * 4, LINE):
        x = load(ONE, z + at, ONE)
        top = select(x > top, x, top)
        e = exponential(x, None, splat(shift), splat(floor))
        store(ONE, buffer + at, e)
        a, b = halves(e)
        s, t = s + a, t + b
    return total(s + t), largest(top)


@numba.njit(error_model="numpy")
def reloaded(z, n, k, buffer):  # the product's
    top = put_exp(ONE, ONE, z, None, n, k, None, buffer, None)
    return sum_of(ONE, buffer, n), top


def row_sum(block_sum):
    @numba.njit
    def over_blocks(z, n, k, buffer):
        s = 0.0
        for a in range(0, n, BLOCK):
            found, top = block_sum(z + a * 4, BLOCK, k, buffer)
            s += found if top < np.inf else np.inf
        return s

    return over_blocks


def main(classes: int = 1 << 15, rounds: int = 200) -> None:
    z = (np.random.default_rng(0).standard_normal(classes) * 3).astype(np.float32)
    buffer = np.empty(BLOCK + LANES, np.float32)
    k = float(np.rint(z.max() / np.log(2)))
    arguments = z.ctypes.data, classes, k, buffer.ctypes.data + -buffer.ctypes.data % LINE
    want = np.exp(z.astype(np.float64) - k * np.log(2)).sum()
    ways = {f.__name__: row_sum(f) for f in (in_float32, in_float64, reloaded)}
    errors = {name: abs(f(*arguments) / want - 1) for name, f in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):  # alternating, so that a busy machine is busy for all
        for name, f in ways.items():
            began = time.perf_counter()
            f(*arguments)
            times[name].append(time.perf_counter() - began)
    for name, seconds in times.items():
        median = float(np.median(seconds))
        print(
            f"{name:<11} {median * 1e6:6.1f} us  {classes / median / 1e9:5.2f} G/s  error {errors[name]:.1e}"
        )


if __name__ == "__main__":
    main()
