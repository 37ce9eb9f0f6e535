"""What the answer to a case is, and how near a backend must come."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sce import checks, registry
from sce.backend import JACOBIANS, Answer, Array
from sce.problem import Request

from .bounds import Bound, bounds
from .case import MATRICES, Case

REDUCED = ("loss", "z_loss")


class Expected(NamedTuple):
    """Per output, in the caller's shape: the values, in float64 or wider, their bounds, and the dtype."""

    want: dict[str, Array]
    bound: dict[str, Bound]
    dtype: dict[str, np.dtype[Any]]


def expected(case: Case) -> Expected:
    """Run the reference in the next wider precision: longdouble for float64, float64 for the others."""
    request = case.fresh()[0].request()
    problem = request.problem
    dtype = {name: output_dtype(request, name) for name in problem.outputs}
    want = _canonical(request)
    known = bounds(problem, want, {name: d.name for name, d in dtype.items()})
    shaped = {name: _shaped(request, name, x) for name, x in want.items()}
    limits = {
        name: Bound(_shaped(request, name, bound.allowed), _shaped(request, name, bound.ulp))
        for name, bound in known.items()
    }
    if problem.reduce and not problem.denominator:  # an empty mean is what the caller said
        for name in problem.outputs & set(REDUCED):
            shaped[name] = np.asarray(request.empty)
            limits[name] = Bound(np.zeros(()), np.ones(()))
    return Expected(shaped, limits, dtype)


def output_dtype(request: Request, name: str) -> np.dtype[Any]:
    """The dtype that the contract gives this output in the caller's hands."""
    if name in ("argmax", "correct"):
        return np.dtype(np.int64 if name == "argmax" else np.bool_)
    if name not in MATRICES + JACOBIANS:
        return checks.loss_dtype(request.like.dtype)
    if request.out is not None and name != "hess_diag":
        return request.out.dtype
    return request.like.dtype.newbyteorder("=")


def _canonical(request: Request) -> dict[str, Array]:
    problem = request.problem
    wide = np.dtype(np.longdouble if problem.dtype == "float64" else np.float64)
    n, shape = problem.rows, problem.logits.shape
    arrays: dict[str, Array] = {}
    for name in problem.outputs:
        total = problem.reduce and name in REDUCED
        size = shape if name in MATRICES else (1 if total else n,)
        size = (*shape, problem.classes) if name in JACOBIANS else size
        dtype = output_dtype(request, name) if name in ("argmax", "correct") else wide
        arrays[name] = np.zeros(size, dtype)
    if n:
        soft, v = problem.distribution, problem.direction
        problem = problem._replace(
            logits=problem.logits.astype(wide),
            distribution=None if soft is None else soft.astype(wide),
            direction=None if v is None else v.astype(wide),
        )
        registry.load("reference").run(problem, Answer(**arrays))
    sizes = dict.fromkeys(MATRICES, (n, problem.classes)) | dict.fromkeys(
        JACOBIANS, (n, *[problem.classes] * 2)
    )
    return {name: x.reshape(sizes.get(name, x.shape)) for name, x in arrays.items()}


def _shaped(request: Request, name: str, x: Array) -> Array:
    """A canonical array in the caller's shape."""
    if name in MATRICES:
        given = np.empty(request.like.shape, x.dtype)
        request.layout.write(x.reshape(request.problem.logits.shape), given)
        return given
    if request.problem.reduce and name in REDUCED:
        return x[0, ...]
    if name in JACOBIANS:
        return x.reshape(*request.layout.rows_shape, *x.shape[1:])
    return x.reshape(request.layout.rows_shape)
