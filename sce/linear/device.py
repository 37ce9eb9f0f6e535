"""The same on a CUDA device: products are those of the arrays' own library, and nothing comes to the host.

CuPy and PyTorch: their arrays are sliced, multiplied (`@`), transposed (`.T`) and added to in place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import wraps
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar, cast

from sce import checks
from sce.backend import Array
from sce.device import Place, describe, library_of, maker
from sce.functions import cross_entropy, inspect_on_device
from sce.functions import loss_and_grad as of_logits
from sce.problem import place_of_all, prepare
from sce.select import obtain

from .model import LinearGrad, computing_dtype, of_answer, of_matrix, of_target, penalty, together

# Bytes of a chunk's logits, and of a product that waits to be added. With more rows each product is faster,
# but memory is what this is here to save; some 50 MB are what the caches of large devices hold.
_CHUNK, _BLOCK = 48 << 20, 8 << 20
_BY_ROW = ("sample_weight",)
_Function = TypeVar("_Function", bound=Callable[..., Any])


class DeviceModel(NamedTuple):
    """As Model, but X, W, y and bias are the caller's, and `of_X` and `of_W` NumPy's description of two."""

    X: Any
    W: Any
    y: Any
    bias: Any
    l2: float
    of_X: Array
    of_W: Array
    options: dict[str, Any]  # of the logits' loss, its denominator worked out
    skips: bool  # rows may be left out
    given: dict[str, Array]  # descriptions of what no answer may overlap
    place: Place


class _Logits:
    """Logits that nobody reads, at the address of something else."""

    def __init__(self, at: Array, shape: tuple[int, int], place: Place) -> None:
        self.dtype = at.dtype.name
        self.device = SimpleNamespace(id=place.device)
        self.__cuda_array_interface__ = {
            "data": (at.ctypes.data, False),
            "shape": shape,
            "strides": (0, 0),
            "typestr": at.dtype.str,
            "stream": place.stream,
            "version": 3,
        }


def model(
    X: Any,
    W: Any,
    y: Any,
    *,
    bias: Any,
    l2: Any,
    outputs: Iterable[str],
    backend: str | None,
    validate: bool,
    **options: Any,
) -> DeviceModel:
    """Check everything; with `validate` or a mean over weights, wait for the device once."""
    arrays = {"X": X, "W": W, "y": y, "bias": bias}
    arrays |= {name: v for name, v in options.items() if hasattr(v, "shape")}
    place = place_of_all({name: v for name, v in arrays.items() if v is not None})
    assert place is not None  # else it is not this module that is asked
    for name, value in (("X", X), ("W", W)):
        if not hasattr(value, "__matmul__") or not hasattr(value, "__setitem__") or _immutable(value):
            raise TypeError(
                f"{name} is a {_kind(value)}: on a device the products are those of the arrays' own library,"
                " so pass what CuPy or PyTorch make of it."
            )
    _of_one_library(X, W=W, bias=bias)
    x, w = describe(X, "X", place), describe(W, "W", place)
    of_matrix("X", x, "(N, D), a row for each example")
    of_matrix("W", w, "(D, C), a column for each class")
    together(x, w)
    b = None if bias is None else describe(bias, "bias", place)
    if b is not None and (b.shape != (w.shape[1],) or b.dtype != w.dtype):
        raise ValueError(f"bias has shape {b.shape} and dtype {b.dtype}, not {(w.shape[1],)} and {w.dtype}.")
    l2 = penalty(l2, options.get("reduction"))
    of_target(describe(y, "y", place), x.shape[0], w.shape[1])
    logits = _Logits(x, (x.shape[0], w.shape[1]), place)
    problem = prepare(logits, y, outputs=outputs, validate=validate, **options).problem
    chosen = cast(Any, obtain(problem, backend))
    if problem.validated:
        checks.illegal(inspect_on_device(problem, chosen), problem.classes, (problem.rows,))
    if problem.reduce and options["reduction"] == "mean":
        own = problem.own_denominator
        options["denominator"] = chosen.total_weight(problem) if own else problem.denominator
    options |= {"validate": False, "backend": backend}
    skips = problem.ignore_index is not None or problem.sample_weight is not None
    skips = skips or options.get("denominator") == 0.0
    given = {name: describe(v, name, place) for name, v in arrays.items() if v is not None}
    return DeviceModel(X, W, y, bias, l2, x, w, options, skips, given, place)


def outputs(model: DeviceModel, want: tuple[str, ...], out: Any) -> LinearGrad:
    """The arrays that will hold what is wanted: the caller's or new ones."""
    given = of_answer(out)
    _placed_as(model, **{f"out.{name}": into for name, into in given.items()})
    (rows, features), classes = model.of_X.shape, model.of_W.shape[1]
    shapes = {"X": (rows, features), "W": (features, classes), "bias": (classes,)}
    names = [name for name in want if name != "bias" or model.bias is not None]
    for name, into in given.items():
        if name not in names:
            raise ValueError(f"out.{name} is given, but that gradient is not wanted or there is no {name}.")
        seen = describe(into, f"out.{name}", model.place)
        checks.out(seen, shapes[name], checks.matrix_dtypes(model.of_W.dtype), f"out.{name}")
        checks.overlap(seen, model.given)
        model.given[f"out.{name}"] = seen
    made = {name: given.get(name) for name in names}
    likes = {"X": model.of_X, "W": model.of_W}
    for name, into in made.items():
        if into is None:
            made[name] = _like(model, shapes[name], likes.get(name))
    return LinearGrad(**made)


def _like(model: DeviceModel, shape: tuple[int, ...], like: Array | None) -> Any:
    """A new array, in the memory order of another."""
    if like is None or like.flags.c_contiguous or not like.flags.f_contiguous:
        return maker(model.W, shape, model.of_W.dtype)()
    return maker(model.W, shape[::-1], model.of_W.dtype)().T


def direction(model: DeviceModel, V: Any, v: Any) -> None:
    """V and v_bias fit W and bias."""
    _placed_as(model, V=V, v_bias=v)
    for name, value, of in (("V", V, model.W), ("v_bias", v, model.bias)):
        if value is None:
            continue
        seen, want = describe(value, name, model.place), describe(of, "W", model.place)
        if (seen.shape, seen.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"{name} has shape {seen.shape} and dtype {seen.dtype}, not {want.shape} and {want.dtype}."
            )
        model.given[name] = seen


def _there(function: _Function) -> _Function:
    """CuPy computes on its current device and stream, wherever the arrays are; PyTorch where they are."""

    @wraps(function)
    def run(model: DeviceModel, *others: Any) -> Any:
        with model.X.device if library_of(type(model.X)) == "cupy" else nullcontext():
            return function(model, *others)

    return cast(_Function, run)


@_there
def loss(model: DeviceModel) -> Any:
    """The loss alone."""
    losses, step = [], _step(model, 1)
    memory = _memory(model, step)
    for rows, x in _chunks(model, step):
        z = _logits(x, model.W, model.bias, memory)
        losses.append(cross_entropy(z, model.y[rows], **_of(model, rows)))
    return _loss(model, losses)


@_there
def loss_and_grad(model: DeviceModel, into: LinearGrad) -> Any:
    """The loss; the gradients go `into` the arrays that are there."""
    sums, losses, step = Sums(model, into), [], _step(model, 1)
    memory = _memory(model, step)
    for rows, x in _chunks(model, step):
        z = _logits(x, model.W, model.bias, memory)
        loss, g = of_logits(z, model.y[rows], out=z, **_of(model, rows))
        losses.append(loss)
        sums.add(x, g)
        if into.X is not None:
            _put(into.X[rows], g, model.W)
    sums.write(2.0 * model.l2 * model.options["grad_scale"], model.W)
    return _loss(model, losses)


@_there
def hessian_vector(model: DeviceModel, hvp: Callable[..., Any], V: Any, v: Any, into: LinearGrad) -> None:
    """The Hessian with respect to W and bias, times (V, v); `hvp` is that of logits."""
    sums, step = Sums(model, into), _step(model, 2)
    first, second = _memory(model, step), _memory(model, step)
    for rows, x in _chunks(model, step):
        z = _logits(x, model.W, model.bias, first)
        r = _logits(x, V, v, second)
        sums.add(x, hvp(z, model.y[rows], r, out=r, **_of(model, rows)))
    sums.write(2.0 * model.l2, V)


class Sums:
    """X^T G and the columns' sums of G, in the computing dtype."""

    def __init__(self, model: DeviceModel, into: LinearGrad) -> None:
        self.model, self.into = model, into
        self.dtype = computing_dtype(model.of_W.dtype)
        self.W, self.bias = (self._zeros(a) for a in (into.W, into.bias))

    def _zeros(self, into: Any) -> Any:
        """Of the computing dtype: half precision is rounded to at the end."""
        if into is None:
            return None
        same = describe(into, "out", self.model.place).dtype == self.dtype
        sums = into if same else maker(into, tuple(into.shape), self.dtype)()
        sums[...] = 0
        return sums

    def add(self, x: Any, g: Any) -> None:
        library = _library(g)
        if self.W is not None:
            if self.model.skips:  # a row left out has a derivative of 0, and 0 * NaN is NaN
                x = library.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            if hasattr(self.W, "addmm_") and self.W.dtype == g.dtype:
                self.W.addmm_(x.T, g)  # PyTorch's product adds by itself
            else:
                features, classes = self.model.of_W.shape
                step = max(1, _BLOCK // max(1, features * self.dtype.itemsize))
                for k in range(0, classes, step):
                    self.W[:, k : k + step] += x.T @ g[:, k : k + step]
        if self.bias is not None:
            self.bias += g.sum(0, dtype=getattr(library, self.dtype.name))

    def write(self, factor: float, of: Any) -> None:
        """The sums, and `factor` times a matrix shaped like W, to where they belong."""
        if self.W is not None:
            if factor:
                for rows in _blocks(self.model):
                    self.W[rows] += factor * _as(of[rows], self.dtype.name)
            if self.W is not self.into.W:
                self.into.W[...] = self.W
        if self.bias is not None and self.bias is not self.into.bias:
            self.into.bias[...] = self.bias


def _logits(x: Any, W: Any, bias: Any, memory: Any) -> Any:
    """x W + bias."""
    z = memory[: x.shape[0]]
    _library(x).matmul(x, W, out=z)
    if bias is not None:
        z += bias
    return z


def _put(into: Any, g: Any, W: Any) -> None:
    """The gradient of some rows of X: G W^T."""
    if into.dtype == g.dtype:
        _library(g).matmul(g, W.T, out=into)
    else:
        into[...] = g @ W.T


def _memory(model: DeviceModel, step: int) -> Any:
    return maker(model.W, (step, model.of_W.shape[1]), model.of_W.dtype)()


def _step(model: DeviceModel, matrices: int) -> int:
    """The rows of a chunk, of which so many matrices shaped like the logits are there at a time."""
    (rows, features), classes = model.of_X.shape, model.of_W.shape[1]
    row: int = matrices * classes * model.of_W.itemsize
    if model.skips or model.of_W.itemsize == 2:  # X, or its gradient, is copied
        row += features * model.of_W.itemsize
    step: int = max(1, min(_CHUNK // row, rows))
    return step


def _chunks(model: DeviceModel, step: int) -> Iterator[tuple[slice, Any]]:
    """Some rows at a time; also of none at all there is one chunk, which has a loss."""
    rows = model.of_X.shape[0]
    for a in range(0, max(1, rows), step):
        where = slice(a, min(a + step, rows))
        yield where, model.X[where]


def _of(model: DeviceModel, rows: slice) -> dict[str, Any]:
    """The options of the logits' loss for some of the rows."""
    some = {name: model.options[name][rows] for name in _BY_ROW if model.options.get(name) is not None}
    return {**model.options, **some}


def _loss(model: DeviceModel, losses: list[Any]) -> Any:
    """The chunks' losses, joined or added up, and the penalty."""
    library = _library(losses[0])
    if model.options["reduction"] == "none":
        return (library.concat if hasattr(library, "concat") else library.concatenate)(losses)
    value = library.stack(losses).sum(dtype=library.float64)
    if model.l2:
        for rows in _blocks(model):
            value = value + model.l2 * (_as(model.W[rows], "float64") ** 2).sum()
    loss = maker(model.W, (), checks.loss_dtype(model.of_W.dtype))()
    loss[...] = value
    return loss


def _blocks(model: DeviceModel) -> Iterator[slice]:
    features, classes = model.of_W.shape
    step = max(1, _BLOCK // (classes * 8))
    return (slice(a, a + step) for a in range(0, features, step))


def _immutable(x: Any) -> bool:
    return hasattr(x, "block_until_ready")  # JAX


def _of_one_library(X: Any, **others: Any) -> None:
    """Products are between arrays of one kind."""
    for name, value in others.items():
        if value is not None and library_of(type(value)) != library_of(type(X)):
            raise TypeError(
                f"X is a {_kind(X)} and {name} a {_kind(value)}: pass arrays of one library, on one device."
            )


def _placed_as(model: DeviceModel, **others: Any) -> None:
    """What comes later is where the rest is, too."""
    _of_one_library(model.X, **others)
    place_of_all({"X": model.X} | {name: value for name, value in others.items() if value is not None})


def _kind(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__name__}"


def _as(x: Any, dtype: str) -> Any:
    """Its numbers in another dtype."""
    to = getattr(_library(x), dtype)
    return x.to(to) if hasattr(x, "to") else x.astype(to)


def _library(x: Any) -> Any:
    root = library_of(type(x))
    return sys.modules[root] if root in ("cupy", "torch") else x.__array_namespace__()
