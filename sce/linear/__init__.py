"""The linear model: loss, gradients and Hessian-vector product of logits X W + bias that are never all there.

model.py      a call's arguments, checked
chunks.py     how many rows are computed at once, and where their logits lie
host.py       NumPy arrays and SciPy's CSR
csr.py        sparse rows
bound.py      the same rows at one W after another: for solvers; bound_pair.py: of two classes
products.py   products of matrices, and sums of them
device.py     the same for arrays on a device
"""

from __future__ import annotations

from typing import Any, Literal

from sce.second_order import hvp
from sce.select import obtain

from . import device, host
from .csr import is_sparse
from .model import LinearGrad, direction, model, outputs, placed, vector, wanted

__all__ = ["LinearGrad", "linear_cross_entropy", "linear_hvp", "linear_loss_and_grad"]


def linear_loss_and_grad(
    X: Any,
    W: Any,
    y: Any,
    *,
    bias: Any = None,
    l2: float = 0.0,
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
    want: tuple[str, ...] | None = None,
    out: LinearGrad | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> tuple[Any, LinearGrad]:
    """Softmax cross-entropy of a linear model, and its exact gradient: the (N, C) logits are never all there.

    With x = X W + bias, and the loss of those logits as `loss_and_grad` has it::

        loss = loss_and_grad(x, y, ...)[0] + l2 * sum(W**2)
        G    = d loss / d x
        grad = (X: G W^T,  W: X^T G + 2 l2 W,  bias: sum over rows of G)     times grad_scale

    Rows are taken in chunks; each chunk's logits are overwritten by their derivative. Beyond its answer a
    call needs at most some 60 MB. Rows that are left out (`ignore_index`, sample weight 0) are not computed.

    Parameters
    ----------
    X:
        (N, D), a row per example: float32 or float64. float16 and bfloat16 are computed in float32, for which
        W and its gradient are held in float32, too. Or SciPy's CSR of float32 or float64. Or CuPy's or
        PyTorch's array on a CUDA device, as all others are then; these multiply half precision as it is.
    W:
        (D, C), of X's dtype, in any memory order: the gradient has the same. PyTorch's Linear has W.T.
    y:
        (N,) class indices, or an (N, C) distribution per row.
    bias:
        (C,) reals, or None. It is never penalised.
    l2:
        Factor of the sum of squares of W, at least 0. It is added once per call and not divided by anything:
        calls on parts of a batch, each with its `denominator`, add it up.
    class_weight, sample_weight, ignore_index, label_smoothing, temperature, softcap, logit_bias, z_loss:
        As for `loss_and_grad`.
    reduction, denominator, empty:
        The same. "none" gives a loss per row, the gradients are those of their sum, and l2 must be 0.
    grad_scale:
        Multiplies the gradients alone, that of the penalty included.
    want:
        Which gradients: names out of "X", "W" and "bias". None is all that there are: W, bias where there is
        one, and X unless it is sparse, whose gradient would be dense and is not to be had. A bias that is
        not there has the gradient None; to want that alone is an error.
    out:
        Where they go: `LinearGrad(X=..., W=..., bias=...)` of arrays, None where a new one will do. Each has
        its gradient's shape and the dtype of X and W (or float32 for half precision), and shares memory
        with no other array.
    validate, backend:
        As for `loss_and_grad`; products of matrices are those of the BLAS that NumPy has, on its own
        threads.

    Returns
    -------
    (loss, LinearGrad)
        The loss as `loss_and_grad` has it; the gradients by name, None where not asked or without a bias.

    Raises
    ------
    TypeError, ValueError, LabelError, BackendError
        As `loss_and_grad`. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np, sce
    >>> X, W = np.array([[1.0, 2.0], [0.0, 3.0]]), np.zeros((2, 3))
    >>> loss, grad = sce.linear_loss_and_grad(X, W, np.array([0, 2]), l2=0.1, want=("W",))
    >>> round(float(loss), 6)  # log 3
    1.098612
    >>> grad.W.round(4)
    array([[-0.3333,  0.1667,  0.1667],
           [-0.1667,  0.8333, -0.6667]])
    >>> grad.X is None
    True

    References
    ----------
    docs/math.md, "A linear model". P.-L. Hsu et al. (2024), Liger Kernel, arXiv:2410.10989, and E. Wijmans et
    al. (2024), "Cut your losses in large-vocabulary language models", arXiv:2411.09009, for chunks of logits.
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "temperature": temperature,
        "softcap": softcap,
        "logit_bias": logit_bias,
        "z_loss": z_loss,
        "reduction": reduction,
        "denominator": denominator,
        "empty": empty,
        "grad_scale": grad_scale,
        "validate": validate,
    }
    names = wanted(want, is_sparse(X), bias is not None)
    if placed({"X": X, "W": W, "y": y, "bias": bias}):
        there = device.model(X, W, y, bias=bias, l2=l2, outputs=("loss", "grad"), backend=backend, **options)
        into = device.outputs(there, names, out)
        return device.loss_and_grad(there, into), into
    here = model(X, W, y, bias=bias, l2=l2, outputs=("loss", "grad"), **options)
    into = outputs(here, names, out)
    return host.loss_and_grad(here, obtain(here.problem, backend), into), into


def linear_cross_entropy(
    X: Any,
    W: Any,
    y: Any,
    *,
    bias: Any = None,
    l2: float = 0.0,
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
    """The loss of `linear_loss_and_grad` alone: one product of matrices instead of three.

    The likelihood of a large vocabulary, without its logits. Formula, shapes, options and errors: see
    `linear_loss_and_grad`.

    >>> import numpy as np, sce
    >>> round(float(sce.linear_cross_entropy(np.ones((4, 2)), np.zeros((2, 3)), [0, 1, 2, 0])), 6)
    1.098612
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "temperature": temperature,
        "softcap": softcap,
        "logit_bias": logit_bias,
        "z_loss": z_loss,
        "reduction": reduction,
        "denominator": denominator,
        "empty": empty,
        "validate": validate,
    }
    if placed({"X": X, "W": W, "y": y, "bias": bias}):
        there = device.model(X, W, y, bias=bias, l2=l2, outputs=("loss",), backend=backend, **options)
        return device.loss(there)
    here = model(X, W, y, bias=bias, l2=l2, outputs=("loss",), **options)
    return host.loss_and_grad(here, obtain(here.problem, backend), LinearGrad())


def linear_hvp(
    X: Any,
    W: Any,
    y: Any,
    V: Any,
    *,
    bias: Any = None,
    v_bias: Any = None,
    l2: float = 0.0,
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
    out: LinearGrad | None = None,
    validate: bool = True,
    backend: str | None = None,
) -> LinearGrad:
    """The Hessian of `linear_loss_and_grad`'s loss with respect to W and bias, times (V, v_bias).

    It is the derivative of that gradient in the direction (V, v_bias), by Pearlmutter's R-operator: with H
    the Hessian of the loss with respect to the logits x = X W + bias, which couples no two rows::

        R(x) = X V + v_bias
        R(G) = H R(x)                                          row by row, as `hvp` has it
        (W: X^T R(G) + 2 l2 V,  bias: sum over rows of R(G))

    W and bias are what Newton's method and conjugate gradients solve for; there is no product with respect to
    X. Neither the Hessian nor an (N, C) matrix is formed.

    Parameters
    ----------
    V, v_bias:
        The direction: (D, C), and (C,) reals where there is a bias; a v_bias of None is 0. V has W's dtype or
        a narrower one: a wider one would be rounded. On a device, where the arrays' own library multiplies,
        W's.
    others:
        As for `linear_loss_and_grad`; "none" is as "sum".

    Returns
    -------
    LinearGrad
        W, and bias where there is one; X is None.

    Examples
    --------
    >>> import numpy as np, sce
    >>> X, W = np.array([[1.0, 2.0], [0.0, 1.0]]), np.zeros((2, 3))
    >>> V = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> sce.linear_hvp(X, W, np.array([0, 2]), V).W.round(4)
    array([[ 0.1111, -0.0556, -0.0556],
           [ 0.2222, -0.1111, -0.1111]])

    References
    ----------
    B. A. Pearlmutter (1994), "Fast exact multiplication by the Hessian", Neural Computation 6(1).
    """
    options = {
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "temperature": temperature,
        "softcap": softcap,
        "logit_bias": logit_bias,
        "z_loss": z_loss,
        "reduction": reduction,
        "denominator": denominator,
        "validate": validate,
    }
    if v_bias is not None and bias is None:
        raise ValueError("v_bias is a direction of the bias: pass bias, too.")
    if placed({"X": X, "W": W, "y": y, "V": V, "bias": bias, "v_bias": v_bias}):
        there = device.model(X, W, y, bias=bias, l2=l2, outputs=("grad",), backend=backend, **options)
        device.direction(there, V, v_bias)
        into = device.outputs(there, ("W", "bias"), out)
        device.hessian_vector(there, hvp, V, v_bias, into)
        return into
    here = model(X, W, y, bias=bias, l2=l2, outputs=("grad",), **options)
    along = direction(V, here), vector("v_bias", v_bias, here.W.shape[1], here.W.dtype)
    here.given.update(V=V, v_bias=v_bias)
    into = outputs(here, ("W", "bias"), out)
    host.hessian_vector(here, host.row_product(here.problem, hvp, backend, options), *along, into)
    return into
