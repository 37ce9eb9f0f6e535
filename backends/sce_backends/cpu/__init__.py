"""Numba on the CPU: the door. It says what the backend takes and hands problems to the kernels behind it.

plan.py      which kernel, in which pieces, with how much memory to work in
execute.py   a problem: its parameters and scratch, the launch, the sum
launch.py    a kernel for each combination of options, and chunks of rows for threads.py, which computes them
kernel.py    the kernel for everything, with rows.py and elements.py: loops that LLVM makes vectors of
tiles.py     the kernel for most calls, in vectors, a tile of rows (tile.py) at a time in three passes:
             reading.py, which labels.py and distributions.py use; settling.py; writing.py
pieces.py    the same for few long rows; columns.py, with transposing.py, wide.py and second_columns.py: the
             same for few classes; transforms.py: temperature and bias
simd.py      what a vector is; vector_math.py: exp, log and max; memory.py: rows by address, half types
binary.py, logistic.py    problems of one logit per element, and their kernel
along.py                  products with a vector; exponentials.py: a row's exponentials in float64
jacobian.py, outer.py     Jacobians, and their kernel
threads.py   who computes; cache.py: where compiled kernels are kept
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from sce.backend import DTYPES, JACOBIANS, Answer, Problem

on_device: bool = False
debug: bool = False
takes_binary: bool = True
takes_jacobians: bool = True


def refuses(problem: Problem) -> str | None:
    if problem.on_device:
        return "logits live on a device."
    if problem.dtype not in DTYPES:
        return f"dtype is {problem.dtype}, not one of {', '.join(DTYPES)}."
    return None


def missing() -> str | None:
    import numba
    import platformdirs  # noqa: F401

    config: Any = numba.config
    if config.DISABLE_JIT:
        return "NUMBA_DISABLE_JIT is set: its kernels exist only compiled."
    return None


def info() -> dict[str, str]:
    from .cache import directory
    from .threads import available

    kept = directory()
    place = str(kept or "none: it cannot be made, so each process compiles for itself")
    return {
        "threads": str(available()),
        "kernel cache": f"{place} (read-only)" if kept and not os.access(kept, os.W_OK) else place,
    }


def run(problem: Problem, answer: Answer) -> None:
    if problem.binary:
        from .binary import execute
    elif not problem.outputs.isdisjoint(JACOBIANS):
        from .jacobian import execute
    else:
        from .execute import execute
    execute(problem, answer)


def repeat(problem: Problem, answer: Answer) -> Callable[[], None]:
    if problem.binary:
        from .binary import prepare

        return prepare(problem, answer)
    if not problem.outputs.isdisjoint(JACOBIANS):
        return functools.partial(run, problem, answer)
    from .execute import prepare as ready

    return ready(problem, answer).run
