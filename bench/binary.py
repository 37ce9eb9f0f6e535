"""Binary loss and gradient against the peers, as a share of a copy of the same bytes.

python bench/binary.py [elements]

Checked before timed, in alternating rounds: a machine that slows down slows every contestant. Peers that are
not installed are left out, and said so. The gradient goes to memory that exists where a contestant can.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import sce
from sce import machine
from sce.bench.clock import Rounds, alternate
from sce.bench.limit import copies

ELEMENTS = 1 << 24
ROUNDS = Rounds(least=9, enough=0.5, patience=6.0)


def ours(x: np.ndarray, y: np.ndarray, **options: object) -> Callable[[], object]:
    out = np.empty_like(x)
    return lambda: sce.binary_loss_and_grad(x, y, out=out, backend="cpu", **options)


def torch_eager(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    import torch

    a, b = torch.tensor(x, requires_grad=True), torch.tensor(y.astype(x.dtype))

    def call() -> object:
        a.grad = None
        loss = torch.nn.functional.binary_cross_entropy_with_logits(a, b)
        loss.backward()
        return loss.detach().numpy()[()], a.grad.numpy()

    return call


def jax_jit(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    import jax
    import jax.numpy as jnp

    def loss(z, t):
        return jnp.mean(jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z))))

    step = jax.jit(jax.value_and_grad(loss))
    a, b = jnp.asarray(x), jnp.asarray(y.astype(x.dtype))
    return lambda: jax.block_until_ready(step(a, b))


def scikit_learn(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    from sklearn._loss import HalfBinomialLoss

    losses, grad, target = np.empty_like(x), np.empty_like(x), y.astype(x.dtype)

    def call() -> object:
        HalfBinomialLoss().loss_gradient(
            target, x, loss_out=losses, gradient_out=grad, n_threads=machine.threads()
        )
        return losses.mean(dtype=np.float64), grad  # its gradient is each element's own

    return call


PEERS = {"torch eager": torch_eager, "jax jit": jax_jit, "scikit-learn": scikit_learn}


def contestants(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "sce cpu", ours(x, y)
    yield "sce cpu, pos_weight and smoothing", ours(x, y, pos_weight=2.0, label_smoothing=0.1)
    for name, make in PEERS.items():
        try:
            yield name, make(x, y)
        except ImportError as exc:
            print(f"  {name}: missing ({exc})")


def check(calls: dict[str, Callable[[], object]], x: np.ndarray, y: np.ndarray) -> None:
    loss, grad = sce.binary_loss_and_grad(x, y, backend="reference")
    for name, call in calls.items():
        if "weight" in name:
            continue
        got, slope = call()
        scale = x.size if name == "scikit-learn" else 1
        np.testing.assert_allclose(got, loss, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            np.asarray(slope) / scale, grad, rtol=1e-4, atol=1e-6 / x.size, err_msg=name
        )


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else ELEMENTS
    rng = np.random.default_rng(0)
    print(f"{n} elements, {machine.threads()} threads: loss and gradient")
    for dtype in (np.float32, np.float64):
        x = (rng.normal(size=n) * 4).astype(dtype)
        for y in (rng.uniform(size=n).astype(dtype), rng.integers(0, 2, n).astype(np.int8)):
            print(f"{np.dtype(dtype).name} logits, {y.dtype.name} targets")
            calls = dict(contestants(x, y))
            check(calls, x, y)
            moved = 2 * x.nbytes + y.nbytes
            source, target = np.ones(moved // 2, np.uint8), np.ones(moved // 2, np.uint8)
            with ThreadPoolExecutor(machine.threads()) as pool:
                ways = {f"copy, {name}": way for name, way in copies(source, target, pool).items()}
                found = alternate({**ways, **calls}, ROUNDS)
            limit = min(found[name].median for name in ways)
            for name, times in found.items():
                low, high = (1e3 * q for q in times.quartiles)
                median = times.median
                print(
                    f"  {name:36} {1e3 * median:9.2f} ms ({low:.2f} .. {high:.2f})"
                    f" {median / limit:7.2f} copies"
                )


if __name__ == "__main__":
    main()
