"""Run cases on a backend and say what is wrong with its answers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sce import registry
from sce.backend import Array, Backend, BackendError
from sce.functions import solve

from .case import Case, Exact
from .catalogue import cases as all_cases
from .compare import compare
from .expected import Expected, expected
from .invariance import invariance


class Failure(NamedTuple):
    """One wrong output of one case. The message has the position, the values, the error and the bound."""

    case: str
    output: str
    message: str


@dataclass(frozen=True)
class Report:
    """How a backend did. It conforms when nothing failed and something passed."""

    backend: str
    passed: int
    failed: int
    skipped: int
    worst_ulp: dict[str, float]
    """Per group the largest error, in ulp of the output's dtype at the scale that `bounds` states.
    Float64 under a temperature, soft cap or bias is allowed many, with the size of the logits."""
    failures: tuple[Failure, ...]
    skips: tuple[tuple[str, str], ...]
    """(case, why): what the backend refuses, or what this machine cannot make."""


def check(
    backend: str | Backend,
    cases: Iterable[Case] | None = None,
    on_case: Callable[[Case], object] | None = None,
) -> Report:
    """Run every case (or these) on a backend: a registered name, an import path, or any object like one.

    Of each answer: shapes, dtypes, values within their bounds, the same bits when asked again, the same bits
    for a part of the batch, every element written and nothing else; no warning, whatever np.seterr and the
    warnings' filters say, here or at the caller's. `on_case` is called after each case.
    Raises BackendError where the backend cannot run on this machine.
    """
    name, module = _load(backend)
    failures: list[Failure] = []
    skips: list[tuple[str, str]] = []
    worst: dict[str, float] = {}
    failed = passed = 0
    for case in all_cases() if cases is None else cases:
        found, ulp, why = _examine(module, case)
        if why is not None:
            skips.append((case.name, why))
        else:
            worst[case.group] = max(worst.get(case.group, 0.0), ulp)
            failed, passed = failed + bool(found), passed + (not found)
            failures += found
        if on_case is not None:
            on_case(case)
    return Report(name, passed, failed, len(skips), worst, tuple(failures), tuple(skips))


def _load(backend: str | Backend) -> tuple[str, Backend]:
    if not isinstance(backend, str):
        return str(getattr(backend, "__name__", type(backend).__name__)), backend
    module = registry.load(backend)
    if why := registry.missing(backend):
        raise BackendError(f"backend {backend!r} does not run here: {why}")
    return backend, module


def _examine(backend: Backend, case: Case) -> tuple[list[Failure], float, str | None]:
    """The failures of one case, its largest error in ulp, or why it was not run."""
    if case.skip is not None:
        return [], 0.0, case.skip
    try:
        with warnings.catch_warnings(record=True) as leaked:
            warnings.simplefilter("always")
            found, ulp, why = _answers(backend, case)
    except Exception as exc:  # whatever a backend raises is its failure, not the suite's
        return [Failure(case.name, "", f"raised {type(exc).__name__}: {exc}")], 0.0, None
    if leaked:  # once is enough: it repeats with every run
        found.append(("", f"warned: {leaked[0].category.__name__}: {leaked[0].message}"))
    return [Failure(case.name, output, message) for output, message in found], ulp, why


def _answers(backend: Backend, case: Case) -> tuple[list[tuple[str, str]], float, str | None]:
    with np.errstate(all="raise"):  # as a caller may have it: the arithmetic here is none of theirs
        fresh, guards = case.fresh()
        request = fresh.request()
        if (why := registry.refuses(backend, request.problem)) is not None:
            return [], 0.0, why
        values = solve(request, backend)
    found = [
        (name, "the backend wrote into this input.")
        for name, guard in guards.items()
        if not guard.untouched()
    ]
    with np.errstate(all="ignore"):
        more, ulp = _values(case, values)
    found += more
    if not found:  # a wrong value explains these
        found += invariance(backend, case, values)
    return found, ulp, None


def _values(case: Case, values: dict[str, Any]) -> tuple[list[tuple[str, str]], float]:
    found: list[tuple[str, str]] = []
    known, worst = expected(case), 0.0
    for name, value in values.items():
        got, want = np.asarray(value), known.want[name]
        if (got.shape, got.dtype) != (want.shape, known.dtype[name]) or not got.dtype.isnative:
            found.append((name, f"is {got.dtype}{got.shape}, not {known.dtype[name]}{want.shape}."))
            continue
        message, ulp = compare(got, want, known.bound[name])
        worst = max(worst, ulp)
        if message:
            found.append((name, message))
        for exact in case.exact:
            if exact.output == name and (message := _closed_form(got, exact, known)):
                found.append((name, f"closed form: {message}"))
    return found, worst


def _closed_form(got: Array, exact: Exact, known: Expected) -> str:
    part = np.asarray(got[exact.where])
    value = np.broadcast_to(np.asarray(exact.value), part.shape)
    bound = known.bound[exact.output]
    allowed, ulp = bound.allowed[exact.where], bound.ulp[exact.where]
    if value.dtype.kind == "f":  # the closed form is itself a rounded float64
        allowed = allowed + 2 * np.spacing(np.where(np.isfinite(value), np.abs(value), 0.0))
    return compare(part, value, bound._replace(allowed=np.asarray(allowed), ulp=np.asarray(ulp)))[0]
