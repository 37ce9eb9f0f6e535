"""The same bits again, the same bits for a part of the batch, every element written and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from sce.backend import JACOBIANS, Answer, Array, Backend, Problem
from sce.problem import Request

from .case import MATRICES, POISON, Case, poisoned
from .compare import same_bits
from .expected import REDUCED, output_dtype

Findings = list[tuple[str, str]]


def invariance(backend: Backend, case: Case, values: dict[str, Any]) -> Findings:
    """What depends on the run, on the memory given, or on the other rows.

    `values` is the first answer. NumPy's warnings are off, as `sce.functions.solve` has them.
    """
    fresh, guards = case.fresh()
    request = fresh.request()
    given, canonical = _allocate(request)
    if not request.problem.rows:
        return []
    with np.errstate(all="ignore"):
        backend.run(request.problem, Answer(**canonical))
    found = _repeated(case, request, values, given, canonical)
    found += [(name, "the backend wrote into this input.") for name, g in guards.items() if not g.untouched()]
    if request.problem.rows > 1 and not found:
        found += _split(backend, case, canonical)
    return found


def _repeated(
    case: Case,
    request: Request,
    values: dict[str, Any],
    given: dict[str, Array],
    canonical: dict[str, Array],
) -> Findings:
    """Asked again, with poison where the answer goes."""
    found: Findings = []
    for name, x in canonical.items():
        again = _returned(request, name, given, x)
        if same_bits(again, values[name]):
            continue
        if _poisoned_anywhere(x) and not (name != "hess_diag" and case.out in ("in place", "over v")):
            found.append((name, "elements were left unwritten."))
        else:
            found.append(
                (name, "differs from the first run (not deterministic, or it adds to what was there).")
            )
    if case.out == "strided" and not _gaps_intact(request):
        found.append(("grad", "the gaps between the elements of out were written to."))
    return found


def _split(backend: Backend, case: Case, full: dict[str, Array]) -> Findings:
    """A row's answer does not depend on the other rows: run some of them alone, in the same layout."""
    part = case.fresh()[0].request()
    _, some = _allocate(part)
    outer, inner, _ = part.problem.logits.shape
    if outer > 1:
        tile = (slice(outer // 3, max(outer // 3 + 1, outer - 1)), slice(None))
        rows = slice(tile[0].start * inner, tile[0].stop * inner)
    else:
        tile = (slice(None), slice(inner // 3, max(inner // 3 + 1, inner - 1)))
        rows = tile[1]
    problem = _part(part.problem, tile, rows)
    names = [name for name in some if not (problem.reduce and name in REDUCED)]
    pieces = {name: some[name][_of(name, tile, rows)] for name in names}
    totals = {name: some[name] for name in some if name not in names}
    with np.errstate(all="ignore"):
        backend.run(problem, Answer(**pieces, **totals))
    return [
        (name, f"differs when rows {rows.start} to {rows.stop - 1} run without the others.")
        for name in names
        if not same_bits(pieces[name], full[name][_of(name, tile, rows)])
    ]


def _of(name: str, tile: tuple[slice, slice], rows: slice) -> Any:
    """Where an output has these rows."""
    return tile if name in MATRICES + JACOBIANS else rows


def _part(problem: Problem, tile: tuple[slice, slice], rows: slice) -> Problem:
    """The problem of some of the rows, with the denominator of all."""
    if problem.binary:  # whatever has one value per row has the logits' shape
        rest: dict[str, Any] = {
            name: value[tile]
            for name in ("logits", "labels", "distribution", "sample_weight", "pos_weight")
            if isinstance(value := getattr(problem, name), np.ndarray)
        }
        return problem._replace(rows=rows.stop - rows.start, **rest)
    soft, labels, weight, v = problem.distribution, problem.labels, problem.sample_weight, problem.direction
    return problem._replace(
        rows=rows.stop - rows.start,
        logits=problem.logits[tile],
        distribution=None if soft is None else soft[tile],
        direction=None if v is None else v[tile],
        labels=None if labels is None else labels[rows],
        sample_weight=None if weight is None else weight[rows],
    )


def _allocate(request: Request) -> tuple[dict[str, Array], dict[str, Array]]:
    """Poisoned memory for every output, in the layout that `sce.functions.solve` chooses.

    (matrices shaped like the logits, the canonical arrays that a backend fills)
    """
    problem, like = request.problem, request.like
    given: dict[str, Array] = {}
    canonical: dict[str, Array] = {}
    for name in problem.outputs:
        dtype = output_dtype(request, name)
        if name in JACOBIANS:
            canonical[name] = poisoned((*problem.logits.shape, problem.classes), dtype)
            continue
        if name not in MATRICES:
            total = problem.reduce and name in REDUCED
            canonical[name] = poisoned(
                (1,) if total else (problem.rows,), np.dtype(float) if total else dtype
            )
            continue
        if request.out is not None and name != "hess_diag":
            given[name] = request.out
        else:
            given[name] = np.empty_like(like, dtype=dtype, subok=False)
            given[name][...] = poisoned((1,), dtype)[0]
        view = request.layout.view(given[name])
        canonical[name] = poisoned(problem.logits.shape, dtype) if view is None else view
    return given, canonical


def _returned(request: Request, name: str, given: dict[str, Array], x: Array) -> Any:
    """What the caller gets of a canonical array, as `sce.functions.solve` hands it back."""
    problem = request.problem
    if name in MATRICES:
        if not np.may_share_memory(x, given[name]):
            request.layout.write(x, given[name])
        return given[name]
    if name in JACOBIANS:
        return x.reshape(*request.layout.rows_shape, *x.shape[2:])
    if problem.reduce and name in REDUCED:
        return output_dtype(request, name).type(x[0] if problem.denominator else request.empty)
    return x.reshape(request.layout.rows_shape)


def _poisoned_anywhere(x: Array) -> bool:
    raw = np.ascontiguousarray(x).reshape(-1).view(np.uint8).reshape(-1, x.dtype.itemsize)
    return bool((raw == POISON).all(axis=1).any())


def _gaps_intact(request: Request) -> bool:
    """`Case` makes a strided `out` of every other element of its memory."""
    assert request.out is not None
    raw = np.asarray(request.out.base).reshape(-1, 2, request.out.dtype.itemsize)
    return bool((raw[:, 1] == POISON).all())
