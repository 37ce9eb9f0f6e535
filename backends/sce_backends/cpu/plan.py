"""What a problem takes: which of the kernels, in which pieces, with how much memory to work in.

rows.py        everything: any target, any output
tiles.py       loss and gradient of index targets, some rows at a time
pieces.py      the same for a few rows of very many classes, in pieces
columns.py     the same, with vectors that run over the rows: few classes, or another class axis than the last
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from sce.backend import Answer, Array, Problem

from . import kernel, pieces, rows, tiles
from .simd import LINE

Way = Literal["rows", "tiles", "columns", "pieces"]

# A chunk of rows is what one thread takes at a time, and the least that is worth waking another for: a few
# tenths of a millisecond, in elements. A row costs about as much as 64 more than it has.
_CHUNK, _ROW = 1 << 18, 64
_TILED = frozenset({"loss", "z_loss", "grad"})  # the outputs of tiles.py and columns.py
_TILE_BYTES = 1 << 16  # of a tile's exponentials: they stay in a core's own cache
_COLUMNS_BYTES = 1 << 18  # the same of columns
_FEW = 64  # classes, up to which rows are turned into columns, and
_MOST_COLUMNS = 2048  # where they lie that way anyway
# Classes from which on, and rows up to which, these are taken in pieces. Two threads gain nothing by it: a
# row takes half a millisecond, and waking a thread up to a fifth of one.
_MANY, _FEW_ROWS = 1 << 20, 4
_PAST_CACHES = 1 << 24  # bytes of a gradient that the caches cannot hold


class Plan(NamedTuple):
    way: Way
    dtype: str  # what is computed in
    memory: tuple[str, str]  # dtypes of logits and gradient
    switches: tuple[bool | None, ...]  # of the kernel: True, or None for what is compiled away
    chunks: int
    scratch: dict[str, int]  # bytes of each worker's part of parameters.SCRATCH
    shared: dict[str, int]  # bytes of what all workers have together of it
    facts: dict[str, int]  # integers of parameters.PARAMETERS


def plan(problem: Problem, answer: Answer) -> Plan:
    dtype = "float64" if problem.dtype == "float64" else "float32"
    size, classes, grad = np.dtype(dtype).itemsize, problem.classes, answer.grad
    transformed = problem.softcap is not None or problem.logit_bias is not None or problem.temperature != 1.0
    smooth = problem.target == "index" and problem.label_smoothing != 0.0
    run, row_step, grad_step = _steps(problem.logits, grad)
    way = _way(problem, grad, dtype, smooth, row_step == problem.logits.itemsize)
    chunk = max(1, _CHUNK // (classes + _ROW))
    tile = _tile(way, classes * size)
    parts = -(-classes // pieces.PIECE) if way == "pieces" else 1
    width = pieces.PIECE if parts > 1 else -(-classes // (LINE // size)) * (LINE // size)
    plain = not transformed and problem.logits.strides[2] == problem.logits.itemsize
    direct = plain and problem.logits.dtype == dtype
    in_place = grad is not None and _address(grad) == _address(problem.logits)
    switches = (
        smooth,
        transformed,
        problem.softcap is not None,
        problem.distribution is not None,
        answer.entropy is not None,
        grad is not None,
        answer.hess_diag is not None,
        answer.log_softmax is not None,
        plain and way in ("tiles", "pieces"),
    )
    facts = {
        "rows": problem.rows,
        "inner": problem.logits.shape[1],
        "classes": classes,
        "chunk": chunk,
        "tile": tile,
        "width": width,
        "tile_bytes": tile * width * size,
        "length": max(classes, rows.BLOCK),
        "direct": direct and (grad is None or (grad.dtype == dtype and grad.strides[2] == size)),
        "in_place": in_place,
        "pieces": parts,
        "run": run,
        "row_step": row_step,
        "grad_step": grad_step,
        "ignores": problem.ignore_index is not None,
        "ignored": problem.ignore_index or 0,
    }
    if grad is not None:
        facts |= {
            "past_caches": grad.nbytes >= _PAST_CACHES
            and not in_place
            and grad.flags.c_contiguous
            and grad.flags.aligned,
        }
    scratch = _scratch(way, size, facts, transformed, problem.softcap is not None)
    memory = problem.logits.dtype.name, (problem.logits if grad is None else grad).dtype.name
    if way == "rows":  # it looks at them when it runs: one kernel for all
        memory = dtype, dtype
    chunks = problem.rows * parts if parts > 1 else -(-problem.rows // chunk)
    shared = _shared(way, size, facts, problem.softcap is not None)
    return Plan(way, dtype, memory, tuple(on or None for on in switches), chunks, scratch, shared, facts)


def _way(problem: Problem, grad: Array | None, dtype: str, smooth: bool, sideways: bool) -> Way:
    if problem.distribution is not None or not problem.outputs <= _TILED:
        return "rows"
    if problem.target == "none" and "loss" in problem.outputs:
        return "rows"  # the loss is lse itself, which may lie near 0
    if smooth and (dtype == "float64" or problem.class_weight is not None):
        return "rows"  # nearly all mass may be at the maximum: its term, too, has to stay apart
    if problem.classes <= (_MOST_COLUMNS if sideways else _FEW):
        return "columns"
    if grad is not None and grad.strides[2] != grad.itemsize:
        return "rows"
    return "pieces" if problem.rows <= _FEW_ROWS and problem.classes >= _MANY else "tiles"


def _tile(way: Way, size: int) -> int:
    """How many rows of so many bytes a tile has."""
    if way == "columns":  # whole vectors of rows, and lines of memory
        return max(16, min(tiles.TILE, _COLUMNS_BYTES // size // 16 * 16))
    return max(1, min(tiles.TILE, _TILE_BYTES // size))


def _scratch(way: Way, size: int, facts: dict[str, int], transformed: bool, capped: bool) -> dict[str, int]:
    if way == "rows":
        length = facts["length"]
        return {"scratch": kernel.SLOTS * length * size, "wide": kernel.WIDE_SLOTS * length * 8}
    found = {
        "blocks": 3 * tiles.BLOCK * size,
        "curves": tiles.BLOCK * 8,
        "table": tiles.VALUES * tiles.COLUMN + LINE,
        "exponentials": facts["tile_bytes"],
    }
    if way == "columns" and facts.get("past_caches"):
        found["lines"] = facts["tile"] * facts["classes"] * 8
    if transformed and (way == "columns" or facts["classes"] <= tiles.BLOCK):
        found["lows"] = facts["tile_bytes"]
    if capped:
        found["slopes"] = facts["tile"] * facts["width"] * 8
    if way == "pieces":
        for name in ("exponentials", "slopes"):
            found.pop(name, None)  # shared
    return found


def _shared(way: Way, size: int, facts: dict[str, int], capped: bool) -> dict[str, int]:
    if way != "pieces":
        return {}
    every = facts["rows"] * facts["pieces"]
    found = {"found": every * pieces.FOUND, "exponentials": every * pieces.PIECE * size}
    return found | ({"slopes": every * pieces.PIECE * 8} if capped else {})


def _steps(logits: Array, grad: Array | None) -> tuple[int, int, int]:
    """(rows in a run, bytes between neighbours of a run in the logits, and in the gradient)."""
    found = [m.strides for m in (logits, grad) if m is not None]
    n, inner, _ = logits.shape
    if inner == 1:
        return n, found[0][0], found[-1][0]
    whole = all(strides[0] == inner * strides[1] for strides in found)
    return n * inner if whole else inner, found[0][1], found[-1][1]


def _whole_lines(size: int) -> int:
    """Rounded up to cache lines."""
    return -(-size // 64) * 64


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def addresses(plan: Plan, workers: int, base: int) -> dict[str, int]:
    """Where each part of the scratch begins, for all workers one after the other."""
    found = {}
    for name, size in _sizes(plan, workers).items():
        found[name] = base
        base += size
    return found


def scratch_bytes(plan: Plan, workers: int) -> int:
    return sum(_sizes(plan, workers).values())


def _sizes(plan: Plan, workers: int) -> dict[str, int]:
    sizes = {name: size * workers for name, size in plan.scratch.items()} | plan.shared
    return {name: _whole_lines(size) for name, size in sizes.items()}
