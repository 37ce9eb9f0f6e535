"""What a binary problem's labels and weights say before any logit is read, as survey.py does for rows.

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


class BinarySurvey(NamedTuple):
    """What the machine code depends on: dtypes, and what there is."""

    target: str
    sample_weight: str
    pos_weight: str
    labelled: bool
    sampled: bool
    weighted: bool
    ignores: bool


def arguments(spec: BinarySurvey) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    return (
        ("target", f"*{spec.target}"), ("sample_weight", f"*{spec.sample_weight}"),
        ("pos_weight", f"*{spec.pos_weight}"), ("found", "*int64"), ("sums", "*float64"), ("n", "int64"),
        ("inner", "int64"), ("ignored", "int64"),
        *((f"{name}_{axis}", "int64") for name in ("target", "sample_weight", "pos_weight") for axis in "ab"),
    )  # fmt: skip


def kernel(d: Any, spec: BinarySurvey) -> Callable[..., None]:
    math = arithmetic(d, "float64")
    team = group(d, math, THREADS)
    gather, best, accumulate = team.total, team.best, math.accumulate
    cuda = d.cuda
    read_label = d.reader(spec.target if spec.labelled else "int64", np.int64)
    read_u, read_w = d.reader(spec.sample_weight, np.float64), d.reader(spec.pos_weight, np.float64)
    write_index, write = d.writer("int64", np.int64), d.writer("float64", np.float64)
    labelled, sampled, weighted, ignores = spec.labelled, spec.sampled, spec.weighted, spec.ignores
    inf, none = np.inf, np.int64(2**62)

    @d.inline
    def first(at):
        """The lowest of all threads' positions, -1 for none."""
        _, k = best(0.0, at)
        return k if k < none else np.int64(-1)

    def survey(
        target, sample_weight, pos_weight, found, sums, n, inner, ignored, y_a, y_b, u_a, u_b, w_a, w_b
    ):
        thread = cuda.threadIdx.x
        block = np.int64(cuda.blockIdx.x)
        end = min(n, (block + 1) * CHUNK)
        bad_label, bad_sample, bad_pos = none, none, none
        h, t = 0.0, 0.0
        i = block * CHUNK + thread
        while i < end:
            a = i // inner
            b = i - a * inner
            u = 1.0
            if sampled:
                u = read_u(sample_weight, a * u_a + b * u_b)
                if not abs(u) < inf and i < bad_sample:
                    bad_sample = i
            if weighted and not abs(read_w(pos_weight, a * w_a + b * w_b)) < inf and i < bad_pos:
                bad_pos = i
            if labelled:
                y = read_label(target, a * y_a + b * y_b)
                if ignores and y == ignored:
                    u = 0.0
                elif (y < 0 or y > 1) and i < bad_label:
                    bad_label = i
            h, t = accumulate(h, t, u)
            i += THREADS
        bad_label, bad_sample, bad_pos = first(bad_label), first(bad_sample), first(bad_pos)
        h, t = gather(h, t)
        if thread == 0:
            write_index(found, block * 4, bad_label)
            write_index(found, block * 4 + 1, bad_sample)
            write_index(found, block * 4 + 2, bad_pos)
            write_index(found, block * 4 + 3, np.int64(-1))
            write(sums, 2 * block, h)
            write(sums, 2 * block + 1, t)

    return survey
