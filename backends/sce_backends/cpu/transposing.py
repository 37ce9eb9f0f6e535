"""Rows in memory, and columns of them: on their way into a tile's scratch, and out of it."""

from __future__ import annotations

from typing import Any

from .cache import jit
from .memory import copy_bytes, get, narrow, put, row_at, size_of, widen
from .simd import (
    LINE,
    half_to_columns,
    half_to_rows,
    load,
    load_first,
    quarter_to_columns,
    quarter_to_rows,
    splat,
    store,
    store_first,
    to_columns,
    to_rows,
)


@jit()
def load_columns(p: Any, of: Any, one: Any, i: Any, rows: Any, matrix: Any, step: Any, x: Any) -> None:
    """x[k, j] = class k of row i + j of a matrix; zeros after the last row."""
    address = row_at(matrix, i // p.inner, i % p.inner)
    stride, n = matrix.of_c, p.classes
    lanes, size, column = LINE // size_of(one), size_of(one), p.tile * size_of(one)
    if rows % lanes:
        for k in range(n):
            store(one, x + k * column + rows // lanes * LINE, splat(type(one)(0)))
    if step == size_of(of):
        for k in range(n):
            source, to = address + k * stride, x + k * column
            for j in range(rows // lanes):
                store(one, to + j * LINE, load(of, source + j * lanes * step, one))
            if rows % lanes:
                j = rows // lanes
                some = load_first(of, source + j * lanes * step, one, rows % lanes, type(one)(0))
                store(one, to + j * LINE, some)
    elif stride == size_of(of) and rows >= lanes:
        for first in range(0, rows, lanes):
            j = min(first, rows - lanes)  # the last ones twice, rather than row by row
            for k in range(0, n, lanes):
                source, to = address + j * step + k * stride, x + k * column + j * size
                if n - k > lanes // 2:
                    to_columns(of, one, source, step, n - k, to, column)
                elif n - k > lanes // 4:
                    half_to_columns(of, one, source, step, n - k, to, column)
                else:
                    quarter_to_columns(of, one, source, step, n - k, to, column)
    else:
        for k in range(n):
            for j in range(rows):
                number = type(one)(widen(get(of, address + j * step + k * stride)))
                put(one, x + k * column + j * size, number)


@jit()
def store_columns(
    p: Any, one: Any, into: Any, i: Any, rows: Any, x: Any, matrix: Any, step: Any, s: Any
) -> None:
    """The way back, from columns at x to rows i .. i + rows of a matrix."""
    address = row_at(matrix, i // p.inner, i % p.inner)
    stride, n = matrix.of_c, p.classes
    lanes, size, column = LINE // size_of(one), size_of(one), p.tile * size_of(one)
    if step == size_of(into):
        for k in range(n):
            source, to = x + k * column, address + k * stride
            for j in range(rows // lanes):
                store(into, to + j * lanes * step, load(one, source + j * LINE, one))
            if rows % lanes:
                j = rows // lanes
                store_first(into, to + j * lanes * step, load(one, source + j * LINE, one), rows % lanes)
    elif stride == size_of(into) and rows >= lanes:
        to = s.lines if p.past_caches else address
        for first in range(0, rows, lanes):
            j = min(first, rows - lanes)
            for k in range(0, n, lanes):
                source, row = x + k * column + j * size, to + j * step + k * stride
                if n - k > lanes // 2:
                    to_rows(one, into, source, column, n - k, row, step)
                elif n - k > lanes // 4:
                    half_to_rows(one, into, source, column, n - k, row, step)
                else:
                    quarter_to_rows(one, into, source, column, n - k, row, step)
        if p.past_caches:
            copy_bytes(address, s.lines, rows * step, True)
    else:
        for j in range(rows):
            for k in range(n):
                g = get(one, x + k * column + j * size)
                put(into, address + j * step + k * stride, narrow(g, into))
