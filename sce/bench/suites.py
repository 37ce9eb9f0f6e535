"""Which tasks, and why these shapes."""

from __future__ import annotations

from collections.abc import Iterator

from sce import machine

from .task import ITEMSIZE, OPTIONS, Task

CLASSES = {
    2: "binary decisions",
    3: "iris; sentiment",
    5: "stars of a review",
    10: "digits, CIFAR-10",
    16: "a cache line of float32",
    32: "two of them",
    64: "the most that the CPU backend turns into columns",
    100: "CIFAR-100; odd for vectors",
    128: "the smallest width at which memory, not the row's own cost, is the limit",
    1000: "ImageNet",
    8192: "codebooks of image tokens",
    32000: "Llama 2's vocabulary",
    50257: "GPT-2's vocabulary: odd, so no row but the first is aligned",
    128256: "Llama 3's vocabulary",
    262144: "Gemma 3's vocabulary: a row is 1 MB",
}
QUICK = (10, 100, 1000, 32000)
HALVES = (*QUICK, 262144)  # they compute as float32 does: here is what converting costs, and half the bytes
TYPICAL = (10, 1000, 32000)  # where the cost of an option is measured
_CACHED = 1 << 20  # bytes of the matrix that lives in the cache
_LEAST, _SMALL = 1 << 27, 1 << 26  # bytes of a matrix past the cache; of the quick suite's


def rows(c: int, dtype: str, size: int) -> int:
    """As many rows as make a matrix of this many bytes; a multiple of 16, so that it can be images, too."""
    n = size // (c * ITEMSIZE[dtype])
    return max(1, n // 16 * 16 or n)


def past_cache(least: int = _LEAST) -> int:
    """Bytes of a matrix of which the last-level cache can keep only a small part; bounded by the memory."""
    return min(max(least, 4 * machine.last_level_cache()), machine.memory() // 32)


def quick() -> Iterator[Task]:
    """Three minutes with every peer: loss and gradient in float32, small to large, and a call's own cost."""
    size = min(past_cache(), max(_SMALL, 2 * machine.last_level_cache()))
    for c in QUICK:
        yield Task("loss_and_grad", rows(c, "float32", size), c)
    yield Task("loss_and_grad", 1, 10, where="call")


def full() -> Iterator[Task]:
    size = past_cache()
    for op in ("loss_and_grad", "loss"):
        for c in CLASSES:
            yield Task(op, rows(c, "float32", size), c)
    for dtype, classes in (("float64", CLASSES), ("float16", HALVES), ("bfloat16", HALVES)):
        for c in classes:
            yield Task("loss_and_grad", rows(c, dtype, size), c, dtype)
    for c in TYPICAL:
        yield Task("loss_and_grad", rows(c, "float32", _CACHED), c, where="cache")
    for c in (3, 21, 150):  # segmentation: PASCAL VOC has 21 classes, ADE20K 150
        yield Task("loss_and_grad", rows(c, "float32", size), c, layout="channels")
    for c in (128256, 262144):  # a batch of few rows must use every core, too
        yield Task("loss_and_grad", 2, c, where="cache")
    yield Task("loss_and_grad", 1, 10, where="call")
    for c in TYPICAL:
        for option in OPTIONS:
            yield Task("loss_and_grad", rows(c, "float32", size), c, option=option)


def smoke() -> Iterator[Task]:
    """Every kind of task once, tiny: the benches as tests."""
    for op in ("loss_and_grad", "loss"):
        yield Task(op, 64, 10)
    for dtype in ("float64", "float16", "bfloat16"):
        yield Task("loss_and_grad", 64, 10, dtype)
    yield Task("loss_and_grad", 64, 21, layout="channels")
    yield Task("loss_and_grad", 1, 10, where="call")
    for option in OPTIONS:
        yield Task("loss_and_grad", 64, 10, option=option)
