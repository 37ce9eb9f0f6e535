"""Turn a call's arguments into a Problem: the defaults and the order of the checks, once for all backends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .backend import Array, BackendError, Problem, TargetKind, memory_at
from .device import Place, describe, glance, place_of, read_only
from .layout import Layout, as_host, dtype_name, layout, native, on_device

NO_TARGET: Any = object()  # not None: a target, or a v, that is None is somebody's mistake
_BLOCK = 1 << 16  # rows summed at once, so that the temporaries of a denominator stay small


# Those of a problem, in the order of its fields: the order, too, in which `sight` is given them.
_ARRAYS = (
    "logits", "labels", "distribution", "direction", "class_weight", "sample_weight", "logit_bias",
    "pos_weight",
)  # fmt: skip


class Alike:
    """What calls on a device have in common whose arrays and options are alike."""

    __slots__ = ("bounds", "calls", "facts", "first")

    def __init__(self, first: Request) -> None:
        self.first = first  # the first such call's request, without the caller's arrays
        self.facts = bare(first.problem)
        self.calls: dict[Any, Any] = {}  # what the public functions keep
        given = [*_arrays(first.problem).values(), *([] if first.out is None else [first.out])]
        self.bounds = [_reach(x) for x in given]


class Sight(NamedTuple):
    """A call on a device at a glance."""

    key: Any  # what calls that are alike have in common
    at: tuple[int, ...]  # where their arrays are; those that are None left out
    stream: int


class Request(NamedTuple):
    """A Problem, and what the public functions need to hand its answer back in the caller's shapes.

    On a device a call like an earlier one is recognised: then `problem` has no arrays but the facts and
    options alone, and `at` says where the arrays are. `elsewhere` makes a whole request of it.
    """

    problem: Problem
    layout: Layout
    like: Array  # the logits as given: new matrices take their memory order
    out: Array | None
    empty: float  # the loss of an empty mean
    given: Any = None  # on a device: the logits and `out` as the caller has them; the others describe them
    given_out: Any = None
    alike: Alike | None = None
    at: tuple[int, ...] = ()  # of logits, target, weights, bias, out, those that there are
    stream: int = 0


def prepare(
    logits: Any,
    target: Any = NO_TARGET,
    *,
    outputs: Iterable[str],
    name: str = "logits",
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    grad_scale: float = 1.0,
    hess_scale: float = 1.0,
    hess_min: float | None = None,
    v: Any = NO_TARGET,
    v_is_target: bool = False,
    out: Any = None,
    validate: bool = True,
    recognise: bool = False,
) -> Request:
    """Check everything, then build. Without a target: softmax and its relatives (q = 0, Q = 1).

    `recognise`: on a device, the request may be that of an earlier call (see `Request`), for `solve` alone.
    `out` is for the gradient, or for whichever derivative along `v` is wanted. `v_is_target`: v is the
    distribution of the problem, by a name that its caller knows.
    """
    arrays = {
        name: logits,
        "target": None if target is NO_TARGET else target,
        "v": None if v is NO_TARGET else v,
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "logit_bias": logit_bias,
        "out": out,
    }
    outputs = tuple(outputs)
    seen = None
    if recognise and type(logits) is not np.ndarray:
        asked = (
            name, axis, ignore_index, label_smoothing, temperature, softcap, z_loss, reduction, denominator,
            empty, grad_scale, hess_scale, hess_min, validate, outputs, target is NO_TARGET, v is NO_TARGET,
            v_is_target,
        )  # fmt: skip
        seen = sight([*arrays.values()], asked)
        if seen is not None and (found := recognised(seen, logits, out)) is not None:
            return found
    place = place_of_all(arrays)
    given, given_out, device = logits, out, place is not None
    if place is not None:
        arrays = {word: None if a is None else describe(a, word, place) for word, a in arrays.items()}
        logits, class_weight, out = arrays[name], arrays["class_weight"], arrays["out"]
        sample_weight, logit_bias = arrays["sample_weight"], arrays["logit_bias"]
        v = v if v is NO_TARGET else arrays["v"]
        target = target if target is NO_TARGET else arrays["target"]

    x = checks.logits(logits, name)
    validate = checks.switch("validate", validate)
    axis = checks.axis(axis, x.ndim, name)
    classes = checks.classes(x.shape, axis, name)
    rows_shape = x.shape[:axis] + x.shape[axis + 1 :]
    rows = math.prod(rows_shape)

    kind: TargetKind = "none"
    labels: Array | None = None
    soft: Array | None = None
    if target is not NO_TARGET:
        y = checks.target(target, x.shape, rows_shape)
        kind = "index" if y.dtype.kind in "iu" else "distribution"
        labels, soft = (y, None) if kind == "index" else (None, y)
    ignore = checks.ignore_index(ignore_index, kind)
    w = checks.vector("class_weight", class_weight, (classes,), "one weight per class", validate, device)
    u = checks.vector("sample_weight", sample_weight, rows_shape, "one weight per row", validate, device)
    b = checks.logit_bias(logit_bias, (classes,), validate, device)
    along = None if v is NO_TARGET else checks.direction(v, x.shape, name)
    if v_is_target:
        kind, soft, along = "distribution", along, None
    numbers = (
        label_smoothing, temperature, softcap, z_loss, grad_scale, hess_scale, hess_min, reduction,
        denominator, empty,
    )  # fmt: skip
    options, reduction, divisor, without = check_numbers(*numbers)
    if labels is not None:
        labels = (
            checks.contiguous("target", labels)
            if device
            else checks.labels(labels, classes, ignore, validate, name)
        )
    if out is not None:
        checks.out(out, x.shape, checks.matrix_dtypes(x.dtype))
        inputs = {key: as_host(a, key) for key, a in arrays.items() if a is not None and key != "out"}
        checks.overlap(out, inputs, in_place=(name,) if v_is_target else (name, "v"))

    u, labels = _flat(u), _flat(labels)
    own = device and reduction == "mean" and divisor is None and _weighs(labels, ignore, w, u)
    if reduction == "mean" and divisor is None and not own:
        divisor = checks.total_weight(total_weight(rows, labels, ignore, w, u), validate)
    fresh = memory_at(64, x.shape, x.dtype) if device else None  # what new matrices look like there
    matrices = [a for a in (x, soft, along, out, fresh) if a is not None]
    where = layout(axis, *matrices)
    if device and any(where.view(a) is None for a in matrices):
        raise BackendError(
            "the row axes of logits, target, v and out lie in memory in different orders, or with gaps, and"
            " on a device nothing is copied: pass contiguous arrays."
        )
    problem = Problem(
        rows=rows,
        classes=classes,
        dtype=dtype_name(x.dtype),
        on_device=device,
        target=kind,
        outputs=frozenset(outputs),
        reduce=reduction != "none",
        validated=validate,
        logits=frozen(where.read(native(x))),
        labels=frozen(labels),
        distribution=None if soft is None else frozen(where.read(native(soft))),
        direction=None if along is None else frozen(where.read(native(along))),
        class_weight=frozen(w),
        sample_weight=frozen(u),
        logit_bias=frozen(b),
        ignore_index=ignore,
        denominator=1.0 if divisor is None else divisor,
        own_denominator=own,
        empty=without,
        **options,
    )
    if place is not None:
        problem = problem._replace(device=place.device, stream=place.stream, wait=place.wait)
        request = Request(problem, where, x, out, problem.empty)
        alike = None if seen is None else remembered(seen, request)
        return request._replace(given=given, given_out=given_out, alike=alike)
    return Request(problem, where, x, out, problem.empty)


_known: dict[Any, Alike] = {}
_MOST_KNOWN = 1024


def sight(given: Sequence[Any], asked: tuple[Any, ...]) -> Sight | None:
    """A call's arrays, the logits first and `out` last, and its options. None: it cannot be recognised."""
    seen = glance(given)
    if seen is None:
        return None
    over: tuple[int, ...] = ()
    if given[-1] is not None:  # `out` may lie over the logits, over v, or over both, and over nothing else
        over = tuple(i for i, at in enumerate(seen.at) if at == seen.at[-1])
    return Sight((seen.common, asked, tuple(map(type, asked)), over), seen.at, seen.stream)


def remembered(seen: Sight, request: Request) -> Alike | None:
    """From now on, such calls are recognised."""
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    alike = Alike(request)
    try:
        return _known.setdefault(seen.key, alike) if len(alike.bounds) == len(seen.at) else None
    except TypeError:  # an option that cannot be looked up
        return None


def recognised(seen: Sight, logits: Any, out: Any) -> Request | None:
    """The request of a call like an earlier one, which needs no more checks but where `out` lies."""
    try:
        alike = _known.get(seen.key)
    except TypeError:
        return None
    if alike is None or (out is not None and not _apart(alike.bounds, seen.at)):
        return None
    first = alike.first
    return Request(
        alike.facts, first.layout, first.like, None, first.empty, logits, out, alike, seen.at, seen.stream
    )


def _reach(x: Array) -> tuple[int, int]:
    """Bytes from an array's address to its lowest byte, and behind its highest."""
    if not x.size:
        return 0, 0
    low, high = np.lib.array_utils.byte_bounds(x)
    at = x.__array_interface__["data"][0]
    return low - at, high - at


def _apart(bounds: list[tuple[int, int]], at: tuple[int, ...]) -> bool:
    """Is `out`, the last, each input or apart from it? If not, the long way has a closer look.

    At which inputs' very addresses it may be was looked at in the first such call.
    """
    low, high = bounds[-1][0] + at[-1], bounds[-1][1] + at[-1]
    for i in range(len(at) - 1):
        if at[i] != at[-1] and low < at[i] + bounds[i][1] and at[i] + bounds[i][0] < high:
            return False
    return True


def _arrays(problem: Problem) -> dict[str, Array]:
    """Those that it has, by name."""
    both = ((name, getattr(problem, name)) for name in _ARRAYS)
    return {name: x for name, x in both if isinstance(x, np.ndarray)}


def bare(problem: Problem) -> Problem:
    """Its facts and options, without arrays and stream: something to compare and to look up by."""
    nothing: Any = dict.fromkeys(_ARRAYS)
    if not isinstance(problem.pos_weight, np.ndarray):
        nothing["pos_weight"] = problem.pos_weight
    return problem._replace(**nothing, stream=0)


def elsewhere(request: Request) -> Request:
    """A whole request of one that was recognised: its arrays described, where they are in this call."""
    if request.alike is None or not request.at:
        return request
    first = request.alike.first
    given = _arrays(first.problem)
    moved = {name: _moved(x, at) for (name, x), at in zip(given.items(), request.at, strict=False)}
    out = None if first.out is None else _moved(first.out, request.at[-1])
    kept = {name: frozen(x) for name, x in moved.items()}
    whole = request.problem._replace(**kept, stream=request.stream)
    return request._replace(problem=whole, out=out, at=())


def _moved(x: Array, at: int) -> Array:
    return memory_at(at, x.shape, x.dtype, x.strides)


def place_of_all(arrays: dict[str, Any]) -> Place | None:
    """Where a call's arrays are: all on one device, or None, all on the host."""
    if not any(map(on_device, arrays.values())):
        return None
    placed = [key for key, a in arrays.items() if on_device(a)]
    where = f"{', '.join(placed)}: on a CUDA device"
    if hosted := [key for key, a in arrays.items() if a is not None and key not in placed]:
        raise BackendError(f"{where}; {', '.join(hosted)}: on the host. Move them to one place first.")
    places = [place_of(arrays[key]) for key in placed]
    if len({place.device for place in places}) > 1:
        devices = ", ".join(f"{key} on {place.device}" for key, place in zip(placed, places, strict=True))
        raise BackendError(f"the arrays are on several devices: {devices}. Move them to one place first.")
    if arrays.get("out") is not None and read_only(arrays["out"]):
        raise ValueError("out is read-only: pass an array that can be written to; JAX's cannot.")
    # What another library reads of `out` is not behind the stream of the logits'.
    foreign = places[-1].library != places[0].library and placed[-1] == "out"
    return places[0]._replace(wait=foreign or any(place.wait for place in places))


def _weighs(labels: Array | None, ignore: int | None, w: Array | None, u: Array | None) -> bool:
    """Does a mean's denominator depend on values?"""
    return u is not None or (labels is not None and (w is not None or ignore is not None))


_LASTING = frozenset({float, int, str, type(None), np.float64, np.float32})


def check_numbers(*numbers: Any) -> tuple[dict[str, Any], str, float | None, float]:
    """`_numbers`: most calls repeat the options of another. Only values that cannot change are looked up."""
    check = _numbers if _LASTING.issuperset(map(type, numbers)) else _numbers.__wrapped__
    return check(*numbers)


@lru_cache(maxsize=1024, typed=True)
def _numbers(
    label_smoothing: Any,
    temperature: Any,
    softcap: Any,
    z_loss: Any,
    grad_scale: Any,
    hess_scale: Any,
    hess_min: Any,
    reduction: Any,
    denominator: Any,
    empty: Any,
) -> tuple[dict[str, Any], str, float | None, float]:
    """The options that depend on no array, checked: Problem's, reduction, denominator, loss of no rows."""
    options: dict[str, Any] = {
        "label_smoothing": checks.real("label_smoothing", label_smoothing, low=0.0, high=1.0),
        "temperature": checks.real("temperature", temperature, above=0.0),
        "softcap": None if softcap is None else checks.real("softcap", softcap, above=0.0),
        "z_loss": checks.real("z_loss", z_loss, low=0.0),
        "grad_scale": checks.real("grad_scale", grad_scale) + 0.0,  # -0.0 is looked up as 0.0, and so it is
        "hess_scale": checks.real("hess_scale", hess_scale) + 0.0,
        "hess_min": None if hess_min is None else checks.real("hess_min", hess_min),
    }
    checks.spread(options["temperature"], options["softcap"])
    reduction = checks.one_of("reduction", reduction, ("none", "sum", "mean"))
    divisor = checks.denominator(denominator, reduction)
    empty = checks.one_of("empty", empty, ("nan", "zero"))
    return options, reduction, divisor, math.nan if empty == "nan" else 0.0


def total_weight(
    rows: int, labels: Array | None, ignore: int | None, w: Array | None, u: Array | None
) -> float:
    """The denominator of a mean: the sum of u * w[y] over counted rows, of u for distributions.

    The blocks' sums are added exactly (fsum); within a block NumPy adds pairwise. NaN where a sum overflows.
    A label out of range, legal without validation, counts as the nearest legal one.
    """
    if labels is None:
        w = ignore = None
    if w is None and u is None and ignore is None:
        return float(rows)
    with np.errstate(all="ignore"):
        return _sum_of_weights(rows, labels, ignore, w, u)


def _sum_of_weights(
    rows: int, labels: Array | None, ignore: int | None, w: Array | None, u: Array | None
) -> float:
    sums = []
    try:
        for start in range(0, rows, _BLOCK):
            block = slice(start, start + _BLOCK)
            weight = np.ones(min(_BLOCK, rows - start)) if u is None else u[block]
            if labels is not None and w is not None:
                weight = weight * w.take(labels[block], mode="clip")
            if labels is not None and ignore is not None:
                weight = weight[labels[block] != ignore]
            # Signed weights may cancel to exactly 0, an empty mean: a pairwise sum may miss it or make it up.
            sums.append(math.fsum(weight) if (weight < 0).any() else float(weight.sum()))
        return math.fsum(sums)
    except (OverflowError, ValueError):  # inf and -inf, or finite sums that overflow together
        return math.nan


def _flat(x: Array | None) -> Array | None:
    """One value per row: contiguous, in one dimension."""
    if x is None or (x.ndim == 1 and x.flags.c_contiguous):
        return x
    return np.ascontiguousarray(x).reshape(-1)


def frozen(x: Any) -> Any:
    """A view that a backend cannot write through: inputs are the caller's."""
    if x is None:
        return None
    view = x.view()
    view.setflags(write=False)
    return view
