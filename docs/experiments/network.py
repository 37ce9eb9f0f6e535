"""A network of one hidden layer by gradient descent with momentum, the gradient of its logits by sce."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import sce


class Network(NamedTuple):
    inner: Any  # (D, H)
    shift: Any  # (H,)
    outer: Any  # (H, C)
    intercept: Any  # (C,)

    def hidden(self, x: Any) -> Any:
        return np.maximum(x @ self.inner + self.shift, 0.0)

    def logits(self, x: Any) -> Any:
        return self.hidden(x) @ self.outer + self.intercept


def start(inputs: int, units: int, classes: int, seed: int) -> Network:
    """He et al. (2015) for the hidden layer; the last one begins at nothing."""
    inner = np.random.default_rng(seed).normal(size=(inputs, units)) * np.sqrt(2 / inputs)
    return Network(inner, np.zeros(units), np.zeros((units, classes)), np.zeros(classes))


def fit(
    x: Any, y: Any, net: Network, *, steps: int, rate: float, momentum: float = 0.9, **options: Any
) -> Network:
    """Descend the gradient of sce.cross_entropy(logits, y, **options), over all rows at once."""
    speed = [np.zeros_like(part) for part in net]
    for _ in range(steps):
        h = net.hidden(x)
        _, g = sce.loss_and_grad(net.logits(x), y, **options)
        back = (g @ net.outer.T) * (h > 0)
        grad = (x.T @ back, back.sum(axis=0), h.T @ g, g.sum(axis=0))
        speed = [momentum * v - rate * d for v, d in zip(speed, grad, strict=True)]
        net = Network(*(part + v for part, v in zip(net, speed, strict=True)))
    return net
