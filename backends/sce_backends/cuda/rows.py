"""Loss and gradient of index targets: each logit is read once, kept in a register, and its gradient written.

A *group* of threads has a row, or a part of it: lanes of a warp, or a block. Lane l of L keeps vectors l,
l + L, ... of 16 bytes, so that the warp's accesses are whole lines; with `edge` what is left before the first
and after the last aligned vector of a row of any length, one element per lane. Parts of a row are blocks of
a cluster, which tell each other by distributed shared memory, or blocks of two launches, the second of which
reads the logits again.

Bytes, per row: one read of the logits and one write of the gradient (two reads where it is split), the label,
8 or 16 for the loss.

The target's logit never takes part in the sum: its register holds -inf, every thread has it besides. It is
read before the last meeting ahead of any store, because the gradient may go over the logits. docs/math.md has
the formulas: R, E and S are its names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

from .arithmetic import arithmetic
from .group import WARP, group

Parts = Literal["one", "cluster", "first", "second"]


class Rows(NamedTuple):
    """What the machine code depends on. Dtypes are names; `grad` is "" where no gradient is wanted."""

    logits: str
    grad: str
    labels: str
    loss: str  # "rows": one value each; "pairs": two words, to be summed; "": not wanted
    parts: Parts
    cluster: int  # blocks of a row, where they form a cluster
    lanes: int  # of a group: a power of two up to a warp, or all threads of the block
    vectors: int  # that a lane keeps
    width: int  # logits of a vector: what 16 bytes hold, or 1
    edge: bool
    groups: int  # of a block
    tempered: bool
    squared: bool  # a z-loss
    scaled: bool  # the rows' scales come from memory
    ignores: bool
    blocks: int  # of a processor, for which registers must suffice


POINTERS = ("logits", "labels", "scales", "grad", "loss", "found")
INTEGERS = ("n", "classes", "step", "grad_step", "ignored", "parts")
FLOATS = (  # each in two words
    "of_loss", "of_loss_tail", "of_grad", "of_grad_tail", "over_t", "over_t_tail",
    "lam", "lam_tail",
)  # fmt: skip
FOUND = 4  # words that the first launch leaves of each part: top, R and its tail, the target's logit
SCALES = (
    4  # words of a row's scale: two for the loss, two for the gradient; the last is NaN for a row left out
)


def computes_in(logits: str) -> str:
    return "float64" if logits == "float64" else "float32"


def arguments(spec: Rows) -> tuple[tuple[str, str], ...]:
    """In order: name, and the dtype of what it points at, or the number's."""
    real = computes_in(spec.logits)
    of = {"logits": spec.logits, "labels": spec.labels, "grad": spec.grad or real}
    return (
        *((name, f"*{of.get(name, real)}") for name in POINTERS),
        *((name, "int64") for name in INTEGERS),
        *((name, real) for name in FLOATS),
    )


def kernel(d: Any, spec: Rows) -> Callable[..., None]:
    math = arithmetic(d, computes_in(spec.logits))
    real, inf = math.real, math.inf
    lanes, vectors, width, groups, edge = spec.lanes, spec.vectors, spec.width, spec.groups, spec.edge
    team = group(d, math, lanes)
    largest, gather = team.largest, team.total
    cuda, fma, times, maximum, peer = d.cuda, d.fma, d.times, d.maximum, d.peer
    cluster_barrier, rank_of, past_16 = d.cluster_barrier, d.rank, d.past_16
    two_sum, fast_two_sum, add = math.two_sum, math.fast_two_sum, math.add
    multiply, divide, finish = math.multiply, math.divide, math.finish
    pivot, shifted_by, log, log1p = math.pivot, math.shifted_by, math.log, math.log1p
    exponential, exponential_of_pair = math.exponential, math.exponential_of_pair
    high, low, ln2, ln2_h, ln2_t = math.high, math.low, math.ln2, math.ln2_h, math.ln2_t
    above = real(2)  # exp of half of ln 2 is less
    branch, single = d.branch, spec.grad in ("float16", "bfloat16")
    zero, one_real, nan, minus_inf = real(0), real(1), real(np.nan), real(-np.inf)
    half_real = real(0.5)
    read, read_label = d.reader(spec.logits, real), d.reader(spec.labels, np.int64)
    read_word, write_word = (make(computes_in(spec.logits), real) for make in (d.reader, d.writer))
    fetch = d.fetcher(spec.logits, real)
    to = spec.grad or spec.logits
    write, put = d.writer(to, real), d.putter(to, real)
    bytes_each = np.int32(16 // width)
    kept = vectors * width
    half = vectors // 2 if kept > 32 else vectors  # the compiler unrolls no longer loop of so much
    wants_grad, wants_loss, pairs = bool(spec.grad), bool(spec.loss), spec.loss == "pairs"
    tempered, scaled, ignores = spec.tempered, spec.scaled, spec.ignores
    squared = spec.squared
    first, second, in_cluster = spec.parts == "first", spec.parts == "second", spec.parts == "cluster"
    one, blocks_of_row = spec.parts == "one", spec.cluster
    halves = spec.cluster // 2
    everyone = 0xFFFFFFFF

    @d.inline
    def scaled_by(x, over_t, over_t_tail):
        """x / T as a pair."""
        z = times(x, over_t)
        return z, fma(x, over_t, -z) + times(x, over_t_tail)

    @d.inline
    def pivot_of(top, over_t):
        """`pivot` for a largest logit. A base is a logit, too: it comes off before the temperature."""
        if tempered:
            base, k = pivot(times(top, over_t))
            if base != zero:
                base = top
        else:
            base, k = pivot(top)
        return base, k

    @d.inline
    def exp_of(x, shift_k, floor, over_t, over_t_tail):
        """exp(z - k ln 2) of a logit less the base."""
        if tempered:
            z, tail = scaled_by(x, over_t, over_t_tail)
            e = exponential_of_pair(z, tail, shift_k, floor)
        else:
            e = exponential(x, zero, shift_k, floor)
        return e

    @d.inline
    def exponentials(kept_here, first_one, last, r, r_tail, shift_k, floor, over_t, over_t_tail):
        """Of some vectors, in the registers of their logits; and onto their sum."""
        for q in range(first_one, last):
            for j in range(width):
                e = exp_of(kept_here[q * width + j], shift_k, floor, over_t, over_t_tail)
                kept_here[q * width + j] = e
                if not second:  # finite, or the row's answer is NaN
                    r, error = fast_two_sum(r, e)
                    r_tail = r_tail + error
        return r, r_tail

    @d.inline
    def product(e, by, by_tail):
        """e times a pair, rounded once. Half precision has no use for the second word."""
        return e * by if single else fma(e, by, times(e, by_tail))

    @d.inline
    def of_cluster_largest(v):
        """The maximum of all blocks of the cluster."""
        slot = cuda.shared.array(1, real)
        if cuda.threadIdx.x == 0:
            slot[0] = v
        cluster_barrier()
        v = peer(slot, 0, cuda.threadIdx.x % blocks_of_row)
        o = halves
        while o > 0:
            v = maximum(v, cuda.shfl_xor_sync(everyone, v, o))
            o >>= 1
        return v

    @d.inline
    def of_cluster_total(h, t):
        """The sum of all blocks' pairs. Nobody leaves before all have read."""
        heads = cuda.shared.array(1, real)
        tails = cuda.shared.array(1, real)
        if cuda.threadIdx.x == 0:
            heads[0] = h
            tails[0] = t
        cluster_barrier()
        h = peer(heads, 0, cuda.threadIdx.x % blocks_of_row)
        t = peer(tails, 0, cuda.threadIdx.x % blocks_of_row)
        o = halves
        while o > 0:
            h, t = add(h, t, cuda.shfl_xor_sync(everyone, h, o), cuda.shfl_xor_sync(everyone, t, o))
            o >>= 1
        cluster_barrier()
        return h, t

    @d.inline
    def merged_top(found, place, parts):
        """The maximum of what the first launch found of a row's parts. Each warp does it for itself."""
        top = minus_inf
        j = np.int64(cuda.threadIdx.x % WARP)
        while j < parts:
            top = maximum(top, read_word(found, (place + j) * FOUND))
            j += WARP
        o = WARP // 2
        while o > 0:
            top = maximum(top, cuda.shfl_xor_sync(everyone, top, o))
            o >>= 1
        return top

    @d.inline
    def merged_sum(found, place, parts, base, k, over_t, over_t_tail):
        """The sum of the parts' R, each brought from its own pivot to this one."""
        h, t = zero, zero
        j = np.int64(cuda.threadIdx.x % WARP)
        while j < parts:
            at = (place + j) * FOUND
            base_j, k_j = pivot_of(read_word(found, at), over_t)
            shift_k, floor = shifted_by(k - k_j)
            # a power of two where both bases are 0
            e = exp_of(base_j - base, shift_k, floor, over_t, over_t_tail)
            r, tail = read_word(found, at + 1), read_word(found, at + 2)
            if r != zero:  # a part of nothing but -inf has no pivot
                h, t = add(h, t, times(r, e), times(tail, e))
            j += WARP
        o = WARP // 2
        while o > 0:
            h, t = add(h, t, cuda.shfl_xor_sync(everyone, h, o), cuda.shfl_xor_sync(everyone, t, o))
            o >>= 1
        return h, t

    @d.inline
    def lse_of(h, t, s, s_tail, faded, of_y, tail, k):
        """lse - base as a pair: log S + k ln 2; where S has faded, (lse - z_y) + (z_y - base)."""
        if faded:
            h, t = add(h, t, of_y, tail)
        else:
            h, t = log(s, s_tail)
            p = times(k, ln2_h)
            h, t = add(h, t, p, fma(k, ln2_h, -p) + times(k, ln2_t))
        return h, t

    @d.inline
    def loss_of(r, r_tail, e, s, s_tail, z, z_tail, k):
        """lse - z_y as a pair: log1p(R / E), or log S - (z_y - k ln 2) where E vanishes; z less the base."""
        if e >= low:
            q, q_tail = divide(r, r_tail, e, zero)
            h, t = log1p(q, q_tail)
        else:
            h, t = log(s, s_tail)
            p = times(k, ln2_h)
            g, error = two_sum(z, -p)
            tail = error - (fma(k, ln2_h, -p) + times(k, ln2_t)) + z_tail
            h, error = two_sum(h, -g)
            t = error + (t - tail)
        return h, t

    def rows(
        x, labels, scales, grad, loss, found, n, classes, step, grad_step, ignored, parts,
        of_loss, of_loss_tail, of_grad, of_grad_tail, over_t, over_t_tail,
        lam, lam_tail,
    ):  # fmt: skip
        thread = cuda.threadIdx.x
        lane = thread % lanes
        row = np.int64(cuda.blockIdx.x)
        part = np.int64(0)
        if in_cluster:
            part = np.int64(rank_of())
            row = row // blocks_of_row
        elif not one:
            part = row % parts
            row = row // parts
        row = row * groups + thread // lanes
        active = row < n
        if not active:  # it keeps the others company, and writes nothing
            row = n - 1
        start = row * step

        # All of the row's logits, in flight together.
        c = np.int32(classes)
        head = np.int32(0)
        if edge:
            head = np.int32(min(c, ((16 - past_16(x, start)) & 15) // bytes_each))
        full = np.int32((c - head) // width)
        before = np.int32(part * (vectors * lanes) + lane)
        kept_here = cuda.local.array(kept, real)
        for q in range(vectors):
            v = np.int32(before + q * lanes)
            if v < full:
                if width > 1:
                    fetch(x, start + head + v * width, kept_here, q * width)
                else:
                    kept_here[q] = read(x, start + v)
            else:
                for j in range(width):
                    kept_here[q * width + j] = minus_inf
        at_edge = np.int32(-1)
        of_edge = minus_inf
        if edge and part == 0:
            if lane < head:
                at_edge = np.int32(lane)
            elif lane - head < c - head - full * width:
                at_edge = np.int32(full * width + lane)
            if at_edge >= 0:
                of_edge = read(x, start + at_edge)
        label = read_label(labels, row)
        known = label >= 0 and label < classes
        counted = True
        if ignores:
            counted = label != ignored
        y = np.int32(label) if known else np.int32(-1)
        x_y = nan
        if known:
            if second:
                x_y = read_word(found, row * parts * FOUND + 3)
            else:
                x_y = read(x, start + label)
        if scaled:
            of_loss = read_word(scales, row * SCALES)
            of_loss_tail = read_word(scales, row * SCALES + 1)
            of_grad = read_word(scales, row * SCALES + 2)
            of_grad_tail = read_word(scales, row * SCALES + 3)
            counted = counted and of_grad_tail == of_grad_tail

        # The target's register holds -inf: its term stays out of the sum.
        top = of_edge
        if edge and at_edge == y and y >= 0:
            of_edge = minus_inf
            top = minus_inf
        for q in range(vectors):
            z = np.int32(y - head - (before + q * lanes) * width)
            if z >= 0 and z < width and y >= 0:
                branch()
                for j in range(width):
                    if z == np.int32(j):
                        kept_here[q * width + j] = minus_inf
            for j in range(width):
                top = maximum(top, kept_here[q * width + j])
        if second:
            top = merged_top(found, row * parts, parts)
        else:
            top = largest(top)
        if in_cluster:
            top = of_cluster_largest(top)
        own_top = top
        if top == minus_inf:
            top = x_y

        # The exponentials, in the registers of their logits, and their sum R.
        base, k = pivot_of(top, over_t)
        shift_k, floor = shifted_by(k)
        if base != zero:
            for q in range(vectors):
                for j in range(width):
                    kept_here[q * width + j] = kept_here[q * width + j] - base
            of_edge = of_edge - base
        # A sum that begins above all terms is never smaller than one: three operations find a rounding error.
        r, r_tail = above, zero
        r, r_tail = exponentials(kept_here, 0, half, r, r_tail, shift_k, floor, over_t, over_t_tail)
        if half < vectors:
            r, r_tail = exponentials(kept_here, half, vectors, r, r_tail, shift_k, floor, over_t, over_t_tail)
        if edge:
            of_edge = exp_of(of_edge, shift_k, floor, over_t, over_t_tail)
            if not second:
                r, error = fast_two_sum(r, of_edge)
                r_tail = r_tail + error
        if second:
            r, r_tail = merged_sum(found, row * parts, parts, base, k, over_t, over_t_tail)
        else:
            r, r_tail = fast_two_sum(r - above, r_tail)
            r, r_tail = gather(r, r_tail)
        if in_cluster:
            r, r_tail = of_cluster_total(r, r_tail)
        if first:
            if lane == 0 and active:
                place = (row * parts + part) * FOUND
                write_word(found, place, own_top)
                write_word(found, place + 1, r)
                write_word(found, place + 2, r_tail)
                write_word(found, place + 3, x_y)
        else:
            # The target's exponential, E. Where it would overflow, the others fade instead.
            z_y, z_tail = two_sum(x_y, -base)
            if tempered:
                error = times(z_tail, over_t)
                z_y, z_tail = scaled_by(z_y, over_t, over_t_tail)
                z_tail = z_tail + error
            most = (k + high) * ln2
            of_y, tail_y = z_y, z_tail
            fade = one_real
            if of_y > most:
                branch()
                zero_shift, zero_floor = shifted_by(zero)
                fade = exponential(most - of_y, zero, zero_shift, zero_floor)
                r, r_tail = times(r, fade), times(r_tail, fade)
                of_y, tail_y = most, zero
            if tempered:
                e_y = exponential_of_pair(of_y, tail_y, shift_k, floor)
            else:
                e_y = exponential(of_y, zero, shift_k, floor)
            s, s_tail = add(r, r_tail, e_y, zero)
            if not (
                abs(top) < inf and x_y < inf
            ):  # a row with NaN or +inf, of nothing but -inf, or of no class
                s, s_tail = nan, zero
            # lse - base, lse, and the z-loss's slope 2 lam lse.
            lse_h, lse_t, whole, whole_t, bend, bend_t = zero, zero, zero, zero, zero, zero
            more_h, more_t = zero, zero
            if squared:
                more_h, more_t = loss_of(r, r_tail, e_y, s, s_tail, z_y, z_tail, k)
                lse_h, lse_t = lse_of(more_h, more_t, s, s_tail, fade != one_real, z_y, z_tail, k)
            if squared:
                whole, whole_t = base, zero
                if tempered:
                    whole, whole_t = scaled_by(base, over_t, over_t_tail)
                whole, whole_t = add(lse_h, lse_t, whole, whole_t)
                bend, bend_t = multiply(whole, whole_t, lam, lam_tail)
                bend, bend_t = bend + bend, bend_t + bend_t
            if wants_loss and lane == 0 and part == 0 and active:
                h, t = zero, zero
                if counted:
                    if squared:
                        h, t = more_h, more_t
                    else:
                        h, t = loss_of(r, r_tail, e_y, s, s_tail, z_y, z_tail, k)
                    if squared:
                        g, error = multiply(whole, whole_t, bend * half_real, bend_t * half_real)
                        h, t = add(h, t, g, error)
                    if s != s:
                        h = nan
                    if abs(h) < inf:
                        h, t = multiply(h, t, of_loss, of_loss_tail)
                    else:
                        h, t = h * of_loss, zero
                if pairs:
                    write_word(loss, 2 * row, h)
                    write_word(loss, 2 * row + 1, t)
                else:
                    write_word(loss, row, finish(h, t))
            if lanes <= WARP:  # a shuffle orders no memory: who reads the target must have done so
                cuda.syncwarp()
            if wants_grad and active:
                grad_start = row * grad_step
                by, by_tail, of_target = zero, zero, zero
                if counted:
                    by, by_tail = times(of_grad, fade), times(of_grad_tail, fade)
                    q_h, q_t = divide(r, r_tail, s, s_tail)
                    if squared:
                        g, error = add(one_real, zero, bend, bend_t)
                        by, by_tail = multiply(by, by_tail, g, error)
                        g, error = divide(e_y, zero, s, s_tail)
                        g, error = multiply(g, error, bend, bend_t)
                        q_h, q_t = add(q_h, q_t, -g, -error)
                    by, by_tail = divide(by, by_tail, s, s_tail)
                    q_h, q_t = multiply(q_h, q_t, of_grad, of_grad_tail)
                    of_target = -finish(q_h, q_t)
                else:  # 0 times NaN would not be 0
                    for q in range(vectors):
                        for j in range(width):
                            kept_here[q * width + j] = zero
                    of_edge = zero
                for q in range(vectors):
                    v = np.int32(before + q * lanes)
                    for j in range(width):
                        kept_here[q * width + j] = product(kept_here[q * width + j], by, by_tail)
                    if v < full:
                        if width > 1:
                            put(grad, grad_start + head + v * width, kept_here, q * width)
                        else:
                            write(grad, grad_start + v, kept_here[q])
                if edge and at_edge >= 0:
                    write(grad, grad_start + at_edge, product(of_edge, by, by_tail))
                # The thread that has the target has written 0 there, and goes over it.
                if y == at_edge and y >= 0:
                    write(grad, grad_start + y, of_target)
                v = np.int32((y - head) // width)
                if y >= head and v < full and v >= before and v < before + vectors * lanes - lane:
                    if (v - before) % lanes == 0:
                        write(grad, grad_start + y, of_target)

    return rows
