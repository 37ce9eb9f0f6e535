"""The contract: what a backend is asked, and what a backend is. The one file a backend author reads.

Three things live here: `Problem` (one validated request), `Answer` (the arrays to fill) and `Backend`
(the names a backend module has). Beside them stand the user's settings for all backends, `cache_dir` and
`thread_limit`: a backend does not read the environment itself. The formulas are in docs/math.md; the NumPy
reference (`sce_backends/reference.py`) is their definition in code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .settings import cache_dir as cache_dir
from .settings import thread_limit as thread_limit

Array: TypeAlias = NDArray[Any]
TargetKind: TypeAlias = Literal["index", "distribution", "none"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The logits' dtypes, by name: bfloat16 is ml_dtypes', which NumPy knows only by name."""


JACOBIANS = ("softmax_jacobian", "log_softmax_jacobian")
"""Outputs of C numbers for each logit: see `Answer`."""


class BackendError(RuntimeError):
    """The backend that was named cannot take the call, or no backend can."""


class LabelError(ValueError, IndexError):
    """A class index lies outside [0, C) and is not `ignore_index`."""


class Problem(NamedTuple):
    """One validated request in canonical form. N rows of C logits; row `i` is `logits[i // B, i % B]`.

    What a backend may rely on, for arrays on the host: native byte order, aligned, the shapes below,
    values as validated (labels only where `validated`); any strides, also zero and negative ones.
    Nothing here may be written to.

    With `on_device` an array is NumPy's description of device memory, by `memory_at`: its address, shape,
    strides and dtype hold, its elements cannot be touched from here. Labels are of any integer dtype then,
    weights and bias of any integer or floating one.

    With `binary` a row is a single logit x and stands for two classes with the logits (0, x), by the same
    formulas; C is 1. What has one value per row in the caller's hands has the logits' canonical shape then,
    (A, B, 1), and any strides: labels (0 or 1), distribution (the mass of class 1; class 0 has 1 less that),
    sample_weight, pos_weight. There is no class weight, bias, soft cap or z-loss. An infinite logit is the
    limit: it is sure. A backend is asked only if it has an attribute `takes_binary` that is True.
    """

    # Facts: all that `Backend.refuses` may look at.
    rows: int
    classes: int
    dtype: str  # of the logits: one of DTYPES
    on_device: bool  # the logits live on a CUDA device
    target: TargetKind
    outputs: frozenset[str]  # the fields of Answer that are wanted
    reduce: bool  # Answer.loss and Answer.z_loss are sums over the rows
    validated: bool  # False: a label may be out of range; such a row's answer is NaN

    # Data.
    logits: Array  # (A, B, C), floating; in place: the same memory as Answer.grad, or as Answer.hvp
    labels: NDArray[np.int64] | None = None  # (N,), for "index"; binary: int8, uint8, int32 or int64
    distribution: Array | None = None  # (A, B, C), floating, any of DTYPES, for "distribution"
    direction: Array | None = None  # (A, B, C), floating, any of DTYPES: v of `hvp` and `log_softmax_jvp`
    class_weight: NDArray[np.float64] | None = None  # (C,), finite
    sample_weight: NDArray[np.float64] | None = None  # (N,), finite
    logit_bias: NDArray[np.float64] | None = None  # (C,), finite or -inf
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    temperature: float = 1.0
    softcap: float | None = None
    z_loss: float = 0.0
    denominator: float = 1.0  # D; 0 for an empty mean: then every row's loss and gradient are 0
    own_denominator: bool = False  # on a device: D is the total weight, which the backend adds up itself
    empty: float = math.nan  # on a device: the reduced loss where D is 0
    grad_scale: float = 1.0  # multiplies the gradient alone
    hess_scale: float = 1.0  # multiplies the second derivatives alone, hess_diag and hvp
    hess_min: float | None = None  # then hess_diag is at least this, but in rows whose s is 0
    binary: bool = False  # a fact, too: see above
    pos_weight: float | Array = 1.0  # binary: the class weight of class 1
    device: int = 0  # on a device: its index,
    stream: int = 0  # the caller's stream on it, by its handle,
    wait: bool = False  # and whether nothing may be under way when a call returns


class Answer(NamedTuple):
    """The arrays to fill; None where not wanted. Row vectors are contiguous, the others have any strides.

    The loss dtype is float64 for float64 logits, else float32. A backend writes every element. On a device
    a reduced loss is in the loss dtype, too: the last word on it is the backend's.
    """

    loss: Array | None = None  # (N,) in the loss dtype, or with `reduce` (1,) float64: the sum
    z_loss: Array | None = None  # the same: the z-loss part of the loss
    grad: Array | None = None  # (A, B, C): the logits' dtype, or float32 for half-precision logits
    hess_diag: Array | None = None  # (A, B, C), the logits' dtype
    log_softmax: Array | None = None  # (A, B, C), the logits' dtype
    hvp: Array | None = None  # (A, B, C), as grad: the Hessian of the loss times v; it may lie over v, too
    log_softmax_jvp: Array | None = None  # (A, B, C), as grad: the derivative of log_softmax along v
    softmax_jacobian: Array | None = None  # (A, B, C, C), contiguous, the logits' dtype: [.., i, j] is
    log_softmax_jacobian: Array | None = None  # d output_i / d x_j; of logits alone, on the host
    lse: Array | None = None  # (N,), the loss dtype
    log_prob: Array | None = None  # (N,), the loss dtype: sum_k y_k log p_k
    entropy: Array | None = None  # (N,), the loss dtype, nats
    argmax: NDArray[np.int64] | None = None  # (N,)
    correct: NDArray[np.bool_] | None = None  # (N,)


class Illegal(NamedTuple):
    """Where labels and weights on a device are not what they must be: the first positions, or -1."""

    label: int = -1  # the row
    value: int = 0  # and its label
    sample_weight: int = -1
    class_weight: int = -1
    logit_bias: int = -1


def memory_at(
    address: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None
) -> Array:
    """NumPy's description of memory that NumPy must not touch: for shapes, strides and addresses only."""
    dtype = np.dtype(dtype)
    raw = f"|V{dtype.itemsize}"  # ml_dtypes' bfloat16 has no code of its own
    code = dtype.str if dtype.kind in "biuf" and dtype.str[1] != "V" else raw
    facts = {"shape": shape, "typestr": code, "strides": strides, "data": (address, False), "version": 3}
    found: Array = np.asarray(SimpleNamespace(__array_interface__=facts))
    return found if found.dtype == dtype else found.view(dtype)


def arrays(problem: Problem, answer: Answer) -> dict[str, Array]:
    """A problem's arrays and an answer's, by name, in the order of their fields."""
    both = zip(problem._fields + answer._fields, (*problem, *answer), strict=True)
    return {name: x for name, x in both if isinstance(x, np.ndarray)}


class Bound(Protocol):
    """A problem on a device, worked out but for addresses: for every call whose arrays are alike.

    `at` are the addresses of all arrays, in the order of `arrays`: as well aligned to 16 bytes, and as equal,
    as those that it was made for. `stream` is a handle.
    """

    def inspect(self, at: Sequence[int], stream: int) -> Illegal:
        """What `validate=True` needs to know before anything is written. Waits for the device."""

    def run(self, at: Sequence[int], stream: int) -> None:
        """Fill the answer. Waits for nothing, but where the problem says so."""


class Backend(Protocol):
    """A module with these names, registered under the entry point group "sce.backends".

    It may also have `info() -> dict[str, str]`: what `sce info` says about it (threads, caches, ...), and
    `takes_binary: bool`: does it take binary problems? `takes_jacobians: bool`: does it form Jacobians of
    arrays on the host? One that does not is asked for them row by row, as products. And

        repeat(problem, answer) -> Callable[[], None]

    is `run` for whoever asks again, hundreds of times, after the values of the logits, or of the direction,
    have changed: what there is to find out about the problem is found out once. Nothing else may change, and
    the same call may not be under way in two threads. One that takes arrays on a device has besides

        bind(problem, answer) -> Bound        what is asked of it instead of `run` there
        total_weight(problem) -> float        D, where it is to add it up and the caller asks; it waits
    """

    @property
    def on_device(self) -> bool:
        """Where it computes: True for a CUDA device. `auto` never moves data to suit a backend."""

    @property
    def debug(self) -> bool:
        """True for a slow backend made for debugging: `compare` and `check` run it only when named."""

    def refuses(self, problem: Problem) -> str | None:
        """Why I do not take this problem, or None. Looks at the facts only; pure."""

    def missing(self) -> str | None:
        """Why this machine cannot run me, or None. May raise ImportError. Compiles nothing."""

    def run(self, problem: Problem, answer: Answer) -> None:
        """Fill the answer. Called with NumPy's floating-point warnings off: an infinity may be the answer."""
