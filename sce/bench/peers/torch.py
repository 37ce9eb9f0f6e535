"""PyTorch: cross_entropy forward and backward, eager and compiled, on the host or on a device."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import why_missing


class Eager:
    name, ours = "torch", False

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def missing(self) -> str | None:
        return why_missing("torch", "torch")

    def refuses(self, task: Task) -> str | None:
        return None if task.option is None else "measured without options."

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("fresh",)  # .grad is made anew by each backward()

    def loss(self) -> Any:
        from torch.nn.functional import cross_entropy

        return cross_entropy

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        import torch

        x, y, loss = *_tensors(task, given, self.device), self.loss()
        if task.op == "loss":

            def value() -> Any:
                with torch.no_grad():
                    return loss(x, y)

            return Run(value, lambda got: Answer(float(got), None))
        x = x.detach().requires_grad_()  # the same memory; the tensor of a device contest is everyone's

        def call() -> Any:
            x.grad = None
            value = loss(x, y)
            value.backward()
            return value

        def answer(got: Any) -> Answer:
            grad = x.grad
            assert grad is not None
            if isinstance(given.logits, np.ndarray):  # which knows no bfloat16
                grad = grad.to("cpu", torch.float64 if task.dtype == "float64" else torch.float32).numpy()
            return Answer(float(got.detach()), grad)

        return Run(call, answer)


def _tensors(task: Task, given: Inputs, device: str) -> tuple[Any, Any]:
    """Logits and target as tensors on the device. In a device contest they are that already."""
    import torch

    if not isinstance(given.logits, np.ndarray):
        return given.logits, given.target
    if task.dtype == "bfloat16":  # torch takes it from NumPy only under another name
        x = torch.from_numpy(given.logits.view(np.int16)).view(torch.bfloat16)
    else:
        x = torch.from_numpy(given.logits)
    return x.to(device), torch.from_numpy(given.target).to(device)


class Compiled(Eager):
    name = "torch.compile"

    def missing(self) -> str | None:
        if why := super().missing():
            return why
        if self.device == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
            return "torch.compile needs a C++ compiler, and none is on the PATH."
        return None

    def loss(self) -> Any:
        import torch

        torch.compiler.reset()  # else a second shape makes it compile for every shape, which is slower
        return torch.compile(super().loss(), dynamic=False)
