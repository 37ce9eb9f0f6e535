"""Alternating rounds: a machine that slows down slows every contestant."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)

_TURN = 1e-3  # seconds that a turn lasts at least: shorter calls are repeated within it
_SETTLE = 3e-3  # after a turn: OpenMP's threads spin for a while, and would disturb the next one


class Rounds(NamedTuple):
    """When to stop, per contestant: at least `least` turns and `enough` seconds, at most the other two."""

    least: int = 7
    enough: float = 0.2
    most: int = 2000
    patience: float = 2.0

    def done(self, turns: int, spent: float) -> bool:
        if turns >= self.most or (spent >= self.patience and turns >= min(3, self.least)):
            return True
        return turns >= self.least and spent >= self.enough


ROUNDS = Rounds()


class Times(NamedTuple):
    """Seconds per call, a number for each turn."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def alternate(calls: Mapping[K, Callable[[], Any]], rounds: Rounds = ROUNDS) -> dict[K, Times]:
    """Time the calls, one turn of each after the other. They have been called before: nothing compiles.

    A call longer than the patience has one turn, its first: NumPy takes ten seconds for what others do in
    half precision in a tenth of one.
    """
    repeats: dict[K, int] = {}
    seconds: dict[K, list[float]] = {}
    for key, call in calls.items():
        repeats[key], took = _repeats(call)
        seconds[key] = [took] if repeats[key] == 1 and took > rounds.patience else []
    spent = dict.fromkeys(calls, 0.0)
    waiting = [key for key in calls if not seconds[key]]
    while waiting:
        for key in waiting:
            time.sleep(_SETTLE)
            took = _turn(calls[key], repeats[key])
            seconds[key].append(took / repeats[key])
            spent[key] += took
        waiting = [key for key in waiting if not rounds.done(len(seconds[key]), spent[key])]
    return {key: Times(tuple(found)) for key, found in seconds.items()}


def _turn(call: Callable[[], Any], repeats: int) -> float:
    if repeats > 1:
        call()  # what another contestant pushed out of the caches comes back before the clock starts
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return time.perf_counter() - began


def _repeats(call: Callable[[], Any]) -> tuple[int, float]:
    """How many calls make a turn, and how long that turn took."""
    repeats = 1
    while (took := _turn(call, repeats)) < _TURN:
        repeats = min(2 * repeats, 1 + int(1.2 * repeats * _TURN / max(took, 1e-9)))
    return repeats, took
