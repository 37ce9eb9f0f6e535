"""Everyone else who computes this. Each module imports its framework when a contestant is asked to run."""

from __future__ import annotations

from collections.abc import Iterator

from sce.bench.contestant import Contestant


def peers() -> Iterator[Contestant]:
    """The peers that compute on the host, those not installed here included."""
    from . import jax, sklearn, textbook, torch

    yield textbook.NumPy()
    yield textbook.SciPy()
    yield torch.Eager()
    yield torch.Compiled()
    yield jax.Jax()
    yield sklearn.Sklearn()


def device_peers(device: str = "cuda") -> Iterator[Contestant]:
    """The peers of device contests, for tensors on the device; those not installed here included."""
    from . import liger, quack, torch

    yield torch.Eager(device)
    yield torch.Compiled(device)
    yield liger.Liger()
    yield quack.Quack()
