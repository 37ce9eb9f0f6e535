"""`import sce` is cheap: nothing heavy comes with it, and it costs little over NumPy alone."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

ALLOWED_MS = 25.0
_TRIES = 20  # the fastest counts: other work on the machine only ever adds

# Processor time, which does not run while another process does.
_TIME = "import numpy, time; t = time.process_time(); import sce; print(time.process_time() - t)"
_MODULES = "import json, sys; import sce; print(json.dumps(sorted(sys.modules)))"


def _run(code: str, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | environment
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    return done.stdout


def test_imports_nothing_heavy() -> None:
    loaded = set(json.loads(_run(_MODULES)))
    heavy = {
        "numba", "llvmlite", "cuda", "cupy", "torch", "jax", "tensorflow", "scipy", "sklearn", "ml_dtypes",
        "typer", "rich", "sce_backends",
    }  # fmt: skip
    assert not loaded & heavy
    ours = {name for name in loaded if name.split(".")[0] == "sce"}
    assert not {name for name in ours if name.startswith(("sce.cli", "sce.conformance", "sce.machine"))}


def test_costs_little_over_numpy(tmp_path: Path) -> None:
    """As installed: pip compiles to bytecode, so the first run here, which does that, does not count."""
    fastest = math.inf
    for i in range(1 + _TRIES):
        spent = 1e3 * float(_run(_TIME, PYTHONPYCACHEPREFIX=str(tmp_path)))
        fastest = min(fastest, spent) if i else math.inf
        if fastest <= ALLOWED_MS:
            break
    assert fastest <= ALLOWED_MS
