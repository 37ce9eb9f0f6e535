"""What the threads of one row tell each other: every thread of the group gets the same answer, to the bit.

`lanes` threads have a row: a power of two up to a warp, or whole warps, then all of the block's. Offsets are
those of a butterfly; each step is symmetric, so both sides of it get the same bits. A group of several warps
goes on by shared memory, one slot for each warp; each call has slots and a barrier of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

WARP = 32


def group(d: Any, math: Any, lanes: int) -> SimpleNamespace:
    """For kernels of the vocabulary `d` that compute with `math`, of arithmetic.py."""
    cuda, maximum, add, real = d.cuda, d.maximum, math.add, math.real
    inside = min(lanes, WARP) // 2
    warps = max(1, lanes // WARP)
    across = warps // 2
    everyone = 0xFFFFFFFF

    @d.inline
    def largest(v):
        """The maximum of all lanes' v, NaN where one is."""
        o = inside
        while o > 0:
            v = maximum(v, cuda.shfl_xor_sync(everyone, v, o))
            o >>= 1
        if warps > 1:
            slots = cuda.shared.array(warps, real)
            t = cuda.threadIdx.x
            if t % WARP == 0:
                slots[t // WARP] = v
            cuda.syncthreads()
            v = slots[t % warps]
            o = across
            while o > 0:
                v = maximum(v, cuda.shfl_xor_sync(everyone, v, o))
                o >>= 1
        return v

    @d.inline
    def total(h, t):
        """The sum of all lanes' pairs."""
        o = inside
        while o > 0:
            h, t = add(h, t, cuda.shfl_xor_sync(everyone, h, o), cuda.shfl_xor_sync(everyone, t, o))
            o >>= 1
        if warps > 1:
            heads = cuda.shared.array(warps, real)
            tails = cuda.shared.array(warps, real)
            i = cuda.threadIdx.x
            if i % WARP == 0:
                heads[i // WARP] = h
                tails[i // WARP] = t
            cuda.syncthreads()
            h = heads[i % warps]
            t = tails[i % warps]
            o = across
            while o > 0:
                h, t = add(h, t, cuda.shfl_xor_sync(everyone, h, o), cuda.shfl_xor_sync(everyone, t, o))
                o >>= 1
        return h, t

    @d.inline
    def better(v, k, w, j):
        """The larger of two values and its index: a NaN before numbers, the lower index of equals."""
        if v != v:
            if w != w and j < k:
                v, k = w, j
        elif w != w or w > v or (w == v and j < k):
            v, k = w, j
        return v, k

    @d.inline
    def best(v, k):
        """`better` of all lanes; k is int64."""
        o = inside
        while o > 0:
            v, k = better(v, k, cuda.shfl_xor_sync(everyone, v, o), cuda.shfl_xor_sync(everyone, k, o))
            o >>= 1
        if warps > 1:
            values = cuda.shared.array(warps, real)
            indices = cuda.shared.array(warps, np.int64)
            i = cuda.threadIdx.x
            if i % WARP == 0:
                values[i // WARP] = v
                indices[i // WARP] = k
            cuda.syncthreads()
            v = values[i % warps]
            k = indices[i % warps]
            o = across
            while o > 0:
                v, k = better(v, k, cuda.shfl_xor_sync(everyone, v, o), cuda.shfl_xor_sync(everyone, k, o))
                o >>= 1
        return v, k

    return SimpleNamespace(largest=largest, total=total, better=better, best=best)
