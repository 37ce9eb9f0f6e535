"""Jacobians of softmax and log-softmax: C rows of C numbers for each row of logits.

A row's probabilities are found once, in float64, and every number of its Jacobian is a product of two of
them, rounded once. What is made lies in a buffer first, which stays in the cache, because rows begin anywhere
in a line: it leaves in whole lines, past the caches where the answer is larger than they are.

For few classes vectors run over the rows, and are turned on their way out; for others, over the classes.
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
from numba.extending import overload

from .cache import jit
from .exponentials import LANES, below_top, exp_and_rest, plus, read_row, top_of
from .memory import copy_bytes, fence, get, narrow, put, size_of, view_of_records, widen
from .simd import (
    F32,
    F64,
    LINE,
    fused,
    half_to_rows,
    joined,
    load,
    quarter_to_rows,
    select,
    splat,
    store,
    to_columns,
    to_rows,
)

FEW = 16  # classes, up to which vectors run over the rows
BLOCK = 16  # rows that these take at once; 8 of float64
BUFFER = 1 << 14  # bytes that leave at once
INTEGERS = (
    "rows", "inner", "classes",  # row i of the logits is [i // inner, i % inner]
    "logits", "of_a", "of_b", "of_c",  # address and strides in bytes
    "apart",  # bytes from each row to the next; 0 where they are not equally far
    "out",
    "chunk",  # rows in a chunk, or lines of a Jacobian where it has several
    "pieces",  # chunks of a Jacobian
    "of_log", "past_caches",
    "scratch", "vector", "turned", "slot",  # bytes: of p, less and diagonal each; of all scratch
)  # fmt: skip
FLOATS = ("by", "by_lo")  # 1 / temperature
PARAMETERS = np.dtype([(name, np.int64) for name in INTEGERS] + [(name, np.float64) for name in FLOATS])

# Addresses. Float64: p, a row's probabilities p_k; less, -p_k / T; diagonal, that of the Jacobian. turned: a
# block's Jacobians, one number of each side by side.
Scratch = namedtuple("Scratch", "p less diagonal turned buffer")


@jit()
def factors(p: Any, of: Any, one: Any, i: Any, s: Any) -> None:
    """Of row i, what its Jacobian is made of."""
    n = p.classes
    read_row(of, p.logits + i // p.inner * p.of_a + i % p.inner * p.of_b, p.of_c, n, s.p, -np.inf)
    t, top = top_of(s.p, n)
    rest = exp_and_rest(one, s.p, n, t, top, p.by, p.by_lo)
    for at in range(0, n * 8, LINE):
        prob = load(1.0, s.p + at, 1.0) / (rest + 1.0)
        others = (1.0 - prob) * p.by  # but at the maximum p <= 1/2, and nothing cancels
        store(1.0, s.p + at, prob)
        store(1.0, s.less + at, fused(prob, splat(-p.by), splat(0.0)))  # 0, not -0
        store(1.0, s.diagonal + at, others if p.of_log else others * prob)
    sure, others = 1.0 / (rest + 1.0), rest / (rest + 1.0) * p.by
    put(1.0, s.p + t * 8, sure)
    put(1.0, s.less + t * 8, -sure * p.by)
    put(1.0, s.diagonal + t * 8, others if p.of_log else others * sure)


def put_products(into: Any, to: Any, by: Any, less: Any, n: Any) -> None:
    """by * less_k, k < n; and then whatever, up to whole vectors."""


@overload(put_products, jit_options={"error_model": "numpy"})
def _put_products(into: Any, to: Any, by: Any, less: Any, n: Any) -> Any:
    def narrowed(into: Any, to: Any, by: Any, less: Any, n: Any) -> None:
        for k in range(0, n, 2 * LANES):
            a = fused(load(1.0, less + k * 8, 1.0), splat(by), splat(0.0))
            b = fused(load(1.0, less + k * 8 + LINE, 1.0), splat(by), splat(0.0))
            store(into, to + k * size_of(into), joined(a, b))

    def whole(into: Any, to: Any, by: Any, less: Any, n: Any) -> None:
        for k in range(0, n, LANES):
            store(1.0, to + k * 8, fused(load(1.0, less + k * 8, 1.0), splat(by), splat(0.0)))

    return whole if into == F64 else narrowed


@jit()
def by_rows(p: Any, of: Any, one: Any, begin: Any, end: Any, start: Any, stop: Any, s: Any) -> None:
    """Lines start .. stop of the Jacobians of rows begin .. end."""
    n, size = p.classes, size_of(of)
    to, filled = p.out + (begin * n + start) * n * size, np.int64(0)
    for i in range(begin, end):
        factors(p, of, one, i, s)
        for k in range(start, stop):
            by = 1.0 if p.of_log else get(1.0, s.p + k * 8)
            # The next line is written over what is behind this one's end.
            put_products(of, s.buffer + filled, by, s.less, n)
            put(of, s.buffer + filled + k * size, narrow(get(1.0, s.diagonal + k * 8), of))
            filled += n * size
            if filled >= BUFFER:
                copy_bytes(to, s.buffer, filled, p.past_caches)
                to, filled = to + filled, np.int64(0)
    copy_bytes(to, s.buffer, filled, p.past_caches)


@jit()
def load_block(p: Any, of: Any, i: Any, rows: Any, x: Any, column: Any) -> None:
    """x[k, j] = class k of row i + j, for 8 rows; zeros after the last one."""
    n, size, address = p.classes, size_of(of), p.logits + i // p.inner * p.of_a + i % p.inner * p.of_b
    if rows >= LANES and p.apart == size:
        for k in range(n):
            store(1.0, x + k * column, load(of, address + k * p.of_c, 1.0))
    elif rows >= LANES and p.apart and p.of_c == size:
        for k in range(0, n, LANES):
            to_columns(of, 1.0, address + k * size, p.apart, n - k, x + k * column, column)
    else:
        for k in range(n):
            store(1.0, x + k * column, splat(0.0))
            for j in range(min(rows, LANES)):
                a, b = (i + j) // p.inner, (i + j) % p.inner
                number = widen(get(of, p.logits + a * p.of_a + b * p.of_b + k * p.of_c))
                put(1.0, x + k * column + j * 8, np.float64(number))


@jit()
def block_factors(p: Any, one: Any, column: Any, s: Any) -> None:
    """`factors` of 8 rows, whose logits lie where the probabilities go, in columns."""
    end = p.classes * column
    top = splat(-np.inf)
    for at in range(s.p, s.p + end, column):
        z = load(1.0, at, 1.0)
        top = select(z > top, z, top)
    rest, most = (top - top, splat(0.0)), splat(0.0)
    for at in range(s.p, s.p + end, column):
        e = below_top(one, load(1.0, at, 1.0), top, p.by, p.by_lo)
        store(1.0, at, e)
        above = e > most
        rest = plus(one, rest, select(above, most, e))
        most = select(above, e, most)
    others = rest[0] + rest[1]
    total = others + 1.0
    sure_of_others = others / total
    for at in range(0, end, column):
        e = load(1.0, s.p + at, 1.0)
        prob = e / total
        others = select(e == 1.0, sure_of_others, 1.0 - prob) * p.by
        store(1.0, s.p + at, prob)
        store(1.0, s.less + at, fused(prob, splat(-p.by), splat(0.0)))
        store(1.0, s.diagonal + at, others if p.of_log else others * prob)


def product_of(one: Any, by: Any, less: Any) -> Any:
    """The products of a block's columns: of 16 rows as float32, of 8 as float64."""


@overload(product_of, jit_options={"forceinline": True})
def _product_of(one: Any, by: Any, less: Any) -> Any:
    def for32(one: Any, by: Any, less: Any) -> Any:
        zero = splat(0.0)
        a = fused(load(1.0, by, 1.0), load(1.0, less, 1.0), zero)
        return joined(a, fused(load(1.0, by + LINE, 1.0), load(1.0, less + LINE, 1.0), zero))

    def for64(one: Any, by: Any, less: Any) -> Any:
        return fused(load(1.0, by, 1.0), load(1.0, less, 1.0), splat(0.0))

    return for32 if one == F32 else for64


def column_of(one: Any, x: Any) -> Any:
    """A column of a block, in the same way."""


@overload(column_of, jit_options={"forceinline": True})
def _column_of(one: Any, x: Any) -> Any:
    def for32(one: Any, x: Any) -> Any:
        return joined(load(1.0, x, 1.0), load(1.0, x + LINE, 1.0))

    def for64(one: Any, x: Any) -> Any:
        return load(1.0, x, 1.0)

    return for32 if one == F32 else for64


@jit()
def put_block(p: Any, of: Any, one: Any, column: Any, to: Any, s: Any) -> None:
    """The Jacobians of a block's rows, one after the other."""
    n, size, lanes = p.classes, size_of(of), LINE // size_of(one)
    for k in range(n):
        line = s.turned + k * n * LINE
        # Two loops: with the question in one, LLVM 22 answered it with yes for k = 0 and n < 4.
        if p.of_log:
            for j in range(n):
                store(one, line + j * LINE, column_of(one, s.less + j * column))
        else:
            for j in range(n):
                store(one, line + j * LINE, product_of(one, s.p + k * column, s.less + j * column))
        store(one, line + k * LINE, column_of(one, s.diagonal + k * column))
    for k in range(0, n * n, lanes):
        source, left, row = s.turned + k * LINE, n * n - k, to + k * size
        if left > lanes // 2:
            to_rows(one, of, source, LINE, left, row, n * n * size)
        elif left > lanes // 4:
            half_to_rows(one, of, source, LINE, left, row, n * n * size)
        else:
            quarter_to_rows(one, of, source, LINE, left, row, n * n * size)


@jit()
def by_columns(p: Any, of: Any, one: Any, begin: Any, end: Any, s: Any) -> None:
    """The Jacobians of rows begin .. end."""
    size = p.classes * p.classes * size_of(of)
    block = LINE // size_of(one)
    column = block * 8
    to, filled = p.out + begin * size, np.int64(0)
    for i in range(begin, end, block):
        rows = min(block, end - i)
        for part in range(0, block, LANES):
            at = part * 8
            own = Scratch(s.p + at, s.less + at, s.diagonal + at, s.turned, s.buffer)
            load_block(p, of, i + part, rows - part, own.p, column)
            block_factors(p, one, column, own)
        put_block(p, of, one, column, s.buffer + filled, s)
        filled += rows * size
        if filled >= BUFFER:
            copy_bytes(to, s.buffer, filled, p.past_caches)
            to, filled = to + filled, np.int64(0)
    copy_bytes(to, s.buffer, filled, p.past_caches)


@jit()
def work(worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any) -> None:
    """Chunks first .. last. `of` is a number of the type of logits and answer, `one` of what it is read as.

    Moves n logits in and n^2 numbers out per row; where a Jacobian has several chunks, each begins anew.
    """
    p = view_of_records(PARAMETERS, parameters)[0]
    x = p.scratch + worker * p.slot
    s = Scratch(x, x + p.vector, x + 2 * p.vector, x + 3 * p.vector, x + 3 * p.vector + p.turned)
    for chunk in range(first, last):
        if p.pieces > 1:
            i, start = chunk // p.pieces, chunk % p.pieces * p.chunk
            by_rows(p, of, one, i, i + 1, start, min(p.classes, start + p.chunk), s)
            continue
        begin, end = chunk * p.chunk, min(p.rows, (chunk + 1) * p.chunk)
        if p.classes <= FEW:
            by_columns(p, of, one, begin, end, s)
        else:
            by_rows(p, of, one, begin, end, np.int64(0), p.classes, s)
    if p.past_caches:
        fence()
