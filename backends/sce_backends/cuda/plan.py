"""What a problem takes: which kernels, with how many threads and blocks. Plain Python, tested as such.

rows.py      loss and gradient of index targets, each logit read once (twice where a row is split)
general.py   everything else: any target, output, option and strides
scales.py    before rows.py, where rows have weights
survey.py    before all, on a device: are labels and weights legal, and what is the mean's denominator
totals.py    after both, the sum of the rows' losses

The numbers of threads and logits per thread are chosen by what registers hold: see `shape_of`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from sce.backend import Answer, Array, Problem

from .binary import THREADS as BINARY_THREADS
from .binary import VECTORS, Binary
from .binary_survey import BinarySurvey
from .general import General
from .rows import Parts, Rows
from .scales import THREADS as SCALE_THREADS
from .scales import Scales
from .survey import Survey
from .totals import CHUNK, THREADS, Totals

Spec = Binary | BinarySurvey | General | Rows | Scales | Survey | Totals


class Launch(NamedTuple):
    """A kernel on a grid. `blocks` is a multiple of `cluster`."""

    spec: Spec
    blocks: int
    threads: int
    cluster: int = 1


class Device(NamedTuple):
    """What of a device the choice depends on."""

    capability: tuple[int, int]
    processors: int


class Shape(NamedTuple):
    """How the threads of rows.py share a row."""

    parts: Parts
    cluster: int
    lanes: int
    vectors: int
    groups: int
    pieces: int  # parts of a row

    @property
    def threads(self) -> int:
        return self.lanes * self.groups


WARP = 32
KEPT = (
    32  # 4-byte words of logits that a thread keeps, in whole vectors: 80 registers hold them without a spill
)
KEPT_SINGLE = 16  # one by one: each has an address of its own
KEPT_WIDE = 64  # at most, with 128 registers
GROUP_THREADS = 128  # of a block with several groups
BLOCK, WIDE_BLOCK, CLUSTER = 256, 512, 8
_FEW = 64  # a sum of so many rows
_SHORT = 1024  # classes up to which the general kernel gives a row one warp
_MOST = 1 << 30  # classes: what rows.py counts with 32 bits
_RANGE = 1e30  # of factors that float32 kernels take: their second words must not vanish
_EDGED = 64  # vectors of a row from which on it has an edge: below, 16 lanes would have too little to do
_LONG = 1 << 16  # classes from which on a few rows are split over all processors


def takes_rows(problem: Problem, answer: Answer) -> bool:
    """Is this rows.py's? Index targets, loss and gradient, options that are factors of a whole row."""
    if problem.target != "index" or not problem.outputs <= {"loss", "grad"}:
        return False
    if problem.softcap is not None or problem.logit_bias is not None:
        return False
    if problem.classes > _MOST:
        return False
    if problem.label_smoothing or (problem.z_loss and problem.class_weight is not None):
        return False  # the weight of a class is in a row's scale, which is not the z-loss's
    if not all(runs(x) for x in (problem.logits, answer.grad) if x is not None):
        return False
    factors = [problem.temperature, problem.denominator]
    factors += [x for x in (problem.grad_scale, problem.z_loss) if x]
    product = problem.grad_scale / (problem.denominator or 1.0) / problem.temperature
    limit = 1e300 if problem.dtype == "float64" else _RANGE
    return all(1 / limit <= abs(x) <= limit for x in factors) and abs(product) <= limit


def runs(x: Array) -> bool:
    """Are a row's classes neighbours, and all rows equally far from the next?"""
    a, b, c = x.shape
    apart, near, step = x.strides
    return (c == 1 or step == x.itemsize) and (a == 1 or b == 1 or apart == b * near)


def step_of(x: Array) -> int:
    """Elements from a row to the next."""
    return (x.strides[1] if x.shape[1] > 1 else x.strides[0]) // x.itemsize


def vector(problem: Problem, answer: Answer) -> tuple[int, bool]:
    """(logits of a vector, is there an edge): 16 bytes where logits and gradient can be cut into such."""
    x, g, classes = problem.logits, answer.grad, problem.classes
    size = x.itemsize
    full = 16 // size
    both = [x] if g is None else [x, g]
    if any(each.itemsize != size for each in both):
        return 1, False
    if problem.rows == 1:
        steps = [0 for _ in both]
    else:
        steps = [step_of(each) * size % 16 for each in both]
    starts = [address(each) % 16 for each in both]
    if classes % full == 0 and not any(starts) and not any(steps):
        return full, False
    if len({*starts}) == len({*steps}) == 1 and classes >= _EDGED * full:
        return full, True
    return 1, False


def shape_of(
    rows: int,
    classes: int,
    width: int,
    edge: bool,
    size: int,
    device: Device,
    wide: bool = True,
    most: int = KEPT,
) -> Shape:
    """How threads share a row of logits that take `size` bytes in a register, `width` of them a vector.

    A thread keeps `most` words of logits; `wide`, it may keep KEPT_WIDE of the longest rows'.
    """
    most_here = most if width > 1 else min(most, KEPT_SINGLE)
    kept, kept_wide = (words * 4 // size // width for words in (most_here, KEPT_WIDE))
    slots = -(-classes // width)
    lanes = 1 << max(0, -(-slots // kept) - 1).bit_length()  # few: what a row costs is paid by each of them
    if edge:
        lanes = max(lanes, WARP // 2)
    if lanes <= WARP:
        return Shape("one", 1, lanes, -(-slots // lanes), GROUP_THREADS // lanes, 1)

    clusters = device.capability >= (9, 0)
    split = (classes >= _LONG or not clusters) and rows * 2 * CLUSTER <= device.processors
    if not split:
        for threads in (GROUP_THREADS, BLOCK):
            if slots <= threads * kept:
                return Shape("one", 1, threads, -(-slots // threads), 1, 1)
        if not clusters and slots <= WIDE_BLOCK * kept:
            return Shape("one", 1, WIDE_BLOCK, -(-slots // WIDE_BLOCK), 1, 1)
        for threads, at_most in (
            (BLOCK, kept),
            (WIDE_BLOCK, kept),
            (WIDE_BLOCK, kept_wide if wide else kept),
        ):
            for blocks in (2, 4, CLUSTER):
                if clusters and slots <= blocks * threads * at_most:
                    vectors = -(-slots // (blocks * threads))
                    return Shape("cluster", blocks, threads, vectors, 1, blocks)
    vectors = kept
    while vectors > 1 and rows * -(-slots // (BLOCK * vectors)) < 2 * device.processors:
        vectors //= 2
    return Shape("first", 1, BLOCK, vectors, 1, -(-slots // (BLOCK * vectors)))


class _Facts(NamedTuple):
    """What the launches of rows.py depend on: no values, and of addresses only how they are aligned."""

    rows: int
    classes: int
    logits: str
    grad: str
    labels: str
    loss: str
    vector: tuple[int, bool]
    tempered: bool
    squared: bool
    scaled: bool
    ignores: bool


def rows(problem: Problem, answer: Answer, device: Device) -> list[Launch]:
    """The launches of rows.py."""
    facts = _Facts(
        rows=problem.rows,
        classes=problem.classes,
        logits=problem.dtype,
        grad="" if answer.grad is None else _name(answer.grad),
        labels=_name(problem.labels),
        loss="" if answer.loss is None else "pairs" if problem.reduce else "rows",
        vector=vector(problem, answer),
        tempered=problem.temperature != 1.0,
        squared=problem.z_loss != 0.0,
        scaled=scaled(problem),
        ignores=ignores(problem),
    )
    return _rows(facts, device, (BLOCK, WIDE_BLOCK, GROUP_THREADS, _LONG))


@functools.lru_cache(maxsize=1024)
def _rows(facts: _Facts, device: Device, limits: tuple[int, ...]) -> list[Launch]:
    """`limits` are this module's, which tests change."""
    width, edge = facts.vector
    size = 8 if facts.logits == "float64" else 4
    # For compute capability 10 the compiler unrolls no longer loop with a temperature: an array in memory.
    short = facts.tempered and device.capability >= (10, 0)
    most = (KEPT // 2 if size == 4 else KEPT // 4) if short else KEPT
    wide = not (short or (facts.tempered and facts.squared))
    shape = shape_of(facts.rows, facts.classes, width, edge, size, device, wide, most)
    more = device.capability < (9, 0) or facts.tempered or facts.squared or facts.scaled
    spec = Rows(
        logits=facts.logits,
        grad=facts.grad,
        labels=facts.labels,
        loss=facts.loss,
        parts=shape.parts,
        cluster=shape.cluster,
        lanes=shape.lanes,
        vectors=shape.vectors,
        width=width,
        edge=edge,
        groups=shape.groups,
        tempered=facts.tempered,
        squared=facts.squared,
        scaled=facts.scaled,
        ignores=facts.ignores,
        blocks=blocks_of(shape, width, size, more),
    )
    blocks = -(-facts.rows // shape.groups) * shape.pieces
    found = [Launch(spec, blocks, shape.threads, shape.cluster)]
    if shape.parts == "first":
        found.append(found[0]._replace(spec=spec._replace(parts="second")))
    return found


def blocks_of(shape: Shape, width: int, size: int, more: bool) -> int:
    """How many blocks a processor must have registers for: as many as leave each thread enough of them.

    `more`: an older device, whose compiler needs some more, or options that do.
    """
    words = shape.vectors * width * size // 4
    registers = 64 if words <= KEPT // 2 else 80 if words <= KEPT else 128
    if shape.parts == "cluster" or (more and registers > 64) or (size == 8 and registers > 64):
        registers = 128
    elif more or size == 8:
        registers = 80
    return max(1, (1 << 16) // (registers * shape.threads))


def ignores(problem: Problem) -> bool:
    """Can a label be the ignored one? Unsigned ones are never negative, but read as int64 the largest are."""
    if problem.ignore_index is None or problem.labels is None:
        return False
    return problem.ignore_index >= 0 or problem.labels.dtype.kind == "i"


def scaled(problem: Problem) -> bool:
    """Do the rows' scales differ, or are they known on the device alone?"""
    given = (problem.sample_weight, problem.class_weight)
    return problem.own_denominator or any(x is not None for x in given)


def scales(problem: Problem) -> Launch:
    """The launch of scales.py."""
    spec = Scales(
        labels=_name(problem.labels),
        class_weight=_name(problem.class_weight),
        sample_weight=_name(problem.sample_weight),
        into=computed(problem),
        weighted=problem.class_weight is not None,
        sampled=problem.sample_weight is not None,
        device_total=problem.own_denominator,
    )
    return Launch(spec, -(-problem.rows // SCALE_THREADS), SCALE_THREADS)


def survey(problem: Problem) -> Launch:
    """The launch of survey.py."""
    spec = Survey(
        labels="int64" if problem.labels is None else _name(problem.labels),
        class_weight=_name(problem.class_weight),
        sample_weight=_name(problem.sample_weight),
        bias=_name(problem.logit_bias),
        indexed=problem.labels is not None,
        # The weights of classes are no part of a distribution's denominator, but looked at.
        weighted=problem.class_weight is not None,
        sampled=problem.sample_weight is not None,
        biased=problem.logit_bias is not None,
        ignores=ignores(problem),
    )
    return Launch(spec, max(1, -(-problem.rows // CHUNK)), THREADS)


def general(problem: Problem, answer: Answer) -> Launch:
    """The general kernel's launch."""
    lanes, groups = (BLOCK, 1) if problem.classes > _SHORT else (WARP, 1 if problem.rows < _FEW else 4)
    matrix = next(
        (x for x in (answer.grad, answer.log_softmax, answer.hvp, answer.log_softmax_jvp) if x is not None),
        problem.logits,
    )
    spec = General(
        logits=problem.dtype,
        soft=_name(problem.distribution),
        direction=_name(problem.direction),
        labels="int64" if problem.labels is None else _name(problem.labels),
        class_weight=_name(problem.class_weight),
        sample_weight=_name(problem.sample_weight),
        bias=_name(problem.logit_bias),
        grad=_name(matrix),
        loss=computed(problem),
        of_sum="float64" if problem.reduce else computed(problem),
        target=problem.target,
        outputs=tuple(sorted(problem.outputs)),
        weighted=problem.class_weight is not None,
        sampled=problem.sample_weight is not None,
        biased=problem.logit_bias is not None,
        capped=problem.softcap is not None,
        ignores=ignores(problem),
        device_total=problem.own_denominator,
        lanes=lanes,
        rows=groups,
    )
    return Launch(spec, -(-problem.rows // groups), lanes * groups)


def binary(problem: Problem, answer: Answer) -> Launch:
    """The launch of binary.py."""
    x, grad, hess = problem.logits, answer.grad, answer.hess_diag
    y = problem.distribution if problem.labels is None else problem.labels
    u = problem.sample_weight
    w = problem.pos_weight if isinstance(problem.pos_weight, np.ndarray) else None
    matrices = [a for a in (x, y, grad, hess) if a is not None]
    flat = all(a.flags.c_contiguous for a in matrices)
    vectors = [a for a in (x, grad, hess) if a is not None]
    real = _real_of_elements(problem)
    smooth = problem.label_smoothing != 0.0 or (w is None and problem.pos_weight != 1.0)
    # More than the plain loss is too long for the compiler to unroll, and computes longer than it reads.
    plain = real == "float32" and u is None and w is None and hess is None
    plain = plain and not smooth and problem.temperature == 1.0
    width = 1
    if (
        plain
        and flat
        and len({a.itemsize for a in vectors}) == 1
        and not any(address(a) % 16 for a in vectors)
    ):
        width = 16 // x.itemsize
    spec = Binary(
        real=real,
        logits=problem.dtype,
        target=_name(y),
        sample_weight=_name(u),
        pos_weight=_name(w),
        grad="" if grad is None else _name(grad),
        hess=hess is not None,
        loss="" if answer.loss is None else "pairs" if problem.reduce else _name(answer.loss),
        width=width,
        flat=flat,
        labelled=problem.labels is not None,
        sampled=u is not None,
        weighted=w is not None,
        smooth=smooth,
        tempered=problem.temperature != 1.0,
        ignores=ignores(problem),
        floored=problem.hess_min is not None,
        device_total=problem.own_denominator,
        blocks=2 if real == "float64" or hess is not None else 3,
    )
    return Launch(spec, -(-problem.rows // (BINARY_THREADS * VECTORS[width] * width)), BINARY_THREADS)


def _real_of_elements(problem: Problem) -> str:
    """What binary.py computes in: float64 where float32 would lose digits or the range of a factor."""
    weights = (problem.sample_weight, problem.pos_weight)
    wide = {"float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}
    if any(isinstance(a, np.ndarray) and dtype_name(a.dtype) in wide for a in weights):
        return "float64"
    t, d = problem.temperature, problem.denominator or 1.0
    factors = [t, d, problem.grad_scale or 1.0, problem.hess_scale or 1.0, problem.hess_min or 1.0]
    factors += [x for x in (problem.pos_weight,) if isinstance(x, float) and x]
    factors += [problem.grad_scale / t / d or 1.0, problem.hess_scale / t / t / d or 1.0]
    in_range = all(1 / _RANGE <= abs(x) <= _RANGE for x in factors)
    return computed(problem) if in_range else "float64"


def binary_survey(problem: Problem) -> Launch:
    """The launch of binary_survey.py."""
    w = problem.pos_weight if isinstance(problem.pos_weight, np.ndarray) else None
    spec = BinarySurvey(
        target=_name(problem.labels),
        sample_weight=_name(problem.sample_weight),
        pos_weight=_name(w),
        labelled=problem.labels is not None,
        sampled=problem.sample_weight is not None,
        weighted=w is not None,
        ignores=ignores(problem),
    )
    return Launch(spec, max(1, -(-problem.rows // CHUNK)), THREADS)


def totals(count: int, values: str, pairs: bool, into: str, device_total: bool) -> list[Launch]:
    """Launches that add up one value per row."""
    found = []
    while count > CHUNK:
        count = -(-count // CHUNK)
        found.append(Launch(Totals(values, pairs, "float64", False, False), count, THREADS))
        values, pairs = "float64", True
    return [*found, Launch(Totals(values, pairs, into, True, device_total), 1, THREADS)]


def bounds(launch: Launch) -> tuple[int, int]:
    """Threads of a block, and blocks that a processor shall have room for."""
    return launch.threads, launch.spec.blocks if isinstance(launch.spec, Rows | Binary) else 1


def computed(problem: Problem) -> str:
    """What loss and statistics are computed in."""
    return "float64" if problem.dtype == "float64" else "float32"


def words(value: float, dtype: str) -> tuple[Any, Any]:
    """A float64 as a pair of numbers of this dtype."""
    real = np.dtype(dtype).type
    high = real(value)
    rest = value - float(high)
    return high, real(rest if math.isfinite(rest) else 0.0)


def _name(x: Array | None) -> str:
    return "float64" if x is None else dtype_name(x.dtype)


@functools.cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy works out anew each time."""
    return dtype.name


def address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def strides(x: Array | None) -> tuple[int, ...]:
    """In elements."""
    return (0, 0, 0) if x is None else tuple(step // x.itemsize for step in x.strides)
