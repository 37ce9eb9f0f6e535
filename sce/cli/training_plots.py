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
    made = _figure(
        f"{result.data.name}: the objective while training",
        f"{model.solver}, {model.n_iter_} {'epochs' if per_epoch else 'steps'}; down to {losses[-1]:.4g},"
        " penalty included",
        7.2,
        4.2,
    )
    axes = made.subplots()
    axes.plot(x, losses, color=_BLUE, marker="o", markersize=4, markeredgecolor="white")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.log_axis(axes.yaxis, losses.min() / 1.2, losses.max() * 1.2, "{:g}")
    axes.set_xlabel("epoch" if per_epoch else "step")
    axes.set_ylabel("mean loss and penalty, nats")
    return made


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
    """As fitted, and beside it with the temperature, if there is one."""
    panels = {"as fitted": (result.judged["test"].reliability, _ORANGE)}
    if result.calibrated:
        calibrated = result.judged["test, calibrated"].reliability
        panels[f"temperature {result.model.temperature_:.3g}"] = calibrated, _BLUE
    made = _figure(
        f"{result.data.name}: can its confidence be believed?",
        "Above the line, more predictions are right than it says; below, fewer. Bars: how many rows.",
        9.6 if len(panels) > 1 else 7.0,
        5.0,
    )
    axes = made.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (title, (found, color)) in zip(axes, panels.items(), strict=True):
        _diagram(panel, found, color)
        panel.set_title(f"{title}: calibration error {found.error:.3f}")
    axes[0].set_ylabel("share that is right")
    return made


def _diagram(axes: Axes, found: Reliability, color: str) -> None:
    bins = len(found.weight)
    middles = (np.arange(bins) + 0.5) / bins
    axes.bar(middles, found.weight / found.weight.sum(), 0.9 / bins, color=style.FAINT, zorder=1)
    for middle, count in zip(middles, found.weight, strict=True):
        if count:
            share = count / found.weight.sum()
            at = 0.01 if share > 0.1 else share + 0.01  # in a tall bar, out of the line's way
            axes.text(middle, at, f"{count:g}", ha="center", color=style.MUTED, fontsize=7.5, zorder=4)
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
    axes.set_ylim(0, 1.02)
    axes.set_aspect("equal")
    axes.set_xlabel("mean probability of the predicted class")
