"""Binary cross-entropy: one logit per element, two classes. Formulas and guarantees: docs/math.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from . import checks
from .backend import Array, BackendError, Problem, memory_at
from .device import describe
from .functions import solve
from .layout import as_host, dtype_name, layout, native, on_device
from .problem import (
    Request,
    check_numbers,
    frozen,
    place_of_all,
    recognised,
    remembered,
    sight,
    total_weight,
)
from .select import obtain


def binary_loss_and_grad(
    logits: Any,
    target: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    grad_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Binary cross-entropy and its exact gradient with respect to the logits, in one pass.

    For each logit x, on its own, with y its target::

        z    = x / temperature                        p = 1 / (1 + exp(-z)), the probability of class 1
        q_1  = pos_weight * ((1 - label_smoothing) * y + label_smoothing / 2)
        q_0  = (1 - label_smoothing) * (1 - y) + label_smoothing / 2
        loss = sample_weight / D * (q_1 * log(1 + exp(-z)) + q_0 * log(1 + exp(z)))
        grad = sample_weight / D / temperature * (q_0 * p - q_1 * (1 - p))

    It is `loss_and_grad` of the two logits (0, x), class weights (1, pos_weight) and the distribution
    (1 - y, y). Loss and gradient keep their relative accuracy in sure elements, where 1 - p rounds to 0.

    Parameters
    ----------
    logits:
        Floating array of any number of dimensions, also none, and any strides; dtypes and devices as in
        `loss_and_grad`. With several labels per sample (multi-label) they are the last axis. An infinite
        logit is sure: it costs 0 or an infinite loss.
    target:
        Shaped like the logits; nothing broadcasts. Labels: integers 0 or 1, or truth values. Or the
        probabilities of class 1: floating; not checked, a y outside [0, 1] is taken at its word. So labels -1
        and 1 are an error as integers, and silently another loss as floats: pass target > 0.
    pos_weight:
        The weight of class 1: a finite number, or one for each of the last axis' labels, (L,). Like class
        weights it may be negative.
    sample_weight:
        Finite reals shaped like the logits, or like the logits without the last axis: then each holds for
        all labels of its sample. May be negative; 0 leaves the element out.
    ignore_index:
        Elements with this label (-1, say, where a label is missing) contribute exactly 0 and get an exactly
        zero gradient, even when they hold NaN.
    label_smoothing:
        In [0, 1]: this much of the target's mass is spread evenly over both classes.
    temperature:
        Positive: what logits are divided by.
    reduction:
        "mean" divides by D = the sum of sample_weight over counted elements, which without weights is their
        number. pos_weight is no part of it, as in PyTorch, for labels and probabilities alike. "sum" and
        "none" have D = 1.
    denominator, empty, grad_scale, out, validate, backend:
        As in `loss_and_grad`.

    Returns
    -------
    (loss, grad)
        The loss is a NumPy scalar, or shaped like the logits for reduction="none"; float64 for float64
        logits, else float32. The gradient has the logits' shape and dtype.

    Raises
    ------
    LabelError
        A label that is neither 0, 1 nor `ignore_index`, with its position.
    TypeError, ValueError, BackendError
        As in `loss_and_grad`.

    Examples
    --------
    >>> import numpy as np, sce
    >>> loss, grad = sce.binary_loss_and_grad(np.array([2.0, -1.0, 0.0]), np.array([1, 1, 0]))
    >>> round(float(loss), 6)
    0.711112
    >>> grad.round(4)
    array([-0.0397, -0.2437,  0.1667])

    References
    ----------
    D. R. Cox (1958), "The regression analysis of binary sequences"; docs/math.md derives every term.
    """
    request = prepare_binary(
        logits,
        target,
        outputs=("loss", "grad"),
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        grad_scale=grad_scale,
        out=out,
        validate=validate,
        recognise=True,
    )
    values = solve(request, obtain(request.problem, backend))
    return values["loss"], values["grad"]


def binary_cross_entropy(
    logits: Any,
    target: Any,
    *,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    validate: bool = True,
    backend: str | None = None,
) -> Any:
    """The loss of `binary_loss_and_grad` alone: the same number, with no gradient computed or allocated.

    Formula, shapes, options and errors: see there.

    >>> import sce
    >>> round(float(sce.binary_cross_entropy([0.0, 40.0], [0, 1])), 6)  # (log 2 + 4e-18) / 2
    0.346574
    """
    request = prepare_binary(
        logits,
        target,
        outputs=("loss",),
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        validate=validate,
        recognise=True,
    )
    return solve(request, obtain(request.problem, backend))["loss"]


def binary_loss_grad_hess(
    logits: Any,
    target: Any,
    *,
    hess_scale: float = 1.0,
    hess_min: float | None = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    grad_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> tuple[Any, Any, Any]:
    """`binary_loss_and_grad` and the second derivative of each element, as boosting and Newton steps take it.

    ::

        hess = hess_scale * sample_weight / D / temperature**2 * (q_0 + q_1) * p * (1 - p)

    and at least `hess_min`, if that is given, wherever an element counts. It may be negative, as are second
    derivatives under negative weights. 1 - p is not rounded to 0. `out` is where the gradient goes. Boosting
    wants reduction="sum", which divides nothing.

    >>> import numpy as np, sce
    >>> margins, labels = np.array([0.0, 3.0]), np.array([True, False])
    >>> loss, grad, hess = sce.binary_loss_grad_hess(margins, labels, reduction="sum", hess_min=1e-16)
    >>> hess.round(4)
    array([0.25  , 0.0452])
    """
    request = prepare_binary(
        logits,
        target,
        outputs=("loss", "grad", "hess_diag"),
        hess_scale=hess_scale,
        hess_min=hess_min,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        grad_scale=grad_scale,
        out=out,
        validate=validate,
        recognise=True,
    )
    values = solve(request, obtain(request.problem, backend))
    return values["loss"], values["grad"], values["hess_diag"]


def prepare_binary(
    logits: Any,
    target: Any,
    *,
    outputs: Iterable[str],
    hess_scale: float = 1.0,
    hess_min: float | None = None,
    pos_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "mean",
    denominator: float | None = None,
    empty: str = "nan",
    grad_scale: float = 1.0,
    out: Any = None,
    validate: bool = True,
    recognise: bool = False,
) -> Request:
    """Check everything, then build: `problem.prepare` for one logit per element."""
    number = not (on_device(pos_weight) or isinstance(pos_weight, (list, tuple)) or np.ndim(pos_weight))
    arrays = {
        "logits": logits,
        "target": target,
        "sample_weight": sample_weight,
        "pos_weight": None if number else pos_weight,
        "out": out,
    }
    outputs = tuple(outputs)
    seen = None
    if recognise and type(logits) is not np.ndarray:
        asked = (
            "binary", ignore_index, label_smoothing, temperature, reduction, denominator, empty, grad_scale,
            hess_scale, hess_min, validate, outputs, pos_weight if number else None,
        )  # fmt: skip
        seen = sight([*arrays.values()], asked)
        if seen is not None and (found := recognised(seen, logits, out)) is not None:
            return found
    place = place_of_all(arrays)
    given, given_out, device = logits, out, place is not None
    if place is not None:
        arrays = {key: None if a is None else describe(a, key, place) for key, a in arrays.items()}
        logits, target, out = (arrays[key] for key in ("logits", "target", "out"))

    x = checks.logits(logits, scalar=True)
    validate = checks.switch("validate", validate)
    y = checks.binary_target(target, x.shape)
    hard = y.dtype.kind in "biu"
    ignore = None if ignore_index is None else checks.ignore_index(ignore_index, "index")
    if ignore is not None and not hard:
        raise ValueError(
            "ignore_index has no meaning for a target of probabilities: leave elements out by"
            " sample_weight=0, or pass the labels as integers."
        )
    u = _sample_weight(arrays["sample_weight"], x.shape, validate, device)
    w: float | Array = 1.0
    if not number:
        what = "one weight for each label of the last axis, or a number for all"
        vector = checks.vector("pos_weight", arrays["pos_weight"], x.shape[-1:], what, validate, device)
        assert vector is not None
        w = np.broadcast_to(vector, x.shape)
    elif pos_weight is not None:
        w = checks.real("pos_weight", pos_weight)
    options, reduction, divisor, without = check_numbers(
        label_smoothing,
        temperature,
        None,
        0.0,
        grad_scale,
        hess_scale,
        hess_min,
        reduction,
        denominator,
        empty,
    )
    if hard:
        y = y.view(np.uint8) if y.dtype == np.bool_ else y
        y = y if device else checks.binary_labels(y, ignore, validate)
    if out is not None:
        checks.out(out, x.shape, checks.matrix_dtypes(x.dtype))
        inputs = {key: as_host(a, key) for key, a in arrays.items() if a is not None and key != "out"}
        checks.overlap(out, inputs, in_place=("logits",))

    own = device and reduction == "mean" and divisor is None and (u is not None or ignore is not None)
    if reduction == "mean" and divisor is None and not own:
        divisor = checks.total_weight(_total_weight(x.shape, y, ignore, u), validate)
    fresh = memory_at(64, x.shape, x.dtype) if device else None
    if u is not None and u.shape != x.shape:
        u = np.broadcast_to(u[..., None], x.shape)
    every = [a for a in (x, y, out, fresh, u, w) if isinstance(a, np.ndarray)]
    where = layout(x.ndim, *every)
    if device and any(where.view(a) is None for a in every):
        raise BackendError(
            "logits, target, weights and out lie in memory in different orders, or with gaps, and on a device"
            " nothing is copied: pass contiguous arrays."
        )
    problem = Problem(
        rows=x.size,
        classes=1,
        dtype=dtype_name(x.dtype),
        on_device=device,
        target="index" if hard else "distribution",
        outputs=frozenset(outputs),
        reduce=reduction != "none",
        validated=validate,
        logits=frozen(where.read(native(x))),
        labels=frozen(where.read(y)) if hard else None,
        distribution=None if hard else frozen(where.read(native(y))),
        sample_weight=None if u is None else frozen(where.read(u)),
        ignore_index=ignore,
        denominator=1.0 if divisor is None else divisor,
        own_denominator=own,
        empty=without,
        binary=True,
        pos_weight=frozen(where.read(w)) if isinstance(w, np.ndarray) else w,
        **options,
    )
    if place is not None:
        problem = problem._replace(device=place.device, stream=place.stream, wait=place.wait)
        request = Request(problem, where, x, out, problem.empty, given, given_out)
        return request._replace(alike=None if seen is None else remembered(seen, request))
    return Request(problem, where, x, out, problem.empty)


def _sample_weight(value: Any, shape: tuple[int, ...], validate: bool, device: bool) -> Array | None:
    """One weight per element, or one per sample: (...) for logits of (..., L)."""
    if value is None:
        return None
    v, what = as_host(value, "sample_weight"), "one weight per element"
    if len(shape) > 1:
        what += f", or one per sample, {shape[:-1]}"
    own = shape[:-1] if v.ndim == len(shape) - 1 and len(shape) > 1 else shape
    return checks.vector("sample_weight", v, own, what, validate, device)


def _total_weight(shape: tuple[int, ...], y: Array, ignore: int | None, u: Array | None) -> float:
    """The denominator of a mean: the sum of u over counted elements, whatever their targets."""
    labels = None if ignore is None else y
    if u is None or u.shape == shape:
        flat = None if u is None else u.reshape(-1)
        return total_weight(
            math.prod(shape), None if labels is None else labels.reshape(-1), ignore, None, flat
        )
    counted = float(shape[-1]) if labels is None else np.count_nonzero(labels != ignore, axis=-1)
    with np.errstate(all="ignore"):
        return total_weight(u.size, None, None, None, (u * counted).reshape(-1))
