"""Arrays as callers have them, and the canonical rows that backends see."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .backend import Array

_CUDA = (2, 13)  # DLPack's device types kDLCUDA and kDLCUDAManaged


def on_device(x: object) -> bool:
    """True where the data lives on a CUDA device."""
    if x is None or isinstance(x, np.ndarray):
        return False
    where = getattr(x, "__dlpack_device__", None)
    try:
        if where is not None:  # PyTorch's other property raises where a gradient is required
            return where()[0] in _CUDA
    except Exception:  # a device that DLPack does not know: reading it will say so
        return False
    return hasattr(x, "__cuda_array_interface__")


def as_host(x: Any, name: str) -> Array:
    """NumPy's view of host data, without a copy where the protocols allow it."""
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            how = "pass x.data, or x.filled(-np.inf) to leave classes out"
            if name != "x":
                how = f"pass {name}.data and exclude rows by sample_weight or ignore_index"
            raise TypeError(f"{name} is a masked array, and its mask would be lost: {how}.")
        # Subclasses such as np.matrix have indexing rules of their own.
        return x if type(x) is np.ndarray else x.view(np.ndarray)
    try:
        interface = hasattr(x, "__array__") or not hasattr(x, "__dlpack__")
        found = np.asarray(x if interface else np.from_dlpack(x))
    except Exception as exc:
        hint = ""
        if "BFloat16" in str(exc):  # PyTorch hands its bfloat16 to nobody
            hint = " Pass x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)."
        elif getattr(x, "requires_grad", False):
            hint = f" Pass {name}.detach()."
        elif "inhomogeneous" in str(exc):
            hint = f" Make all rows of {name} equally long."
        raise TypeError(f"{name} cannot be read as an array: {str(exc).rstrip('.')}.{hint}") from exc
    if found.dtype.kind == "O" and not found.ndim and hasattr(x, "toarray"):
        raise TypeError(
            f"{name} is a sparse matrix ({type(x).__name__}), and only X of a linear model may be sparse:"
            f" pass {name}.toarray()."
        )
    return found


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy works out anew each time: a microsecond or more, several times per call."""
    return dtype.name


def native(x: Array) -> Array:
    """The same values in native byte order, aligned."""
    if x.dtype.isnative and x.flags.aligned:
        return x
    return x.astype(x.dtype.newbyteorder("="))


class Layout(NamedTuple):
    """How N-d arrays with a class axis become (A, B, C) with row `i` at [i // B, i % B].

    Two row axes, not one, because the rows of (N, C, H, W) with axis=1 step through memory in two strides:
    with them the usual layouts are plain views and nothing is transposed in a temporary.
    """

    shape: tuple[int, ...]  # the logits'
    axis: int  # class axis, not negative; ndim where there is none: then each element is a row of one class
    split: int  # the row axes before it make A, the others B

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """The index target's shape."""
        return self.shape[: self.axis] + self.shape[self.axis + 1 :]

    def view(self, x: Array) -> Array | None:
        """`x`, shaped like the logits, as a view of shape (A, B, C), or None where there is none."""
        if self.split not in _splits(self.axis, x.shape, x.strides):
            return None
        return _class_last(np.asarray(x), self.axis).reshape(_canonical(*self))

    def read(self, x: Array) -> Array:
        """The view, or a copy where there is none."""
        view = self.view(x)
        if view is not None:
            return view
        return np.ascontiguousarray(_class_last(x, self.axis)).reshape(_canonical(*self))

    def write(self, rows: Array, x: Array) -> None:
        """Put (A, B, C) rows that are no view of `x` back into `x`."""
        moved = _class_last(np.asarray(x), self.axis)
        moved[...] = rows.reshape(moved.shape)


def layout(axis: int, *arrays: Array) -> Layout:
    """The layout under which as many of the arrays as possible (the first one above all) are views."""
    return _layout(axis, arrays[0].shape, *[x.strides for x in arrays])


@lru_cache(maxsize=1024)
def _layout(axis: int, shape: tuple[int, ...], *strides: tuple[int, ...]) -> Layout:
    found = range(len(shape[:axis] + shape[axis + 1 :]) + 1)
    for steps in strides:
        options = _splits(axis, shape, steps)
        both = range(max(found.start, options.start), min(found.stop, options.stop))
        found = both or found
    return Layout(shape, axis, found[-1])


@lru_cache(maxsize=1024)
def _canonical(shape: tuple[int, ...], axis: int, split: int) -> tuple[int, int, int]:
    rows = shape[:axis] + shape[axis + 1 :]
    return math.prod(rows[:split]), math.prod(rows[split:]), math.prod(shape[axis : axis + 1])


def _class_last(x: Array, axis: int) -> Array:
    if axis == x.ndim:
        return x[..., None]
    return x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1)


@lru_cache(maxsize=1024)
def _splits(axis: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> range:
    """The numbers of leading row axes that may be merged into A such that the rest merges into B, as views.

    Neighbouring axes merge when one step of the outer is a full run of the inner.
    """
    empty = 0 in shape
    shape, strides = shape[:axis] + shape[axis + 1 :], strides[:axis] + strides[axis + 1 :]
    first, last, outer = 0, len(shape), -1
    if empty:
        return range(first, last + 1)
    for inner in range(last):
        if shape[inner] == 1:
            continue
        if outer >= 0 and strides[outer] != strides[inner] * shape[inner]:
            first, last = max(first, outer + 1), min(last, inner)
        outer = inner
    return range(first, last + 1)
