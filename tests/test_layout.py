"""Arrays of any shape, axis and strides against the definition of canonical rows.

Row `i` of the canonical (A, B, C) form is row `i` of `np.moveaxis(x, axis, -1).reshape(-1, C)`. Hypothesis
draws shapes of one to five dimensions with sizes 0 and 1, and memory that is transposed, sliced, reversed or
broadcast.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sce
from sce.layout import Layout, as_host, layout, native, on_device

# The same examples in every run: a failure is a change of the code. No deadline: machines differ.
thorough = settings(deadline=None, derandomize=True, max_examples=300)
brief = settings(deadline=None, derandomize=True, max_examples=120)


@st.composite
def arrays(draw, shape=None, smallest=0, dtype="float64", writeable=False):
    """An array of distinct values with the strides that a chain of views can give."""
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(smallest, 4), min_size=1, max_size=5)))
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from((1, 1, 1, 2, -1, -2))) for _ in shape]
    broadcast = [not writeable and draw(st.sampled_from((False, False, False, True))) for _ in shape]
    # the buffer, in the permuted order of axes, wide enough for every step
    wide = [1 if broadcast[k] else shape[k] * abs(steps[k]) for k in order]
    buffer = np.arange(math.prod(wide)).astype(dtype).reshape(wide)
    x = buffer.transpose(np.argsort(order))
    x = x[tuple(slice(None) if broadcast[k] else slice(None, None, steps[k]) for k in range(len(shape)))]
    x = np.broadcast_to(x, shape)
    if not any(broadcast):
        x.flags.writeable = True
    return x


@st.composite
def with_axis(draw, smallest=0):
    x = draw(arrays(smallest=smallest))
    return x, draw(st.integers(0, x.ndim - 1))


def rows_of(x, axis):
    """The definition: a copy of the rows, (N, C)."""
    n = math.prod(x.shape[:axis] + x.shape[axis + 1 :])  # not -1, which N = 0 leaves open
    return np.moveaxis(x, axis, -1).copy().reshape(n, x.shape[axis])


def mergeable(x, axis):
    """Whether any split of the row axes lets NumPy make the two merges without a copy."""
    moved = np.moveaxis(x, axis, -1)
    for split in range(moved.ndim):
        shape = (math.prod(moved.shape[:split]), math.prod(moved.shape[split:-1]), moved.shape[-1])
        try:
            moved.view().reshape(shape, copy=False)
        except ValueError:
            continue
        return True
    return False


@thorough
@given(with_axis())
def test_rows_are_those_of_the_definition(case):
    x, axis = case
    where = layout(axis, x)
    canonical = where.read(x)
    assert canonical.ndim == 3
    assert canonical.shape[2] == x.shape[axis]
    assert where.rows_shape == x.shape[:axis] + x.shape[axis + 1 :]
    want = rows_of(x, axis)
    assert np.array_equal(canonical.reshape(want.shape), want)
    a, b, _ = canonical.shape
    for i in range(min(len(want), 20)):
        assert np.array_equal(canonical[i // b, i % b], want[i])
    assert a * b == len(want)


@thorough
@given(with_axis(smallest=1))
def test_a_view_shares_memory_and_none_means_there_is_no_view(case):
    x, axis = case
    view = layout(axis, x).view(x)
    assert (view is not None) == mergeable(x, axis)
    if view is not None:
        assert view.__array_interface__["data"][0] == x.__array_interface__["data"][0]
        assert np.shares_memory(view, x)


@thorough
@given(with_axis())
def test_writing_back_round_trips(case):
    x, axis = case
    where = layout(axis, x)
    rows = where.read(x).copy()
    target = np.full(x.shape, -1.0)
    where.write(rows, target)
    assert np.array_equal(target, x)
    if x.flags.writeable and x.size:
        where.write(-rows, x)
        assert np.array_equal(where.read(x), -rows)
        view = where.view(x)
        if view is not None:  # and writing into the view is writing into the array
            view[...] = rows
            assert np.array_equal(target, x)


@thorough
@given(with_axis(), st.data())
def test_several_arrays_share_one_layout(case, data):
    first, axis = case
    second = data.draw(arrays(shape=first.shape))
    where = layout(axis, first, second)
    for x in (first, second):
        want = rows_of(x, axis)
        assert np.array_equal(where.read(x).reshape(want.shape), want)
    # the first array comes above all: the second never costs it its view
    if first.size:
        assert (where.view(first) is not None) == (layout(axis, first).view(first) is not None)


@thorough
@given(with_axis(), st.data())
def test_a_view_for_both_is_found_where_one_split_serves_both(case, data):
    first, axis = case
    second = data.draw(arrays(shape=first.shape))
    where = layout(axis, first, second)
    for split in range(first.ndim):
        other = Layout(first.shape, axis, split)
        if other.view(first) is not None and other.view(second) is not None:
            assert where.view(first) is not None
            assert where.view(second) is not None


@brief
@given(with_axis(smallest=1), st.sampled_from(["float64", "float32", "float16"]), st.data())
def test_the_api_gives_the_contiguous_answer_bit_for_bit(case, dtype, data):
    x, axis = case
    rng = np.random.default_rng(x.size)
    plain = (rng.standard_normal(x.shape) * 3).astype(dtype)
    strided = data.draw(arrays(shape=x.shape, dtype=dtype, writeable=True))
    strided[...] = plain
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis))
    fields = ("loss", "grad", "lse", "log_prob", "argmax", "correct", "entropy", "hess_diag")
    options = {
        "reduction": "none",
        "axis": axis,
        "backend": "reference",
        "label_smoothing": 0.1,
        "z_loss": 0.1,
    }
    want = sce.evaluate(np.moveaxis(plain, axis, -1).copy(), y, outputs=fields, **options | {"axis": -1})
    got = sce.evaluate(strided, y, outputs=fields, **options)
    for name in fields:
        a, b = np.asarray(getattr(got, name)), np.asarray(getattr(want, name))
        a = np.moveaxis(a, axis, -1) if name in ("grad", "hess_diag") else a
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), name


@brief
@given(with_axis(smallest=1), st.data())
def test_a_gradient_in_any_memory_and_in_place(case, data):
    x, axis = case
    plain = np.random.default_rng(x.size).standard_normal(x.shape)
    y = np.zeros(tuple(np.delete(x.shape, axis)), int)
    want = sce.loss_and_grad(plain, y, axis=axis, backend="reference")[1]
    out = data.draw(arrays(shape=x.shape, writeable=True))
    assert sce.loss_and_grad(plain, y, axis=axis, out=out, backend="reference")[1] is out
    assert np.allclose(out, want, rtol=1e-14, atol=0)
    work = data.draw(arrays(shape=x.shape, writeable=True))
    work[...] = plain
    assert sce.loss_and_grad(work, y, axis=axis, out=work, backend="reference")[1] is work
    assert np.allclose(work, want, rtol=1e-14, atol=0)


@pytest.mark.parametrize("shape", [(200, 33), (33, 200), (7, 5, 40)])
@pytest.mark.parametrize("axis", [0, -1])
def test_wide_rows_in_any_memory_order_give_the_same_bits(shape, axis):
    """Enough classes for a sum whose order depends on the memory to show."""
    x = np.random.default_rng(1).standard_normal(shape)
    y = np.zeros(np.delete(shape, axis), int)
    fields = ("loss", "grad", "lse", "log_prob", "entropy", "hess_diag")
    given = {
        "outputs": fields,
        "axis": axis,
        "reduction": "none",
        "label_smoothing": 0.2,
        "backend": "reference",
    }
    want = sce.evaluate(np.ascontiguousarray(x), y, **given)
    spread = np.repeat(x[..., None], 2, axis=-1)[..., 0]
    for other in (np.asfortranarray(x), spread, x[::-1].copy()[::-1]):
        assert np.array_equal(other, x)
        got = sce.evaluate(other, y, **given)
        for name in fields:
            assert np.array_equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize(
    ("shape", "axis", "canonical"),
    [
        ((6, 5), 1, (6, 1, 5)),
        ((6, 5), 0, (1, 5, 6)),
        ((2, 3, 4, 5), 1, (2, 20, 3)),
        ((2, 3, 5), 2, (6, 1, 5)),
        ((5,), 0, (1, 1, 5)),
    ],
)
def test_the_usual_layouts_are_views(shape, axis, canonical):
    x = np.zeros(shape)
    view = layout(axis, x).view(x)
    assert view is not None
    assert sorted(view.shape[:2]) == sorted(canonical[:2])
    assert view.shape[2] == canonical[2]


def test_three_row_strides_have_no_view():
    x = np.zeros((4, 6, 8, 5))[::2, ::2, ::2]
    where = layout(3, x)
    assert where.view(x) is None
    assert not np.shares_memory(where.read(x), x)


def test_native():
    x = np.arange(6.0)
    assert native(x) is x
    swapped = x.astype(x.dtype.newbyteorder())
    assert native(swapped).dtype.isnative
    assert np.array_equal(native(swapped), x)
    unaligned = np.zeros(49, np.uint8)[1:].view(np.float64)
    unaligned[:] = x
    assert native(unaligned).flags.aligned
    assert np.array_equal(native(unaligned), x)


def test_as_host_copies_nothing():
    x = np.arange(6.0)
    assert as_host(x, "x") is x

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return x

    class Capsule:
        def __dlpack__(self, **options):
            return x.__dlpack__(**options)

        def __dlpack_device__(self):
            return x.__dlpack_device__()

    for like in (Tensor(), Capsule(), memoryview(x)):
        assert np.shares_memory(as_host(like, "x"), x)
        assert not on_device(like)
    with pytest.raises(TypeError, match="x cannot be read as an array"):
        as_host([[1.0], [1.0, 2.0]], "x")


@thorough
@given(arrays(), st.data())
def test_without_a_class_axis_each_element_is_a_row(x, data):
    """Axis ndim: the elements in order, as rows of one class."""
    y = data.draw(arrays(shape=x.shape))
    where = layout(x.ndim, x, y)
    assert where.rows_shape == x.shape
    for each in (x, y):
        canonical = where.read(each)
        assert canonical.shape[2] == 1
        assert np.array_equal(canonical.reshape(-1), each.reshape(-1))
        into = np.zeros(x.shape)
        where.write(canonical, into)
        assert np.array_equal(into, each)
    ones = np.ones((*x.shape, 1))  # the same memory with a class axis of length 1
    plain = layout(x.ndim, ones)
    assert layout(x.ndim, ones[..., 0])._replace(shape=ones.shape) == plain


def test_a_single_number_is_a_row():
    where = layout(0, np.array(3.0))
    assert where.read(np.array(3.0)).tolist() == [[[3.0]]]
    assert where.rows_shape == ()
