"""Numba as the compiler: a kernel in, PTX and a cubin out, without a driver. The one file that knows it.

A kernel is a plain function made for a vocabulary (language.py); here are the words that a GPU understands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda as numba_cuda
from numba.cuda import types as numba_types
from numba.cuda.cudadrv import nvrtc as numba_nvrtc
from numba.cuda.extending import intrinsic

# Numba's own package of that name, which type checkers see, has less in it.
cuda: Any = numba_cuda
types: Any = numba_types
nvrtc: Any = numba_nvrtc

Capability = tuple[int, int]

_F32, _F64, _I16, _I32, _I64 = ir.FloatType(), ir.DoubleType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_HALVES = ("float16", "bfloat16")
_TYPES = {
    np.float32: types.float32,
    np.float64: types.float64,
    np.int32: types.int32,
    np.int64: types.int64,
}
_WORDS = {
    types.float32: types.int32, types.int32: types.float32,
    types.float64: types.int64, types.int64: types.float64,
}  # fmt: skip


def ptx(
    kernel: Callable[..., None],
    arguments: Sequence[tuple[str, str]],
    name: str,
    capability: Capability,
    bounds: tuple[int, int],
) -> str:
    """The PTX of a kernel for a compute capability. `bounds`: threads of a block, blocks of a processor."""
    signature = types.void(*(_argument(kind) for _, kind in arguments))
    text, _ = cuda.compile_ptx(
        kernel,
        signature,
        cc=capability,
        fastmath=False,  # it flushes subnormal numbers, approximates exp and drops error terms
        launch_bounds=bounds,
        abi_info={"abi_name": name},
    )
    return str(text)


def target(capability: Capability) -> tuple[Capability, bool]:
    """(the capability to compile for, does its machine code run on a device of this one).

    Machine code runs on later devices of the same major version. For a generation that this compiler does not
    know there is its newest PTX, which the driver compiles.
    """
    known = max(each for each in nvrtc.get_supported_ccs() if each <= capability)
    return known, known[0] == capability[0]


def link(text: str, capability: Capability) -> bytes:
    """The machine code of PTX."""
    from cuda.core import Linker, LinkerOptions, ObjectCode

    options = LinkerOptions(arch=f"sm_{capability[0]}{capability[1]}")
    return bytes(Linker(ObjectCode.from_ptx(text.encode()), options=options).link("cubin").code)


def _argument(kind: str) -> Any:
    """A pointer's or a number's type, by the names of `arguments`."""
    if not kind.startswith("*"):
        return getattr(types, kind)
    return types.CPointer(types.uint16 if kind[1:] in _HALVES else getattr(types, kind[1:]))


def _assembly(text: str, constraints: str, result: Any, *operands: Any, effects: bool = False) -> Any:
    kinds = [operand.type for operand in operands]
    return ir.InlineAsm(ir.FunctionType(result, kinds), text, constraints, side_effect=effects)


@intrinsic
def _fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, a, a), codegen


@intrinsic
def _times(typing: Any, a: Any, b: Any) -> Any:
    """a * b, rounded: the compiler must not fuse it with a sum, whose error terms would be wrong then."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        of, kind = ("f32", "f") if args[0].type == _F32 else ("f64", "d")
        text = f"mul.rn.{of} $0, $1, $2;"
        return builder.call(_assembly(text, f"={kind},{kind},{kind}", args[0].type, *args), args)

    return a(a, a), codegen


@intrinsic
def _inverse(typing: Any, x: Any) -> Any:
    """1 / x: of float32 within an ulp, of float64 rounded."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if args[0].type == _F32:
            return builder.call(_assembly("rcp.approx.f32 $0, $1;", "=f,f", _F32, *args), args)
        return builder.fdiv(ir.Constant(_F64, 1.0), args[0])

    return x(x), codegen


@intrinsic
def _maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger one; NaN where either is."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right = args
        if left.type == _F32:
            return builder.call(_assembly("max.NaN.f32 $0, $1, $2;", "=f,f,f", _F32, *args), args)
        is_nan = builder.fcmp_unordered("uno", left, left)
        return builder.select(builder.or_(builder.fcmp_ordered(">", left, right), is_nan), left, right)

    return a(a, a), codegen


@intrinsic
def _bits(typing: Any, x: Any) -> Any:
    """The bits of a float as an integer of its size, and back."""
    to = _WORDS[x]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(to))

    return to(x), codegen


def _place(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The address of element args[1] of the pointer args[0]."""
    return builder.gep(args[0], [context.cast(builder, args[1], signature.args[1], types.int64)])


def _element(context: Any, builder: Any, signature: Any, array: int, i: int, args: Any) -> Any:
    """The address of an element of a local or shared array."""
    data = context.make_array(signature.args[array])(context, builder, args[array]).data
    return builder.gep(data, [context.cast(builder, args[i], signature.args[i], types.int64)])


def _widened(builder: Any, raw: Any, dtype: str, to: Any) -> Any:
    """The bits of a half type as a float."""
    if dtype == "bfloat16":
        value = builder.bitcast(builder.shl(builder.zext(raw, _I32), ir.Constant(_I32, 16)), _F32)
    else:
        value = builder.fpext(builder.bitcast(raw, ir.HalfType()), _F32)
    return builder.fpext(value, to) if to == _F64 else value


def _narrowed(builder: Any, value: Any, dtype: str) -> Any:
    """A float as the bits of a half type, to the nearest."""
    if value.type == _F64:
        value = builder.fptrunc(value, _F32)
    to = "bf16" if dtype == "bfloat16" else "f16"
    return builder.call(_assembly(f"cvt.rn.{to}.f32 $0, $1;", "=h,f", _I16, value), [value])


def reader(dtype: str, real: Any) -> Any:
    """`read(pointer, i)`: element i of memory of this dtype, as a `real`."""
    to = _TYPES[real]

    @intrinsic
    def read_half(typing: Any, p: Any, i: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            raw = builder.load(_place(context, builder, signature, args))
            return _widened(builder, raw, dtype, context.get_value_type(to))

        return to(p, i), codegen

    @cuda.jit(device=True, inline="always")
    def read(p: Any, i: Any) -> Any:
        return real(p[i])

    return read_half if dtype in _HALVES else read


def writer(dtype: str, real: Any) -> Any:
    """`write(pointer, i, value)`: the value, rounded once (half types: by way of float32)."""
    number: Any = None if dtype in _HALVES else np.dtype(dtype).type

    @intrinsic
    def write_half(typing: Any, p: Any, i: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(_narrowed(builder, args[2], dtype), _place(context, builder, signature, args))
            return context.get_dummy_value()

        return types.void(p, i, value), codegen

    @cuda.jit(device=True, inline="always")
    def write(p: Any, i: Any, value: Any) -> None:
        p[i] = number(value)

    return write_half if dtype in _HALVES else write


def _lanes(dtype: str) -> tuple[int, Any]:
    """What 16 bytes hold: how many numbers, and the LLVM vector."""
    if dtype in _HALVES:
        return 8, ir.VectorType(_I32, 4)
    return (4, ir.VectorType(_F32, 4)) if dtype == "float32" else (2, ir.VectorType(_F64, 2))


def _cast(builder: Any, value: Any, to: Any) -> Any:
    if value.type == to:
        return value
    return builder.fpext(value, to) if to == _F64 else builder.fptrunc(value, to)


def fetcher(dtype: str, real: Any) -> Any:
    """`fetch(pointer, i, into, at)`: 16 aligned bytes from element i on, as reals at into[at], ..."""
    n, vector = _lanes(dtype)
    to = _F32 if real is np.float32 else _F64

    @intrinsic
    def fetch(typing: Any, p: Any, i: Any, into: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            place = builder.bitcast(_place(context, builder, signature, args), vector.as_pointer())
            found = builder.load(place, align=16)
            first = _element(context, builder, signature, 2, 3, args)
            for k in range(n):
                if dtype in _HALVES:
                    word = builder.extract_element(found, ir.Constant(_I32, k // 2))
                    if k % 2:
                        word = builder.lshr(word, ir.Constant(_I32, 16))
                    value = _widened(builder, builder.trunc(word, _I16), dtype, to)
                else:
                    value = _cast(builder, builder.extract_element(found, ir.Constant(_I32, k)), to)
                builder.store(value, builder.gep(first, [ir.Constant(_I64, k)]))
            return context.get_dummy_value()

        return types.void(p, i, into, at), codegen

    return fetch


def putter(dtype: str, real: Any) -> Any:
    """`put(pointer, i, values, at)`: the way back, each number rounded once."""
    n, vector = _lanes(dtype)
    of = {"float32": _F32, "float64": _F64}.get(dtype)

    @intrinsic
    def put(typing: Any, p: Any, i: Any, values: Any, at: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            first = _element(context, builder, signature, 2, 3, args)
            given = [builder.load(builder.gep(first, [ir.Constant(_I64, k)])) for k in range(n)]
            found = ir.Constant(vector, ir.Undefined)
            if dtype in _HALVES:  # two numbers are converted at once
                to = "bf16x2" if dtype == "bfloat16" else "f16x2"
                narrow = [_cast(builder, value, _F32) for value in given]
                words = []
                for low, high in zip(narrow[::2], narrow[1::2], strict=True):
                    code = _assembly(f"cvt.rn.{to}.f32 $0, $1, $2;", "=r,f,f", _I32, high, low)
                    words.append(builder.call(code, [high, low]))
                given = words
            else:
                given = [_cast(builder, value, of) for value in given]
            for k, value in enumerate(given):
                found = builder.insert_element(found, value, ir.Constant(_I32, k))
            place = builder.bitcast(_place(context, builder, signature, args), vector.as_pointer())
            builder.store(found, place, align=16)
            return context.get_dummy_value()

        return types.void(p, i, values, at), codegen

    return put


@intrinsic
def _branch(typing: Any) -> Any:
    """Nothing; but the compiler keeps the branch this stands in, where few threads go, a branch."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.call(_assembly("", "", ir.VoidType(), effects=True), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _past_16(typing: Any, p: Any, i: Any) -> Any:
    """How many bytes element i lies past a multiple of 16."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.ptrtoint(_place(context, builder, signature, args), _I64)
        return builder.trunc(builder.and_(address, ir.Constant(_I64, 15)), _I32)

    return types.int32(p, i), codegen


@intrinsic
def _rank(typing: Any) -> Any:
    """The block's number in its cluster."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.call(_assembly("mov.u32 $0, %cluster_ctarank;", "=r", _I32), [])

    return types.int32(), codegen


@intrinsic
def _cluster_barrier(typing: Any) -> Any:
    """All threads of the cluster meet; what they wrote to shared memory is seen by the others."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        text = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"
        barrier = _assembly(text, "~{memory}", ir.VoidType(), effects=True)
        builder.call(barrier, [], attrs=("convergent",))  # in one place, also behind a branch before it
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _peer(typing: Any, shared: Any, i: Any, rank: Any) -> Any:
    """Element i of the same shared array in another block of the cluster."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address = builder.ptrtoint(_element(context, builder, signature, 0, 1, args), _I64)
        other = context.cast(builder, args[2], signature.args[2], types.int32)
        to = context.get_value_type(shared.dtype)
        of, kind = ("f32", "f") if to == _F32 else ("f64", "d")
        text = (
            "{ .reg .u64 s; .reg .u32 a; cvta.to.shared.u64 s, $1; cvt.u32.u64 a, s;"
            f" mapa.shared::cluster.u32 a, a, $2; ld.shared::cluster.{of} $0, [a]; }}"
        )
        code = _assembly(text, f"={kind},l,r,~{{memory}}", to, address, other, effects=True)
        return builder.call(code, [address, other])

    return shared.dtype(shared, i, rank), codegen


def _of_math(name: str) -> Any:
    import math

    function = getattr(math, name)

    @cuda.jit(device=True, inline="always")
    def call(x: Any) -> Any:
        return function(x)

    return call


def words() -> SimpleNamespace:
    """The vocabulary."""
    return SimpleNamespace(
        cuda=cuda,
        inline=cuda.jit(device=True, inline="always"),
        fma=_fma,
        times=_times,
        inverse=_inverse,
        maximum=_maximum,
        bits_of=_bits,
        from_bits=_bits,
        exp=_of_math("exp"),
        log1p=_of_math("log1p"),
        tanh=_of_math("tanh"),
        cosh=_of_math("cosh"),
        reader=reader,
        writer=writer,
        fetcher=fetcher,
        putter=putter,
        branch=_branch,
        past_16=_past_16,
        rank=_rank,
        cluster_barrier=_cluster_barrier,
        peer=_peer,
    )
