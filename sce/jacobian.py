"""Derivatives of softmax and log-softmax: Jacobians, and their products with a vector from either side.

The products have no kernels of their own. With Q = 1 and no target the loss is logsumexp, whose Hessian is
the Jacobian of softmax. The gradient for a distribution v is sum(v) p - v: but for the sign, the product of v
with the Jacobian of log-softmax. A backend that forms no Jacobians is asked for those of unit vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import checks
from .backend import Answer, Array, Backend, Problem
from .device import Place, describe, identity, maker
from .functions import run_on_device, solve
from .problem import Request, place_of_all, prepare
from .select import obtain


def softmax_jacobian(
    x: Any,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The Jacobian of softmax in every row: the derivative of each probability by each logit.

    For a row of C logits, with p = softmax(x / temperature)::

        J[..., i, j] = d p_i / d x_j = p_i ((i = j) - p_j) / temperature

    J is symmetric but for rounding, and each of its rows adds up to 0. The diagonal, p_i (1 - p_i) /
    temperature, has its relative accuracy where p_i is near 1, too: 1 - p_i is the sum of the others.

    Parameters
    ----------
    x:
        Floating array of logits, in nats, as in `loss_and_grad`: float16, bfloat16 (ml_dtypes), float32 or
        float64, any number of dimensions >= 1, any strides, on the host or on a CUDA device.
    axis:
        The class axis, of length C.
    temperature:
        Positive; divides x.
    out:
        Where J goes: a C-contiguous array of J's shape and dtype that shares no memory with x. New memory
        costs as much as the work.
    backend:
        As in `loss_and_grad`.

    Returns
    -------
    The shape of x without `axis`, followed by (C, C): the output i first, then the input j. The dtype of x.
    A class masked by -inf has zeros. A row with NaN, +inf or nothing but -inf has a Jacobian of NaN.

    Raises
    ------
    TypeError, ValueError
        For an argument of a wrong dtype, shape or value; the message names it and says what to do.
    BackendError
        If the backend that was named cannot take the call, or none can.

    For large C take `softmax_jvp` or `softmax_vjp`, which do not form J: C times less memory.

    Examples
    --------
    >>> import numpy as np, sce
    >>> sce.softmax_jacobian([0.0, 0.0])
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    >>> sce.softmax_jacobian(np.zeros((5, 2, 3)), axis=1).shape
    (5, 3, 2, 2)

    References
    ----------
    J. S. Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs";
    docs/math.md derives the formula.
    """
    return _jacobian(x, "softmax_jacobian", "hvp", axis, temperature, out, backend)


def log_softmax_jacobian(
    x: Any,
    axis: int = -1,
    *,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The Jacobian of log-softmax in every row: the derivative of each log-probability by each logit.

    With p = softmax(x / temperature)::

        J[..., i, j] = d log p_i / d x_j = ((i = j) - p_j) / temperature

    Each of its rows adds up to 0. The diagonal has its relative accuracy where p_i is near 1, too. Arguments,
    shapes, dtypes and errors are those of `softmax_jacobian`; a class masked by -inf has a column of zeros,
    but for its own 1 / temperature.

    >>> import sce
    >>> sce.log_softmax_jacobian([0.0, -40.0])
    array([[ 4.24835426e-18, -4.24835426e-18],
           [-1.00000000e+00,  1.00000000e+00]])
    """
    return _jacobian(x, "log_softmax_jacobian", "grad", axis, temperature, out, backend)


def softmax_jvp(
    x: Any,
    v: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The derivative of softmax along v: J v = p * (v - p.v) / T, in the shape and dtype of x.

    v is floating and shaped like x. J, the Jacobian of `softmax_jacobian`, is never formed; v_k - p.v is the
    sum over the others of p_j (v_k - v_j), and accurate in confident rows. `out` may be x or v. NaN or an
    infinity in a row of x or v, or a v whose differences overflow, makes that row NaN, but for -inf in x,
    which masks a class. Errors as for `loss_and_grad`.

    >>> import sce
    >>> sce.softmax_jvp([0.0, 0.0], [1.0, 3.0])
    array([-0.5,  0.5])
    """
    return _product(x, v, "hvp", axis, temperature, out, backend, hess_scale=temperature)


def softmax_vjp(
    x: Any,
    v: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """v^T J, what backpropagation through softmax does: the same as `softmax_jvp`, because J is symmetric.

    >>> import sce
    >>> sce.softmax_vjp([0.0, 0.0], [1.0, 3.0])
    array([-0.5,  0.5])
    """
    return softmax_jvp(x, v, axis=axis, temperature=temperature, out=out, backend=backend)


def log_softmax_jvp(
    x: Any,
    v: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """The derivative of log-softmax along v: J v = (v - p.v) / T, in the shape and dtype of x.

    J is that of `log_softmax_jacobian`; arguments, accuracy and errors are those of `softmax_jvp`.

    >>> import sce
    >>> sce.log_softmax_jvp([0.0, 0.0], [1.0, 3.0])
    array([-1.,  1.])
    """
    return _product(x, v, "log_softmax_jvp", axis, temperature, out, backend)


def log_softmax_vjp(
    x: Any,
    v: Any,
    *,
    axis: int = -1,
    temperature: float = 1.0,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """v^T J, what backpropagation through log-softmax does: (v - p sum(v)) / T, in the shape and dtype of x.

    It is the gradient of the cross-entropy for the distribution v, with the opposite sign; NaN in v makes its
    row NaN. `out` may be x, but not v. Accurate relative to |v| and p |sum(v)|, as a gradient is. Arguments
    and exceptions are those of `softmax_jvp`.

    >>> import sce
    >>> sce.log_softmax_vjp([0.0, 0.0], [1.0, 3.0])
    array([-1.,  1.])
    """
    return _product(x, v, "grad", axis, temperature, out, backend, v_is_target=True, grad_scale=-1.0)


def _product(
    x: Any, v: Any, output: str, axis: int, temperature: float, out: Any, backend: str | None, **options: Any
) -> Any:
    request = prepare(
        x,
        name="x",
        outputs=(output,),
        axis=axis,
        temperature=temperature,
        reduction="none",
        v=v,
        out=out,
        recognise=True,
        **options,
    )
    return solve(request, obtain(request.problem, backend))[output]


def _jacobian(
    x: Any, output: str, product: str, axis: int, temperature: float, out: Any, backend: str | None
) -> Any:
    """Formed by the backend that takes its products, if it does that."""
    place = place_of_all({"x": x, "out": out})
    request = prepare(x, name="x", outputs=(product,), axis=axis, temperature=temperature, reduction="none")
    into = None if out is None else _checked(out, request, place)
    chosen = obtain(request.problem, backend)
    if place is not None or not getattr(chosen, "takes_jacobians", False):
        return _by_products(x, request, chosen, product, place, out, into)
    whole = request.problem._replace(outputs=frozenset((output,)))
    found = solve(request._replace(problem=whole, out=into), chosen)[output]
    return found if out is None else out


def _shape(request: Request) -> tuple[int, ...]:
    return (*request.layout.rows_shape, request.problem.classes, request.problem.classes)


def _checked(out: Any, request: Request, place: Place | None) -> Array:
    """`out`, or on a device what describes it."""
    if place is not None:
        out = describe(out, "out", place)
    checks.out(out, _shape(request), (request.like.dtype.newbyteorder("="),))
    if not out.flags.c_contiguous:
        raise ValueError("out has gaps, or its axes in another order: pass a C-contiguous array.")
    checks.overlap(out, {"x": request.like})
    return np.asarray(out)


def _by_products(
    x: Any,
    request: Request,
    chosen: Backend,
    product: str,
    place: Place | None,
    out: Any,
    into: Array | None,
) -> Any:
    """A Jacobian's row is a product with a unit vector: those of all rows are one problem of N C rows.

    Row (n, i) has the logits of row n, by a stride of 0, and the i-th unit vector: as v of a Hessian-vector
    product, or as the distribution whose gradient is p - e_i.
    """
    problem, classes = request.problem, request.problem.classes
    dtype, found = request.like.dtype.newbyteorder("="), out
    units: Any = None  # held until the work is under way
    if place is not None:
        problem = problem._replace(wait=place.wait)
        units = identity(x, classes)
        unit = describe(units, "the identity", place)
        if into is None:
            found = maker(x, _shape(request), request.like.dtype)()
            into = describe(found, "the Jacobian", place)
    else:
        unit = np.eye(classes, dtype=dtype)
        if into is None:
            found = into = np.empty(_shape(request), dtype)
    into = into.reshape(problem.rows, classes, classes)
    outer, inner, _ = problem.logits.shape
    by_outer, by_inner, by_class = problem.logits.strides
    # Rows have two axes, and one is taken: those of x have to be one, or go one after the other.
    steps = outer if outer > 1 and inner > 1 and by_outer != inner * by_inner else 1
    rows = outer * inner // steps
    step = by_outer if inner == 1 else by_inner
    for part in range(steps if rows else 0):
        shape = (rows, classes, classes)
        logits = as_strided(problem.logits[part:], shape, (step, 0, by_class), writeable=False)
        vectors = as_strided(unit, shape, (0, *unit.strides), writeable=False)
        of_v: dict[str, Any] = {"direction": vectors, "hess_scale": problem.temperature}
        of_y: dict[str, Any] = {"target": "distribution", "distribution": vectors, "grad_scale": -1.0}
        one = problem._replace(rows=rows * classes, logits=logits, **(of_v if product == "hvp" else of_y))
        _run(one, Answer(**{product: into[part * rows : (part + 1) * rows]}), chosen)
    return found


def _run(problem: Problem, answer: Answer, backend: Backend) -> None:
    if problem.on_device:
        run_on_device(problem, answer, backend)
        return
    with np.errstate(all="ignore"):  # the answer is the value, however small
        backend.run(problem, answer)
