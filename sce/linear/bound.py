"""A linear model's rows, bound once: for solvers, which ask for the same rows' derivatives hundreds of times.

`linear_loss_and_grad` checks its arguments, chooses a backend and makes its memory at each call: 0.1 ms, more
than all of the arithmetic for a few hundred rows. Here that is done once, and a call is products and kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from sce.backend import Answer, Array, Backend, Problem
from sce.select import obtain

from . import chunks
from .model import model
from .products import add_product, multiply

_KEPT = 64 << 20  # bytes of logits that may be kept from one Hessian-vector product to the next


class _Chunk(NamedTuple):
    x: Any  # (h, D)
    logits: Array  # (h, C)
    factor: Array  # (h, C): what X^T is multiplied with in the end
    run: Callable[[], None]  # fills the answer
    loss: Array  # (1,), the answer's if it has one
    ones: Array  # (h,)


class BoundRows:
    """Loss, gradient and Hessian-vector products of N rows of a linear model: at one place after another.

    loss = sum_i u_i loss_i(X W + bias) / denominator; formulas as in `linear_loss_and_grad`, without penalty.
    X (N, D) is float32 or float64, C-contiguous or SciPy's CSR, y (N,) class indices in [0, classes), u (N,)
    finite and not 0: nothing of that is looked at. W, V and what is written to are of X's dtype, (D, classes)
    and C-contiguous; biases (classes,), or None. The arrays must not change while they are bound.

    A backend is chosen as for any call, once for all of them.
    """

    def __init__(
        self,
        X: Any,
        y: Array,
        classes: int,
        *,
        denominator: float,
        sample_weight: Array | None = None,
        label_smoothing: float = 0.0,
        backend: str | None = None,
    ) -> None:
        self._X, self._y, self._classes, self._asked = X, y, classes, backend
        self._options = {
            "denominator": denominator,
            "sample_weight": sample_weight,
            "label_smoothing": label_smoothing,
            "validate": False,
        }
        self._at: tuple[Array, Array | None] | None = None

    @np.errstate(all="ignore")  # NaN and infinities in a row are the answer, not a warning
    def loss_and_grad(self, W: Array, bias: Array | None, into: Array, into_bias: Array | None) -> float:
        """The loss; its gradients go `into` two arrays."""
        losses = []
        for n, chunk in enumerate(self._evaluation):
            _logits(chunk.x, W, bias, chunk.logits)
            chunk.run()
            losses.append(chunk.loss[0])
            _add(chunk, into, into_bias, first=n == 0)
        return float(np.sum(losses))

    @np.errstate(all="ignore")
    def around(self, W: Array, bias: Array | None) -> None:
        """From now on, `hvp` is of the Hessian at this W and bias."""
        self._at = W, bias
        if self._keeps:
            for chunk in self._product:
                _logits(chunk.x, W, bias, chunk.logits)

    @np.errstate(all="ignore")
    def hvp(self, V: Array, v_bias: Array | None, into: Array, into_bias: Array | None) -> None:
        """The Hessian, where `around` was told, times (V, v_bias)."""
        if self._at is None:
            raise ValueError("where is the Hessian? Call around(W, bias) first.")
        for n, chunk in enumerate(self._product):
            if not self._keeps:
                _logits(chunk.x, *self._at, chunk.logits)
            _logits(chunk.x, V, v_bias, chunk.factor)
            chunk.run()
            _add(chunk, into, into_bias, first=n == 0)

    @cached_property
    def _evaluation(self) -> list[_Chunk]:
        """The derivative by the logits takes their place."""
        return self._prepared(("loss", "grad"), keep=False)

    @cached_property
    def _product(self) -> list[_Chunk]:
        """The product with the Hessian takes the direction's place."""
        return self._prepared(("hvp",), keep=self._keeps)

    def _runner(self, backend: Backend) -> Callable[[Problem, Answer], Callable[[], None]]:
        """What makes a call of a chunk's problem and answer."""
        # Of several chunks each would have memory to work in of its own, and the time is in the products.
        if len(self._parts) == 1 and hasattr(backend, "repeat"):
            repeat: Callable[[Problem, Answer], Callable[[], None]] = backend.repeat
            return repeat
        return lambda problem, answer: partial(backend.run, problem, answer)

    @property
    def _keeps(self) -> bool:
        """Are the logits kept while their Hessian's products are asked for?"""
        bytes_of_logits: int = self._X.shape[0] * self._classes * self._X.dtype.itemsize
        return bytes_of_logits <= _KEPT

    @cached_property
    def _parts(self) -> list[tuple[slice, Any]]:
        """Which rows of X are in each chunk, and those. Of CSR a slice is a copy: one is enough."""
        rows, step = self._X.shape[0], _step(self._X, self._classes)
        if step == rows:
            return [(slice(0, rows), self._X)]
        where = [slice(a, min(a + step, rows)) for a in range(0, rows, step)]
        return [(some, self._X[some]) for some in where]

    def _prepared(self, outputs: tuple[str, ...], *, keep: bool) -> list[_Chunk]:
        X, classes = self._X, self._classes
        nothing = np.broadcast_to(np.zeros((), X.dtype), (X.shape[1], classes))
        whole = model(X, nothing, self._y, bias=None, l2=0.0, outputs=outputs, **self._options).problem
        step = _step(X, classes)
        memory = np.empty((X.shape[0] if keep else step) * classes, X.dtype)
        along = np.empty(step * classes, X.dtype) if "hvp" in outputs else memory
        ones = np.ones(step, X.dtype)
        run = self._runner(obtain(whole, self._asked))
        found = []
        for where, x in self._parts:
            h, loss = x.shape[0], np.zeros(1)
            z = chunks.matrix_in(memory[where.start * classes :] if keep else memory, h, nothing)
            r = chunks.matrix_in(along, h, nothing) if "hvp" in outputs else z
            some, answer = chunks.part(whole, where, z), Answer(loss=loss, grad=z[:, None])
            if "hvp" in outputs:
                some, answer = some._replace(direction=r[:, None]), Answer(hvp=r[:, None])
            found.append(_Chunk(x, z, r, run(some, answer), loss, ones[:h]))
        return found


def _step(X: Any, classes: int) -> int:
    """The rows of a chunk."""
    sparse = not isinstance(X, np.ndarray)
    return chunks.step(X.shape[0], classes * X.dtype.itemsize, sparse=sparse)


def _logits(x: Any, W: Array, bias: Array | None, into: Array) -> None:
    """x W + bias."""
    found = multiply(x, W, into)
    if bias is not None:
        np.add(found, bias, out=into)
    elif found is not into:
        into[...] = found


def _add(chunk: _Chunk, into: Array, into_bias: Array | None, *, first: bool) -> None:
    """x^T g and the columns' sums of g, written by the first chunk and added to by the others."""
    g = chunk.factor
    if first and isinstance(chunk.x, np.ndarray):
        np.matmul(chunk.x.T, g, out=into)
    else:
        if first:
            into[...] = 0
        add_product(chunk.x.T, g, into)
    if into_bias is not None:
        sums = chunk.ones @ g
        into_bias[...] = sums if first else into_bias + sums
