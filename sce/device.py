"""Arrays on a CUDA device: what they are, by the two protocols there are, and new ones of the caller's type.

Nothing here touches device memory, imports a framework or needs CUDA: an array says where its memory is, and
its own library, which is imported already, makes the new ones.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, memory_at

LEGACY = 1  # the handle of the default stream that waits for the others
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLPack's type codes; 4 is bfloat16


class Place(NamedTuple):
    """Where a call's arrays are: a device, and the stream that the caller works on there."""

    device: int  # its index
    stream: int
    wait: bool  # the caller's stream is not known: nothing may be under way when the call returns


class _Tensor(ctypes.Structure):
    """DLPack's DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def describe(x: Any, name: str, place: Place) -> Array:
    """NumPy's description of a device array: its elements cannot be touched."""
    try:
        view = _by_dlpack(x, place) if hasattr(x, "__dlpack__") else _by_interface(x)
    except Exception as exc:
        hint = " Pass x.detach()." if getattr(x, "requires_grad", False) else ""
        raise TypeError(f"{name} cannot be read as a device array: {exc}.{hint}") from exc
    if not view.flags.aligned or not view.dtype.isnative:
        raise TypeError(f"{name} is not aligned to its dtype, or in foreign byte order: copy it first.")
    return view


def place_of(x: Any) -> Place:
    """The device and the stream of an array."""
    root = _root(x)
    where = getattr(x, "__dlpack_device__", None)
    index = int(where()[1]) if where is not None else int(getattr(getattr(x, "device", None), "id", 0))
    if root == "torch":
        handle = int(sys.modules["torch"].cuda.current_stream(index).cuda_stream)
        return Place(index, handle or LEGACY, False)
    if root == "cupy":
        return Place(index, int(sys.modules["cupy"].cuda.get_current_stream().ptr) or LEGACY, False)
    if hasattr(x, "block_until_ready"):  # JAX tells nobody its streams
        x.block_until_ready()
        return Place(index, LEGACY, True)
    known = getattr(x, "__cuda_array_interface__", {}).get("stream")
    return Place(index, int(known or LEGACY), known is None)


def empty(like: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """A new array of the type of `like`, on its device, C-contiguous, not initialised."""
    root = _root(like)
    if root == "numba":
        return sys.modules["numba.cuda"].device_array(shape, dtype)
    if root == "cupy":
        with like.device:
            return sys.modules["cupy"].empty(shape, dtype)
    if root == "torch":
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype.name), device=like.device)
    if not hasattr(like, "__array_namespace__"):
        raise TypeError(
            f"{type(like).__module__}.{type(like).__name__} has no way to make an array of its own type: pass"
            " what CuPy, PyTorch, JAX or Numba make of it."
        )
    library = like.__array_namespace__()
    made = library.empty(shape, dtype=getattr(library, dtype.name, dtype), device=like.device)
    if hasattr(made, "block_until_ready"):
        made.block_until_ready()
    return made


def identity(like: Any, n: int) -> Any:
    """The identity matrix in float32, of the type of `like` and on its device."""
    root = _root(like)
    if root == "numba":
        return sys.modules["numba.cuda"].to_device(np.eye(n, dtype=np.float32))
    if root == "cupy":
        with like.device:
            return sys.modules["cupy"].eye(n, dtype=np.float32)
    if root == "torch":
        torch = sys.modules["torch"]
        return torch.eye(n, dtype=torch.float32, device=like.device)
    library = like.__array_namespace__()
    made = library.eye(n, dtype=library.float32, device=like.device)
    if hasattr(made, "block_until_ready"):
        made.block_until_ready()
    return made


def _root(x: Any) -> str:
    """The package that an array's type comes from."""
    return type(x).__module__.partition(".")[0]


def _by_interface(x: Any) -> Array:
    """The CUDA array interface (version 3)."""
    facts = x.__cuda_array_interface__
    dtype = np.dtype(facts["typestr"])
    if str(getattr(x, "dtype", "")).endswith("bfloat16"):
        dtype = _bfloat16()
    return memory_at(int(facts["data"][0] or 0), tuple(facts["shape"]), dtype, facts.get("strides"))


def _by_dlpack(x: Any, place: Place) -> Array:
    """A DLPack capsule: read, and left to whoever made it."""
    capsule = x.__dlpack__(stream=place.stream)
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    t = _Tensor.from_address(get(capsule, b"dltensor"))
    if t.lanes != 1 or (t.code != 4 and t.code not in _KINDS):
        raise TypeError(f"DLPack type {t.code} of {t.bits} bits is not known here")
    dtype = _bfloat16() if t.code == 4 else np.dtype(f"{_KINDS[t.code]}{t.bits // 8}")
    shape = tuple(t.shape[: t.ndim])
    strides = tuple(n * dtype.itemsize for n in t.strides[: t.ndim]) if t.strides else None
    return memory_at((t.data or 0) + t.byte_offset, shape, dtype, strides)


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError as exc:
        raise TypeError("bfloat16 needs ml_dtypes: pip install 'sce[bfloat16]'") from exc
    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found
