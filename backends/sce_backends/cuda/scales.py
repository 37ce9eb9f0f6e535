"""Each row's scale from labels and weights, in two words, so that rows.py needs no float64.

Bytes: 16 or 32 written per row, and what is read of labels and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

THREADS = 256


class Scales(NamedTuple):
    """What the machine code depends on: dtypes, and which options are on."""

    labels: str
    class_weight: str
    sample_weight: str
    into: str
    weighted: bool
    sampled: bool
    device_total: bool


def arguments(spec: Scales) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    return (
        ("labels", f"*{spec.labels}"), ("class_weight", f"*{spec.class_weight}"),
        ("sample_weight", f"*{spec.sample_weight}"), ("total", "*float64"), ("scales", f"*{spec.into}"),
        ("n", "int64"), ("classes", "int64"), ("denominator", "float64"), ("of_grad", "float64"),
    )  # fmt: skip


def kernel(d: Any, spec: Scales) -> Callable[..., None]:
    cuda = d.cuda
    real = np.dtype(spec.into).type
    read_label = d.reader(spec.labels, np.int64)
    read_class, read_sample = (d.reader(x, np.float64) for x in (spec.class_weight, spec.sample_weight))
    read_total, write = d.reader("float64", np.float64), d.writer(spec.into, np.float64)
    weighted, sampled, device_total = spec.weighted, spec.sampled, spec.device_total
    nan, inf = np.nan, np.inf

    @d.inline
    def put(scales, at, value):
        """A float64 as two words."""
        high = real(value)
        write(scales, at, value)
        low = value - np.float64(high)
        write(scales, at + 1, low if abs(np.float64(high)) < inf else 0.0)

    def scales(labels, class_weight, sample_weight, total, scales, n, classes, denominator, of_grad):
        i = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        if i < n:
            u, divisor = 1.0, denominator
            if device_total:
                divisor = read_total(total, 0)
            if sampled:
                u = read_sample(sample_weight, i)
            counted = u != 0.0 and divisor != 0.0
            if weighted:
                y = read_label(labels, i)
                if y >= 0 and y < classes:
                    u = u * read_class(class_weight, y)
            s = u / divisor if counted else 0.0
            put(scales, 4 * i, s)
            put(scales, 4 * i + 2, s * of_grad)
            if not counted:
                write(scales, 4 * i + 3, nan)

    return scales
