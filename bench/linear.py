"""Measure the linear model: time and peak memory against bare matrix products, PyTorch and JAX.

python bench/linear.py [--quick] [--json FILE] [docs/benchmarks.md]

The tables go into the page, between this script's marks (or at its end, where there are none). Each
contestant has a process of its own for each shape. `--quick` leaves out the largest shape, which takes most
of the time: a quarter of an hour on two quiet cores, and 15 GB for who holds all logits. `--json` keeps every
figure.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sce import machine
from sce.bench import linear
from sce.bench.cold.fresh import Reply, ask
from sce.bench.cold.worker import why_no_memory
from sce.bench.linear import LinearTask
from sce.bench.markdown import number, put, table, text

PATIENCE = 3600.0  # seconds for a process: the largest shape takes half a minute a call, some calls each
_AGREE = 1e-3  # of the largest number of a gradient: who is further off ours is wrong
ABOUT = """\
Mean cross-entropy of the linear model X W, float32, without a bias, with the gradients of X and W. What
limits it are three products of matrices, X W, G W^T and X^T G; so the scale of this page is

- **over bare products**: the time of a call over that of the products alone, over the same chunks of rows,
  into memory that exists, measured in turns in the same process. X^T G is added up over the chunks
  by NumPy, block by block. Products vary by some percent from call to call: below 1 is no more than that.
- **GFLOP/s**: 6 N D C operations over the time of a call.
- **extra memory**: the peak of a warm call beyond its inputs and its answer, in a process of its own. What
  all logits would take stands above each table.
- **likelihood**: the loss alone, one product.

Times are medians of alternating rounds, with their quartiles; **calls** says of how many: of calls that take
longer than 10 seconds there are one or two. Losses and 64 numbers of each gradient were compared between all
contestants.
"""
Found = dict[str, Reply]


def section(document: dict[str, Any], command: str) -> str:
    """Of the page of benchmarks."""
    facts = document["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    settings = {k: v for k, v in document["environment"].items() if not {"/", "\\"} & set(v)}
    lines = [
        ("machine", f"{facts['processor']}, {facts['usable_cores']} cores, {facts['threads']} threads"),
        ("system", facts["system"]),
        ("commit", f"`{document['commit']}`" if document["commit"] else ""),
        ("versions", versions),
        ("environment", ", ".join(f"`{name}={value}`" for name, value in settings.items())),
        ("command", f"`{command}`"),
    ]
    parts = ["## The linear model", ABOUT, table(("", ""), [line for line in lines if line[1]], words=(0, 1))]
    for shape in document["shapes"]:
        parts += _section(LinearTask(**shape["task"]), shape["contestants"])
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _section(task: LinearTask, found: dict[str, Any]) -> Iterator[str]:
    yield f"### {task.n} rows, {task.d} features, {task.c} classes: {task.about}"
    yield f"All logits: {number(task.logits / 1e6)} MB. Products: {number(task.flops / 1e9)} GFLOP."
    header = (
        "", "loss and gradients", "quartiles", "calls", "GFLOP/s", "over bare products", "extra memory",
        "likelihood", "over bare products", "extra memory",
    )  # fmt: skip
    lines, absent = [], []
    for name, reply in found.items():
        if reply["status"] != "ok":
            absent.append(f"- **{name}**: {reply['status']}: {text(reply['why'])}")
            continue
        figures = reply["figures"]
        took = statistics.median(figures["gradients"])
        lines.append(
            [
                name,
                _seconds(figures["gradients"]),
                _quartiles(figures["gradients"]),
                str(len(figures["gradients"])),
                number(task.flops / took / 1e9),
                _over(figures, "gradients"),
                _megabytes(figures, "gradients"),
                _seconds(figures["likelihood"]),
                _over(figures, "likelihood"),
                _megabytes(figures, "likelihood"),
            ]
        )
    yield table(header, lines)
    if absent:
        yield "\n".join(["Not measured:", "", *absent])


def _over(figures: dict[str, Sequence[float]], what: str) -> str:
    """The median of the rounds' quotients: each round's two calls were neighbours in time."""
    if f"bare {what}" not in figures:
        return ""
    pairs = zip(figures[what], figures[f"bare {what}"], strict=False)
    return number(statistics.median(a / b for a, b in pairs))


def _megabytes(figures: dict[str, Sequence[float]], what: str) -> str:
    found = figures.get(f"memory of {what}")
    return "" if found is None else f"{number(max(found) / 1e6)} MB"


def _seconds(values: Sequence[float]) -> str:
    return _unit(statistics.median(values))


def _quartiles(values: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{_unit(low)} - {_unit(high)}"


def _unit(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds >= 1 else f"{number(1e3 * seconds)} ms"


def agreed(found: Found) -> Found:
    """Whoever is far from ours has no times."""
    ours = found["sce"].figures if "sce" in found else {}
    if not ours:
        return found
    return {name: _judged(reply, ours) for name, reply in found.items()}


def _judged(reply: Reply, ours: dict[str, list[float]]) -> Reply:
    if reply.status != "ok":
        return reply
    for name in ("loss", "dX", "dW"):
        want, got = np.array(ours[name]), np.array(reply.figures[name])
        if not np.abs(got - want).max() <= _AGREE * np.abs(want).max():
            return Reply("failed", f"its {name} is not ours")
    return reply


def measured(tasks: Iterable[LinearTask]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        found: Found = {}
        for contestant in linear.contestants():
            typer.echo(f"{task}: {contestant.name}", err=True)
            found[contestant.name] = ask(linear.measure, contestant, task, patience=PATIENCE)
        replies = {name: reply._asdict() for name, reply in agreed(found).items()}
        yield {"task": task._asdict(), "contestants": replies}


def main(
    target: Annotated[Path, typer.Argument(metavar="PAGE", help="The page that the tables go into.")] = Path(
        "docs/benchmarks.md"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Without the largest shape.")] = False,
    keep: Annotated[Path | None, typer.Option("--json", help="Where every figure goes.")] = None,
) -> None:
    """Measure the linear model against bare matrix products, PyTorch and JAX; the tables go into the page."""
    if why := why_no_memory():
        typer.echo(f"Error: {why}", err=True)
        raise typer.Exit(2)
    document = {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "environment": machine.environment(),
        "shapes": list(measured(linear.TASKS[1:] if quick else linear.TASKS)),
    }
    if keep is not None:
        keep.write_text(json.dumps(document, indent=1), encoding="utf-8")
    command = "python bench/linear.py" + (" --quick" if quick else "")
    before = target.read_text("utf-8") if target.exists() else ""
    target.write_text(put(before, "bench/linear.py", section(document, command)), encoding="utf-8")
    typer.echo(f"{target} written.")


if __name__ == "__main__":
    typer.run(main)
