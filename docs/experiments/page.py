"""Put what an experiment printed into the page that tells of it."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "information.md"


def between(text: str, name: str) -> tuple[str, str, str]:
    """A page before, between and after <!-- name --> and <!-- /name -->."""
    head, opening, rest = text.partition(f"<!-- {name} -->\n")
    body, closing, tail = rest.partition(f"<!-- /{name} -->\n")
    if not (opening and closing):
        raise ValueError(f"the page has no <!-- {name} --> ... <!-- /{name} -->")
    return head + opening, body, closing + tail


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def publish(name: str, body: str) -> None:
    head, _, tail = between(PAGE.read_text(encoding="utf-8"), name)
    PAGE.write_text(head + body + tail, encoding="utf-8")
    print(body, end="")
