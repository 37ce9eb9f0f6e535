"""Which backend a call would use, and why the others do not run."""

from __future__ import annotations

from typing import Any

from .binary import binary_loss_and_grad, prepare_binary
from .functions import loss_and_grad
from .problem import NO_TARGET, prepare
from .select import Decision, decide


def explain(
    logits: Any, target: Any = NO_TARGET, *, binary: bool = False, backend: str | None = None, **options: Any
) -> Decision:
    """Say which backend `loss_and_grad` would use for these arguments, and why the others do not run.

    With `binary=True` the arguments are those of `binary_loss_and_grad`, whose logits have no class axis, and
    so is the answer. What needs other outputs (a Hessian, statistics) may be decided otherwise.

    >>> import sce
    >>> print(sce.explain([[0.0, 1.0]], [1], backend="reference"))
    reference (asked by backend=)
    >>> print(sce.explain([0.5, -1.0], [1, 0], binary=True, pos_weight=2.0, backend="reference"))
    reference (asked by backend=)
    """
    function = binary_loss_and_grad if binary else loss_and_grad
    legal = function.__kwdefaults__ or {}
    if unknown := [name for name in options if name not in legal]:
        raise TypeError(
            f"explain() has no option {unknown[0]!r}; it takes those of {function.__name__}"
            f"{'' if binary else ', or with binary=True those of binary_loss_and_grad'}."
        )
    if binary:
        request = prepare_binary(logits, target, outputs=("loss", "grad"), **options)
    else:
        request = prepare(logits, target, outputs=("loss", "grad"), **options)
    return decide(request.problem, backend)
