"""All rows: fixed chunks of them, which threads take one after the other, each with its own scratch.

A chunk's size depends on the shape alone; its rows are summed in order and the chunks' sums in order, with
the rounding errors kept (Neumaier 1974). So the loss has the same bits for any number of workers.

A kernel is made for each combination of switches. Kernels are C functions behind an address, so that the loop
that takes chunks is compiled once and not with each of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from llvmlite import ir

from sce.backend import Array

from . import along, columns, pieces, threads, tiles
from .cache import intrinsic, jit, native_function, once
from .kernel import work
from .memory import WITNESSES, address, get
from .parameters import PARAMETERS, SIZE
from .vector_math import add, finish

_PATIENCE = 512  # chunks that the calling thread computes before it looks for an interrupt: some 0.1 s


@once
def kernel(way: str, dtype: str, memory: tuple[str, ...], switches: tuple[bool | None, ...]) -> Any:
    """The C function `void (worker, first, last, parameters)` of a plan.

    The object is kept, not its address alone: it owns the code.
    """
    one = np.dtype(dtype).type(1)
    of, into, *masses = (WITNESSES[name] for name in memory)
    mass = masses[0] if masses else None
    smooth, affine, capped, soft, entropy, grad, hess, log_p, hvp, log_jvp, plain = switches
    v = hvp or log_jvp
    if way == "columns":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            columns.work(
                worker, first, last, parameters, of, one, into, smooth, mass, affine, capped, grad, hess, v,
                log_jvp,
            )  # fmt: skip

    elif way == "along":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            along.work(worker, first, last, parameters, of, one, hvp)

    elif way == "pieces":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            pieces.work(worker, first, last, parameters, of, one, into, plain, smooth, affine, capped, grad)

    elif way == "tiles":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            tiles.work(
                worker, first, last, parameters, of, one, into, plain, smooth, mass, affine, capped, grad,
                hess,
            )  # fmt: skip

    else:

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            work(
                worker, first, last, parameters, one, smooth, affine, capped, soft, entropy, grad, hess,
                log_p, v, hvp, log_jvp,
            )  # fmt: skip

    return native_function(nb.void(nb.int64, nb.int64, nb.int64, nb.int64))(chunks)


@intrinsic
def _call(typingctx: Any, function: Any, worker: Any, first: Any, last: Any, parameters: Any) -> Any:
    """Call a kernel by its address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        pointer = ir.FunctionType(ir.VoidType(), [word] * 4).as_pointer()
        builder.call(builder.inttoptr(args[0], pointer), args[1:])
        return context.get_dummy_value()

    return nb.void(*[nb.int64] * 5), codegen


@intrinsic
def _count(typingctx: Any, counter: Any) -> Any:
    """Add one to the number at this address, and return what it was: no two threads get the same."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        where = builder.inttoptr(args[0], word.as_pointer())
        return builder.atomic_rmw("add", where, ir.Constant(word, 1), "monotonic")

    return nb.int64(nb.int64), codegen


@jit(nb.boolean(*[nb.int64] * 6), nogil=True)
def _take_chunks(function: Any, worker: Any, chunks: Any, parameters: Any, counter: Any, most: Any) -> Any:
    """Run a kernel on chunks that nobody has taken yet, and say whether any may be left."""
    for _ in range(most):
        chunk = _count(counter)
        if chunk >= chunks:
            return False
        _call(function, worker, chunk, chunk + 1, parameters)
    return True


@jit(nb.void(nb.int64, nb.int64), nogil=True)
def _only_chunk(function: Any, parameters: Any) -> None:
    _call(function, 0, 0, 1, parameters)


def launch(function: int, parameters: int, chunks: int, workers: int) -> None:
    """Run a kernel over all chunks, on this thread and at most workers - 1 others."""
    if chunks == 1:  # no counter, nobody to share with: microseconds, which small problems would notice
        _only_chunk(function, parameters)
        return
    counter = np.zeros(1, np.int64)
    at = address(counter)

    def work(worker: int) -> None:
        try:
            while _take_chunks(function, worker, chunks, parameters, at, _PATIENCE):
                pass
        except BaseException:
            counter[0] = chunks  # so that the others stop, too
            raise

    threads.together(work, workers)


@jit(nb.types.UniTuple(nb.float64, 2)(nb.int64, nb.int64))
def sum_up(partial: Any, chunks: Any) -> Any:
    """The sums over all chunks of the losses and of their z-loss parts: see parameters.py."""
    total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
    for place in range(partial, partial + 16 * chunks, 16):
        total, error = add(total, error, get(1.0, place))
        z_total, z_error = add(z_total, z_error, get(1.0, place + 8))
    return finish(total, error), finish(z_total, z_error)


class Ready(NamedTuple):
    """A problem that a kernel can compute at once, and again when its logits have changed."""

    kernel: Any  # owns its code
    scratch: Array  # begins with the parameters
    chunks: int
    workers: int
    sums: tuple[Array | None, Array | None]  # where those of the losses and of the z-losses go
    partial: int  # the address of the chunks' sums
    twice: bool  # in pieces
    arrays: tuple[Any, ...]  # kept alive, copies too: the kernel sees addresses only

    def run(self) -> None:
        for again in range(1 + self.twice):
            if self.twice:
                self.scratch[:SIZE].view(PARAMETERS)["second"] = again
            launch(self.kernel.address, address(self.scratch), self.chunks, self.workers)
        if any(into is not None for into in self.sums):
            for into, total in zip(self.sums, sum_up(self.partial, self.chunks), strict=True):
                if into is not None:
                    into[0] = total
