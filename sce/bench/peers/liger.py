"""Liger Kernel: its fused cross entropy, a Triton kernel that writes the gradient over the logits."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import plain_rows_only, why_missing

_MODULE = "liger_kernel.transformers.functional"


class Liger:
    """In device contests only: its logits are tensors."""

    name, ours = "liger", False

    def missing(self) -> str | None:
        return why_missing(_MODULE, "liger-kernel")

    def refuses(self, task: Task) -> str | None:
        if task.dtype == "float64":
            return "computes in float32 whatever the logits are."
        return plain_rows_only(task)

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("in place",)

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        cross_entropy = import_module(_MODULE).liger_cross_entropy
        x: Any = given.logits
        y = given.target
        if task.op == "loss":  # logits that require no gradient get none
            return Run(lambda: cross_entropy(x, y), lambda got: Answer(float(got), None))
        # The forward pass is all there is: where the logits stood it leaves the gradient of the mean, which
        # backward() would hand on. From the second call on they are that gradient, and take as long.
        x = x.clone().requires_grad_()
        return Run(lambda: cross_entropy(x, y), lambda got: Answer(float(got.detach()), x.detach()))
