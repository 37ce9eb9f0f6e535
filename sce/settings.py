"""What the user sets for every backend: how many threads compute, and where compiled kernels are kept.

Backends reach this through the contract, `sce.backend`: they do not read the environment themselves.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import index

ENV_THREADS = "SCE_NUM_THREADS"
_threads: ContextVar[int | None] = ContextVar("sce.threads", default=None)


@contextmanager
def threads(n: int) -> Generator[None]:
    """Compute on at most `n` threads in this block, the calling one included. Local to this thread or task.

    It limits what there is and starts nothing: a call still takes no more than NUMBA_NUM_THREADS or
    `numba.set_num_threads` say, and neither is changed. Answers have the same bits for any number. Without it
    the environment variable SCE_NUM_THREADS, read at each call, is the limit.

    A TypeError where `n` is no integer, a ValueError where it is not from 1 to the cores this process has.

    >>> import sce
    >>> with sce.threads(1):
    ...     loss = sce.cross_entropy([[0.0, 1.0]], [1])
    """
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"sce.threads takes an integer, got {type(n).__name__}.")
    token = _threads.set(_among_cores("sce.threads", index(n)))
    try:
        yield
    finally:
        _threads.reset(token)


def thread_limit() -> int | None:
    """How many threads may compute for this call, the calling one included; None: the user set no limit."""
    if (n := _threads.get()) is not None:
        return n
    if not (asked := os.environ.get(ENV_THREADS)):
        return None
    try:
        n = int(asked)
    except ValueError:
        raise ValueError(f"{ENV_THREADS} is {asked!r}: it takes an integer, or unset it.") from None
    return _among_cores(ENV_THREADS, n)


def _among_cores(setting: str, n: int) -> int:
    most = usable_cores()
    if not 1 <= n <= most:
        raise ValueError(f"{setting} is {n}: this process has {most} core(s), so it takes 1 to {most}.")
    return n


def usable_cores() -> int:
    """The cores this process may run on: the affinity mask where the system has one, else all."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_dir() -> str | None:
    """Where the user wants compiled kernels kept (SCE_CACHE_DIR); None: the backend's own choice."""
    return os.environ.get("SCE_CACHE_DIR") or None
