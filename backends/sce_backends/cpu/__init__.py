"""Numba on the CPU: the door. It says what the backend takes and hands problems to the kernels behind it.

launch.py: the parallel loop. kernel.py: a chunk of rows. rows.py: one row. elements.py: the loops over its
classes. vector_math.py: exp and max that vectorise. memory.py: rows by address, half types. cache.py: where
kernels are kept.
"""

from __future__ import annotations

import functools
import os
from threading import Lock
from typing import Any

import numpy as np

from sce.backend import DTYPES, Answer, Array, Problem

on_device: bool = False
debug: bool = False

_one_launch = Lock()  # Numba's workqueue layer aborts the process when two threads launch at once
_launched = _forked = (
    False  # GNU OpenMP, one of Numba's layers, hangs or aborts a child forked after a launch
)
# A chunk of rows is what one thread takes at a time, and the least that is worth waking another for: a few
# tenths of a millisecond, in elements. A row costs about as much as 64 more than it has.
_CHUNK, _ROW = 1 << 18, 64


def _after_fork() -> None:
    """A child has no other threads, and perhaps a lock that one of them held."""
    global _forked, _one_launch
    _forked, _one_launch = _launched, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


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
    numba.get_num_threads()  # raises where the threading layer that was asked for is not there
    return None


def info() -> dict[str, str]:
    import numba

    from .cache import directory

    return {
        "threads": str(numba.get_num_threads()),
        "kernel cache": str(directory() or "none: it cannot be written, so each process compiles for itself"),
    }


def run(problem: Problem, answer: Answer) -> None:
    global _launched
    import numba

    from . import launch

    dtype = "float64" if problem.dtype == "float64" else "float32"  # what is computed in
    transformed = problem.softcap is not None or problem.logit_bias is not None or problem.temperature != 1.0
    switches = (
        problem.target == "index" and problem.label_smoothing != 0.0,
        transformed,
        problem.softcap is not None,
        problem.distribution is not None,
        answer.entropy is not None,
        answer.grad is not None,
        answer.hess_diag is not None,
        answer.log_softmax is not None,
    )
    kernel = launch.kernel(dtype, tuple(True if on else None for on in switches))

    chunk = max(1, _CHUNK // (problem.classes + _ROW))
    partial = np.empty((-(-problem.rows // chunk), 2))
    workers = 1 if _forked else min(numba.get_num_threads(), len(partial))
    worked_on = [m for m in (problem.logits, answer.grad) if m is not None]
    direct = not transformed and all(m.dtype == dtype and m.strides[2] == m.itemsize for m in worked_on)
    length = max(problem.classes, launch.BLOCK)
    vectors = {  # kept alive here: the kernel sees addresses only
        **_vectors(problem, answer),
        "partial": partial,
        # What is not touched of these costs no memory.
        "scratch": np.empty((workers, launch.SLOTS, length), dtype),
        "wide": np.empty((workers, launch.WIDE_SLOTS, length)),
    }
    parameters = np.zeros(1, launch.PARAMETERS)
    _fill(
        parameters[0],
        rows=problem.rows,
        inner=problem.logits.shape[1],
        classes=problem.classes,
        chunk=chunk,
        length=length,
        direct=direct,
        in_place=answer.grad is not None and _address(answer.grad) == _address(problem.logits),
        ignores=problem.ignore_index is not None,
        ignored=problem.ignore_index or 0,
        denominator=problem.denominator,
        grad_scale=problem.grad_scale,
        temperature=problem.temperature,
        softcap=problem.softcap or 0.0,
        z_loss=problem.z_loss,
        label_smoothing=problem.label_smoothing,
        spare=1.0 if problem.target == "none" else 0.0,
        logits=_matrix(problem.logits),
        distribution=_matrix(problem.distribution),
        grad=_matrix(answer.grad),
        hess_diag=_matrix(answer.hess_diag),
        log_softmax=_matrix(answer.log_softmax),
        **{name: _address(x) for name, x in vectors.items() if x is not None},
    )
    if workers == 1:
        launch.launch_here(kernel.address, parameters.ctypes.data, len(partial))
    else:
        _launched = True
        with _one_launch:
            launch.launch(kernel.address, parameters.ctypes.data, len(partial), workers)
    if problem.reduce:
        for into, value in zip((answer.loss, answer.z_loss), launch.sum_up(partial), strict=True):
            if into is not None:
                into[0] = value


def _vectors(problem: Problem, answer: Answer) -> dict[str, Array | None]:
    """The contiguous arrays that launch.PARAMETERS names, as they come with the problem."""
    return {
        "labels": problem.labels,
        "class_weight": _contiguous(problem.class_weight),
        "sample_weight": problem.sample_weight,
        "logit_bias": _contiguous(problem.logit_bias),
        "shared_mass": _shared_mass(problem),
        "loss": None if problem.reduce else answer.loss,
        "z_loss_rows": None if problem.reduce else answer.z_loss,
        "lse": answer.lse,
        "log_prob": answer.log_prob,
        "entropy": answer.entropy,
        "argmax": answer.argmax,
        "correct": answer.correct,
    }


@np.errstate(all="ignore")
def _shared_mass(problem: Problem) -> Array | None:
    """What label smoothing adds to every row's target: w_k * eps / C."""
    if problem.target != "index" or not problem.label_smoothing:
        return None
    weight = np.ones(problem.classes) if problem.class_weight is None else problem.class_weight
    return np.ascontiguousarray(weight * (problem.label_smoothing / problem.classes))


def _fill(record: Any, **values: Any) -> None:
    for name, value in values.items():
        record[name] = value


def _matrix(x: Array | None) -> tuple[int, ...]:
    """memory.MATRIX of a matrix; an absent one is all zeros."""
    return (0, 0, 0, 0, 0) if x is None else (_number(x.dtype), _address(x), *x.strides)


@functools.cache
def _number(dtype: np.dtype[Any]) -> int:
    """memory.py's number of a dtype."""
    return DTYPES.index(dtype.name)


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def _contiguous(x: Array | None) -> Array | None:
    return None if x is None else np.ascontiguousarray(x)
