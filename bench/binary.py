"""Measure the binary loss: time against a copy of the same bytes, PyTorch, JAX, scikit-learn and NumPy.

python bench/binary.py [--elements N] [docs/benchmarks.md]

The tables go into the page, between this script's marks (or at its end, where there are none). Everyone is
checked before timed, in alternating rounds: a machine that slows down slows every contestant. Peers that are
not installed are left out, and the page says so. Some minutes on two quiet cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import sce
from sce import machine
from sce.bench.clock import Rounds, Times, alternate
from sce.bench.limit import copies, reads
from sce.bench.markdown import measured_with, number, put, table

ELEMENTS = 1 << 24
ROUNDS = Rounds(least=7, enough=0.5, patience=3.0)
ABOUT = """
`sce.binary_loss_and_grad` and `sce.binary_cross_entropy`, reduced by their mean. Logits and targets are read
once and the gradient is written once, past what the caches hold: the bar is a copy that moves as many bytes,
for the loss alone a read of them. Of the ways to copy the fastest counts.

- **labels** are int8, **probabilities** have the logits' dtype. PyTorch, JAX and scikit-learn take targets of
  the logits' dtype only: theirs are converted before the clock starts.
- The gradient goes to memory that exists, where a contestant can. scikit-learn returns each element's loss,
  and its gradient without the mean's 1 / N.
- **NumPy** is the textbook in NumPy, on one thread and stable: `maximum(x, 0) - x y + log1p(exp(-|x|))`.

Times are medians of alternating rounds, with their quartiles. Losses and gradients were compared first.
"""
Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


def ours(x: Array, y: Array, **options: object) -> Call:
    out = np.empty_like(x)
    return lambda: sce.binary_loss_and_grad(x, y, out=out, backend="cpu", **options)


def our_loss(x: Array, y: Array) -> Call:
    return lambda: (sce.binary_cross_entropy(x, y, backend="cpu"), None)


def our_hessian(x: Array, y: Array) -> Call:
    out = np.empty_like(x)
    return lambda: sce.binary_loss_grad_hess(x, y, out=out, backend="cpu")[:2]


def torch_eager(x: Array, y: Array) -> Call:
    import torch

    a, b = torch.tensor(x, requires_grad=True), torch.tensor(y.astype(x.dtype))

    def call() -> object:
        a.grad = None
        loss = torch.nn.functional.binary_cross_entropy_with_logits(a, b)
        loss.backward()
        return loss.detach().numpy()[()], a.grad.numpy()

    return call


def jax_jit(x: Array, y: Array) -> Call:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", x.dtype == np.float64)

    def loss(z: Any, t: Any) -> Any:
        return jnp.mean(jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z))))

    step = jax.jit(jax.value_and_grad(loss))
    a, b = jnp.asarray(x), jnp.asarray(y.astype(x.dtype))
    assert a.dtype == x.dtype
    return lambda: jax.block_until_ready(step(a, b))


def scikit_learn(x: Array, y: Array) -> Call:
    from sklearn._loss import HalfBinomialLoss

    losses, grad, target = np.empty_like(x), np.empty_like(x), y.astype(x.dtype)

    def call() -> object:
        HalfBinomialLoss().loss_gradient(
            target, x, loss_out=losses, gradient_out=grad, n_threads=machine.threads()
        )
        return losses.mean(dtype=np.float64), grad

    return call


def numpy_textbook(x: Array, y: Array) -> Call:
    target = y.astype(x.dtype)

    def call() -> object:
        e = np.exp(-np.abs(x))
        loss = (np.maximum(x, 0) - x * target + np.log1p(e)).mean(dtype=np.float64)
        grad = np.where(x > 0, 1, e) / (1 + e)
        grad -= target
        grad /= x.size
        return loss, grad

    return call


PEERS: dict[str, Callable[[Array, Array], Call]] = {
    "PyTorch eager": torch_eager,
    "JAX jit": jax_jit,
    "scikit-learn": scikit_learn,
    "NumPy": numpy_textbook,
}


def contestants(x: Array, y: Array, absent: dict[str, str]) -> Iterator[tuple[str, Call]]:
    yield "**sce** `cpu`", ours(x, y)
    yield "with `pos_weight` and smoothing", ours(x, y, pos_weight=2.0, label_smoothing=0.1)
    yield "with the Hessian's diagonal", our_hessian(x, y)
    yield "the loss alone", our_loss(x, y)
    for name, make in PEERS.items():
        try:
            yield name, make(x, y)
        except ImportError as exc:
            absent[name] = str(exc)


def check(calls: dict[str, Call], x: Array, y: Array) -> None:
    """Against the reference: losses to 1e-5, gradients to 1e-4 or what a difference of float32 leaves."""
    for name, call in calls.items():
        options = {"pos_weight": 2.0, "label_smoothing": 0.1} if "smoothing" in name else {}
        loss, grad = sce.binary_loss_and_grad(x, y, backend="reference", **options)
        got, slope = call()
        np.testing.assert_allclose(got, loss, rtol=1e-5, err_msg=name)
        if slope is not None:
            scale = x.size if name == "scikit-learn" else 1
            near = {"rtol": 1e-4, "atol": 1e-6 / x.size, "err_msg": name}
            np.testing.assert_allclose(np.asarray(slope) / scale, grad, **near)


def measured(x: Array, y: Array, absent: dict[str, str]) -> dict[str, Times]:
    calls = dict(contestants(x, y, absent))
    check(calls, x, y)
    moved = 2 * x.nbytes + y.nbytes  # of which a copy reads half
    source, target = np.ones(moved // 2, np.uint8), np.ones(moved // 2, np.uint8)
    with ThreadPoolExecutor(machine.threads()) as pool:
        bars = {f"copy, {name}": way for name, way in copies(source, target, pool).items()}
        read = np.ones(x.nbytes + y.nbytes, np.uint8)
        bars |= {f"read, {name}": way for name, way in reads(read, pool).items()}
        for bar in bars.values():
            bar()
        return alternate({**bars, **calls}, ROUNDS)


def rows(found: dict[str, Times], elements: int) -> Iterator[tuple[str, ...]]:
    best = {
        bar: min((t.median, name) for name, t in found.items() if name.startswith(bar))
        for bar in ("copy", "read")
    }
    for name, times in found.items():
        bar = "read" if name.startswith("read") or "alone" in name else "copy"
        if name.startswith(("copy", "read")) and name != best[bar][1]:
            continue
        low, high = (number(1e3 * q) for q in times.quartiles)
        over = f"{times.median / best[bar][0]:.2f}" + (" reads" if bar == "read" else "")
        each = number(1e9 * times.median / elements)
        yield name, f"{number(1e3 * times.median)} ms", f"{low} .. {high}", f"{each} ns", over


def section(elements: int, command: str) -> str:
    absent = dict[str, str]()
    parts = [f"## The binary loss, {elements} elements", ABOUT, measured_with(command)]
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        x = (rng.normal(size=elements) * 4).astype(dtype)
        targets = {
            "labels": rng.integers(0, 2, elements).astype(np.int8),
            "probabilities": rng.uniform(size=elements).astype(dtype),
        }
        for kind, y in targets.items():
            header = ("", "loss and gradient", "quartiles, ms", "an element", "over a copy")
            found = measured(x, y, absent)
            parts.append(f"### {np.dtype(dtype).name}, {kind}")
            parts.append(table(header, list(rows(found, elements))))
    parts += [f"{name} is missing: {why}." for name, why in absent.items()]
    return "\n\n".join(part.strip("\n") for part in parts)


def main(
    target: Annotated[Path, typer.Argument(metavar="PAGE", help="The page that the tables go into.")] = Path(
        "docs/benchmarks.md"
    ),
    elements: Annotated[int, typer.Option("--elements", help="How many logits.", min=1)] = ELEMENTS,
) -> None:
    """Measure the binary loss against a copy, PyTorch, JAX, scikit-learn and NumPy."""
    command = "python bench/binary.py" + (f" --elements {elements}" if elements != ELEMENTS else "")
    text = section(elements, command)
    before = target.read_text("utf-8") if target.exists() else ""
    target.write_text(put(before, "bench/binary.py", text), encoding="utf-8")
    typer.echo(f"{target} written.")


if __name__ == "__main__":
    typer.run(main)
