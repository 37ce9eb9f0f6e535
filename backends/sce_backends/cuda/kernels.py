"""Every kernel by what it depends on: its factory, its arguments, its name."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

from . import binary, binary_survey, general, rows, scales, survey, totals
from .plan import Spec

_HOME: dict[type, Any] = {
    binary.Binary: binary,
    binary_survey.BinarySurvey: binary_survey,
    general.General: general,
    rows.Rows: rows,
    scales.Scales: scales,
    survey.Survey: survey,
    totals.Totals: totals,
}


def make(words: Any, spec: Spec) -> Callable[..., None]:
    """The kernel's function, for a vocabulary."""
    kernel: Callable[..., None] = _HOME[type(spec)].kernel(words, spec)
    return kernel


@functools.cache
def arguments(spec: Spec) -> tuple[tuple[str, str], ...]:
    """Its arguments in order: name and kind. "*float32" points at memory, "int64" is a number."""
    found: tuple[tuple[str, str], ...] = _HOME[type(spec)].arguments(spec)
    return found


@functools.cache
def name(spec: Spec) -> str:
    """What it is called in PTX and in profilers."""
    digest = hashlib.sha256(repr(spec).encode()).hexdigest()[:12]
    return f"sce_{type(spec).__name__.lower()}_{digest}"
