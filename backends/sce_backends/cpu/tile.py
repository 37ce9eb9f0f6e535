"""A tile of rows: what a worker keeps of them, and where."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from numba import types
from numba.extending import overload

from .cache import jit
from .memory import size_of
from .simd import LINE

BLOCK = 512  # classes taken at once
AHEAD = 32768  # bytes that are fetched ahead of them
TILE = 128  # rows of a tile, at most
SLACK = 32.0  # how far a row may rise above its pivot

# Where a tile's values begin, columns of TILE float64, in bytes: what `settle` is given, what it leaves, and
# the addresses of the rows of logits, gradient, Hessian and target, which are integers.
VALUES, COLUMN = 24, TILE * 8
_PLACES = range(0, VALUES * COLUMN, COLUMN)
SCALE, TARGET, MASS_Y, MASS, PIVOT, PIVOT_LO, GAP, GAP_LO = _PLACES[:8]
REST, DOT, OF_P, AT_Y, LOSS, Z_LOSS, ROW, OUT = _PLACES[8:16]
TOP, INVERSE, OF_H, H_TOP, H_Y, LEAST, OUT_H = _PLACES[16:23]  # for the Hessian's diagonal alone
MASSES = _PLACES[23]  # for distributions alone

# The witnesses that kernels are compiled for: `one` a number of the compute dtype, `of` and `into` of the
# types that logits and gradient have in memory. Switches are True, or None and compiled away: `plain`, the
# logits can be read where they lie; the others are options.

Scratch = namedtuple("Scratch", "z lo curve table tile lows slope line first stop")
Scratch.__doc__ = """A worker's memory: addresses, because arrays would be copied from call to call.

z, lo: of BLOCK numbers of the compute dtype, curve of float64. table: the values. tile: of the exponentials,
rows of p.width numbers of the compute dtype; lows, of short rows' lo, the same; slope, of dz/dx under a soft
cap, in float64. line: of two cache lines. And the classes that it is for: first .. stop.
"""


@jit()
def scratch_of(p: Any, one: Any, worker: Any, first: Any, stop: Any) -> Any:
    """A worker's."""
    size, table = BLOCK * size_of(one), VALUES * COLUMN  # and two lines
    return Scratch(
        p.blocks + 2 * worker * size,
        p.blocks + (2 * worker + 1) * size,
        p.curves + worker * BLOCK * 8,
        p.table + worker * (table + 2 * LINE),
        p.exponentials + worker * p.tile_bytes,
        p.lows + worker * p.tile_bytes,
        p.slopes + worker * p.tile * p.width * 8,
        p.table + worker * (table + 2 * LINE) + table,
        first,
        stop,
    )


def address_in(base: Any, offset: Any, on: Any) -> Any:
    """base + offset, or None where `on` is."""


@overload(address_in, jit_options={"forceinline": True})
def _address_in(base: Any, offset: Any, on: Any) -> Any:
    if isinstance(on, types.NoneType):

        def nothing(base: Any, offset: Any, on: Any) -> Any:
            return None

        return nothing

    def address(base: Any, offset: Any, on: Any) -> Any:
        return base + offset

    return address
