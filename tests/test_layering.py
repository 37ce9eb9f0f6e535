"""Who may import whom, by reading the syntax tree. The reasons are in docs/design.md, section 3."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

# What each part of the core may import of the others. A part is a module or a package right below sce.
ARROWS = {
    "settings": set(),
    "backend": {"settings"},
    "layout": {"backend"},
    "device": {"backend"},
    "checks": {"backend", "layout"},
    "problem": {"backend", "device", "layout", "checks"},
    "registry": {"backend"},
    "select": {"backend", "registry"},
    "functions": {"backend", "device", "layout", "checks", "problem", "select"},
    "linear": {
        "backend",
        "device",
        "layout",
        "checks",
        "problem",
        "select",
        "functions",
        "second_order",
        "binary",
    },
    "second_order": {"backend", "problem", "select", "functions"},
    "jacobian": {"backend", "layout", "checks", "device", "problem", "select", "functions"},
    "binary": {"backend", "device", "layout", "checks", "problem", "select", "functions"},
    "explanation": {"problem", "select", "functions", "binary"},
    "information": {"backend", "layout", "checks", "problem", "select", "functions"},
    "sce": {
        "settings",
        "backend",
        "select",
        "functions",
        "second_order",
        "jacobian",
        "binary",
        "explanation",
        "linear",
        "information",
    },
    "machine": {"settings"},
    "strict_json": set(),
    "bench": {
        "sce",
        "backend",
        "problem",
        "registry",
        "select",
        "functions",
        "linear",
        "machine",
        "strict_json",
    },
    "conformance": {"backend", "layout", "checks", "problem", "registry", "functions", "binary"},
    "cli": {
        "sce",
        "backend",
        "checks",
        "problem",
        "registry",
        "select",
        "functions",
        "machine",
        "strict_json",
        "conformance",
        "bench",
        "information",
        "sklearn",
    },
    "__main__": {"cli"},
}
OUTSIDE = {  # beside NumPy and the standard library
    "linear": {"scipy"},  # whose BLAS adds products up; on demand, and it does without
    "cli": {"typer", "rich", "scipy", "sklearn", "matplotlib"},
    # Peers are measured, and the machine's limit needs vector instructions.
    "bench": {
        "numba",
        "llvmlite",
        "matplotlib",
        "scipy",
        "sklearn",
        "torch",
        "cupy",
        "jax",
        "optax",
        "liger_kernel",
        "quack",
    },
}
STACKS = {
    "sklearn": {"sklearn", "scipy", "threadpoolctl"}
}  # an integration's framework, and what that itself stands on
# What an integration may know beside the public functions: a solver asks for the same rows hundreds of times.
INSIDE = {"sklearn": {"sce.linear.bound", "sce.linear.bound_pair", "sce.linear.csr"}}
# What a first-party backend may import behind its door.
KERNELS = {"numba", "llvmlite", "platformdirs", "cuda", "greenlet"}


class Import(NamedTuple):
    name: str  # absolute
    at_once: bool  # when the module is imported, not inside a function


class Source(NamedTuple):
    module: str  # dotted
    package: bool
    text: str

    @property
    def part(self) -> str:
        """Its row of ARROWS; of a backend, the name of the backend."""
        names = self.module.split(".")
        return names[1] if len(names) > 1 else names[0]

    @property
    def door(self) -> bool:
        """The module of a backend that the registry imports."""
        return self.module.startswith("sce_backends.") and self.module.count(".") == 1


def read(root: Path) -> Iterator[Source]:
    for path in sorted(root.rglob("*.py")):
        names = path.relative_to(root.parent).with_suffix("").parts
        package = names[-1] == "__init__"
        yield Source(".".join(names[:-1] if package else names), package, path.read_text(encoding="utf-8"))


CORE = tuple(read(ROOT / "sce"))
BACKENDS = tuple(read(ROOT / "backends" / "sce_backends"))
MODULES = {source.module for source in CORE + BACKENDS}


def imports(source: Source) -> Iterator[Import]:
    """Every import, with `from . import x` resolved, and importlib.import_module of a literal name."""
    tree = ast.parse(source.text)
    later = {
        node
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(source, node)
            dotted = (f"{base}.{alias.name}" for alias in node.names)
            names = [name if name in MODULES else base for name in dotted]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        yield from (Import(name, node not in later) for name in names)


def _base(source: Source, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    names = source.module.split(".")
    home = names[: len(names) - node.level + source.package]
    return ".".join([*home, node.module] if node.module else home)


def top(name: str) -> str:
    return name.split(".")[0]


def core_faults(source: Source) -> Iterator[str]:
    """Rules 1, 4 and 6."""
    integration = source.part not in ARROWS
    frameworks = set()
    for found in imports(source):
        if top(found.name) == "sce":
            part = found.name.split(".")[1] if "." in found.name else "sce"
            inside = INSIDE.get(source.part, set())
            if found.name in inside:
                continue
            legal = {"sce", source.part} if integration else ARROWS[source.part] | ({source.part} - {"sce"})
            if part not in legal:
                yield f"{source.module} imports {found.name}"
        elif top(found.name) not in {*sys.stdlib_module_names, "numpy"} | OUTSIDE.get(source.part, set()):
            if integration and top(found.name) != "sce_backends":
                frameworks.add(top(found.name))
            elif not (top(found.name) == "ml_dtypes" and not found.at_once):  # an optional dtype, on demand
                yield f"{source.module} imports {found.name}"
    if len(frameworks) > 1 and not frameworks <= STACKS.get(source.part, set()):
        yield f"{source.module} imports {sorted(frameworks)}: one integration, one framework"


def backend_faults(source: Source) -> Iterator[str]:
    """Rules 2, 3 and 5."""
    for found in imports(source):
        if top(found.name) == "sce" and found.name != "sce.backend":
            yield f"{source.module} imports {found.name}: a backend knows only the contract"
        elif top(found.name) == "sce_backends":
            if found.name.split(".")[1:2] not in ([], [source.part]):
                yield f"{source.module} imports {found.name}: backends do not import each other"
            elif source.door and found.at_once and found.name != "sce_backends":
                yield f"{source.module} imports {found.name} before its first use"
        elif top(found.name) not in {*sys.stdlib_module_names, "numpy", "sce"}:
            if source.door and found.at_once:
                yield f"{source.module} imports {found.name} before its first use"
            elif top(found.name) not in KERNELS | {"ml_dtypes"}:
                yield f"{source.module} imports {found.name}"
    if reads_environment(source):
        yield f"{source.module} reads the environment"


def reads_environment(source: Source) -> bool:
    words = {node.attr for node in ast.walk(ast.parse(source.text)) if isinstance(node, ast.Attribute)}
    words |= {
        alias.name
        for node in ast.walk(ast.parse(source.text))
        if isinstance(node, ast.ImportFrom) and node.module == "os"
        for alias in node.names
    }
    return bool(words & {"environ", "environb", "getenv", "getenvb"})


def uses(source: Source, function: str) -> bool:
    """Whether a module names this function of another one."""
    tree = ast.parse(source.text)
    return any(
        isinstance(node, ast.ImportFrom) and any(alias.name == function for alias in node.names)
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("source", CORE, ids=lambda source: source.module)
def test_core(source: Source) -> None:
    assert list(core_faults(source)) == []


@pytest.mark.parametrize("source", BACKENDS, ids=lambda source: source.module)
def test_backends(source: Source) -> None:
    assert list(backend_faults(source)) == []


def test_choice_and_validation_happen_once() -> None:
    # fresh.py hands it on to the processes that it starts, jax.py asks a framework for silence.
    readers = {"sce.settings", "sce.machine", "sce.select", "sce.bench.cold.fresh", "sce.bench.peers.jax"}
    assert {s.module for s in CORE if reads_environment(s)} == readers
    choosers = {s.part for s in CORE if uses(s, "decide") or uses(s, "obtain")}
    public = {"functions", "second_order", "jacobian", "binary", "explanation", "linear", "information"}
    assert choosers <= public | {"cli", "bench"}
    assert {s.part for s in CORE if uses(s, "prepare")} <= public | {"conformance", "cli", "bench"}


def test_every_part_exists() -> None:
    """A row of ARROWS for what is gone would hide the rule for what replaced it."""
    assert {source.part for source in CORE} >= set(ARROWS)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("sce.problem", "import numba"),
        ("sce.problem", "from numba.core import config"),
        ("sce.problem", "def f():\n    import torch"),
        ("sce.problem", "import importlib\nimportlib.import_module('sce_backends.cpu')"),
        ("sce.problem", "from sce_backends import reference"),
        ("sce.problem", "import typer"),
        ("sce.problem", "import ml_dtypes"),
        ("sce.backend", "from . import registry"),
        ("sce.registry", "from .select import decide"),
        ("sce.select", "from sce import functions"),
        ("sce.problem", "import sce"),
        ("sce.functions", "from .cli.files import UsageError"),
        ("sce.conformance.case", "from ..select import decide"),
        ("sce.torch", "from .problem import prepare"),
        ("sce.torch", "import torch, jax"),
        ("sce.sklearn", "import sklearn, torch"),
        ("sce.sklearn.solvers", "from sce.problem import prepare"),
        ("sce.sklearn.solvers", "from sce import checks"),
        ("sce.sklearn.solvers", "from sce.linear import host"),
        ("sce.torch", "from sce.linear.bound import BoundRows"),
        ("sce.sklearn.solvers", "import sce_backends.cpu"),
    ],
)
def test_core_rules_bite(module: str, text: str) -> None:
    assert list(core_faults(Source(module, False, text)))


@pytest.mark.parametrize(
    ("module", "package", "text"),
    [
        ("sce_backends.plain", False, "import sce"),
        ("sce_backends.plain", False, "from sce import problem"),
        ("sce_backends.plain", False, "def f():\n    from sce.checks import logits"),
        ("sce_backends.plain", False, "from . import reference"),
        ("sce_backends.plain", False, "from .cpu import launch"),
        ("sce_backends.plain", True, "from . import kernels\nfrom .. import reference"),
        ("sce_backends.plain", False, "import numba"),
        ("sce_backends.plain", False, "import os\nos.environ['X']"),
        ("sce_backends.plain", False, "from os import getenv"),
        ("sce_backends.plain", False, "def f():\n    import torch"),
        ("sce_backends.cpu", True, "from . import launch"),
        ("sce_backends.cpu", True, "from .launch import rows"),
    ],
)
def test_backend_rules_bite(module: str, package: bool, text: str) -> None:
    assert list(backend_faults(Source(module, package, text)))


def test_an_integration_sees_its_framework_and_the_public_functions() -> None:
    legal = "import torch\nimport sce\nfrom sce import loss_and_grad"
    assert list(core_faults(Source("sce.torch", False, legal))) == []
    several = "from scipy import sparse\nimport sklearn\nimport sce\nfrom .objective import Objective"
    assert list(core_faults(Source("sce.sklearn.estimator", False, several))) == []
