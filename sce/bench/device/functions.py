"""Every function on arrays where they are, PyTorch's and CuPy's: is its answer the reference's on the host?

The conformance suite is about kernels. This is about the way to them: reading arrays, planning a call,
recognising the next one, and products of the arrays' own library. Each call is made three times, with other
numbers: the first is planned, the others are recognised.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

import sce
from sce.backend import Array, BackendError

Say = Callable[[str], object]
Row = dict[str, Any]

DTYPES = {"float32": 1e-5, "bfloat16": 3e-2, "float64": 1e-12}
"""What an answer may be off by, relative to its largest number. bfloat16's linear model computes in it."""
CALLS = 3


class Given(NamedTuple):
    """What to call a function with: NumPy's arrays, by position and among the options."""

    arrays: tuple[Any, ...]
    options: dict[str, Any]


class Case(NamedTuple):
    name: str
    function: Callable[..., Any]
    given: Callable[[np.random.Generator, np.dtype[Any]], Given]


class Library(Protocol):
    @property
    def name(self) -> str: ...

    def missing(self) -> str | None: ...

    def put(self, x: Array) -> Any:
        """Onto the device."""

    def get(self, x: Any) -> Array:
        """What a function returned, in float64."""


class Torch(NamedTuple):
    device: str
    name: str = "torch"

    def missing(self) -> str | None:
        try:
            import torch
        except ImportError as exc:
            return f"{exc}: pip install torch"
        return None if self.device == "cpu" or torch.cuda.is_available() else "PyTorch sees no CUDA device."

    def put(self, x: Array) -> Any:
        import torch

        if x.dtype.name != "bfloat16":
            return torch.from_numpy(x).to(self.device)
        if self.device == "cpu":
            return x  # PyTorch hands its own to nobody
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16).to(self.device)

    def get(self, x: Any) -> Array:
        if hasattr(x, "cpu"):
            x = x.cpu().double().numpy()
        return np.asarray(x, np.float64)


class Cupy(NamedTuple):
    device: str
    name: str = "cupy"

    def missing(self) -> str | None:
        if self.device == "cpu":
            return "CuPy has no arrays on the host."
        try:
            cupy: Any = import_module("cupy")
        except ImportError as exc:
            return f"{exc}: pip install cupy-cuda13x"
        return None if cupy.cuda.is_available() else "CuPy sees no CUDA device."

    def put(self, x: Array) -> Any:
        cupy: Any = import_module("cupy")
        return cupy.asarray(x)

    def get(self, x: Any) -> Array:
        found: Any = x.get() if hasattr(x, "get") else x
        return np.asarray(found).astype(np.float64)


def libraries(device: str) -> tuple[Library, ...]:
    return Torch(device), Cupy(device)


def table(backend: str, device: str, end: float, say: Say) -> Iterator[list[Row]]:
    """A row per function, dtype and library, again after each; those not reached before `end` say so."""
    found = {
        (case.name, dtype, library.name): _row(case, dtype, library, "not reached", "the time was over.")
        for dtype in DTYPES
        for case in CASES
        for library in libraries(device)
    }
    for dtype in DTYPES:
        for case in CASES:
            for library in libraries(device):
                if time.monotonic() > end:
                    yield [*found.values()]
                    return
                say(f"{case.name} {dtype}, {library.name}")
                found[case.name, dtype, library.name] = checked(case, dtype, library, backend)
        yield [*found.values()]


def _row(
    case: Case, dtype: str, library: Library, status: str, why: str | None = None, error: float | None = None
) -> Row:
    facts = {"function": case.name, "dtype": dtype, "library": library.name}
    return {**facts, "status": status, "why": why, "error": error}


def checked(case: Case, dtype: str, library: Library, backend: str) -> Row:
    """The row of a case: the worst error of its calls."""
    try:
        kind = _dtype(dtype)
        why = library.missing() or (library.name == "cupy" and dtype == "bfloat16" and "CuPy has none.")
    except ImportError as exc:
        why = str(exc)
    if why:
        return _row(case, dtype, library, "missing", why)
    worst = 0.0
    try:
        for seed in range(CALLS):
            given = case.given(np.random.default_rng(seed), kind)
            want = case.function(*given.arrays, backend="reference", **given.options)
            there = {name: _put(library, x) for name, x in given.options.items()}
            got = case.function(*(_put(library, x) for x in given.arrays), backend=backend, **there)
            worst = max(worst, error(library, got, want))
    except BackendError as exc:
        return _row(case, dtype, library, "failed", str(exc))
    except Exception as exc:  # whatever goes wrong on a machine that nobody has seen
        return _row(case, dtype, library, "failed", f"{type(exc).__name__}: {exc}")
    if worst > DTYPES[dtype]:
        return _row(case, dtype, library, "wrong", f"off by {worst:.2g} of its largest number", worst)
    return _row(case, dtype, library, "ok", error=worst)


def _put(library: Library, x: Any) -> Any:
    return library.put(x) if isinstance(x, np.ndarray) else x


def error(library: Library, got: Any, want: Any) -> float:
    """The largest of all differences, each array's relative to its largest number; infinite for NaN."""
    if isinstance(want, tuple):
        return max(error(library, a, b) for a, b in zip(got, want, strict=True))
    if want is None:
        return 0.0 if got is None else math.inf
    mine, theirs = library.get(got), np.asarray(want, np.float64)
    if mine.shape != theirs.shape:
        return math.inf
    if not theirs.size:
        return 0.0
    off = float(np.abs(mine - theirs).max()) / max(float(np.abs(theirs).max()), 1e-300)
    return math.inf if math.isnan(off) else off


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    return np.dtype(name)


# The cases. Shapes are small: large ones, and all numbers of threads, are the suite's.

_N, _C, _D = 37, 1000, 24
_Random = np.random.Generator


def _matrices(count: int, shape: tuple[int, ...] = ()) -> Callable[..., Given]:
    def given(rng: _Random, dtype: np.dtype[Any]) -> Given:
        made = [(3 * rng.standard_normal(shape or (_N, _C))).astype(dtype) for _ in range(count)]
        return Given((*made,), {})

    return given


def _labelled(count: int = 1, general: bool = False, **options: Any) -> Callable[..., Given]:
    """Logits, labels, more matrices; `general`: what only the general kernel does."""

    def given(rng: _Random, dtype: np.dtype[Any]) -> Given:
        x, *others = _matrices(count)(rng, dtype).arrays
        weights = {"class_weight": rng.uniform(0.5, 2, _C), "sample_weight": rng.uniform(0, 1, _N)}
        some: dict[str, Any] = {"ignore_index": 3, **weights, **options}
        if general:
            some |= {"softcap": 20.0, "z_loss": 1e-3, "logit_bias": rng.standard_normal(_C)}
        y = rng.integers(0, _C, _N)
        y[0] = 3
        return Given((x, y, *others), some)

    return given


def _channels(rng: _Random, dtype: np.dtype[Any]) -> Given:
    (x,) = _matrices(1, (2, 50, 7, 9))(rng, dtype).arrays
    return Given((x, rng.integers(0, 50, (2, 7, 9)).astype(np.int32)), {"axis": 1})


def _binary(soft: bool, **options: Any) -> Callable[..., Given]:
    def given(rng: _Random, dtype: np.dtype[Any]) -> Given:
        (x,) = _matrices(1)(rng, dtype).arrays
        y = rng.uniform(0, 1, x.shape).astype(dtype) if soft else rng.integers(0, 2, x.shape).astype(np.int8)
        weights = {"pos_weight": rng.uniform(0.5, 2, _C), "sample_weight": rng.uniform(0, 1, _N)}
        return Given((x, y), {**weights, **options})

    return given


def _linear(direction: bool = False, **options: Any) -> Callable[..., Given]:
    def given(rng: _Random, dtype: np.dtype[Any]) -> Given:
        x, w, v = (rng.standard_normal(shape).astype(dtype) for shape in ((_N, _D), (_C, _D), (_D, _C)))
        y = rng.integers(0, _C, _N)
        some = {"bias": rng.standard_normal(_C).astype(dtype), "sample_weight": rng.uniform(0, 1, _N)}
        arrays = (x, np.ascontiguousarray(w.T), y, v) if direction else (x, np.ascontiguousarray(w.T), y)
        return Given(arrays, {**some, "l2": 1e-3, **options})

    return given


def _divergence(p: Any, q: Any, backend: str) -> Any:
    """It computes by the arrays' own library, and asks for no backend."""
    return sce.information.kl_divergence(p, q)


_every = ("loss", "grad", "lse", "log_prob", "argmax", "correct", "entropy", "hess_diag", "z_loss")

CASES = (
    Case("loss_and_grad", sce.loss_and_grad, _labelled()),
    Case("loss_and_grad, channels", sce.loss_and_grad, _channels),
    Case("loss_and_grad, each row", sce.loss_and_grad, _labelled(reduction="none", label_smoothing=0.1)),
    Case("evaluate", sce.evaluate, _labelled(outputs=_every, general=True)),
    Case("softmax", sce.softmax, _matrices(1)),
    Case("log_softmax", sce.log_softmax, _matrices(1)),
    Case("logsumexp", sce.logsumexp, _matrices(1)),
    Case("loss_grad_hess", sce.loss_grad_hess, _labelled(hess_scale=2.0, hess_min=1e-3)),
    Case("loss_grad_hess, general", sce.loss_grad_hess, _labelled(general=True)),
    Case("hvp", sce.hvp, _labelled(2)),
    Case("hvp, general", sce.hvp, _labelled(2, general=True)),
    Case("softmax_jvp", sce.softmax_jvp, _matrices(2)),
    Case("softmax_vjp", sce.softmax_vjp, _matrices(2)),
    Case("log_softmax_jvp", sce.log_softmax_jvp, _matrices(2)),
    Case("log_softmax_vjp", sce.log_softmax_vjp, _matrices(2)),
    Case("softmax_jacobian", sce.softmax_jacobian, _matrices(1, (3, 40, 5))),
    Case("log_softmax_jacobian", sce.log_softmax_jacobian, _matrices(1, (3, 40, 5))),
    Case("binary_loss_and_grad", sce.binary_loss_and_grad, _binary(False, ignore_index=0)),
    Case("binary_cross_entropy, each", sce.binary_cross_entropy, _binary(False, reduction="none")),
    Case("binary_loss_grad_hess", sce.binary_loss_grad_hess, _binary(True, hess_min=1e-3)),
    Case("linear_loss_and_grad", sce.linear_loss_and_grad, _linear()),
    Case("linear_cross_entropy", sce.linear_cross_entropy, _linear(ignore_index=3)),
    Case("linear_hvp", sce.linear_hvp, _linear(direction=True)),
    Case("information.entropy", sce.information.entropy, _matrices(1)),
    Case("information.kl_divergence", _divergence, _matrices(2)),
)
