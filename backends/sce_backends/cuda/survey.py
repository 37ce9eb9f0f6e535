"""What labels and weights say before any logit is read: is a value illegal, what do weights add up to.

A block looks at a chunk. It leaves the first bad label's and weight's position, or -1, and the chunk's sum of
weights in two words, for totals.py. Bytes: one read of labels and weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .arithmetic import arithmetic
from .group import group
from .totals import CHUNK, THREADS

FOUND = 4  # positions that a block leaves: label, sample weight, class weight, bias


class Survey(NamedTuple):
    """What the machine code depends on: dtypes, and what there is."""

    labels: str
    class_weight: str
    sample_weight: str
    bias: str
    indexed: bool
    weighted: bool
    sampled: bool
    biased: bool
    ignores: bool


def arguments(spec: Survey) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    return (
        ("labels", f"*{spec.labels}"), ("class_weight", f"*{spec.class_weight}"),
        ("sample_weight", f"*{spec.sample_weight}"), ("bias", f"*{spec.bias}"), ("found", "*int64"),
        ("sums", "*float64"), ("n", "int64"), ("classes", "int64"), ("ignored", "int64"),
    )  # fmt: skip


def kernel(d: Any, spec: Survey) -> Callable[..., None]:
    math = arithmetic(d, "float64")
    team = group(d, math, THREADS)
    gather, best, accumulate = team.total, team.best, math.accumulate
    cuda = d.cuda
    read_label = d.reader(spec.labels, np.int64)
    read_class, read_sample, read_bias = (
        d.reader(x, np.float64) for x in (spec.class_weight, spec.sample_weight, spec.bias)
    )
    write_index, write = d.writer("int64", np.int64), d.writer("float64", np.float64)
    indexed, weighted, sampled, biased = spec.indexed, spec.weighted, spec.sampled, spec.biased
    ignores = spec.ignores
    inf, none = np.inf, np.int64(2**62)

    @d.inline
    def first(at):
        """The lowest of all threads' positions, -1 for none."""
        _, k = best(0.0, at)
        return k if k < none else np.int64(-1)

    def survey(labels, class_weight, sample_weight, bias, found, sums, n, classes, ignored):
        thread = cuda.threadIdx.x
        block = np.int64(cuda.blockIdx.x)
        end = min(n, (block + 1) * CHUNK)
        bad_label, bad_sample, bad_class, bad_bias = none, none, none, none
        h, t = 0.0, 0.0
        i = block * CHUNK + thread
        while i < end:
            u = 1.0
            if sampled:
                u = read_sample(sample_weight, i)
                if not abs(u) < inf and i < bad_sample:
                    bad_sample = i
            if indexed:
                y = read_label(labels, i)
                if ignores and y == ignored:
                    u = 0.0
                elif (y < 0 or y >= classes) and i < bad_label:
                    bad_label = i
                if weighted and u != 0.0:  # a label out of range counts as the nearest
                    u = u * read_class(class_weight, max(np.int64(0), min(y, classes - 1)))
            h, t = accumulate(h, t, u)
            i += THREADS
        if block == 0:
            k = np.int64(thread)
            while k < classes:
                if weighted and not abs(read_class(class_weight, k)) < inf and k < bad_class:
                    bad_class = k
                if biased and not read_bias(bias, k) < inf and k < bad_bias:
                    bad_bias = k
                k += THREADS
        bad_label, bad_sample = first(bad_label), first(bad_sample)
        bad_class, bad_bias = first(bad_class), first(bad_bias)
        h, t = gather(h, t)
        if thread == 0:
            write_index(found, block * 4, bad_label)
            write_index(found, block * 4 + 1, bad_sample)
            write_index(found, block * 4 + 2, bad_class)
            write_index(found, block * 4 + 3, bad_bias)
            write(sums, 2 * block, h)
            write(sums, 2 * block + 1, t)

    return survey
