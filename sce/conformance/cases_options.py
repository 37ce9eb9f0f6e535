"""Every option alone, at its notable values, and every pair of options: each dtype, both targets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from sce.backend import DTYPES, Array

from . import data
from .case import BOTH, FULL, LOSS, Case, cast, unavailable

_ROWS, _CLASSES = 10, 13
_IGNORED = 4  # a legal class, which then leaves rows out


class _Setting(NamedTuple):
    """One option at one value. `pair`: it stands for its option in the pairs."""

    option: str
    name: str
    value: Any
    pair: bool = True


def _settings() -> tuple[_Setting, ...]:
    rng = data.generator("settings")
    signed = rng.normal(size=_ROWS)
    signed[3] = 0
    mixed = rng.normal(size=_CLASSES)
    mixed[[2, _CLASSES - 1]] = 0
    bias = rng.normal(size=_CLASSES)
    masked = np.where(np.arange(_CLASSES) == _CLASSES - 1, -np.inf, bias)
    return (
        _Setting("class_weight", "class weights", rng.uniform(0.5, 2, _CLASSES)),
        _Setting("class_weight", "signed class weights", mixed),
        _Setting("class_weight", "integer class weights", np.arange(_CLASSES), False),
        _Setting("class_weight", "float32 class weights", np.linspace(0.1, 9, _CLASSES, dtype="f4"), False),
        _Setting("class_weight", "large class weights", rng.uniform(1e3, 1e4, _CLASSES), False),
        _Setting("sample_weight", "sample weights", rng.uniform(0.5, 2, _ROWS)),
        _Setting("sample_weight", "signed sample weights", signed),
        _Setting("sample_weight", "integer sample weights", np.arange(_ROWS) % 3, False),
        _Setting("sample_weight", "small sample weights", rng.uniform(1, 2, _ROWS) * 1e-6, False),
        _Setting("ignore_index", "ignore a class", _IGNORED),
        _Setting("ignore_index", "ignore -100", -100),
        _Setting("ignore_index", "ignore what is not there", 2**40, False),
        _Setting("label_smoothing", "smoothing 0.1", 0.1),
        _Setting("label_smoothing", "smoothing 1", 1.0, False),
        _Setting("label_smoothing", "smoothing 1e-3", 1e-3, False),
        _Setting("temperature", "temperature 0.7", 0.7),
        _Setting("temperature", "temperature 4", 4.0, False),
        _Setting("softcap", "soft cap 5", 5.0),
        _Setting("softcap", "soft cap 30", 30.0, False),
        _Setting("logit_bias", "bias", bias),
        _Setting("logit_bias", "bias with -inf", masked),
        _Setting("z_loss", "z-loss 1e-2", 1e-2),
        _Setting("z_loss", "z-loss 1e-4", 1e-4, False),
        _Setting("reduction", "none", "none"),
        _Setting("reduction", "sum", "sum"),
        _Setting("reduction", "mean", "mean", False),
        _Setting("denominator", "denominator 7.5", 7.5),
        _Setting("denominator", "denominator -3", -3.0, False),
        _Setting("empty", "empty zero", "zero"),
        _Setting("grad_scale", "gradient scale 1000", 1000.0),
        _Setting("grad_scale", "gradient scale -0.3", -0.3, False),
        _Setting("out", "own out", "own", False),
        _Setting("out", "in place", "in place"),
        _Setting("out", "float32 out", "float32"),
        _Setting("out", "strided out", "strided", False),
        _Setting("validate", "not validated", False),
    )


def options() -> Iterator[Case]:
    settings = _settings()
    in_pairs = [s for s in settings if s.pair]
    for dtype in DTYPES:
        for kind in ("index", "distribution"):
            for setting in settings:
                for outputs in (FULL, BOTH, LOSS):
                    yield from _case("options", dtype, kind, (setting,), outputs, "none")
                yield from _case("options", dtype, kind, (setting,), FULL, "mean")
            for two in combinations(in_pairs, 2):
                yield from _case("pairs", dtype, kind, two, BOTH, "mean")
            everything = tuple(s for s in settings if s.name in _TOGETHER)
            for outputs in (FULL, BOTH, LOSS):
                yield from _case("options", dtype, kind, everything, outputs, "none")
    for function in ("softmax", "log_softmax", "logsumexp"):
        yield from _temperatures(function)


_TOGETHER = (
    "signed class weights",
    "signed sample weights",
    "ignore a class",
    "smoothing 0.1",
    "temperature 0.7",
    "soft cap 30",
    "bias",
    "z-loss 1e-2",
    "gradient scale 1000",
)


def _case(
    group: str,
    dtype: str,
    kind: str,
    settings: tuple[_Setting, ...],
    outputs: tuple[str, ...],
    reduction: str,
) -> Iterator[Case]:
    """One case, or none where the settings do not go together."""
    chosen: dict[str, Any] = {"reduction": reduction}
    chosen.update((s.option, s.value) for s in settings)
    if kind == "distribution":
        chosen.pop("ignore_index", None)
    out = chosen.pop("out", None)
    together = len({s.option for s in settings}) == len(settings)
    together &= kind == "index" or len(settings) > 2 or all(s.option != "ignore_index" for s in settings)
    if "denominator" in chosen and len(settings) == 1:
        chosen["reduction"] = "mean"
    together &= "denominator" not in chosen or chosen["reduction"] == "mean"
    together &= out is None or "grad" in outputs
    together &= out != "float32" or dtype in ("float16", "bfloat16")
    if not together:
        return
    title = " + ".join(s.name for s in settings)
    name = f"{dtype} {kind} {title} ({reduction}, {len(outputs)} outputs)"
    x, y = _input(dtype, kind, chosen.get("ignore_index"), mask="label_smoothing" not in chosen)
    yield Case(group, name, x, y, chosen, outputs, out=out, skip=unavailable(dtype))


def _input(dtype: str, kind: str, ignore: int | None, mask: bool) -> tuple[Array, Array]:
    """A row sure of its label, one sure of another class, rows to ignore, and one with a masked class.

    Smoothing would make the loss of that last row infinite, and hide the other rows of a mean.
    """
    rng = data.generator(f"options {dtype} {kind}")
    labels = data.index(rng, _ROWS, _CLASSES - 1)  # the last class is the one that biases remove
    x = data.confident(data.normal(rng, _ROWS, _CLASSES), labels)
    if mask:
        x[4, _CLASSES - 2 if labels[4] != _CLASSES - 2 else 0] = -np.inf
    if kind == "distribution":
        y = data.simplex(rng, _ROWS, _CLASSES)
        y[:, -1] = 0
        y[0] = np.arange(_CLASSES) == labels[0]
        y[x == -np.inf] = 0
        return cast(x, dtype), cast(y, "float64" if dtype == "float64" else "float32")
    if ignore is not None and abs(ignore) <= 100:
        labels[[5, 7]] = ignore
        x[5, 3] = np.nan
    return cast(x, dtype), labels


def _temperatures(function: str) -> Iterator[Case]:
    outputs = {"softmax": ("grad",), "log_softmax": ("log_softmax",), "logsumexp": ("lse",)}[function]
    for dtype in DTYPES:
        for temperature in (0.25, 0.7, 3.0):
            name = f"{dtype} {function} at temperature {temperature}"
            x = cast(data.normal(data.generator(name), 9, 21), dtype)
            yield Case(
                "options",
                name,
                x,
                None,
                {"temperature": temperature},
                outputs,
                (),
                function,
                skip=unavailable(dtype),
            )
