"""Quack: its CuTe kernel of loss and gradient in one pass (Hopper and later)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import plain_rows_only, why_missing

_MODULE = "quack.cross_entropy"


class Quack:
    """In device contests only: its logits are tensors."""

    name, ours = "quack", False

    def missing(self) -> str | None:
        return why_missing(_MODULE, "quack-kernels")

    def refuses(self, task: Task) -> str | None:
        if task.dtype == "float64":
            return "takes no float64."
        return plain_rows_only(task)

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("fresh", "in place")

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        forward = import_module(_MODULE).cross_entropy_fwd
        x: Any = given.logits
        y = given.target
        if task.op == "loss":
            return Run(lambda: forward(x, y).mean(), lambda got: Answer(float(got), None))
        in_place = buffers == "in place"
        x = x.clone() if in_place else x

        def call() -> tuple[Any, Any]:
            losses, grad = forward(x, y, return_dx=True, inplace_backward=in_place)
            return losses.mean(), grad

        # Its gradient is each row's own. To divide it by n is left to the caller, and is not timed here.
        return Run(call, lambda got: Answer(float(got[0]), got[1].float() / task.n))
