"""What a call on a device costs the host, without a device: everything but PyTorch, the driver and cuda.core.

    python bench/host_time.py [--cprofile]

Launches, allocations and tensors are pretended (pretended_cuda.py): a machine with a GPU adds what these cost
there, some microseconds per launch. Processor time; medians of the fastest halves of rounds.
"""

from __future__ import annotations

import argparse
import cProfile
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import sce

ROUNDS, CALLS = 40, 100


def microseconds(call: Callable[[], Any]) -> float:
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            call()
        found.append((time.process_time() - began) / CALLS)
    return 1e6 * median(sorted(found)[: ROUNDS // 2])


def main() -> None:
    from pretended_cuda import Tensor, World, pretended  # beside this script; pytest looks for doctests here

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cprofile", action="store_true", help="where the first of them spends its time")
    args = parser.parse_args()
    with pretended(World(emulate=False)) as world:
        x, y = Tensor(world.array((1, 10), "f4", 0)), Tensor(world.array(1, np.int64, 0))
        into, weight = Tensor(world.array((1, 10), "f4", 0)), Tensor(world.array(1, "f4", 1))
        v, z = Tensor(world.array((1, 10), "f4", 0)), Tensor(world.array((1, 10), np.int64, 0))
        by_label = Tensor(world.array(10, "f4", 1))
        options: dict[str, Any] = {"backend": "cuda", "validate": False}
        calls = {
            "loss and gradient, reused": lambda: sce.loss_and_grad(x, y, out=into, **options),
            "in place": lambda: sce.loss_and_grad(x, y, out=x, **options),
            "of each row": lambda: sce.loss_and_grad(x, y, out=into, reduction="none", **options),
            "with sample weights": lambda: sce.loss_and_grad(x, y, out=into, sample_weight=weight, **options),
            "loss alone": lambda: sce.cross_entropy(x, y, **options),
            "and the Hessian's diagonal": lambda: sce.loss_grad_hess(x, y, out=into, **options),
            "Hessian times v": lambda: sce.hvp(x, y, v, out=into, **options),
            "the same, over v": lambda: sce.hvp(x, y, v, out=v, **options),
            "softmax backwards": lambda: sce.softmax_vjp(x, v, out=into, backend="cuda"),
            "log-softmax backwards": lambda: sce.log_softmax_vjp(x, v, out=into, backend="cuda"),
            "binary": lambda: sce.binary_loss_and_grad(x, z, out=into, **options),
            "binary, weights by label": lambda: sce.binary_loss_and_grad(
                x, z, pos_weight=by_label, sample_weight=weight, out=into, **options
            ),
            "binary loss alone": lambda: sce.binary_cross_entropy(x, z, **options),
            "binary and its Hessian": lambda: sce.binary_loss_grad_hess(x, z, out=into, **options),
        }
        if args.cprofile:
            profile = cProfile.Profile()
            call = calls["loss and gradient, reused"]
            call()
            profile.runcall(lambda: [call() for _ in range(2000)])
            profile.print_stats("tottime")
            return
        for name, call in calls.items():
            print(f"{microseconds(call):6.1f} us: {name}")


if __name__ == "__main__":
    main()
