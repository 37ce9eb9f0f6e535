"""Arrays on a CUDA device: what they are, and new ones of the caller's type.

PyTorch's and CuPy's arrays are read by their own attributes, which takes a microsecond; all others by the two
protocols there are. Nothing here touches device memory, imports a framework or needs CUDA: an array says
where its memory is, and its own library, which is imported already, makes the new ones.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, memory_at

LEGACY = 1  # the handle of the default stream that waits for the others
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLPack's type codes; 4 is bfloat16
_LIBRARIES = ("torch", "cupy", "jaxlib", "jax", "numba")


class Place(NamedTuple):
    """Where a call's arrays are: a device, and the stream that the caller works on there."""

    device: int  # its index
    stream: int
    wait: bool  # the caller's stream is not known: nothing may be under way when the call returns
    library: str = ""  # whose current stream that is


class Glance(NamedTuple):
    """A call's arrays, as far as it takes little time to see."""

    common: tuple[Any, ...]  # device, dtypes, shapes, strides, alignment: all but where they are
    at: tuple[int, ...]  # where they are; those that are None left out
    stream: int


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
    library = library_of(type(x))
    try:
        if library in _READERS and library == place.library:
            view = _by_attributes(x, library)
        else:  # another library's array: by DLPack, that one makes this stream wait for its own
            view = _by_dlpack(x, place) if hasattr(x, "__dlpack__") else _by_interface(x)
    except Exception as exc:
        hint = " Pass x.detach()." if getattr(x, "requires_grad", False) else ""
        raise TypeError(f"{name} cannot be read as a device array: {str(exc).rstrip('.')}.{hint}") from exc
    if not view.flags.aligned or not view.dtype.isnative:
        raise TypeError(f"{name} is not aligned to its dtype, or in foreign byte order: copy it first.")
    return view


def glance(arrays: Sequence[Any]) -> Glance | None:
    """Of arrays of one library (PyTorch, CuPy) on one device, the logits first; some may be None.

    None for all others: `describe` takes its time.
    """
    library = library_of(type(arrays[0]))
    if (read := _READERS.get(library)) is None:
        return None
    common: list[Any] = [library]
    at: list[int] = []
    try:
        index = -1
        for x in arrays:
            if x is None:
                common.append(None)
                continue
            where, facts = read(x)  # an error, if it is not this library's
            if facts[0] != index:
                if at:
                    return None
                index = facts[0]
            at.append(where)
            common.append(facts)
        return Glance(tuple(common), tuple(at), stream_of(library, index))
    except Exception:  # whatever is wrong with an array, `describe` will say it
        return None


def place_of(x: Any) -> Place:
    """The device and the stream of an array."""
    library = library_of(type(x))
    index = _device_of(x, library)
    if library in _READERS:
        return Place(index, stream_of(library, index), False, library)
    if hasattr(x, "block_until_ready"):  # JAX tells nobody its streams
        x.block_until_ready()
        return Place(index, LEGACY, True, library)
    handle = getattr(x, "__cuda_array_interface__", {}).get("stream")
    if (
        handle is None and library == "numba"
    ):  # its default stream: this one, or a thread's, which waits for it
        handle = LEGACY
    return Place(index, int(handle or LEGACY), handle is None, library)


def stream_of(library: str, index: int) -> int:
    """The handle of PyTorch's or CuPy's current stream on a device; the null stream by its other name."""
    if library == "torch":
        torch = sys.modules["torch"]
        raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # the public way makes an object: 2 us
        return int(raw(index) if raw else torch.cuda.current_stream(index).cuda_stream) or LEGACY
    return int(sys.modules["cupy"].cuda.get_current_stream(index).ptr) or LEGACY


def address(x: Any) -> int:
    """Of an array of PyTorch or CuPy: where it is."""
    where: int = x.data_ptr() if hasattr(x, "data_ptr") else x.data.ptr
    return where


def maker(like: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Callable[[], Any]:
    """Makes new arrays of the type of `like`, on its device, C-contiguous, not initialised."""
    library = library_of(type(like))
    if library == "numba":
        numba: Any = sys.modules["numba.cuda"]

        def by_numba() -> Any:
            with numba.gpus[_device_of(like, library)]:
                return numba.device_array(shape, dtype, stream=like.stream)

        return by_numba
    if library == "cupy":
        cupy: Any = sys.modules["cupy"]
        device = like.device

        def by_cupy() -> Any:
            with device:
                return cupy.empty(shape, dtype)

        return by_cupy
    if library == "torch":
        torch: Any = sys.modules["torch"]
        return partial(torch.empty, shape, dtype=getattr(torch, dtype.name), device=like.device)
    if not hasattr(like, "__array_namespace__"):
        raise TypeError(
            f"{type(like).__module__}.{type(like).__name__} has no way to make an array of its own type: pass"
            " what CuPy, PyTorch, JAX or Numba make of it."
        )
    namespace: Any = like.__array_namespace__()

    def by_standard() -> Any:
        made = namespace.empty(shape, dtype=getattr(namespace, dtype.name, dtype), device=like.device)
        if hasattr(made, "block_until_ready"):
            made.block_until_ready()
        return made

    return by_standard


def read_only(x: Any) -> bool:
    """May nobody write to an array? JAX's may be shared by others that hold the same values."""
    if library_of(type(x)) in _READERS:
        return False
    facts = getattr(x, "__cuda_array_interface__", None)
    return hasattr(x, "block_until_ready") or bool(facts and facts["data"][1])


_libraries: dict[type, str] = {}


def library_of(kind: type) -> str:
    """The package that an array's type, or one that it inherits from, comes from."""
    if (found := _libraries.get(kind)) is None:
        roots = [base.__module__.partition(".")[0] for base in kind.__mro__]
        found = _libraries[kind] = next((root for root in roots if root in _LIBRARIES), roots[0])
    return found


_Facts = tuple[int, Any, tuple[int, ...], tuple[int, ...], int]  # device, dtype, shape, strides, address % 16


def _read_torch(x: Any) -> tuple[int, _Facts]:
    """Address, and facts with strides in elements."""
    if x.requires_grad or x.is_neg() or not x.is_cuda:
        raise TypeError("it is not on a CUDA device, requires a gradient, or is a view with another sign")
    at = x.data_ptr()
    return at, (x.get_device(), x.dtype, x.shape, x.stride(), at & 15)


def _read_cupy(x: Any) -> tuple[int, _Facts]:
    """Address, and facts with strides in bytes."""
    memory = x.data
    at = memory.ptr
    return at, (memory.device_id, x.dtype, x.shape, x.strides, at & 15)


_READERS: dict[str, Callable[[Any], tuple[int, _Facts]]] = {"torch": _read_torch, "cupy": _read_cupy}


def _by_attributes(x: Any, library: str) -> Array:
    at, (_, kind, shape, strides, _) = _READERS[library](x)
    if library == "cupy":
        return memory_at(at, shape, kind, strides)
    name = str(kind).removeprefix("torch.")
    dtype = _bfloat16() if name == "bfloat16" else np.dtype(name)
    return memory_at(at, tuple(shape), dtype, tuple(n * dtype.itemsize for n in strides))


def _device_of(x: Any, library: str) -> int:
    """The index of its device."""
    if library == "numba":  # which has no DLPack
        return int(x.gpu_data.context.device.id)
    where = getattr(x, "__dlpack_device__", None)
    return int(where()[1]) if where is not None else int(getattr(getattr(x, "device", None), "id", 0))


def identity(like: Any, n: int) -> Any:
    """The identity matrix in float32, of the type of `like` and on its device."""
    root = library_of(type(like))
    if root == "numba":
        numba: Any = sys.modules["numba.cuda"]
        with numba.gpus[_device_of(like, root)]:
            return numba.to_device(np.eye(n, dtype=np.float32))
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
