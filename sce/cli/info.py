"""`sce info`: what to paste into a bug report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sce import __version__, machine, registry
from sce.select import backends


def collect() -> dict[str, Any]:
    """Everything, as JSON would have it."""
    return {
        "sce": __version__,
        "versions": machine.versions(),
        "machine": machine.describe(),
        "environment": machine.environment(),
        "backends": (reasons := backends()),
        "details": {
            name: details for name, why in reasons.items() if not why and (details := _details(name))
        },
    }


def _details(name: str) -> dict[str, str]:
    """What a backend that runs says about itself: threads, caches."""
    info = getattr(registry.load(name), "info", None)
    try:
        return dict(info()) if info else {}
    except Exception as exc:  # a report about a broken machine must not break
        return {"info": f"failed: {type(exc).__name__}: {exc}"}


def lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same, a fact per line under headings."""
    yield f"sce {facts['sce']}"
    for heading in ("versions", "machine"):
        yield from _section(heading, facts[heading])
    yield from _section("environment", facts["environment"] or {"(none of SCE_*, NUMBA_*, OMP_* ...)": ""})
    yield from _section("backends", {name: why or "runs" for name, why in facts["backends"].items()})
    for name, details in facts["details"].items():
        yield from _section(f"backend {name}", details)


def _section(heading: str, facts: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield heading
    width = max(map(len, facts))
    for name, value in facts.items():
        yield f"  {name:<{width}}  {value}".rstrip()
