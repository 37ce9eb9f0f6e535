"""`repeat`: a problem whose arrays change is computed again, to the bit as `run` would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")

from sce.backend import Answer, Problem
from sce.binary import prepare_binary
from sce.problem import prepare
from sce_backends import cpu


def answer_for(problem: Problem) -> Answer:
    """NaN, wherever something is to be written."""
    shape, rows = problem.logits.shape, 1 if problem.reduce else problem.rows
    matrices = {"grad", "hess_diag", "hvp"} & problem.outputs
    found = {name: np.full(shape, np.nan, problem.dtype) for name in matrices}
    if "loss" in problem.outputs:
        found["loss"] = np.full(rows, np.nan, np.float64 if problem.reduce else problem.dtype)
    return Answer(**found)


def problems(x: Any, y: Any, v: Any) -> list[Problem]:
    both = ("loss", "grad")
    soft = np.full(x.shape, 1 / x.shape[1], x.dtype)
    binary: dict[str, Any] = {"outputs": both}
    weights = {
        "class_weight": np.linspace(1, 2, 2 * x.shape[1])[::2],
        "sample_weight": np.arange(len(x)) + 0.5,
    }
    return [
        prepare(x, y, outputs=both, label_smoothing=0.1, logit_bias=np.ones(x.shape[1]), **weights).problem,
        prepare(x, y, outputs=both).problem,
        prepare(x, y, outputs=both, reduction="none", temperature=2.0).problem,
        prepare(x, soft, outputs=both).problem,
        prepare(x, y, outputs=("hvp",), v=v).problem,
        prepare(x, y, outputs=(*both, "hess_diag")).problem,
        prepare_binary(x[:, 0], y % 2, **binary).problem,
        prepare_binary(x[:, 0], y % 2, outputs=("hess_diag",)).problem,
        prepare_binary(
            x[:, 0], soft[:, 0].astype(np.float16), **binary
        ).problem,  # of which the kernel has a copy
    ]


# In columns, in tiles, in chunks that several threads take, and in pieces.
@pytest.mark.parametrize("shape", [(7, 3), (5, 700), (3000, 300), (2, 70000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_is_run(shape: tuple[int, int], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, *shape)).astype(dtype)
    for problem in problems(x, rng.integers(0, shape[1], shape[0]), v):
        found, expected = answer_for(problem), answer_for(problem)
        again = cpu.repeat(problem, found)
        for _ in range(2):
            x[...], v[...] = rng.normal(size=(2, *shape))
            other = [np.full(len(x), np.nan) for _ in range(8)]  # over memory that nobody keeps
            again()
            cpu.run(problem, expected)
            del other
            for ours, theirs in zip(found, expected, strict=True):
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert not np.isnan(ours).any()
                    assert ours.tobytes() == theirs.tobytes()


def test_each_has_its_own_memory() -> None:
    """What two of them work in is not the same, nor that of the thread's next call."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5, 700)), rng.integers(0, 700, 5)
    made = [prepare(each, y, outputs=("loss", "grad")).problem for each in x]
    found = [answer_for(problem) for problem in made]
    calls = [cpu.repeat(problem, answer) for problem, answer in zip(made, found, strict=True)]
    for call in calls:
        call()
    for problem, answer in zip(made, found, strict=True):
        expected = answer_for(problem)
        cpu.run(problem, expected)
        assert answer.loss is not None
        assert expected.loss is not None
        assert answer.loss.tobytes() == expected.loss.tobytes()
    calls[0]()
    assert found[0].loss is not None
    first = found[0].loss.tobytes()
    calls[1]()
    calls[0]()
    assert found[0].loss.tobytes() == first
