"""A linear model's call, checked: X, W and bias here, everything else by `prepare`, as for given logits."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from sce import checks
from sce.backend import DTYPES, Array, BackendError, Problem
from sce.layout import as_host, dtype_name, native, on_device
from sce.problem import frozen, prepare, total_weight

from .csr import csr, is_sparse

GRADIENTS = ("X", "W", "bias")
_ANY = np.zeros(1)  # memory behind logits that nobody reads


class LinearGrad(NamedTuple):
    """A gradient, or a Hessian-vector product, of a linear model: None where not asked, or where no bias is.

    As `out=` it names the arrays to write to: `LinearGrad(W=array)`.
    """

    X: Any = None  # (N, D)
    W: Any = None  # (D, C)
    bias: Any = None  # (C,)


class Model(NamedTuple):
    """N rows of a linear model. `problem` has all that is known of their logits but the logits."""

    X: Any  # (N, D): an array of any of DTYPES, or SciPy's CSR
    W: Array  # (D, C), of the computing dtype
    bias: Array | None  # (C,), the same
    l2: float
    problem: Problem  # its logits are a stand-in of the right shape and dtype
    dtype: np.dtype[Any]  # of X and W, and of the answer: computed is in float32 or float64
    given: dict[str, Any]  # the caller's arguments: no answer may overlap the arrays among them

    @property
    def sparse(self) -> bool:
        return not isinstance(self.X, np.ndarray)


def placed(arrays: dict[str, Any]) -> bool:
    """Are the arrays on a device, all of them?"""
    there = [name for name, a in arrays.items() if on_device(a)]
    if there and (here := [name for name, a in arrays.items() if a is not None and name not in there]):
        raise BackendError(
            f"{', '.join(there)}: on a CUDA device; {', '.join(here)}: on the host. Move them to one place"
            " first."
        )
    return bool(there)


def model(X: Any, W: Any, y: Any, *, bias: Any, l2: Any, outputs: Iterable[str], **options: Any) -> Model:
    """Check everything. Nothing was computed or written when this raises."""
    x: Any = (
        csr(X, bool(options.get("validate", True)))
        if is_sparse(X)
        else matrix("X", X, "(N, D), a row for each example")
    )
    w = matrix("W", W, "(D, C), a column for each class")
    together(x, w)
    l2 = penalty(l2, options.get("reduction"))
    computing = computing_dtype(w.dtype)
    labels = as_host(y, "y")
    if labels.size == 0 and not isinstance(y, np.ndarray):
        labels = labels.astype(np.int64)  # an empty list has no type of its own
    of_target(labels, x.shape[0], w.shape[1])
    problem = _of_logits((x.shape[0], w.shape[1]), computing, labels, tuple(outputs), options)
    b = None if bias is None else vector("bias", bias, w.shape[1], computing)
    given = {"X": X, "W": W, "y": y, "bias": bias, **options}
    return Model(x, w.astype(computing, copy=False), b, l2, problem, w.dtype, given)


_PER_CLASS_OR_ROW = ("class_weight", "sample_weight", "logit_bias")
_LASTING = frozenset({float, np.float64, int, str, bool, type(None)})  # types of values that cannot change


def _of_logits(
    shape: tuple[int, int], dtype: np.dtype[Any], y: Array, outputs: tuple[str, ...], options: dict[str, Any]
) -> Problem:
    """The problem of logits that are not there. Small calls repeat each other: then only y is looked at."""
    numbers = {name: value for name, value in options.items() if name not in _PER_CLASS_OR_ROW}
    vectors = any(options.get(name) is not None for name in _PER_CLASS_OR_ROW)
    if vectors or y.dtype.kind not in "iu" or not _LASTING.issuperset(map(type, numbers.values())):
        return prepare(_stand_in(shape, dtype), y, name="W", outputs=outputs, **options).problem
    problem = _like_earlier(shape, dtype, outputs, **numbers)
    ignore = problem.ignore_index
    labels = checks.labels(y, problem.classes, ignore, problem.validated, "W")
    mean = options.get("reduction", "mean") == "mean" and options.get("denominator") is None
    if ignore is not None and mean:
        problem = problem._replace(denominator=total_weight(problem.rows, labels, ignore, None, None))
    return problem._replace(labels=frozen(np.ascontiguousarray(labels)))


@lru_cache(maxsize=256, typed=True)
def _like_earlier(
    shape: tuple[int, int], dtype: np.dtype[Any], outputs: tuple[str, ...], **options: Any
) -> Problem:
    """Its labels and what depends on them are the call's own."""
    labels: Array = np.zeros(shape[:1], np.int64)
    found = prepare(_stand_in(shape, dtype), labels, name="W", outputs=outputs, **options)
    return found.problem._replace(labels=None)


def _stand_in(shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    """Logits that nobody reads."""
    return np.ndarray(shape, dtype, _ANY, strides=(0, 0))


def together(x: Any, w: Array) -> None:
    """X and W have a product, in one dtype."""
    if x.shape[1] != w.shape[0]:
        hint = " Pass W.T." if x.shape[1] == w.shape[1] else ""
        raise ValueError(
            f"X of shape {x.shape} and W of shape {w.shape} do not go together: X is (N, D), W (D, C).{hint}"
        )
    if x.dtype != w.dtype:
        raise TypeError(f"X has dtype {x.dtype} and W {w.dtype}: convert one of them with .astype().")
    if w.shape[1] == 0:
        raise ValueError(f"W of shape {w.shape} has no classes: C must be at least 1.")


def penalty(l2: Any, reduction: Any) -> float:
    """The factor of the sum of squares of W."""
    factor = checks.real("l2", l2, low=0.0)
    if factor and reduction == "none":
        raise ValueError('l2 is a penalty of the whole loss: with reduction="none" it belongs to no row.')
    return factor


@cache
def computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """float64 for float64, else float32: no BLAS of the host knows half precision."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def matrix(name: str, value: Any, what: str) -> Array:
    """Two dimensions, floating. The values are not looked at: NaN in, NaN out."""
    if value is None:
        raise TypeError(f"{name} is None: pass {what}.")
    x = native(as_host(value, name))
    of_matrix(name, x, what)
    return x


def of_matrix(name: str, x: Array, what: str) -> None:
    if dtype_name(x.dtype) not in DTYPES:
        how = "convert it, for instance with .astype(np.float32)"
        raise TypeError(f"{name} has dtype {x.dtype}, not one of {', '.join(DTYPES)}: {how}.")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {x.shape}: it must be {what}.")


def of_target(y: Array, rows: int, classes: int) -> None:
    """Labels or distributions for X's rows; the labels' values are `prepare`'s to check."""
    index = y.dtype.kind in "iu"
    if not index and dtype_name(y.dtype) not in DTYPES:
        raise TypeError(
            f"{checks.not_numbers('y', y)}: class indices are integers (shape {(rows,)}), distributions one"
            f" of {', '.join(DTYPES)} (shape {(rows, classes)}).{checks.as_numbers('y', y)}"
        )
    if y.shape == ((rows,) if index else (rows, classes)):
        return
    what, need = ("class indices", (rows,)) if index else ("distributions (floating)", (rows, classes))
    text = f"y of {what} has shape {y.shape}; X of {rows} rows and W of {classes} classes need {need}"
    if index and y.shape == (rows, classes):
        hint = ". For a distribution per row convert it with .astype(X.dtype)."
    elif y.shape == (rows,):
        hint = ". For class indices convert it with .astype(np.int64)."
    elif index and y.size == rows:
        hint = f": nothing broadcasts, so {checks.reshaped(need)}."
    else:
        hint = ": nothing broadcasts."
    raise ValueError(text + hint)


def direction(value: Any, model: Model) -> Array:
    """V, in the computing dtype, if that holds all its values."""
    v = matrix("V", value, "(D, C), as W is")
    if v.shape != model.W.shape:
        raise ValueError(f"V has shape {v.shape}: a direction of W has its shape, {model.W.shape}.")
    if not np.can_cast(v.dtype, model.W.dtype):
        raise TypeError(
            f"V has dtype {v.dtype}, and with W of {model.dtype} all is computed in {model.W.dtype}, which"
            f" would round V: pass V.astype(np.{model.W.dtype}), or X and W of {v.dtype}."
        )
    return v.astype(model.W.dtype, copy=False)


def vector(name: str, value: Any, classes: int, dtype: np.dtype[Any]) -> Array | None:
    """One real per class, in the computing dtype; not looked at either."""
    v = checks.vector(name, value, (classes,), "one number per class", validate=False)
    return None if v is None else v.astype(dtype)


def wanted(want: Any, sparse: bool, biased: bool) -> tuple[str, ...]:
    """The names of the gradients, each once. None: all that there are; a sparse X has none."""
    if want is None:
        return GRADIENTS[1:] if sparse else GRADIENTS
    if isinstance(want, str) or not isinstance(want, Iterable):
        raise TypeError(f'want must be a sequence of names such as ("W", "bias"), got {want!r}.')
    names = tuple(checks.one_of("gradient", name, GRADIENTS) for name in want)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"want must name at least one gradient and each once, got {names!r}; the loss alone is"
            " linear_cross_entropy."
        )
    if sparse and "X" in names:
        raise ValueError(
            'the gradient of a sparse X would be dense: pass want=("W", "bias"), or leave it out.'
        )
    if names == ("bias",) and not biased:
        raise ValueError(
            'want is ("bias",), and there is no bias: pass bias=np.zeros(C), or want other names.'
        )
    return names


def outputs(model: Model, want: tuple[str, ...], out: Any) -> LinearGrad:
    """The arrays that will hold what is wanted: the caller's or new ones."""
    given = of_answer(out)
    (rows, features), classes = model.X.shape, model.W.shape[1]
    shapes = {"X": (rows, features), "W": (features, classes), "bias": (classes,)}
    names = [name for name in want if name != "bias" or model.bias is not None]
    likes = {"X": model.X, "W": model.W}
    inputs = {name: v for name, v in model.given.items() if isinstance(v, np.ndarray)} if given else {}
    made = {}
    for name, into in given.items():
        if name not in names:
            raise ValueError(f"out.{name} is given, but that gradient is not wanted or there is no {name}.")
        checks.out(into, shapes[name], checks.matrix_dtypes(model.dtype), f"out.{name}")
        checks.overlap(into, inputs)
    for a, b in combinations(given, 2):
        checks.overlap(given[a], {f"out.{b}": given[b]})
    for name in names:
        if (into := given.get(name)) is None:
            like = likes.get(name)
            into = np.empty(shapes[name], model.dtype) if like is None else np.empty_like(like, model.dtype)
        made[name] = into
    return LinearGrad(**made)


def of_answer(out: Any) -> dict[str, Any]:
    """The caller's arrays by name, as far as there are any."""
    if out is None:
        return {}
    if not isinstance(out, tuple) or len(out) != len(GRADIENTS):
        raise TypeError(f"out must be sce.LinearGrad(X=..., W=..., bias=...), got {type(out).__name__}.")
    return {name: into for name, into in zip(GRADIENTS, out, strict=True) if into is not None}
