"""All cases, in a fixed order. Each family is a module of its own."""

from __future__ import annotations

from .case import Case
from .cases_accuracy import accuracy
from .cases_binary import binary
from .cases_crossed import crossed
from .cases_edges import edges
from .cases_jacobians import jacobians
from .cases_layouts import layouts
from .cases_limits import limits
from .cases_options import options
from .cases_second import second
from .cases_shapes import shapes


def cases() -> tuple[Case, ...]:
    """Every case: the same ones, with the same values, on every machine."""
    found = (*shapes(), *layouts(), *options(), *crossed(), *edges(), *limits(), *accuracy(), *binary())
    found += (*second(found), *jacobians())
    if len({case.name for case in found}) < len(found):
        raise RuntimeError("two conformance cases have one name.")
    return found
