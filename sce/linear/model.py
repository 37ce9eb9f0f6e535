"""A linear model's call, checked: X, W and bias here, everything else by `prepare`, as for given logits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from .. import checks
from ..backend import DTYPES, Array, Problem
from ..layout import as_host, dtype_name, native
from ..problem import prepare

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

    @property
    def sparse(self) -> bool:
        return not isinstance(self.X, np.ndarray)


def model(X: Any, W: Any, y: Any, *, bias: Any, l2: Any, outputs: Iterable[str], **options: Any) -> Model:
    """Check everything. Nothing was computed or written when this raises."""
    x: Any = _csr(X) if is_sparse(X) else matrix("X", X, "(N, D): a row for each example")
    w = matrix("W", W, "(D, C): a column for each class")
    if x.shape[1] != w.shape[0]:
        hint = " Pass W.T." if x.shape[1] == w.shape[1] else ""
        raise ValueError(
            f"X of shape {x.shape} and W of shape {w.shape} do not go together: X is (N, D), W is (D, C).{hint}"
        )
    if x.dtype != w.dtype:
        raise TypeError(f"X has dtype {x.dtype} and W {w.dtype}: convert one of them with .astype().")
    if w.shape[1] == 0:
        raise ValueError(f"W of shape {w.shape} has no classes: C must be at least 1.")
    l2 = checks.real("l2", l2, low=0.0)
    if l2 and options["reduction"] == "none":
        raise ValueError('l2 is a penalty of the whole loss: with reduction="none" it belongs to no row.')
    computing = np.dtype(np.float64 if w.dtype == np.float64 else np.float32)
    logits: Array = np.ndarray((x.shape[0], w.shape[1]), computing, _ANY, strides=(0, 0))
    problem = prepare(logits, y, outputs=outputs, **options).problem
    return Model(
        x, w.astype(computing, copy=False), vector("bias", bias, w.shape[1], computing), l2, problem, w.dtype
    )


def matrix(name: str, value: Any, what: str) -> Array:
    """Two dimensions, floating. The values are not looked at: NaN in, NaN out."""
    x = native(as_host(value, name))
    if dtype_name(x.dtype) not in DTYPES:
        how = "convert it, for instance with .astype(np.float32)"
        raise TypeError(f"{name} has dtype {x.dtype}, not one of {', '.join(DTYPES)}: {how}.")
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {x.shape}: it must be {what}.")
    return x


def vector(name: str, value: Any, classes: int, dtype: np.dtype[Any]) -> Array | None:
    """One real per class, in the computing dtype; not looked at either."""
    v = checks.vector(name, value, (classes,), "one number per class", validate=False)
    return None if v is None else v.astype(dtype)


def is_sparse(X: Any) -> bool:
    """One of SciPy's sparse arrays or matrices."""
    return hasattr(X, "tocsr") and hasattr(X, "nnz")


def _csr(X: Any) -> Any:
    if X.format != "csr":
        raise TypeError(
            f"X is sparse in {X.format.upper()} format: rows are taken from CSR, so pass X.tocsr()."
        )
    if X.dtype not in (np.float32, np.float64):
        raise TypeError(f"X is sparse of dtype {X.dtype}: convert it, for instance with .astype(np.float32).")
    return X


def wanted(want: Any, sparse: bool) -> tuple[str, ...]:
    """The names of the gradients, each once."""
    if isinstance(want, str) or not isinstance(want, Iterable):
        raise TypeError(f'want must be a sequence of names such as ("W", "bias"), got {want!r}.')
    names = tuple(checks.one_of("gradient", name, GRADIENTS) for name in want)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"want must name at least one gradient and each once, got {names!r}; the loss alone is"
            " linear_cross_entropy."
        )
    if sparse and "X" in names:
        raise ValueError('the gradient of a sparse X would be dense: pass want=("W", "bias").')
    return names


def outputs(model: Model, want: tuple[str, ...], out: Any, inputs: dict[str, Any]) -> LinearGrad:
    """The arrays that will hold what is wanted: the caller's where given, checked against everyone else's."""
    given = _given(out)
    (rows, features), classes = model.X.shape, model.W.shape[1]
    shapes = {"X": (rows, features), "W": (features, classes), "bias": (classes,)}
    names = [name for name in want if name != "bias" or model.bias is not None]
    for name, into in given._asdict().items():
        if into is None:
            continue
        if name not in names:
            raise ValueError(f"out.{name} is given, but that gradient is not wanted or there is no {name}.")
        checks.out(into, shapes[name], checks.matrix_dtypes(model.dtype), f"out.{name}")
        checks.overlap(into, {k: as_host(v, k) for k, v in inputs.items()}, name=f"out.{name}")
    for a, b in combinations([name for name in GRADIENTS if getattr(given, name) is not None], 2):
        checks.overlap(getattr(given, a), {f"out.{b}": getattr(given, b)}, name=f"out.{a}")
    made = {name: getattr(given, name) for name in names}
    for name, into in made.items():
        if into is None:
            like = {"X": model.X, "W": model.W}.get(name)
            made[name] = (
                np.empty(shapes[name], model.dtype) if like is None else np.empty_like(like, model.dtype)
            )
    return LinearGrad(**made)


def _given(out: Any) -> LinearGrad:
    if out is None:
        return LinearGrad()
    if not isinstance(out, tuple) or len(out) != len(GRADIENTS):
        raise TypeError(f"out must be sce.LinearGrad(X=..., W=..., bias=...), got {type(out).__name__}.")
    return LinearGrad(*out)
