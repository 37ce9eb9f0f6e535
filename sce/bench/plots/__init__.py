"""The plots of a document: `draw` writes them as PNG, and skips those whose data is not there.

style.py    colours, axes, labels, and the caption that every plot carries
lines.py    share of the limit against C: roofline, dtypes
bars.py     speed-up over each peer, cost of each option
costs.py    costs of a fresh process: cold, scaling
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sce.bench.findings import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(document: Document, directory: Path) -> list[Path]:
    """Write every plot that the document has data for. Needs matplotlib."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures(document):
        path = directory / f"{name}.png"
        figure.savefig(path)
        written.append(path)
    return written


def figures(document: Document) -> Iterator[tuple[str, Figure]]:
    """The plots by name. Save each before asking for the next: so long the style holds."""
    from . import bars, costs, lines, style

    with style.applied():
        for plot in (lines.rooflines, lines.dtypes, bars.peers, bars.options, costs.cold, costs.scaling):
            yield from plot(document)
