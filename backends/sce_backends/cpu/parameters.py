"""What a kernel is told: one record of numbers and addresses, the same for every kernel."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .memory import MATRIX

_INTEGERS = (
    "rows", "inner", "classes",  # the shape: row i is [i // inner, i % inner]
    "chunk",  # rows per chunk
    "tile", "width",  # rows of a tile, and their length in scratch: the classes in whole vectors
    "tile_bytes",  # of a worker's part of `exponentials` and of `lows`
    "length",  # of a row of `scratch` and `wide`: at least the classes and rows.BLOCK
    "direct",  # a row of logits can be read where it lies (the compute dtype, contiguous, no
    # transformation), and a row of the gradient can be written where it goes
    "past_caches",  # the gradient is too large for them and has no gaps: stream it
    "in_place",  # the gradient lies where the logits do
    "pieces", "second",  # of a row; is this the second pass over them?
    "run", "row_step", "grad_step",  # rows of which each is as far from the next, and how far, in bytes
    "ignores", "ignored",  # is there an ignore_index, and which
)  # fmt: skip
_FLOATS = (
    "denominator", "unit",  # and 1 / denominator
    "grad_scale", "temperature", "softcap", "z_loss", "label_smoothing",
    "of_q",  # the gradient's factor of dz: grad_scale, over the temperature where no soft cap has it
    "spare",  # target mass at no class: 1 for softmax
)  # fmt: skip
_VECTORS = (  # addresses of contiguous arrays; 0 where there is none
    "labels", "class_weight", "sample_weight",
    "bias", "bias_lo",  # of the logits, (C,) each: high and low part in the compute dtype
    "loss", "z_loss_rows", "lse", "log_prob", "entropy", "argmax", "correct",
    "shared_mass", "other_mass",  # label smoothing's mass per class, and that of all other classes, float64
    "partial",  # (chunks, 2): the sums of loss and of its z-loss part
)  # fmt: skip
SCRATCH = (  # the same of memory to work in: plan.py says how large each worker's part is
    "scratch", "wide", "blocks", "curves", "table", "exponentials", "lows", "slopes", "lines", "found",
)  # fmt: skip
_MATRICES = ("logits", "distribution", "grad", "hess_diag", "log_softmax")

PARAMETERS = np.dtype(
    [(name, np.int64) for name in _INTEGERS]
    + [(name, np.float64) for name in _FLOATS]
    + [(name, np.int64) for name in _VECTORS + SCRATCH]
    + [(name, MATRIX) for name in _MATRICES]
)
_NAMES = _INTEGERS + _FLOATS + _VECTORS + SCRATCH
_PACKED = struct.Struct(f"={len(_INTEGERS)}q{len(_FLOATS)}d{len(_VECTORS + SCRATCH)}q{5 * len(_MATRICES)}q")
_PLACES = {name: k for k, name in enumerate(_NAMES)}
_PLACES |= {name: len(_NAMES) + 5 * k for k, name in enumerate(_MATRICES)}
SECOND = _PLACES["second"]


def start(facts: Mapping[str, int]) -> list[float]:
    """The record's numbers, of which some are known; the others are 0."""
    numbers: list[float] = [0] * (len(_NAMES) + 5 * len(_MATRICES))
    for name, value in facts.items():
        numbers[_PLACES[name]] = value
    return numbers


def pack(
    started: list[float], values: Mapping[str, Any], matrices: Mapping[str, tuple[int, ...]]
) -> np.ndarray[Any, Any]:
    """The record, as integers. Setting its fields one by one would take longer than a small problem."""
    numbers = started.copy()
    for name, value in values.items():
        numbers[_PLACES[name]] = value
    for name, matrix in matrices.items():
        place = _PLACES[name]
        numbers[place : place + 5] = matrix
    return np.frombuffer(bytearray(_PACKED.pack(*numbers)), np.int64)
