"""Times of what goes beyond loss and gradient: second derivatives, binary losses, the linear model.

Rows of the document by name of the function; peers are PyTorch's ways to the same answer, which is compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import sce
from sce.bench.clock import Times
from sce.bench.contest import TOLERANCE
from sce.bench.suites import rows
from sce.linear import LinearGrad
from sce.linear import device as linear

from . import ROUNDS, Say, alternate, as_passed

Row = dict[str, Any]
Calls = dict[str, Callable[[], Any]]  # by contestant; ours begin with "sce"; what they return is compared
CLASSES = 1000
LINEAR = {"cuda": (8192, 1024, 128256), "cpu": (48, 8, 100)}  # N, D, C
LARGE_CHUNK = 256 << 20  # against linear._CHUNK: what memory buys


class Task(NamedTuple):
    """`bytes` must move at least; `flops` are those of the products of matrices."""

    function: str
    n: int
    c: int
    dtype: str
    bytes: int = 0
    d: int = 0
    flops: float = 0.0


def tasks(device: str, matrix: int) -> Iterator[tuple[Task, Callable[..., Calls]]]:
    for dtype in ("float32", "bfloat16"):
        n = rows(CLASSES, dtype, matrix)
        size = n * CLASSES * (4 if dtype == "float32" else 2)
        for function, matrices, calls in (
            ("loss_grad_hess", 3, _diagonal),
            ("hvp", 3, _product),
            ("binary_loss_and_grad", 3, _binary),
        ):
            yield Task(function, n, CLASSES, dtype, matrices * size), calls
        n, d, c = LINEAR[device]
        yield Task("linear_loss_and_grad", n, c, dtype, d=d, flops=6.0 * n * d * c), _linear
        yield Task("linear_cross_entropy", n, c, dtype, d=d, flops=2.0 * n * d * c), _likelihood


def table(backend: str, device: str, matrix: int, end: float, say: Say) -> Iterator[list[Row]]:
    """Rows, again after each task. A task that is not reached before `end` has one that says so."""
    every = [*tasks(device, matrix)]
    found = {task: [_row(task, "", "not reached", "the time was over.")] for task, _ in every}
    for task, calls in every:
        if time.monotonic() > end:
            break
        found[task] = _timed(task, calls, backend, device, end, say)
        yield [row for some in found.values() for row in some]
        if device == "cuda":
            import torch

            torch.cuda.empty_cache()
    yield [row for some in found.values() for row in some]


def _row(task: Task, contestant: str, status: str, why: str | None = None) -> Row:
    facts = {**task._asdict(), "contestant": contestant, "ours": contestant.startswith("sce")}
    return {**facts, "status": status, "why": why, "error": None, "median_s": None}


def _timed(
    task: Task, make: Callable[..., Calls], backend: str, device: str, end: float, say: Say
) -> list[Row]:
    """Each contestant's answer compared with PyTorch's, then all timed in turns."""
    say(f"{task.function} {task.dtype}: inputs")
    try:
        calls = make(task, device, backend)
    except Exception as exc:
        return [_row(task, "sce", "failed", f"{type(exc).__name__}: {exc}")]
    answers: dict[str, Any] = {}
    found: dict[str, Row] = {}
    for name in sorted(calls, key=lambda name: name.startswith("sce")):  # the peers' answers first
        say(f"{task.function} {task.dtype}: {name}")
        try:
            answers[name] = _sample(calls[name]())
            found[name] = _compared(_row(task, name, "ok"), answers)
        except Exception as exc:
            found[name] = _row(task, name, "failed", f"{type(exc).__name__}: {exc}")
    able = {name: call for name, call in calls.items() if found[name]["status"] == "ok"}
    say(f"{task.function} {task.dtype}: timing")
    times: Mapping[str, Times] = alternate(able, device, ROUNDS, end)
    for name in able:
        if name in times:
            found[name]["median_s"] = times[name].median
        else:
            found[name] = _row(task, name, "not reached", "the time was over.")
    return [found[name] for name in calls]


def _compared(row: Row, answers: Mapping[str, Any]) -> Row:
    """Against the first of the answers."""
    mine, theirs = answers[row["contestant"]], next(iter(answers.values()))
    worst = 0.0
    for a, b in zip(mine, theirs, strict=False):  # the diagonal is only ours
        off = float((a - b).abs().max()) / max(float(b.abs().max()), 1e-300)
        worst = max(worst, math.inf if math.isnan(off) else off)
    row["error"] = worst
    if worst > TOLERANCE[row["dtype"]]:
        row |= {"status": "wrong", "why": f"off by {worst:.2g} of the largest number"}
    return row


def _sample(answer: Any) -> list[Any]:
    """The first rows of each array, in float64."""
    import torch

    found = []
    for x in answer:
        if not isinstance(x, torch.Tensor):
            x = torch.tensor(float(x)) if getattr(x, "ndim", 0) == 0 else _tensor(x)
        found.append(x.detach()[:256].double() if x.ndim else x.detach().double())
    return found


def _tensor(x: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.asarray(x, np.float64))


# The contestants. What is returned: the loss, where there is one, and gradients.


def _matrix(task: Task, device: str, seed: int) -> Any:
    import torch

    random = torch.Generator(device)
    random.manual_seed(seed)
    x = torch.empty(task.n, task.c, dtype=getattr(torch, task.dtype), device=device)
    return x.normal_(0, 3, generator=random)


def _labels(task: Task, device: str) -> Any:
    import torch

    random = torch.Generator(device)
    random.manual_seed(7)
    return torch.randint(task.c, (task.n,), device=device, generator=random)


def _diagonal(task: Task, device: str, backend: str) -> Calls:
    from torch.autograd import grad
    from torch.nn import functional

    x, y = _matrix(task, device, 1), _labels(task, device)
    logits, labels, out = as_passed(x), as_passed(y), as_passed(x.clone())
    leaf = x.clone().requires_grad_()

    def torch_gradient() -> Any:
        loss = functional.cross_entropy(leaf, y)
        return loss, *grad(loss, leaf)

    return {
        "sce": lambda: sce.loss_grad_hess(logits, labels, out=out, backend=backend),
        "torch, without the diagonal": torch_gradient,
    }


def _product(task: Task, device: str, backend: str) -> Calls:
    from torch.autograd import grad
    from torch.nn import functional

    x, y, v = _matrix(task, device, 1), _labels(task, device), _matrix(task, device, 2)
    logits, labels, along, out = as_passed(x), as_passed(y), as_passed(v), as_passed(x.clone())
    leaf = x.clone().requires_grad_()

    def twice() -> Any:
        loss = functional.cross_entropy(leaf, y)
        (first,) = grad(loss, leaf, create_graph=True)
        return grad(first, leaf, v)

    return {
        "sce": lambda: (sce.hvp(logits, labels, along, out=out, backend=backend),),
        "torch, twice backward": twice,
    }


def _binary(task: Task, device: str, backend: str) -> Calls:
    from torch.autograd import grad
    from torch.nn import functional

    x = _matrix(task, device, 1)
    y = (_matrix(task, device, 2) > 0).to(x.dtype)
    logits, target, out = as_passed(x), as_passed(y), as_passed(x.clone())
    leaf = x.clone().requires_grad_()

    def torch_binary() -> Any:
        loss = functional.binary_cross_entropy_with_logits(leaf, y)
        return loss, *grad(loss, leaf)

    return {
        "sce": lambda: sce.binary_loss_and_grad(logits, target, out=out, backend=backend),
        "torch": torch_binary,
    }


def _model(task: Task, device: str) -> tuple[Any, Any, Any]:
    """X, W as PyTorch's layers have it, and labels: logits of standard deviation 3."""
    import torch

    random = torch.Generator(device)
    random.manual_seed(3)
    dtype = getattr(torch, task.dtype)
    x = torch.empty(task.n, task.d, device=device).normal_(generator=random).to(dtype)
    w = torch.empty(task.c, task.d, device=device).normal_(0, 3 / task.d**0.5, generator=random).to(dtype)
    return x, w, _labels(task, device)


def _with_chunks(size: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        before, linear._CHUNK = linear._CHUNK, size
        try:
            return call()
        finally:
            linear._CHUNK = before

    return run


def _linear(task: Task, device: str, backend: str) -> Calls:
    from torch.autograd import grad
    from torch.nn import functional

    x, w, y = _model(task, device)
    given = as_passed(x), as_passed(w).T, as_passed(y)
    out = LinearGrad(X=as_passed(x.clone()), W=as_passed(w.clone()).T)

    def ours() -> Any:
        loss, grads = sce.linear_loss_and_grad(*given, want=("X", "W"), out=out, backend=backend)
        return loss, grads.X, grads.W.T

    leaves = x.clone().requires_grad_(), w.clone().requires_grad_()

    def eager() -> Any:
        loss = functional.cross_entropy(functional.linear(*leaves), y)
        return loss, *grad(loss, leaves)

    def products() -> Any:
        z = functional.linear(x, w)
        _ = z @ w, z.T @ x
        return ()

    found = {"sce": ours, "sce, large chunks": _with_chunks(LARGE_CHUNK, ours), "torch": eager}
    return found | _chunked(task, leaves, y) | {"products alone": products}


def _chunked(task: Task, leaves: tuple[Any, Any], y: Any) -> Calls:
    """PyTorch's own loss in chunks, where it has one."""
    import torch
    from torch.autograd import grad
    from torch.nn import functional

    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}
    options = torch.nn.LinearCrossEntropyOptions()

    def call() -> Any:
        loss = functional.linear_cross_entropy(*leaves, y, options=options)
        return loss, *grad(loss, leaves)

    return {"torch, in chunks": call}


def _likelihood(task: Task, device: str, backend: str) -> Calls:
    import torch
    from torch.nn import functional

    x, w, y = _model(task, device)
    given = as_passed(x), as_passed(w).T, as_passed(y)

    def ours() -> Any:
        return (sce.linear_cross_entropy(*given, backend=backend),)

    def eager() -> Any:
        with torch.no_grad():
            return (functional.cross_entropy(functional.linear(x, w), y),)

    def product() -> Any:
        functional.linear(x, w)
        return ()

    found = {"sce": ours, "sce, large chunks": _with_chunks(LARGE_CHUNK, ours), "torch": eager}
    return found | {"products alone": product}
