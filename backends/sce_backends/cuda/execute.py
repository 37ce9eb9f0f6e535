"""A problem's way through the kernels, on a GPU or in the emulator: the same launches with the same arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from sce.backend import Answer, Array, Problem

from . import plan
from .plan import Device, Launch
from .rows import FOUND, SCALES


class Machine(Protocol):
    """Where kernels run. Arrays lie in its memory: NumPy's description of them may be all that is here."""

    @property
    def device(self) -> Device: ...

    def memory(self, n: int, dtype: str) -> Array:
        """New memory for this call, not initialised."""

    def upload(self, x: Array) -> Array:
        """A small host vector, contiguous, in its memory."""

    def run(self, launch: Launch, values: Mapping[str, Any]) -> None:
        """Launch a kernel; `values` has its arguments by name: arrays, numbers, None for no memory."""


def execute(problem: Problem, answer: Answer, machine: Machine) -> None:
    """Fill the answer: kernels over rows, then the sums of what they leave of each."""
    sums: dict[str, Array] = {}
    if plan.takes_rows(problem, answer):
        if problem.reduce and answer.loss is not None:
            sums["loss"] = machine.memory(2 * problem.rows, plan.computed(problem))
        _run_rows(problem, answer, machine, sums)
    else:
        for name in ("loss", "z_loss"):
            if problem.reduce and getattr(answer, name) is not None:
                sums[name] = machine.memory(problem.rows, "float64")
        machine.run(plan.general(problem, answer), _general(problem, answer, machine, sums))
    for name, rows in sums.items():
        _add_up(problem, rows, getattr(answer, name), machine)


def _run_rows(problem: Problem, answer: Answer, machine: Machine, sums: Mapping[str, Array]) -> None:
    """The launches of rows.py, and of scales.py before them."""
    real = plan.computed(problem)
    launches = plan.rows(problem, answer, machine.device)
    blocks = launches[0].blocks
    of_grad = problem.grad_scale / problem.temperature
    unit = 1.0 / problem.denominator
    values: dict[str, Any] = {
        "logits": problem.logits,
        "labels": problem.labels,
        "scales": None,
        "grad": answer.grad,
        "loss": answer.loss,
        "found": machine.memory(blocks * FOUND, real) if len(launches) > 1 else None,
        "n": problem.rows,
        "classes": problem.classes,
        "step": plan.step_of(problem.logits),
        "grad_step": 0 if answer.grad is None else plan.step_of(answer.grad),
        "ignored": problem.ignore_index or 0,
        "parts": blocks // problem.rows,
        **sums,
    }
    for name, factor in (
        ("of_loss", unit),
        ("of_grad", of_grad * unit),
        ("over_t", 1.0 / problem.temperature),
    ):
        values[name], values[f"{name}_tail"] = plan.words(factor, real)
    if plan.scaled(problem):
        values["scales"] = machine.memory(problem.rows * SCALES, real)
        given = {
            "labels": problem.labels,
            "class_weight": _vector(problem.class_weight, machine),
            "sample_weight": problem.sample_weight,
            "total": None,
            "scales": values["scales"],
            "n": problem.rows,
            "classes": problem.classes,
            "denominator": problem.denominator,
            "of_grad": of_grad,
        }
        machine.run(plan.scales(problem), given)
    for launch in launches:
        machine.run(launch, values)


def _general(problem: Problem, answer: Answer, machine: Machine, sums: Mapping[str, Array]) -> dict[str, Any]:
    """The arguments of general.py."""
    values: dict[str, Any] = {}
    matrices = {
        "logits": problem.logits,
        "soft": problem.distribution,
        "grad": answer.grad,
        "hess_diag": answer.hess_diag,
        "log_softmax": answer.log_softmax,
    }
    for name, x in matrices.items():
        values[name] = x
        values |= zip((f"{name}_{axis}" for axis in "abc"), plan.strides(x), strict=True)
    values |= {name: getattr(answer, name) for name in ("loss", "z_loss", "lse", "log_prob", "entropy")}
    values |= {
        "labels": problem.labels,
        "class_weight": _vector(problem.class_weight, machine),
        "sample_weight": problem.sample_weight,
        "bias": _vector(problem.logit_bias, machine),
        "total": None,
        "argmax": answer.argmax,
        "correct": None if answer.correct is None else answer.correct.view(np.uint8),
        "n": problem.rows,
        "inner": problem.logits.shape[1],
        "classes": problem.classes,
        "ignored": problem.ignore_index or 0,
        "smoothing": problem.label_smoothing,
        "temperature": problem.temperature,
        "cap": problem.softcap or 1.0,
        "lam": problem.z_loss,
        "denominator": problem.denominator,
        "grad_scale": problem.grad_scale,
    }
    return values | dict(sums)


def _add_up(problem: Problem, rows: Array, into: Array, machine: Machine) -> None:
    """into[0] = the sum of one value, or pair, per row."""
    count, pairs = problem.rows, rows.size > problem.rows
    *before, last = plan.totals(count, rows.dtype.name, pairs, into.dtype.name, False)
    for launch in before:
        found = machine.memory(2 * launch.blocks, "float64")
        machine.run(launch, {"values": rows, "into": found, "total": None, "n": count, "empty": 0.0})
        rows, count = found, launch.blocks
    machine.run(last, {"values": rows, "into": into, "total": None, "n": count, "empty": 0.0})


def _vector(x: Array | None, machine: Machine) -> Array | None:
    return None if x is None else np.ascontiguousarray(x)
