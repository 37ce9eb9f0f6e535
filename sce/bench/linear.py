"""The linear model, measured: time and peak memory, each contestant in a process of its own.

`measure` runs in that process (see cold/fresh.py). Its figures "gradients" and "likelihood" are seconds of
loss and gradients, and of the loss alone; "bare ..." those of the products of matrices in them, over the same
chunks into memory that exists; "memory of ..." what a call needs beyond its inputs and its answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np

from sce.backend import Array
from sce.linear import LinearGrad, chunks, host, linear_cross_entropy, linear_loss_and_grad, products
from sce.linear.model import model

from .clock import Rounds, alternate
from .cold.worker import Figures, peaks
from .peers.package import why_missing

_ROUNDS = Rounds(least=5, enough=1.0, patience=15.0)
_LONG = 10.0  # seconds of a call: of longer ones there are as many as the memory's measurement takes,
_TURNS = 2  # or for a quotient so many turns: a quarter of an hour is to be enough for all
_MATRICES = 3  # that backpropagation through a log-softmax has at a time
_SAMPLE = 64  # numbers of each gradient that the contestants are compared by


class LinearTask(NamedTuple):
    """Mean loss of (n, d) rows and (d, c) weights in float32, without a bias, and both gradients."""

    n: int
    d: int
    c: int
    about: str = ""

    @property
    def flops(self) -> float:
        """Of X W, G W^T and X^T G."""
        return 6.0 * self.n * self.d * self.c

    @property
    def logits(self) -> int:
        """Bytes that they would take."""
        return 4 * self.n * self.c

    def __str__(self) -> str:
        return f"{self.n} x {self.d} x {self.c}"


TASKS = (
    LinearTask(8192, 1024, 128256, "Llama 3's vocabulary"),
    LinearTask(2048, 768, 50257, "GPT-2's vocabulary"),
    LinearTask(16384, 512, 1000, "ImageNet's classes"),
    LinearTask(100000, 100, 50, "softmax regression"),
    LinearTask(60000, 784, 10, "MNIST"),
)


class Inputs(NamedTuple):
    X: Array
    W: Array
    y: Array


def inputs(task: LinearTask) -> Inputs:
    """Logits of standard deviation 3; reproducible."""
    rng = np.random.default_rng([task.n, task.d, task.c])
    x = rng.standard_normal((task.n, task.d), np.float32)
    w = rng.standard_normal((task.d, task.c), np.float32)
    w *= np.float32(3 / np.sqrt(max(1, task.d)))
    return Inputs(x, w, rng.integers(0, task.c, task.n))


class Prepared(NamedTuple):
    """`calls` are timed, by figure; `answer` turns what "gradients" returned into (loss, dX, dW)."""

    calls: dict[str, Callable[[], Any]]
    answer: Callable[[Any], tuple[float, Array, Array]]


class LinearContestant(Protocol):
    @property
    def name(self) -> str: ...

    def missing(self) -> str | None: ...

    def refuses(self, task: LinearTask) -> str | None: ...

    def prepare(self, given: Inputs) -> Prepared: ...


class Ours(NamedTuple):
    name: str = "sce"

    def missing(self) -> str | None:
        return None

    def refuses(self, task: LinearTask) -> str | None:
        return None

    def prepare(self, given: Inputs) -> Prepared:
        x, w, y = given
        out = LinearGrad(X=np.empty_like(x), W=np.empty_like(w))
        bare = Bare(x, w, y, out)
        calls: dict[str, Callable[[], Any]] = {
            "gradients": lambda: linear_loss_and_grad(x, w, y, want=("X", "W"), out=out),
            "bare gradients": bare.gradients,
            "likelihood": lambda: linear_cross_entropy(x, w, y),
            "bare likelihood": bare.likelihood,
        }
        return Prepared(calls, lambda got: (float(got[0]), got[1].X, got[1].W))


class Bare:
    """The products alone: what a call cannot be faster than."""

    def __init__(self, x: Array, w: Array, y: Array, out: LinearGrad) -> None:
        self.model = model(x, w, y, bias=None, l2=0.0, outputs=("loss", "grad"))
        self.step = host._step(self.model, None, matrices=1)
        self.memory = host.memory_for(self.model, self.step)
        self.memory[...] = 0  # its pages are there
        self.out = out

    def gradients(self) -> None:
        x, w, (dx, dw, _) = self.model.X, self.model.W, self.out
        for a in range(0, len(x), self.step):
            rows = slice(a, a + self.step)
            z = products.multiply(x[rows], w, self._into(x[rows]))
            if a:
                products.add_product(x[rows].T, z, dw)
            else:
                np.matmul(x[rows].T, z, out=dw)
            np.matmul(z, w.T, out=dx[rows])

    def likelihood(self) -> None:
        x = self.model.X
        for a in range(0, len(x), self.step):
            rows = slice(a, a + self.step)
            products.multiply(x[rows], self.model.W, self._into(x[rows]))

    def _into(self, x: Array) -> Array:
        return chunks.matrix_in(self.memory, len(x), self.model.W)


def too_large(task: LinearTask) -> str | None:
    """Why someone who holds all logits cannot run here, or None: the system would end some process for it."""
    logits, matrices = _MATRICES * task.logits, 16 * (task.n + task.c) * task.d
    free = free_memory()
    if free is None or logits + matrices <= free:
        return None
    return (
        f"not enough memory: {_MATRICES} matrices shaped like the logits and its gradients take some"
        f" {(logits + matrices) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free."
    )


def free_memory() -> int | None:
    """Bytes that a process can have, if Linux tells."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


class Torch(NamedTuple):
    """linear and cross_entropy with autograd; `chunked`: linear_cross_entropy, told to take chunks."""

    name: str = "torch"
    chunked: bool = False

    def missing(self) -> str | None:
        if why := why_missing("torch", "torch"):
            return why
        import torch

        if self.chunked and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return f"PyTorch {torch.__version__} has no linear_cross_entropy in chunks."
        return None

    def refuses(self, task: LinearTask) -> str | None:
        return None if self.chunked else too_large(task)

    def prepare(self, given: Inputs) -> Prepared:
        import torch
        from torch.nn import functional

        x = torch.from_numpy(given.X).requires_grad_()
        w = torch.from_numpy(
            np.ascontiguousarray(given.W.T)
        ).requires_grad_()  # (C, D), as its layers have it
        y = torch.from_numpy(given.y)
        chunks = torch.nn.LinearCrossEntropyOptions() if self.chunked else None

        def loss() -> Any:
            if self.chunked:
                return functional.linear_cross_entropy(x, w, y, options=chunks)
            return functional.cross_entropy(functional.linear(x, w), y)

        def gradients() -> Any:
            x.grad = w.grad = None
            value = loss()
            value.backward()
            return value

        def likelihood() -> Any:
            with torch.no_grad():
                return loss()

        def answer(got: Any) -> tuple[float, Array, Array]:
            assert x.grad is not None
            assert w.grad is not None
            return float(got.detach()), x.grad.numpy(), w.grad.numpy().T

        return Prepared({"gradients": gradients, "likelihood": likelihood}, answer)


class Jax(NamedTuple):
    name: str = "jax"

    def missing(self) -> str | None:
        from .peers.jax import Jax as Peer

        return Peer().missing()

    def refuses(self, task: LinearTask) -> str | None:
        return too_large(task)

    def prepare(self, given: Inputs) -> Prepared:
        import jax
        import optax

        x, w = jax.numpy.asarray(given.X), jax.numpy.asarray(given.W)
        y = jax.numpy.asarray(given.y.astype(np.int32))

        def loss(x: Any, w: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(x @ w, y).mean()

        wait: Any = jax.block_until_ready
        value, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))

        def answer(got: Any) -> tuple[float, Array, Array]:
            return float(got[0]), np.asarray(got[1][0]), np.asarray(got[1][1])

        calls: dict[str, Callable[[], Any]] = {
            "gradients": lambda: wait(both(x, w)),
            "likelihood": lambda: wait(value(x, w)),
        }
        return Prepared(calls, answer)


def contestants() -> Iterator[LinearContestant]:
    yield Ours()
    yield Torch()
    yield Torch("torch, in chunks", chunked=True)
    yield Jax()


def measure(contestant: LinearContestant, task: LinearTask) -> Figures:
    """In a fresh process: a warm call's peaks of memory, all calls' seconds, and numbers to compare."""
    ready = contestant.prepare(inputs(task))
    loss, dx, dw = ready.answer(ready.calls["gradients"]())
    figures: Figures = {"loss": [loss], "dX": _sample(dx), "dW": _sample(dw)}
    del dx, dw
    ready.calls["likelihood"]()  # both are warm now
    seconds: dict[str, list[float]] = {name: [] for name in ready.calls}

    def turn(name: str) -> Any:
        began = perf_counter()
        answer = ready.calls[name]()
        seconds[name].append(perf_counter() - began)
        return answer

    for name in ("gradients", "likelihood"):
        figures[f"memory of {name}"] = peaks(partial(turn, name), 1)
    if seconds["gradients"][0] < _LONG:
        times = alternate(ready.calls, _ROUNDS)
        return figures | {name: list(found.seconds) for name, found in times.items()}
    for _ in range(_TURNS if "bare gradients" in seconds else 0):
        for name, found in seconds.items():
            if len(found) < _TURNS:
                turn(name)
    return figures | seconds


def _sample(matrix: Array) -> list[float]:
    """Numbers from all over the matrix."""
    at = np.linspace(0, matrix.size - 1, _SAMPLE).astype(np.int64)
    return [float(value) for value in matrix[np.unravel_index(at, matrix.shape)]]
