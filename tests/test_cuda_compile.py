"""Every kind of kernel compiled for Ampere, Hopper and Blackwell, without a driver: its machine code.

Needs the compiler and NVIDIA's disassembler: pip install 'sce[test-cuda]'.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest

INSTALL = "pip install 'sce[test-cuda]'"
pathfinder = pytest.importorskip("cuda.pathfinder", reason=f"no CUDA packages: {INSTALL}")
pytest.importorskip("cuda.core", reason=f"no cuda-core: {INSTALL}", exc_type=ImportError)
try:
    version("numba-cuda")  # Numba's own numba.cuda compiles nothing without a driver
except PackageNotFoundError:
    pytest.skip(f"no numba-cuda: {INSTALL}", allow_module_level=True)

from sce.backend import Answer, memory_at
from sce.binary import prepare_binary
from sce.conformance.case import cast
from sce.problem import prepare
from sce_backends.cuda import kernels, plan
from sce_backends.cuda.binary import VECTORS
from sce_backends.cuda.binary_survey import BinarySurvey
from sce_backends.cuda.general import General
from sce_backends.cuda.plan import Device, Launch
from sce_backends.cuda.scales import Scales
from sce_backends.cuda.survey import Survey
from sce_backends.cuda.totals import Totals

AMPERE, HOPPER, BLACKWELL = (8, 0), (9, 0), (10, 0)
FULL = ("argmax", "correct", "entropy", "grad", "hess_diag", "log_prob", "loss", "lse", "z_loss")


def tool(name):
    found = pathfinder.find_nvidia_binary_utility(name)
    if found is None:
        pytest.skip(f"no {name}: {INSTALL}")
    return found


def rows(capability, dtype, classes, many=1 << 17, odd=False, **options):
    """The launch that a contiguous matrix gets on a device of this capability."""
    x = cast(np.zeros((1, classes)), dtype)
    options = {"reduction": "sum", **options}
    problem = prepare(x, np.zeros(1, int), outputs=("loss", "grad"), **options).problem
    shape = (many, 1, classes)
    problem = problem._replace(rows=many, logits=memory_at(4 if odd else 4096, shape, x.dtype))
    answer = Answer(loss=np.empty(1), grad=memory_at((1 << 40) + (4 if odd else 0), shape, x.dtype))
    assert plan.takes_rows(problem, answer)
    return plan.rows(problem, answer, Device(capability, 132))


@cache
def compiled(launch, capability):
    """(PTX, instructions and their number, registers, bytes of stack and of local memory)."""
    from sce_backends.cuda import compile as compiler

    name = kernels.name(launch.spec)
    kernel = kernels.make(compiler.words(), launch.spec)
    ptx = compiler.ptx(kernel, kernels.arguments(launch.spec), name, capability, plan.bounds(launch))
    return ptx, *machine_code(compiler.link(ptx, capability))


def machine_code(cubin, directory=None):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "kernel.cubin")
        path.write_bytes(cubin)
        usage = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
        text = subprocess.run(
            [tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True
        ).stdout
    found = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    code = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", text, re.M))
    return code, found


def count(code, pattern):
    return sum(n for name, n in code.items() if re.match(pattern, name))


KINDS = {
    "a thread": (HOPPER, "float32", 10, {}),
    "lanes": (HOPPER, "bfloat16", 128, {}),
    "a warp": (AMPERE, "float32", 1000, {}),
    "an edge": (HOPPER, "float32", 1001, {"odd": True}),
    "a block": (AMPERE, "float32", 8192, {}),
    "a block of halves": (BLACKWELL, "bfloat16", 8192, {}),
    "a block of float64": (HOPPER, "float64", 4096, {}),
    "a cluster": (HOPPER, "float32", 50257, {"odd": True}),
    "a cluster of halves": (BLACKWELL, "float16", 128256, {}),
    "the widest cluster": (HOPPER, "float32", 262144, {}),
    "split": (AMPERE, "float32", 131072, {}),
    "options": (
        AMPERE,
        "float32",
        4096,
        {"temperature": 0.7, "ignore_index": -100, "sample_weight": np.ones(1)},
    ),
}
SQUARED = {"z_loss": 1e-4}
EVERY = {**SQUARED, "temperature": 0.7, "ignore_index": -100, "sample_weight": np.ones(1)}
KINDS |= {
    f"{words} on {capability[0]}.{capability[1]}, {dtype} {classes}": (capability, dtype, classes, options)
    for words, options in (("z-loss", SQUARED), ("every option", EVERY))
    for capability, dtype, classes in (
        (AMPERE, "float32", 8192),
        (HOPPER, "bfloat16", 32768),
        (BLACKWELL, "float32", 128),
    )
}
KINDS |= {  # where registers are fewest
    "z-loss in the widest cluster": (HOPPER, "float32", 262144, SQUARED),
    "every option in the widest cluster": (HOPPER, "float32", 262144, EVERY),
    "every option, split": (AMPERE, "bfloat16", 131072, EVERY),
    "every option in float64": (BLACKWELL, "float64", 4096, EVERY),
    "every option with an edge": (HOPPER, "float32", 50257, {**EVERY, "odd": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind):
    capability, dtype, classes, given = KINDS[kind]
    for launch in rows(capability, dtype, classes, **given):
        spec = launch.spec
        ptx, code, used = compiled(launch, capability)
        cap = (1 << 16) // (launch.threads * spec.blocks)
        assert used["REG"] <= min(255, cap), used
        assert used["STACK"] == used["LOCAL"] == 0, used
        assert count(code, r"LDL|STL") == 0
        writes = spec.parts != "first"
        if spec.width > 1:  # each vector is one instruction, and nothing else is read or written in bulk
            assert count(code, r"LDG\.E(\.\w+)*\.128") == spec.vectors
            assert count(code, r"STG\.E(\.\w+)*\.128") == spec.vectors * writes
        # Barriers of a cluster are where they are in the source, and nowhere else.
        barriers = 3 if spec.parts == "cluster" else 0
        assert count(code, r"UCGABAR_ARV") == count(code, r"UCGABAR_WAIT") == barriers
        assert count(code, r"ATOM|RED\b") == 0
        if dtype != "float64":
            assert ".f64" not in ptx
            assert not re.search(r"ex2\.approx|lg2\.approx", ptx)
        assert f".maxntid {launch.threads}" in ptx


def test_the_kinds_are_all_there_are():
    """Of rows.py: every way to have a row is compiled above, for each of the three architectures some."""
    found = [(rows(c, d, n, **g)[0].spec, c) for c, d, n, g in KINDS.values()]
    assert {spec.parts for spec, _ in found} == {"one", "cluster", "first"}
    assert {c for _, c in found} == {AMPERE, HOPPER, BLACKWELL}
    assert {spec.logits for spec, _ in found} == {"float16", "bfloat16", "float32", "float64"}
    assert {True, False} == {spec.edge for spec, _ in found} == {spec.scaled for spec, _ in found}
    assert any(spec.lanes == 1 for spec, _ in found)
    assert any(spec.lanes > 32 for spec, _ in found)


GENERAL = General(
    logits="bfloat16", soft="float32", direction="float64", labels="int64", class_weight="float64",
    sample_weight="float64", bias="float64", grad="float32", loss="float32", of_sum="float64",
    target="index", outputs=FULL, weighted=True, sampled=True, biased=True, capped=True, ignores=True,
    device_total=True, lanes=256, rows=1,
)  # fmt: skip
OTHERS = {
    "everything, of an index": (Launch(GENERAL, 1, 256), BLACKWELL),
    "everything, of a distribution": (
        Launch(
            GENERAL._replace(target="distribution", logits="float64", grad="float64", lanes=32, rows=4),
            1,
            128,
        ),
        AMPERE,
    ),
    "softmax": (Launch(GENERAL._replace(target="none", outputs=("grad",), logits="float16"), 1, 256), HOPPER),
    "along v": (
        Launch(GENERAL._replace(outputs=("hvp", "log_softmax_jvp"), target="distribution"), 1, 256),
        HOPPER,
    ),
    "along v, in float64": (
        Launch(
            GENERAL._replace(
                logits="float64", grad="float64", outputs=("hvp",), capped=False, lanes=32, rows=4
            ),
            1,
            128,
        ),
        AMPERE,
    ),
    "scales": (Launch(Scales("int32", "float32", "bfloat16", "float32", True, True, True), 1, 256), AMPERE),
    "survey": (
        Launch(Survey("uint8", "float16", "int64", "float64", True, True, True, True, True), 1, 256),
        HOPPER,
    ),
    "binary survey": (
        Launch(BinarySurvey("int32", "float32", "float64", True, True, True, True), 1, 256),
        BLACKWELL,
    ),
    "totals": (Launch(Totals("float32", True, "float32", True, True), 1, 256), BLACKWELL),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_others(kind):
    launch, capability = OTHERS[kind]
    _, code, used = compiled(launch, capability)
    assert used["REG"] <= 255
    assert used["LOCAL"] == 0
    assert count(code, r"LDL|STL") == 0
    assert count(code, r"ATOM|RED\b") == 0  # sums are in a fixed order


def test_what_is_compiled_for_a_device():
    from sce_backends.cuda import compile as compiler

    for capability in ((8, 0), (8, 9), (9, 0), (10, 3), (12, 1)):
        assert compiler.target(capability) == (capability, True)
    assert compiler.target((9, 9)) == ((9, 0), True)  # machine code runs on what is of the same generation
    newest, binary = compiler.target((99, 0))
    assert not binary  # and on the next the driver compiles the newest PTX
    assert newest >= (12, 0)


def elements(dtype, target, hess, many=1 << 20, odd=False, **options):
    """The launch that contiguous logits of a binary problem get."""
    y = np.zeros(1, target) if target != "bfloat16" else cast(np.zeros(1), target)
    x = cast(np.zeros(1), dtype)
    outputs = ("loss", "grad", "hess_diag") if hess else ("loss", "grad")
    problem = prepare_binary(x, y, outputs=outputs, **{"reduction": "sum", **options}).problem
    shape, start = (many, 1, 1), 4 if odd else 4096
    there = {"logits": memory_at(start, shape, x.dtype)}
    for name in ("labels", "distribution", "sample_weight"):
        if (given := getattr(problem, name)) is not None:
            there[name] = memory_at((1 << 41), shape, given.dtype)
    if "sample_weight" in there:  # as it would come from a device
        there["sample_weight"] = memory_at(1 << 43, shape, np.float32)
    grad = memory_at((1 << 40) + start, shape, x.dtype)
    answer = Answer(
        loss=np.empty(1), grad=grad, hess_diag=memory_at(1 << 42, shape, x.dtype) if hess else None
    )
    return plan.binary(problem._replace(rows=many, **there), answer)


BINARY = {
    "labels": (HOPPER, "float32", "int64", False, {}),
    "narrow labels": (AMPERE, "float32", "int8", False, {"ignore_index": -1}),
    "probabilities": (BLACKWELL, "float32", "float32", False, {"label_smoothing": 0.1, "temperature": 0.7}),
    "halves": (HOPPER, "bfloat16", "bfloat16", False, {}),
    "float64": (HOPPER, "float64", "uint8", False, {}),
    "Hessian": (AMPERE, "float32", "uint8", True, {"hess_min": 1e-16, "pos_weight": 3.0}),
    "weights": (BLACKWELL, "float16", "float32", True, {"sample_weight": np.ones(1), "hess_min": 0.0}),
    "not aligned": (HOPPER, "float32", "float32", False, {"odd": True}),
}


@pytest.mark.parametrize("kind", BINARY)
def test_binary(kind):
    capability, dtype, target, hess, given = BINARY[kind]
    launch = elements(dtype, target, hess, **given)
    spec = launch.spec
    ptx, code, used = compiled(launch, capability)
    assert used["REG"] <= (1 << 16) // (launch.threads * spec.blocks), used
    assert used["STACK"] == used["LOCAL"] == 0, used
    assert count(code, r"LDL|STL") == 0
    assert count(code, r"ATOM|RED\b") == 0
    assert (spec.width > 1) == (kind in ("labels", "narrow labels", "halves"))
    if spec.width > 1:
        assert count(code, r"LDG\.E(\.\w+)*\.128") == VECTORS[spec.width]
        assert count(code, r"STG\.E(\.\w+)*\.128") == VECTORS[spec.width] * (1 + hess)
    if dtype != "float64":
        assert spec.real == "float32"
        assert ".f64" not in ptx
        assert not re.search(r"ex2\.approx|lg2\.approx", ptx)


def test_a_failed_promise_is_seen():
    """The same assertions on a kernel that has too few registers: they can fail."""
    (launch,) = rows(HOPPER, "float32", 8192)
    starved = launch._replace(spec=launch.spec._replace(blocks=8))
    _, code, used = compiled(starved, HOPPER)
    assert used["REG"] <= 32
    assert used["STACK"] > 0
    assert count(code, r"LDL|STL") > 0


def test_the_vocabularies_have_the_same_words():
    from sce_backends.cuda import compile as compiler
    from sce_backends.cuda.emulate import Device as Emulator

    assert vars(compiler.words()).keys() == vars(Emulator().words).keys()
