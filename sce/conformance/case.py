"""One case: a request as a caller would make it, and what is known of its answer."""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from sce.backend import Array, Problem
from sce.binary import prepare_binary
from sce.problem import NO_TARGET, Request, prepare

# Few tuples of outputs, used over and over: a compiling backend builds one kernel for each.
LOSS = ("loss",)
BOTH = ("loss", "grad")
FULL = ("loss", "grad", "lse", "log_prob", "argmax", "correct", "entropy", "hess_diag", "z_loss")
MATRICES = ("grad", "hess_diag", "log_softmax", "hvp", "log_softmax_jvp")
PLAIN = {"softmax": ("grad",), "log_softmax": ("log_softmax",), "logsumexp": ("lse",)}
"""Functions of logits alone."""
FUNCTIONS = {
    "evaluate": FULL,
    **PLAIN,
    "loss_grad_hess": ("loss", "grad", "hess_diag"),
    "hvp": ("hvp",),
    "softmax_jvp": ("hvp",),
    "log_softmax_jvp": ("log_softmax_jvp",),
    "log_softmax_vjp": ("grad",),
    "softmax_jacobian": ("softmax_jacobian",),
    "log_softmax_jacobian": ("log_softmax_jacobian",),
    "binary": ("loss", "grad", "hess_diag"),
}
OUTS = (None, "own", "in place", "float32", "strided", "over v")

_OVER = {"in place": "logits", "over v": "v"}

POISON = 0x4B
"""The byte that fills memory a backend must overwrite: in any dtype a large finite number, so that adding
to it shows as well as leaving it."""


class Exact(NamedTuple):
    """A closed form, or a value that the contract names: the part of the output at `where`."""

    output: str
    where: Any  # an index into the output in the caller's shape; ... is all of it
    value: Any


@dataclass(frozen=True, eq=False)
class Case:
    """An input, the outputs wanted of it, and what is known of them in closed form."""

    group: str
    name: str
    logits: Any
    target: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = BOTH
    exact: tuple[Exact, ...] = ()
    function: str = "evaluate"
    out: str | None = None
    """Where the gradient (or the derivative along v) goes, one of OUTS: new memory, `out=` like the logits,
    the logits themselves, a float32 `out=`, one with gaps (which must stay as they are), or v."""
    skip: str | None = None
    """Why it cannot be run here at all."""

    def __post_init__(self) -> None:
        if self.function not in FUNCTIONS or self.out not in OUTS:
            raise ValueError(f"{self.name}: unknown function {self.function!r} or out {self.out!r}.")
        if lacking := set(self.outputs) - set(FUNCTIONS[self.function]):
            raise ValueError(f"{self.name}: {self.function} has no output {sorted(lacking)}.")

    def request(self) -> Request:
        """What the public function would make of it. Writes go to `self`'s own arrays: see `fresh`."""
        options = dict(self.options)
        if self.out is not None:
            options["out"] = self._out()
        if self.function == "binary":
            return prepare_binary(self.logits, self.target, outputs=self.outputs, **options)
        if self.target is None:
            options["reduction"] = "none"
        target = NO_TARGET if self.target is None else self.target
        request = prepare(self.logits, target, outputs=self.outputs, **options)
        return request._replace(problem=request.problem._replace(**self._changes(request.problem)))

    def _changes(self, problem: Problem) -> dict[str, Any]:
        """What the function of this name does to the problem besides."""
        if self.function == "softmax":  # the gradient of logsumexp, without its 1 / T
            return {"grad_scale": problem.temperature}
        if self.function == "softmax_jvp":  # and its Hessian, of whose two factors 1 / T one is left
            return {"hess_scale": problem.temperature}
        if self.function == "log_softmax_vjp":
            v = problem.direction
            return {"target": "distribution", "distribution": v, "direction": None, "grad_scale": -1.0}
        return {}

    def fresh(self) -> tuple[Case, dict[str, Guard]]:
        """The same case on memory of its own, and a guard over each input that must stay as it is."""
        arrays = {"logits": self.logits, "target": self.target, **self.options}
        guards = {name: Guard(x) for name, x in arrays.items() if isinstance(x, np.ndarray)}
        copies = {name: guard.array for name, guard in guards.items()}
        case = replace(
            self,
            logits=copies.get("logits", self.logits),
            target=copies.get("target", self.target),
            options={name: copies.get(name, value) for name, value in self.options.items()},
        )
        if self.out in _OVER:
            del guards[_OVER[self.out]]
        return case, guards

    def _out(self) -> Array:
        x = self.logits
        if self.out in _OVER:
            return np.asarray(x if self.out == "in place" else self.options["v"])
        dtype = np.dtype(np.float32) if self.out == "float32" else x.dtype.newbyteorder("=")
        gap = 2 if self.out == "strided" else 1
        shape = (*x.shape[:-1], x.shape[-1] * gap)
        return poisoned(shape, dtype)[..., ::gap]


class Guard:
    """A copy of an array with the same strides, and the means to see whether anyone wrote to it.

    The gaps between the elements are copied and watched, too.
    """

    def __init__(self, x: Array) -> None:
        low, high = np.lib.array_utils.byte_bounds(x)
        self._before = ctypes.string_at(low, high - low) if x.size else b""
        self._buffer = bytearray(self._before)
        offset = x.ctypes.data - low if x.size else 0
        self.array: Array = np.ndarray(x.shape, x.dtype, self._buffer, offset, x.strides)
        self.array.flags.writeable = x.flags.writeable

    def untouched(self) -> bool:
        return bytes(self._buffer) == self._before


def poisoned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """New memory full of garbage that a backend must overwrite."""
    return np.ndarray(shape, dtype, np.full(math.prod(shape) * dtype.itemsize, POISON, np.uint8))


def cast(values: Any, dtype: str) -> Array:
    """`values` in a dtype given by name. Without ml_dtypes bfloat16 becomes float32: see `unavailable`."""
    x = np.asarray(values)
    if dtype == "bfloat16":
        return x.astype(np.float32 if _bfloat16() is None else _bfloat16())
    return x.astype(dtype)


def unavailable(dtype: str) -> str | None:
    """Why logits of this dtype cannot be made here."""
    if dtype == "bfloat16" and _bfloat16() is None:
        return "bfloat16 needs ml_dtypes, which does not import."
    return None


def _bfloat16() -> np.dtype[Any] | None:
    try:
        module = importlib.import_module("ml_dtypes")
    except ImportError:
        return None
    dtype: np.dtype[Any] = np.dtype(module.bfloat16)
    return dtype
