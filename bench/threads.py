"""What it costs to share a problem among threads: this package's helpers against Numba's parallel loop.

    python bench/threads.py [--busy N] [--rounds N]

The same kernel on the same chunks, in turns, in one process: alone on the calling thread, on the package's
helpers, on the same where these may run on the caller's core, too, and in a loop of Numba's on the layer that
NUMBA_THREADING_LAYER names. `--busy` keeps N other processes computing. This is the measurement behind
sce_backends/cpu/threads.py.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numba import prange

import sce
from sce_backends.cpu import launch, threads

SHAPES = ((10, 1000), (700, 1000), (2000, 1000), (5000, 1000), (16384, 1000), (512, 128256))


@numba.njit(parallel=True, nogil=True)
def numba_loop(function: Any, parameters: Any, chunks: Any, workers: Any) -> None:
    for w in prange(workers):
        launch._call(function, w, chunks * w // workers, chunks * (w + 1) // workers, parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()
    ours, elsewhere = launch.launch, threads._other_cores

    def anywhere(*call: Any) -> None:
        threads._other_cores = lambda workers: os.sched_getaffinity(0)
        ours(*call)
        threads._other_cores = elsewhere

    ways: dict[str, Callable[..., None]] = {
        "alone": lambda function, parameters, chunks, workers: ours(function, parameters, chunks, 1),
        "helpers": ours,
        "helpers anywhere": anywhere,
        "numba": numba_loop,
    }
    print("microseconds: fastest tenth, median, slowest twentieth")
    print("shape".rjust(16) + "".join(way.rjust(24) for way in ways))
    with others(args.busy):
        for n, c in SHAPES:
            took = times(n, c, ways, args.rounds)
            cells = (" ".join(f"{q:.0f}" for q in np.quantile(t, (0.1, 0.5, 0.95))) for t in took.values())
            print(f"{n} x {c}".rjust(16) + "".join(cell.rjust(24) for cell in cells), flush=True)
    print("numba's layer:", numba.threading_layer())


def times(n: int, c: int, ways: dict[str, Callable[..., None]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each call, by way."""
    logits = np.random.default_rng(0).standard_normal((n, c)).astype(np.float32)
    target, out = np.arange(n) % c, np.empty_like(logits)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name, way in ways.items():
            launch.launch = way
            for repeat in range(3):  # the first follows another way's threads
                start = time.perf_counter()
                sce.loss_and_grad(logits, target, out=out, backend="cpu", validate=False)
                if i and repeat:
                    took[name].append(1e6 * (time.perf_counter() - start))
            time.sleep(0.05)  # OpenMP's threads spin for a while
    return took


@contextmanager
def others(n: int) -> Iterator[None]:
    """Other processes that want the cores."""
    spawn = multiprocessing.get_context("spawn")
    started = [spawn.Process(target=compute, daemon=True) for _ in range(n)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.terminate()


def compute() -> None:
    x = np.ones(1 << 16)
    while True:
        np.sqrt(x, x)


if __name__ == "__main__":
    main()
