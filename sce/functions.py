"""The public functions. Formulas, options and guarantees: docs/math.md."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple, Protocol, cast

import numpy as np

from . import checks
from .backend import JACOBIANS, Answer, Array, Backend, Bound, Illegal, Problem, arrays
from .device import Place, address, describe, library_of, maker
from .problem import Request, elsewhere, prepare
from .select import obtain

_MATRICES = ("grad", "hess_diag", "log_softmax", "hvp", "log_softmax_jvp")
_REDUCED = ("loss", "z_loss")


def loss_and_grad(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    grad_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Softmax cross-entropy and its exact gradient with respect to the logits, in one pass.

    For a row of logits x with C classes::

        z    = softcap * tanh(x / (temperature * softcap)) + logit_bias     (no softcap: x / temperature)
        lse  = log sum_k exp(z_k)
        q_k  = class_weight_k * ((1 - label_smoothing) * y_k + label_smoothing / C)
        loss = sample_weight / D * (sum_k q_k * (lse - z_k) + z_loss * lse**2)
        grad = d loss / d x

    Parameters
    ----------
    logits:
        Floating array, any number of dimensions >= 1, any strides: NumPy, or what NumPy can view
        (lists, CPU tensors). float16, bfloat16 (ml_dtypes), float32 or float64; in nats. -inf masks a class.
        Or an array on a CUDA device (CuPy, PyTorch, JAX, Numba): then all arrays are on that device, none is
        copied, and the answer is of the same type, on the stream in use.
    target:
        Class indices: integers in [0, C), shaped like the logits without the class axis. Or a distribution
        per row: floating, shaped like the logits, neither normalised nor checked. Nothing broadcasts.
    axis:
        The class axis.
    class_weight:
        (C,) finite reals, w above.
    sample_weight:
        Finite reals shaped like an index target; may be negative. 0 leaves the row out.
    ignore_index:
        Rows with this label contribute exactly 0 and get an exactly zero gradient, even when they hold NaN.
    label_smoothing:
        In [0, 1]: this much of the target's mass is spread evenly over all C classes.
    temperature, softcap, logit_bias:
        How logits become z: positive, positive or None, and (C,) reals or -inf (removes the class).
    z_loss:
        Factor of lse**2, at least 0.
    reduction:
        "mean" divides by D = the sum over counted rows of sample_weight * class_weight[target]
        (of sample_weight for distributions); "sum" and "none" have D = 1.
    denominator:
        Replaces the D of "mean" (micro-batches, data-parallel training, packed sequences).
    empty:
        The loss of a mean over nothing (D = 0): "nan" or "zero". Its gradient is 0.
    grad_scale:
        Multiplies the gradient alone, so that half-precision gradients do not underflow.
    out:
        Where the gradient goes: an array of the logits' shape and dtype (or float32 for half-precision
        logits). `out=logits` works in place.
    validate:
        False skips the checks that read labels and weights; a label out of range then makes its row NaN.
        On a device nothing waits for it then.
    backend:
        A registered name, the import path of a backend, or None: `sce.use`, SCE_BACKEND, else the best.
        "cuda" copies host arrays to the current device and back; None never does.

    Returns
    -------
    (loss, grad)
        The loss is a NumPy scalar, or shaped like the rows for reduction="none"; float64 for float64
        logits, else float32. The gradient has the logits' shape and dtype; for "none" it is each row's own.

    Raises
    ------
    LabelError
        A label out of range, with its position. It is a ValueError and an IndexError.
    TypeError, ValueError
        Any other wrong argument. Nothing has been written then.
    BackendError
        The named backend does not run, with the reason and what to install.

    Examples
    --------
    >>> import numpy as np, sce
    >>> logits = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    >>> loss, grad = sce.loss_and_grad(logits, np.array([0, 2]))
    >>> round(float(loss), 6)
    0.753109
    >>> grad.round(4)
    array([[-0.1674,  0.1224,  0.045 ],
           [ 0.1667,  0.1667, -0.3333]])

    References
    ----------
    J. S. Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs";
    C. Szegedy et al. (2016) for label smoothing; docs/math.md derives every term.
    """
    request = prepare(
        logits,
        target,
        outputs=("loss", "grad"),
        axis=axis,
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        grad_scale=grad_scale,
        out=out,
        validate=validate,
        recognise=True,
    )
    values = solve(request, obtain(request.problem, backend))
    return values["loss"], values["grad"]


def cross_entropy(
    logits: Any,
    target: Any,
    *,
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    validate: bool = True,
    backend: str | None = None,
) -> Any:
    """The loss of `loss_and_grad` alone: the same number, with no gradient computed or allocated.

    Formula, shapes, options and errors: see `loss_and_grad`.

    >>> import sce
    >>> round(float(sce.cross_entropy([[0.0, 0.0]], [1])), 6)  # log 2
    0.693147
    """
    request = prepare(
        logits,
        target,
        outputs=("loss",),
        axis=axis,
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        validate=validate,
        recognise=True,
    )
    return solve(request, obtain(request.problem, backend))["loss"]


class Evaluation(Protocol):
    """What `evaluate` returns: a named tuple with the fields asked for, in that order, and no others.

    Per-row fields have the index target's shape; a 1-d input's are scalars.

    ============  ============================================================================================
    loss          the loss, reduced as asked
    grad          its gradient with respect to the logits
    lse           per row: log sum_k exp(z_k)
    log_prob      per row: sum_k y_k log p_k, the target's log-probability; 0 in a row left out
    argmax        per row, int64: the class with the largest z, the lowest of a tie, the first NaN if any
    correct       per row, bool: argmax is the label (for a distribution, its argmax); False in a row left out
    entropy       per row, nats: -sum_k p_k log p_k
    hess_diag     the diagonal of the loss's second derivative with respect to the logits
    z_loss        that part of the loss, reduced the same way
    denominator   what the reduction divides by
    ============  ============================================================================================
    """

    loss: Any
    grad: Any
    lse: Any
    log_prob: Any
    argmax: Any
    correct: Any
    entropy: Any
    hess_diag: Any
    z_loss: Any
    denominator: Any


def evaluate(
    logits: Any,
    target: Any,
    *,
    outputs: tuple[str, ...] = ("loss", "log_prob", "argmax", "correct"),
    axis: int = -1,
    class_weight: Any = None,
    sample_weight: Any = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_bias: Any = None,
    z_loss: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    denominator: float | None = None,
    empty: Literal["nan", "zero"] = "nan",
    grad_scale: float = 1.0,
    out: Array | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> Evaluation:
    """Exactly the `outputs` asked for, out of one pass: see `Evaluation` for the fields.

    `out` is where "grad" goes, if that is asked for. Formula, shapes, options and errors: see
    `loss_and_grad`. With y the target, w the class weights and p = softmax(z)::

        hess_diag = s * ((Q + 2 z_loss lse) * p (1 - p) + 2 z_loss p**2)    chained from z to x

    >>> import sce
    >>> seen = sce.evaluate([[2.0, 0.0], [0.0, 1.0]], [0, 0], outputs=("correct", "entropy"))
    >>> seen.correct
    array([ True, False])
    >>> seen.entropy.round(4)
    array([0.3653, 0.5822])
    """
    names = checks.outputs(outputs)
    if out is not None and "grad" not in names:
        raise ValueError('out is where the gradient goes: name "grad" among the outputs.')
    request = prepare(
        logits,
        target,
        outputs=(name for name in names if name != "denominator"),
        axis=axis,
        class_weight=class_weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        temperature=temperature,
        softcap=softcap,
        logit_bias=logit_bias,
        z_loss=z_loss,
        reduction=reduction,
        denominator=denominator,
        empty=empty,
        grad_scale=grad_scale,
        out=out,
        validate=validate,
        recognise=True,
    )
    chosen: Any = obtain(request.problem, backend)
    values = solve(request, chosen)
    if "denominator" in names:
        own = request.problem.own_denominator
        total = chosen.total_weight(elsewhere(request).problem) if own else request.problem.denominator
        values["denominator"] = np.float64(total)
    return cast(Evaluation, _record(names)(*(values[name] for name in names)))


def softmax(
    x: Any, *, axis: int = -1, temperature: float = 1.0, out: Array | None = None, backend: str | None = None
) -> Any:
    """exp(x_k / T) / sum_j exp(x_j / T) along `axis`, in the shape and dtype of x.

    It is the gradient of `logsumexp`, and runs as that: see docs/math.md. -inf gives exactly 0; a row with
    NaN, +inf or nothing but -inf is NaN. `out` may be x itself. Errors as for `loss_and_grad`.

    >>> import sce
    >>> sce.softmax([0.0, 0.0, float("-inf")])
    array([0.5, 0.5, 0. ])
    """
    request = prepare(
        x,
        name="x",
        outputs=("grad",),
        axis=axis,
        temperature=temperature,
        reduction="none",
        grad_scale=temperature,  # d logsumexp(x / T) / dx carries a factor 1 / T that softmax does not
        out=out,
        recognise=True,
    )
    return solve(request, obtain(request.problem, backend))["grad"]


def log_softmax(
    x: Any, *, axis: int = -1, temperature: float = 1.0, out: Array | None = None, backend: str | None = None
) -> Any:
    """x_k / T - log sum_j exp(x_j / T) along `axis`, in the shape and dtype of x.

    Accurate in every entry, the ones close to 0 included. `out` may be x itself. Errors as for
    `loss_and_grad`.

    >>> import sce
    >>> sce.log_softmax([0.0, -40.0])
    array([-4.24835426e-18, -4.00000000e+01])
    """
    request = prepare(
        x,
        name="x",
        outputs=("log_softmax",),
        axis=axis,
        temperature=temperature,
        reduction="none",
        out=out,
        recognise=True,
    )
    return solve(request, obtain(request.problem, backend))["log_softmax"]


def logsumexp(
    x: Any, *, axis: int = -1, temperature: float = 1.0, out: Array | None = None, backend: str | None = None
) -> Any:
    """log sum_k exp(x_k / T) along `axis`: the shape of x without it; float64 for float64, else float32.

    A row of nothing but -inf is -inf; NaN or +inf gives NaN. Errors as for `loss_and_grad`.

    >>> import sce
    >>> round(float(sce.logsumexp([1000.0, 1000.0])), 4)
    1000.6931
    """
    request = prepare(
        x, name="x", outputs=("lse",), axis=axis, temperature=temperature, reduction="none", recognise=True
    )
    if out is not None and request.problem.on_device:
        raise TypeError("out of logsumexp is for host arrays: on a device take what it returns.")
    if out is not None:
        checks.out(out, request.layout.rows_shape, (checks.loss_dtype(request.like.dtype),))
        checks.overlap(out, {"x": request.like})
    value = solve(request, obtain(request.problem, backend))["lse"]
    if out is None:
        return value
    out[...] = value
    return out


def solve(request: Request, backend: Backend) -> dict[str, Any]:
    """Run one prepared request on one backend: allocate, run, and hand back the caller's shapes."""
    problem, layout = request.problem, request.layout
    if problem.on_device:
        return _solve_on_device(request, cast(Any, backend))
    given: dict[str, Array] = {}  # shaped like the logits
    answer: dict[str, Array] = {}  # the canonical form of the same memory, or where it has none, a copy
    copies = []
    for name in problem.outputs:
        if name in _MATRICES:
            given[name] = request.out if request.out is not None and name != "hess_diag" else _empty(request)
            view = layout.view(given[name])
            if view is None:
                view = np.empty(problem.logits.shape, given[name].dtype)
                copies.append(name)
            answer[name] = view
        elif name in JACOBIANS:
            shape = (*problem.logits.shape, problem.classes)
            dtype = checks.matrix_dtypes(request.like.dtype)[0]
            answer[name] = np.empty(shape, dtype) if request.out is None else request.out.reshape(shape)
        elif name in _REDUCED and problem.reduce:
            answer[name] = np.zeros(1)
        else:
            answer[name] = np.empty(problem.rows, _row_dtype(name, request))
    # The answer is the value, infinite or subnormal: the caller's np.errstate is not about our arithmetic.
    with np.errstate(all="ignore"):
        if problem.rows:
            backend.run(problem, Answer(**answer))
        for name in copies:
            layout.write(answer[name], given[name])
        return {name: _in_callers_shape(name, x, request, given) for name, x in answer.items()}


class _Call(NamedTuple):
    """What calls on a device that are alike do."""

    bound: Bound
    names: tuple[str, ...]  # of the outputs, in Answer's order
    makers: tuple[Callable[[], Any] | None, ...]  # of the outputs; None: it goes to `out`


def _solve_on_device(request: Request, backend: Any) -> dict[str, Any]:
    """The same for arrays on a device: the answer is of the caller's own type, and nothing is copied."""
    alike = request.alike
    call = alike.calls.get(backend) if alike is not None and request.at else None
    if call is not None:
        found, at = [], [*request.at]
        into = 0 if request.given_out is None else at.pop()
        for make in call.makers:
            found.append(request.given_out if make is None else make())
            at.append(into if make is None else address(found[-1]))
        if _as_aligned(call, at):
            return _called(call, found, at, request, request.stream)
    request = elsewhere(request)
    call, found, at = _bound(request, backend)
    if alike is not None and _as_aligned(call, at):
        alike.calls[backend] = call
    return _called(call, found, at, request, request.problem.stream)


def _as_aligned(call: _Call, at: list[Any]) -> bool:
    """Are new arrays aligned to 16 bytes, as those that allocators make are?"""
    for make, where in zip(reversed(call.makers), reversed(at), strict=False):
        if make is not None and where & 15:
            return False
    return True


def _called(call: _Call, found: list[Any], at: list[Any], request: Request, stream: int) -> dict[str, Any]:
    problem = request.problem
    if problem.validated:
        checks.illegal(
            call.bound.inspect(at, stream), problem.classes, request.layout.rows_shape, problem.binary
        )
    call.bound.run(at, stream)
    return dict(zip(call.names, found, strict=True))


def _bound(request: Request, backend: Any) -> tuple[_Call, list[Any], list[Any]]:
    """Work it out for these arrays, and new outputs."""
    problem, layout = request.problem, request.layout
    names = tuple(name for name in Answer._fields if name in problem.outputs)
    place = Place(problem.device, problem.stream, problem.wait, library_of(type(request.given)))
    makers: list[Callable[[], Any] | None] = []
    found: list[Any] = []
    answer: dict[str, Array] = {}
    for name in names:
        dtype, shape = _row_dtype(name, request), layout.rows_shape
        if name in _MATRICES:
            dtype, shape = request.like.dtype, layout.shape
        elif name in _REDUCED and problem.reduce:
            shape = ()
        if name in _MATRICES and name != "hess_diag" and request.out is not None:
            makers.append(None)
            found.append(request.given_out)
            view = request.out
        else:
            make = maker(request.given, shape, dtype)
            makers.append(make)
            found.append(make())
            view = describe(found[-1], name, place)
        answer[name] = cast(Array, layout.view(view)) if name in _MATRICES else view.reshape(-1)
    with np.errstate(all="ignore"):
        bound: Bound = backend.bind(problem, Answer(**answer))
    return _Call(bound, names, tuple(makers)), found, _addresses(problem, Answer(**answer))


def run_on_device(problem: Problem, answer: Answer, backend: Any) -> None:
    """A problem that is no public function's."""
    with np.errstate(all="ignore"):
        backend.bind(problem, answer).run(_addresses(problem, answer), problem.stream)


def inspect_on_device(problem: Problem, backend: Any) -> Illegal:
    """What is illegal among its labels and weights. Waits for the device."""
    found: Illegal = backend.bind(problem, Answer()).inspect(_addresses(problem, Answer()), problem.stream)
    return found


def _addresses(problem: Problem, answer: Answer) -> list[int]:
    return [x.__array_interface__["data"][0] for x in arrays(problem, answer).values()]


def _row_dtype(name: str, request: Request) -> np.dtype[Any]:
    """The dtype of a value per row."""
    loss_dtype = checks.loss_dtype(request.like.dtype)
    return {"argmax": np.dtype(np.int64), "correct": np.dtype(np.bool_)}.get(name, loss_dtype)


def _in_callers_shape(name: str, x: Array, request: Request, given: dict[str, Array]) -> Any:
    problem = request.problem
    if name in _MATRICES:
        return given[name]
    if name in JACOBIANS:
        return x.reshape(*request.layout.rows_shape, problem.classes, problem.classes)
    if name in _REDUCED and problem.reduce:
        value = x[0] if problem.denominator else request.empty
        return checks.loss_dtype(request.like.dtype).type(value)
    return x.reshape(request.layout.rows_shape)[()]  # [()] makes a 0-d array a scalar


def _empty(request: Request) -> Array:
    """A matrix like the logits: their shape, dtype and memory order, in native byte order."""
    return np.empty_like(request.like, dtype=checks.matrix_dtypes(request.like.dtype)[0], subok=False)


@cache
def _record(names: tuple[str, ...]) -> Any:
    make: Any = namedtuple  # mypy wants the names written out
    record = make("Evaluation", names)
    # pickle cannot find a class that is made on the fly.
    record.__reduce__ = lambda self: (_restore, (names, tuple(self)))
    record.__getattr__ = _missing
    return record


def _missing(self: Any, name: str) -> Any:
    if name in checks.OUTPUTS:
        raise AttributeError(f"{name} was not asked for: add {name!r} to `outputs`, {self._fields!r}.")
    raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _restore(names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    return _record(names)(*values)
