"""The plots of `sce train`: how the loss fell, what is taken for what, how far confidence can be believed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sce.bench.plots import style
from sce.information import Reliability

from .train import Training, confusion

_BLUE, _ORANGE = "#0063a8", "#c44e00"  # Okabe and Ito's, darkened, as in the benches

_GREY = "#b9c0c8"
_TICKS = 4  # on a logarithmic axis, at least


def draw(result: Training, directory: Path) -> list[Path]:
    plots: dict[str, Callable[[Training], Figure]] = {
        "loss": _loss,
        "confusion": _confusion,
        "reliability": _reliability,
    }
    written = []
    with style.applied():
        for name, plot in plots.items():
            written.append(directory / f"{result.data.name}-{name}.png")
            plot(result).savefig(written[-1])
    return written


def _figure(title: str, subtitle: str, width: float, height: float) -> Figure:
    made = Figure(figsize=(width, height))
    made.text(0.02, 1 - 0.14 / height, title, fontsize=13, fontweight="bold", va="top")
    made.text(0.02, 1 - 0.44 / height, subtitle, color=style.MUTED, va="top")
    made.set_layout_engine("constrained", rect=(0.02, 0.02, 0.96, 0.98 - 0.78 / height))
    return made


def _loss(result: Training) -> Figure:
    model = result.model
    losses = model.loss_curve_
    per_epoch = model.solver == "sgd"
    x = np.arange(len(losses)) + per_epoch
    unit = "epochs" if per_epoch else "steps"
    made = _figure(
        f"{result.data.name}: the objective while training",
        f"{model.solver}, {model.n_iter_} {unit}; down to {result.objective:.4g}, penalty included",
        7.2,
        4.2,
    )
    axes = made.subplots()
    axes.plot(x, losses, color=_BLUE, marker="o", markersize=4, markeredgecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _log_axis(axes, losses.min() / 1.1, losses.max() * 1.1)
    axes.set_xlabel("epoch" if per_epoch else "step")
    axes.set_ylabel("mean loss and penalty, nats")
    return made


def _log_axis(axes: Axes, low: float, high: float) -> None:
    """Ticks as close as it takes to have some: a loss may fall by a factor of 100, or by a third."""
    style.log_axis(axes.yaxis, low, high, "{:g}")
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), np.arange(1, 10, 0.5)):
        if np.count_nonzero((axes.get_yticks() >= low) & (axes.get_yticks() <= high)) >= _TICKS:
            return
        axes.set_yticks([tick for tick in np.outer(decades, digits).ravel() if low <= tick <= high])
    if len(axes.get_yticks()) < _TICKS:
        axes.yaxis.set_major_locator(MaxNLocator(_TICKS + 1))


def _confusion(result: Training) -> Figure:
    counts = confusion(result)
    classes = result.data.classes
    test = result.judged["test"]
    size = 2.6 + 0.36 * len(classes)
    made = _figure(
        f"{result.data.name}: confusion",
        f"{test.rows} rows to test, {test.accuracy:.1%} of them right",
        max(size, 4.4),
        max(size, 4.4) + 0.4,
    )
    axes = made.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, column] > 0.5 else style.INK
            axes.text(column, row, f"{count}", ha="center", va="center", color=color, fontsize=8.5)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(visible=False)
    return made


def _reliability(result: Training) -> Figure:
    """As fitted, and beside it with the temperature, if there is one; beneath, the rows of each bin."""
    panels = {"as fitted": (result.judged["test"].reliability, _ORANGE)}
    if not result.uncalibrated:
        calibrated = result.judged["test, calibrated"].reliability
        panels[f"temperature {result.model.temperature_:.3g}"] = calibrated, _BLUE
    made = _figure(
        f"{result.data.name}: can its confidence be believed?",
        "Above the diagonal, more predictions are right than it says; below, fewer.",
        9.6 if len(panels) > 1 else 5.4,
        6.2,
    )
    axes = made.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
    for (above, beneath), (title, (found, color)) in zip(axes.T, panels.items(), strict=True):
        _diagram(above, found, color)
        above.set_title(f"{title}: calibration error {found.error:.3f}")
        _counts(beneath, found)
    axes[0, 0].set_ylabel("share of the rows that is right")
    axes[1, 0].set_ylabel("rows")
    return made


def _diagram(axes: Axes, found: Reliability, color: str) -> None:
    axes.plot([0, 1], [0, 1], color=style.MUTED, linewidth=1.0, zorder=2)
    there = found.weight > 0
    axes.plot(
        found.confidence[there],
        found.accuracy[there],
        color=color,
        marker="o",
        markeredgecolor="white",
        zorder=3,
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.02)


def _counts(axes: Axes, found: Reliability) -> None:
    """A bar for each bin, its number on top of it."""
    bins = len(found.weight)
    middles = (np.arange(bins) + 0.5) / bins
    axes.bar(middles, found.weight, 0.9 / bins, color=_GREY)
    for middle, count in zip(middles, found.weight, strict=True):
        if count:
            axes.annotate(
                f"{count:g}", (middle, count), (0, 2), textcoords="offset points", ha="center",
                color=style.INK, fontsize=7.5,
            )  # fmt: skip
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.3 * found.weight.max()))
    axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    axes.set_xlabel("probability of the predicted class")
