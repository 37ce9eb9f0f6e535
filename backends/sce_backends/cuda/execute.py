"""A problem's way through the kernels, on a GPU or in the emulator: the same launches and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from sce.backend import Answer, Array, Illegal, Problem

from . import plan
from .plan import Device, Launch
from .rows import FOUND, SCALES
from .survey import FOUND as FOUND_BAD


class Machine(Protocol):
    """Where kernels run. Arrays lie in its memory: NumPy's description of them may be all that is here."""

    @property
    def device(self) -> Device: ...

    def memory(self, n: int, dtype: str) -> Array:
        """New memory for this call, not initialised."""

    def run(self, launch: Launch, values: Mapping[str, Any]) -> None:
        """Launch a kernel; `values` has its arguments by name: arrays, numbers, None for no memory."""


def execute(problem: Problem, answer: Answer, machine: Machine) -> None:
    """Fill the answer: kernels over rows, then the sums of what they leave of each."""
    if not problem.rows:
        _of_no_rows(problem, answer, machine)
        return
    total = total_weight(problem, machine) if problem.own_denominator else None
    sums: dict[str, Array] = {}
    if problem.binary:
        _run_binary(problem, answer, machine, total)
    elif plan.takes_rows(problem, answer):
        if problem.reduce and answer.loss is not None:
            sums["loss"] = machine.memory(2 * problem.rows, plan.computed(problem))
        _run_rows(problem, answer, machine, sums, total)
    else:
        for name in ("loss", "z_loss"):
            if problem.reduce and getattr(answer, name) is not None:
                sums[name] = machine.memory(problem.rows, "float64")
        values = _general(problem, answer, machine) | sums | {"total": total}
        machine.run(plan.general(problem, answer), values)
    for name, rows in sums.items():
        pairs = rows.size > problem.rows
        _add_up(problem, rows, problem.rows, pairs, getattr(answer, name), total, machine)


def _of_no_rows(problem: Problem, answer: Answer, machine: Machine) -> None:
    """All there is to write is a sum, and that of an empty mean."""
    if problem.own_denominator:
        problem = problem._replace(denominator=0.0)
    for into in (answer.loss, answer.z_loss) if problem.reduce else ():
        if into is not None:
            _add_up(problem, machine.memory(1, "float64"), 0, False, into, None, machine)


def total_weight(problem: Problem, machine: Machine) -> Array:
    """The denominator of a mean, found on the device and left there: (1,) float64."""
    launch = plan.binary_survey(problem) if problem.binary else plan.survey(problem)
    values = _surveyed(problem, launch, machine)
    machine.run(launch, values)
    into = machine.memory(1, "float64")
    _add_up(problem._replace(denominator=1.0), values["sums"], launch.blocks, True, into, None, machine)
    return into


def illegal(problem: Problem, machine: Machine, download: Callable[[Array], Array]) -> Illegal:
    """The first illegal label and weights: a small kernel, whose findings are read back."""
    if not can_be_illegal(problem):
        return Illegal()
    return verdict(problem, download(survey(problem, machine)), download)


def survey(problem: Problem, machine: Machine) -> Array:
    """Where labels and weights are illegal, by blocks of survey.py."""
    launch = plan.binary_survey(problem) if problem.binary else plan.survey(problem)
    values = _surveyed(problem, launch, machine)
    machine.run(launch, values)
    found: Array = values["found"]
    return found


def verdict(problem: Problem, found: Array, download: Callable[[Array], Array]) -> Illegal:
    """The first of what the blocks found, and that label."""
    first = found.reshape(-1, FOUND_BAD)
    label, sample, of_class, bias = (int(next((i for i in part if i >= 0), -1)) for part in first.T)
    value = 0
    if label >= 0 and problem.labels is not None:
        labels = problem.labels.reshape(-1, 1) if not problem.binary else problem.labels
        a, b = divmod(label, labels.shape[1])
        value = int(download(labels[a, b].reshape(1))[0])
    return Illegal(label, value, sample, of_class, bias)


def can_be_illegal(problem: Problem) -> bool:
    """Is there anything that a survey would look at?"""
    given = (problem.labels, problem.class_weight, problem.sample_weight, problem.logit_bias)
    some = any(x is not None for x in given) or isinstance(problem.pos_weight, np.ndarray)
    return some and problem.rows > 0


def _surveyed(problem: Problem, launch: Launch, machine: Machine) -> dict[str, Any]:
    """The arguments of survey.py, or of binary_survey.py."""
    if problem.binary:
        return _elements(problem, Answer()) | {
            "target": problem.labels,  # what else a target is, is not looked at
            "found": machine.memory(FOUND_BAD * launch.blocks, "int64"),
            "sums": machine.memory(2 * launch.blocks, "float64"),
        }
    return {
        "labels": problem.labels,
        "class_weight": problem.class_weight,
        "sample_weight": problem.sample_weight,
        "bias": problem.logit_bias,
        "found": machine.memory(FOUND_BAD * launch.blocks, "int64"),
        "sums": machine.memory(2 * launch.blocks, "float64"),
        "n": problem.rows,
        "classes": problem.classes,
        "ignored": problem.ignore_index or 0,
    }


def _run_rows(
    problem: Problem, answer: Answer, machine: Machine, sums: Mapping[str, Array], total: Array | None
) -> None:
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
        ("lam", problem.z_loss),
    ):
        values[name], values[f"{name}_tail"] = plan.words(factor, real)
    if plan.scaled(problem):
        values["scales"] = machine.memory(problem.rows * SCALES, real)
        given = {
            "labels": problem.labels,
            "class_weight": _vector(problem.class_weight, machine),
            "sample_weight": problem.sample_weight,
            "total": total,
            "scales": values["scales"],
            "n": problem.rows,
            "classes": problem.classes,
            "denominator": problem.denominator,
            "of_grad": of_grad,
        }
        machine.run(plan.scales(problem), given)
    for launch in launches:
        machine.run(launch, values)


def _run_binary(problem: Problem, answer: Answer, machine: Machine, total: Array | None) -> None:
    """The launch of binary.py, and the sum of what its blocks leave."""
    launch = plan.binary(problem, answer)
    t, real = problem.temperature, launch.spec.real  # type: ignore[union-attr]
    factors = {
        "unit": 1.0 / problem.denominator if problem.denominator else 0.0,
        "of_grad": problem.grad_scale / t,
        "of_hess": problem.hess_scale / t,  # and over_t comes last: 1 / t^2 is beyond float64 sooner
        "over_t": 1.0 / t,
        "keep": 1.0 - problem.label_smoothing,
        "spread": problem.label_smoothing / 2,
        "positive": problem.pos_weight if isinstance(problem.pos_weight, float) else 1.0,
    }
    values = _elements(problem, answer) | {"loss": answer.loss, "total": total}
    values["hess_min"] = 0.0 if problem.hess_min is None else problem.hess_min
    for name, factor in factors.items():
        values[name], values[f"{name}_tail"] = plan.words(factor, real)
    into = answer.loss if problem.reduce else None
    if into is not None:
        values["loss"] = machine.memory(2 * launch.blocks, real)
    machine.run(launch, values)
    if into is not None:
        _add_up(problem, values["loss"], launch.blocks, True, into, total, machine)


def _elements(problem: Problem, answer: Answer) -> dict[str, Any]:
    """What the kernels of binary problems are told of their arrays."""
    found: dict[str, Any] = {
        "n": problem.rows,
        "inner": problem.logits.shape[1],
        "ignored": problem.ignore_index or 0,
    }
    arrays = {
        "logits": problem.logits,
        "target": problem.distribution if problem.labels is None else problem.labels,
        "sample_weight": problem.sample_weight,
        "pos_weight": problem.pos_weight if isinstance(problem.pos_weight, np.ndarray) else None,
        "grad": answer.grad,
        "hess_diag": answer.hess_diag,
    }
    for name, x in arrays.items():
        found[name] = x
        found[f"{name}_a"], found[f"{name}_b"], _ = plan.strides(x)
    return found


def _general(problem: Problem, answer: Answer, machine: Machine) -> dict[str, Any]:
    """The arguments of general.py."""
    values: dict[str, Any] = {}
    matrices = {
        "logits": problem.logits,
        "soft": problem.distribution,
        "direction": problem.direction,
        "grad": answer.grad,
        "hess_diag": answer.hess_diag,
        "log_softmax": answer.log_softmax,
        "hvp": answer.hvp,
        "log_softmax_jvp": answer.log_softmax_jvp,
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
        "hess_scale": problem.hess_scale,
        "hess_min": -np.inf if problem.hess_min is None else problem.hess_min,
    }
    return values


def _add_up(
    problem: Problem,
    values: Array,
    count: int,
    pairs: bool,
    into: Array,
    total: Array | None,
    machine: Machine,
) -> None:
    """into[0] = the sum of `count` values, or pairs; of an empty mean, what the caller wants."""
    *before, last = plan.totals(
        count, plan.dtype_name(values.dtype), pairs, plan.dtype_name(into.dtype), total is not None
    )
    of = {"total": total, "denominator": problem.denominator, "empty": problem.empty}
    for launch in before:
        found = machine.memory(2 * launch.blocks, "float64")
        machine.run(launch, {"values": values, "into": found, "n": count, **of})
        values, count = found, launch.blocks
    machine.run(last, {"values": values, "into": into, "n": count, **of})


def _vector(x: Array | None, machine: Machine) -> Array | None:
    return None if x is None else np.ascontiguousarray(x)
