"""A CUDA device in Python, for tests: the kernels' own source runs here, every thread a greenlet of its own.

Threads run one at a time, from one meeting point (shuffle, barrier) to the next, in order or in reverse.
What a GPU would let pass or answer with garbage is an error here, a `Fault`: an access out of bounds,
misaligned or through a null pointer, shared memory that another thread writes or reads in the same interval,
threads of a warp or block that meet at different places or not at all. Local memory that nobody wrote holds
NaN or a large negative integer.
"""

from __future__ import annotations

import contextvars
import ctypes
import sys
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

WARP = 32
_POISON = {"f": np.nan, "i": -(2**30) - 1, "u": 0xA5}


class Fault(RuntimeError):
    """A kernel did what it must not do on a device."""


class Pointer:
    """The address of an element of a host array, whatever its strides."""

    __slots__ = ("address", "memory", "origin", "size")

    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        dtype: Any = x.dtype
        low, high = np.lib.array_utils.byte_bounds(x) if x.size else (0, 0)
        raw: Any = (ctypes.c_uint8 * (high - low)).from_address(low) if x.size else b""
        address = int(x.__array_interface__["data"][0])
        whole = (high - low) // dtype.itemsize * dtype.itemsize
        self.memory = np.frombuffer(raw, dtype, whole // dtype.itemsize) if x.size else np.empty(0, dtype)
        self.origin, self.size, self.address = (address - low) // dtype.itemsize, self.memory.size, address

    def at(self, i: int, n: int = 1, align: int = 1) -> int:
        """Where in `memory` element i is, of which n are wanted, aligned to so many bytes."""
        k: int = self.origin + int(i)
        if not 0 <= k <= self.size - n:
            raise Fault(f"elements {int(i)} to {int(i) + n - 1} of {self.size} are out of bounds.")
        if (self.address + int(i) * self.memory.itemsize) % align:
            raise Fault(f"element {int(i)} is not aligned to {align} bytes.")
        return k

    def __getitem__(self, i: int) -> Any:
        return self.memory[self.at(i)]

    def __setitem__(self, i: int, value: Any) -> None:
        self.memory[self.at(i)] = value


class _Null:
    """What is not wanted: nobody may look."""

    def __getitem__(self, i: int) -> Any:
        raise Fault("a null pointer is read.")

    def __setitem__(self, i: int, value: Any) -> None:
        raise Fault("a null pointer is written to.")


NULL = _Null()


class _Shared:
    """Shared memory that knows who wrote what, and when: without a barrier between, that is a race."""

    __slots__ = ("device", "memory", "seen")

    def __init__(self, device: Device, n: int, dtype: Any) -> None:
        self.device, self.memory = device, _poisoned(n, dtype)
        self.seen: dict[int, tuple[Any, ...]] = {}  # element: (writer, its intervals in warp, block, cluster)

    def __getitem__(self, i: int) -> Any:
        return self.read(int(i), self.device.thread)

    def read(self, i: int, t: _Thread) -> Any:
        self._within(i)
        if i not in self.seen:
            raise Fault(f"shared element {i} is read before anyone wrote to it.")
        w, warp, block, cluster = self.seen[i]
        same_warp = w.block is t.block and w.warp == t.warp and warp != t.warps
        same_block = w.block is t.block and block != t.blocks
        if not (w is t or same_warp or same_block or cluster != t.clusters):
            raise Fault(f"shared element {i}: thread {t.index} reads what {w.index} may be about to write.")
        return self.memory[i]

    def __setitem__(self, i: int, value: Any) -> None:
        i, t = int(i), self.device.thread
        self._within(i)
        if i in self.seen and self.seen[i][0] is not t and self.seen[i][2] == t.blocks:
            raise Fault(f"shared element {i} is written by threads {self.seen[i][0].index} and {t.index}.")
        self.memory[i] = value
        self.seen[i] = (t, t.warps, t.blocks, t.clusters)

    def _within(self, i: int) -> None:
        if not 0 <= i < self.memory.size:
            raise Fault(f"shared element {i} of {self.memory.size} is out of bounds.")


class _Block:
    __slots__ = ("index", "rank", "shared", "threads")

    def __init__(self, index: int, rank: int) -> None:
        self.index, self.rank = index, rank
        self.shared: dict[int, _Shared] = {}
        self.threads: list[_Thread] = []


class _Thread:
    __slots__ = (
        "block", "blocks", "cluster", "clusters", "declared", "index", "run", "slot", "waits", "warp",
        "warps",
    )  # fmt: skip

    def __init__(self, index: int, block: _Block, cluster: list[_Block]) -> None:
        self.index, self.block, self.warp, self.cluster = index, block, index // WARP, cluster
        self.warps = self.blocks = self.clusters = self.declared = 0
        self.waits: Any = None  # (what for, where in the source)
        self.slot: Any = None
        self.run: Any = None


class Device:
    """Runs kernels on host memory. `words` is the vocabulary that kernels are made for, as compile.py's."""

    def __init__(self, reverse: bool = False) -> None:
        self.reverse = reverse
        self.thread: Any = None
        self._hub: Any = None
        self.words = self._vocabulary()

    def launch(
        self, kernel: Callable[..., None], grid: int, block: int, args: Iterable[Any], cluster: int = 1
    ) -> None:
        """All blocks, cluster by cluster: those of one cluster run together."""
        args = tuple(args)
        if block % WARP or grid % cluster:
            raise Fault(f"{block} threads are no whole warps, or {grid} blocks no whole clusters.")
        order = range(0, grid, cluster)
        for first in reversed(order) if self.reverse else order:
            self._cluster(kernel, [_Block(first + r, r) for r in range(cluster)], block, args)

    def _cluster(
        self, kernel: Callable[..., None], blocks: list[_Block], size: int, args: tuple[Any, ...]
    ) -> None:
        self._hub = getcurrent()
        every: list[_Thread] = []
        for block in blocks:
            block.threads = [_Thread(i, block, blocks) for i in range(size)]
            every += block.threads
        for t in every:
            t.run = greenlet(lambda: kernel(*args))
            t.run.gr_context = contextvars.copy_context()  # which np.errstate lives in
        ready = every
        while ready:
            for t in reversed(ready) if self.reverse else ready:
                self.thread, t.waits = t, None
                t.run.switch()
                if t.run.dead:
                    t.waits = ("end", None)
            ready = _released(blocks)

    def _meet(self, what: str) -> None:
        """Stop here until all of a warp, block or cluster have come."""
        caller = sys._getframe(2)
        outer = caller.f_back
        self.thread.waits = (what, (caller.f_lineno, outer.f_lineno if outer else 0))
        self._hub.switch()

    def _shuffle(self, mask: int, value: Any, offset: int) -> Any:
        me = self.thread
        if mask != 0xFFFFFFFF or not 0 <= offset < WARP:
            raise Fault("a shuffle without the whole warp.")
        me.slot = value
        self._meet("warp")
        return me.slot[me.index % WARP ^ int(offset)]

    def _array(self, n: int, dtype: Any) -> _Shared:
        """The n-th declaration that a thread comes to is the same memory for all of its block."""
        t = self.thread
        t.declared += 1
        if t.declared not in t.block.shared:
            t.block.shared[t.declared] = _Shared(self, n, dtype)
        found: _Shared = t.block.shared[t.declared]
        return found

    def _peer(self, shared: _Shared, i: int, rank: int) -> Any:
        t = self.thread
        for number, mine in t.block.shared.items():
            if mine is shared:
                return t.cluster[int(rank)].shared[number].read(int(i), t)
        raise Fault("this is no shared memory of the block.")

    def _vocabulary(self) -> SimpleNamespace:
        index = type("Index", (), {"x": property(lambda _: self.thread.index)})()
        block = type("Index", (), {"x": property(lambda _: self.thread.block.index)})()
        cuda = SimpleNamespace(
            threadIdx=index,
            blockIdx=block,
            syncthreads=lambda: self._meet("block"),
            syncwarp=lambda: self._meet("warp"),
            shfl_xor_sync=self._shuffle,
            shared=SimpleNamespace(array=self._array),
            local=SimpleNamespace(array=_poisoned),
        )
        return SimpleNamespace(
            cuda=cuda,
            inline=lambda function: function,
            **_ARITHMETIC,
            reader=_reader,
            writer=_writer,
            fetcher=_fetcher,
            putter=_putter,
            branch=lambda: None,
            past_16=lambda p, i: (p.address + int(i) * p.memory.itemsize) % 16,
            rank=lambda: self.thread.block.rank,
            cluster_barrier=lambda: self._meet("cluster"),
            peer=self._peer,
        )


def _released(blocks: list[_Block]) -> list[_Thread]:
    """Who may go on: whole warps at a shuffle; if there is none, whole blocks or a cluster at a barrier."""
    every = [t for block in blocks for t in block.threads]
    found: list[_Thread] = []
    for block in blocks:
        for first in range(0, len(block.threads), WARP):
            warp = block.threads[first : first + WARP]
            if any(t.waits[0] == "warp" for t in warp):
                _together(warp)
                given = [t.slot for t in warp]
                for t in warp:
                    t.slot, t.warps = given, t.warps + 1
                found += warp
    if found:
        return found
    for block in blocks:
        if any(t.waits[0] == "block" for t in block.threads):
            _together(block.threads)
            found += block.threads
    if not found and any(t.waits[0] == "cluster" for t in every):
        _together(every)
        found = every
        for t in found:
            t.clusters += 1
    for t in found:
        t.blocks += 1
        t.warps += 1
    return found


def _together(threads: list[_Thread]) -> None:
    places = {t.waits for t in threads}
    if len(places) > 1:
        raise Fault(f"threads {threads[0].index} to {threads[-1].index} meet at different places: {places}.")


def _poisoned(n: int, dtype: Any) -> Any:
    dtype = np.dtype(dtype)
    return np.full(n, _POISON[dtype.kind], dtype)


# The words of arithmetic, and loads and stores: IEEE, rounded once, as the instructions they stand for.

_C = ctypes.CDLL(None)
_C.fmaf.argtypes, _C.fmaf.restype = (ctypes.c_float,) * 3, ctypes.c_float
_C.fma.argtypes, _C.fma.restype = (ctypes.c_double,) * 3, ctypes.c_double
_WORDS = {np.float32: np.int32, np.float64: np.int64, np.int32: np.float32, np.int64: np.float64}


def _fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    if type(a) is np.float32:
        return np.float32(_C.fmaf(a, b, c))
    return np.float64(_C.fma(a, b, c))


def _maximum(a: Any, b: Any) -> Any:
    """NaN where either is."""
    return a if a > b or a != a else b


def _bits(x: Any) -> Any:
    return x.view(_WORDS[type(x)])


_ARITHMETIC = {
    "fma": _fma,
    "times": lambda a, b: a * b,
    "inverse": lambda x: type(x)(1) / x,
    "maximum": _maximum,
    "bits_of": _bits,
    "from_bits": _bits,
    "exp": np.exp,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "cosh": np.cosh,
}


def _reader(dtype: str, real: Any) -> Callable[[Any, int], Any]:
    return lambda p, i: real(p[i])


def _writer(dtype: str, real: Any) -> Callable[[Any, int, Any], None]:
    to = number(dtype).type
    if number(dtype).itemsize == 2:  # as the hardware converts: by way of float32

        def write(p: Any, i: int, value: Any) -> None:
            p[i] = to(np.float32(value))
    else:

        def write(p: Any, i: int, value: Any) -> None:
            p[i] = to(value)

    return write


def _fetcher(dtype: str, real: Any) -> Callable[[Any, int, Any, int], None]:
    n = 16 // number(dtype).itemsize

    def fetch(p: Any, i: int, into: Any, at: int) -> None:
        k = p.at(i, n, 16)
        into[at : at + n] = p.memory[k : k + n]

    return fetch


def _putter(dtype: str, real: Any) -> Callable[[Any, int, Any, int], None]:
    n = 16 // number(dtype).itemsize

    def put(p: Any, i: int, values: Any, at: int) -> None:
        k = p.at(i, n, 16)
        p.memory[k : k + n] = values[at : at + n].astype(np.float32 if n == 8 else real)

    return put


def number(dtype: str) -> np.dtype[Any]:
    """A dtype by its name, bfloat16 included."""
    if dtype == "bfloat16":
        import ml_dtypes

        dtype = ml_dtypes.bfloat16
    found: np.dtype[Any] = np.dtype(dtype)
    return found
