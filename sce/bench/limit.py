"""What this machine could do: the fastest copy of the matrix (loss and gradient), the fastest read (loss)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from sce import machine
from sce.backend import Array

Kernel = Callable[..., Any]


def copies(source: Array, target: Array, pool: ThreadPoolExecutor) -> dict[str, Callable[[], object]]:
    """Ways to copy `source` to `target` (contiguous, of one size), on one thread and on all.

    Each moves 2 * source.nbytes. "plain" is np.copyto; "streaming" writes past the caches, so that no line
    is read before it is written: of use past the caches only, and it needs Numba.
    """
    src, dst = as_bytes(source), as_bytes(target)
    ways: dict[str, Callable[[], object]] = {"plain, 1 thread": lambda: np.copyto(dst, src)}
    parts = [(dst[cut], src[cut]) for cut in _cuts(src.size)]
    many = f"{len(parts)} threads"
    if len(parts) > 1:
        ways[f"plain, {many}"] = lambda: list(pool.map(lambda part: np.copyto(*part), parts))
    if 2 * src.size > machine.last_level_cache() and (kernels := _kernels()) is not None:
        stream = kernels[0]
        ways[f"streaming, {many}"] = lambda: list(pool.map(lambda part: stream(*part), parts))
    return ways


def reads(source: Array, pool: ThreadPoolExecutor) -> dict[str, Callable[[], object]]:
    """Ways to read every byte of `source` once, on one thread and on all."""
    src = as_bytes(source)
    kernels = _kernels()
    read: Kernel = kernels[1] if kernels else _sum_words
    parts = [src[cut] for cut in _cuts(src.size)]
    ways: dict[str, Callable[[], object]] = {"1 thread": lambda: read(src)}
    if len(parts) > 1:
        ways[f"{len(parts)} threads"] = lambda: list(pool.map(read, parts))
    return ways


def as_bytes(x: Array) -> Array:
    """The memory of a contiguous array, in either order, as bytes."""
    flat = x.ravel(order="K").view(np.uint8)
    if not np.may_share_memory(flat, x) and x.size:
        raise ValueError("the limit is measured on contiguous arrays.")
    return flat


def _cuts(size: int) -> list[slice]:
    """A part for each thread, in whole pages: two threads never write into one cache line."""
    cuts = np.linspace(0, size, machine.threads() + 1).astype(np.int64)
    cuts[1:-1] &= ~4095
    return [slice(a, b) for a, b in pairwise(cuts.tolist()) if b > a] or [slice(0, size)]


def _sum_words(x: Array) -> Any:
    return np.add.reduce(x[: x.size // 8 * 8].view(np.uint64))


@cache
def _kernels() -> tuple[Kernel, Kernel] | None:
    """(streaming copy, read) of byte arrays, or None without Numba. They release the interpreter's lock."""
    try:
        from . import stream
    except ImportError:
        return None
    return stream.copy, stream.read
