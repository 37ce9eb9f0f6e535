"""What people write by hand: NumPy, and SciPy's log_softmax."""

from __future__ import annotations

import numpy as np

from sce.backend import Array
from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import plain_rows_only, why_missing


class NumPy:
    name, ours = "numpy", False

    def missing(self) -> str | None:
        return None

    def refuses(self, task: Task) -> str | None:
        return plain_rows_only(task)

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("fresh",)

    def log_softmax(self, x: Array) -> Array:
        z = x - x.max(axis=1, keepdims=True)
        log_softmax: Array = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return log_softmax

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        logits, labels = given.logits, given.target
        rows = np.arange(task.n)
        half = task.dtype in ("float16", "bfloat16")  # NumPy computes them one by one: people convert

        def call() -> tuple[float, Array | None]:
            log_p = self.log_softmax(logits.astype(np.float32) if half else logits)
            loss = -log_p[rows, labels].mean()
            if task.op == "loss":
                return loss, None
            grad = np.exp(log_p)
            grad[rows, labels] -= 1
            grad /= task.n
            return loss, grad.astype(logits.dtype, copy=False)

        return Run(call, lambda got: Answer(float(got[0]), got[1]))


class SciPy(NumPy):
    name = "scipy"

    def missing(self) -> str | None:
        return why_missing("scipy.special", "scipy")

    def log_softmax(self, x: Array) -> Array:
        from scipy.special import log_softmax

        log_p: Array = log_softmax(x, axis=1)
        return log_p
