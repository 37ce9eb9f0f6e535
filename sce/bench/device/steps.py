"""Steps of a long measurement, each a process of its own: what crashes or hangs costs no other its turn."""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sce import strict_json

Found = dict[str, Any]
Say = Callable[[str], object]
_TRACED = 5  # lines of a traceback that are kept


class Outcome(NamedTuple):
    status: str  # "ok", "failed", or "cut": it had to be ended
    why: str | None
    found: Found  # the last that it wrote


def write(path: Path, document: Found) -> None:
    """All or nothing: a process may be ended at any time."""
    path.with_suffix(".new").write_text(strict_json.text(document), "utf-8")
    os.replace(path.with_suffix(".new"), path)


def perform(step: Callable[[Say], Iterator[Found]], part: Path) -> int:
    """In the step's process: write down what it yields, each time, and what it says that it is doing."""
    found: Found = {}

    def say(text: str) -> None:
        part.with_suffix(".now").write_text(text, "utf-8")

    try:
        for found in step(say):
            write(part, {"found": found})
    except Exception:
        last = [line.strip() for line in traceback.format_exc().splitlines()[-_TRACED:]]
        write(part, {"found": found, "why": " | ".join(last)})
        return 1
    return 0


def supervise(command: Sequence[str], part: Path, seconds: float) -> Outcome:
    """Run a step's process, no longer than this, and read what it wrote into `part`."""
    status, why = "ok", None
    try:
        if code := subprocess.run(command, timeout=seconds, stdin=subprocess.DEVNULL).returncode:
            status, why = "failed", f"ended with exit status {code}"
    except subprocess.TimeoutExpired:
        status, why = "cut", f"still ran after {seconds:.0f} s"
    left = json.loads(part.read_text("utf-8")) if part.exists() else {}
    if status != "ok":
        now = part.with_suffix(".now")
        why = left.get("why") or f"{why}, at: {now.read_text('utf-8') if now.exists() else 'its start'}"
    return Outcome(status, why, left.get("found", {}))
