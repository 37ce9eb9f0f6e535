"""Who computes a task. Our backends are below; everyone else is in peers/."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from sce import registry
from sce.backend import Array, BackendError
from sce.functions import cross_entropy, loss_and_grad
from sce.problem import prepare
from sce.select import decide

from .task import Inputs, Task, inputs

Buffers = Literal["reused", "fresh", "in place", "none"]
"""Whose memory the gradient gets: the caller's, made once; each call's own; the logits'; none for a loss."""


class Answer(NamedTuple):
    loss: float
    grad: Array | None


class Run(NamedTuple):
    """`call` is what the clock sees; `answer` turns what the last call returned into NumPy."""

    call: Callable[[], Any]
    answer: Callable[[Any], Answer]


class Contestant(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def ours(self) -> bool:
        """A backend of this library: the others are peers."""

    def missing(self) -> str | None:
        """Why it cannot run on this machine, and what to install; or None."""

    def refuses(self, task: Task) -> str | None:
        """Why it does not take this task, or None."""

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        """The policies under which it is measured."""

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        """Everything that is not timed: conversion of the inputs, compilation by the first call."""


class Backend(NamedTuple):
    """One of our backends, through the public functions."""

    name: str
    ours: bool = True

    def missing(self) -> str | None:
        try:
            return registry.missing(self.name)
        except BackendError as exc:
            return str(exc)

    def refuses(self, task: Task) -> str | None:
        given = inputs(task._replace(n=1))  # a backend looks at the facts of a problem, not at its size
        options = {**given.options, "axis": task.axis}
        request = prepare(given.logits, given.target, outputs=_outputs(task), **options)
        decision = decide(request.problem, self.name)
        return None if decision.chosen else decision.passed_over[0][1]

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        if task.op == "loss":
            return ("none",)
        # A tiny call is one without out=, as people write it; the reference is not made to be fast.
        return (
            ("fresh",)
            if task.where == "call" or self.name == "reference"
            else ("reused", "fresh", "in place")
        )

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        logits, target = given.logits, given.target
        options: dict[str, Any] = {**given.options, "axis": task.axis, "backend": self.name}
        if task.op == "loss":
            return Run(lambda: cross_entropy(logits, target, **options), lambda got: Answer(float(got), None))
        if buffers == "in place":
            logits = logits.copy()
        out = {"reused": np.empty_like(logits), "in place": logits}.get(buffers)
        return Run(
            lambda: loss_and_grad(logits, target, out=out, **options),
            lambda got: Answer(float(got[0]), got[1]),
        )


def _outputs(task: Task) -> tuple[str, ...]:
    return ("loss",) if task.op == "loss" else ("loss", "grad")


def backends() -> Iterator[Contestant]:
    """Every registered backend, those that do not run here included; debug backends are not for timing."""
    for name in sorted(registry.registered()):
        try:
            if registry.load(name).debug:
                continue
        except BackendError:
            pass  # it is listed with the reason
        yield Backend(name)
