"""Softmax cross-entropy and its exact gradient in one fused pass, on the backend you choose."""

from .backend import Answer, Backend, BackendError, LabelError, Problem
from .functions import (
    Evaluation,
    cross_entropy,
    evaluate,
    explain,
    log_softmax,
    logsumexp,
    loss_and_grad,
    softmax,
)
from .linear import LinearGrad, linear_cross_entropy, linear_hvp, linear_loss_and_grad
from .select import Decision, backends, use
from .settings import threads

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Backend",
    "BackendError",
    "Decision",
    "Evaluation",
    "LabelError",
    "LinearGrad",
    "Problem",
    "backends",
    "cross_entropy",
    "evaluate",
    "explain",
    "linear_cross_entropy",
    "linear_hvp",
    "linear_loss_and_grad",
    "log_softmax",
    "logsumexp",
    "loss_and_grad",
    "softmax",
    "threads",
    "use",
]
