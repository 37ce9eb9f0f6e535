"""Numba on the CPU: the door. It says what the backend takes and hands problems to the kernels behind it.

launch.py: the parallel loop over rows. rows.py: one row. elements.py: the loops over classes. vector_math.py:
exp and max that vectorise. memory.py: rows by address, and half types. cache.py: where kernels are kept.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np

from sce.backend import DTYPES, Answer, Array, Problem

on_device: bool = False
debug: bool = False

_one_launch = Lock()  # Numba's workqueue layer aborts the process when two threads launch at once
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


def info() -> dict[str, str]:
    import numba

    from .cache import directory

    return {
        "threads": str(numba.get_num_threads()),
        "kernel cache": str(directory() or "none: it cannot be written, so each process compiles for itself"),
    }


def run(problem: Problem, answer: Answer) -> None:
    import numba

    from . import launch

    p = problem
    dtype = np.dtype(np.float64 if p.dtype == "float64" else np.float32)  # what is computed in
    transformed = p.softcap is not None or p.logit_bias is not None or p.temperature != 1.0
    chunk = max(1, min(256, _CHUNK // p.classes))
    partial = np.empty((-(-p.rows // chunk), 2))
    matrices = {
        "logits": p.logits,
        "distribution": p.distribution,
        "grad": answer.grad,
        "hess_diag": answer.hess_diag,
        "log_softmax": answer.log_softmax,
    }
    vectors = {
        "labels": p.labels,
        "class_weight": _contiguous(p.class_weight),
        "sample_weight": p.sample_weight,
        "logit_bias": _contiguous(p.logit_bias),
        "loss": None if p.reduce else answer.loss,
        "z_loss_rows": None if p.reduce else answer.z_loss,
        "lse": answer.lse,
        "log_prob": answer.log_prob,
        "entropy": answer.entropy,
        "argmax": answer.argmax,
        "correct": answer.correct,
        "shared_mass": _shared_mass(p),
        "partial": partial,
    }
    worked_on = [m for m in (p.logits, answer.grad) if m is not None]
    parameters = np.zeros(1, launch.PARAMETERS)
    fields = parameters[0]
    values = {
        "rows": p.rows,
        "inner": p.logits.shape[1],
        "classes": p.classes,
        "chunk": chunk,
        "direct": not transformed and all(m.dtype == dtype and m.strides[2] == m.itemsize for m in worked_on),
        "in_place": answer.grad is not None and _address(answer.grad) == _address(p.logits),
        "ignores": p.ignore_index is not None,
        "ignored": p.ignore_index or 0,
        "denominator": p.denominator,
        "grad_scale": p.grad_scale,
        "temperature": p.temperature,
        "softcap": p.softcap or 0.0,
        "z_loss": p.z_loss,
        "label_smoothing": p.label_smoothing,
        "spare": 1.0 if p.target == "none" else 0.0,
        **{name: _address(v) for name, v in vectors.items() if v is not None},
        **{
            name: (DTYPES.index(m.dtype.name), _address(m), *m.strides)
            for name, m in matrices.items()
            if m is not None
        },
    }
    for name, value in values.items():
        fields[name] = value
    switches = (
        p.target == "index" and p.label_smoothing != 0.0,
        transformed,
        p.softcap is not None,
        p.distribution is not None,
        answer.entropy is not None,
        answer.grad is not None,
        answer.hess_diag is not None,
        answer.log_softmax is not None,
    )
    function = launch.kernel(dtype.name, tuple(True if on else None for on in switches))
    workers = min(numba.get_num_threads(), len(partial))
    if workers == 1:
        launch.launch_here(function.address, parameters.ctypes.data, len(partial))
    else:
        with _one_launch:
            launch.launch(function.address, parameters.ctypes.data, len(partial), workers)
    if p.reduce:
        for into, value in zip((answer.loss, answer.z_loss), launch.sum_up(partial), strict=True):
            if into is not None:
                into[0] = value


def _shared_mass(p: Problem) -> Array | None:
    """What label smoothing adds to every row's target: w_k * eps / C."""
    if p.target != "index" or not p.label_smoothing:
        return None
    weight = np.ones(p.classes) if p.class_weight is None else p.class_weight
    return weight * (p.label_smoothing / p.classes)


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def _contiguous(x: Array | None) -> Any:
    return None if x is None else np.ascontiguousarray(x)
