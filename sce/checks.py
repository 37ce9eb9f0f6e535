"""The checks of single arguments. Each error says what was wrong, where, and what to do."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .backend import DTYPES, Array, Illegal, LabelError
from .layout import as_host, dtype_name, native

_INT64 = np.iinfo(np.int64)
_UNSIGNED = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
OUTPUTS = (
    "loss", "grad", "lse", "log_prob", "argmax", "correct", "entropy", "hess_diag", "z_loss", "denominator",
)  # fmt: skip


def logits(value: Any, name: str = "logits", scalar: bool = False) -> Array:
    """Floating logits, of at least one dimension unless a single one has a meaning."""
    x = as_host(value, name)
    many, one = ("have", "are", "they need", "them"), ("has", "is", "it needs", "it")
    have, are, they, them = many if name == "logits" else one
    if dtype_name(x.dtype) not in DTYPES:
        how = {
            **dict.fromkeys("biuV", f"convert {them}, for instance with .astype(np.float32)"),
            "c": "logits are real: pass .real if the imaginary part is zero",
            "f": f"convert {them} with .astype(np.float64)",
        }.get(x.dtype.kind, "logits are an array of real numbers")
        if x.dtype == "V2":
            how = "bfloat16 data read from a file lost its type: view it with .view(ml_dtypes.bfloat16)"
        raise TypeError(f"{name} {have} dtype {x.dtype}, not one of {', '.join(DTYPES)}: {how}.")
    if x.ndim == 0 and not scalar:
        raise ValueError(f"{name} {are} a single number: {they} a class axis, as in shape (N, C).")
    return x


def axis(value: Any, ndim: int, of: str = "logits") -> int:
    """The class axis, made non-negative."""
    k = _integer("axis", value)
    if not -ndim <= k < ndim:
        raise ValueError(f"axis {k} is outside [{-ndim}, {ndim}) for {of} of {ndim} dimension(s).")
    return k % ndim


def classes(shape: tuple[int, ...], axis: int, of: str = "logits") -> int:
    """C, at least one."""
    if shape[axis] == 0:
        raise ValueError(f"{of} of shape {shape} has no classes on axis {axis}: C must be at least 1.")
    return shape[axis]


def target(value: Any, shape: tuple[int, ...], rows_shape: tuple[int, ...]) -> Array:
    """Class indices (integers, shaped like the rows) or distributions (floating, shaped like the logits)."""
    y = as_host(value, "target")
    if y.size == 0 and y.shape == rows_shape and not isinstance(value, np.ndarray):
        y = y.astype(np.int64)  # an empty list has no type of its own
    if y.dtype.kind in "iu":
        if y.shape != rows_shape:
            raise ValueError(_index_shape(y.shape, shape, rows_shape))
    elif dtype_name(y.dtype) in DTYPES:
        if y.shape != shape:
            raise ValueError(_soft_shape(y.shape, shape, rows_shape))
    else:
        raise TypeError(
            f"{not_numbers('target', y)}: class indices are integers (shape {rows_shape}),"
            f" distributions one of {', '.join(DTYPES)} (shape {shape}).{as_numbers('target', y)}"
        )
    return y


def not_numbers(name: str, y: Array) -> str:
    """What a target is instead of integers or reals."""
    return f"{name} is None" if _none(y) else f"{name} has dtype {y.dtype}"


def as_numbers(name: str, y: Array) -> str:
    """What its caller can do, or ""."""
    if _none(y) or y.dtype.kind == "c":
        return ""
    if y.dtype.kind == "b":
        return f" Convert it: {name}.astype(int)."
    if y.dtype.kind == "f":
        return f" Convert it: {name}.astype(np.float64)."
    hint = f" Names of classes become indices by np.unique({name}, return_inverse=True)[1]"
    return hint + (f", integers kept as objects by {name}.astype(int)." if y.dtype.kind == "O" else ".")


def _none(y: Array) -> bool:
    return y.dtype.kind == "O" and y.ndim == 0 and y[()] is None


def direction(value: Any, shape: tuple[int, ...], of: str = "logits") -> Array:
    """A floating array shaped like the logits."""
    v = as_host(value, "v")
    if dtype_name(v.dtype) not in DTYPES:
        raise TypeError(
            f"v has dtype {v.dtype}, not one of {', '.join(DTYPES)}: convert it, for instance with"
            " .astype(np.float32)."
        )
    if v.shape != shape:
        raise ValueError(f"v has shape {v.shape}, and {of} {shape}: they need the same, nothing broadcasts.")
    return v


def _index_shape(got: tuple[int, ...], shape: tuple[int, ...], rows_shape: tuple[int, ...]) -> str:
    text = f"target of class indices has shape {got}; logits of shape {shape} need {rows_shape}"
    if got == shape:
        return f"{text}.{_one_label_each(got)}"
    for k in range(len(shape)):
        if shape[:k] + shape[k + 1 :] == got:
            return f"{text}. It fits axis={k}: is that the class axis?"
    if math.prod(got) == math.prod(rows_shape):
        return f"{text}: nothing broadcasts, so {reshaped(rows_shape)}."
    return f"{text}: nothing broadcasts."


def _one_label_each(shape: tuple[int, ...]) -> str:
    """What integers shaped like the logits may have been meant for."""
    soft = "For a distribution per row convert it with .astype(logits.dtype)"
    if len(shape) != 1:
        return f" {soft}; for a label 0 or 1 of each logit use sce.binary_cross_entropy."
    return (
        f" These logits x are one row of {shape[0]} classes. Of one logit per example, as decision_function"
        " has it for two classes, use sce.binary_cross_entropy, or pass logits of both classes, of shape"
        f" {(shape[0], 2)}: predict_log_proba, or np.stack([0 * x, x], axis=-1). {soft}."
    )


def reshaped(shape: tuple[int, ...]) -> str:
    """How to give an array this shape."""
    return f"reshape it with .reshape{shape}" if shape else "pass the number itself, or .reshape(())"


def _soft_shape(got: tuple[int, ...], shape: tuple[int, ...], rows_shape: tuple[int, ...]) -> str:
    text = f"target of distributions (floating) has shape {got}; logits of shape {shape} need {shape}"
    if got == rows_shape:
        return f"{text}. For class indices convert it with .astype(np.int64)."
    return f"{text}: nothing broadcasts."


def labels(
    y: Array, classes: int, ignore: int | None, validate: bool, of: str = "logits"
) -> NDArray[np.int64]:
    """Class indices as int64, every one in [0, C) or `ignore_index`."""
    if validate:
        _legal(y, classes, ignore, f"[0, {classes}) for {of} of {classes} classes")
    wide = native(y)
    if wide.dtype != np.int64:
        wide = wide.astype(np.int64)
    if y.dtype.kind == "u" and y.dtype.itemsize == 8 and y.size and int(y.max()) > _INT64.max:
        # Beyond int64: some illegal label that is not the ignored one, instead of wrapping around to it.
        wide = np.where(native(y) > np.uint64(_INT64.max), -2 if ignore == -1 else -1, wide)
    return wide


def binary_target(value: Any, shape: tuple[int, ...]) -> Array:
    """Labels (integers or truth values) or probabilities (floating), shaped like the logits."""
    y = as_host(value, "target")
    if y.size == 0 and not isinstance(value, np.ndarray):
        y = y.astype(np.int64)
    if y.dtype.kind not in "biu" and dtype_name(y.dtype) not in DTYPES:
        raise TypeError(
            f"{not_numbers('target', y)}: labels are integers or truth values, probabilities one of"
            f" {', '.join(DTYPES)}.{as_numbers('target', y)}"
        )
    if y.shape != shape:
        how = "nothing broadcasts"
        if math.prod(y.shape) == math.prod(shape):
            how += f", so {reshaped(shape)}"
        raise ValueError(f"target has shape {y.shape}; logits of shape {shape} need {shape}: {how}.")
    return y


def binary_labels(y: Array, ignore: int | None, validate: bool) -> Array:
    """Labels as backends take them, every one 0, 1 or `ignore_index`: a copy only of rare types."""
    if y.dtype == np.bool_:
        return y.view(np.uint8)
    if validate:
        _legal(y, 2, ignore, BINARY)
    if y.dtype.isnative and y.dtype.name in ("int8", "uint8", "int32", "int64"):
        return y
    return labels(y, 2, ignore, False)


BINARY = "[0, 2) of a binary loss"


def _legal(y: Array, classes: int, ignore: int | None, where: str) -> None:
    """Raise for the first label that is neither in [0, C) nor `ignore_index`."""
    if y.size and not _all_in_range(y, classes):
        bad = (y < 0) | (y >= classes)
        if ignore is not None:
            bad &= y != ignore
        if bad.any():
            at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), y.shape))
            raise LabelError(_label_reason(int(y[at]), at, where))


def _all_in_range(y: Array, classes: int) -> bool:
    """Does every label name a class?"""
    if y.dtype.kind == "i" and y.dtype.isnative and classes <= 1 << (8 * y.itemsize - 1):
        # Without their sign, negative numbers are larger than any class: one look at each label, not two.
        return int(np.maximum.reduce(y.view(_UNSIGNED[y.itemsize]), axis=None)) < classes
    # Python integers: an int8 or uint64 array must not wrap around in the comparison.
    return int(y.min()) >= 0 and int(y.max()) < classes


def _label_reason(value: int, at: tuple[int, ...], legal: str) -> str:
    where = f" at position {at[0] if len(at) == 1 else at}" if at else ""
    text = f"label {value}{where} is outside {legal}"
    if value == -100:
        return f"{text}: to leave such rows out pass ignore_index=-100."
    if value == -1 and legal == BINARY:
        return f"{text}: of labels -1 and 1 pass target > 0, or name the one to leave out by ignore_index."
    return f"{text}: check the labels, or name the one to leave out by ignore_index."


def ignore_index(value: Any, kind: str) -> int | None:
    """An integer, for class indices only."""
    if value is None:
        return None
    k = _integer("ignore_index", value)
    if kind != "index":
        raise ValueError(
            "ignore_index has no meaning for a target of distributions: leave rows out by sample_weight=0."
        )
    if not _INT64.min <= k <= _INT64.max:
        raise ValueError(f"ignore_index {k} does not fit in 64 bits.")
    return k


def vector(
    name: str, value: Any, shape: tuple[int, ...], what: str, validate: bool, device: bool = False
) -> Array | None:
    """Finite reals of exactly this shape, as float64; on a device, as they are and not looked at."""
    v = _reals(name, value, shape, what, device)
    if v is not None and validate and not device and not np.isfinite(v).all():
        raise ValueError(f"{name} must be finite: {_first(v, ~np.isfinite(v))}.")
    return v


def logit_bias(value: Any, shape: tuple[int, ...], validate: bool, device: bool = False) -> Array | None:
    """Reals or -inf, which removes a class, as float64; on a device, as they are and not looked at."""
    v = _reals("logit_bias", value, shape, "one bias per class", device)
    if v is not None and validate and not device and not (v < np.inf).all():
        raise ValueError(f"logit_bias must be finite, or -inf to remove a class: {_first(v, ~(v < np.inf))}.")
    return v


def _reals(name: str, value: Any, shape: tuple[int, ...], what: str, device: bool) -> Array | None:
    if value is None:
        return None
    v = as_host(value, name)
    if v.dtype.kind not in "iu" and dtype_name(v.dtype) not in DTYPES:
        raise TypeError(f"{name} has dtype {v.dtype}: it must hold real numbers, {what}.")
    if v.shape != shape:
        raise ValueError(f"{name} has shape {v.shape}, not {shape}: {what}, nothing broadcasts.")
    return contiguous(name, v) if device else native(v).astype(np.float64, copy=False)


def contiguous(name: str, v: Array) -> Array:
    """A vector on a device, which nobody copies."""
    if not v.flags.c_contiguous:
        raise ValueError(f"{name} has gaps: on a device pass a contiguous array.")
    return v


def illegal(found: Illegal, classes: int, rows_shape: tuple[int, ...], binary: bool = False) -> None:
    """Raise for the first label or weight that a device found illegal."""
    if found.label >= 0:
        at = tuple(int(i) for i in np.unravel_index(found.label, rows_shape))
        legal = BINARY if binary else f"[0, {classes}) for logits of {classes} classes"
        raise LabelError(_label_reason(found.value, at, legal))
    for name in ("class_weight", "sample_weight", "logit_bias"):
        if (first := getattr(found, name)) >= 0:
            # Of a binary problem each weight has a row, and class 1's is the only one.
            by_row = binary or name == "sample_weight"
            where = np.unravel_index(first, rows_shape if by_row else (classes,))
            place = ", ".join(str(int(i)) for i in where)
            what = "finite, or -inf to remove a class" if name == "logit_bias" else "finite"
            if binary:
                name = "pos_weight" if name == "class_weight" else name
                place = f"for the element at {place}"
            else:
                place = f"at position {place}"
            raise ValueError(f"{name} must be {what}: it is not {place}.")


def _first(v: Array, bad: Array) -> str:
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), v.shape))
    return f"it holds {v[at]} at position {at[0] if len(at) == 1 else at}"


def real(
    name: str, value: Any, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> float:
    """A finite real number within its limits."""
    # float() alone would take text, truth values, and complex numbers less their imaginary part.
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    text = isinstance(value, (bool, str, bytes, bytearray))
    if text or kind not in "fiuV" or getattr(value, "ndim", None):
        raise TypeError(f"{name} must be a real number, got {value!r}.")
    try:
        v = float(value)
    except OverflowError:
        v = math.inf
    except (TypeError, ValueError) as exc:
        raise TypeError(f"{name} must be a real number, got {value!r}.") from exc
    legal = math.isfinite(v)
    legal = legal and (low is None or v >= low) and (high is None or v <= high)
    legal = legal and (above is None or v > above)
    if not legal:
        limits = "finite"
        if low is not None and high is not None:
            limits = f"in [{low:g}, {high:g}]"
        elif low is not None:
            limits = f"finite and at least {low:g}"
        elif above is not None:
            limits = f"finite and greater than {above:g}"
        raise ValueError(f"{name} must be {limits}, got {v}.")
    return v


def spread(temperature: float, softcap: float | None) -> None:
    """1 / T and T * softcap are numbers that can be divided by."""
    product = temperature * (1.0 if softcap is None else softcap)
    for value in (temperature, product):
        if not 1e-300 <= value <= 1e300:
            raise ValueError(
                f"temperature {temperature} and softcap {softcap} are too extreme: temperature and its"
                " product with softcap must lie in [1e-300, 1e300]."
            )


def one_of(name: str, value: Any, legal: tuple[str, ...] | dict[str, str]) -> str:
    """One of a few words; of a dict, one of its keys, which it explains."""
    words = tuple(legal)
    if isinstance(value, str) and value in words:
        return words[words.index(value)]  # not the value itself, which may be an enum's member
    if isinstance(legal, dict):  # a guess would be a poorer hint than what they mean
        told = ", ".join(f"{word!r} ({meaning})" for word, meaning in legal.items())
        raise ValueError(f"unknown {name} {value!r}; it is one of {told}.")
    near = get_close_matches(str(value), legal, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {name} {value!r}; it is one of {', '.join(map(repr, legal))}.{hint}")


def denominator(value: Any, reduction: str) -> float | None:
    """What a mean is divided by instead of its own total weight."""
    if value is None:
        return None
    if reduction != "mean":
        raise ValueError(f'denominator replaces that of reduction="mean"; reduction is {reduction!r}.')
    return real("denominator", value)


def total_weight(value: float, validate: bool) -> float:
    """The denominator that a mean's weights add up to."""
    if validate and not math.isfinite(value):
        raise ValueError(
            "sample_weight (times class_weight) adds up to more than float64 holds: scale the weights down."
        )
    return value


def switch(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def outputs(value: Any) -> tuple[str, ...]:
    """The names of an evaluation's fields, each once."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f'outputs must be a sequence of names such as ("loss", "argmax"), got {value!r}.')
    names = tuple(one_of("output", name, OUTPUTS) for name in value)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"outputs must name at least one field and each once, got {names!r}.")
    return names


@cache
def matrix_dtypes(logits: np.dtype[Any]) -> tuple[np.dtype[Any], ...]:
    """The dtypes a gradient may have: the logits' own, or float32 for half precision."""
    own = logits.newbyteorder("=")
    return (own, np.dtype(np.float32)) if own.itemsize == 2 else (own,)


@cache
def loss_dtype(logits: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64 logits, else float32."""
    return np.dtype(np.float64 if logits.itemsize == 8 else np.float32)


def out(value: Any, shape: tuple[int, ...], dtypes: tuple[np.dtype[Any], ...], name: str = "out") -> None:
    """An array that can be written to, of exactly this shape and one of these dtypes."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a NumPy array, got {type(value).__name__}: pass its NumPy view, if it has one"
            " (np.asarray(x), x.numpy())."
        )
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}; it must have {shape}.")
    if value.dtype not in dtypes or not value.dtype.isnative:
        names = " or ".join(d.name for d in dtypes)
        raise TypeError(f"{name} has dtype {value.dtype}; it must have {names}, in native byte order.")
    if not value.flags.writeable:
        raise ValueError(f"{name} is read-only: pass an array that can be written to.")
    if not value.flags.aligned:
        raise ValueError(f"{name} is not aligned to its dtype: pass an array that np.empty made.")
    if value.size == 0:
        return
    reach = 0  # bytes spanned by the axes seen so far, from the tightest stride outwards
    for stride, n in sorted((abs(s), n) for s, n in zip(value.strides, value.shape, strict=True) if n > 1):
        if stride < max(reach, value.itemsize):
            raise ValueError(f"{name} overlaps itself: several of its elements share memory.")
        reach = stride * (n - 1) + max(reach, value.itemsize)


def overlap(out: Array, inputs: dict[str, Array], in_place: tuple[str, ...] = ()) -> None:
    """`out` shares memory with no input, unless it is exactly one that may be worked on in place."""
    for name, x in inputs.items():
        if not _share(out, x) or (name in in_place and _same(out, x)):
            continue
        how = f"pass out={name} itself, or separate memory" if name in in_place else "pass separate memory"
        raise ValueError(f"out overlaps {name}, which would be overwritten while it is read: {how}.")


def _same(a: Array, b: Array) -> bool:
    """The same elements at the same places; an axis of length 1 has no stride to speak of."""
    steps = [[s for s, n in zip(x.strides, x.shape, strict=True) if n != 1] for x in (a, b)]
    return (a.ctypes.data, a.shape, a.dtype) == (b.ctypes.data, b.shape, b.dtype) and steps[0] == steps[1]


def _share(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=100_000)  # type: ignore[arg-type]  # any int is legal
    except np.exceptions.TooHardError:
        return True  # too entangled to tell: refuse


def integer(name: str, value: Any, *, low: int) -> int:
    """An integer of at least `low`."""
    k = _integer(name, value)
    if k < low:
        raise ValueError(f"{name} must be at least {low}, got {k}.")
    return k


def _integer(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, got {value!r}.")
    try:
        return operator.index(value)
    except TypeError as exc:
        raise TypeError(f"{name} must be an integer, got {value!r}.") from exc
