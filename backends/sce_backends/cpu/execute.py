"""A problem's way through a kernel: parameters and scratch are made before the launch, so that one which
cannot have its memory fails before anything is written.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from sce.backend import Answer, Array, Problem

from . import launch, threads
from .launch import Ready
from .memory import address
from .parameters import PLACES, pack
from .plan import Plan, places, plan
from .simd import LINE

_KEPT = 1 << 23  # bytes of scratch that a thread keeps for its next call
_local = threading.local()


def execute(problem: Problem, answer: Answer) -> None:
    ready = prepare(problem, answer)
    ready.run()
    if ready.scratch.size <= _KEPT:  # new memory costs more than a small problem
        _local.scratch = ready.scratch


def prepare(problem: Problem, answer: Answer) -> Ready:
    matrices = {
        "logits": problem.logits,
        "distribution": problem.distribution,
        "direction": problem.direction,
        "grad": answer.grad,
        "hess_diag": answer.hess_diag,
        "log_softmax": answer.log_softmax,
        "hvp": answer.hvp,
        "log_softmax_jvp": answer.log_softmax_jvp,
    }
    at = {name: address(x) for name, x in matrices.items() if x is not None}
    over = at.get("hvp", at.get("log_softmax_jvp")) in (at["logits"], at.get("direction", 0))
    found = plan(problem, answer, at.get("grad") == at["logits"], over)
    workers = threads.workers(found.chunks)
    inside, size = places(found, workers)
    scratch = _scratch(size)
    base = address(scratch)
    vectors = _vectors(problem, answer, found)
    numbers = found.numbers.copy()
    for place, offset in inside:
        numbers[place] = base + offset
    at |= {name: address(x) for name, x in vectors.items() if x is not None}
    for name, begin in at.items():
        numbers[PLACES[name]] = begin
    if problem.denominator:
        numbers[PLACES["denominator"]], numbers[PLACES["unit"]] = (
            problem.denominator,
            1.0 / problem.denominator,
        )
    pack(numbers, scratch)
    return Ready(
        launch.kernel(found.way, found.dtype, found.memory, found.switches),
        scratch,
        found.chunks,
        workers,
        (answer.loss, answer.z_loss) if problem.reduce else (None, None),
        int(numbers[PLACES["partial"]]),
        found.way == "pieces",
        (problem, answer, vectors),
    )


def _scratch(size: int) -> Array:
    """Bytes that begin with a cache line: those that the thread's last call kept, if they are enough.

    They are taken away from there: a signal handler may call while this call is under way.
    """
    kept: Array | None = _local.__dict__.pop("scratch", None)
    if kept is not None and kept.size >= size:
        return kept
    memory = np.empty(size + 64, np.uint8)
    return memory[-address(memory) % 64 :]


def _vectors(problem: Problem, answer: Answer, found: Plan) -> dict[str, Array | None]:
    """The contiguous arrays that parameters.py names, as they come with the problem."""
    of = np.dtype(found.dtype)
    bias, bias_lo = _in_parts(problem.logit_bias, of)
    capped = problem.softcap is not None  # which takes a bias for granted
    if found.way != "rows" and (capped or bias is not None):  # kernels that take whole vectors
        zeros = np.zeros(problem.classes + LINE // of.itemsize, of)
        bias, bias_lo = (_padded(x, zeros) for x in (bias, bias_lo))
    mass, other_mass = _shared_mass(problem)
    return {
        "labels": problem.labels,
        "class_weight": _contiguous(problem.class_weight),
        "sample_weight": problem.sample_weight,
        "bias": bias,
        "bias_lo": bias_lo,
        "shared_mass": mass,
        "other_mass": other_mass,
        "loss": None if problem.reduce else answer.loss,
        "z_loss_rows": None if problem.reduce else answer.z_loss,
        "lse": answer.lse,
        "log_prob": answer.log_prob,
        "entropy": answer.entropy,
        "argmax": answer.argmax,
        "correct": answer.correct,
    }


def _shared_mass(problem: Problem) -> tuple[Array | None, Array | None]:
    """What label smoothing adds to every row's target, w_k * eps / C; and the sum of that over all others."""
    if problem.target != "index" or not problem.label_smoothing:
        return None, None
    weight = np.ones(problem.classes) if problem.class_weight is None else problem.class_weight
    mass = np.ascontiguousarray(weight * (problem.label_smoothing / problem.classes))
    others = np.zeros(problem.classes)  # from both ends: a difference from the total would cancel
    others[1:] = np.cumsum(mass[:-1])
    others[:-1] += np.cumsum(mass[:0:-1])[::-1]
    return mass, others


def _in_parts(x: Array | None, of: np.dtype[Any]) -> tuple[Array | None, Array | None]:
    """A float64 vector as the sum of two in the compute dtype."""
    if x is None:
        return None, None
    high = np.ascontiguousarray(x, of)
    low = (x - high).astype(of)
    low[~np.isfinite(low)] = 0
    return high, low


def _padded(x: Array | None, zeros: Array) -> Array:
    """x, followed by zeros."""
    if x is None:
        return zeros
    padded = zeros.copy()
    padded[: x.size] = x
    return padded


def _contiguous(x: Array | None) -> Array | None:
    return None if x is None else np.ascontiguousarray(x)
