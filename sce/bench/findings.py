"""What a document says: the rows and numbers that plots, pages and comparisons tell alike."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .contest import LIMITS
from .markdown import number

Document = dict[str, Any]
Row = dict[str, Any]
Key = tuple[Any, ...]

TASK = ("op", "n", "c", "dtype", "option", "layout", "where")
GROUP = ("op", "dtype", "layout", "where")
_SHOWN_VERSIONS = ("sce", "numpy", "numba", "scipy", "torch", "jax", "scikit-learn")


class NotADocument(ValueError):
    """A file cannot be read as a document: one line says why."""


class Absence(NamedTuple):
    """Contestants that were not measured on some tasks, all for one reason."""

    contestants: tuple[str, ...]
    status: str
    why: str
    where: str  # the tasks, in words


def read(path: Path) -> Document:
    """A document from its file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise NotADocument(f"{str(path)!r} cannot be read: {exc.strerror or exc}.") from exc
    except ValueError as exc:  # not UTF-8, or not JSON
        raise NotADocument(f"{str(path)!r} is not JSON: {exc}.") from exc
    if lacking := _lacking(found):
        raise NotADocument(f"{str(path)!r} is not a result of sce bench: it has no {lacking}.")
    return dict(found)


def _lacking(found: Any) -> str | None:
    """What a document must have and this has not."""
    if not isinstance(found, dict):
        return "named parts"
    for part, kind in {"machine": dict, "versions": dict, "results": list, "costs": list}.items():
        if not isinstance(found.get(part), kind):
            return part
    needed = {*TASK, "contestant", "ours", "buffers", "status", "why", "median_s", "low_s", "high_s"}
    for row in found["results"]:
        if not isinstance(row, dict) or not needed <= row.keys():
            return f"{', '.join(sorted(needed - set(row)))} in a row" if isinstance(row, dict) else "rows"
    return None


def key(row: Row, fields: tuple[str, ...] = TASK) -> Key:
    return tuple(row[field] for field in fields)


def measured(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok" and row["median_s"] is not None]


def plain(document: Document) -> dict[Key, list[Row]]:
    """The rows without options, by operation, dtype, layout and size, in the order measured."""
    found: dict[Key, list[Row]] = {}
    for row in document["results"]:
        if row["option"] is None:
            found.setdefault(key(row, GROUP), []).append(row)
    return found


def tasks(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each task, from few classes to many."""
    found: dict[Key, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return sorted(found.values(), key=lambda task: (task[0]["c"], task[0]["n"]))


def is_peer(row: Row) -> bool:
    return not row["ours"] and row["contestant"] not in LIMITS


def contestants(document: Document) -> list[str]:
    """All but the limits, those that never ran included: our leading backend, our others, then the peers."""
    rows = [row for row in document["results"] if row["contestant"] not in LIMITS]
    first = lead(document)
    names = {row["contestant"]: (row["contestant"] != first, not row["ours"]) for row in rows}
    return sorted(names, key=lambda name: names[name])


def lead(document: Document) -> str | None:
    """Our backend that is the fastest of ours on most tasks."""
    ours = [row for row in measured(document["results"]) if row["ours"]]
    fastest = [min(rows, key=lambda row: row["median_s"]) for rows in tasks(ours)]
    wins = Counter(row["contestant"] for row in fastest)
    return max(wins, key=lambda name: wins[name]) if wins else None


def of(rows: Iterable[Row], contestant: str | None, buffers: str | None = None) -> Row | None:
    """A contestant's row of one task: under this policy of buffers, or the one that suits it best."""
    found = [row for row in measured(rows) if row["contestant"] == contestant]
    if buffers is not None:
        return next((row for row in found if row["buffers"] in (buffers, "none")), None)
    return min(found, key=lambda row: row["median_s"], default=None)


def strongest(rows: Iterable[Row]) -> Row | None:
    """The fastest peer of one task."""
    return min(filter(is_peer, measured(rows)), key=lambda row: row["median_s"], default=None)


def copied(row: Row) -> float | None:
    """Bytes that the copy of the same run moves in this row's time: a time whose unit is the machine's."""
    share: float | None = row["share_of_copy"]
    return row["bytes"] / share if share else None


def share_of_limit(rows: Iterable[Row], row: Row) -> float | None:
    """How near a row comes to its bound: the copy where a gradient is written, the read where none is."""
    share: float | None = row["share_of_copy"]
    if row["op"] == "loss_and_grad":
        return share
    read = of(rows, "read")
    return share / read["share_of_copy"] if read and share and read["share_of_copy"] else None


def option_costs(document: Document) -> dict[str, dict[int, float]]:
    """By option and C: what it adds to our leading backend's time, as a share of the time without it.

    Both times are taken in units of their own copy where there is one: they are minutes apart.
    """
    ours = [row for row in measured(document["results"]) if row["contestant"] == lead(document)]
    reused = {key(row): row for row in ours if row["buffers"] in ("reused", "none")}
    found: dict[str, dict[int, float]] = {}
    for row in reused.values():
        base = reused.get(key({**row, "option": None}))
        if row["option"] is not None and base is not None:
            with_it, without = copied(row), copied(base)
            if with_it is None or without is None:
                with_it, without = row["median_s"], base["median_s"]
            found.setdefault(row["option"], {})[row["c"]] = with_it / without - 1
    return found


def summary(document: Document) -> Iterator[str]:
    """A sentence for each operation and dtype: how near to the limit, and how far ahead of the peers."""
    name = lead(document)
    for (op, _, layout, where), rows in plain(document).items():
        ours = [(task, row) for task in tasks(rows) if (row := of(task, name, "reused") or of(task, name))]
        shares = [share for task, row in ours if (share := share_of_limit(task, row))]
        ahead = [row["speed_up_over_peers"] for _, row in ours if row["speed_up_over_peers"]]
        if (layout, where) == ("rows", "memory") and shares:
            limit = "copy" if op == "loss_and_grad" else "read"
            near = f"{_range([100 * share for share in shares])} % of the fastest {limit}"
            more = f", {_range(ahead)} times as fast as the strongest peer" if ahead else ""
            yield f"{heading(rows[0])}: {name} runs at {near}{more}."


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


def absences(document: Document) -> list[Absence]:
    """Everything that was not measured, and why; nothing is dropped silently."""
    found: dict[tuple[str, str, str], dict[str, set[int | None]]] = {}
    for row in [*document["results"], *document["costs"]]:
        if row["status"] != "ok":
            what, size = (in_words(row), row["c"]) if "op" in row else (row["cost"], None)
            who = (row["contestant"], row["status"], row["why"] or "no reason given.")
            found.setdefault(who, {}).setdefault(what.replace("_", " "), set()).add(size)
    runs = {row["contestant"] for row in measured([*document["results"], *document["costs"]])}
    alike: dict[tuple[str, str, str], list[str]] = {}
    for (name, status, why), kinds in found.items():
        where = "everywhere" if name not in runs and status == "missing" else _some(kinds)
        alike.setdefault((status, why, where), []).append(name)
    return [Absence(tuple(names), *reason) for reason, names in alike.items()]


def _some(kinds: dict[str, set[int | None]]) -> str:
    """The first few kinds of tasks, and their C where these are few."""
    told = []
    for what, sizes in kinds.items():
        classes = sorted(c for c in sizes if c is not None)
        listed = ", ".join(map(str, classes)) if len(classes) <= 4 else f"{len(classes)} values"
        told.append(f"{what}: C = {listed}" if classes else what)
    return "; ".join(told[:3]) + (f"; {len(told) - 3} more" if len(told) > 3 else "")


def machine(document: Document) -> str:
    """Processor and threads, in one line."""
    facts = document["machine"]
    threads = f"{facts['threads']} thread{'s' if facts['threads'] != 1 else ''}"
    return f"{facts['processor']}, {threads}"


def versions(document: Document) -> Iterator[str]:
    """sce, what its backends rest on, and the peers."""
    known = document["versions"]
    return (f"{name} {known[name]}" for name in _SHOWN_VERSIONS if name in known)


def plot_name(kind: str, row: Row) -> str:
    """The name of a plot of this kind about this row's operation and dtype."""
    parts = [kind, "loss" if row["op"] == "loss" else "", row["dtype"] if row["dtype"] != "float32" else ""]
    return "_".join(filter(None, parts))


def heading(row: Row) -> str:
    words = in_words(row)
    return words[0].upper() + words[1:]


def in_words(row: Row) -> str:
    """A task, without its shape."""
    parts = {
        "loss": "loss alone",
        "loss_and_grad": "loss and gradient",
        "rows": "",
        "channels": "class axis 1 of 4",
        "memory": "",
        "cache": "matrix in the cache",
        "call": "one tiny call",
    }
    words = [parts[row["op"]], row["dtype"], row["option"] or "", parts[row["layout"]], parts[row["where"]]]
    return ", ".join(filter(None, words))
