"""Measure Jacobians and derivatives along v: against moving the same bytes, PyTorch, JAX and NumPy.

python bench/jacobian.py [--megabytes N] [docs/benchmarks.md]

The tables go into the page, between this script's marks (or at its end, where there are none). Everyone is
checked before timed, in alternating rounds: a machine that slows down slows every contestant. Peers that are
not installed are left out. Some minutes on two quiet cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import sce
from sce.bench.clock import Rounds, alternate
from sce.bench.markdown import measured_with, number, put, table
from sce.cli.tables import duration

CLASSES = (3, 10, 100, 1000)
JACOBIANS = ("softmax_jacobian", "log_softmax_jacobian")
PRODUCTS = ("softmax_jvp", "log_softmax_jvp", "log_softmax_vjp", "hvp")
PEERS = {"NumPy": "numpy", "PyTorch": "torch", "JAX": "jax"}
ROUNDS = Rounds(least=7, enough=0.3, patience=3.0)
ABOUT = """
`sce.softmax_jacobian` and its relatives, for a batch of rows, to memory that exists. The bar for a Jacobian
is a copy of it, for a product with v the sum of two matrices into a third, which reads and writes as much:
both are NumPy's, on one thread. Peers are told in multiples of the time that `sce` takes.

- **PyTorch** and **JAX** (jit) are their own transformations: `vmap(jacfwd(...))`, `jvp`, `vjp`, and `jvp` of
  `grad` for the Hessian of the mean loss.
- **NumPy** is the formula: `diag(p) - p p^T`, `p (v - p.v)` and so on.

Times are medians of alternating rounds. Answers were compared first: "wrong" is none to be timed.
"""
Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


def ours(name: str, x: Array, v: Array, y: Array, out: Array) -> Call:
    function = getattr(sce, name)
    if name == "hvp":
        return lambda: function(x, y, v, out=out, backend="cpu")
    return lambda: function(*((x,) if name in JACOBIANS else (x, v)), out=out, backend="cpu")


def numpy(name: str, x: Array, v: Array, y: Array) -> Call:
    def softmax() -> Array:
        e = np.exp(x - x.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        return e

    def mean(p: Array) -> Array:
        return np.einsum("ij,ij->i", p, v)[:, None]

    eye = np.eye(x.shape[1], dtype=x.dtype)
    formulas: dict[str, Callable[[Array], Array]] = {
        "softmax_jacobian": lambda p: p[:, :, None] * (eye - p[:, None, :]),
        "log_softmax_jacobian": lambda p: eye - p[:, None, :],
        "softmax_jvp": lambda p: p * (v - mean(p)),
        "log_softmax_jvp": lambda p: v - mean(p),
        "log_softmax_vjp": lambda p: v - p * v.sum(axis=1, keepdims=True),
        "hvp": lambda p: p * (v - mean(p)) / x.dtype.type(len(x)),
    }
    return lambda: formulas[name](softmax())


def torch(name: str, x: Array, v: Array, y: Array) -> Call:
    import torch
    from torch.func import grad, jacfwd, jvp, vjp, vmap

    a, b, labels = torch.tensor(x), torch.tensor(v), torch.tensor(y)
    function = torch.log_softmax if name.startswith("log") else torch.softmax
    if name in JACOBIANS:
        each = vmap(jacfwd(lambda row: function(row, 0)))
        return lambda: each(a).numpy()
    if name == "hvp":
        slope = grad(lambda z: torch.nn.functional.cross_entropy(z, labels))
        return lambda: jvp(slope, (a,), (b,))[1].numpy()
    if name.endswith("vjp"):
        return lambda: vjp(lambda z: function(z, 1), a)[1](b)[0].numpy()
    return lambda: jvp(lambda z: function(z, 1), (a,), (b,))[1].numpy()


def jax(name: str, x: Array, v: Array, y: Array) -> Call:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", x.dtype == np.float64)
    a, b, rows = jnp.asarray(x), jnp.asarray(v), jnp.arange(len(x))
    function = jax.nn.log_softmax if name.startswith("log") else jax.nn.softmax
    if name in JACOBIANS:
        each = jax.jit(jax.vmap(jax.jacfwd(function)))
        return lambda: each(a).block_until_ready()
    if name == "hvp":
        slope = jax.grad(lambda z: -jnp.mean(jax.nn.log_softmax(z)[rows, y]))
        along = jax.jit(lambda z, u: jax.jvp(slope, (z,), (u,))[1])
    elif name.endswith("vjp"):
        along = jax.jit(lambda z, u: jax.vjp(function, z)[1](u)[0])
    else:
        along = jax.jit(lambda z, u: jax.jvp(function, (z,), (u,))[1])
    return lambda: along(a, b).block_until_ready()


def contestants(name: str, x: Array, v: Array, y: Array, out: Array) -> Iterator[tuple[str, Call]]:
    yield "sce", ours(name, x, v, y, out)
    makers = {"NumPy": numpy, "PyTorch": torch, "JAX": jax}
    for peer, module in PEERS.items():
        if find_spec(module):
            yield peer, makers[peer](name, x, v, y)


def wrong(calls: dict[str, Call], dtype: np.dtype[Any]) -> set[str]:
    """Whoever's answer is not NumPy's."""
    near, expected = 1e-4 if dtype == np.float32 else 1e-11, calls["NumPy"]()
    most = near * np.abs(expected).max()
    return {name for name, call in calls.items() if not np.abs(np.asarray(call()) - expected).max() <= most}


def line(name: str, dtype: str, classes: int, size: int) -> list[str]:
    rng = np.random.default_rng(0)
    square = name in JACOBIANS
    rows = max(1, size // (classes * (classes if square else 3) * np.dtype(dtype).itemsize))
    x, v = (rng.normal(size=(rows, classes)).astype(dtype) for _ in range(2))
    y = rng.integers(0, classes, rows)
    out = np.zeros((rows, classes, classes) if square else x.shape, dtype)
    other = np.ones_like(out)
    calls = dict(contestants(name, x, v, y, out))
    off = wrong(calls, x.dtype)
    assert "sce" not in off, f"{name} is wrong: {dtype}, {classes} classes"
    bar: Call = (lambda: np.copyto(other, out)) if square else (lambda: np.add(x, v, out=other))
    times = alternate(calls | {"bar": bar}, ROUNDS)
    took = times["sce"].median
    told = {peer: f"{number(times[peer].median / took)}x" for peer in calls} | dict.fromkeys(off, "wrong")
    theirs = (told.get(peer, "") for peer in PEERS)
    return [f"`{name}`", str(classes), str(rows), duration(took), number(took / times["bar"].median), *theirs]


def section(size: int, command: str) -> str:
    parts = ["## Jacobians and derivatives along v", ABOUT.strip(), measured_with(command)]
    for dtype in ("float32", "float64"):
        for names, bar in ((JACOBIANS, "a copy"), (PRODUCTS, "a sum")):
            header = ("", "C", "rows", "sce", f"over {bar}", *PEERS)
            lines = [line(name, dtype, classes, size) for name in names for classes in CLASSES]
            parts += [
                f"### {dtype}, {'Jacobians' if names is JACOBIANS else 'products'}",
                table(header, lines),
            ]
    return "\n\n".join(parts)


def main(
    target: Annotated[Path, typer.Argument(metavar="PAGE", help="The page that the tables go into.")] = Path(
        "docs/benchmarks.md"
    ),
    megabytes: Annotated[int, typer.Option("--megabytes", help="How much moves.", min=1)] = 96,
) -> None:
    """Measure Jacobians and derivatives along v against moving the same bytes, and peers."""
    command = "python bench/jacobian.py" + (f" --megabytes {megabytes}" if megabytes != 96 else "")
    text = section(megabytes << 20, command)
    before = target.read_text("utf-8") if target.exists() else ""
    target.write_text(put(before, "bench/jacobian.py", text), encoding="utf-8")
    typer.echo(f"{target} written.")


if __name__ == "__main__":
    typer.run(main)
