"""Float64 values of a vector of rows: of float32 lanes they are two vectors, one after the other."""

from __future__ import annotations

from typing import Any

from numba.extending import overload

from .cache import inline
from .simd import F32, LINE, halves, joined, load, select, splat, store


def put_wide(at: Any, x: Any) -> None:
    """A vector to an address, as float64."""


@overload(put_wide, jit_options={"forceinline": True})
def _put_wide(at: Any, x: Any) -> Any:
    def put32(at: Any, x: Any) -> None:
        a, b = halves(x)
        store(1.0, at, a)
        store(1.0, at + LINE, b)

    def put64(at: Any, x: Any) -> None:
        store(1.0, at, x)

    return put32 if x.of == F32 else put64


@inline()
def add_wide(at: Any, x: Any, k: Any) -> None:
    """Add 16 float32 to the float64 at an address; k = 0 begins the sum."""
    a, b = halves(x)
    if k > 0:
        a, b = a + load(1.0, at, 1.0), b + load(1.0, at + LINE, 1.0)
    store(1.0, at, a)
    store(1.0, at + LINE, b)


def in_parts(one: Any, at: Any) -> Any:
    """(high, low): the float64 at an address, a vector of `one`'s type, and what that rounding lost."""


@overload(in_parts, jit_options={"forceinline": True})
def _in_parts(one: Any, at: Any) -> Any:
    def parts32(one: Any, at: Any) -> Any:
        a, b = load(1.0, at, 1.0), load(1.0, at + LINE, 1.0)
        high = joined(a, b)
        c, d = halves(high)
        low = joined(a - c, b - d)
        return high, select(low - low == 0.0, low, splat(one - one))  # nothing is lost of an infinity

    def parts64(one: Any, at: Any) -> Any:
        return load(1.0, at, 1.0), splat(0.0)

    return parts32 if one == F32 else parts64
