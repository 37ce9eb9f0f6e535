"""Softmax cross-entropy and its exact gradient in one fused pass, on the backend you choose."""

from . import information
from .backend import Answer, Backend, BackendError, LabelError, Problem
from .binary import binary_cross_entropy, binary_loss_and_grad, binary_loss_grad_hess
from .explanation import explain
from .functions import (
    Evaluation,
    cross_entropy,
    evaluate,
    log_softmax,
    logsumexp,
    loss_and_grad,
    softmax,
)
from .jacobian import (
    log_softmax_jacobian,
    log_softmax_jvp,
    log_softmax_vjp,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from .linear import LinearGrad, linear_cross_entropy, linear_hvp, linear_loss_and_grad
from .second_order import hvp, loss_grad_hess
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
    "binary_cross_entropy",
    "binary_loss_and_grad",
    "binary_loss_grad_hess",
    "cross_entropy",
    "evaluate",
    "explain",
    "hvp",
    "information",
    "linear_cross_entropy",
    "linear_hvp",
    "linear_loss_and_grad",
    "log_softmax",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "loss_and_grad",
    "loss_grad_hess",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "threads",
    "use",
]
