"""What the peers share: is the package there, and the tasks that only we take."""

from __future__ import annotations

import importlib

from sce.bench.task import Task


def why_missing(module: str, package: str) -> str | None:
    """Import it; the reason and the pip command if that fails. A broken install is missing, too."""
    try:
        importlib.import_module(module)
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}. Try: pip install {package}"
    return None


def plain_rows_only(task: Task) -> str | None:
    """The peers are measured on the plain loss: our options' cost is told against ourselves."""
    if task.option is not None:
        return "measured without options."
    if task.layout != "rows":
        return "measured with the class axis last."
    return None
