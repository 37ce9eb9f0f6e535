"""Vectors of one cache line as values of compiled code: what kernels in vectors are made of.

Numba leaves vectors to LLVM, which finds them where a loop is plain enough: not where a row ends in less than
a vector, where two dtypes meet, where two arrays might overlap, or where one loop waits for the result of
another. Here they are written down: `load(one, address, one) * 2.0 + x` is a vector of 16 float32 or of
8 float64, on any processor; one with shorter registers takes several of them.

Operators take two vectors of a type, or one and a number; a comparison gives a mask, for `select`. In memory
functions `of` is a number of the type that lies there (memory.py), `one` one of the vector's own type: a load
widens, of float64 as float32 it rounds, and so does a store.
"""

from __future__ import annotations

import operator
from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils
from numba.core.imputils import lower_builtin, lower_cast
from numba.core.typeconv.castgraph import Conversion
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import models, register_model

from .cache import intrinsic

LINE = 64  # bytes
F32, F64 = nb.float32, nb.float64
_WORD = ir.IntType(32)


class Vector(nb.types.Type):
    """A cache line of numbers, or several."""

    def __init__(self, of: Any, lines: int = 1) -> None:
        self.of, self.lanes = of, lines * LINE * 8 // of.bitwidth
        super().__init__(f"vector of {self.lanes} {of}")

    def can_convert_from(self, typingctx: Any, other: Any) -> Any:
        return Conversion.safe if isinstance(other, nb.types.Number) else None


def _like(one: Any) -> Vector:
    """The vector of a number's type; of a vector its own."""
    return one if isinstance(one, Vector) else Vector(one)


class Mask(nb.types.Type):
    """A yes or no for each lane."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(f"mask of {lanes}")


def _ir(t: Any) -> Any:
    if isinstance(t, Mask):
        return ir.VectorType(ir.IntType(1), t.lanes)
    return ir.VectorType(ir.FloatType() if t.of == F32 else ir.DoubleType(), t.lanes)


@register_model(Vector)
@register_model(Mask)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _ir(fe_type))


def _constant(t: Any, values: Any) -> Any:
    return ir.Constant(t, [ir.Constant(t.element, value) for value in values])


def _splat(builder: Any, value: Any, count: int) -> Any:
    t = ir.VectorType(value.type, count)
    one = builder.insert_element(ir.Constant(t, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, _constant(ir.VectorType(_WORD, count), [0] * count))


def _call(builder: Any, name: str, result: Any, args: Any, **flags: Any) -> Any:
    """An intrinsic of LLVM's."""
    declared = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, declared, name), args, **flags)


def _name(t: Any) -> str:
    kind = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}.get(t.element) or f"i{t.element.width}"
    return f"v{t.count}{kind}"


# Operators.


@lower_cast(nb.types.Number, Vector)
def _cast(context: Any, builder: Any, of: Any, to: Any, value: Any) -> Any:
    return _splat(builder, context.cast(builder, value, of, to.of), to.lanes)


def _operator(function: Any, emit: Any, arguments: int = 2, compares: bool = False) -> None:
    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            vectors = [a for a in args if isinstance(a, Vector)]
            if len(args) != arguments or not vectors or any(a != vectors[0] for a in vectors):
                return None
            result = Mask(vectors[0].lanes) if compares else vectors[0]
            return signature(result, *vectors[:1] * arguments)

    @lower_builtin(function, *[Vector] * arguments)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, *args)


_operator(operator.add, lambda builder, a, b: builder.fadd(a, b))
_operator(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_operator(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_operator(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))
_operator(operator.neg, lambda builder, a: builder.fneg(a), arguments=1)
_operator(abs, lambda builder, a: _call(builder, f"llvm.fabs.{_name(a.type)}", a.type, [a]), arguments=1)
_operator(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), compares=True)
_operator(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), compares=True)
_operator(operator.eq, lambda builder, a, b: builder.fcmp_ordered("==", a, b), compares=True)
_operator(operator.ne, lambda builder, a, b: builder.fcmp_unordered("!=", a, b), compares=True)


@intrinsic
def fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    t = next(x for x in (a, b, c) if isinstance(x, Vector))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fma.{_name(_ir(t))}", _ir(t), args)

    return t(t, t, t), codegen


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where the mask says yes, else b. `select(a > b, a, b)` is one instruction: b where one is NaN."""
    t = a if isinstance(a, Vector) else b
    return t(mask, t, t), lambda context, builder, signature, args: builder.select(*args)


@intrinsic
def rounded(typingctx: Any, x: Any) -> Any:
    """To the nearest integers."""
    name = f"llvm.rint.{_name(_ir(x))}"
    return x(x), lambda context, builder, signature, args: _call(builder, name, _ir(x), args)


@intrinsic
def splat(typingctx: Any, x: Any) -> Any:
    """A number in every lane."""
    return Vector(x)(x), lambda context, builder, signature, args: _splat(builder, args[0], Vector(x).lanes)


@intrinsic
def several(typingctx: Any, x: Any) -> Any:
    """A number in every lane of four lines, for `one`. What waits for itself then has something to do."""
    t = Vector(x, 4)
    return t(x), lambda context, builder, signature, args: _splat(builder, args[0], t.lanes)


@intrinsic
def first(typingctx: Any, one: Any, n: Any) -> Any:
    """The mask of the lanes before n, which may be any number."""
    lanes = _like(one).lanes
    return Mask(lanes)(one, nb.int64), lambda context, builder, signature, args: _before(
        builder, args[1], lanes
    )


@intrinsic
def only(typingctx: Any, one: Any, n: Any) -> Any:
    """The mask of lane n, of none where there is no such lane."""
    lanes = Vector(one).lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = _constant(ir.VectorType(_WORD, lanes), range(lanes))
        there = builder.icmp_unsigned("<", args[1], ir.Constant(args[1].type, lanes))
        n = builder.select(there, builder.trunc(args[1], _WORD), ir.Constant(_WORD, -1))
        return builder.icmp_signed("==", numbers, _splat(builder, n, lanes))

    return Mask(lanes)(one, nb.int64), codegen


@intrinsic
def exponent(typingctx: Any, x: Any) -> Any:
    """The low bits of each lane's mantissa, moved to where the exponent is: a power of 2."""
    whole = ir.VectorType(ir.IntType(x.of.bitwidth), x.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        by = _constant(whole, [23 if x.of == F32 else 52] * x.lanes)
        return builder.bitcast(builder.shl(builder.bitcast(args[0], whole), by), args[0].type)

    return x(x), codegen


@intrinsic
def split(typingctx: Any, x: Any) -> Any:
    """(k, f) of 8 positive normal float64 x = 2^k f, f from sqrt(1/2) to sqrt(2)."""
    whole = ir.VectorType(ir.IntType(64), x.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, by = builder.bitcast(args[0], whole), _constant(whole, [52] * x.lanes)
        k = builder.ashr(builder.sub(bits, _constant(whole, [0x3FE6A09E667F3BCD] * x.lanes)), by)
        f = builder.bitcast(builder.sub(bits, builder.shl(k, by)), args[0].type)
        return context.make_tuple(builder, signature.return_type, [builder.sitofp(k, args[0].type), f])

    return nb.types.UniTuple(x, 2)(x), codegen


def _folded(builder: Any, value: Any, combine: Any) -> Any:
    """One number of a vector's lanes: halves are combined until one is left."""
    count = value.type.count
    while count > 1:
        count //= 2
        half = ir.VectorType(_WORD, count)
        low = builder.shuffle_vector(value, value, _constant(half, range(count)))
        high = builder.shuffle_vector(value, value, _constant(half, range(count, 2 * count)))
        value = combine(low, high)
    return builder.extract_element(value, ir.Constant(_WORD, 0))


@intrinsic
def largest(typingctx: Any, x: Any) -> Any:
    """The largest lane; none of them may be NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _folded(builder, args[0], lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))

    return x.of(x), codegen


@intrinsic
def anywhere(typingctx: Any, mask: Any) -> Any:
    """Does any lane say yes?"""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(mask.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 0))

    return nb.boolean(mask), codegen


@intrinsic
def first_of(typingctx: Any, mask: Any) -> Any:
    """The first lane that says yes; their number where none does."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits, word = builder.bitcast(args[0], ir.IntType(mask.lanes)), ir.IntType(64)
        end = builder.or_(builder.zext(bits, word), ir.Constant(word, 1 << mask.lanes))
        return builder.cttz(end, ir.Constant(ir.IntType(1), 1))

    return nb.int64(mask), codegen


@intrinsic
def total(typingctx: Any, x: Any) -> Any:
    """The sum of the lanes, in pairs."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _folded(builder, args[0], builder.fadd)

    return x.of(x), codegen


@intrinsic
def halves(typingctx: Any, x: Any) -> Any:
    """The first and the last half of a vector's float32 as float64."""
    wide = Vector(F64, x.lanes * 4 // LINE)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = ir.VectorType(_WORD, wide.lanes)
        found = [
            builder.fpext(
                builder.shuffle_vector(args[0], args[0], _constant(part, range(k, k + wide.lanes))), _ir(wide)
            )
            for k in (0, wide.lanes)
        ]
        return context.make_tuple(builder, signature.return_type, found)

    return nb.types.UniTuple(wide, 2)(x), codegen


@intrinsic
def widened(typingctx: Any, x: Any) -> Any:
    """All of a vector's float32 as float64, in twice as many lines."""
    wide = Vector(F64, x.lanes * 8 // LINE)
    return wide(x), lambda context, builder, signature, args: builder.fpext(args[0], _ir(wide))


@intrinsic
def narrowed(typingctx: Any, x: Any) -> Any:
    """The way back, rounded."""
    short = Vector(F32, x.lanes * 4 // LINE)
    return short(x), lambda context, builder, signature, args: builder.fptrunc(args[0], _ir(short))


@intrinsic
def joined(typingctx: Any, a: Any, b: Any) -> Any:
    """Two halves again, rounded."""
    narrow = Vector(F32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        part = ir.VectorType(ir.FloatType(), a.lanes)
        low, high = (builder.fptrunc(x, part) for x in args)
        return builder.shuffle_vector(
            low, high, _constant(ir.VectorType(_WORD, narrow.lanes), range(narrow.lanes))
        )

    return narrow(a, b), codegen


# Memory.


def _memory_type(of: Any, lanes: int) -> Any:
    bits = {nb.int16: ir.IntType(16), nb.uint16: ir.IntType(16), F32: ir.FloatType(), F64: ir.DoubleType()}
    return ir.VectorType(bits[of], lanes)


def _widen(builder: Any, of: Any, value: Any, one: Any) -> Any:
    count = value.type.count
    if of == nb.int16:
        halves = builder.bitcast(value, ir.VectorType(ir.HalfType(), count))
        value = builder.fpext(halves, ir.VectorType(ir.FloatType(), count))
    elif of == nb.uint16:
        words = ir.VectorType(_WORD, count)
        moved = builder.shl(builder.zext(value, words), _constant(words, [16] * count))
        value = builder.bitcast(moved, ir.VectorType(ir.FloatType(), count))
    if one == F64 and value.type.element == ir.FloatType():
        value = builder.fpext(value, ir.VectorType(ir.DoubleType(), count))
    if one == F32 and of == F64:
        value = builder.fptrunc(value, ir.VectorType(ir.FloatType(), count))
    return value


def _narrow(builder: Any, of: Any, value: Any) -> Any:
    count = value.type.count
    if of == F32 and value.type.element == ir.DoubleType():
        return builder.fptrunc(value, ir.VectorType(ir.FloatType(), count))
    if of == nb.int16:
        halves = builder.fptrunc(value, ir.VectorType(ir.HalfType(), count))
        return builder.bitcast(halves, ir.VectorType(ir.IntType(16), count))
    if of == nb.uint16:
        words = ir.VectorType(_WORD, count)
        bits = builder.bitcast(value, words)
        sixteen = _constant(words, [16] * count)
        odd = builder.and_(builder.lshr(bits, sixteen), _constant(words, [1] * count))
        rounded = builder.add(bits, builder.add(odd, _constant(words, [0x7FFF] * count)))
        # Rounding would carry a NaN's mantissa into the exponent.
        nan = builder.fcmp_unordered("uno", value, value)
        kept = builder.select(nan, _constant(words, [0x7FC00000] * count), rounded)
        return builder.trunc(builder.lshr(kept, sixteen), ir.VectorType(ir.IntType(16), count))
    return value


@intrinsic
def load(typingctx: Any, of: Any, address: Any, one: Any) -> Any:
    """The vector at an address."""
    vector = _like(one)
    t = _memory_type(of, vector.lanes)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[1], t.as_pointer())
        return _widen(builder, of, builder.load(place, align=of.bitwidth // 8), vector.of)

    return vector(of, nb.int64, one), codegen


def _before(builder: Any, n: Any, lanes: int) -> Any:
    """The mask of the lanes before n."""
    word = n.type
    n = builder.select(builder.icmp_signed("<", n, ir.Constant(word, lanes)), n, ir.Constant(word, lanes))
    n = builder.select(builder.icmp_signed(">", n, ir.Constant(word, 0)), n, ir.Constant(word, 0))
    numbers = _constant(ir.VectorType(_WORD, lanes), range(lanes))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(n, _WORD), lanes))


def _masked_load(builder: Any, of: Any, address: Any, mask: Any) -> Any:
    t = _memory_type(of, mask.type.count)
    place, align = builder.inttoptr(address, t.as_pointer()), ir.Constant(_WORD, of.bitwidth // 8)
    nothing = _constant(t, [0] * t.count)
    return _call(builder, f"llvm.masked.load.{_name(t)}.p0", t, [place, align, mask, nothing])


def _masked_store(builder: Any, of: Any, address: Any, value: Any, mask: Any) -> None:
    value = _narrow(builder, of, value)
    place, align = builder.inttoptr(address, value.type.as_pointer()), ir.Constant(_WORD, of.bitwidth // 8)
    name = f"llvm.masked.store.{_name(value.type)}.p0"
    _call(builder, name, ir.VoidType(), [value, place, align, mask])


@intrinsic
def load_first(typingctx: Any, of: Any, address: Any, one: Any, n: Any, other: Any) -> Any:
    """Its first n lanes; `other`, a number, in those that follow, whose memory is not touched."""
    vector = Vector(one)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mask = _before(builder, args[3], vector.lanes)
        found = _widen(builder, of, _masked_load(builder, of, args[1], mask), one)
        return builder.select(mask, found, _splat(builder, args[4], vector.lanes))

    return vector(of, nb.int64, one, nb.int64, one), codegen


@intrinsic
def load_integers(typingctx: Any, address: Any) -> Any:
    """8 int64, rounded to float64."""
    wide = Vector(F64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], ir.VectorType(ir.IntType(64), wide.lanes).as_pointer())
        return builder.sitofp(builder.load(place, align=8), _ir(wide))

    return wide(nb.int64), codegen


@intrinsic
def load_labels(typingctx: Any, of: Any, address: Any, one: Any, ignored: Any) -> Any:
    """The masks (is 1, is 0 or 1, is the ignored one) of a vector's integers; `ignored` is one of their type.

    Compared as the integers they are: floats would take 2^60 + 1 for 2^60.
    """
    lanes = _like(one).lanes

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        t = ir.VectorType(ir.IntType(of.bitwidth), lanes)
        value = builder.load(builder.inttoptr(args[1], t.as_pointer()), align=of.bitwidth // 8)
        skipped = builder.trunc(args[3], t.element) if of.bitwidth < 64 else args[3]
        ones, zeros = (builder.icmp_signed("==", value, _constant(t, [k] * lanes)) for k in (1, 0))
        skip = builder.icmp_signed("==", value, _splat(builder, skipped, lanes))
        masks = [ones, builder.or_(ones, zeros), skip]
        return context.make_tuple(builder, signature.return_type, masks)

    return nb.types.UniTuple(Mask(lanes), 3)(of, nb.int64, one, nb.int64), codegen


@intrinsic
def store(typingctx: Any, of: Any, address: Any, x: Any) -> Any:
    """A vector to an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _narrow(builder, of, args[2])
        builder.store(value, builder.inttoptr(args[1], value.type.as_pointer()), align=of.bitwidth // 8)
        return context.get_dummy_value()

    return nb.void(of, nb.int64, x), codegen


@intrinsic
def store_first(typingctx: Any, of: Any, address: Any, x: Any, n: Any) -> Any:
    """Its first n lanes; the memory after them is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _masked_store(builder, of, args[1], args[2], _before(builder, args[3], x.lanes))
        return context.get_dummy_value()

    return nb.void(of, nb.int64, x, nb.int64), codegen


@intrinsic
def stream(typingctx: Any, of: Any, address: Any, x: Any) -> Any:
    """A vector past the caches to an address that is a multiple of its size in memory."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = _narrow(builder, of, args[2])
        t = value.type
        at = builder.inttoptr(args[1], t.as_pointer())
        stored = builder.store(value, at, align=t.count * of.bitwidth // 8)
        past_caches = builder.module.add_metadata([ir.Constant(_WORD, 1)])
        stored.set_metadata("nontemporal", past_caches)
        return context.get_dummy_value()

    return nb.void(of, nb.int64, x), codegen


def _turned(builder: Any, vectors: list[Any]) -> None:
    """Square blocks of as many lanes as there are vectors, side by side, are transposed each."""
    lanes, step = vectors[0].type.count, 1
    while step < len(vectors):  # in each 2 step x 2 step, the corners beside the diagonal change places
        low = [j if not j & step else lanes + j - step for j in range(lanes)]
        high = [j + step if not j & step else lanes + j for j in range(lanes)]
        low, high = (_constant(ir.VectorType(_WORD, lanes), x) for x in (low, high))
        for k in range(len(vectors)):
            if not k & step:
                a, b = vectors[k], vectors[k + step]
                vectors[k] = builder.shuffle_vector(a, b, low)
                vectors[k + step] = builder.shuffle_vector(a, b, high)
        step *= 2


def _side_by_side(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        every = _constant(ir.VectorType(_WORD, size), range(size))
        parts = [builder.shuffle_vector(*parts[k : k + 2], every) for k in range(0, len(parts), 2)]
    return parts[0]


# Rows are as many as a vector has lanes, `apart` bytes apart, and of each of them n numbers count; columns
# are whole vectors, and as many as the name says: those after the n-th hold whatever. For few columns, rows
# that are a quarter or half of a vector are put side by side first.


def _to_columns(part: int) -> Any:
    @intrinsic
    def to_columns(
        typingctx: Any, of: Any, one: Any, rows: Any, apart: Any, n: Any, columns: Any, step: Any
    ) -> Any:
        lanes = Vector(one).lanes
        count = lanes // part

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, _, row, apart, n, column, step = args
            mask, found = _before(builder, n, count), []
            for _ in range(lanes):
                found.append(_widen(builder, of, _masked_load(builder, of, row, mask), one))
                row = builder.add(row, apart)
            vectors = [_side_by_side(builder, found[k::count]) for k in range(count)]
            _turned(builder, vectors)
            for vector in vectors:
                place = builder.inttoptr(column, vector.type.as_pointer())
                builder.store(vector, place, align=one.bitwidth // 8)
                column = builder.add(column, step)
            return context.get_dummy_value()

        return nb.void(of, one, *[nb.int64] * 5), codegen

    return to_columns


def _to_rows(part: int) -> Any:
    @intrinsic
    def to_rows(
        typingctx: Any, one: Any, into: Any, columns: Any, step: Any, n: Any, rows: Any, apart: Any
    ) -> Any:
        lanes = Vector(one).lanes
        count = lanes // part

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, _, column, step, n, row, apart = args
            vectors = []
            for _ in range(count):
                place = builder.inttoptr(column, _ir(Vector(one)).as_pointer())
                vectors.append(builder.load(place, align=one.bitwidth // 8))
                column = builder.add(column, step)
            _turned(builder, vectors)
            mask = _before(builder, n, count)
            for k in range(lanes):
                first = k // count * count
                own = _constant(ir.VectorType(_WORD, count), range(first, first + count))
                vector = vectors[k % count]
                _masked_store(builder, into, row, builder.shuffle_vector(vector, vector, own), mask)
                row = builder.add(row, apart)
            return context.get_dummy_value()

        return nb.void(one, into, *[nb.int64] * 5), codegen

    return to_rows


to_columns, half_to_columns, quarter_to_columns = (_to_columns(part) for part in (1, 2, 4))
to_rows, half_to_rows, quarter_to_rows = (_to_rows(part) for part in (1, 2, 4))
