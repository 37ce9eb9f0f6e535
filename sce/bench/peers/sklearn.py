"""scikit-learn's private loss module: what its estimators run. Losses and gradients per row, no mean."""

from __future__ import annotations

from typing import Any

import numpy as np

from sce import machine
from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import plain_rows_only, why_missing


class Sklearn:
    name, ours = "sklearn", False

    def missing(self) -> str | None:
        return why_missing("sklearn._loss.loss", "scikit-learn")

    def refuses(self, task: Task) -> str | None:
        if task.dtype not in ("float32", "float64"):
            return f"takes no {task.dtype}."
        if task.c == 2:
            return "its multinomial loss needs three classes."
        return plain_rows_only(task)

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("reused", "fresh")

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        from sklearn._loss.loss import HalfMultinomialLoss

        model = HalfMultinomialLoss(n_classes=task.c)
        x, y = given.logits, given.target.astype(given.logits.dtype)
        out: dict[str, Any] = {}
        if buffers == "reused":
            out = {"loss_out": np.empty(task.n, x.dtype), "gradient_out": np.empty_like(x)}
        threads = machine.threads()
        if task.op == "loss":
            return Run(
                lambda: model.loss(y_true=y, raw_prediction=x, n_threads=threads),
                lambda got: Answer(float(got.mean(dtype=np.float64)), None),
            )
        return Run(
            lambda: model.loss_gradient(y_true=y, raw_prediction=x, n_threads=threads, **out),
            lambda got: Answer(float(got[0].mean(dtype=np.float64)), got[1] / task.n),
        )
