"""Choose a backend: one decision, which `explain` returns and every call obeys."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from . import registry
from .backend import Backend, BackendError, Problem

AUTO = ("cuda", "cpu", "reference")  # the only names that `auto` considers, in order
ENV = "SCE_BACKEND"
_context: ContextVar[str | None] = ContextVar("sce.backend", default=None)


class Decision(NamedTuple):
    """Which backend a call gets, who asked for it, and why the others do not run."""

    chosen: str | None
    asked_by: str
    passed_over: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.chosen is None and len(self.passed_over) == 1:
            ((name, why),) = self.passed_over
            return f"backend {name!r} cannot run this (asked by {self.asked_by}): {why}"
        head = f"{self.chosen or 'no backend'} (asked by {self.asked_by})"
        return "\n".join([head, *(f"  {name}: {why}" for name, why in self.passed_over)])


@contextmanager
def use(name: str) -> Generator[None]:
    """Run the calls of this block on one backend. Local to this thread or task.

    `name` is a registered backend, the import path of one, or "auto".

    >>> import sce
    >>> with sce.use("reference"):
    ...     loss = sce.cross_entropy([[0.0, 1.0]], [1])
    """
    _check_name(name)
    if name != "auto":
        registry.load(name)  # a bad name fails here, not at the first call
    token = _context.set(name)
    try:
        yield
    finally:
        _context.reset(token)


def backends() -> dict[str, str | None]:
    """Every registered backend, with the reason why it does not run on this machine, or None.

    >>> import sce
    >>> sce.backends()["reference"] is None
    True
    """
    return {name: _why_missing(name) for name in sorted(registry.registered())}


def decide(problem: Problem, backend: str | None = None) -> Decision:
    """A name is an order; `auto` is a search. Argument > `use` > SCE_BACKEND > auto."""
    name, asked_by = _request(backend)
    passed_over: list[tuple[str, str]] = []
    for candidate in AUTO if name == "auto" else (name,):
        try:
            why = _objection(candidate, problem, searching=name == "auto")
        except BackendError as exc:
            exc.add_note(f"asked by {asked_by}")
            raise
        if why is None:
            return Decision(candidate, asked_by, tuple(passed_over))
        passed_over.append((candidate, why))
    return Decision(None, asked_by, tuple(passed_over))


def obtain(problem: Problem, backend: str | None = None) -> Backend:
    """The backend that `decide` chooses; a BackendError with every reason where there is none."""
    decision = decide(problem, backend)
    if decision.chosen is None:
        raise BackendError(str(decision))
    return registry.load(decision.chosen)


def _request(backend: str | None) -> tuple[str, str]:
    if backend is not None:
        _check_name(backend)
        return backend, "backend="
    if (name := _context.get()) is not None:
        return name, "sce.use"
    if name := os.environ.get(ENV):
        return name, ENV
    return "auto", "default"


def _check_name(backend: object) -> None:
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a name, got {type(backend).__name__}.")


def _objection(name: str, problem: Problem, *, searching: bool) -> str | None:
    backend = registry.load(name)  # unknown, clashing or broken: raises, even under `auto`
    if searching and backend.on_device != problem.on_device:
        return "auto never moves data between host and device."
    return registry.refuses(backend, problem) or registry.missing(name)


def _why_missing(name: str) -> str | None:
    try:
        return registry.missing(name)
    except BackendError as exc:  # a broken or clashing registration is a reason, too
        return str(exc)
