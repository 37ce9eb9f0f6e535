"""All rows: the parallel loop over workers, each with its scratch and a share of fixed chunks of rows.

A chunk's size depends on the shape alone; its rows are summed in order and the chunks' sums in order, with
the rounding errors kept (Neumaier 1974). So the loss has the same bits for any number of workers.

A kernel is made for each combination of switches. Kernels are C functions behind an address, so that the
parallel loop is compiled once and not with each of them, which took longer than the kernel itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba import prange

from . import columns, tiles
from .cache import intrinsic, jit, native_function
from .kernel import work
from .memory import WITNESSES
from .vector_math import add, finish


@cache
def kernel(way: str, dtype: str, memory: tuple[str, str], switches: tuple[bool | None, ...]) -> Any:
    """The C function `void (worker, first, last, parameters)` of a plan.

    The object is kept, not its address alone: it owns the code.
    """
    one = np.dtype(dtype).type(1)
    of, into = (WITNESSES[name] for name in memory)
    smooth, affine, capped, soft, entropy, grad, hess, log_p, plain = switches
    if way == "columns":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            columns.work(
                worker, first, last, parameters, of, one, into, smooth, affine, capped, grad
            )

    elif way == "tiles":

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            tiles.work(
                worker, first, last, parameters, of, one, into, plain, smooth, affine, capped, grad
            )
    else:

        def chunks(worker, first, last, parameters):  # type: ignore[no-untyped-def]
            work(
                worker, first, last, parameters, one, smooth, affine, capped, soft, entropy, grad, hess, log_p
            )

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


@jit(parallel=True, nogil=True, no_cpython_wrapper=False)
def launch(function: Any, parameters: Any, chunks: Any, workers: Any) -> None:
    """Run a kernel over all chunks."""
    for w in prange(workers):
        _call(function, w, chunks * w // workers, chunks * (w + 1) // workers, parameters)


@jit(nogil=True, no_cpython_wrapper=False)
def launch_here(function: Any, parameters: Any, chunks: Any) -> None:
    """The same on the calling thread: waking the others costs more than a small problem takes."""
    _call(function, 0, 0, chunks, parameters)


@jit(no_cpython_wrapper=False)
def sum_up(partial: Any) -> Any:
    """The sums over all chunks of the losses and of their z-loss parts."""
    total, error, z_total, z_error = 0.0, 0.0, 0.0, 0.0
    for chunk in range(partial.shape[0]):
        total, error = add(total, error, partial[chunk, 0])
        z_total, z_error = add(z_total, z_error, partial[chunk, 1])
    return finish(total, error), finish(z_total, z_error)
