"""Every wrong argument is an error of the core, in words, before anything is computed or written.

Each case is tried on every registered backend, runnable or not: validation happens before the choice, so the
error must be the same one, word for word. A spy in the place of a backend shows that nothing was run.
"""

from __future__ import annotations

import copy
import enum
import pickle
import re
import sys
import types
from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

import sce
from sce import registry

NAN, INF = float("nan"), float("inf")
X = np.array([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
Y = np.array([2, 0])
SOFT = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
BACKENDS = [None, "auto", *sorted(registry.registered())]


@pytest.fixture
def spy():
    """A backend that must not run, named by its import path."""
    module = types.ModuleType("spies.backend")
    module.calls = []
    module.on_device, module.debug = False, False
    module.refuses = lambda problem: module.calls.append("refuses")
    module.missing = lambda: module.calls.append("missing")
    module.run = lambda problem, answer: module.calls.append("run")
    sys.modules["spies"], sys.modules["spies.backend"] = types.ModuleType("spies"), module
    registry.load.cache_clear()
    yield module
    del sys.modules["spies"], sys.modules["spies.backend"]
    registry.load.cache_clear()
    registry._ready.discard("spies.backend")


def complaint(call):
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the caller looks at type and words
        call()
    return type(caught.value), str(caught.value)


def rejects(spy, kind, words, logits=X, target=Y, **options):
    """loss_and_grad raises exactly this type with these words, whatever the backend, and nothing ran."""
    want = complaint(lambda: sce.loss_and_grad(logits, target, backend="spies.backend", **options))
    assert want[0] is kind, want
    assert re.search(words, want[1]), want[1]
    assert not spy.calls, "a backend was asked before the arguments were checked"
    for name in BACKENDS:
        assert complaint(lambda: sce.loss_and_grad(logits, target, backend=name, **options)) == want, name  # noqa: B023
    shared = {k: v for k, v in options.items() if k not in ("out", "grad_scale")}
    if shared == options:
        assert complaint(lambda: sce.cross_entropy(logits, target, **options)) == want
    assert complaint(lambda: sce.evaluate(logits, target, outputs=("grad",), **options)) == want
    assert complaint(lambda: sce.explain(logits, target, **options)) == want


# ---------------------------------------------------------------- logits


@pytest.mark.parametrize(
    ("logits", "kind", "words"),
    [
        (X.astype(int), TypeError, r"dtype int64, not one of float16, .*\.astype\(np\.float32\)"),
        (X.astype(np.uint8), TypeError, r"dtype uint8.*\.astype\(np\.float32\)"),
        (X > 0, TypeError, r"dtype bool.*\.astype\(np\.float32\)"),
        ([[1, 2, 3], [0, 0, 0]], TypeError, r"dtype int64"),
        (X.astype(complex), TypeError, r"dtype complex128.*pass \.real"),
        (X.astype(np.complex64), TypeError, r"dtype complex64.*pass \.real"),
        (X.astype(object), TypeError, r"dtype object.*real numbers"),
        (X.astype(str), TypeError, r"dtype <U.*real numbers"),
        (X.astype("M8[s]"), TypeError, r"dtype datetime64"),
        (X.astype(ml_dtypes.float8_e5m2), TypeError, r"dtype float8_e5m2, not one of"),
        (np.zeros((2, 3), "V2"), TypeError, r"\.view\(ml_dtypes\.bfloat16\)"),
        (np.ma.masked_array(X, X > 1), TypeError, r"logits is a masked array.*ignore_index|sample_weight"),
        ([[1.0, 2.0], [1.0]], TypeError, r"logits cannot be read as an array"),
        (None, TypeError, r"dtype object"),
        ("cat", TypeError, r"dtype <U3"),
        (np.float64(3.0), ValueError, r"single number.*class axis.*\(N, C\)"),
        (3.0, ValueError, r"single number"),
        (np.zeros((2, 0)), ValueError, r"shape \(2, 0\) has no classes on axis 1: C must be at least 1"),
        ([], ValueError, r"no classes"),
        (np.zeros((0, 0)), ValueError, r"no classes"),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else None,
)
def test_logits(spy, logits, kind, words):
    rejects(spy, kind, words, logits=logits)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="longdouble is float64 on this machine")
def test_longdouble_logits(spy):
    rejects(spy, TypeError, r"\.astype\(np\.float64\)", logits=X.astype(np.longdouble))


def test_other_narrow_types_are_not_taken_for_lost_bfloat16():
    for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.int4):
        _, words = complaint(lambda: sce.softmax(np.zeros(3, kind)))  # noqa: B023
        assert "read from a file" not in words, words


def test_the_unary_functions_check_the_same():
    for function in (sce.softmax, sce.log_softmax, sce.logsumexp):
        for x in (np.arange(3), X.astype(complex), np.ma.array(X), X.astype(object)):
            kind, words = complaint(lambda: function(x))  # noqa: B023
            assert kind is TypeError, words
        for x in (np.zeros((2, 0)), 3.0):
            with pytest.raises(ValueError, match="class"):
                function(x)
        for options in (
            {"axis": 2},
            {"axis": 1.0},
            {"temperature": 0},
            {"temperature": NAN},
            {"temperature": "2"},
        ):
            name = next(iter(options))
            with pytest.raises((TypeError, ValueError), match=name):
                function(X, **options)
        with pytest.raises(sce.BackendError, match="Did you mean 'reference'"):
            function(X, backend="refrence")


@pytest.mark.parametrize(
    ("axis", "kind", "words"),
    [
        (2, ValueError, r"axis 2 is outside \[-2, 2\) for logits of 2 dimension"),
        (-3, ValueError, r"axis -3 is outside \[-2, 2\)"),
        (2**70, ValueError, r"outside \[-2, 2\)"),
        (True, TypeError, r"axis must be an integer, got True"),
        (np.True_, TypeError, r"axis must be an integer"),
        (1.0, TypeError, r"axis must be an integer, got 1\.0"),
        ("1", TypeError, r"axis must be an integer, got '1'"),
        (None, TypeError, r"axis must be an integer, got None"),
        ((0, 1), TypeError, r"axis must be an integer, got \(0, 1\)"),
    ],
)
def test_axis(spy, axis, kind, words):
    rejects(spy, kind, words, axis=axis)


# ---------------------------------------------------------------- targets: dtype and shape


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        (None, TypeError, r"target"),
        (
            Y > 0,
            TypeError,
            r"target has dtype bool: class indices are integers \(shape \(2,\)\), distributions",
        ),
        (Y.astype(complex), TypeError, r"target has dtype complex128"),
        (Y.astype(object), TypeError, r"target has dtype object"),
        (["cat", "dog"], TypeError, r"target has dtype <U3: class indices are integers"),
        (np.ma.array(Y), TypeError, r"target is a masked array"),
        ([[1], [0, 1]], TypeError, r"target cannot be read as an array"),
        (
            Y.astype(float),
            ValueError,
            r"floating\) has shape \(2,\).*need \(2, 3\)\. For class indices.*np\.int64",
        ),
        (Y[:, None], ValueError, r"shape \(2, 1\).*need \(2,\): nothing broadcasts.*\.reshape\(2,\)"),
        (Y[None], ValueError, r"shape \(1, 2\).*need \(2,\)"),
        (Y[:1], ValueError, r"shape \(1,\).*need \(2,\): nothing broadcasts"),
        (np.array([0, 1, 2]), ValueError, r"shape \(3,\).*need \(2,\)"),
        (np.int64(1), ValueError, r"shape \(\).*need \(2,\)"),
        (SOFT.astype(int), ValueError, r"class indices has shape \(2, 3\).*distribution per row.*\.astype"),
        (
            SOFT[:1],
            ValueError,
            r"distributions \(floating\) has shape \(1, 3\).*need \(2, 3\): nothing broadcasts",
        ),
        (SOFT[0], ValueError, r"shape \(3,\).*need \(2, 3\)"),
        (SOFT[:, :1], ValueError, r"shape \(2, 1\).*need \(2, 3\)"),
        (SOFT.T, ValueError, r"shape \(3, 2\).*need \(2, 3\)"),
        (SOFT.astype(np.longdouble), TypeError, r"target has dtype"),
    ],
)
def test_target(spy, target, kind, words):
    if np.dtype(np.longdouble).itemsize == 8 and getattr(target, "dtype", None) == np.longdouble:
        pytest.skip("longdouble is float64 on this machine")
    rejects(spy, kind, words, target=target)


def test_a_row_of_integers_is_no_distribution(spy):
    rejects(spy, ValueError, r"shape \(3,\).*need \(\)", logits=X[0], target=np.array([0, 1, 0]))
    rejects(spy, ValueError, r"shape \(1,\).*need \(\)", logits=X[0], target=[1])


def test_one_class_is_not_ambiguous(spy):
    x = np.zeros((4, 1))
    rejects(spy, ValueError, r"need \(4, 1\)\. For class indices", logits=x, target=np.zeros(4))
    rejects(spy, ValueError, r"need \(4,\)", logits=x, target=np.zeros((4, 1), int))


def test_a_missing_target_is_an_error_in_evaluate_too():
    """None is how `explain` says "softmax"; nowhere else may it pass for a target."""
    for call in (
        lambda: sce.evaluate(X, None),
        lambda: sce.evaluate(X, None, outputs=("log_prob", "correct")),
        lambda: sce.cross_entropy(X, None),
    ):
        kind, words = complaint(call)
        assert kind is TypeError
        assert "target" in words


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 3], r"label 3 at position 1 is outside \[0, 3\) for logits of 3 classes"),
        ([5, 7], r"label 5 at position 0 is outside"),
        ([1, -1], r"label -1 at position 1 is outside \[0, 3\).*ignore_index"),
        ([-100, 1], r"label -100 at position 0 .*: to leave such rows out pass ignore_index=-100"),
        (np.array([127, -128], np.int8), r"label 127 at position 0"),
        (np.array([1, -128], np.int8), r"label -128 at position 1"),
        (np.array([1, 255], np.uint8), r"label 255 at position 1"),
        (np.array([1, 2**64 - 1], np.uint64), r"label 18446744073709551615 at position 1"),
        (np.array([2**63, 1], np.uint64), r"label 9223372036854775808 at position 0"),
        (np.array([1, 2**64 - 1], ">u8"), r"label 18446744073709551615 at position 1"),
        (np.array([1, -(2**63)]), r"label -9223372036854775808 at position 1"),
        (np.array([1, 768], ">i2"), r"label 768 at position 1"),
    ],
)
def test_label_out_of_range(spy, labels, words):
    rejects(spy, sce.LabelError, words, target=labels)


def test_label_error_is_both_a_value_error_and_an_index_error():
    with pytest.raises(ValueError, match="label 3"):
        sce.cross_entropy(X, [3, 0])
    with pytest.raises(IndexError, match="label 3"):
        sce.cross_entropy(X, [3, 0])


def test_the_position_is_the_whole_index(spy):
    x = np.zeros((2, 3, 4, 5))
    y = np.zeros((2, 3, 4), int)
    y[1, 0, 2] = 5
    y[1, 2, 0] = 9
    rejects(spy, sce.LabelError, r"label 5 at position \(1, 0, 2\) is outside \[0, 5\)", logits=x, target=y)
    first_axis = np.zeros((5, 2, 3))
    bad = np.zeros((2, 3), int)
    bad[0, 2] = -7
    rejects(spy, sce.LabelError, r"label -7 at position \(0, 2\)", logits=first_axis, target=bad, axis=0)
    # the first in the array's own order, whatever its layout in memory
    fortran = np.asfortranarray(np.array([[0, 0, 9], [8, 0, 0]]))
    rejects(spy, sce.LabelError, r"label 9 at position \(0, 2\)", logits=np.zeros((2, 3, 4)), target=fortran)


def test_a_single_row_has_no_position(spy):
    rejects(spy, sce.LabelError, r"label 3 is outside \[0, 3\)", logits=X[0], target=3)


def test_only_the_ignored_label_is_excused(spy):
    rejects(spy, sce.LabelError, r"label -1 at position 1", target=[-100, -1], ignore_index=-100)
    sce.cross_entropy(X, [-100, 1], ignore_index=-100)


def test_a_bad_label_in_a_row_of_weight_zero_is_still_an_error(spy):
    rejects(spy, sce.LabelError, r"label 9 at position 1", target=[0, 9], sample_weight=[1.0, 0.0])


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (1.0, TypeError, r"ignore_index must be an integer, got 1\.0"),
        (True, TypeError, r"ignore_index must be an integer, got True"),
        ("-100", TypeError, r"ignore_index must be an integer, got '-100'"),
        ([1], TypeError, r"ignore_index must be an integer"),
        (NAN, TypeError, r"ignore_index must be an integer"),
        (2**63, ValueError, r"ignore_index 9223372036854775808 does not fit in 64 bits"),
        (-(2**63) - 1, ValueError, r"does not fit in 64 bits"),
    ],
)
def test_ignore_index(spy, value, kind, words):
    rejects(spy, kind, words, ignore_index=value)


def test_ignore_index_with_distributions(spy):
    words = r"ignore_index has no meaning for a target of distributions.*sample_weight=0"
    rejects(spy, ValueError, words, target=SOFT, ignore_index=-100)
    rejects(spy, ValueError, words, target=SOFT, ignore_index=1)


# ---------------------------------------------------------------- weights and bias

VECTORS = {"class_weight": (3, "class"), "sample_weight": (2, "row"), "logit_bias": (3, "class")}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_the_wrong_shape(spy, name):
    n, per = VECTORS[name]
    for shape in ((n + 1,), (n - 1,), (1,), (n, 1), (1, n), (), (0,)):
        words = (
            rf"{name} has shape {re.escape(str(shape))}, not \({n},\): one .* per {per}, nothing broadcasts"
        )
        rejects(spy, ValueError, words, **{name: np.ones(shape)})
    rejects(spy, ValueError, rf"{name} has shape \(\), not \({n},\)", **{name: 2.0})


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_of_the_wrong_type(spy, name):
    n, per = VECTORS[name]
    for value in (
        np.ones(n, complex), np.ones(n, bool), np.ones(n, object), np.array(["1"] * n), np.ones(n, "M8[s]"),
    ):  # fmt: skip
        words = (
            rf"{name} has dtype {re.escape(str(value.dtype))}: it must hold real numbers, one .* per {per}"
        )
        rejects(spy, TypeError, words, **{name: value})
    rejects(spy, TypeError, rf"{name} is a masked array", **{name: np.ma.ones(n)})
    rejects(spy, TypeError, rf"{name} cannot be read as an array", **{name: [[1.0], [1.0, 2.0]]})


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["class_weight", "sample_weight"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8", ml_dtypes.bfloat16])
def test_weights_are_finite(spy, name, value, dtype):
    weights = np.ones(VECTORS[name][0])
    weights[1] = value
    rejects(
        spy, ValueError, rf"{name} must be finite: it holds {value} at position 1",
        **{name: weights.astype(dtype)},
    )  # fmt: skip


def test_the_position_of_a_bad_sample_weight_is_the_whole_index(spy):
    weights = np.ones((2, 3))
    weights[1, 2] = NAN
    rejects(
        spy, ValueError, r"sample_weight must be finite: it holds nan at position \(1, 2\)",
        logits=np.zeros((2, 3, 4)), target=np.zeros((2, 3), int), sample_weight=weights,
    )  # fmt: skip
    rejects(spy, ValueError, r"sample_weight must be finite", logits=X[0], target=1, sample_weight=NAN)


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bias_is_finite_or_minus_infinity(spy, value):
    words = rf"logit_bias must be finite, or -inf to remove a class: it holds {value} at position 2"
    rejects(spy, ValueError, words, logit_bias=[0.0, -INF, value])


def test_weights_whose_total_overflows(spy):
    """Finite weights without a finite total have no mean, and that is an error in words or an infinite D."""
    for weights in ([1e308, 1e308], [-1e308, -1e308]):
        rejects(spy, ValueError, r"sample_weight|total weight|denominator", sample_weight=weights)


# ---------------------------------------------------------------- scalars

SCALARS = {
    "label_smoothing": ([-0.1, 1.1, NAN, INF, -INF, np.float32(1.5)], r"in \[0, 1\]"),
    "temperature": ([0, 0.0, -1.0, NAN, INF, -0.0], r"finite and greater than 0"),
    "softcap": ([0, 0.0, -30.0, NAN, INF], r"finite and greater than 0"),
    "z_loss": ([-1e-9, NAN, INF, -INF], r"finite and at least 0"),
    "grad_scale": ([NAN, INF, -INF], r"finite"),
    "denominator": ([NAN, INF, -INF], r"finite"),
}


@pytest.mark.parametrize("name", SCALARS)
def test_a_scalar_outside_its_limits(spy, name):
    values, limits = SCALARS[name]
    for value in values:
        rejects(
            spy, ValueError, rf"{name} must be {limits}, got {re.escape(str(float(value)))}", **{name: value}
        )


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize(
    "value",
    ["0.5", b"0.5", True, np.True_, [0.5], np.array([0.5]), 1 + 0j, {}, object(), np.array(["a"])],
    ids=lambda v: type(v).__name__,
)
def test_a_scalar_that_is_no_real_number(spy, name, value):
    rejects(spy, TypeError, rf"{name} must be a real number, got", **{name: value})


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize(
    "value",
    [
        np.complex64(1 + 2j),
        np.array(True),
        np.array("1"),
        bytearray(b"1"),
        np.str_("1"),
        np.datetime64(1, "s"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_float_would_convert_is_no_real_number_either(spy, name, value):
    rejects(spy, TypeError, rf"{name} must be a real number, got", **{name: value})


@pytest.mark.parametrize("name", SCALARS)
def test_an_integer_beyond_every_float(spy, name):
    rejects(spy, ValueError, rf"{name} must be ", **{name: 10**400})


@pytest.mark.parametrize("name", ["label_smoothing", "temperature", "z_loss", "grad_scale"])
def test_none_is_no_number(spy, name):
    rejects(spy, TypeError, rf"{name} must be a real number, got None", **{name: None})


def test_numbers_of_any_kind_are_fine():
    for value in (1, np.int8(1), np.float16(1), np.array(1.0), Decimal(1), np.float32(1)):
        want = sce.cross_entropy(X, Y, backend="reference")
        assert sce.cross_entropy(X, Y, temperature=value, denominator=2 * value, backend="reference") == want


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reduction": "avg"}, r"unknown reduction 'avg'; it is one of 'none', 'sum', 'mean'"),
        ({"reduction": "means"}, r"Did you mean 'mean'\?"),
        ({"reduction": "Mean"}, r"unknown reduction 'Mean'.*Did you mean 'mean'\?"),
        ({"reduction": None}, r"unknown reduction None; it is one of 'none', 'sum', 'mean'"),
        ({"reduction": ["mean"]}, r"unknown reduction"),
        ({"reduction": np.array(["mean"])}, r"unknown reduction"),
        ({"reduction": np.array(["mean", "sum"])}, r"unknown reduction"),
        ({"empty": "Nan"}, r"unknown empty 'Nan'; it is one of 'nan', 'zero'\. Did you mean 'nan'\?"),
        ({"empty": 0}, r"unknown empty 0; it is one of 'nan', 'zero'"),
        ({"empty": NAN}, r"unknown empty nan"),
        ({"denominator": 3.0, "reduction": "sum"}, r'denominator replaces that of reduction="mean".*\'sum\''),
        (
            {"denominator": 3.0, "reduction": "none"},
            r'denominator replaces that of reduction="mean".*\'none\'',
        ),
    ],
)
def test_words(spy, given, words):
    rejects(spy, ValueError, words, **given)


def test_a_word_that_is_an_enum_member_means_its_value():
    class Reduction(str, enum.Enum):  # noqa: UP042 - StrEnum, whose str() is the value, hides the trap
        MEAN = "mean"
        NONE = "none"

    want = sce.cross_entropy(X, Y, backend="reference")
    assert sce.cross_entropy(X, Y, reduction=Reduction.MEAN, backend="reference") == want
    assert sce.cross_entropy(X, Y, reduction=Reduction.NONE, backend="reference").shape == (2,)


@pytest.mark.parametrize("value", ["no", 1.5, None, [], np.array([True, False])], ids=str)
def test_validate_is_a_bool(spy, value):
    """bool("no") is True and bool([]) is False: neither is what the caller meant."""
    rejects(spy, TypeError, r"validate must be True or False", validate=value)


def test_validate_takes_the_two_bools():
    for value in (True, False, np.True_, np.False_):
        sce.cross_entropy(X, Y, validate=value, backend="reference")


def test_an_unknown_option_is_a_type_error_that_names_it():
    for function in (sce.loss_and_grad, sce.cross_entropy, sce.evaluate, sce.explain):
        with pytest.raises(TypeError, match="smoothing_label"):
            function(X, Y, smoothing_label=0.1)
        with pytest.raises(TypeError):
            function(X, Y, 0)  # options are keyword-only


# ---------------------------------------------------------------- outputs of evaluate


@pytest.mark.parametrize(
    ("outputs", "kind", "words"),
    [
        (
            "loss",
            TypeError,
            r'outputs must be a sequence of names such as \("loss", "argmax"\), got \'loss\'',
        ),
        (None, TypeError, r"outputs must be a sequence of names"),
        (3, TypeError, r"outputs must be a sequence of names"),
        ((), ValueError, r"outputs must name at least one field and each once"),
        (("loss", "loss"), ValueError, r"each once, got \('loss', 'loss'\)"),
        (
            ("loss", "gradient"),
            ValueError,
            r"unknown output 'gradient'; it is one of 'loss', .*Did you mean 'grad'\?",
        ),
        (("accuracy",), ValueError, r"unknown output 'accuracy'; it is one of"),
        (("log_softmax",), ValueError, r"unknown output 'log_softmax'"),
        ((1,), ValueError, r"unknown output 1"),
    ],
)
def test_outputs(spy, outputs, kind, words):
    for name in ("spies.backend", *BACKENDS):
        got = complaint(lambda: sce.evaluate(X, Y, outputs=outputs, backend=name))  # noqa: B023
        assert got[0] is kind
        assert re.search(words, got[1]), got[1]
    assert not spy.calls


def test_out_needs_grad_among_the_outputs(spy):
    with pytest.raises(ValueError, match=r'out is where the gradient goes: name "grad" among the outputs'):
        sce.evaluate(X, Y, outputs=("loss",), out=np.empty_like(X), backend="spies.backend")
    assert not spy.calls


# ---------------------------------------------------------------- out


def refuses_out(spy, kind, words, out, logits=X, target=Y, **options):
    before = out.tobytes() if isinstance(out, np.ndarray) else None
    rejects(spy, kind, words, logits=logits, target=target, out=out, **options)
    for function in (sce.softmax, sce.log_softmax):
        assert complaint(lambda: function(logits, out=out))[0] is kind  # noqa: B023
    assert before is None or out.tobytes() == before


def read_only(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("out", "kind", "words"),
    [
        (np.ones((2, 4)), ValueError, r"out has shape \(2, 4\); it must have \(2, 3\)"),
        (np.ones((1, 3)), ValueError, r"out has shape \(1, 3\)"),
        (np.ones((1, 2, 3)), ValueError, r"out has shape \(1, 2, 3\)"),
        (np.ones((2, 3), np.float32), TypeError, r"out has dtype float32; it must have float64"),
        (np.ones((2, 3), np.float16), TypeError, r"out has dtype float16; it must have float64"),
        (np.ones((2, 3), int), TypeError, r"out has dtype int64; it must have float64"),
        (np.ones((2, 3), complex), TypeError, r"out has dtype complex128"),
        (np.ones((2, 3), ">f8" if sys.byteorder == "little" else "<f8"), TypeError, r"native byte order"),
        (read_only(np.ones((2, 3))), ValueError, r"out is read-only"),
        (np.broadcast_to(np.ones(3), (2, 3)), ValueError, r"out is read-only|overlaps itself"),
        ([[0.0] * 3] * 2, TypeError, r"out must be a NumPy array, got list"),
        (memoryview(np.ones((2, 3))), TypeError, r"out must be a NumPy array, got memoryview"),
    ],
)
def test_out(spy, out, kind, words):
    refuses_out(spy, kind, words, out)


def test_out_that_overlaps_itself(spy):
    for strides in ((0, 8), (8, 8), (8, 0), (16, 8), (-8, 8)):
        base = np.ones(20)
        out = np.lib.stride_tricks.as_strided(base[8:], (2, 3), strides, writeable=True)
        with pytest.raises(ValueError, match="out overlaps itself"):
            sce.loss_and_grad(X, Y, out=out, backend="spies.backend")
        assert (base == 1).all()
    assert not spy.calls


def test_out_that_does_not_overlap_itself_is_taken():
    for strides in ((24, 8), (8, 16), (-24, 8), (48, 16)):
        out = np.lib.stride_tricks.as_strided(np.ones(40)[12:], (2, 3), strides, writeable=True)
        grad = sce.loss_and_grad(X, Y, out=out, backend="reference")[1]
        assert np.array_equal(grad, sce.loss_and_grad(X, Y, backend="reference")[1])


def test_out_that_is_not_aligned(spy):
    out = np.zeros(6 * 8 + 1, np.uint8)[1:].view(np.float64).reshape(2, 3)
    refuses_out(spy, ValueError, r"out is not aligned", out)


def test_out_of_narrow_logits(spy):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        name = np.dtype(dtype).name
        words = rf"out has dtype float64; it must have {name} or float32"
        refuses_out(spy, TypeError, words, np.ones((2, 3)), logits=X.astype(dtype))
    refuses_out(spy, TypeError, r"it must have float16 or float32", np.ones((2, 3), ml_dtypes.bfloat16),
                logits=X.astype(np.float16))  # fmt: skip


def test_out_over_part_of_the_logits(spy):
    base = np.arange(12.0).reshape(4, 3) / 7
    before = base.copy()
    words = r"out overlaps logits, which would be overwritten.*pass out=logits itself, or separate memory"
    refuses_out(spy, ValueError, words, base[1:3], logits=base[:2])
    refuses_out(spy, ValueError, words, base[:2][::-1], logits=base[:2])
    refuses_out(spy, ValueError, words, base[:2, ::-1], logits=base[:2])
    square = base[:3]
    refuses_out(spy, ValueError, words, square.T, logits=square, target=[0, 1, 2])
    assert np.array_equal(base, before)


def test_out_beside_the_logits_in_one_buffer_is_fine():
    base = np.zeros((2, 6))
    base[:, ::2] = X
    sce.loss_and_grad(base[:, ::2], Y, out=base[:, 1::2], backend="reference")
    assert np.array_equal(base[:, ::2], X)
    again = base[:, ::2][...]  # another view of exactly the logits is the logits
    sce.loss_and_grad(base[:, ::2], Y, out=again, backend="reference")
    assert not np.array_equal(base[:, ::2], X)


def test_another_view_of_one_row_is_in_place_too():
    """A stride over an axis of length one means nothing."""
    x = X.copy()
    sce.loss_and_grad(x[:1], Y[:1], out=x[0][None], backend="reference")
    assert np.array_equal(x[:1], sce.loss_and_grad(X[:1], Y[:1], backend="reference")[1])


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_out_over_the_labels(spy, dtype):
    """Whatever their width: inputs are never written, also those that were copied before."""
    out = np.zeros((2, 3))
    labels = out.view(dtype)[:, 0]
    refuses = r"out overlaps target, which would be overwritten"
    rejects(spy, ValueError, refuses, target=labels, out=out)
    assert not out.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_out_over_a_distribution(spy, dtype):
    out = np.zeros((2, 3))
    soft = out.view(dtype)[:, :3]
    rejects(spy, ValueError, r"out overlaps target", target=soft, out=out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
@pytest.mark.parametrize("name", VECTORS)
def test_out_over_the_weights(spy, name, dtype):
    out = np.zeros((2, 3))
    weights = out.view(dtype).reshape(-1)[: VECTORS[name][0]]
    rejects(spy, ValueError, rf"out overlaps {name}", out=out, **{name: weights})
    assert not out.any()


def test_out_of_logsumexp():
    for out, kind, words in (
        (np.ones(3), ValueError, r"out has shape \(3,\); it must have \(2,\)"),
        (np.ones((2, 1)), ValueError, r"out has shape"),
        (np.ones(2, np.float32), TypeError, r"it must have float64"),
        (read_only(np.ones(2)), ValueError, r"read-only"),
        ([0.0, 0.0], TypeError, r"NumPy array"),
    ):
        with pytest.raises(kind, match=words):
            sce.logsumexp(X, out=out)
    x = X.copy()
    with pytest.raises(ValueError, match=r"out overlaps x.*pass separate memory") as caught:
        sce.logsumexp(x, out=x[:, 0])
    assert "out=logits" not in str(caught.value)  # there is no such thing here
    assert np.array_equal(x, X)
    with pytest.raises(TypeError, match=r"it must have float32"):
        sce.logsumexp(X.astype(np.float16), out=np.ones(2, np.float16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": [0, 9]}, {"class_weight": [1.0, NAN, 1.0]}, {"temperature": 0.0}, {"reduction": "avg"},
        {"sample_weight": [1.0]}, {"z_loss": -1}, {"backend": "refrence"}, {"grad_scale": NAN},
        {"logit_bias": [INF, 0.0, 0.0]}, {"denominator": NAN}, {"empty": "none"}, {"ignore_index": 0.5},
    ],
    ids=lambda w: next(iter(w)),
)  # fmt: skip
def test_out_is_untouched_by_every_other_error(wrong):
    out = np.full((2, 3), 7.0)
    given = {"target": Y, **wrong}
    with pytest.raises(Exception, match=r".") as caught:
        sce.loss_and_grad(X, given.pop("target"), out=out, **given)
    assert isinstance(caught.value, (TypeError, ValueError, sce.BackendError))
    assert (out == 7).all()
    work = X.copy()
    given = {"target": Y, **wrong}
    with pytest.raises(type(caught.value)):
        sce.loss_and_grad(work, given.pop("target"), out=work, **given)
    assert np.array_equal(work, X)


# ---------------------------------------------------------------- backends and devices


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("refrence", r"unknown backend 'refrence'; registered: .*reference.*Did you mean 'reference'\?"),
        ("CPU", r"unknown backend 'CPU'"),
        ("gpu", r"unknown backend 'gpu'.*import path, such as 'my_package\.my_backend'"),
        ("", r"unknown backend ''"),
        ("no.such.module", r"backend 'no\.such\.module'.*failed to import.*ModuleNotFoundError"),
        ("math.sin", r"failed to import"),
        ("..", r"failed to import"),
        ("os.path", r"os\.path is not a backend: it lacks on_device, debug, refuses, missing, run"),
    ],
)
def test_unknown_backend(name, words):
    for call in (
        lambda: sce.loss_and_grad(X, Y, backend=name),
        lambda: sce.cross_entropy(X, Y, backend=name),
        lambda: sce.softmax(X, backend=name),
        lambda: sce.explain(X, Y, backend=name),
        lambda: sce.use(name).__enter__(),
    ):
        with pytest.raises(sce.BackendError, match=words):
            call()


@pytest.mark.parametrize("value", [3, b"cpu", ["cpu"], np, True])
def test_a_backend_is_named_by_a_string(value):
    with pytest.raises(TypeError, match=rf"backend must be a name, got {type(value).__name__}"):
        sce.loss_and_grad(X, Y, backend=value)
    with pytest.raises(TypeError, match=rf"a name, got {type(value).__name__}"):
        sce.use(value).__enter__()


def test_use_needs_a_name():
    with pytest.raises(TypeError, match=r"a name, got NoneType"):
        sce.use(None).__enter__()


class OnDevice:
    """What CuPy and PyTorch arrays on a GPU show; the address is nobody's, so a read would crash."""

    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (8, False), "version": 3}  # noqa: RUF012


class ByDlpack:
    """The same through DLPack: 2 is CUDA, 13 is managed memory, 1 the host."""

    def __init__(self, kind):
        self.kind = kind

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **options):
        raise AssertionError("no data was to be touched")


@pytest.mark.parametrize("array", [OnDevice(), ByDlpack(2), ByDlpack(13)], ids=["cai", "dlpack", "managed"])
def test_device_arrays_are_not_moved(array):
    with pytest.raises(sce.BackendError, match=r"logits: on a CUDA device; target: on the host.*one place"):
        sce.loss_and_grad(array, Y)
    with pytest.raises(sce.BackendError, match=r"target: on a CUDA device; logits: on the host"):
        sce.loss_and_grad(X, array)
    with pytest.raises(
        sce.BackendError, match=r"sample_weight: on a CUDA device; logits, target: on the host"
    ):
        sce.loss_and_grad(X, Y, sample_weight=array)
    with pytest.raises(sce.BackendError, match=r"out: on a CUDA device; logits, target: on the host"):
        sce.loss_and_grad(X, Y, out=array)
    # On a device alone, a host backend refuses them; what says nothing of its memory cannot be read.
    refused = r"logits live on a device|cannot be read as a device array: no data was to be touched"
    with pytest.raises((sce.BackendError, TypeError), match=refused):
        sce.loss_and_grad(array, array, backend="reference")
    with pytest.raises((sce.BackendError, TypeError), match=refused):
        sce.softmax(array, backend="cpu")
    with pytest.raises((sce.BackendError, TypeError), match=r"on the host\. Move|out must be a NumPy array"):
        sce.logsumexp(X, out=array)


def test_extreme_temperatures_are_an_error():
    for options in ({"temperature": 1e-310}, {"temperature": 10.0, "softcap": 1e308}):
        with pytest.raises(ValueError, match=r"too extreme: temperature and its product with softcap"):
            sce.cross_entropy([[0.0, 1.0]], [0], **options)


def test_explain_names_the_option_it_does_not_know():
    with pytest.raises(TypeError, match=r"explain\(\) has no option 'foo'; it takes those of loss_and_grad"):
        sce.explain([[0.0, 1.0]], [0], foo=1)


def test_softmax_calls_its_argument_by_its_name():
    with pytest.raises(TypeError, match=r"^x has dtype int64"):
        sce.softmax(np.array([[1, 2]]))


def test_labels_that_fit_another_axis_say_which():
    with pytest.raises(ValueError, match=r"need \(2, 3, 4\). It fits axis=1: is that the class axis\?"):
        sce.cross_entropy(np.zeros((2, 3, 4, 5)), np.zeros((2, 4, 5), int))


def test_out_that_is_no_array_says_what_to_pass():
    with pytest.raises(TypeError, match=r"out must be a NumPy array, got list: pass its NumPy view"):
        sce.loss_and_grad(np.zeros((2, 3)), [0, 1], out=[[0.0] * 3] * 2)


def test_an_array_on_an_unknown_device_is_read_or_refused_with_words():
    class Meta:
        def __dlpack_device__(self):
            raise ValueError("Unknown device type meta for Dlpack")

        def __array__(self, dtype=None, copy=None):
            raise TypeError("Got unsupported ScalarType BFloat16")

    with pytest.raises(
        TypeError, match=r"logits cannot be read as an array: .*BFloat16.*view\(torch.int16\)"
    ):
        sce.cross_entropy(Meta(), [0])


# ---------------------------------------------------------------- what to do


def test_labels_of_one_logit_each_are_a_binary_loss(spy):
    x, y = X[0], np.array([0, 1, 1])
    words = r"one row of 3 classes.*binary_cross_entropy.*\(3, 2\): predict_log_proba.*np\.stack.*\.astype"
    rejects(spy, ValueError, words, logits=x, target=y)
    for function in (sce.information.expected_calibration_error, sce.information.reliability):
        with pytest.raises(ValueError, match=words):
            function(x, y)
    two = np.stack([0 * x, x], axis=-1)  # what the message says
    want = sce.binary_cross_entropy(x, y, backend="reference")
    assert sce.cross_entropy(two, y, backend="reference") == pytest.approx(want, rel=1e-14)
    words = r"distribution per row.*\.astype\(logits\.dtype\); for a label 0 or 1.*binary_cross_entropy"
    rejects(spy, ValueError, words, target=np.ones((2, 3), int))


def test_a_single_label_in_an_array_may_be_passed_as_it_is(spy):
    rejects(spy, ValueError, r"pass the number itself, or \.reshape\(\(\)\)", logits=X[0], target=[1])
    want = sce.cross_entropy(X[0], 1, backend="reference")
    assert sce.cross_entropy(X[0], np.array([1]).reshape(()), backend="reference") == want
    with pytest.raises(ValueError, match=r"pass the number itself, or \.reshape\(\(\)\)"):
        sce.binary_cross_entropy(0.5, [1])


LABELS = {
    "text": (np.array(["b", "a"]), r"dtype <U1.*np\.unique\({}, return_inverse=True\)\[1\]\.$"),
    "objects": (
        np.array(["b", "a"], object),
        r"dtype object.*np\.unique\({}, .*integers.*{}\.astype\(int\)\.$",
    ),
    "None": (None, r"^{} is None: class indices are integers"),
    "bool": (np.array([True, False]), r"dtype bool.* Convert it: {}\.astype\(int\)\.$"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_numbers(spy, name):
    target, words = LABELS[name]
    rejects(spy, TypeError, words.format(*["target"] * 2), target=target)
    with pytest.raises(TypeError, match=words.format("y", "y")):
        sce.linear_cross_entropy(X, np.zeros((3, 3)), target)
    if name != "bool":
        words = words.replace("class indices", "labels")
        with pytest.raises(TypeError, match=words.format("target", "target")):
            sce.binary_cross_entropy(X[0, :2], target)


def test_what_is_said_of_labels_helps():
    for names in (np.array(["b", "a"]), np.array(["b", "a"], object)):
        indices = np.unique(names, return_inverse=True)[1]
        want = sce.cross_entropy(X, [1, 0], backend="reference")
        assert sce.cross_entropy(X, indices, backend="reference") == want


def test_labels_of_a_binary_loss_are_0_and_1():
    for dtype in (np.int8, np.int64):
        with pytest.raises(sce.LabelError, match=r"label -1 at position 1.*pass target > 0.*ignore_index"):
            sce.binary_cross_entropy(X[0], np.array([1, -1, 1], dtype))
    loss = sce.binary_cross_entropy(X[0], np.array([1, -1, 1]) > 0, backend="reference")
    assert loss == sce.binary_cross_entropy(X[0], [1, 0, 1], backend="reference")


@pytest.mark.parametrize("kind", ["csr_array", "csr_matrix", "coo_array"])
def test_sparse_matrices(spy, kind):
    sparse = pytest.importorskip("scipy.sparse", reason="SciPy is not installed")
    x = getattr(sparse, kind)(X)
    words = rf"{{0}} is a sparse matrix \({kind}\), and only X.*pass {{0}}\.toarray\(\)\."
    rejects(spy, TypeError, words.format("logits"), logits=x)
    rejects(spy, TypeError, words.format("target"), target=x)
    rejects(spy, TypeError, words.format("sample_weight"), sample_weight=x)
    for name in ("W", "y", "bias"):
        given = {"X": X, "W": np.zeros((3, 2)), "y": Y % 2, name: x}
        with pytest.raises(TypeError, match=words.format(name)):
            sce.linear_cross_entropy(**given)


@pytest.mark.parametrize("value", ["equal", "quantiles", None])
def test_strategies_are_explained(value):
    words = rf"unknown strategy {value!r}; it is one of 'uniform' \(.*width\), 'quantile' \(.*weight\)\.$"
    with pytest.raises(ValueError, match=words):
        sce.information.expected_calibration_error(X, Y, strategy=value)


def test_a_field_that_was_not_asked_for():
    seen = sce.evaluate(X, Y, outputs=("loss", "argmax"), backend="reference")
    with pytest.raises(
        AttributeError, match=r"grad was not asked for: add 'grad' to `outputs`, \('loss', 'ar"
    ):
        seen.grad  # noqa: B018
    with pytest.raises(AttributeError, match=r"'Evaluation' object has no attribute 'gradient'"):
        seen.gradient  # noqa: B018
    assert not hasattr(seen, "entropy")
    for again in (pickle.loads(pickle.dumps(seen)), copy.deepcopy(seen)):
        assert again._fields == ("loss", "argmax")
        assert again.loss == seen.loss


def test_others_words_end_in_one_full_stop(spy):
    class Asks:
        """A PyTorch tensor of a model in training."""

        requires_grad = True

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("Use tensor.detach().numpy() instead.")

    rejects(spy, TypeError, r"^logits cannot .*: Use .* instead\. Pass logits\.detach\(\)\.$", logits=Asks())
    words = r"^{} cannot be read .*[^.]\. Make all rows of {} equally long\.$"
    rejects(spy, TypeError, words.format("logits", "logits"), logits=[[1.0, 2.0], [1.0]])
    rejects(spy, TypeError, words.format("target", "target"), target=[[0], [1, 0]])
