"""What a device's document says in lines of text, and whether all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]
Row = dict[str, Any]
_SHOWN = 5  # failures
_AIMS = {  # shares of a copy, by dtype, from so many classes on
    "float32": ((1000, 0.90), (128, 0.85), (10, 0.70)),
    "bfloat16": ((1000, 0.85), (128, 0.80), (10, 0.60)),
}
HOST_AIM = 12e-6  # seconds of the host per call


def measured(doc: Document) -> bool:
    """Was it made on a device, and ours timed there?"""
    timed = any(row["ours"] and row["status"] == "ok" for row in doc["results"])
    return doc.get("device") == "cuda" and bool(doc.get("gpu")) and timed


def aim(row: Row) -> float | None:
    """The share of a copy that loss and gradient are to reach on a device."""
    if row["op"] != "loss_and_grad" or row["option"]:
        return None
    return next((share for classes, share in _AIMS.get(row["dtype"], ()) if row["c"] >= classes), None)


def faults(doc: Document) -> list[str]:
    """Why the backend cannot be said to be right; empty if it can."""
    suite = doc["conformance"]
    ended = {name: step["status"] for name, step in doc["steps"].items()}
    found = [f"step {name}: {status}" for name, status in ended.items() if status in ("cut", "failed")]
    if not suite.get("passed"):
        found.append(f"conformance: {suite.get('why', 'no case passed.')}")
    elif suite["failed"]:
        found.append(f"conformance: {suite['failed']} of {suite['ran']} cases failed.")
    found += [f"{_function(row)}: {row['status']}: {row['why']}" for row in _bad_functions(doc)]
    ours = [row for row in _rows(doc) if row["ours"]]
    bad = [row for row in ours if row["status"] in ("wrong", "failed", "refused")]
    return found + [f"{_task(row)}, {_who(row)}: {row['status']}: {row['why']}" for row in bad]


def lines(doc: Document) -> Iterator[str]:
    """The report, the table last."""
    yield from _conformance(doc["conformance"])
    yield from _functions(doc)
    for row in doc["launch"]:
        if row["status"] == "ok":
            yield f"{row['median_s'] * 1e6:.1f} us of the host: {_task(row)}, {row['contestant']}"
    for row in doc["large"]:
        speed = f"{row['gb_per_s']:.0f} GB/s" if row["status"] == "ok" else row["why"]
        yield f"{row['n'] * row['c']} elements, {_who(row)}: {row['status']}: {speed}"
    absent = {r["contestant"]: r["why"] for r in _rows(doc) if r["status"] == "missing"}
    yield from (f"missing: {name}: {why}" for name, why in absent.items())
    for (name, status, why), count in Counter(
        (r["contestant"], r["status"], r["why"])
        for r in _rows(doc)
        if r["status"] in ("wrong", "failed", "not reached")
    ).items():
        yield f"{status}, {count} tasks: {name}: {why}"
    yield from (f"NOT WELL: {fault}" for fault in faults(doc))
    yield from [*_table(doc["results"])] or ["no table: nothing was measured."]


def _conformance(suite: Document) -> Iterator[str]:
    if not suite.get("ran"):
        yield f"conformance: {suite.get('status')}: {suite.get('why')}"
        return
    counts = ", ".join(f"{suite[key]} {key}" for key in ("passed", "failed", "skipped"))
    yield f"conformance: {suite['ran']} of {suite['cases']} cases ({suite['order']}): {counts}"
    yield "worst ulp: " + ", ".join(f"{group} {float(ulp):.3g}" for group, ulp in suite["worst_ulp"].items())
    for failure in suite["failures"][:_SHOWN]:
        yield f"fails {failure['case']}, {failure['output']}: {failure['message']}"
    yield from (f"skips {count}: {why}" for why, count in suite["skips"].items())


def _functions(doc: Document) -> Iterator[str]:
    """Functions on arrays where they are, and the times of those that have no table."""
    if rows := doc.get("functions", []):
        counts = Counter(row["status"] for row in rows)
        yield "functions: " + ", ".join(f"{count} {status}" for status, count in counts.items())
        absent = {row["library"]: row["why"] for row in rows if row["status"] == "missing"}
        yield from (f"missing: {library}: {why}" for library, why in absent.items())
    for row in doc.get("others", []):
        speed = row["why"]
        if row["median_s"]:
            work = (row["bytes"] / 1e9, "GB/s") if row["bytes"] else (row["flops"] / 1e12, "TFLOP/s")
            speed = f"{row['median_s'] * 1e3:.3f} ms, {work[0] / row['median_s']:.4g} {work[1]}"
        yield f"{_function(row)}: {row['status']}: {speed}"


def _bad_functions(doc: Document) -> list[Row]:
    """Ours that failed: in "functions" all are."""
    rows = doc.get("functions", []) + [row for row in doc.get("others", []) if row["ours"]]
    return [row for row in rows if row["status"] in ("wrong", "failed")]


def _function(row: Row) -> str:
    shape = f"{row['n']}x{row['c']}" if "n" in row else row["library"]
    return " ".join(part for part in (row["function"], shape, row["dtype"], row.get("contestant")) if part)


def _table(rows: list[Row]) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["dtype"]), []).append(row)
    for (op, dtype), found in groups.items():
        if all(row["status"] == "not reached" for row in found):
            continue
        who = [*dict.fromkeys(_who(row) for row in found if row["contestant"] != "copy")]
        yield ""
        yield f"{op} {dtype}: bytes per second over those of the copy, whose are in GB/s"
        yield f"{'C':>7}{'copy':>8}" + "".join(f"  {name:>11}" for name in who)
        for c in sorted({row["c"] for row in found}):
            cells = {_who(row): _cell(row) for row in found if row["c"] == c}
            line = "".join(f"  {cells.get(name, '-'):>{max(11, len(name))}}" for name in who)
            yield f"{c:>7}{cells.get('copy, reused', '-'):>8}{line}"


def _who(row: Row) -> str:
    return str(row["contestant"]) if row["buffers"] == "none" else f"{row['contestant']}, {row['buffers']}"


def _cell(row: Row) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    if row["contestant"] == "copy":
        return f"{row['gb_per_s']:.0f}"
    return "-" if row["share_of_copy"] is None else f"{row['share_of_copy']:.0%}"


def _rows(doc: Document) -> list[Row]:
    return [*doc["results"], *doc["launch"], *doc["large"]]


def _task(row: Row) -> str:
    parts = (row["op"], f"{row['n']}x{row['c']}", row["dtype"], row["option"])
    return " ".join(part for part in parts if part)
