"""Numba on the CPU: the door. It says what the backend takes and hands problems to the kernels behind it.

launch.py: the parallel loop over rows. rows.py: one row. elements.py: the loops over classes. vector_math.py:
exp and max that vectorise. memory.py: rows by address and half types. cache.py: where kernels are kept.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from sce.backend import DTYPES, Answer, Array, Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

on_device: bool = False
debug: bool = False

_one_launch = Lock()  # Numba's workqueue layer aborts the process when two threads launch at once
_WITNESS = {  # of memory.py: half types travel as integers of their width
    "float16": np.int16(0),
    "bfloat16": np.uint16(0),
    "float32": np.float32(0),
    "float64": np.float64(0),
}
_CHUNK = 1 << 15  # elements: enough to outweigh a chunk's own cost, few enough to share rows evenly


def refuses(problem: Problem) -> str | None:
    if problem.on_device:
        return "logits live on a device."
    if problem.dtype not in DTYPES:
        return f"dtype is {problem.dtype}, not one of {', '.join(DTYPES)}."
    return None


def missing() -> str | None:
    import numba  # noqa: F401
    import platformdirs  # noqa: F401

    return None


def run(problem: Problem, answer: Answer) -> None:
    import numba

    from . import launch

    p = problem
    one = np.float64(1) if p.dtype == "float64" else np.float32(1)
    matrices = [m for m in (p.logits, answer.grad, answer.hess_diag, answer.log_softmax) if m is not None]
    transformed = p.softcap is not None or p.logit_bias is not None or p.temperature != 1.0
    rowwise = all(m.dtype == one.dtype and m.strides[2] == m.itemsize for m in matrices)
    facts = launch.Facts(
        rows=p.rows,
        inner=p.logits.shape[1],
        classes=p.classes,
        chunk=max(1, min(256, _CHUNK // p.classes)),
        direct=rowwise and not transformed,
        in_place=answer.grad is not None and _address(answer.grad) == _address(p.logits),
        spare=1.0 if p.target == "none" else 0.0,
        ignores=p.ignore_index is not None,
        ignored=p.ignore_index or 0,
    )
    scales = launch.Scales(
        denominator=p.denominator,
        grad=p.grad_scale,
        temperature=p.temperature,
        cap=p.softcap or 0.0,
        z_loss=p.z_loss,
        smoothing=p.label_smoothing,
    )
    shared_mass = None
    if p.target == "index" and p.label_smoothing:
        weight = np.ones(p.classes) if p.class_weight is None else p.class_weight
        shared_mass = (weight * (p.label_smoothing / p.classes)).astype(one.dtype)
    off = np.empty(0, one.dtype)
    per_row = launch.PerRow(
        loss=off if p.reduce or answer.loss is None else answer.loss,
        z_loss=off if p.reduce or answer.z_loss is None else answer.z_loss,
        lse=off if answer.lse is None else answer.lse,
        log_prob=off if answer.log_prob is None else answer.log_prob,
        entropy=off if answer.entropy is None else answer.entropy,
        argmax=np.empty(0, np.int64) if answer.argmax is None else answer.argmax,
        correct=np.empty(0, np.bool_) if answer.correct is None else answer.correct,
    )
    partial = np.empty((-(-p.rows // facts.chunk), 2))
    with _one_launch:
        sums = launch.launch(
            numba.get_num_threads(),
            one,
            facts,
            scales,
            _vector(p.labels, np.int64(0)),
            _vector(p.class_weight, np.float64(0)),
            _vector(p.sample_weight, np.float64(0)),
            _vector(p.logit_bias, np.float64(0)),
            shared_mass,
            True if transformed else None,
            True if p.softcap is not None else None,
            True if answer.entropy is not None else None,
            _matrix(p.logits),
            None if p.distribution is None else _matrix(p.distribution),
            None if answer.grad is None else _matrix(answer.grad),
            None if answer.hess_diag is None else _matrix(answer.hess_diag),
            None if answer.log_softmax is None else _matrix(answer.log_softmax),
            per_row,
            partial,
        )
    if p.reduce:
        for into, value in zip((answer.loss, answer.z_loss), sums, strict=True):
            if into is not None:
                into[0] = value


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def _matrix(x: Array) -> tuple[Any, int, int, int, int]:
    return (_WITNESS[x.dtype.name], _address(x), *x.strides)


def _vector(x: NDArray[Any] | None, witness: Any) -> tuple[Any, int, int]:
    if x is None:
        return witness, 0, 0
    return witness, _address(x), x.size
