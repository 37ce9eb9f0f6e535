"""What a kernel is told: one record of numbers and addresses, the same for every kernel."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from sce.backend import Array

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
    "late",  # a tile's gradient goes out while the next tile is computed
    "in_place",  # the gradient lies where the logits do
    "pieces", "second",  # of a row; is this the second pass over them?
    "run",  # rows of which each is as far from the next, and how far that is, in bytes:
    "row_step", "soft_step", "v_step", "grad_step", "hess_step", "product_step",
    "sharp",  # wanted is the logarithm of a sum that may be near 1: its largest term has to be exactly that
    "ignores", "ignored",  # is there an ignore_index, and which
)  # fmt: skip
_FLOATS = (
    "denominator", "unit",  # and 1 / denominator
    "grad_scale", "temperature", "softcap", "z_loss", "label_smoothing",
    "of_h",  # the factor of second derivatives: hess_scale over the temperature's square
    "of_q",  # the gradient's factor of dz: grad_scale, over the temperature where no soft cap has it
    "spare",  # target mass at no class: 1 for softmax
    "hess_scale", "hess_min",  # the latter -inf where there is none
)  # fmt: skip
_VECTORS = (  # addresses of contiguous arrays; 0 where there is none
    "labels", "class_weight", "sample_weight",
    "bias", "bias_lo",  # of the logits, (C,) each: high and low part in the compute dtype
    "loss", "z_loss_rows", "lse", "log_prob", "entropy", "argmax", "correct",
    "shared_mass", "other_mass",  # label smoothing's mass per class, and that of all other classes, float64
)  # fmt: skip
SCRATCH = (  # the same of memory to work in: plan.py says how large each part is
    "partial",  # (chunks, 2): the sums of loss and of its z-loss part
    "scratch", "wide", "blocks", "curves", "table", "exponentials", "lows", "slopes", "more", "masses",
    "lines", "found",
)  # fmt: skip
MATRICES = (
    "logits", "distribution", "direction", "grad", "hess_diag", "log_softmax", "hvp", "log_softmax_jvp",
)  # fmt: skip

PARAMETERS = np.dtype(
    [(name, np.int64) for name in _INTEGERS]
    + [(name, np.float64) for name in _FLOATS]
    + [(name, np.int64) for name in _VECTORS + SCRATCH]
    + [(name, MATRIX) for name in MATRICES]
)
_NAMES = _INTEGERS + _FLOATS + _VECTORS + SCRATCH
_PACKED = struct.Struct(f"={len(_INTEGERS)}q{len(_FLOATS)}d{len(_VECTORS + SCRATCH)}q{5 * len(MATRICES)}q")
PLACES = {name: k for k, name in enumerate(_NAMES)}
PLACES |= {name: len(_NAMES) + 5 * k + 1 for k, name in enumerate(MATRICES)}
"""Where each name stands in the record; of a matrix its address, between its dtype and its strides."""
SIZE = _PACKED.size


def start(values: Mapping[str, float], matrices: Mapping[str, tuple[int, tuple[int, ...]]]) -> list[float]:
    """The record's numbers, as far as they are known; what lies where is for execute.py to fill in."""
    numbers: list[float] = [0] * (len(_NAMES) + 5 * len(MATRICES))
    for name, value in values.items():
        numbers[PLACES[name]] = value
    for name, (dtype, strides) in matrices.items():
        place = PLACES[name]
        numbers[place - 1 : place + 4] = dtype, 0, *strides
    return numbers


def pack(numbers: list[float], memory: Array) -> None:
    """Write the record at the beginning of some bytes, at once: field by field would be slow."""
    _PACKED.pack_into(memory.data, 0, *numbers)
