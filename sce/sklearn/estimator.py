"""`SoftmaxRegression`: what scikit-learn sees."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import sce
from sce.linear.csr import within

from . import parameters, solvers, threads
from .advice import advice
from .objective import Floats, Objective

_STEADY = 32  # calls of partial_fit after which its steps begin to shrink
_SHARPEST = 1e3  # the largest 1 / temperature that is looked for, and 1 over the smallest


class _Rows(NamedTuple):
    """The rows that count, as a fit needs them."""

    x: Any  # (N, D), dense or CSR
    y: NDArray[np.intp]  # (N,), positions in classes
    weight: NDArray[np.float64] | None  # (N,), positive
    classes: NDArray[Any]

    @property
    def total(self) -> float:
        return float(len(self.y)) if self.weight is None else float(self.weight.sum())


class _Stream(NamedTuple):
    """What `partial_fit` goes on from, besides the coefficients."""

    velocity: Floats  # of momentum, shaped as the solvers have the parameters
    rows: int = 0  # seen so far, each time they were,
    weight: float = 0.0  # and what they weigh together
    calls: int = 0
    rng: np.random.RandomState | None = None  # of the order of the rows


class SoftmaxRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    r"""Multinomial logistic regression: a linear model of the logits, fitted by softmax cross-entropy.

    With u_i the weights of the rows (`sample_weight` times `class_weight` of the label) it minimises::

        F(W, b) = sum_i u_i loss_i(X W + b) / sum_i u_i  +  1 / (2 C sum_i u_i) * sum(W**2)

    which is 1 / (C sum_i u_i) times the objective of scikit-learn's `LogisticRegression`: the same C, the
    same coefficients. The intercepts b are not penalised. Two classes have one column, the logits being
    (0, x w + b), as there. A row of weight 0 is as good as not there.

    Parameters
    ----------
    C:
        Inverse strength of the penalty, positive; `inf` for none. Then rows that a linear model separates
        have no finite minimum: coefficients grow until `tol` or `max_iter` ends it.
    solver:
        "lbfgs": SciPy's L-BFGS, for all that is not said below. "newton-cg": Newton's method with conjugate
        gradients, for coefficients to many digits. "sgd": mini-batch gradient descent with momentum, for more
        rows than fit `partial_fit` at once; scale the features for it. The first two scale by themselves.
    fit_intercept:
        Whether there are intercepts.
    tol:
        "lbfgs" and "newton-cg" end when no entry of the gradient of F is larger, or when rounding hides any
        further fall of F. For "sgd" an epoch is idle when its loss is not this much below the best: after
        five of them the steps shrink to a fifth, the fourth time it ends. It returns the best of where it
        started, where it ended, and the end of its best epoch.
    max_iter:
        Steps, or epochs of "sgd". Reaching it is a `ConvergenceWarning`.
    class_weight:
        A dict of label: weight (1 for labels not in it; labels that y has not are ignored, unless all are
        such), "balanced" (each class has the same total weight), or None. Not negative.
    label_smoothing:
        In [0, 1]: this much of each label's mass is spread evenly over all classes.
    batch_size, learning_rate, momentum:
        Of "sgd". The size "auto" is at most 256, in `fit` a 32nd of the rows, in `partial_fit` all of the
        call's; the rate "auto" is one that no mini-batch can overshoot with, and shrinks as
        1 / sqrt(1 + calls / 32) in `partial_fit`; momentum is in [0, 1).
    warm_start:
        Whether `fit` starts from the coefficients that are there.
    random_state:
        The order of the rows of "sgd": an int, a `RandomState`, or None for NumPy's own.
    verbose:
        Above 0, or True, a line for each step is printed.
    backend:
        Of sce: a name, an import path, or None for the best.

    Attributes
    ----------
    classes_ : (C,)
        The labels, sorted.
    coef_ : (C, D), or (1, D) for two classes; in the dtype of X, float32 or float64
        A row for each class.
    intercept_ : (C,), or (1,)
        0 without intercepts.
    temperature_ : float
        What `predict_proba` divides the logits by: 1 until `fit_temperature`.
    loss_curve_ : (n_iter_ + 1,)
        F at the start and after each step. Of "sgd" (n_iter_,): the mean over each epoch's mini-batches.
    n_iter_ : int
        Steps, or epochs: those of `fit` and one for each `partial_fit` since.
    converged_ : bool
        Whether `fit` ended near the minimum. For "lbfgs" and "newton-cg": the gradient is within `tol`, or
        rounding hid any further fall of F, and an estimate of what is left is as small as rounding, or
        `tol**2` / 2. For "sgd": it ended as `tol` says, and the fall that is left is estimated at no more
        than a tenth of F and of the way down from the start, or 10 `tol`. If it is False, a
        `ConvergenceWarning` says why and what would help; after a `partial_fit` it is always False.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Raises
    ------
    ValueError
        Of `fit`: a parameter out of range, NaN or infinities in X, no row of positive weight, or only one
        class among those (which would fit any coefficients).

    Notes
    -----
    float32 is computed in float32, the solver's own arithmetic in float64. Sparse X is taken as CSR, other
    formats are converted. With more than 1024 features, "lbfgs" and "newton-cg" scale the features one by one
    instead of together.

    While `fit` is at work, SciPy's own BLAS, where it has one, has one thread, in the whole process: its
    threads would be in the way of NumPy's.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sce.sklearn import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression(C=10).fit(X, y)
    >>> model.predict(X[:2]), round(model.score(X, y), 2)
    (array([0, 0]), 0.98)

    References
    ----------
    docs/regression.md: objective, solvers, calibration. D. Böhning (1992), "Multinomial logistic regression
    algorithm", for the bound of the Hessian behind the scaling.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        solver: Literal["lbfgs", "newton-cg", "sgd"] = "lbfgs",
        fit_intercept: bool = True,
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
        batch_size: int | Literal["auto"] = "auto",
        learning_rate: float | Literal["auto"] = "auto",
        momentum: float = 0.9,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        backend: str | None = None,
    ) -> None:
        self.C = C
        self.solver = solver
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.backend = backend

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Minimise F. X (N, D) is dense or sparse, y (N,) labels of any kind, sample_weight (N,) >= 0."""
        self._check()
        rows = self._rows(X, y, sample_weight, reset=True)
        before = self._parameters(rows.classes) if self.warm_start and hasattr(self, "coef_") else None
        objective = self._objective(rows)
        w = np.zeros(objective.shape) if before is None else before
        if w.shape != objective.shape:
            raise ValueError(
                f"warm_start=True: the coefficients that are there have shape {w.shape[::-1]}, these data"
                f" need {objective.shape[::-1]} (classes, features and intercept). Fit a new estimator."
            )
        trace = solvers.Trace(self.tol, self.max_iter, self.verbose)
        with threads.alone():
            if self.solver == "sgd":
                rng = check_random_state(self.random_state)
                w = solvers.sgd(objective, w, trace, rng, **self._steps(objective))
            else:
                w = (solvers.lbfgs if self.solver == "lbfgs" else solvers.newton_cg)(objective, w, trace)
        self._keep(rows, w)
        self._stream = _Stream(np.zeros_like(w), len(rows.y), rows.total)
        self.loss_curve_ = np.array(trace.losses)
        self.n_iter_ = trace.steps
        self.converged_ = trace.converged
        if not trace.converged:
            warnings.warn(advice(self.solver, trace, objective), ConvergenceWarning, stacklevel=2)
        return self

    def _mini_batches(self) -> bool:
        if self.solver != "sgd":
            raise AttributeError(f"partial_fit needs solver='sgd': the solver is {self.solver!r}.")
        return True

    @available_if(_mini_batches)  # type: ignore[untyped-decorator]
    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None, total_weight: Any = None
    ) -> SoftmaxRegression:
        """One epoch of mini-batches over these rows, from where the last call ended; for solver="sgd".

        The first call is told all `classes`. The penalty is that of F for all rows together, for which its
        1 / (2 C sum_i u_i) has to know their weight: `total_weight`, or else the weight of all rows seen so
        far, in `fit` and in each `partial_fit`. That is right for a stream, which shows each row once; who
        shows the same rows again and again, epoch by epoch, passes `total_weight`. Rows that weigh nothing
        change nothing.

        The coefficients come near those of `fit` slowly, and reach them in the limit only: with the rate
        "auto" the steps shrink as 1 / sqrt(calls), and the squared distance no faster. On scaled digits, in
        batches of 64, they are 15 % off (largest error over largest coefficient) after 50 epochs, 8 % after
        200, 7 % after 400; F is 3 %, 0.8 % and 0.4 % above its minimum.

        `fit_intercept` must stay as it is from call to call.
        """
        self._check()
        if total_weight is not None:
            parameters.real("total_weight", total_weight, 0, math.inf, ends="()")
        if parameters.is_word(self.class_weight, "balanced"):
            raise ValueError(
                'class_weight="balanced" needs all rows at once, which partial_fit does not see: pass the'
                " weights as a dict."
            )
        first = not hasattr(self, "coef_")
        if first and classes is None:
            raise ValueError(
                "classes must be passed on the first call to partial_fit: all labels there will be."
            )
        known = np.unique(classes) if first else self.classes_
        if len(known) < 2:
            raise ValueError(f"classes holds {len(known)} label: name all that there will be, at least 2.")
        if not first and classes is not None and not np.array_equal(np.unique(classes), known):
            raise ValueError(f"classes={classes!r} is not what the first call said: {known!r}.")
        before = set(vars(self))
        try:
            rows = self._rows(X, y, sample_weight, reset=first, classes=known, some=False)
            if first:
                w = np.zeros((rows.x.shape[1] + bool(self.fit_intercept), len(known)))
                self._keep(rows, w)
                self._stream = _Stream(np.zeros_like(w))
                self.loss_curve_, self.n_iter_, self.converged_ = np.zeros(0), 0, False
            if len(rows.y):
                self._epoch(rows, total_weight)
        except BaseException:
            for name in set(vars(self)) - before:  # a first call that fails leaves nothing that looks fitted
                delattr(self, name)
            raise
        return self

    def _epoch(self, rows: _Rows, total_weight: float | None) -> None:
        """Nothing is kept of an epoch that fails."""
        velocity, seen, weight, calls, rng = self._stream
        seen, weight = seen + len(rows.y), weight + rows.total
        # In proportion to what these rows weigh: a call with half the weight is half a step.
        objective = self._objective(rows, total_weight or weight, len(rows.y) * weight / seen)
        if velocity.shape != objective.shape:
            raise ValueError(
                f"fit_intercept={self.fit_intercept} is not what it was: partial_fit goes on with the"
                f" parameters that are there, {velocity.shape[0]} for each class, and now it would be"
                f" {objective.shape[0]}. Set it back, or fit a new estimator."
            )
        w, velocity = self._parameters(rows.classes), velocity.copy()
        rng = check_random_state(self.random_state) if rng is None else rng
        # The call is a mini-batch, or several; steps of one size would go astray around the minimum for ever.
        steps = self._steps(objective, most=len(rows.y), shrink=math.sqrt(1 + calls / _STEADY))
        loss = solvers.epoch(objective, w, velocity, rng, **steps)
        self._keep(rows, w)
        self._stream = _Stream(velocity, seen, weight, calls + 1, rng)
        self.loss_curve_ = np.append(self.loss_curve_, loss)
        self.n_iter_ += 1
        self.converged_ = False  # whoever calls decides when it is enough
        if self.verbose:
            print(solvers.progress(self.n_iter_, loss))

    def fit_temperature(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxRegression:
        """Calibrate: find the temperature T at which softmax(logits / T) fits rows that `fit` has not seen.

        The loss of these rows is convex in 1 / T, so where its slope is 0 is the minimum; it is looked for
        between T = 0.001 and 1000. If there is none (all labels are predicted right, or the logits are no
        better than none), T stays 1 with a `ConvergenceWarning`. Only probabilities change: `predict` and
        `decision_function` do not. C. Guo et al. (2017), "On calibration of modern neural networks".

        That loss is the log-loss of the labels, weighted by `sample_weight` alone: `class_weight`,
        `label_smoothing` and the penalty belong to the fit and are not applied, so that probabilities become
        those of the rows at hand.
        """
        check_is_fitted(self)
        rows = self._rows(X, y, sample_weight, reset=False, classes=self.classes_, weighted=False)
        z = self._logits(self._decide(rows.x).astype(np.float64))

        def slope(beta: float) -> float:
            """The derivative of the mean loss by 1 / T: the sum of z (p - y)."""
            _, grad = sce.loss_and_grad(
                z,
                rows.y,
                sample_weight=rows.weight,
                temperature=1 / beta,
                validate=False,
                backend=self.backend,
            )
            return float(np.vdot(z, grad)) / beta

        self.temperature_ = 1.0
        if slope(1 / _SHARPEST) >= 0:
            why = "the logits tell their labels no better than chance, so that none at all would fit best"
        elif slope(_SHARPEST) <= 0:
            why = "their labels are all predicted right, so that the lower it is, the better it fits"
        else:
            self.temperature_ = 1 / brentq(slope, 1 / _SHARPEST, _SHARPEST, rtol=1e-12)
            return self
        what = f"no temperature fits these rows best, so it stays 1: {why}."
        warnings.warn(what, ConvergenceWarning, stacklevel=2)
        return self

    def decision_function(self, X: Any) -> Floats:
        """The logits X W + b, before any temperature: (N, C); for two classes (N,), the second's."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        if sparse.issparse(X):
            within(X)
        return self._decide(X)

    def _decide(self, X: Any) -> Floats:
        z: Floats = X @ self.coef_.T.astype(X.dtype, copy=False)
        z += self.intercept_.astype(X.dtype, copy=False)
        return z.ravel() if len(self.classes_) == 2 else z

    def predict(self, X: Any) -> NDArray[Any]:
        """(N,): the label with the largest logit."""
        z = self.decision_function(X)
        found: NDArray[Any] = self.classes_[(z > 0).astype(int) if z.ndim == 1 else z.argmax(axis=1)]
        return found

    def predict_proba(self, X: Any) -> Floats:
        """(N, C): softmax(logits / temperature_), a column for each of `classes_`."""
        z = self._logits(self.decision_function(X))
        found: Floats = sce.softmax(z, temperature=self.temperature_, out=z, backend=self.backend)
        return found

    def predict_log_proba(self, X: Any) -> Floats:
        """(N, C): the logarithm of `predict_proba`, also where that rounds to 0 or 1."""
        z = self._logits(self.decision_function(X))
        found: Floats = sce.log_softmax(z, temperature=self.temperature_, out=z, backend=self.backend)
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _rows(
        self,
        X: Any,
        y: Any,
        sample_weight: Any,
        *,
        reset: bool,
        classes: Any = None,
        weighted: bool = True,
        some: bool = True,
    ) -> _Rows:
        """Everything checked; rows of weight 0 left out. `weighted`: by class, too. `some`: there must be."""
        X, y = validate_data(
            self, X, y, accept_sparse="csr", dtype=[np.float64, np.float32], order="C", reset=reset
        )
        if sparse.issparse(X):
            within(X)
        check_classification_targets(y)
        weight = None
        if sample_weight is not None:
            weight = parameters.sample_weight(sample_weight, X.shape[0])
        labels, at = np.unique(y, return_inverse=True)
        if classes is not None:
            at = parameters.positions(labels, classes)[at]
            labels = classes
        if weighted and self.class_weight is not None:
            weight = np.ones(len(y)) if weight is None else weight
            weight *= parameters.class_weights(self.class_weight, labels, at, weight)[at]
        if weight is not None:
            if some and not weight.any():
                raise ValueError(
                    "all rows have weight zero: there is nothing to fit. Give some of them a weight."
                )
            with np.errstate(over="ignore"):
                whole = weight.sum()
            if not np.isfinite(whole):
                raise ValueError(
                    "the weights add up to more than float64 holds: divide them all by the largest."
                )
            if not weight.all():
                X, at, weight = X[weight > 0], at[weight > 0], weight[weight > 0]
                if classes is None:
                    there, at = np.unique(at, return_inverse=True)
                    labels = labels[there]
        if len(labels) < 2:
            raise ValueError(
                f"y holds only one class, {parameters.plain(labels[0])!r}, in the rows that have a weight: a"
                " softmax needs at least 2 classes."
            )
        return _Rows(X, at.astype(np.intp, copy=False), weight, labels)

    def _objective(
        self, rows: _Rows, all_weight: float | None = None, denominator: float | None = None
    ) -> Objective:
        """F, or the part that rows have in it which together weigh `all_weight`."""
        two = len(rows.classes) == 2
        return Objective(
            rows.x,
            rows.y,
            rows.weight,
            len(rows.classes),
            # Two columns -w/2 and w/2 have half the squares of w alone.
            ridge=(2 if two else 1) / (self.C * (all_weight or rows.total)),
            intercept=bool(self.fit_intercept),
            label_smoothing=self.label_smoothing,
            denominator=denominator,
            backend=self.backend,
        )

    def _keep(self, rows: _Rows, w: Floats) -> None:
        """Parameters (D + 1, C) as scikit-learn has them; a temperature belongs to what was there before."""
        self.classes_ = rows.classes
        if len(rows.classes) == 2:
            w = w[:, 1:] - w[:, :1]
        w = w.T.astype(rows.x.dtype)
        self.coef_ = np.ascontiguousarray(w[:, : rows.x.shape[1]])
        self.intercept_ = w[:, -1].copy() if self.fit_intercept else np.zeros(len(w), w.dtype)
        self.temperature_ = 1.0

    def _parameters(self, classes: NDArray[Any]) -> Floats:
        """What `_keep` has kept, as the solvers have it."""
        if not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start=True: the coefficients that are there are for classes {self.classes_!r}, these"
                f" data have {classes!r}. Fit a new estimator."
            )
        w = np.ascontiguousarray(self.coef_.T, np.float64)
        if self.fit_intercept:
            w = np.append(w, self.intercept_[None], axis=0)
        return np.hstack([-w / 2, w / 2]) if len(classes) == 2 else w - w.mean(axis=1, keepdims=True)

    def _logits(self, z: Floats) -> Floats:
        """A column per class."""
        return np.column_stack([np.zeros_like(z), z]) if z.ndim == 1 else z

    def _steps(self, objective: Objective, *, most: int = 0, shrink: float = 1.0) -> dict[str, Any]:
        """How mini-batches go. Where that is auto, at most `most` rows are in one, and steps shrink."""
        # An epoch of `fit` has dozens of steps at least, so that its loss tells whether they should shrink.
        auto = min(256, most or max(1, objective.rows // 32))
        size = auto if self.batch_size == "auto" else self.batch_size
        auto_rate = self.learning_rate == "auto"
        rate = solvers.stable_rate(objective, size) / shrink if auto_rate else self.learning_rate
        return {"batch_size": size, "momentum": self.momentum, "rate": rate}

    def _check(self) -> None:
        """The parameters that depend on no data."""
        parameters.one_of("solver", self.solver, ("lbfgs", "newton-cg", "sgd"))
        parameters.real("C", self.C, 0, math.inf, ends="(]")
        parameters.real("tol", self.tol, 0, math.inf, ends="[)")
        parameters.real("label_smoothing", self.label_smoothing, 0, 1, ends="[]")
        parameters.real("momentum", self.momentum, 0, 1, ends="[)")
        parameters.integer("max_iter", self.max_iter, 1)
        if not parameters.is_word(self.batch_size, "auto"):
            parameters.integer("batch_size", self.batch_size, 1, or_else='"auto"')
        if not parameters.is_switch(self.verbose):
            parameters.integer("verbose", self.verbose, 0)
        parameters.switch("fit_intercept", self.fit_intercept)
        parameters.switch("warm_start", self.warm_start)
        if not parameters.is_word(self.learning_rate, "auto"):
            parameters.real("learning_rate", self.learning_rate, 0, math.inf, ends="()", or_else='"auto"')
        parameters.class_weight(self.class_weight)
