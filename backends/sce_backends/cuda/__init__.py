"""Numba on CUDA: the door. It says what the backend takes and hands problems to the kernels behind it.

plan.py       which kernels, with how many threads and blocks
execute.py    a problem's launches and their arguments, on a GPU or in the emulator; record.py keeps them
rows.py, general.py, scales.py, totals.py, survey.py, binary.py, binary_survey.py   the kernels, plain
    functions of a vocabulary of words:
    group.py what threads of a row tell each other; arithmetic.py exp, log and numbers of two words
compile.py    Numba: those words for a GPU, PTX and machine code; cache.py keeps it on disk
gpu.py        the device, its memory, launches; absence.py, why there is none
emulate.py    the same words for the host, one greenlet per thread; emulated.py, a backend for debugging
"""

from __future__ import annotations

from sce.backend import DTYPES, Answer, Bound, Problem

on_device: bool = True
debug: bool = False
takes_binary: bool = True

MOST_ROWS = 1 << 32  # at four of them a block, a grid has them


def refuses(problem: Problem) -> str | None:
    if problem.dtype not in DTYPES:
        return f"dtype is {problem.dtype}, not one of {', '.join(DTYPES)}."
    if problem.rows >= MOST_ROWS:
        return f"{problem.rows} rows are more than a launch takes, {MOST_ROWS - 1}: pass them in parts."
    return None


def missing() -> str | None:
    from .absence import absent

    return absent()


def info() -> dict[str, str]:
    from .cache import directory, versions
    from .gpu import described

    found = {f"device {i}": text for i, text in enumerate(described())}
    return found | {"kernel cache": str(directory() or "none: it cannot be made")} | versions()


def run(problem: Problem, answer: Answer) -> None:
    """Host arrays are copied to the current device and back."""
    from .gpu import run_on_host

    run_on_host(problem, answer)


def bind(problem: Problem, answer: Answer) -> Bound:
    """What a problem on a device takes, for all calls like it."""
    from .gpu import Bound

    return Bound(problem, answer)


def total_weight(problem: Problem) -> float:
    """A mean's denominator, from the device."""
    from .gpu import weigh

    return weigh(problem)
