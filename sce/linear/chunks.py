"""Chunks of a linear model's rows: how many rows, where their logits lie, and what is known of them."""

from __future__ import annotations

from typing import Any

from sce.backend import Array, Problem

# Bytes of a chunk's logits. Few rows make poor products, and much memory is what chunks are here to save.
_CACHED, _MOST = 8 << 20, 48 << 20
_ENOUGH = 512  # rows from which on products are as fast as they get
_TOGETHER = 16  # rows that a BLAS likes to take together
# Classes up to which a chunk lies in memory class after class, and bytes of a row of X from which on: then
# products are faster by up to a sixth, adding the bias is twice as fast, and the kernels do not mind.
_NARROW, _DEEP = 64, 384


def step(rows: int, row: int, *, sparse: bool, copied: int = 0) -> int:
    """The rows of a chunk, of `row` bytes each, and of so many more where X is copied."""
    # A sparse chunk's product with X^T has D rows, however few its own are.
    enough = _MOST // row if sparse else _ENOUGH
    row += copied
    most = min(max(_CACHED // row, enough), _MOST // row)
    return max(1, min(most // _TOGETHER * _TOGETHER or most, rows))


def matrix_in(memory: Array, rows: int, W: Array) -> Array:
    """A chunk's logits, in the order in which products with them are fastest."""
    features, classes = W.shape
    some = memory[: rows * classes]
    if classes <= _NARROW and features * W.itemsize >= _DEEP:
        return some.reshape(classes, rows).T
    return some.reshape(rows, classes)


def part(problem: Problem, where: Any, z: Array) -> Problem:
    """The same problem for some of its rows, a slice or their positions, whose logits are z."""
    labels, soft, weight = problem.labels, problem.distribution, problem.sample_weight
    return problem._replace(
        rows=len(z),
        logits=z[:, None],
        labels=None if labels is None else labels[where],
        distribution=None if soft is None else soft[where],
        sample_weight=None if weight is None else weight[where],
    )
