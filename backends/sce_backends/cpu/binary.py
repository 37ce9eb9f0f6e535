"""A binary problem's way through logistic.py: runs of elements, chunks of them, parameters and scratch."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from sce.backend import Answer, Array, Problem

from . import logistic, threads
from .cache import native_function, once
from .launch import Ready
from .logistic import BLOCK, FLOATS, INTEGERS, MATRICES, PARAMETERS, SLOTS, WIDE
from .memory import WITNESSES, address
from .simd import LINE

_CHUNK = 1 << 17  # elements: some tenths of a millisecond
_PAST_CACHES = 1 << 24  # bytes of a gradient that the caches cannot hold
_RUN = 16  # elements that a run costs besides its own
_LABELS: dict[str, Any] = {
    "int8": np.int8(1), "int32": np.int32(1), "int64": np.int64(1)
}  # fmt: skip
_PACKED = struct.Struct(f"={len(INTEGERS)}q{len(FLOATS)}d{3 * len(MATRICES)}q")


class Runs(NamedTuple):
    """How the elements are gone through: `outer` runs, each of `run` elements, in `chunks`."""

    outer: int
    run: int
    chunk: int  # runs, or elements where a run has several pieces
    pieces: int
    chunks: int
    steps: tuple[tuple[int, int], ...]  # bytes from run to run and from element to element, of each array
    packed: bool  # no array has gaps


@once
def kernel(dtype: str, logits: str, target: str, grad: str) -> Any:
    """The C function of logistic.work for these types, as launch.kernel."""
    one = np.dtype(dtype).type(1)
    of, into = WITNESSES[logits], WITNESSES[grad]
    y_of = _LABELS[target] if target in _LABELS else WITNESSES[target]

    def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
        logistic.work(worker, first, last, parameters, of, y_of, one, into)

    return native_function(nb.void(nb.int64, nb.int64, nb.int64, nb.int64))(chunks)


def execute(problem: Problem, answer: Answer) -> None:
    prepare(problem, answer)()


def prepare(problem: Problem, answer: Answer) -> Callable[[], None]:
    """What fills the answer, as execute.prepare(problem, answer).run does."""
    arrays = _arrays(problem, answer)
    runs = _runs(
        problem.logits.shape[:2],
        tuple(None if x is None else (x.strides[:2], x.itemsize) for x in arrays),
        _CHUNK,
    )
    x, y, _, w, grad, _ = arrays
    assert x is not None
    assert y is not None
    ignored = problem.ignore_index
    if problem.labels is not None and ignored is not None:
        known = np.iinfo(problem.labels.dtype)
        inside = known.min <= ignored <= known.max
        ignored = int(np.array(ignored, problem.labels.dtype).view(y.dtype)) if inside else None
    into = x.dtype if grad is None else grad.dtype
    dtype = "float64" if problem.dtype == "float64" else "float32"
    found = kernel(dtype, problem.dtype, y.dtype.name, into.name)
    workers = threads.workers(runs.chunks)
    streams = grad is not None and grad.nbytes >= _PAST_CACHES and address(grad) != address(x)
    streams = streams and runs.steps[MATRICES.index("grad")][1] == into.itemsize
    block = runs.run if runs.packed and not streams else BLOCK
    slot = (BLOCK if block == BLOCK else WIDE) * 8 + LINE  # what is left of a run is less than a vector
    scratch = np.empty(_PACKED.size + 16 * runs.chunks + SLOTS * slot * workers + 2 * LINE, np.uint8)
    partial = address(scratch) + _PACKED.size
    partial += -partial % 64
    d = problem.denominator
    integers = {
        "outer": runs.outer,
        "run": runs.run,
        "chunk": runs.chunk,
        "pieces": runs.pieces,
        "loss": 0 if answer.loss is None or problem.reduce else address(answer.loss),
        "partial": partial,
        "scratch": partial + 16 * runs.chunks,
        "block": block,
        "slot": slot,
        "past_caches": streams,
        "ignores": ignored is not None,
        "ignored": ignored or 0,
        "plain": _plain(problem, answer, arrays),
    }
    t = problem.temperature
    floats = {
        "denominator": d or math.inf,
        "unit": 1.0 / d if d else 0.0,
        "by": 1.0 / t,
        "by_lo": float(1 - Fraction(1.0 / t) * Fraction(t)) / t,  # exact but for its own rounding
        "pos_weight_of_all": problem.pos_weight if w is None else 1.0,
        "keep": 1.0 - problem.label_smoothing,
        "spread": problem.label_smoothing / 2,
        "of_grad": problem.grad_scale / t,
        "of_hess": problem.hess_scale / t,  # and `by` comes last: 1 / t^2 is beyond float64 sooner
        "hess_min": -math.inf if problem.hess_min is None else problem.hess_min,
    }
    matrices = [
        number
        for a, step in zip(arrays, runs.steps, strict=True)
        for number in (0 if a is None else address(a), *step)
    ]
    numbers = [*(integers[name] for name in INTEGERS), *(floats[name] for name in FLOATS), *matrices]
    _PACKED.pack_into(scratch.data, 0, *numbers)
    sums = answer.loss if problem.reduce else None, None
    return Ready(found, scratch, runs.chunks, workers, sums, partial, False, (arrays, problem, answer)).run


def _plain(problem: Problem, answer: Answer, arrays: tuple[Array | None, ...]) -> bool:
    """Are all numbers such that float32 holds them and their products, as it is with the defaults?"""
    _, y, u, w, _, hess = arrays
    return (
        problem.dtype != "float64"
        and (problem.labels is not None or (y is not None and y.dtype != np.float64))
        and u is None
        and w is None
        and hess is None
        and problem.pos_weight == problem.temperature == 1
        and problem.label_smoothing == 0
        and (answer.loss is None or problem.reduce or problem.denominator == 1)
        and bool(problem.denominator)
        and 2.0**-80 < abs(problem.grad_scale / problem.denominator) < 2.0**80
    )


def _arrays(problem: Problem, answer: Answer) -> tuple[Array | None, ...]:
    """The arrays that logistic.MATRICES names, of as few types as there are kernels worth compiling."""
    y = problem.distribution if problem.labels is None else problem.labels
    if (
        y is not None and y.dtype == np.uint8
    ):  # 0 and 1 are the same, and so is the ignored one: see `prepare`
        y = y.view(np.int8)
    elif y is not None and y.itemsize == 2 and y.dtype != problem.logits.dtype:
        y = y.astype(np.float32)
    w = problem.pos_weight if isinstance(problem.pos_weight, np.ndarray) else None
    return problem.logits, y, problem.sample_weight, w, answer.grad, answer.hess_diag


@functools.lru_cache(maxsize=1024)
def _runs(shape: tuple[int, int], seen: tuple[tuple[tuple[int, int], int] | None, ...], chunk: int) -> Runs:
    """The longest runs there are: all elements, if each array's are equally far apart.

    `seen` has each array's strides and the size of its elements. Bits depend on this and on nothing else.
    """
    outer, run = shape
    given = [found for found in seen if found]
    along = 1
    if run == 1 or outer == 1:
        outer, run, along = 1, outer * run, 0 if run == 1 else 1
    elif all(strides[0] == run * strides[1] for strides, _ in given):
        outer, run = 1, outer * run
    steps = tuple((0, 0) if found is None else (found[0][0], found[0][along]) for found in seen)
    packed = all(found is None or step[1] == found[1] for found, step in zip(seen, steps, strict=True))
    if run > chunk:
        pieces = -(-run // chunk)
        return Runs(outer, run, chunk, pieces, outer * pieces, steps, packed)
    several = max(1, chunk // (run + _RUN))
    return Runs(outer, run, several, 1, -(-outer // several), steps, packed)


assert _PACKED.size == PARAMETERS.itemsize
