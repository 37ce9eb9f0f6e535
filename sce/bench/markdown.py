"""Tables in Markdown, and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(header: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Numbers to the right; the columns in `words` to the left."""
    rule = [":--" if i in words else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def number(value: float | None) -> str:
    """Three digits, never an exponent."""
    if value is None:
        return ""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}"


def text(cell: str) -> str:
    """Words as they are: a reason may hold what Markdown or HTML would take for itself."""
    for mark, plain in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("*", "\\*"), ("`", "\\`"), ("\n", " ")):
        cell = cell.replace(mark, plain)
    return cell
