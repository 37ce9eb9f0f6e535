"""Who computes: the calling thread, and a few helpers that the whole process shares.

Numba's own parallel loops are not used: of its three threading layers one aborts the process when two
threads start a loop at once, one aborts or hangs a forked child, and one is rarely there. Kernels hold no
GIL, so plain Python threads will do, and to wake one costs what the system takes for it.

A caller takes its share itself and invites idle helpers only. Whatever they do not get to, it does: it cannot
wait for a thread that has no processor, and any number of callers get on at once.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, RLock, Thread
from typing import Any

import numba
from numba.np.ufunc import parallel

from sce.backend import thread_limit


def workers(parts: int) -> int:
    """How many threads are to share so many parts. A single part asks nobody: that takes a microsecond."""
    return min(parts, available()) if parts > 1 else 1


def available() -> int:
    """How many threads a call may use: `numba.set_num_threads` or NUMBA_NUM_THREADS, and `thread_limit`."""
    config: Any = numba.config
    # `numba.get_num_threads` would start Numba's threads, and takes a lock that all forked processes share.
    # This is what it calls; it is there once they run, and only then has the user chosen another number.
    chosen = getattr(parallel, "_get_num_threads", None)
    most = int(chosen() if chosen else config.NUMBA_NUM_THREADS)
    limit = thread_limit()
    return most if limit is None else min(most, limit)


class _Share:
    """A helper's part of a call. Who locks it first has it: the helper, to work, or the caller, to close."""

    def __init__(self, work: Callable[[int], None], worker: int) -> None:
        self._work, self._worker = work, worker
        # Reentrant: an interrupted caller cannot know whether it has the lock, and locks it again.
        self._lock = RLock()
        self.failure: BaseException | None = None

    def help(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._work(self._worker)
            except BaseException as exc:
                self.failure = exc
            finally:
                self._lock.release()

    def close(self) -> None:
        """Wait for a helper at work; one that has not begun will not begin."""
        self._lock.acquire()


def together(work: Callable[[int], None], workers: int) -> None:
    """Run work(0) here and beside it, where helpers come in time, work(1) to work(workers - 1).

    So work(0) must end only when everything is done or taken. When this returns or raises, nothing of it runs
    any more: an interrupt waits for the helpers, because they compute in memory that the caller is to free.
    """
    shares: list[_Share] = []
    failure: BaseException | None = None
    try:
        cores = _other_cores(workers) if workers > 1 else None
        for worker in range(1, workers):
            if (helper := _idle_helper(workers - 1)) is None:
                break
            helper.move_to(cores)
            shares.append(_Share(work, worker))
            helper.inbox.put(shares[-1])
        work(0)
    except BaseException as exc:
        failure = exc
    while shares:
        try:
            shares[-1].close()
            closed = shares.pop()
            failure = failure or closed.failure
        except BaseException as exc:
            failure = failure or exc
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # its traceback holds this frame


class _Helper(Thread):
    """A thread that waits for shares. A daemon: it must not keep the process from ending."""

    def __init__(self) -> None:
        super().__init__(name=f"sce-{_helpers + 1}", daemon=True)
        self.inbox: SimpleQueue[_Share] = SimpleQueue()
        self._cores: set[int] | None = None

    def run(self) -> None:
        while True:
            self.inbox.get().help()
            _idle.append(self)

    def move_to(self, cores: set[int] | None) -> None:
        # Without an id, before it has started, the system would move the caller instead.
        if cores and cores != self._cores and self.native_id is not None:
            self._cores = cores
            with suppress(OSError):  # some sandboxes forbid it
                os.sched_setaffinity(self.native_id, cores)


def _other_cores(workers: int) -> set[int] | None:
    """Where helpers are to run, if the system lets us say: where the caller may, but not on its own core.

    Linux likes to wake a thread on the core that wakes it. In a virtual machine, where an idle core may look
    taken, the two then take turns on it for milliseconds while the other is idle.
    """
    if _current_core is None:
        return None
    cores = os.sched_getaffinity(0)
    others = cores - {_current_core()}
    return others if len(others) >= workers - 1 else cores


_current_core: Any = None
if hasattr(os, "sched_setaffinity"):
    # PyDLL keeps the GIL: to give it away for so short a call could cost a turn of another thread's.
    _current_core = getattr(ctypes.PyDLL(None), "sched_getcpu", None)

_idle: deque[_Helper] = deque()
_helpers = 0
_starting = Lock()


def _idle_helper(most: int) -> _Helper | None:
    """An idle helper, or a new one where there are fewer than `most`."""
    global _helpers
    with suppress(IndexError):
        return _idle.pop()
    with _starting:
        if _helpers >= most:
            return None
        helper = _Helper()
        try:
            helper.start()
        except RuntimeError:  # no thread to be had, or the interpreter is ending: the caller does it alone
            return None
        _helpers += 1
        return helper


def _after_fork() -> None:
    """A child has none of the helpers, and perhaps a lock that another thread held."""
    global _idle, _helpers, _starting
    _idle, _helpers, _starting = deque(), 0, Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
