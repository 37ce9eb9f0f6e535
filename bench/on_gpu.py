"""One command on a machine with a GPU: is the CUDA backend right, and how fast is it? Writes one JSON.

    python3 bench/on_gpu.py --json FILE

It needs a checkout and the packages, but no installation. Each step is a process of its own: one that
crashes, hangs or takes too long costs no other its turn, and what it had found is kept. Exit status 0: the
backend ran, conforms and was never wrong. `--device cpu --backend reference` rehearses all but the GPU.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BEGAN = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
STEPS = {  # the share of the time at which each is over; what one leaves goes to the next
    "machine": 0.08, "conformance": 0.32, "functions": 0.38, "launch": 0.41, "large": 0.44, "others": 0.54,
    "float32": 0.70, "bfloat16": 0.83, "float16": 0.88, "float64": 0.92, "loss": 0.96,
}  # fmt: skip
GRACE = 0.03  # of the time: so long a step may take to notice that it is over
SLOW_SHARE = 0.7  # of a step: later no contestant is entered that compiles for each shape
STRIDE = 32  # the conformance cases run in so many passes, each through all groups
KEPT = 20  # failures in the document
PACKAGES = ("triton", "liger-kernel", "quack-kernels", "nvidia-cutlass-dsl", "cuda-bindings", "pytest")
Say = Callable[[str], object]
Document = dict[str, Any]


def pretend_installed(where: Path) -> None:
    """Write an installation's metadata: the backends are found by their entry points, as they always are."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = re.search(r'^__version__ = "(.+)"', (ROOT / "sce" / "__init__.py").read_text("utf-8"), re.M)
    assert found is not None, "sce/__init__.py has no __version__."
    info = where / f"{project['name']}-{found[1]}.dist-info"
    info.mkdir(parents=True)
    metadata = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {found[1]}"]
    metadata += [f"Provides-Extra: {extra}" for extra in project["optional-dependencies"]]
    (info / "METADATA").write_text("\n".join(metadata) + "\n", "utf-8")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")


# The steps. Each yields what it knows, again and again, and is over at `end` of time.monotonic().


def machine_step(args: argparse.Namespace, end: float, say: Say) -> Iterator[Document]:
    gpu: Document = {}
    why: Document = {}
    for source in (from_torch, from_cuda_core, from_nvidia_smi):
        say(source.__name__)
        try:
            gpu = {**source(), **gpu}
        except Exception as exc:
            why[source.__name__] = f"{type(exc).__name__}: {exc}"
        yield {"gpu": gpu, "why": why}
    from sce.bench.device import Ours

    yield {"gpu": gpu, "why": why, "missing": Ours(args.backend).missing()}


def from_torch() -> Document:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no CUDA device.")
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "sms": facts.multi_processor_count,
        "compute_capability": f"{facts.major}.{facts.minor}",
        "l2": facts.L2_cache_size,
        "memory": facts.total_memory,
        "memory_free": torch.cuda.mem_get_info(0)[0],
    }


def from_cuda_core() -> Document:
    from cuda.core import Device

    facts = Device(0)
    facts.set_current()
    capability = ".".join(map(str, facts.compute_capability))
    return {
        "name": facts.name,
        "sms": facts.properties.multiprocessor_count,
        "compute_capability": capability,
    }


def from_nvidia_smi() -> Document:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    name, driver, clock = found.splitlines()[0].split(", ")
    return {"name": name, "driver": driver, "max_clock": clock}


def conformance_step(args: argparse.Namespace, end: float, say: Say) -> Iterator[Document]:
    """As many cases as there is time for, in a fixed order: first every 32nd of each group."""
    from sce import conformance
    from sce.bench.device import Ours

    if why := Ours(args.backend).missing():
        yield {"status": "missing", "why": why}
        return
    groups: dict[str, list[Any]] = {}
    for case in (every := conformance.cases()):
        groups.setdefault(case.group, []).append(case)
    found: Document = {"status": "ok", "cases": len(every), "ran": 0, "passed": 0, "failed": 0, "skipped": 0}
    found |= {"order": f"every {STRIDE}nd of each group first", "worst_ulp": {}, "skips": {}, "failures": []}
    for first in range(STRIDE):
        part = (case for group in groups.values() for case in group[first::STRIDE])
        _add(found, conformance.check(args.backend, _until(part, end, say)))
        yield found


def _until(cases: Iterator[Any], end: float, say: Say) -> Iterator[Any]:
    for case in cases:
        if time.monotonic() > end:
            return
        say(case.name)
        yield case


def _add(found: Document, report: Any) -> None:
    found["ran"] += report.passed + report.failed + report.skipped
    for count in ("passed", "failed", "skipped"):
        found[count] += getattr(report, count)
    for group, ulp in report.worst_ulp.items():
        found["worst_ulp"][group] = max(ulp, found["worst_ulp"].get(group, 0.0))
    found["skips"] = dict(Counter(found["skips"]) + Counter(why for _, why in report.skips))
    found["failures"] = (found["failures"] + [failure._asdict() for failure in report.failures])[:KEPT]


def functions_step(args: argparse.Namespace, end: float, say: Say) -> Iterator[Document]:
    """Every function, on arrays where they are."""
    from sce.bench.device import Ours, functions

    if Ours(args.backend).missing():  # why, the steps before have said
        yield {"rows": []}
        return
    for rows in functions.table(args.backend, args.device, end, say):
        yield {"rows": rows}


def others_step(args: argparse.Namespace, end: float, say: Say) -> Iterator[Document]:
    """Times of second derivatives, binary losses and the linear model."""
    from sce.bench.device import Ours, others

    if Ours(args.backend).missing():  # why, the steps before have said
        yield {"rows": []}
        return
    for rows in others.table(args.backend, args.device, args.matrix, end, say):
        yield {"rows": rows}


def contest_step(args: argparse.Namespace, end: float, say: Say) -> Iterator[Document]:
    from sce.bench.device.suite import table

    slow_end = BEGAN + SLOW_SHARE * (end - BEGAN)
    for rows in table(_plan(args), args.device, end, slow_end, say):
        yield {"rows": rows}


def _plan(args: argparse.Namespace) -> Any:
    from sce.bench.device.suite import plan

    return plan(args.step, args.backend, args.device, args.matrix)


# The processes.


def step(args: argparse.Namespace) -> int:
    """In a step's own process."""
    from sce.bench.device.steps import perform

    faulthandler.dump_traceback_later(2 * args.seconds + 60, exit=True)  # if nobody is left to end it
    steps = {"machine": machine_step, "conformance": conformance_step}
    steps |= {"functions": functions_step, "others": others_step}
    does = steps.get(args.step, contest_step)
    return perform(lambda say: does(args, BEGAN + args.seconds, say), Path(args.part))


def run(args: argparse.Namespace, directory: Path) -> Document:
    """All the steps. The document is written before them and after each."""
    from sce.bench.device.steps import supervise, write

    names = [name for name in STEPS if not args.only or name in ("machine", *args.only.split(","))]
    doc = begin(args, names)
    total = args.minutes * 60
    for name in names:
        write(Path(args.json), doc)
        args.step, left = name, BEGAN + STEPS[name] * total - time.monotonic()
        if why := objection(args, doc, left):
            doc["steps"][name]["why"] = why
            record(doc, args, {}, why)
            continue
        part, began = directory / f"{name}.json", time.monotonic()
        options = {"step": name, "seconds": left, "part": part, "json": args.json, "matrix": args.matrix}
        options |= {"device": args.device, "backend": args.backend}
        command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
        status, why, found = supervise(command, part, left + GRACE * total)
        took = round(time.monotonic() - began, 1)
        doc["steps"][name] = {"status": status, "why": why, "seconds": took}
        record(doc, args, found, why or "the step ended before it.")
        print(f"{name}: {status}, {took} s{f': {why}' if why else ''}", flush=True)
    write(Path(args.json), doc)
    return doc


def begin(args: argparse.Namespace, names: list[str]) -> Document:
    from sce.bench.document import document

    doc = document("python bench/on_gpu.py", ())
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            doc["versions"][name] = version(name)
    doc |= {"device": args.device, "backend": args.backend, "gpu": {}}
    doc |= {"functions": [], "launch": [], "large": [], "others": []}
    later = {"status": "not reached", "why": "the run was ended before it."}
    doc |= {"conformance": later, "steps": {name: dict(later) for name in names}}
    print(f"commit {doc['commit']};", ", ".join(f"{k} {v}" for k, v in doc["versions"].items()), flush=True)
    return doc


def objection(args: argparse.Namespace, doc: Document, left: float) -> str | None:
    """Why a step is not begun."""
    if args.step != "machine":
        if args.device == "cuda" and not doc["gpu"] and doc["steps"]["machine"]["status"] == "ok":
            return "no CUDA device."
        free, need = doc["gpu"].get("memory_free"), 5 * 2 << 31  # five matrices of 2**31 bfloat16 numbers
        if args.step == "large" and args.device == "cuda" and free is not None and free < need:
            return f"needs {need / 1e9:.0f} GB of device memory, and {free / 1e9:.0f} are free."
    return None if left > 0 else "the time was over."


def record(doc: Document, args: argparse.Namespace, found: Document, why: str) -> None:
    """Put into the document what a step has found, and as not reached what it has not."""
    if args.step == "machine":
        doc["gpu"] = found.get("gpu", {})
        if doc["gpu"].get("memory_free"):  # a dozen matrices live at once, and torch has its temporaries
            args.matrix = min(args.matrix, doc["gpu"]["memory_free"] // 24)
        print("GPU:", doc["gpu"] or f"none: {found.get('why', why)}", flush=True)
        print(f"backend {args.backend}: {found.get('missing') or 'runs here.'}", flush=True)
    elif args.step == "conformance":
        doc["conformance"] = found or {"status": doc["steps"]["conformance"]["status"], "why": why}
    elif args.step in ("functions", "others"):
        doc[args.step] = found.get("rows", [])
    else:
        from sce.bench.device.suite import unreached

        rows = found.get("rows") or [*unreached(_plan(args), why).values()]
        doc[args.step if args.step in ("launch", "large") else "results"] += rows


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", required=True, help="where the results go")
    parser.add_argument("--minutes", type=float, default=8, help="the run is over by then, whatever happens")
    parser.add_argument("--only", help=f"some steps, with commas: {','.join(STEPS)}")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal")
    parser.add_argument("--backend", default="cuda", help="the one that is checked and timed")
    parser.add_argument("--matrix", type=int, default=1 << 30, help="bytes of logits, well past the caches")
    for name, kind in (("--step", str), ("--part", str), ("--seconds", float)):  # of a step's own process
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        return step(args)
    with TemporaryDirectory() as directory:
        pretend_installed(Path(directory))
        sys.path[:0] = paths = [directory, str(ROOT), str(ROOT / "backends")]
        old = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([old] if old else [])])  # for the steps
        doc = run(args, Path(directory))
        from sce.bench.device.report import faults, lines

        print(*lines(doc), sep="\n", flush=True)
        return 1 if faults(doc) else 0


if __name__ == "__main__":
    sys.exit(main())
