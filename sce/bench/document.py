"""The JSON of a run: what the command line writes, and what plots, pages and comparisons read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sce import __version__, machine

from .cold import Cost
from .contest import Result


def document(command: str, results: Iterable[Result], costs: Iterable[Cost] = ()) -> dict[str, Any]:
    """What was measured, where, by which command: "results" has a row each, "costs" are cold/'s."""
    return {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "versions": {"sce": __version__, **machine.versions()},
        "environment": machine.environment(),
        "command": command,
        "results": [row(result) for result in results],
        "costs": [cost._asdict() for cost in costs],
    }


def row(result: Result) -> dict[str, Any]:
    """One result. Seconds are medians with their quartiles; None stands for what was not measured."""
    task = result.task
    return {
        "op": task.op,
        "contestant": result.contestant,
        "ours": result.ours,
        "n": task.n,
        "c": task.c,
        "dtype": task.dtype,
        "option": task.option,
        "layout": task.layout,
        "where": task.where,
        "buffers": result.buffers,
        "status": result.status,
        "why": result.why,
        "median_s": result.seconds,
        "low_s": result.low,
        "high_s": result.high,
        "turns": len(result.turns),
        "bytes": result.bytes,
        "gb_per_s": result.gb_per_s,
        "share_of_copy": result.share_of_copy,
        "speed_up_over_peers": result.speed_up,
        "loss_error": result.loss_error,
        "grad_error": result.grad_error,
    }
