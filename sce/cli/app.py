"""The commands and their options. What they do is in the modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sce import __version__

from .files import STDOUT, UsageError, logits_and_target, one_array, outputs

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help and plain one-line errors, the same in a terminal and in a log
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend", metavar="NAME", help="Only this backend: a name or an import path. Repeatable."
    ),
]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the result as JSON; to standard output: -."),
]


def _file(option: str, text: str) -> Any:
    return typer.Option(option, metavar="FILE", help=text)


@app.callback(invoke_without_command=True)
def sce(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Softmax cross-entropy: loss and exact gradient in one pass, on the backend you choose.

    \b
    sce compare                         real logits, every backend, one table
    sce compare logits.npy labels.npy   the same for your own
    sce check                           is every backend right on this machine?
    sce bench --quick --peers           how fast, against the machine's limit and everyone else
    sce train digits --plot plots       softmax regression on real data, calibrated and drawn
    sce info                            what to paste into a bug report
    """
    if version:
        typer.echo(f"sce {__version__}")
        raise typer.Exit


@app.command("compare")
def compare_command(
    logits: Annotated[
        Path | None, typer.Argument(metavar="LOGITS", help=".npy, or .npz with arrays logits and target.")
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="TARGET", help="Labels or distributions: .npy or .npz.")
    ] = None,
    backend: Backends = None,
    json: Json = None,
    grad: Annotated[
        Path | None, _file("--grad", "Write the gradient as .npy: that of the first backend that agrees.")
    ] = None,
    axis: Annotated[int, typer.Option(help="The class axis.")] = -1,
    ignore_index: Annotated[int | None, typer.Option(help="Leave out rows with this label.")] = None,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1].")] = 0.0,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    softcap: Annotated[float | None, typer.Option(help="Soft cap of the logits.")] = None,
    z_loss: Annotated[float, typer.Option(help="Factor of logsumexp squared.")] = 0.0,
    reduction: Annotated[str, typer.Option(metavar="mean|sum", help="How rows are reduced.")] = "mean",
    denominator: Annotated[float | None, typer.Option(help="Replaces that of the mean.")] = None,
    class_weight: Annotated[Path | None, _file("--class-weight", "A .npy of shape (C,).")] = None,
    sample_weight: Annotated[Path | None, _file("--sample-weight", "A .npy shaped like the rows.")] = None,
    logit_bias: Annotated[Path | None, _file("--logit-bias", "A .npy of shape (C,).")] = None,
) -> None:
    """Loss and gradient on every backend of this machine: checked against the reference, timed, one table.

    Without files the logits are those of a softmax classifier, fitted on scikit-learn's digits.

    \b
    loss, accuracy  as this backend computes them
    max ulp         largest error of loss and gradient, in units of the last place of
                    their dtype; the bounds are those of sce.conformance
    time            median of one call of loss_and_grad(..., out=)
    GB/s            bytes that must move: logits read, gradient written, target read
    of copy         GB/s over that of np.copyto from logits to gradient, measured in the same run
    speed-up        over the reference, which always runs

    \b
    sce compare
    sce compare logits.npy labels.npy --backend cpu --json result.json
    sce compare both.npz --axis 1 --ignore-index -100 --grad grad.npy

    Exit status: 1 if a backend disagrees or a named one does not run, 2 for bad input.
    """
    with _one_line_errors():
        from . import compare, demo, tables

        json_file, grad_file = outputs(
            (json, "--json"),
            (grad, "--grad"),
            inputs=(logits, target, class_weight, sample_weight, logit_bias),
        )
        options: dict[str, Any] = {
            "axis": axis,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "temperature": temperature,
            "softcap": softcap,
            "z_loss": z_loss,
            "reduction": reduction,
            "denominator": denominator,
        }
        files = {"class_weight": class_weight, "sample_weight": sample_weight, "logit_bias": logit_bias}
        for name, path in files.items():
            if path is not None:
                options[name] = one_array(path, f"--{name.replace('_', '-')}")
        named = compare.names(backend or ())
        x, y = demo.digits() if logits is None else logits_and_target(logits, target)
        request = compare.start(x, y, options)

        out, log = tables.console(stderr=json == STDOUT), tables.console(stderr=True)
        result = compare.compare(request, y, options, named, partial(tables.say, log))
        source = "softmax classifier on scikit-learn's digits" if logits is None else str(logits)
        tables.show(result, source, out)
        if grad_file is not None:
            whose = result.save_grad(named, grad_file)
            done = f"the gradient of {whose} is in {grad}" if whose else f"{grad} not written: none agrees"
            tables.print_line(out, done)
        if json_file is not None:
            told = options | {name: str(path) for name, path in files.items() if path is not None}
            json_file.write_json({"sce": __version__, "source": source, "options": told} | result.as_json())
        raise typer.Exit(1 if result.broken else 0)


@app.command("check")
def check_command(
    backend: Backends = None,
    json: Json = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="DIR", help="Write the cases and their expected values as .npz; run nothing."
        ),
    ] = None,
) -> None:
    """The conformance suite: is every backend right on this machine?

    Prints the cases that passed, failed and were skipped, and each group's largest error in ulp.

    \b
    sce check
    sce check --backend cpu --json cpu.json
    sce check --backend my_package.my_backend
    sce check --export cases

    Exit status: 1 if a case fails or a named backend does not run, 2 for bad input.
    """
    with _one_line_errors():
        from . import check, compare, tables

        out, log = tables.console(stderr=json == STDOUT), tables.console(stderr=True)
        if export is not None:
            if backend or json:
                raise UsageError("--export runs no backend: give it alone.")
            tables.print_line(out, f"{check.export(export)} cases written to {export}")
            return
        (json_file,) = outputs((json, "--json"))
        named = compare.names(backend or ())
        names, missing = check.choose(named)
        reports = check.check(names, log)
        check.show(reports, missing, out)
        if json_file is not None:
            json_file.write_json(check.as_json(reports, missing))
        failed = any(report.failed or not report.passed for report in reports)
        raise typer.Exit(1 if failed or any(name in missing for name in named) else 0)


@app.command("bench")
def bench_command(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few shapes: some minutes with peers, less without.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="NumPy, SciPy, PyTorch, JAX, scikit-learn, too, where installed.")
    ] = False,
    backend: Backends = None,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw the results there, as .png files.")
    ] = None,
) -> None:
    """How fast, how far from what the machine can do, how far ahead of whom?

    Everyone gets the same arrays and threads, is checked against the reference, and then timed in turns.

    \b
    time            median of a call
    of copy         the bytes that must move (logits read, gradient written, target read) per second,
                    over those of the fastest copy of that matrix, measured in the same run
    a peer          how many times as long as ours it takes
    reused, fresh   the gradient's memory: out= given, or allocated by each call; in place: out=logits

    \b
    sce bench --quick --peers
    sce bench --peers --json here.json --plot plots

    Exit status: 1 if a contestant of ours is wrong, fails, or was named and does not run; 2 for bad input.
    """
    with _one_line_errors():
        from . import bench, compare, tables

        (json_file,) = outputs((json, "--json"))
        directory = None if plot is None else bench.plot_directory(plot)
        named = compare.names(backend or ())
        entered = bench.contestants(named, peers)
        out, log = tables.console(stderr=json == STDOUT), tables.console(stderr=True)
        words = ["sce bench", "--quick" * quick, "--peers" * peers, *(f"--backend {name}" for name in named)]
        found = bench.run(entered, quick, " ".join(filter(None, words)), log)
        bench.show(found, out)
        if json_file is not None:
            json_file.write_json(found)
        if directory is not None:
            for path in bench.draw(found, directory):
                tables.print_line(out, f"drawn: {path}")
        raise typer.Exit(1 if bench.broken(found, named) else 0)


@app.command("train")
def train_command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="digits, iris, wine or breast_cancer.")],
    solver: Annotated[str, typer.Option(metavar="lbfgs|newton-cg|sgd", help="How it is fitted.")] = "lbfgs",
    inverse_penalty: Annotated[
        float, typer.Option("--C", metavar="FLOAT", help="Inverse strength of the penalty.")
    ] = 1.0,
    label_smoothing: Annotated[float, typer.Option(help="In [0, 1].")] = 0.0,
    tol: Annotated[float, typer.Option(help="The gradient's largest entry at the end.")] = 1e-4,
    max_iter: Annotated[int, typer.Option(help="Steps; of sgd, epochs.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the split, and of sgd.")] = 0,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="A name or an import path.")] = None,
    json: Json = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="DIR", help="Draw the results there, as .png files.")
    ] = None,
) -> None:
    """Softmax regression on real data: trained, calibrated on held-out rows, tested on others.

    The data are scikit-learn's own, nothing is downloaded: 60 % of the rows to train, 20 % to calibrate,
    20 % to test. Features are brought to mean 0 and variance 1.

    \b
    loss               mean cross-entropy, nats
    calibration error  expected: what confidence and accuracy differ by, in the mean over rows, ten bins
    calibrated         with the temperature that suits the rows to calibrate best
    --plot             the objective at each step, the confusion matrix, reliability before and after

    \b
    sce train digits --plot plots
    sce train wine --solver newton-cg --C 0.1 --json wine.json

    Exit status: 1 if it does not converge or the named backend does not run, 2 for bad input.
    """
    with _one_line_errors():
        from . import bench, compare, tables, train

        (json_file,) = outputs((json, "--json"))
        directory = None if plot is None else bench.plot_directory(plot)
        named = compare.names([backend] if backend is not None else [])
        parts = train.load(data, seed)
        out, log = tables.console(stderr=json == STDOUT), tables.console(stderr=True)
        if why := train.missing(named):
            tables.print_notes(tables.reasons(why), out)
            raise typer.Exit(1)
        options = {
            "solver": solver,
            "C": inverse_penalty,
            "label_smoothing": label_smoothing,
            "tol": tol,
            "max_iter": max_iter,
            "random_state": seed,
            "backend": backend,
        }
        result = train.train(parts, options, log)
        train.show(result, out)
        if json_file is not None:
            json_file.write_json({"sce": __version__} | train.as_json(result))
        if directory is not None:
            for path in train.draw(result, directory):
                tables.print_line(out, f"drawn: {path}")
        raise typer.Exit(0 if result.model.converged_ else 1)


@app.command("info")
def info_command(json: Json = None) -> None:
    """Versions, processor, threads, caches, environment, and each backend: paste it into a bug report."""
    with _one_line_errors():
        from . import info

        (json_file,) = outputs((json, "--json"))
        facts = info.collect()
        for line in info.lines(facts):
            typer.echo(line, err=json == STDOUT)
        if json_file is not None:
            json_file.write_json(facts)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input is one line on stderr and exit status 2. Anything else is a bug, and keeps its traceback."""
    try:
        yield
    except UsageError as exc:
        typer.echo(f"Error: {exc}", err=True)
        raise typer.Exit(2) from None
