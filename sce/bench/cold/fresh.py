"""A measurement in a process of its own: started here, done in worker.py."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from .worker import Figures

Status = Literal["ok", "missing", "refused", "failed"]

PATIENCE = 120.0  # seconds until a process counts as failed

# Runs before anything else is loaded: every process tells what NumPy and sce cost to import.
_PRELUDE = """
from time import perf_counter
began = perf_counter()
import numpy
loaded = perf_counter()
import sce
imported = perf_counter()
from sce.bench.cold.worker import main
main(loaded - began, imported - loaded)
"""


T = TypeVar("T", contravariant=True)


class Asked(Protocol[T]):
    """What is asked of a contestant before a process is started for it."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None: ...

    def refuses(self, task: T) -> str | None: ...


C = TypeVar("C", bound=Asked[Any])


class Reply(NamedTuple):
    """What came back from a process, or why nothing did."""

    status: Status
    why: str | None = None
    figures: Figures = {}  # noqa: RUF012 - nobody writes to it
    process_s: float = 0.0


def ask(
    measure: Callable[[C, T], Figures],
    contestant: C,
    task: T,
    environment: Mapping[str, str] = {},
    patience: float | None = None,
) -> Reply:
    """What a function such as worker.py's measures. Whatever goes wrong in the process is a reply, too."""
    if why := contestant.missing():
        return Reply("missing", why)
    if why := contestant.refuses(task):
        return Reply("refused", why)
    try:
        work = pickle.dumps((measure, contestant, task))
    except (pickle.PicklingError, AttributeError, TypeError) as exc:
        raise TypeError(
            f"contestant {contestant.name!r} cannot be sent to a process of its own: {exc}."
            " Define its class at the top of a module."
        ) from exc
    with TemporaryDirectory(prefix="sce-fresh-", ignore_cleanup_errors=True) as home:
        return _run(
            work, environment, patience or PATIENCE, Path(home, "figures.json"), Path(home, "stderr.txt")
        )


def _run(work: bytes, environment: Mapping[str, str], patience: float, figures: Path, errors: Path) -> Reply:
    # Without bytecode every import would compile: that is not how packages are installed.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    try:
        with errors.open("wb") as stderr:  # not a pipe: a framework's helper processes would keep it open
            done = subprocess.run(
                [sys.executable, "-c", _PRELUDE, os.fspath(figures)],
                input=work,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**inherited, **environment},
                timeout=patience,
            )
    except subprocess.TimeoutExpired:
        return Reply("failed", _last_line(f"no answer within {patience:g} s", errors))
    took = time.perf_counter() - began
    if done.returncode or not figures.exists():
        return Reply("failed", _last_line(_how_it_ended(done.returncode), errors))
    return Reply("ok", None, json.loads(figures.read_text(encoding="utf-8")), took)


def _how_it_ended(status: int) -> str:
    if status == -getattr(signal, "SIGKILL", 0):
        return "killed, as Linux does where memory runs out"
    return f"exit status {status}"


def _last_line(what: str, errors: Path) -> str:
    """What happened, and the last that the process said about it."""
    said = errors.read_text(encoding="utf-8", errors="replace").splitlines()
    return ": ".join([what, *[line.strip() for line in said if line.strip()][-1:]])
