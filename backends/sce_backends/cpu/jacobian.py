"""A problem's way to its Jacobians, which outer.py makes: chunks, parameters and scratch."""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any

import numba as nb
import numpy as np

from sce.backend import Answer, Array, Problem

from . import launch, outer, threads
from .cache import native_function, once
from .memory import WITNESSES, address
from .outer import BLOCK, BUFFER, FEW, FLOATS, INTEGERS, PARAMETERS
from .simd import LINE

_CHUNK = 1 << 17  # numbers of the answer: some tenths of a millisecond
_ROW, _CLASS = 64, 8  # numbers that a row costs besides its Jacobian's, and that each of its classes does
_PAST_CACHES = 1 << 24  # bytes of an answer that the caches cannot hold
_PACKED = struct.Struct(f"={len(INTEGERS)}q{len(FLOATS)}d")


@once
def kernel(dtype: str) -> Any:
    """The C function of outer.work for logits of a type, as launch.kernel."""
    of, one = WITNESSES[dtype], np.float64(1) if dtype == "float64" else np.float32(1)

    def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
        outer.work(worker, first, last, parameters, of, one)

    return native_function(nb.void(nb.int64, nb.int64, nb.int64, nb.int64))(chunks)


def execute(problem: Problem, answer: Answer) -> None:
    """Fill the answer. Scratch is made first, as in execute.py."""
    logits, n, t = problem.logits, problem.classes, problem.temperature
    if n * n >= _CHUNK:
        chunk = max(1, _CHUNK // n)
        pieces = -(-n // chunk)
        chunks = problem.rows * pieces
    else:
        chunk, pieces = max(1, _CHUNK // (n * (n + _CLASS) + _ROW) // BLOCK) * BLOCK, 1
        chunks = -(-problem.rows // chunk)
    workers = threads.workers(chunks)
    block = BLOCK if n <= FEW else 1
    vector = _whole_lines(max(n, FEW) * 8 * block)
    # What is written in whole vectors, or for whole blocks of rows, ends after the last row.
    turned = _whole_lines(n * n * LINE) if n <= FEW else 0
    together = n * n * block if n <= FEW else n  # numbers that are put behind up to BUFFER bytes
    slot = 3 * vector + turned + _whole_lines(BUFFER + (together + n) * logits.itemsize)
    memory = np.empty(_PACKED.size + LINE + slot * workers, np.uint8)
    begin = address(memory) + _PACKED.size
    integers = {
        "rows": problem.rows,
        "inner": logits.shape[1],
        "classes": n,
        "logits": address(logits),
        "of_a": logits.strides[0],
        "of_b": logits.strides[1],
        "of_c": logits.strides[2],
        "apart": _apart(logits),
        "chunk": chunk,
        "pieces": pieces,
        "scratch": begin + -begin % LINE,
        "vector": vector,
        "turned": turned,
        "slot": slot,
    }
    by_lo = float(1 - Fraction(1.0 / t) * Fraction(t)) / t  # exact but for its own rounding
    found = kernel(problem.dtype)
    for name in ("softmax_jacobian", "log_softmax_jacobian"):
        if (into := getattr(answer, name)) is None:
            continue
        integers["out"] = address(into)
        integers["of_log"] = name == "log_softmax_jacobian"
        integers["past_caches"] = into.nbytes >= _PAST_CACHES
        _PACKED.pack_into(memory.data, 0, *(integers[name] for name in INTEGERS), 1.0 / t, by_lo)
        launch.launch(found.address, address(memory), chunks, workers)


def _apart(logits: Array) -> int:
    """Bytes from each row to the next, or 0 where they are not equally far."""
    outer, inner, _ = logits.shape
    if inner == 1:
        return logits.strides[0]
    return logits.strides[1] if outer == 1 or logits.strides[0] == inner * logits.strides[1] else 0


def _whole_lines(size: int) -> int:
    """Rounded up to cache lines, and one more."""
    return -(-size // LINE) * LINE + LINE


assert _PACKED.size == PARAMETERS.itemsize
