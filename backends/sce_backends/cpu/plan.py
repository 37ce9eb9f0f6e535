"""What a problem takes: which of the kernels, in which pieces, with how much memory to work in.

rows.py      everything: any target, any output
tiles.py     loss and gradient, some rows at a time
pieces.py    the same for a few rows of very many classes, in pieces
columns.py   the same, with vectors that run over the rows: few classes, or another class axis than the last
along.py     products with a vector, of more classes than go by columns
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import numpy as np

from sce.backend import DTYPES, Answer, Array, Problem

from . import kernel, pieces, rows
from .parameters import PLACES, SIZE, start
from .simd import LINE
from .tile import BLOCK, COLUMN, TILE, VALUES

Way = Literal["rows", "tiles", "columns", "pieces", "along"]

# A chunk of rows is what one thread takes at a time, and the least that is worth waking another for: a few
# tenths of a millisecond, in elements. A row costs about as much as 64 more than it has.
_CHUNK, _ROW = 1 << 18, 64
_TILED = frozenset({"loss", "z_loss", "grad"})  # the outputs of tiles.py, and some of columns.py
_TILE_BYTES = 1 << 16  # of a tile's exponentials: they stay in a core's own cache
_COLUMNS_BYTES = 1 << 18  # the same of columns
_FEW, _FEW_SOFT = 64, 160  # classes, up to which rows are turned into columns, of distributions, and
_MOST_COLUMNS = 2048  # where they lie that way anyway, and of Hessian-vector products with a bias
# Classes from which on, and rows up to which, these are taken in pieces. Two threads gain nothing by it: a
# row takes half a millisecond, and waking a thread up to a fifth of one.
_MANY, _FEW_ROWS = 1 << 20, 4
# Temperatures, and their inverses, whose square the factor of a second derivative has room for: see `_way`.
_SQUARED = {"float32": 1e9, "float64": 1e70}
_WIDE_CAP = 1024.0  # from which on z needs more than transforms.py gives
_SMALL_Z = 0.125  # up to which a z-loss is a small part of a loss: see `_sharp`
_LATE_BYTES = 1 << 18  # of a tile's exponentials, up to which a worker keeps those of two tiles
_PAST_CACHES = 1 << 24  # bytes of a gradient that the caches cannot hold


class Plan(NamedTuple):
    way: Way
    dtype: str  # what is computed in
    memory: tuple[str, ...]  # dtypes of logits and gradient, and of a distribution
    switches: tuple[bool | None, ...]  # of the kernel: True, or None for what is compiled away
    chunks: int
    width: int  # the length of a row of scratch
    numbers: list[float]  # the parameters, as far as they are known: all but addresses and the denominator
    scratch: dict[str, int]  # bytes of each worker's part of parameters.SCRATCH
    shared: dict[str, int]  # bytes of what all workers have together of it
    places: dict[int, tuple[list[tuple[int, int]], int]]  # what `places` has found: see there


class _Shape(NamedTuple):
    """What a plan depends on: not on what arrays hold, and not on where they lie."""

    rows: int
    classes: int
    shape: tuple[int, ...]  # of the logits, as are
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    grad: tuple[tuple[int, ...], np.dtype[Any], bool] | None  # strides, dtype; whole lines can be written
    hess: tuple[tuple[int, ...], np.dtype[Any], bool] | None  # the same of the Hessian's diagonal
    product: tuple[tuple[int, ...], np.dtype[Any], bool] | None  # with v: `hvp`, or `log_softmax_jvp`
    direction: tuple[tuple[int, ...], np.dtype[Any], bool] | None
    others: tuple[tuple[np.dtype[Any], tuple[int, ...]] | None, ...]  # the other matrices
    in_place: bool
    over: bool
    target: str
    outputs: frozenset[str]
    class_weight: bool
    bias: bool
    ignored: int | None
    label_smoothing: float
    temperature: float
    softcap: float | None
    z_loss: float
    grad_scale: float
    hess_scale: float
    hess_min: float | None
    limits: tuple[int, ...]  # this module's

    @property
    def smooth(self) -> bool:
        return self.target == "index" and self.label_smoothing != 0.0

    @property
    def transformed(self) -> bool:
        return self.capped or self.bias or self.temperature != 1.0

    @property
    def capped(self) -> bool:
        return self.softcap is not None


def plan(problem: Problem, answer: Answer, in_place: bool, over: bool = False) -> Plan:
    """`in_place`: the gradient lies where the logits do. `over`: the product does, or where v does."""
    logits = problem.logits
    return _plan(
        _Shape(
            problem.rows,
            problem.classes,
            logits.shape,
            logits.strides,
            logits.dtype,
            _seen_whole(answer.grad),
            _seen_whole(answer.hess_diag),
            _seen_whole(answer.log_softmax_jvp if answer.hvp is None else answer.hvp),
            _seen_whole(problem.direction),
            (_seen(problem.distribution), _seen(answer.log_softmax), _seen(answer.log_softmax_jvp)),
            in_place,
            over,
            problem.target,
            problem.outputs,
            problem.class_weight is not None,
            problem.logit_bias is not None,
            problem.ignore_index,
            problem.label_smoothing,
            problem.temperature,
            problem.softcap,
            problem.z_loss,
            problem.grad_scale,
            problem.hess_scale,
            problem.hess_min,
            (_PAST_CACHES, _MANY),
        )
    )


def _seen_whole(x: Array | None) -> tuple[tuple[int, ...], np.dtype[Any], bool] | None:
    return None if x is None else (x.strides, x.dtype, x.flags.c_contiguous and x.flags.aligned)


def _seen(x: Array | None) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    return None if x is None else (x.dtype, x.strides)


@functools.lru_cache(maxsize=1024)
def _plan(shape: _Shape) -> Plan:
    dtype = "float64" if shape.dtype == "float64" else "float32"
    size, classes, grad = np.dtype(dtype).itemsize, shape.classes, shape.grad
    run, steps = _steps(shape)
    way = _way(shape, dtype, steps["row_step"] == shape.dtype.itemsize)
    chunk = max(1, _CHUNK // (classes + _ROW))
    tile = _tile(way, classes * size)
    parts = -(-classes // pieces.PIECE) if way == "pieces" else 1
    width = pieces.PIECE if parts > 1 else -(-classes // (LINE // size)) * (LINE // size)
    plain = not shape.transformed and shape.strides[2] == shape.dtype.itemsize
    direct = plain and shape.dtype == dtype
    written = [x for x in (grad, shape.hess, shape.product) if x is not None]
    past_caches = bool(written) and all(x[2] for x in written) and not (shape.in_place or shape.over)
    past_caches &= all(shape.rows * classes * x[1].itemsize >= _PAST_CACHES for x in written)
    if grad is not None:
        direct = direct and grad[1] == dtype and grad[0][2] == size
    switches = (
        shape.smooth,
        shape.transformed,
        shape.capped,
        shape.target == "distribution",
        "entropy" in shape.outputs,
        grad is not None,
        "hess_diag" in shape.outputs,
        "log_softmax" in shape.outputs,
        "hvp" in shape.outputs,
        "log_softmax_jvp" in shape.outputs,
        plain and way in ("tiles", "pieces"),
    )
    facts = {
        "rows": shape.rows,
        "inner": shape.shape[1],
        "classes": classes,
        "chunk": chunk,
        "tile": tile,
        "width": width,
        "tile_bytes": tile * width * size,
        "length": max(classes, rows.BLOCK),
        "direct": direct,
        "in_place": shape.in_place,
        "pieces": parts,
        "run": run,
        **steps,
        "past_caches": past_caches,
        "sharp": _sharp(shape, dtype),
    }
    facts["late"] = way == "tiles" and grad is not None and facts["tile_bytes"] <= _LATE_BYTES
    values = {
        "ignores": shape.ignored is not None,
        "ignored": shape.ignored or 0,
        "grad_scale": shape.grad_scale,
        "hess_scale": shape.hess_scale,
        "hess_min": -np.inf if shape.hess_min is None else shape.hess_min,
        "of_h": shape.hess_scale / shape.temperature / shape.temperature,
        "of_q": shape.grad_scale / (1.0 if shape.capped else shape.temperature),
        "temperature": shape.temperature,
        "softcap": shape.softcap or 0.0,
        "z_loss": shape.z_loss,
        "label_smoothing": shape.label_smoothing,
        "spare": 1.0 if shape.target == "none" else 0.0,
    }
    soft, log_p, log_jvp = shape.others
    hess, product, v = shape.hess, shape.product, shape.direction
    seen = {
        "logits": (shape.dtype, shape.strides),
        "distribution": soft,
        "direction": v and (v[1], v[0]),
        "grad": grad and (grad[1], grad[0]),
        "hess_diag": hess and (hess[1], hess[0]),
        "log_softmax": log_p,
        "hvp": product and "hvp" in shape.outputs and (product[1], product[0]),
        "log_softmax_jvp": log_jvp,
    }
    matrices = {name: (DTYPES.index(x[0].name), x[1]) for name, x in seen.items() if x}
    scratch = _scratch(way, size, facts, shape.transformed, shape.capped)
    if way == "columns" and (hess or product):
        scratch["more"] = facts["tile_bytes"]
    if way == "columns" and soft is not None:
        scratch["masses"] = tile * width * 8
    memory: tuple[str, ...] = shape.dtype.name, (written[0][1] if written else shape.dtype).name
    if way == "rows":  # it looks at them when it runs: one kernel for all
        memory = dtype, dtype
    elif soft is not None:
        memory = (*memory, soft[0].name)
    chunks = shape.rows * parts if parts > 1 else -(-shape.rows // chunk)
    shared = _shared(way, size, facts, shape.capped) | {"partial": 16 * chunks}
    on = tuple(switch or None for switch in switches)
    return Plan(way, dtype, memory, on, chunks, width, start(facts | values, matrices), scratch, shared, {})


def _way(shape: _Shape, dtype: str, sideways: bool) -> Way:
    hess = shape.hess is not None
    if (found := _along(shape)) is not None:
        return found
    extreme = not 1 / _SQUARED[dtype] <= shape.temperature <= _SQUARED[dtype]
    if extreme and (hess or "hvp" in shape.outputs):
        return "rows"
    if shape.outputs == {"hvp"}:
        assert shape.product
        assert shape.direction
        plain = shape.target != "distribution" and not shape.capped and not shape.z_loss
        plain = plain and shape.direction[1] == shape.product[1] == shape.dtype
        return "columns" if plain and shape.classes <= _MOST_COLUMNS else "rows"
    if not shape.outputs - {"hess_diag"} <= _TILED:
        return "rows"
    soft = shape.others[0]
    if soft is not None and not _soft_in_vectors(shape, soft[0], dtype):
        return "rows"
    if hess and (shape.capped or shape.z_loss or not shape.grad or shape.grad[1] != shape.dtype):
        return "rows"
    if shape.target == "none" and "loss" in shape.outputs:
        return "rows"  # the loss is lse itself, which may lie near 0
    if shape.softcap is not None and shape.softcap > _WIDE_CAP and dtype == "float32":
        return "rows"
    if shape.smooth and (dtype == "float64" or shape.class_weight):
        return "rows"  # nearly all mass may be at the maximum: its term, too, has to stay apart
    few = _FEW if soft is None else _FEW_SOFT
    if shape.classes <= (_MOST_COLUMNS if sideways else few):
        return "columns"
    if shape.grad is not None and shape.grad[0][2] != shape.grad[1].itemsize:
        return "rows"
    if shape.hess and shape.hess[0][2] != shape.hess[1].itemsize:
        return "rows"
    if soft is not None:
        return "tiles" if soft[1][2] == soft[0].itemsize else "rows"
    return "pieces" if shape.rows <= _FEW_ROWS and shape.classes >= _MANY and not hess else "tiles"


def _soft_in_vectors(shape: _Shape, soft: np.dtype[Any], dtype: str) -> bool:
    """Is a distribution for tiles.py and columns.py? A kernel takes seconds to compile, so what few need,
    as rare pairs of dtypes, is left to the one for everything.
    """
    plain = shape.hess is None and not (shape.class_weight or shape.label_smoothing or shape.capped)
    like = shape.grad is None or shape.grad[1] == shape.dtype
    pairs = shape.dtype.name, dtype, "float64" if shape.dtype == "float32" else dtype
    return plain and like and soft.name in pairs


def _along(shape: _Shape) -> Way | None:
    """Of a product with v alone, where along.py takes it."""
    if shape.outputs not in ({"hvp"}, {"log_softmax_jvp"}):
        return None
    assert shape.product
    assert shape.direction
    if shape.target == "distribution" or shape.capped or shape.bias or shape.z_loss:
        return None
    if not shape.direction[1] == shape.product[1] == shape.dtype:
        return None
    few = shape.classes <= _FEW and 1e-9 < shape.temperature < 1e9
    return "columns" if few else "along"


def _sharp(shape: _Shape, dtype: str) -> bool:
    """Is lse wanted to its last bits where it may be near 0? As a z-loss, lse**2, it is, but where that is a
    small part of the loss: then the target's term is the largest, which `settle` takes in float64, or the
    rest of the loss is at least log 2, times a weight that is not 0.
    """
    small = shape.z_loss <= _SMALL_Z and "z_loss" not in shape.outputs
    settled = dtype == "float32" and shape.classes > 1 and not shape.class_weight
    return shape.z_loss != 0.0 and not (small and settled)


def _tile(way: Way, size: int) -> int:
    """How many rows of so many bytes a tile has."""
    if way == "columns":  # whole vectors of rows, and lines of memory
        return max(16, min(TILE, _COLUMNS_BYTES // size // 16 * 16))
    return max(1, min(TILE, _TILE_BYTES // size))


def _scratch(way: Way, size: int, facts: dict[str, int], transformed: bool, capped: bool) -> dict[str, int]:
    if way == "rows":
        length = facts["length"]
        return {"scratch": kernel.SLOTS * length * size, "wide": kernel.WIDE_SLOTS * length * 8}
    if way == "along":
        return {"wide": 2 * (facts["classes"] + 4 * LINE // 8) * 8}
    found = {
        "blocks": 2 * BLOCK * size,
        "curves": BLOCK * 8,
        "table": VALUES * COLUMN + 2 * LINE,
        "exponentials": facts["tile_bytes"],
    }
    if way == "columns" and facts.get("past_caches"):
        found["lines"] = facts["tile"] * facts["classes"] * 8
    if transformed and (way == "columns" or facts["classes"] <= BLOCK):
        found["lows"] = facts["tile_bytes"]
    if capped:
        found["slopes"] = facts["tile"] * facts["width"] * 8
    if facts["late"]:  # the tile at work, and the one before, whose gradient goes out
        found = {name: 2 * size for name, size in found.items()}
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


def _steps(shape: _Shape) -> tuple[int, dict[str, int]]:
    """Rows in a run, and the bytes between neighbours of a run in the logits and the other matrices."""
    seen = {
        "v_step": shape.direction,
        "grad_step": shape.grad,
        "hess_step": shape.hess,
        "product_step": shape.product,
    }
    found = {"row_step": shape.strides} | {name: x[0] for name, x in seen.items() if x}
    if (soft := shape.others[0]) is not None:
        found["soft_step"] = soft[1]
    n, inner, _ = shape.shape
    whole = all(strides[0] == inner * strides[1] for strides in found.values())
    axis = 0 if inner == 1 else 1
    run = n if inner == 1 else n * inner if whole else inner
    return run, {name: strides[axis] for name, strides in found.items()}


def _whole_lines(size: int) -> int:
    """Rounded up to cache lines."""
    return -(-size // 64) * 64


_SPARE = 2 * LINE  # after each part: what is read in whole vectors may begin anywhere


def places(plan: Plan, workers: int) -> tuple[list[tuple[int, int]], int]:
    """Which of the parameters are addresses in the scratch, and how far from its beginning; and its bytes.

    The parameters themselves come first, then each part of it, all workers' one after the other.
    """
    if workers not in plan.places:
        found, end = [], _whole_lines(SIZE)
        sizes = {name: size * workers for name, size in plan.scratch.items()}
        for name, size in (sizes | plan.shared).items():
            found.append((PLACES[name], end))
            end += _whole_lines(size) + _SPARE
        plan.places[workers] = found, end
    return plan.places[workers]
