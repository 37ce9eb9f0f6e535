"""Three ways to the minimum: L-BFGS, Newton's method by conjugate gradients, and mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from scipy.optimize import minimize

from .objective import Floats, Objective
from .scaling import Scaling, remaining, scaling

# Steps of L-BFGS in the first coordinates, and in the second; each later round doubles it. At W = 0 every row
# bends the loss as much as it can; soon, few do: the first coordinates take a tenth of it.
_FIRST, _SECOND, _SOON = 5, 20, 0.1
_INNER = 200  # conjugate gradients of one step of Newton's method
_STALE = 6  # of those: with more in a step, its coordinates are too old; new ones cost about as much
_LEAST = 4 * np.finfo(np.float64).eps  # a relative fall of the objective that is none
_FALL = 1e-4  # of what the slope promises, to accept a step (Armijo)
_PATIENCE = 5  # epochs without a lower loss, after which the steps of mini-batches shrink
_SHRINK, _SMALLEST = 5.0, 2e-3  # by how much, and down to which share of the first
# What may be left to fall where mini-batches end: this share of the objective, and of the way down from the
# start, or so many times tol. On digits, iris, wine and breast_cancer up to 3 % are left if they are scaled,
# 17 % to 81 % if not.
_LEFT, _LEFT_TOL = 0.1, 10.0


class Trace:
    """How a fit went: the objective at its start and after each step (of mini-batches: in each epoch)."""

    def __init__(self, tol: float, max_iter: int, verbose: int) -> None:
        self.tol, self.max_iter, self.verbose = tol, max_iter, verbose
        self.losses: list[float] = []
        self.steps = 0
        self.slope = math.nan  # the largest entry of the last gradient
        self.gap = math.nan  # what the objective is estimated to lie above its minimum, where that was asked
        self.converged = False
        self.trouble: Literal["steps", "rounding", "diverged", "far"] = "steps"  # if not converged

    @property
    def over(self) -> bool:
        return self.converged or self.steps >= self.max_iter

    def start(self, loss: float, grad: Floats) -> None:
        self._add(loss, grad)

    def step(self, loss: float, grad: Floats | None = None) -> None:
        self.steps += 1
        self._add(loss, grad)

    def _add(self, loss: float, grad: Floats | None) -> None:
        self.losses.append(loss)
        if grad is not None:
            self.slope = float(np.abs(grad).max())
            self.converged = self.slope <= self.tol
        if self.verbose:
            print(progress(self.steps, loss, None if grad is None else self.slope))


def _noise(objective: Objective, loss: float) -> float:
    """What rounding may hide of F. Logarithms near 0 are rounded as 1 is, so no less than of 1 nat."""
    return 16 * float(np.finfo(objective.x.dtype).eps) * max(abs(loss), 1.0)


def _stalled(objective: Objective, w: Floats, trace: Trace) -> None:
    """No fall of F can be seen any more. Is it the minimum?

    If no more is left than rounding may hide, or than a gradient of tol leaves where the Hessian is I.
    """
    loss, grad = objective(w)
    trace.gap, trace.trouble = remaining(objective, w, grad), "rounding"
    trace.converged |= trace.gap <= max(_noise(objective, loss), trace.tol**2 / 2)


def progress(steps: int, loss: float, slope: float | None = None) -> str:
    """A line for whoever asked for them with `verbose`."""
    end = "" if slope is None else f", largest entry of its gradient {slope:.3g}"
    return f"{steps}: loss {loss:.8g}{end}"


class _Over(Exception):
    """Leaves SciPy's loop from its callback: StopIteration does that from SciPy 1.11 on only."""


def lbfgs(objective: Objective, w: Floats, trace: Trace) -> Floats:
    """SciPy's L-BFGS-B, in coordinates that are made anew after 5, 25, 65, ... steps.

    In the features' own coordinates it would need hundreds of steps where they are correlated or of several
    magnitudes. The test for the end is in those, though: the largest entry of the gradient by W.
    """
    trace.start(*objective(w))
    length, stalls, expected = _FIRST, 0, _SOON
    while not trace.over and stalls < 2:
        w, stalled = _round(objective, w, trace, length, scaling(objective, w, expected))
        stalls = stalls + 1 if stalled else 0  # by rounding, maybe: new coordinates may help once
        length, expected = max(_SECOND, 2 * length), 1.0
    if stalls == 2:
        _stalled(objective, w, trace)
    return w


def _round(objective: Objective, w: Floats, trace: Trace, length: int, easy: Scaling) -> tuple[Floats, bool]:
    """So many steps, or until it is over; or until SciPy sees no fall of the objective any more: True."""
    seen = math.nan, w, w

    def value(flat: Floats) -> tuple[float, Floats]:
        nonlocal seen
        at = easy.parameters(flat.reshape(objective.shape))
        loss, grad = objective(at)
        seen = loss, grad, at
        return loss, easy.gradient(grad).ravel()

    def stepped(_: Floats) -> None:
        nonlocal w
        loss, grad, w = seen  # a step ends at the point that was evaluated last
        trace.step(loss, grad)
        if trace.over:
            raise _Over

    try:
        found = minimize(
            value,
            easy.coordinates(w).ravel(),
            jac=True,
            method="L-BFGS-B",
            callback=stepped,
            options={"maxiter": length, "maxfun": 100 * length, "maxls": 50, "gtol": 0.0, "ftol": _LEAST},
        )
    except _Over:
        return w, False
    return w, found.status != 1  # 1: out of steps


def newton_cg(objective: Objective, w: Floats, trace: Trace) -> Floats:
    """Newton's method, each step solved for by conjugate gradients, in coordinates made anew as they age."""
    easy, inner = scaling(objective, w), 0
    loss, grad = objective(w)
    trace.start(loss, grad)
    noise = 16 * float(np.finfo(objective.x.dtype).eps)
    while not trace.over:
        if inner > _STALE:
            easy = scaling(objective, w)
        objective.around(w)

        def times(v: Floats, easy: Scaling = easy) -> Floats:
            return easy.gradient(objective.curvature(easy.parameters(v)))

        downhill = -easy.gradient(grad)
        found, inner = _conjugate_gradients(times, downhill)
        step = easy.parameters(found)
        slope, length = float(np.vdot(grad, step)), 1.0
        while length > 1e-10:
            at = w + length * step
            ahead, grad_ahead = objective(at)
            # Next to the minimum rounding hides the fall of the loss: there a smaller slope will do.
            hidden = abs(ahead - loss) <= noise * abs(loss)
            less = abs(np.vdot(grad_ahead, step)) <= 0.9 * abs(slope)
            if ahead <= loss + _FALL * length * slope or (hidden and less):
                break
            length /= 2
        else:  # no step is visible any more
            _stalled(objective, w, trace)
            break
        if hidden and np.linalg.norm(easy.gradient(grad_ahead)) > 0.5 * np.linalg.norm(downhill):
            _stalled(objective, w, trace)  # rounding is all that is left of the gradient, too
            break
        w, loss, grad = at, ahead, grad_ahead
        trace.step(loss, grad)
    return w


def _conjugate_gradients(times: Callable[[Floats], Floats], right: Floats) -> tuple[Floats, int]:
    """x with A x = right to a residual of min(1/2, |right|^(1/2)) |right|, and in how many steps.

    That is as exact as Newton's method needs to converge superlinearly (Dembo, Eisenstat and Steihaug, 1982).
    """
    x = np.zeros_like(right)
    residual, direction = right.copy(), right.copy()
    square = float(np.vdot(right, right))
    enough = min(0.25, math.sqrt(square)) * square
    steps = 0
    while steps < _INNER:
        steps += 1
        moved = times(direction)
        bend = float(np.vdot(direction, moved))
        if bend <= 0:  # rounding: the Hessian has no negative curvature
            break
        x += square / bend * direction
        residual -= square / bend * moved
        before, square = square, float(np.vdot(residual, residual))
        if square <= enough:
            break
        direction *= square / before
        direction += residual
    return x if x.any() else right, steps


@np.errstate(over="ignore", invalid="ignore")  # an error says so below
def epoch(
    objective: Objective,
    w: Floats,
    velocity: Floats,
    rng: np.random.RandomState,
    *,
    batch_size: int,
    momentum: float,
    rate: float,
) -> float:
    """One pass over the rows in a random order: w and velocity change in place. The mean loss of the batches.

    v <- momentum v - rate g, w <- w + v (Polyak, 1964).
    """
    total, order = 0.0, rng.permutation(objective.rows)
    for first in range(0, objective.rows, batch_size):
        rows = order[first : first + batch_size]
        loss, grad = objective.batch(w, rows)
        velocity *= momentum
        velocity -= rate * grad
        w += velocity
        total += loss * len(rows)
    if not (math.isfinite(total) and np.isfinite(w).all()):
        raise ValueError(
            f"an epoch of loss {total / objective.rows:.3g} led nowhere: steps of {rate:.3g} are too large."
            ' Lower learning_rate, or leave it at "auto".'
        )
    return total / objective.rows


def stable_rate(objective: Objective, batch_size: int) -> float:
    """A step that mini-batches of this size can take: 1 over how fast their gradient can change.

    For b of N rows that is N (b - 1) / (b (N - 1)) L + (N - b) / (b (N - 1)) L_max, where L is the largest
    curvature of the mean and L_max that of a row (Gower et al., 2019, "SGD: general analysis and improved
    rates"). A row's is at most (|x|^2 + 1) / 2 times its weight, because diag(p) - p p^T has no eigenvalue
    above 1/2.
    """
    n, b = objective.rows, min(batch_size, objective.rows)
    mean, row = objective.largest_curvatures()
    smooth = row if n == 1 else (n * (b - 1) * mean + (n - b) * row) / (b * (n - 1))
    return float(1 / smooth)


@np.errstate(over="ignore", invalid="ignore")  # where it went astray: those parameters are not kept
def sgd(
    objective: Objective,
    w: Floats,
    trace: Trace,
    rng: np.random.RandomState,
    *,
    batch_size: int,
    momentum: float,
    rate: float,
) -> Floats:
    """Epochs of mini-batches. When the loss fell by less than tol for five of them, the steps shrink.

    Idle epochs are no proof of a minimum: of features of several magnitudes the small ones hardly move. So
    what is left to fall is estimated at the end. Returned are the best of the parameters at the start, after
    the epoch of the lowest loss, and at the end.
    """
    start, best, best_w = w.copy(), math.inf, w
    velocity, idle, share = np.zeros_like(w), 0, 1.0
    while not trace.over:
        loss = epoch(objective, w, velocity, rng, batch_size=batch_size, momentum=momentum, rate=share * rate)
        trace.step(loss)
        idle = 0 if loss < best - trace.tol else idle + 1
        if loss < best:
            best, best_w = loss, w.copy()
        if idle == _PATIENCE:
            idle, share = 0, share / _SHRINK
            trace.converged = share < _SMALLEST
    return _judged(objective, [start, best_w, w], trace)


def _judged(objective: Objective, places: list[Floats], trace: Trace) -> Floats:
    """The best of the start and later places; whether that is near enough to the minimum."""
    losses, grads = zip(*map(objective, places), strict=True)
    at = min(range(len(places)), key=lambda n: math.inf if math.isnan(losses[n]) else losses[n])
    trace.slope = float(np.abs(grads[at]).max())
    trace.gap = remaining(objective, places[at], grads[at])
    all_of_it = losses[0] - losses[at] + trace.gap  # how far down it is from the start
    if trace.gap > max(_LEFT * min(losses[at], all_of_it), _LEFT_TOL * trace.tol):
        if at == 0 and trace.steps >= _PATIENCE:  # the first few may go up before they go down
            trace.trouble, trace.converged = "diverged", False
        elif trace.converged:
            trace.trouble, trace.converged = "far", False
    return places[at]
