"""Derivatives of softmax and log-softmax: Jacobians, and their products with a vector from either side.

None of them has a kernel of its own. With Q = 1 and no target the loss is logsumexp, whose Hessian is the
Jacobian of softmax. The gradient for a distribution v is sum(v) p - v: but for the sign, the product of v
with the Jacobian of log-softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import checks
from .backend import Answer, Array
from .device import Place, describe, identity, maker
from .functions import run_on_device, solve
from .layout import on_device
from .problem import prepare
from .select import obtain

_BLOCK = 1 << 15  # numbers of a Jacobian that are worked on at once: they stay in the cache


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
    if on_device(x):
        return _on_device(x, "hvp", axis, temperature, backend)
    p, diagonal, found = _on_host(x, axis, temperature, backend)
    with np.errstate(all="ignore"):  # the answer is the value, however small
        less = p / -float(temperature)
        for i, rows in _blocks(found):
            np.multiply(p[i, :, None], less[i, None, :], out=rows, casting="unsafe")
            _diagonals(rows)[...] = diagonal[i]
    return _shaped(found, x, axis)


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
    if on_device(x):
        return _on_device(x, "grad", axis, temperature, backend)
    p, diagonal, found = _on_host(x, axis, temperature, backend)
    with np.errstate(all="ignore"):  # the answer is the value, however small; 0 / 0 where p is 0
        less = p / -float(temperature)
        # p (1 - p) knows what 1 - p is where p does not; elsewhere nothing cancels.
        rest = np.where(p > 0.5, diagonal / p, (1 - p) / float(temperature))
        for i, rows in _blocks(found):
            np.copyto(rows, less[i, None, :], casting="unsafe")
            _diagonals(rows)[...] = rest[i]
    return _shaped(found, x, axis)


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
    row NaN. `out` may be x, but not v. Arguments and errors are those of `softmax_jvp`.

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


def _on_host(x: Any, axis: int, temperature: float, backend: str | None) -> tuple[Array, Array, Array]:
    """(n, C): p, and p (1 - p) / T, out of one pass; and memory for n Jacobians.

    Half types are widened first: the one rounding to them is the last.
    """
    x = checks.logits(x, "x")
    wide = x.astype(np.float32) if x.dtype.itemsize == 2 else x
    request = prepare(
        wide, name="x", outputs=("grad", "hess_diag"), axis=axis, temperature=temperature, reduction="none"
    )
    problem = request.problem
    problem = problem._replace(grad_scale=problem.temperature, hess_scale=problem.temperature)
    values = solve(request._replace(problem=problem), obtain(problem, backend))
    classes = problem.classes
    p, diagonal = (np.moveaxis(values[name], axis, -1) for name in ("grad", "hess_diag"))
    found = np.empty((problem.rows, classes, classes), x.dtype.newbyteorder("="))
    return p.reshape(-1, classes), diagonal.reshape(-1, classes), found


def _blocks(found: Array) -> Iterator[tuple[slice, Array]]:
    """Some rows at a time, and their Jacobians."""
    step = max(1, _BLOCK // (found.shape[1] * found.shape[2]))
    for start in range(0, len(found), step):
        i = slice(start, start + step)
        yield i, found[i]


def _diagonals(found: Array) -> Array:
    """(n, C), a view."""
    n, classes, _ = found.shape
    return found.reshape(n, classes * classes)[:, :: classes + 1]


def _shaped(found: Array, x: Any, axis: int) -> Array:
    """In the caller's shape."""
    rows = np.delete(np.shape(x), axis)
    return found.reshape(*rows, *found.shape[1:])


def _on_device(x: Any, output: str, axis: int, temperature: float, backend: str | None) -> Any:
    """A Jacobian's row is a product with a unit vector: those of all rows are one problem of N C rows.

    Row (n, i) has the logits of row n, by a stride of 0, and the i-th unit vector: as v of a Hessian-vector
    product, or as the distribution whose gradient is p - e_i.
    """
    request = prepare(x, name="x", outputs=(output,), axis=axis, temperature=temperature, reduction="none")
    problem, classes = request.problem, request.problem.classes
    chosen = obtain(problem, backend)
    place = Place(problem.device, problem.stream, problem.wait)
    units = identity(x, classes)
    found = maker(x, (*request.layout.rows_shape, classes, classes), request.like.dtype)()
    into = describe(found, "the Jacobian", place).reshape(problem.rows, classes, classes)
    unit = describe(units, "the identity", place)
    outer, inner, _ = problem.logits.shape
    by_outer, by_inner, by_class = problem.logits.strides
    # Rows have two axes, and one is taken: those of x have to be one, or go one after the other.
    steps = outer if outer > 1 and inner > 1 and by_outer != inner * by_inner else 1
    rows = outer * inner // steps
    step = by_outer if inner == 1 else by_inner
    for part in range(steps if rows else 0):
        shape = (rows, classes, classes)
        logits = as_strided(problem.logits[part:], shape, (step, 0, by_class))
        vectors = as_strided(unit, shape, (0, *unit.strides))
        of_v: dict[str, Any] = {"direction": vectors, "hess_scale": problem.temperature}
        of_y: dict[str, Any] = {"target": "distribution", "distribution": vectors, "grad_scale": -1.0}
        one = problem._replace(rows=rows * classes, logits=logits, **(of_v if output == "hvp" else of_y))
        run_on_device(one, Answer(**{output: into[part * rows : (part + 1) * rows]}), chosen)
    return found
