"""JAX: jit of value_and_grad of optax's loss."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from sce.bench.contestant import Answer, Buffers, Run
from sce.bench.task import Inputs, Task

from .package import plain_rows_only, why_missing


class Jax:
    name, ours = "jax", False

    def missing(self) -> str | None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or XLA tells everyone what it compiles
        return why_missing("jax", "jax") or why_missing("optax", "optax")

    def refuses(self, task: Task) -> str | None:
        return plain_rows_only(task)

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("none",) if task.op == "loss" else ("fresh",)

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        import jax
        import optax

        jax.config.update("jax_enable_x64", task.dtype == "float64")

        def loss(x: Any, y: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()

        compute = jax.jit(loss if task.op == "loss" else jax.value_and_grad(loss))
        x, y = jax.numpy.asarray(given.logits), jax.numpy.asarray(given.target.astype(np.int32))
        if task.op == "loss":
            return Run(lambda: compute(x, y).block_until_ready(), lambda got: Answer(float(got), None))
        return Run(
            lambda: jax.block_until_ready(compute(x, y)),
            lambda got: Answer(float(got[0]), np.asarray(got[1])),
        )
