"""The rows of a linear model on the host, in chunks: logits, their derivative in place, and what follows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import numpy as np

from sce.backend import Answer, Array, Backend, Problem

from . import chunks
from .model import LinearGrad, Model
from .products import add_product, multiply

_SQUARED = 1 << 16  # elements of W squared at once


class Chunk(NamedTuple):
    where: Any  # a slice of the rows, or their positions
    X: Any  # (h, D), in the computing dtype


@np.errstate(all="ignore")  # NaN and infinities in a row are that row's answer, not a warning
def loss_and_grad(model: Model, backend: Backend, into: LinearGrad) -> Any:
    """The loss; the gradients go `into` the arrays that are there."""
    problem, loss_dtype = model.problem, model.W.dtype
    sums = Sums(model, into)
    parts: list[float] = []
    each = None if problem.reduce else np.zeros(problem.rows, loss_dtype)
    kept = _kept(problem)
    step = _step(model, kept, matrices=1)
    memory = memory_for(model, step)
    if into.X is not None and kept is not None:
        into.X[...] = 0
    for where, x in _chunks(model, kept, step):
        z = logits(model, x, model.W, model.bias, memory)
        loss = np.zeros(1) if problem.reduce else np.empty(len(z), loss_dtype)
        grad = z[:, None] if "grad" in problem.outputs else None
        backend.run(chunks.part(problem, where, z), Answer(loss=loss, grad=grad))
        if each is None:
            parts.append(float(loss[0]))
        else:
            each[where] = loss
        sums.add(x, z)
        if into.X is not None:
            _put(into.X, where, z, model.W)
    sums.write(2.0 * model.l2 * problem.grad_scale, model.W)
    if each is not None:
        return each
    value = _sum(parts) if problem.denominator else problem.empty
    return loss_dtype.type(value + _penalty(model))


@np.errstate(all="ignore")
def hessian_vector(model: Model, product: Any, V: Array, v: Array | None, into: LinearGrad) -> None:
    """The Hessian with respect to W and bias, times (V, v); `product` is that of rows of logits."""
    sums = Sums(model, into)
    kept = _kept(model.problem)
    step = _step(model, kept, matrices=2)
    first, second = memory_for(model, step), memory_for(model, step)
    for where, x in _chunks(model, kept, step):
        z = logits(model, x, model.W, model.bias, first)
        r = logits(model, x, V, v, second)
        sums.add(x, product(z, r, where))
    sums.write(2.0 * model.l2, V)


def row_product(problem: Problem, hvp: Any, backend: str | None, options: dict[str, Any]) -> Any:
    """The Hessian of some rows' loss with respect to their logits, times r, in the place of r."""
    # All rows were looked at, and their weight is known.
    shared = {**options, "reduction": "mean", "denominator": problem.denominator, "validate": False}

    def product(z: Array, r: Array, where: Any) -> Array:
        part = chunks.part(problem, where, z)
        target = part.labels if part.distribution is None else part.distribution[:, 0]
        some = {**shared, "sample_weight": part.sample_weight}
        found: Array = hvp(z, target, r, out=r, backend=backend, **some)
        return found

    return product


def logits(model: Model, x: Any, W: Array, bias: Array | None, memory: Array) -> Array:
    """x W + bias."""
    z = multiply(x, W, chunks.matrix_in(memory, x.shape[0], W))
    if bias is not None:
        z += bias
    return z


class Sums:
    """X^T G and the columns' sums of G, added up over the chunks."""

    def __init__(self, model: Model, into: LinearGrad) -> None:
        self.into, self.blank = into, True
        # Sums are in the computing dtype: half precision is rounded to at the end.
        same = into.W is None or into.W.dtype == model.W.dtype
        self.W = into.W if same else np.empty_like(into.W, model.W.dtype)
        self.bias = None if into.bias is None else np.zeros(len(into.bias))

    def add(self, x: Any, g: Array) -> None:
        if self.W is not None:
            if not self.blank:
                add_product(x.T, g, self.W)
            elif isinstance(x, np.ndarray):
                np.matmul(x.T, g, out=self.W)
            else:
                self.W[...] = 0
                add_product(x.T, g, self.W)
            self.blank = False
        if self.bias is not None:
            self.bias += np.ones(len(g), g.dtype) @ g

    def write(self, factor: float, of: Array) -> None:
        """The sums, and `factor` times a matrix shaped like W, to where they belong."""
        if self.W is not None:
            if self.blank:
                self.W[...] = 0
            if factor:
                for rows in _blocks(of):
                    self.W[rows] += factor * of[rows]
            if self.W is not self.into.W:
                self.into.W[...] = self.W
        if self.bias is not None:
            self.into.bias[...] = self.bias


def _put(into: Array, where: Any, g: Array, W: Array) -> None:
    """The gradient of these rows of X: G W^T."""
    if isinstance(where, slice) and into.dtype == g.dtype:
        np.matmul(g, W.T, out=into[where])
    else:
        into[where] = g @ W.T


def memory_for(model: Model, step: int) -> Array:
    return np.empty(step * model.W.shape[1], model.W.dtype)


def _step(model: Model, kept: Array | None, matrices: int) -> int:
    """The rows of a chunk, of which so many matrices shaped like the logits are there at a time."""
    features, classes = model.W.shape
    size: int = model.W.itemsize
    copied = not model.sparse and (kept is not None or model.dtype != model.W.dtype)
    row = matrices * classes * size
    return chunks.step(model.problem.rows, row, sparse=model.sparse, copied=copied * features * size)


def _chunks(model: Model, kept: Array | None, step: int) -> Iterator[Chunk]:
    """The rows that count, some at a time. Those left out are not computed: they may hold anything."""
    count = model.problem.rows if kept is None else len(kept)
    for a in range(0, count, step):
        where = slice(a, min(a + step, count)) if kept is None else kept[a : a + step]
        x = model.X[where]
        if isinstance(x, np.ndarray):
            x = x.astype(model.W.dtype, copy=False)
        yield Chunk(where, x)


def _kept(problem: Problem) -> Array | None:
    """The positions of the rows that count; None: all of them."""
    if problem.denominator == 0:
        return np.empty(0, np.intp)
    if problem.sample_weight is None and problem.ignore_index is None:
        return None
    kept: Any = True
    if problem.sample_weight is not None:
        kept = problem.sample_weight != 0
    if problem.ignore_index is not None:
        kept = kept & (cast(Array, problem.labels) != problem.ignore_index)
    return None if np.all(kept) else np.flatnonzero(kept)


def _penalty(model: Model) -> float:
    """l2 sum(W^2), in float64."""
    if not model.l2:
        return 0.0
    return model.l2 * _sum([float(np.square(model.W[b], dtype=np.float64).sum()) for b in _blocks(model.W)])


def _blocks(W: Array) -> Iterator[slice]:
    step = max(1, _SQUARED // max(1, W.shape[1]))
    return (slice(a, a + step) for a in range(0, W.shape[0], step))


def _sum(parts: list[float]) -> float:
    try:
        return math.fsum(parts)
    except (OverflowError, ValueError):  # infinities of both signs
        return float(np.sum(parts))
