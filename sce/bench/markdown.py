"""Tables in Markdown, and the numbers in them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sce import machine


def table(header: Sequence[str], lines: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """Numbers to the right; the columns in `words` to the left."""
    rule = [":--" if i in words else "--:" for i in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *lines))


def measured_with(command: str) -> str:
    """A table: on which machine, of which commit, with which versions, by which command."""
    facts = machine.describe()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions().items())
    lines = [
        ("machine", f"{facts['processor']}, {facts['usable_cores']} cores, {facts['threads']} threads"),
        ("commit", f"`{machine.commit()}`"),
        ("versions", versions),
        ("command", f"`{command}`"),
    ]
    return table(("", ""), lines, words=(0, 1))


def marked(page: str) -> list[str]:
    """The sections that scripts put between their marks, with these."""
    return [found[0] for found in _MARKED.finditer(page)]


def put(page: str, script: str, section: str) -> str:
    """The page with `section` between the script's marks: where they are, else at the end."""
    section = f"<!-- {script} -->\n{section.strip()}\n<!-- /{script} -->"
    for found in _MARKED.finditer(page):
        if found[1] == script:
            return page[: found.start()] + section + page[found.end() :]
    return "\n\n".join(part for part in (page.rstrip("\n"), section) if part) + "\n"


_MARKED = re.compile(r"<!-- (bench/\w+\.py(?: --[\w-]+)*) -->\n(?:.*?\n)?<!-- /\1 -->", re.DOTALL)


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
