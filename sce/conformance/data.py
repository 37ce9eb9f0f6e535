"""Logits, targets and weights for cases: seeded by the case's name, so that each is the same everywhere."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.random import Generator

from sce.backend import Array

CONFIDENT = 30.0


def generator(name: str) -> Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def index(rng: Generator, rows: int, classes: int) -> Array:
    return rng.integers(0, classes, rows)


def simplex(rng: Generator, rows: int, classes: int) -> Array:
    """A distribution per row."""
    y = rng.exponential(size=(rows, classes))
    return np.asarray(y / y.sum(axis=1, keepdims=True))


def normal(rng: Generator, rows: int, classes: int, scale: float = 3.0) -> Array:
    return rng.normal(size=(rows, classes)) * scale


def confident(x: Array, y: Array) -> Array:
    """The same logits, with the first row sure of its label and the second sure of another class."""
    x = x.copy()
    x[0, y[0]] += CONFIDENT
    x[1, (y[1] + 1) % x.shape[1]] += CONFIDENT
    return x
