"""Sums over rows in float64, in an order that the number of rows fixes: the same bits from run to run.

Blocks sum up chunks, and a second launch of one block what they found. No atomics. Bytes: one read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arithmetic import arithmetic
from .group import group

THREADS = 256
CHUNK = 1 << 14  # values that a block sums up


class Totals(NamedTuple):
    """What the machine code depends on. `values` has one word per row, or with `pairs` two."""

    values: str
    pairs: bool
    into: str
    last: bool  # it writes the answer, not pairs for the next launch
    device_total: bool  # the denominator is read from the device


def arguments(spec: Totals) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    return (
        ("values", f"*{spec.values}"), ("into", f"*{spec.into}"), ("total", "*float64"), ("n", "int64"),
        ("denominator", "float64"), ("empty", "float64"),
    )  # fmt: skip


def kernel(d: Any, spec: Totals) -> Callable[..., None]:
    math = arithmetic(d, "float64")
    gather, add, finish = group(d, math, THREADS).total, math.add, math.finish
    cuda = d.cuda
    read, write = d.reader(spec.values, np.float64), d.writer(spec.into, np.float64)
    read_total = d.reader("float64", np.float64)
    pairs, last, device_total = spec.pairs, spec.last, spec.device_total

    def totals(values, into, total, n, denominator, empty):
        """into[block] = the sum of values[block * CHUNK : (block + 1) * CHUNK]."""
        thread = cuda.threadIdx.x
        block = np.int64(cuda.blockIdx.x)
        end = min(n, (block + 1) * CHUNK)
        i = block * CHUNK + thread
        h, t = 0.0, 0.0
        while i < end:
            if pairs:
                h, t = add(h, t, read(values, 2 * i), read(values, 2 * i + 1))
            else:
                h, t = add(h, t, read(values, i), 0.0)
            i += THREADS
        h, t = gather(h, t)
        if thread == 0:
            if last:
                value = finish(h, t)
                divisor = denominator
                if device_total:
                    divisor = read_total(total, 0)
                if divisor == 0.0:
                    value = empty
                write(into, 0, value)
            else:
                write(into, 2 * block, h)
                write(into, 2 * block + 1, t)

    return totals
