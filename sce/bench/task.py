"""What is computed, on what, and how many bytes that must move."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sce.backend import Array
from sce.functions import cross_entropy, loss_and_grad

Op = Literal["loss", "loss_and_grad"]
PIECE = 1 << 20  # elements that the reference computes, and a check compares, at once
IGNORED = -100  # the label of a row left out, by the habit of PyTorch

# One option at a time: its cost is measured against the same task without it.
OPTIONS: dict[str, dict[str, Any]] = {
    "class weights": {"class_weight": lambda rng, n, c: rng.uniform(0.5, 2, c)},
    "sample weights": {"sample_weight": lambda rng, n, c: rng.uniform(0.5, 2, n)},
    "label smoothing": {"label_smoothing": 0.1},
    "distribution": {},  # a distribution as the target: see `inputs`
    "ignored labels": {"ignore_index": IGNORED},  # a tenth of the rows
    "z-loss": {"z_loss": 1e-4},
    "temperature": {"temperature": 0.7},
    "soft cap": {"softcap": 30.0},
    "logit bias": {"logit_bias": lambda rng, n, c: rng.standard_normal(c)},
    "no validation": {"validate": False},
}
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


class Task(NamedTuple):
    """One line of work: mean loss, with or without the gradient, of (n, c) logits.

    `where` says what the shape is about: "memory" (a matrix well past the last-level cache), "cache" (one
    that lives in it) or "call" (so small that only the call costs). `layout` "channels" has the class axis
    second of four, as segmentation networks do; then n counts all rows.
    """

    op: Op
    n: int
    c: int
    dtype: str = "float32"
    option: str | None = None
    layout: Literal["rows", "channels"] = "rows"
    where: Literal["memory", "cache", "call"] = "memory"

    @property
    def matrix_bytes(self) -> int:
        return self.n * self.c * ITEMSIZE[self.dtype]

    @property
    def bytes(self) -> int:
        """What must move at least: read the logits and the target, write the gradient where there is one.

        loss           n c itemsize                 + target
        loss_and_grad  n c itemsize (read) + n c itemsize (write) + target
        target         8 n for int64 labels, n c itemsize for distributions
        """
        target = self.matrix_bytes if self.option == "distribution" else 8 * self.n
        return self.matrix_bytes * (2 if self.op == "loss_and_grad" else 1) + target

    @property
    def axis(self) -> int:
        return 1 if self.layout == "channels" else -1

    def __str__(self) -> str:
        parts = [self.op, f"{self.n}x{self.c}", self.dtype, self.option, self.layout, self.where]
        return " ".join(part for part in parts if part and part not in ("rows", "memory"))


class Inputs(NamedTuple):
    """The same arrays for every contestant. `options` are keyword arguments of `loss_and_grad`."""

    logits: Array
    target: Array
    options: dict[str, Any]


class Expected(NamedTuple):
    """The reference's answer. The gradient is for single precision and below kept in float32."""

    loss: float
    grad: Array | None


def dtype_of(task: Task) -> np.dtype[Any]:
    if task.dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(task.dtype)


def inputs(task: Task) -> Inputs:
    """Normal logits of standard deviation 3 (doubtful and confident rows), uniform labels; reproducible."""
    rng = np.random.default_rng([task.n, task.c])
    shape: tuple[int, ...] = (task.n, task.c)
    if task.layout == "channels":
        images, side = channels(task.n)
        shape = (images, task.c, side, side)
    logits = _normal(rng, shape, 3.0, dtype_of(task))
    target: Array = rng.integers(0, task.c, task.n)
    if task.option == "ignored labels":
        target[rng.random(task.n) < 0.1] = IGNORED
    if task.layout == "channels":
        target = target.reshape(shape[0], *shape[2:])
    if task.option == "distribution":
        target = np.abs(_normal(rng, shape, 1.0, dtype_of(task)))
        target /= target.sum(axis=task.axis, keepdims=True, dtype=np.float32).astype(target.dtype)
    options = OPTIONS.get(task.option or "", {})
    made = {name: value(rng, task.n, task.c) if callable(value) else value for name, value in options.items()}
    return Inputs(logits, target, made)


def channels(n: int) -> tuple[int, int]:
    """n rows as (images, side) with n = images * side**2: the largest side of 64, 32, ... that divides."""
    side = next(side for side in (64, 32, 16, 8, 4, 2, 1) if n % side**2 == 0)
    return n // side**2, side


def _normal(
    rng: np.random.Generator, shape: tuple[int, ...], scale: float, dtype: np.dtype[Any]
) -> NDArray[Any]:
    made = np.empty(shape, dtype)
    flat = made.reshape(-1)
    for start in range(0, flat.size, 1 << 22):  # in pieces: no second matrix beside the one that is made
        piece = flat[start : start + (1 << 22)]
        piece[...] = (rng.standard_normal(piece.size, np.float32) * np.float32(scale)).astype(dtype)
    return made


def expected(task: Task, given: Inputs) -> Expected:
    """The reference, some rows at a time: its temporaries would be a multiple of the matrix."""
    kept: DTypeLike = np.float64 if task.dtype == "float64" else np.float32
    grad = np.empty(given.logits.shape, kept) if task.op == "loss_and_grad" else None
    total = 0.0
    options = {k: v for k, v in given.options.items() if k != "sample_weight"}
    weights = given.options.get("sample_weight")
    weight = counted_weight(task, given)
    step = max(1, PIECE // (given.logits.size // max(1, len(given.logits)) or 1))
    for start in range(0, len(given.logits), step):
        rows = slice(start, start + step)
        some = dict(options, axis=task.axis, reduction="mean", denominator=weight, backend="reference")
        if weights is not None:
            some["sample_weight"] = weights[rows]
        if grad is None:
            loss = cross_entropy(given.logits[rows].astype(np.float64), given.target[rows], **some)
        else:
            loss, piece = loss_and_grad(given.logits[rows].astype(np.float64), given.target[rows], **some)
            grad[rows] = piece
        total += float(loss)
    return Expected(total, grad)


def counted_weight(task: Task, given: Inputs) -> float:
    """What the mean divides by: the total weight of the rows that count."""
    if task.option == "ignored labels":
        return float(np.count_nonzero(given.target != IGNORED))
    if task.option == "class weights":
        return float(given.options["class_weight"][given.target].sum())
    if task.option == "sample weights":
        return float(given.options["sample_weight"].sum())
    return float(task.n)
