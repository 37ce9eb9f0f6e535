"""The reports on benchmarks - plots, page, comparison - on small documents made by hand."""

from __future__ import annotations

import copy
import importlib.util
import json
import struct
from pathlib import Path

import matplotlib
import pytest
import typer
from typer.testing import CliRunner

from sce.bench import aims, findings, plots
from sce.bench.markdown import number, put, table, text
from sce.bench.plots import style

ROOT = Path(__file__).parents[1]
WHY_NOT = "needs a <C++> compiler | none here."


def script(name):
    """A script of bench/ as a module."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page, compare = script("page"), script("compare")


def run(module, *arguments):
    app = typer.Typer()
    app.command()(module.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def row(contestant, seconds, c=10, **other):
    """A row as sce.bench.document writes it; the copy takes a millisecond for 8 MB."""
    n, op = 1_000_000 // c, other.get("op", "loss_and_grad")
    moved = (2 if contestant == "copy" or (op == "loss_and_grad" and contestant != "read") else 1) * 4 * n * c
    share = None if seconds is None or other.get("where") == "call" else moved / seconds / 8e9
    made = {
        "op": op, "contestant": contestant, "ours": contestant in ("cpu", "cuda"), "n": n, "c": c,
        "dtype": "float32", "option": None, "layout": "rows", "where": "memory", "buffers": "fresh",
        "status": "ok", "why": None, "median_s": seconds, "low_s": seconds and 0.98 * seconds,
        "high_s": seconds and 1.02 * seconds, "turns": 7, "bytes": moved,
        "gb_per_s": seconds and moved / seconds / 1e9, "share_of_copy": share, "speed_up_over_peers": None,
        "loss_error": 0.0, "grad_error": 0.0,
    }  # fmt: skip
    return made | other


def task(c=10, *, ours=2e-3, **other):
    """All contestants on one task: ours twice as fast as torch, torch.compile missing."""
    grad = other.get("op") != "loss"
    found = [
        row("cpu", ours, c, buffers="reused" if grad else "none", speed_up_over_peers=4e-3 / ours, **other),
        row("torch", 4e-3, c, **other),
        row("torch.compile", None, c, status="missing", why=WHY_NOT, **other),
        row("copy", 1e-3, c, buffers="reused", why="plain, 1 thread", **other),
    ]
    if grad:
        found.insert(1, row("cpu", 1.5 * ours, c, speed_up_over_peers=4e-3 / (1.5 * ours), **other))
    else:
        found.append(row("read", 0.4e-3, c, buffers="reused", why="1 thread", **other))
    if other.get("option"):
        torch = next(each for each in found if each["contestant"] == "torch")
        torch |= {"status": "refused", "why": "measured without options.", "median_s": None}
    return found


def cost(what, contestant, **other):
    fields = ("n", "c", "cache", "threads", "why", "median_s", "low_s", "high_s", "bytes", "process_s")
    seconds = other.get("median_s")
    spread = {"low_s": seconds, "high_s": seconds} if seconds else {}
    made = {"cost": what, "contestant": contestant, "status": "ok", "runs": 5}
    return dict.fromkeys(fields) | made | {"n": 64, "c": 1000} | spread | other


def document(*results, costs=()):
    return {
        "machine": {"system": "Linux", "processor": "Abacus 1", "cores": 4, "usable_cores": 4, "threads": 4},
        "versions": {"python": "3.12", "sce": "0.1.0", "numpy": "2.0", "numba": "0.61", "torch": "2.9"},
        "environment": {"OMP_NUM_THREADS": "4", "SCE_CACHE_DIR": "/home/somebody/cache"},
        "command": "sce bench --peers",
        "commit": "abcdef0",
        "results": [dict(row) for rows in results for row in rows],
        "costs": list(costs),
    }


COSTS = (
    cost("first_answer", "cpu", cache="empty", median_s=7.0),
    cost("first_answer", "torch", cache="empty", median_s=1.0),
    cost("call", "cpu", median_s=6e-5),
    cost("memory", "cpu", bytes=20480),
    cost("memory", "cuda", status="missing", why="no device here."),
    *(cost("scaling", "cpu", threads=count, median_s=0.02 / count) for count in (1, 2)),
)
PLAIN = (task(10), task(1000))
WHOLE = document(
    *PLAIN, *(task(c, op="loss") for c in (10, 1000)), *(task(c, dtype="float64") for c in (10, 1000)),
    task(10, option="soft cap", ours=3e-3), task(10, layout="channels"), task(10, where="call"), costs=COSTS,
)  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def as_file(found, name="result.json"):
        (tmp_path / name).write_text(json.dumps(found))
        return tmp_path / name

    return as_file


# Findings


def test_the_lead_is_ours_and_fastest():
    slow = [row("reference", 1.0, ours=True), row("torch", 1e-3), row("cpu", 2e-3)]
    assert findings.lead(document(slow)) == "cpu"
    assert findings.contestants(document(slow)) == ["cpu", "reference", "torch"]
    assert findings.lead(document([row("torch", 1e-3)])) is None


def test_the_share_of_a_loss_is_of_the_read():
    rows = task(op="loss", ours=2e-3)
    assert findings.share_of_limit(rows, rows[0]) == pytest.approx(0.4e-3 / 2e-3)
    rows = task(ours=2e-3)
    assert findings.share_of_limit(rows, rows[0]) == pytest.approx(0.5)


def test_an_options_cost_is_told_in_copies():
    """The machine was half as fast when the option was measured: that is no cost of the option."""
    slow = task(option="soft cap", ours=5e-3)
    for each in slow:
        each["share_of_copy"] = each["share_of_copy"] and 2 * each["share_of_copy"]
    assert findings.option_costs(document(task(ours=2e-3), slow)) == {"soft cap": {10: pytest.approx(0.25)}}
    assert findings.option_costs(document(slow)) == {}  # nothing to compare with


AIMED = document(
    task(10, ours=3e-3), task(16), task(1000, ours=1.2e-3), task(128, ours=1.6e-3),
    task(150, layout="channels"),
    task(1000, op="loss", ours=0.5e-3), task(1000, dtype="float64", ours=1.4e-3),
    task(1000, dtype="bfloat16", ours=0.9e-3), task(1000, option="z-loss", ours=1.26e-3),
    task(1000, option="distribution", ours=1.8e-3), task(1000, option="soft cap", ours=2.4e-3),
    costs=(
        cost("call", "cpu", n=1, c=10, median_s=30e-6), cost("memory", "cpu", c=32000, bytes=8_000_000),
        cost("first_answer", "cpu", cache="warm", median_s=1.1),
        cost("first_answer", "cpu", cache="empty", median_s=7.0),
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("beginning", "best", "worst", "verdict"),
    [
        ("loss and gradient, float32, from", 1.2, 1.6, "met in 1 of 2"),
        ("the same in place", None, None, "not measured"),
        ("loss alone", 1.25, 1.25, "met"),
        ("few classes", 2.0, 3.0, "met"),
        ("ahead of the strongest peer, reused", 4 / 1.2, 4 / 3, "missed"),
        ("the same, reused, 16 to 64 classes", 2.0, 2.0, "missed"),
        ("the same, fresh memory, 16 to 64 classes", 4 / 3, 4 / 3, "missed"),
        ("ahead of the strongest peer, fresh", 4 / 1.8, 4 / 4.5, "missed"),
        ("float16 and bfloat16", 0.75, 0.75, "missed"),
        ("float64", 1.4, 1.4, "missed"),
        ("an option", 0.0, 0.05, "met"),
        ("a soft cap", 1.0, 1.0, "missed"),
        ("class axis 1", 2.0, 2.0, "met"),
        ("one warm call", 30e-6, 30e-6, "missed"),
        ("from nothing", 1.1, 1.1, "met"),
        ("the same, empty", 7.0, 7.0, "missed"),
        ("memory", 2e6, 2e6, "missed"),
    ],
)
def test_an_aims_figures_and_verdict(beginning, best, worst, verdict):
    (found,) = (o for o in aims.outcomes(AIMED) if o.aim.what.startswith(beginning))
    values = [figure.value for figure in found.figures]
    assert values[:1] == ([] if best is None else pytest.approx([best], rel=2e-3, abs=2e-3))
    assert values[-1:] == ([] if worst is None else pytest.approx([worst], rel=2e-3, abs=2e-3))
    assert found.verdict == verdict


def test_the_page_tells_every_aim_and_what_is_in_the_way(tmp_path, write):
    assert run(page, write(AIMED), tmp_path / "page.md").exit_code == 0
    told = (tmp_path / "page.md").read_text()
    for outcome in aims.outcomes(AIMED):
        assert f"| {outcome.aim.what} | {outcome.bound} | {outcome.measured} | {outcome.verdict} |" in told
        assert (f"- **{outcome.aim.what}**: {outcome.aim.obstacle}." in told) == bool(outcome.missed)
    assert "| at most +40 % | +100 % (soft cap, C = 1000) | missed |" in told
    assert "| at most 15 us | 30 us (1 x 10) | missed |" in told


def test_absences_are_gathered_by_reason():
    found = {(gap.contestants, gap.status, gap.where) for gap in findings.absences(WHOLE)}
    assert (("torch.compile",), "missing", "everywhere") in found
    assert (("cuda",), "missing", "everywhere") in found  # known from the costs alone
    assert (("torch",), "refused", "loss and gradient, float32, soft cap: C = 10") in found


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "it has no named parts"),
        ("{}", "it has no machine"),
        (json.dumps(document([{"op": "loss"}])), "it has no buffers, c, contestant"),
        (json.dumps(document() | {"results": [3]}), "it has no rows"),
    ],
)
@pytest.mark.parametrize("module", [page, compare], ids=["page", "compare"])
def test_bad_input_is_one_line(module, content, words, tmp_path, write):
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_text(content)
    done = run(module, bad, write(WHOLE) if module is compare else tmp_path / "page.md")
    assert done.exit_code == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


# Comparison


def slower(found, by, *contestants, **where):
    """The document with these rows slower by this factor."""
    found = copy.deepcopy(found)
    for each in found["results"]:
        if each["contestant"] in contestants and each["median_s"] and where.items() <= each.items():
            for figure in ("median_s", "low_s", "high_s"):
                each[figure] *= by
            each["share_of_copy"] = each["share_of_copy"] and each["share_of_copy"] / by
    return found


def test_a_regression_of_ours_is_found(write):
    old, new = write(document(*PLAIN), "old"), write(slower(document(*PLAIN), 1.3, "cpu", c=1000), "new")
    done = run(compare, old, new)
    assert done.exit_code == 1
    assert "cpu (reused): loss and gradient, float32, 1000 x 1000" in done.stdout
    assert "+30 %" in done.stdout
    assert "100000 x 10" not in done.stdout
    assert "2 slower, 0 faster; 4 within the spread or 10 %" in done.stdout
    assert run(compare, old, new, "--least", "40").exit_code == 0


def test_what_got_faster_is_told(write):
    done = run(compare, write(document(*PLAIN), "old"), write(slower(document(*PLAIN), 0.5, "cpu"), "new"))
    assert done.exit_code == 0
    assert "-50 %" in done.stdout
    assert "0 slower, 4 faster" in done.stdout


@pytest.mark.parametrize(
    ("which", "who", "quartile", "by"),
    [
        (0, "cpu", "high_s", 1.4),
        (1, "cpu", "low_s", 0.7),
        (0, "copy", "low_s", 0.7),
        (1, "copy", "high_s", 1.4),
    ],
)
def test_noise_is_not_told(which, who, quartile, by, write):
    """The ranges overlap: the contestant's own, or those of the copy that is its unit."""
    old, new = document(*PLAIN), slower(document(*PLAIN), 1.3, "cpu")
    assert run(compare, write(old, "old"), write(new, "new")).exit_code == 1
    for each in (old, new)[which]["results"]:
        each[quartile] = each[quartile] and each[quartile] * (by if each["contestant"] == who else 1)
    done = run(compare, write(old, "old"), write(new, "new"))
    assert done.exit_code == 0
    assert "0 slower" in done.stdout


def test_slower_peers_are_no_failure(write):
    done = run(compare, write(document(*PLAIN), "old"), write(slower(document(*PLAIN), 2, "torch"), "new"))
    assert done.exit_code == 0
    assert "torch, a peer" in done.stdout
    assert "2 slower" in done.stdout


def test_a_slower_machine_is_no_regression(write):
    """Everything takes twice as long there, the copy as well. What has no copy is left out."""
    old = document(*PLAIN, task(where="call"))
    old["results"] = [
        each for each in old["results"] if (each["where"], each["contestant"]) != ("call", "copy")
    ]
    new = slower(old, 2, "cpu", "torch", "copy")
    assert run(compare, write(old, "old"), write(new, "new")).exit_code == 1  # the tiny call, in seconds
    new["machine"]["processor"] = "Abacus 0"
    done = run(compare, write(old, "old"), write(new, "new"))
    assert done.exit_code == 0
    assert done.stdout.startswith("Different machines: Abacus 1, 4 threads and Abacus 0, 4 threads.\n")
    assert "3 in seconds, of different machines" in done.stdout


def test_rows_of_one_document_alone_are_listed(write):
    old, new = document(*PLAIN), document(PLAIN[0], task(32000))
    done = run(compare, write(old, "old"), write(new, "new"))
    assert done.exit_code == 0
    gone, come = done.stdout.split("only in OLD")[1].split("only in NEW")
    assert "torch, a peer (fresh): loss and gradient, float32, 1000 x 1000" in gone
    assert "cpu (reused): loss and gradient, float32, 31 x 32000" in come
    nothing = run(compare, write(document(task(10)), "old"), write(document(task(1000)), "new"))
    assert nothing.exit_code == 2
    assert "nothing to compare" in nothing.stderr


@pytest.mark.parametrize(("who", "status"), [("cpu", 1), ("torch", 0)])
def test_a_wrong_answer_of_ours_is_a_failure(who, status, write):
    new = document(*PLAIN)
    for each in new["results"]:
        if each["contestant"] == who and each["c"] == 10:
            each |= {"status": "wrong", "why": "off by 1.", "median_s": None, "low_s": None, "high_s": None}
    done = run(compare, write(document(*PLAIN), "old"), write(new, "new"))
    assert done.exit_code == status
    assert ("ours no longer right" in done.stdout) == bool(status)
    assert ("off by 1." in done.stdout) == bool(status)


# Page


def test_the_page_says_everything(tmp_path, write):
    done = run(page, write(WHOLE), tmp_path / "docs" / "benchmarks.md")
    assert done.exit_code == 0
    made = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert made.startswith("<!-- Generated by: python bench/page.py result.json benchmarks.md --")
    for fact in ("Abacus 1", "`abcdef0`", "sce 0.1.0", "`sce bench --peers`", "`OMP_NUM_THREADS=4`"):
        assert fact in made
    assert "/home" not in made
    assert str(tmp_path) not in made
    assert "- Loss and gradient, float32: cpu runs at 50.0 % of the fastest copy, 2.00 times as fast" in made
    assert "- Loss alone, float32: cpu runs at 20.0 % of the fastest read, 2.00 times as fast" in made
    assert "|  |  | **cpu, reused** | 2.00 | 1.96 - 2.04 | 4.00 | 50.0 % | 2.00 | 2.00x |" in made
    assert "| 10 | 100000 | best copy: plain, 1 thread | 1.00 |" in made
    assert "| C | cpu, reused | cpu, fresh | torch | torch.compile |" in made
    assert "| 10 | 2.00 | 3.00 | **4.00** | missing |" in made
    assert "| soft cap | +50 % |" in made
    assert "| cpu | 64 x 1000 | 0.0205 MB |  | 5 |" in made
    assert "| torch.compile | missing | everywhere | needs a &lt;C++> compiler \\| none here. |" in made
    assert "| cuda | missing | everywhere | no device here. |" in made
    assert (
        "| torch | refused | loss and gradient, float32, soft cap: C = 10 | measured without options. |"
        in made
    )


def test_the_page_is_the_same_again_and_its_images_exist(tmp_path, write):
    target = tmp_path / "benchmarks.md"
    assert run(page, write(WHOLE), target).exit_code == 0
    first = target.read_bytes()
    assert run(page, write(WHOLE), target).exit_code == 0
    assert target.read_bytes() == first
    images = [
        line.split("](")[1].rstrip(")") for line in first.decode().splitlines() if line.startswith("![")
    ]
    assert sorted(images) == sorted(f"benchmarks/{path.name}" for path in (tmp_path / "benchmarks").iterdir())
    assert len(images) == len(set(images)) == 9


def test_the_page_keeps_what_another_script_put_there(tmp_path, write):
    target = tmp_path / "benchmarks.md"
    assert run(page, write(WHOLE), target).exit_code == 0
    section = "<!-- bench/linear.py -->\n## The linear model\n\n| a | table |\n<!-- /bench/linear.py -->"
    target.write_text(put(target.read_text(), "bench/linear.py", "## The linear model\n\n| a | table |"))
    for _ in range(2):
        assert run(page, write(WHOLE), target).exit_code == 0
        assert target.read_text().count(section) == 1
    assert target.read_text().index(section) < target.read_text().index("## On a GPU")


def test_every_row_of_a_table_has_as_many_cells(tmp_path):
    made = page.page(WHOLE, {}, "this")
    for block in made.split("\n\n"):
        if block.startswith("| "):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_a_page_of_nothing_measured(tmp_path, write):
    bare = document([row("torch.compile", None, status="missing", why=WHY_NOT)])
    assert run(page, write(bare), tmp_path / "page.md").exit_code == 0
    assert "| torch.compile | missing | everywhere |" in (tmp_path / "page.md").read_text()


def test_numbers_and_cells():
    assert [number(x) for x in (1234.5, 12.34, 1.234, 0.001234, 0, None)] == [
        "1234", "12.3", "1.23", "0.00123", "0", "",
    ]  # fmt: skip
    assert text("a|b <c>\nd*") == "a\\|b &lt;c> d\\*"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| :-- | --: |\n| 1 | 2 |"


# Plots


def figures(found):
    """The texts of each figure by its name, taken while the style holds."""
    return {name: (figure, words(figure)) for name, figure in plots.figures(found)}


def words(figure):
    found = [*figure.texts]
    for axes in figure.axes:
        found += [*axes.texts, axes.yaxis.label, *axes.get_yticklabels()]
    return [each.get_text() for each in found] + [axes.get_title("left") for axes in figure.axes]


def test_the_plots_are_images_of_their_size(tmp_path):
    written = plots.draw(WHOLE, tmp_path / "new" / "plots")
    assert {path.stem for path in written} == {
        "roofline", "roofline_loss", "roofline_float64", "dtypes", "peers", "peers_loss", "options",
        "cold", "scaling",
    }  # fmt: skip
    for path in written:
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert data.startswith(b"\x89PNG\r\n\x1a\n")
        assert width == 1536
        assert 300 < height < 2000
        assert len(data) > 15_000  # a blank page of this size is 6 kB


def test_plots_without_data_are_left_out():
    assert set(figures(document(*PLAIN))) == {"roofline", "peers"}
    assert set(figures(document(task(10)))) == {"peers"}  # one point is no line
    assert set(figures(document(task(10, option="soft cap")))) == set()  # no task without it
    assert set(figures(document(*[[r for r in rows if r["ours"]] for rows in PLAIN]))) == {"roofline"}
    assert set(figures(document([row("torch.compile", None, status="missing", why=WHY_NOT)]))) == set()
    alone = document(costs=[cost("scaling", "cpu", threads=1, median_s=1.0)])
    assert set(figures(alone)) == set()


def test_captions_name_the_machine_the_versions_and_who_is_missing():
    for name, (_, said) in figures(WHOLE).items():
        caption = next(each for each in said if each.startswith("Abacus 1"))
        assert "4 threads; sce 0.1.0; numpy 2.0; numba 0.61; torch 2.9" in caption
        assert "torch.compile" in caption, name
    caption = style.caption(document(*PLAIN), document(*PLAIN)["results"])
    assert caption[1:] == ["Not shown: torch.compile (missing: needs a <C++> compiler | none here)."]
    assert len(style.caption(document(PLAIN[0][:1]), PLAIN[0])) == 1  # nobody is missing


def test_the_lines_have_names_and_the_limit_is_drawn():
    figure, said = figures(document(*PLAIN))["roofline"]
    assert {"sce cpu, reused gradient", "sce cpu, fresh gradient", "torch", "the fastest copy: 100 %"} <= set(
        said
    )
    reused, fresh, torch, limit = figure.axes[0].get_lines()
    assert list(reused.get_ydata()) == pytest.approx([50, 50])
    assert list(reused.get_xdata()) == [10, 1000]
    assert list(limit.get_ydata()) == [100, 100]
    assert reused.get_color() == fresh.get_color() != torch.get_color()
    assert reused.get_linestyle() != fresh.get_linestyle()
    assert reused.get_linewidth() > torch.get_linewidth()


def test_the_bars_say_who_is_faster_and_who_was_not_measured():
    slow = document(task(10, ours=16e-3), PLAIN[1])
    _, said = figures(slow)["peers"]
    assert {"0.25x", "2.0x", "torch", "C = 10", "C = 1000"} <= set(said)
    refused = copy.deepcopy(slow)
    refused["results"][2] |= {"status": "refused", "why": "two classes.", "median_s": None}
    assert refused["results"][2]["contestant"] == "torch"
    assert "refused" in figures(refused)["peers"][1]


def test_a_contestant_looks_the_same_everywhere():
    looks = {style.color(found, "torch") for found in (WHOLE, document(*PLAIN))}
    assert len(looks) == 1
    unknown = document([row(name, 1e-3) for name in ("cpu", "liger", "quack")])
    assert style.color(unknown, "liger") != style.color(unknown, "quack")


def test_drawing_leaves_the_users_settings(tmp_path):
    theirs = {"axes.facecolor": "red", "axes.grid": False, "font.size": 30}
    with matplotlib.rc_context(theirs):
        plots.draw(document(*PLAIN), tmp_path)
        assert theirs.items() <= matplotlib.rcParams.items()


@pytest.mark.parametrize(
    ("wanted", "placed"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.99, 1.0], [0.9, 1.0]),
        ([0.0, 0.0, 0.5], [0.0, 0.1, 0.5]),
        ([0.8, 0.2], [0.8, 0.2]),
    ],
)
def test_labels_are_spread(wanted, placed):
    assert style.spread(wanted, 0.1, 0.0, 1.0) == pytest.approx(placed)


def test_quantities_have_a_unit_that_fits():
    assert [style.quantity(x, style.SECONDS) for x in (12, 1, 0.25, 3e-6)] == [
        "12 s",
        "1.0 s",
        "250 ms",
        "3.0 us",
    ]
    assert style.quantity(20480, style.BYTES) == "20 kB"


# What bench/on_gpu.py wrote.


def on_gpu(gpu, rows):
    suite = {"status": "ok", "ran": 9, "cases": 9, "passed": 8, "failed": 0, "skipped": 1}
    launch = [row("cuda", 7.5e-6, c=10, where="call", buffers="reused", option="no validation")]
    parts = {"device": "cuda", "gpu": gpu, "conformance": suite, "launch": launch, "large": [], "steps": {}}
    other = {"function": "hvp", "n": 5, "d": 0, "c": 7, "dtype": "float32", "contestant": "sce", "ours": True}
    other |= {"status": "ok", "why": None, "median_s": 2e-3, "bytes": 4e9, "flops": 0.0}
    linear = {**other, "function": "linear_hvp", "d": 3, "bytes": 0, "flops": 6e12}
    parts["others"] = [other, linear, {**other, "median_s": None, "status": "failed"}]
    parts["functions"] = [{"status": "ok"}, {"status": "ok"}, {"status": "missing"}]
    return {**document(rows), **parts}


H100 = {"name": "NVIDIA H100", "sms": 132, "driver": "580.1"}
ON_H100 = [
    row("copy", 1e-3, c=1000, buffers="reused"),
    row("cuda", 1.1e-3, c=1000, buffers="reused"),
    row("cuda", None, c=1000, buffers="in place", status="wrong", why="no"),
    row("liger", 2e-3, c=1000, buffers="in place"),
    row("copy", 1e-3, c=100, buffers="reused"),
    row("cuda", 1.25e-3, c=100, buffers="reused"),
]


def made_with(write, tmp_path, *documents):
    (tmp_path / "gpus").mkdir(exist_ok=True)
    for i, each in enumerate(documents):
        write(each, f"gpus/{i}.json")
    done = run(page, write(WHOLE), tmp_path / "page.md", "--on-gpus", tmp_path / "gpus")
    assert done.exit_code == 0, done.output
    return (tmp_path / "page.md").read_text()


def test_without_a_gpu_the_page_says_not_measured(tmp_path, write):
    without = [on_gpu({}, []), on_gpu(H100, [row("cuda", None, status="not reached", why="late")])]
    for documents in ([], without):
        made = made_with(write, tmp_path, *documents)
        assert "## On a GPU: `cuda`\n\nNot measured: no GPU was at hand." in made
        assert "H100" not in made


def test_what_a_gpu_measured_is_on_the_page(tmp_path, write):
    made = made_with(write, tmp_path, on_gpu(H100, ON_H100))
    assert "Not measured: no GPU" not in made
    assert "### NVIDIA H100" in made
    assert "| driver | 580.1 |" in made
    assert "| conformance | 8 passed, 0 failed, 1 skipped |" in made
    assert "| the host's time per call, cuda, no validation | 7.50 us, aim: 12.0 |" in made
    assert "| C | copy, GB/s | aim | cuda, reused | cuda, in place | liger, in place |" in made
    assert "| 100 | 8.00 | 70% | 80% |  |  |" in made
    assert "| 1000 | 8.00 | 90% | 91% | wrong | 50% |" in made
    assert "| functions on its arrays | 2 ok, 1 missing |" in made
    assert "| `hvp` | 5 x 7 | float32 | sce | 2.00 | 2000 |  |" in made
    assert "| `linear_hvp` | 5 x 3 x 7 | float32 | sce | 2.00 |  | 3000 |" in made
    assert made.count("| `hvp` |") == 1
