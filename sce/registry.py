"""Find backends by entry point; import one only when it is asked for."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, cast

from .backend import JACOBIANS, Backend, BackendError, Problem

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "sce.backends"
_PARTS = ("on_device", "debug", "refuses", "missing", "run")
_ready: set[str] = set()


@cache
def registered() -> dict[str, tuple[EntryPoint, ...]]:
    """Every registered name, with each distribution that claims it. Imports nothing."""
    from importlib.metadata import entry_points  # costs as much as the rest of `import sce`

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        # An editable install beside a wheel lists one distribution twice: that is one claim.
        if entry.value not in (known.value for known in found.get(entry.name, ())):
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


@cache
def load(name: str) -> Backend:
    """Import one backend by its name or its import path, or raise a BackendError that says what to do."""
    dotted = "." in name
    where = name if dotted else _claim(name).value
    try:
        module = importlib.import_module(name) if dotted else _claim(name).load()
    except Exception as exc:
        hint = install_hint(name) if isinstance(exc, ImportError) else ""
        why = f"{type(exc).__name__}: {exc}".rstrip(".")
        raise BackendError(f"backend {name!r} ({where}) failed to import: {why}.{hint}") from exc
    if lacking := [part for part in _PARTS if not hasattr(module, part)]:
        raise BackendError(
            f"{where} is not a backend: it lacks {', '.join(lacking)}; see sce.backend.Backend."
        )
    return cast(Backend, module)


def refuses(backend: Backend, problem: Problem) -> str | None:
    """Why it does not take the problem, or None. One that says nothing of binary problems knows none."""
    if problem.binary and not getattr(backend, "takes_binary", False):
        return "it takes no binary problems."
    if not problem.outputs.isdisjoint(JACOBIANS) and not getattr(backend, "takes_jacobians", False):
        return "it forms no Jacobians."
    return backend.refuses(problem)


def missing(name: str) -> str | None:
    """Why this machine cannot run the backend, or None. Remembers only success."""
    if name in _ready:
        return None
    try:
        why = load(name).missing()
    except ImportError as exc:
        return f"{str(exc).rstrip('.')}.{install_hint(name)}"
    except BackendError:
        raise
    except Exception as exc:  # a broken driver must not take the listing of the others down
        return f"its check failed: {exc!r}."
    if why is None:
        _ready.add(name)
    return why


def install_hint(name: str) -> str:
    """The pip command for a backend whose distribution has an extra of that name."""
    entry = None if "." in name else _claim(name)
    if entry and entry.dist and name in (entry.dist.metadata.get_all("Provides-Extra") or ()):
        return f" Try: pip install '{entry.dist.name}[{name}]'"
    return ""


def _claim(name: str) -> EntryPoint:
    known = registered()
    if not known:
        raise BackendError("no backend is registered: is sce installed? Try: pip install -e .")
    if name not in known:
        near = "".join(f" Did you mean {n!r}?" for n in get_close_matches(name, known, n=1))
        raise BackendError(
            f"unknown backend {name!r}; registered: {', '.join(sorted(known))}.{near}"
            " A module of your own is named by its import path, such as 'my_package.my_backend'."
        )
    if len(known[name]) > 1:
        who = ", ".join(sorted(e.dist.name if e.dist else e.value for e in known[name]))
        raise BackendError(f"backend {name!r} is claimed by {who}: uninstall all but one.")
    return known[name][0]
