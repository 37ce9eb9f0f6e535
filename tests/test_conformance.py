"""The conformance suite on every registered backend; what it covers; and what it exports."""

from __future__ import annotations

import inspect
import json
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest

import sce
from sce import conformance
from sce.backend import DTYPES, Answer
from sce.conformance.bounds import ulp
from sce.conformance.case import FUNCTIONS, Exact, cast, unavailable
from sce.conformance.expected import expected

SHOWN = 12  # failures printed for each group
NOT_OPTIONS = {"logits", "target", "outputs", "backend"}
OPTIONS = {
    name: parameter.default
    for name, parameter in inspect.signature(sce.evaluate).parameters.items()
    if name not in NOT_OPTIONS
}


@cache
def every_case():
    return conformance.cases()


GROUPS = tuple(dict.fromkeys(case.group for case in every_case()))


@pytest.mark.parametrize("group", GROUPS)
def test_backend_conforms(backend, group, request):
    report = conformance.check(backend, [case for case in every_case() if case.group == group])
    lines = [f"{f.case} | {f.output}: {f.message}" for f in report.failures[:SHOWN]]
    if len(report.failures) > SHOWN:
        lines.append(f"... {len(report.failures)} failures in {report.failed} cases")
    assert not report.failures, "\n".join(["", *lines])
    if not report.passed:
        why = f"nothing ran: {report.skips[0][1]}"
        pytest.fail(why) if request.config.getoption("backend") else pytest.skip(why)


def test_the_cases_are_the_same_every_time():
    again = conformance.cases()
    assert [case.name for case in again] == [case.name for case in every_case()]
    for one, two in zip(again[::97], every_case()[::97], strict=True):
        assert np.asarray(one.logits).tobytes() == np.asarray(two.logits).tobytes(), one.name


def chosen(case):
    """The options that this case sets to something else than their default."""
    names = {name for name, value in case.options.items() if value is not OPTIONS.get(name, value)}
    if case.options.get("reduction") == "mean":
        names.discard("reduction")
    if case.options.get("axis") == -1:
        names.discard("axis")
    return names | ({"out"} if case.out else set())


def kind(case):
    return "index" if np.asarray(case.target).dtype.kind in "iu" else "distribution"


def dtype_of(case):
    return case.name.split()[0]


def test_every_option_is_there_for_every_dtype_and_target():
    seen = {
        (dtype_of(case), kind(case), name)
        for case in every_case()
        if case.function == "evaluate"
        for name in chosen(case)
    }
    for dtype, target, name in product(DTYPES, ("index", "distribution"), OPTIONS):
        if (target, name) not in {("distribution", "ignore_index"), ("distribution", "out")}:
            assert (dtype, target, name) in seen


def test_every_pair_of_options_is_there_for_every_dtype_and_target():
    seen = {
        (dtype_of(case), kind(case), pair)
        for case in every_case()
        if case.group == "pairs"
        for pair in combinations(sorted(chosen(case)), 2)
    }
    # `denominator` is legal under reduction="mean" alone; the class axis is no option of a backend.
    pairs = set(combinations(sorted(set(OPTIONS) - {"axis"}), 2)) - {("denominator", "reduction")}
    for dtype, pair in product(DTYPES, pairs):
        assert (dtype, "index", pair) in seen
        assert (dtype, "distribution", pair) in seen or "ignore_index" in pair


def test_every_option_of_binary_is_there_alone_and_in_pairs_for_every_dtype_and_target():
    defaults = {**inspect.signature(sce.binary_loss_grad_hess).parameters}
    names = set(defaults) - NOT_OPTIONS - {"out"}
    alone, pairs = set(), set()
    for case in every_case():
        if case.function == "binary":
            given = {k for k, v in case.options.items() if v is not defaults[k].default and k != "reduction"}
            soft = np.asarray(case.target).dtype.kind == "f"
            alone |= {(dtype_of(case), soft, name) for name in given}
            pairs |= {(dtype_of(case), soft, pair) for pair in combinations(sorted(given), 2)}
    wanted = {
        (dtype, soft, name)
        for dtype, soft, name in product(DTYPES, (False, True), names)
        if not (soft and name == "ignore_index")
    }
    assert wanted - alone <= {(dtype, soft, "reduction") for dtype, soft, _ in wanted}
    for dtype, soft, pair in product(DTYPES, (False, True), combinations(sorted(names - {"reduction"}), 2)):
        assert (dtype, soft, pair) in pairs or (soft and "ignore_index" in pair), (dtype, soft, pair)


def test_every_output_is_there_for_every_dtype():
    seen = {(dtype_of(case), case.function, name) for case in every_case() for name in case.outputs}
    wanted = {(d, function, name) for d in DTYPES for function, names in FUNCTIONS.items() for name in names}
    assert wanted <= seen
    assert {name for names in FUNCTIONS.values() for name in names} == set(Answer._fields)


def test_outputs_come_in_few_combinations():
    """A compiling backend builds a kernel for each."""
    assert len({case.outputs for case in every_case()}) == 3 + 3 + 3 + 2


def test_every_label_type_is_there():
    names = {np.asarray(case.target).dtype.name for case in every_case() if case.group == "targets"}
    assert {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)} <= names


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulp_is_the_distance_to_the_next_number(dtype):
    numbers = cast(np.geomspace(1e-4, 1e4, 50), dtype)
    bits = numbers.view(f"u{numbers.dtype.itemsize}")
    following = (bits + 1).view(numbers.dtype).astype(np.float64)
    assert (ulp(numbers.astype(np.float64), dtype) == following - numbers.astype(np.float64)).all()
    smallest = np.array([1], bits.dtype).view(numbers.dtype).astype(np.float64)
    assert (ulp([0.0, smallest[0]], dtype) == smallest).all()


def test_bounds_leave_no_room_where_nothing_cancels():
    """A confident float32 row: the loss is known to 2 ulp of itself, and so is the gradient, to 3."""
    x = np.array([[25.0, 0, 0], [0, 1, 2]], np.float32)
    known = expected(conformance.Case("here", "confident", x, np.array([0, 1]), {"reduction": "none"}))
    loss, grad = known.want["loss"], known.want["grad"]
    assert (known.bound["loss"].allowed == 2 * np.spacing(loss.astype(np.float32))).all()
    assert np.allclose(known.bound["grad"].allowed, 3 * np.spacing(np.abs(grad.astype(np.float32))))


def test_a_wrong_closed_form_is_a_failure():
    case = conformance.Case("here", "one", np.zeros((1, 2)), np.array([0]), exact=(Exact("loss", ..., 0.7),))
    report = conformance.check("reference", [case])
    assert (report.passed, report.failed) == (0, 1)
    assert "closed form: got 0.69314718055994" in report.failures[0].message


def test_what_cannot_be_made_here_is_skipped_with_the_reason():
    case = conformance.Case("here", "one", np.zeros((1, 2)), np.array([0]), skip="no such type.")
    report = conformance.check("reference", [case])
    assert (report.passed, report.skipped, report.skips) == (0, 1, (("one", "no such type."),))


def test_on_case_sees_each_case():
    seen = []
    few = every_case()[:5]
    conformance.check("reference", few, on_case=seen.append)
    assert seen == list(few)


def test_a_backend_that_cannot_run_is_an_error():
    with pytest.raises(sce.BackendError, match="unknown backend 'nowhere'"):
        conformance.check("nowhere", [])


def test_export_round_trip(tmp_path):
    """What a reader of the files alone would do: build the case again, ask, and compare."""
    few = [case for case in every_case()[::61] if case.out not in ("in place", "over v")]
    count = conformance.export(tmp_path / "cases", few)
    files = sorted((tmp_path / "cases").glob("*.npz"))
    assert count == len(files) == sum(case.skip is None for case in few)
    assert "expected_OUTPUT" in (tmp_path / "cases" / "README.txt").read_text()
    for file in files:
        with np.load(file) as stored:
            read_back(dict(stored))


def read_back(stored):
    facts = json.loads(str(stored["case"]))
    options = facts["options"] | {k[7:]: v for k, v in stored.items() if k.startswith("option_")}
    inputs = {
        name: typed(stored[name], facts["dtypes"][name]) for name in ("logits", "target") if name in stored
    }
    if facts["out"] == "float32":
        options["out"] = np.empty(inputs["logits"].shape, np.float32)
    if facts["function"] == "evaluate":
        outputs = tuple(facts["outputs"])
        values = sce.evaluate(**inputs, outputs=outputs, backend="reference", **options)._asdict()
    else:
        if "v" in options:
            inputs["v"] = typed(options.pop("v"), facts["dtypes"]["option_v"])
        if facts["function"] in ("hvp", "softmax_jvp", "log_softmax_jvp", "log_softmax_vjp"):
            options = {name: x for name, x in options.items() if name not in ("grad_scale", "empty")}
        function = getattr(
            sce, "binary_loss_grad_hess" if facts["function"] == "binary" else facts["function"]
        )
        given = {
            "x" if name == "logits" and "target" not in inputs else name: x for name, x in inputs.items()
        }
        value = function(**given, backend="reference", **options)
        several = value if isinstance(value, tuple) else (value,)
        values = dict(zip(FUNCTIONS[facts["function"]], several, strict=True))
        values = {name: values[name] for name in facts["outputs"]}
    for name, got in values.items():
        want, allowed = stored[f"expected_{name}"], stored[f"allowed_{name}"]
        with np.errstate(all="ignore"):
            got = np.asarray(got)
            special = ~np.isfinite(want.astype(got.dtype))
            near = np.abs(got.astype(np.float64) - want.astype(np.float64)) <= allowed
            same = np.isclose(
                got.astype(np.float64), want.astype(got.dtype).astype(np.float64), equal_nan=True
            )
            assert np.where(special, same, near).all(), (facts["name"], name)


def typed(x, dtype):
    return x.view(cast(0.0, dtype).dtype) if dtype == "bfloat16" else x


def test_export_file_names_differ_in_more_than_case():
    from sce.conformance.archive import _file_name

    names = [_file_name(case).lower() for case in every_case()]
    assert len(set(names)) == len(names)


def test_export_writes_into_no_directory_with_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"other files, such as 'thesis\.tex'"):
        conformance.export(tmp_path, [])
    with pytest.raises(NotADirectoryError, match="is a file"):
        conformance.export(tmp_path / "thesis.tex", [])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_bfloat16_is_skipped_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    assert unavailable("bfloat16") == "bfloat16 needs ml_dtypes, which does not import."
    assert unavailable("float16") is None
    skipped = [case for case in conformance.cases() if case.skip]
    assert all("bfloat16" in case.name for case in skipped)
    assert len(skipped) > 1000


def test_every_option_meets_layouts_and_sizes():
    """A backend may be right for a small contiguous matrix and wrong elsewhere."""
    places = {
        "two row axes": lambda p: p.logits.shape[0] > 1 and p.logits.shape[1] > 1,
        "strided classes": lambda p: p.logits.strides[2] != p.logits.itemsize,
        "C > 130": lambda p: p.classes > 130,
        "C > 1024": lambda p: p.classes > 1024,
        "N > 1000": lambda p: p.rows > 1000,
    }
    met = set()
    for case in conformance.cases():
        if case.group == "crossed" and case.skip is None:
            problem = case.request().problem
            here = [place for place, there in places.items() if there(problem)]
            met |= {(problem.dtype, option, place) for option in case.options for place in here}
    options = (
        "class_weight",
        "sample_weight",
        "label_smoothing",
        "temperature",
        "logit_bias",
        "ignore_index",
    )
    assert set(product(DTYPES, options, places)) <= met
