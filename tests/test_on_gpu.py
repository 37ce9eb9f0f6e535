"""bench/on_gpu.py and the device contests: everything but the GPU, by a rehearsal on the host."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import types
import venv
from importlib.metadata import distributions
from pathlib import Path

import pytest

import sce
from sce import conformance
from sce.bench import device
from sce.bench.clock import Rounds
from sce.bench.contestant import Answer, Run
from sce.bench.device import functions, others, report, steps, suite
from sce.bench.task import Task

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "bench" / "on_gpu.py"
CASES = "sce/conformance/catalogue.py"
REHEARSAL = ("--device=cpu", "--backend=reference", "--matrix=20000")
QUICK = Rounds(least=2, enough=0, most=2)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with the packages of this one, but without sce."""
    home = tmp_path_factory.mktemp("python")
    venv.create(home, symlinks=os.name != "nt")
    there = Path(sysconfig.get_path("purelib", "venv", {"base": str(home)}))
    for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(place).iterdir():
            link = there / entry.name
            if not (entry.name.startswith("sce") or entry.suffix == ".pth" or link.exists()):
                link.symlink_to(entry)
    found = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    without = subprocess.run(
        [found, "-c", "import numpy, sce"], env=environment(), capture_output=True, text=True, cwd=home
    )
    assert "No module named 'sce'" in without.stderr  # else these tests would prove nothing
    return found


def environment(**changes):
    """Without a GPU, compilers, git, or a way to this checkout."""
    keep = {name: value for name, value in os.environ.items() if name in ("HOME", "TMPDIR", "SYSTEMROOT")}
    return {**keep, "PATH": "", "CUDA_VISIBLE_DEVICES": "", **changes}


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the command needs, with few conformance cases."""
    home = tmp_path / "checkout"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("sce", "backends"):
        shutil.copytree(ROOT / name, home / name, ignore=ignore)
    (home / "bench").mkdir()
    shutil.copy(SCRIPT, home / "bench")
    shutil.copy(ROOT / "pyproject.toml", home)
    replace(home / CASES, "    return found", "    return found[::60]")
    return home


def replace(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def run(python, checkout, *options):
    """Exit status, document, printed lines and seconds."""
    out = checkout.parent / "out.json"
    began = time.monotonic()
    done = subprocess.run(
        [python, checkout / "bench" / "on_gpu.py", "--json", out, *options],
        env=environment(),
        cwd=checkout.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    took = time.monotonic() - began
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text("utf-8")), done.stdout.splitlines(), took


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("on_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The command.


def test_without_a_gpu_it_says_so_within_seconds(python, checkout):
    code, doc, printed, took = run(python, checkout)
    assert code == 1
    assert took < 60
    assert doc["gpu"] == {}
    assert doc["steps"].pop("machine")["status"] == "ok"
    assert {step["status"] for step in doc["steps"].values()} == {"not reached"}
    assert {row["why"] for row in doc["results"]} == {"no CUDA device."}
    assert {"cuda", "torch", "liger", "quack"} <= {row["contestant"] for row in doc["results"]}
    text = "\n".join(printed)
    assert "GPU: none" in text
    assert "backend cuda: " in text
    assert printed[-1] == "no table: nothing was measured."


def test_a_missing_backend_is_listed_and_the_others_are_measured(python, checkout):
    pytest.importorskip("torch")
    options = (*REHEARSAL, "--backend=cuda", "--only=conformance,float32", "--minutes=2")
    code, doc, printed, _ = run(python, checkout, *options)
    assert code == 1
    assert doc["conformance"]["status"] == "missing"
    assert doc["conformance"]["why"]
    of = {row["contestant"]: row for row in doc["results"]}
    assert of["cuda"]["status"] == "missing"
    assert of["cuda"]["why"] == doc["conformance"]["why"]
    assert of["torch"]["status"] == of["copy"]["status"] == "ok"
    assert of["torch"]["median_s"] > 0
    assert of["liger"]["status"] == of["quack"]["status"] == "missing"
    last = printed[-1].split()  # the table's last line: C, the copy, cuda twice, torch ...
    assert last[0] == "262144"
    assert last[2:4] == ["missing", "missing"]
    assert last[4].endswith("%")


def test_a_rehearsal_with_a_right_backend_is_well(python, checkout):
    pytest.importorskip("torch")
    options = ("--only=conformance,functions,launch,large,others,bfloat16,loss", "--minutes=3")
    code, doc, printed, _ = run(python, checkout, *REHEARSAL, *options)
    assert code == 0, printed
    assert {step["status"] for step in doc["steps"].values()} == {"ok"}
    suite = doc["conformance"]
    assert suite["ran"] == suite["cases"] == suite["passed"] + suite["skipped"]
    assert max(suite["worst_ulp"].values()) > 0
    ours = [row for row in doc["results"] + doc["launch"] + doc["large"] if row["ours"]]
    assert {row["status"] for row in ours} == {"ok"}
    assert {row["option"] for row in doc["launch"]} == {None, "no validation"}
    every = {case.name for case in functions.CASES}
    assert {row["function"] for row in doc["functions"] if row["status"] == "ok"} == every
    timed = {row["function"] for row in doc["others"] if row["ours"] and row["median_s"] > 0}
    assert timed == {task.function for task, _ in others.tasks("cpu", 1)}
    assert any(line.startswith("hvp 5x1000 float32 sce: ok: ") for line in printed), printed
    measured = {(row["op"], row["dtype"]) for row in doc["results"]}
    assert measured == {("loss", "float32"), ("loss_and_grad", "bfloat16")}


def test_a_step_that_raises_is_recorded_and_the_next_ones_run(python, checkout):
    pytest.importorskip("torch")
    replace(checkout / CASES, "    return found", "    raise OSError('broken')\n    #")
    code, doc, printed, _ = run(python, checkout, *REHEARSAL, "--only=conformance,loss", "--minutes=2")
    assert code == 1
    assert doc["steps"]["conformance"]["status"] == doc["conformance"]["status"] == "failed"
    assert doc["steps"]["conformance"]["why"].endswith("OSError: broken")
    assert {row["status"] for row in doc["results"] if row["ours"]} == {"ok"}
    assert any("NOT WELL: step conformance: failed" in line for line in printed)


def test_a_step_that_hangs_is_cut_and_what_is_not_reached_is_listed(python, checkout):
    pytest.importorskip("torch")
    hang = "    import time\n    while True: time.sleep(1)\n    #"
    replace(checkout / CASES, "    return found", hang)
    options = ("--matrix=60000000", "--only=conformance,float64", "--minutes=0.2")
    code, doc, _, took = run(python, checkout, *REHEARSAL, *options)
    assert code == 1
    assert took < 0.2 * 60 + 5  # the interpreter's own start and end, on a busy machine
    assert doc["steps"]["conformance"]["status"] == "cut"
    assert "at: " in doc["steps"]["conformance"]["why"]
    late = [row for row in doc["results"] if row["status"] == "not reached"]
    assert late
    assert all(row["why"] for row in late)
    assert all(row["median_s"] is None for row in late)


def test_the_metadata_registers_the_backends(python, script, tmp_path):
    script.pretend_installed(tmp_path)
    (found,) = distributions(path=[str(tmp_path)])
    assert found.metadata["Name"] == "sce"
    assert {"cpu", "cuda"} <= set(found.metadata.get_all("Provides-Extra"))
    code = "from sce import registry; print(*sorted(registry.registered())); registry.load('cpu')"
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "backends")))
    done = subprocess.run(
        [python, "-c", code], env=environment(PYTHONPATH=path), capture_output=True, text=True
    )
    assert done.stdout.split() == ["cpu", "cuda", "cuda-emulated", "reference"], done.stderr
    assert done.returncode == 0, done.stderr


def test_the_suite_is_cut_short_at_the_deadline_and_says_so(script, monkeypatch):
    said = []  # a clock that ticks with every case
    monkeypatch.setattr(script, "time", types.SimpleNamespace(monotonic=lambda: len(said)))
    *_, found = script.conformance_step(types.SimpleNamespace(backend="reference"), 999, said.append)
    assert found["cases"] > 5000
    assert found["ran"] == len(said) == 1000
    assert found["passed"] + found["failed"] + found["skipped"] == 1000
    assert {*found["worst_ulp"]} == {case.group for case in conformance.cases()}
    assert "first" in found["order"]


def test_no_step_outlasts_the_run(script):
    shares = [*script.STEPS.values()]
    assert shares == sorted(shares)
    assert shares[-1] + script.GRACE < 1
    assert set(script.STEPS) == {"machine", "conformance", "functions", "others", *suite.STEPS}


# Steps.


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ("pass", "ok", None),
        ("raise SystemExit(3)", "failed", "ended with exit status 3, at: its start"),
        ("import time; time.sleep(60)", "cut", "still ran after 1 s, at: its start"),
    ],
)
def test_supervise(tmp_path, code, status, why):
    part = tmp_path / "part.json"
    steps.write(part, {"found": {"n": 1}})
    assert steps.supervise([sys.executable, "-c", code], part, 1.0 if status == "cut" else 60) == (
        status,
        why,
        {"n": 1},
    )


def test_what_json_cannot_say_becomes_words(tmp_path):
    steps.write(tmp_path / "x.json", {"a": [math.inf, (math.nan, 1.5)]})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"a": ["inf", ["nan", 1.5]]}
    assert "worst ulp: edges inf" in report.lines(document(suite={"worst_ulp": {"edges": "inf"}}))


def test_what_a_step_had_found_and_was_doing_outlives_it(tmp_path):
    code = (
        "import os, pathlib, sys; from sce.bench.device import steps\n"
        "def step(say):\n    yield {'n': 1}\n    say('the second')\n    os._exit(9)\n"
        "steps.perform(step, pathlib.Path(sys.argv[1]))"
    )
    part = tmp_path / "part.json"
    found = steps.supervise([sys.executable, "-c", code, str(part)], part, 60)
    assert found == ("failed", "ended with exit status 9, at: the second", {"n": 1})


# Contests on a device: here the host.


class Contestant:
    """A right one, unless `spoil` changes its answer."""

    ours = True

    def __init__(self, spoil=lambda loss, grad: (loss, grad), name="mine"):
        self.spoil, self.name = spoil, name

    def missing(self):
        return None

    def refuses(self, task):
        return None

    def buffers(self, task):
        return ("fresh",)

    def prepare(self, task, given, buffers):
        def call():
            x = given.logits.double()
            loss = (x.logsumexp(1) - x.gather(1, given.target[:, None])[:, 0]).mean()
            grad = x.softmax(1)
            grad[range(task.n), given.target] -= 1
            return self.spoil(loss, (grad / task.n).to(given.logits.dtype))

        return Run(call, lambda got: Answer(float(got[0]), got[1]))


def _set(row, value):
    def spoil(loss, grad):
        grad[row, -1] = value
        return loss, grad

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss, grad: (loss * 1.01, grad),
        lambda loss, grad: (loss * math.nan, grad),
        lambda loss, grad: (loss, grad * 1.1),
        lambda loss, grad: (loss, grad[1:]),
        lambda loss, grad: (loss, None),
        _set(0, math.nan),
        _set(-1, 0.5),
        _set(500, 0.5),
    ],
    ids=["loss", "NaN loss", "scale", "shape", "no gradient", "first row", "last row", "middle row"],
)
def test_a_wrong_answer_is_not_timed(spoil, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(device, "_SLICE", 30)
    monkeypatch.setattr(device, "_CHUNK", 100)
    task = Task("loss_and_grad", 1001, 3)
    results = device.contest(task, [Contestant(spoil), Contestant(name="other")], "cpu", rounds=QUICK)
    wrong, right, copy = results
    assert (wrong.status, wrong.seconds) == ("wrong", None)
    assert wrong.why.startswith("off by")
    assert right.status == copy.status == "ok"
    assert right.seconds > 0
    assert right.share_of_copy == pytest.approx(right.gb_per_s / copy.gb_per_s)


def test_one_that_raises_stops_nobody():
    pytest.importorskip("torch")

    def spoil(loss, grad):
        raise RuntimeError("illegal address\nand more")

    task = Task("loss_and_grad", 100, 10)
    failed, right, _ = device.contest(task, [Contestant(spoil), Contestant(name="b")], "cpu", rounds=QUICK)
    assert (failed.status, failed.why) == ("failed", "RuntimeError: illegal address")
    assert right.status == "ok"


def test_what_half_precision_cannot_hold_is_no_error():
    torch = pytest.importorskip("torch")
    task = Task("loss_and_grad", 10**8, 2, "float16")
    grad = torch.zeros(1, 1, dtype=torch.float16).expand(task.n, task.c)
    want = torch.full((5, 2), 0.5 / task.n, dtype=torch.float64)
    known = device.Known(1.0, ((slice(0, 5), want),))
    assert device.errors(task, Answer(1.0, grad), known) == (0.0, 0.0)
    assert device.errors(task._replace(dtype="float32"), Answer(1.0, grad), known)[1] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("op", ["loss", "loss_and_grad"])
def test_our_backends_and_torch_are_right_on_tensors(op, dtype):
    pytest.importorskip("torch")
    from sce.bench.peers.torch import Eager

    entered = [Eager("cpu"), device.Ours("reference"), Contestant()]  # nobody may spoil the last one's logits
    results = device.contest(Task(op, 300, 7, dtype), entered, "cpu", rounds=QUICK)
    assert {r.status for r in results} == {"ok"}
    buffers = ["none"] if op == "loss" else ["reused", "in place"]
    assert [r.buffers for r in results if r.contestant == "reference"] == buffers
    assert all(r.speed_up for r in results if r.ours)


def test_in_place_is_in_place(monkeypatch):
    pytest.importorskip("torch")
    seen = []

    def loss_and_grad(logits, labels, out, **options):
        seen.append(out is logits)
        return sce.loss_and_grad(logits, labels, out=out, **options)

    monkeypatch.setattr(device, "loss_and_grad", loss_and_grad)
    once = Rounds(least=1, enough=0, most=1)
    device.contest(Task("loss_and_grad", 9, 3), [device.Ours("reference")], "cpu", rounds=once)
    assert seen[:2] == [False, True]  # the two answers that are checked


def test_nothing_is_begun_after_the_end():
    pytest.importorskip("torch")
    task = Task("loss_and_grad", 100, 10)
    called = []
    late = Contestant(lambda loss, grad: called.append(1))
    assert device.contest(task, [late], "cpu", end=time.monotonic() - 1) == []
    assert called == []
    plan = [(task, [Contestant()])]
    (rows,) = suite.table(plan, "cpu", time.monotonic() - 1, math.inf, print)
    assert [(row["status"], row["why"]) for row in rows] == [("not reached", "the time was over.")]


def test_slow_contestants_stop_first():
    pytest.importorskip("torch")
    slow = Contestant(name=suite.SLOW[0])
    plan = [(Task("loss_and_grad", 100, 10), [Contestant(), slow])]
    *_, rows = suite.table(plan, "cpu", math.inf, time.monotonic() - 1, print)
    assert [row["status"] for row in rows] == ["ok", "not reached", "ok"]  # the last is the copy


def install(monkeypatch, name, **functions):
    parts = name.split(".")
    for k in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:k]))
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module).update(functions)


def test_liger_as_it_is_called(monkeypatch):
    """Against the behaviour of its function: the gradient is written over logits that require one."""
    torch = pytest.importorskip("torch")
    from sce.bench.peers.liger import Liger

    def liger_cross_entropy(input, target, weight=None, size_average=None, ignore_index=-100):
        x = input.detach().clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x, target)
        if input.requires_grad:
            loss.backward()
            input.data.copy_(x.grad)
        return loss

    install(monkeypatch, "liger_kernel.transformers.functional", liger_cross_entropy=liger_cross_entropy)
    for op in ("loss", "loss_and_grad"):
        result, after, _ = device.contest(Task(op, 300, 7), [Liger(), Contestant()], "cpu", rounds=QUICK)
        assert (result.status, result.buffers) == ("ok", "none" if op == "loss" else "in place")
        assert after.status == "ok"  # its logits are not the ones written over
    assert "float32" in Liger().refuses(Task("loss", 1, 2, "float64"))


def test_quack_as_it_is_called(monkeypatch):
    """Against the behaviour of its function: losses of the rows, and each row's own gradient."""
    torch = pytest.importorskip("torch")
    from sce.bench.peers.quack import Quack

    def cross_entropy_fwd(
        x, target, target_logit=None, weight=None, ignore_index=-100, return_lse=False,
        return_dx=False, inplace_backward=False,
    ):  # fmt: skip
        losses = torch.nn.functional.cross_entropy(x, target, reduction="none")
        if not return_dx:
            return losses
        grad = x.softmax(1)
        grad[range(len(x)), target] -= 1
        return losses, x.copy_(grad) if inplace_backward else grad

    install(monkeypatch, "quack.cross_entropy", cross_entropy_fwd=cross_entropy_fwd)
    (alone, _) = device.contest(Task("loss", 300, 7), [Quack()], "cpu", rounds=QUICK)
    task, entered = Task("loss_and_grad", 300, 7), [Quack(), Contestant()]
    fresh, in_place, after, _ = device.contest(task, entered, "cpu", rounds=QUICK)
    assert (alone.status, fresh.status, in_place.status, after.status) == ("ok", "ok", "ok", "ok")
    assert in_place.buffers == "in place"


# Functions beyond loss and gradient.


def halved(*given, **options):
    return tuple(x / 2 for x in sce.loss_grad_hess(*given, **options))


def with_nan(*given, **options):
    return sce.softmax(*given, **options) * float("nan")


def of_the_first(x, **options):
    return sce.softmax(x[:1], **options)


@pytest.mark.parametrize("wrong", [halved, with_nan, of_the_first])
def test_a_function_that_is_wrong_is_found(wrong):
    pytest.importorskip("torch")
    right, given = sce.softmax, functions._matrices(1)
    if wrong is halved:
        right, given = sce.loss_grad_hess, functions._labelled()

    def function(*arrays, backend, **options):
        return (right if backend == "reference" else wrong)(*arrays, backend="reference", **options)

    case = functions.Case("x", function, given)
    row = functions.checked(case, "float32", functions.Torch("cpu"), "another")
    assert row["status"] == "wrong"
    assert "of its largest number" in row["why"]


def test_a_function_that_raises_has_failed_and_a_library_may_be_missing():
    pytest.importorskip("torch")
    case = functions.Case("softmax", sce.softmax, functions._matrices(1))
    row = functions.checked(case, "float32", functions.Torch("cpu"), "nowhere")
    assert row["status"] == "failed"
    assert "nowhere" in row["why"]
    row = functions.checked(case, "float32", functions.Cupy("cpu"), "reference")
    assert (row["status"], row["why"]) == ("missing", "CuPy has no arrays on the host.")


def test_functions_that_are_not_reached_say_so():
    pytest.importorskip("torch")
    for table in (
        functions.table("reference", "cpu", -math.inf, print),
        others.table("reference", "cpu", 1, -math.inf, print),
    ):
        (rows,) = table
        assert rows
        assert {(row["status"], row["why"]) for row in rows} == {("not reached", "the time was over.")}


# The verdict.


def document(**changes):
    row = {"op": "loss", "n": 1, "c": 2, "dtype": "float32", "option": None, "contestant": "cuda"}
    row |= {"ours": True, "buffers": "none", "status": "ok", "why": None, "gb_per_s": 1, "share_of_copy": 0.9}
    suite = {"status": "ok", "cases": 9, "ran": 9, "passed": 9, "failed": 0, "skipped": 0, "order": "all"}
    suite |= {"worst_ulp": {}, "failures": [], "skips": {}}
    of = {name: changes.get(name, {}) for name in ("row", "suite", "step", "function", "other")}
    function = {"function": "hvp", "dtype": "float32", "library": "torch", "status": "ok", "why": None}
    other = {"function": "hvp", "n": 5, "c": 7, "dtype": "float32", "contestant": "sce", "ours": True}
    other |= {"status": "ok", "why": None, "median_s": 1e-3, "bytes": 2000, "flops": 0.0}
    doc = {"conformance": suite | of["suite"], "results": [row | of["row"]], "launch": [], "large": []}
    doc |= {"functions": [function | of["function"]], "others": [other | of["other"]]}
    return {**doc, "steps": {"float32": {"status": "ok"} | of["step"]}}


def test_all_is_well():
    assert report.faults(document()) == []
    assert [*report.lines(document())][-1].split() == ["2", "-", "90%"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"suite": {"failed": 1}}, "conformance: 1 of 9 cases failed."),
        ({"suite": {"passed": 0}}, "conformance: no case passed."),
        ({"suite": {"passed": 0, "why": "not here."}}, "conformance: not here."),
        ({"step": {"status": "cut"}}, "step float32: cut"),
        ({"step": {"status": "failed"}}, "step float32: failed"),
        ({"row": {"status": "wrong", "why": "off."}}, "loss 1x2 float32, cuda: wrong: off."),
        ({"row": {"status": "failed", "why": "x"}}, "loss 1x2 float32, cuda: failed: x"),
        ({"row": {"status": "refused", "why": "x"}}, "loss 1x2 float32, cuda: refused: x"),
        ({"function": {"status": "wrong", "why": "x"}}, "hvp torch float32: wrong: x"),
        ({"other": {"status": "failed", "why": "x", "median_s": None}}, "hvp 5x7 float32 sce: failed: x"),
    ],
)
def test_not_all_is_well(changes, fault):
    assert report.faults(document(**changes)) == [fault]
    assert f"NOT WELL: {fault}" in report.lines(document(**changes))


@pytest.mark.parametrize("row", [{"status": "not reached"}, {"status": "wrong", "ours": False}])
def test_what_is_no_fault_of_ours(row):
    assert report.faults(document(row=row)) == []
    assert report.faults(document(other=row)) == []


def test_functions_are_counted_and_times_are_given():
    lines = [*report.lines(document(function={"status": "missing", "why": "no torch."}))]
    assert "functions: 1 missing" in lines
    assert "missing: torch: no torch." in lines
    assert "hvp 5x7 float32 sce: ok: 1.000 ms, 0.002 GB/s" in lines
