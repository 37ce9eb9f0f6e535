"""Derivatives of softmax and log-softmax: Jacobians, and their products with a vector from either side.

The products have no kernels of their own. With Q = 1 and no target the loss is logsumexp, whose Hessian is the
Jacobian of softmax. The gradient for a distribution v is sum(v) p - v: but for the sign, the product of v
with the Jacobian of log-softmax. A backend that forms no Jacobians is asked for those of unit vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import checks
from .backend import Answer, Array, Backend, Problem
from .device import Place, describe, identity, library_of, maker
from .functions import run_on_device, solve
from .layout import on_device
from .problem import Request, prepare
from .select import obtain


def softmax_jacobian(x: Any, axis: int = -1, *, temperature: float = 1.0, backend: str | None = None) -> Any:
    """J[..., i, j] = d softmax_i / d x_j = p_i ((i = j) - p_j) / T: the output i first, then the input j.

    The shape is that of x without `axis`, followed by (C, C); the dtype that of x. The diagonal,
    p_i (1 - p_i) / T, is accurate where p_i is near 1, too. A row of x with NaN, +inf or nothing but -inf has
    a Jacobian of NaN. But for rounding J is symmetric, and each row adds up to 0. For large C take
    `softmax_vjp`, which does not form it. Errors as for `loss_and_grad`.

    >>> import sce
    >>> sce.softmax_jacobian([0.0, 0.0])
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    return _jacobian(x, "softmax_jacobian", "hvp", axis, temperature, backend)


def log_softmax_jacobian(
    x: Any, axis: int = -1, *, temperature: float = 1.0, backend: str | None = None
) -> Any:
    """J[..., i, j] = d log softmax_i / d x_j = ((i = j) - p_j) / T: the output i first, then the input j.

    Shape, dtype and errors are those of `softmax_jacobian`. The diagonal, (1 - p_i) / T, is accurate where
    p_i is near 1, too.

    >>> import sce
    >>> sce.log_softmax_jacobian([0.0, -40.0])
    array([[ 4.24835426e-18, -4.24835426e-18],
           [-1.00000000e+00,  1.00000000e+00]])
    """
    return _jacobian(x, "log_softmax_jacobian", "grad", axis, temperature, backend)


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
    infinity in a row of x or v makes that row NaN, but for -inf in x, which masks a class. Errors as for
    `loss_and_grad`.

    >>> import sce
    >>> sce.softmax_jvp([0.0, 0.0], [1.0, 3.0])
    array([-0.5,  0.5])
    """
    request = _prepare(x, v, "hvp", axis, temperature, out)
    return _solve(request, backend, "hvp", hess_scale=request.problem.temperature)


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
    request = _prepare(x, v, "log_softmax_jvp", axis, temperature, out)
    return _solve(request, backend, "log_softmax_jvp")


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
    row NaN. `out` may be x, but not v. Arguments and errors are those of `softmax_jvp`.

    >>> import sce
    >>> sce.log_softmax_vjp([0.0, 0.0], [1.0, 3.0])
    array([-1.,  1.])
    """
    request = _prepare(x, v, "grad", axis, temperature, out)
    along = request.problem.direction
    if request.out is not None and along is not None:
        checks.overlap(request.out, {"v": along})
    return _solve(
        request,
        backend,
        "grad",
        target="distribution",
        distribution=along,
        direction=None,
        grad_scale=-1.0,
    )


def _prepare(x: Any, v: Any, output: str, axis: int, temperature: float, out: Any) -> Request:
    return prepare(
        x, name="x", outputs=(output,), axis=axis, temperature=temperature, reduction="none", v=v, out=out
    )


def _solve(request: Request, backend: str | None, output: str, **changes: Any) -> Any:
    request = request._replace(problem=request.problem._replace(**changes))
    return solve(request, obtain(request.problem, backend))[output]


def _jacobian(x: Any, output: str, product: str, axis: int, temperature: float, backend: str | None) -> Any:
    """Formed by the backend that takes its products, if it does that."""
    request = prepare(x, name="x", outputs=(product,), axis=axis, temperature=temperature, reduction="none")
    chosen = obtain(request.problem, backend)
    if on_device(x) or not getattr(chosen, "takes_jacobians", False):
        return _by_products(x, request, chosen, product)
    whole = request.problem._replace(outputs=frozenset((output,)))
    return solve(request._replace(problem=whole), chosen)[output]


def _by_products(x: Any, request: Request, chosen: Backend, product: str) -> Any:
    """A Jacobian's row is a product with a unit vector: those of all rows are one problem of N C rows.

    Row (n, i) has the logits of row n, by a stride of 0, and the i-th unit vector: as v of a Hessian-vector
    product, or as the distribution whose gradient is p - e_i.
    """
    problem, classes = request.problem, request.problem.classes
    shape, dtype = (*request.layout.rows_shape, classes, classes), request.like.dtype.newbyteorder("=")
    if problem.on_device:
        place = Place(problem.device, problem.stream, problem.wait, library_of(type(x)))
        units, found = identity(x, classes), maker(x, shape, request.like.dtype)()
        into, unit = describe(found, "the Jacobian", place), describe(units, "the identity", place)
    else:
        found = into = np.empty(shape, dtype)
        unit = np.eye(classes, dtype=dtype)
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
        one = problem._replace(
            rows=rows * classes, logits=logits, **(of_v if product == "hvp" else of_y)
        )
        _run(one, Answer(**{product: into[part * rows : (part + 1) * rows]}), chosen)
    return found


def _run(problem: Problem, answer: Answer, backend: Backend) -> None:
    if problem.on_device:
        run_on_device(problem, answer, backend)
        return
    with np.errstate(all="ignore"):  # the answer is the value, however small
        backend.run(problem, answer)
