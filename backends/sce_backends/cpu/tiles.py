"""The rows that most calls consist of, a tile of some at a time: loss, gradient and the Hessian's diagonal.

Three passes over a tile, of which only the first reads memory and only the last writes it:

1. `statistics` (labels.py, distributions.py): row by row, e_k = exp(z_k - pivot) into scratch, and their sum;
2. `settle` (settling.py): what becomes of these statistics, for all rows of the tile at once: it takes
   logarithms and divides, and vectors make that cheap where rows are short;
3. `write_row` (writing.py): row by row, the gradient is e_k times a coefficient, and goes out, during the
   first pass over the next tile.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import distributions, labels
from .cache import jit
from .memory import fence, put, row_at, view_of_records
from .parameters import PARAMETERS
from .reading import targets
from .settling import put_sums, settle, take_losses
from .tile import MASSES, OUT, OUT_H, ROW, scratch_of
from .writing import elsewhere, write_rows


@jit()
def work(
    worker: Any, first: Any, last: Any, parameters: Any, of: Any, one: Any, into: Any, plain: Any,
    smooth: Any, soft: Any, affine: Any, capped: Any, grad: Any, hess: Any,
) -> None:  # fmt: skip
    """Chunks first .. last, as kernel.work."""
    p, mass = view_of_records(PARAMETERS, parameters)[0], elsewhere(smooth, soft)
    own, none = (1 + p.late) * worker, np.int64(0)
    s, before = scratch_of(p, one, own, none, p.classes), scratch_of(p, one, own + p.late, none, p.classes)
    for chunk in range(first, last):
        sums, held = (0.0, 0.0, 0.0, 0.0), none
        stop = min(p.rows, (chunk + 1) * p.chunk)
        for i in range(chunk * p.chunk, stop, p.tile):
            rows = min(p.tile, stop - i)
            statistics(
                p, of, one, into, i, rows, plain, smooth, soft, affine, capped, grad, hess, s, before, held
            )
            settle(s.table, one, rows, p, hess)
            sums = take_losses(p, one, i, rows, s.table, sums)
            if grad is not None:
                if p.late:
                    s, before, held = before, s, rows
                else:
                    write_rows(p, one, into, none, rows, mass, capped, hess, s)
        if grad is not None:
            write_rows(p, one, into, none, held, mass, capped, hess, before)
        put_sums(p, chunk, sums)
    if p.past_caches:
        fence()


@jit()
def statistics(
    p: Any, of: Any, one: Any, into: Any, i: Any, rows: Any, plain: Any, smooth: Any, soft: Any, affine: Any,
    capped: Any, grad: Any, hess: Any, s: Any, before: Any, held: Any,
) -> None:  # fmt: skip
    """The inputs of `settle` for rows i .. i + rows, and their exponentials.

    Row by row the gradient of the tile before, which has `held` rows, goes out: memory takes it while the
    processor is computing. All of it at once would have to wait for memory.
    """
    a, b = i // p.inner, i % p.inner
    for j in range(rows):
        put(np.int64(0), s.table + j * 8 + ROW, row_at(p.logits, a, b))
        put(np.int64(0), s.table + j * 8 + OUT, row_at(p.grad, a, b))
        if hess is not None:
            put(np.int64(0), s.table + j * 8 + OUT_H, row_at(p.hess_diag, a, b))
        if soft is not None:
            put(np.int64(0), s.table + j * 8 + MASSES, row_at(p.distribution, a, b))
        b += 1
        if b == p.inner:
            a, b = a + 1, np.int64(0)
    targets(p, i, rows, smooth, s.table)
    if soft is None:
        labels.statistics(p, of, one, into, rows, plain, smooth, affine, capped, grad, hess, s, before, held)
    else:
        distributions.statistics(p, of, one, into, soft, rows, plain, affine, capped, grad, s, before, held)
    if grad is not None:
        write_rows(p, one, into, rows, held, elsewhere(smooth, soft), capped, hess, before)
