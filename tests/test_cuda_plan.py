"""Which kernel a problem gets, with how many threads and blocks: plain Python, over a grid of shapes."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sce.backend import Answer, memory_at
from sce.problem import prepare
from sce_backends import cuda
from sce_backends.cuda import plan
from sce_backends.cuda.group import WARP
from sce_backends.cuda.plan import Device
from sce_backends.cuda.totals import CHUNK

HOPPER, AMPERE = Device((9, 0), 132), Device((8, 0), 108)
CLASSES = (1, 2, 3, 8, 10, 17, 32, 33, 64, 100, 128, 255, 256, 257, 512, 1000, 1024, 1025, 2048, 4097, 8192,
           16384, 16385, 32000, 50257, 65536, 128256, 131072, 262144, 262145, 1 << 20)  # fmt: skip
ROWS = (1, 2, 7, 64, 131, 4096, 1 << 20)
WIDTHS = {4: (1, 4, 8), 8: (1, 2)}


def shapes(device):
    for rows, classes, size in product(ROWS, CLASSES, (4, 8)):
        for width in WIDTHS[size]:
            for edge in {False, width > 1 and classes >= 64 * width}:
                yield (
                    rows,
                    classes,
                    width,
                    edge,
                    size,
                    plan.shape_of(rows, classes, width, edge, size, device),
                )


@pytest.mark.parametrize("device", [HOPPER, AMPERE], ids=["hopper", "ampere"])
def test_every_row_is_held_within_the_limits_of_the_device(device):
    for rows, classes, width, edge, size, shape in shapes(device):
        what = (rows, classes, width, edge, size, shape)
        held = (
            shape.lanes
            * shape.vectors
            * width
            * (shape.cluster if shape.parts == "cluster" else shape.pieces)
        )
        assert held >= classes, what
        assert shape.vectors * width * size <= 4 * plan.KEPT_WIDE, what
        assert shape.threads % WARP == 0, what
        assert WARP <= shape.threads <= 1024, what
        assert shape.lanes & (shape.lanes - 1) == 0, what  # butterflies
        assert (shape.groups == 1) or shape.lanes <= WARP, what
        assert shape.cluster in (1, 2, 4, 8), what  # 8: what every device with clusters has
        assert (shape.cluster > 1) == (shape.parts == "cluster"), what
        if edge:  # one lane for each logit before the first vector and after the last
            assert shape.lanes >= 2 * (width - 1), what
        for more in (False, True):
            blocks = plan.blocks_of(shape, width, size, more)
            registers = (1 << 16) // (blocks * shape.threads)
            assert blocks * shape.threads <= 2048, what
            assert registers >= shape.vectors * width * size // 4 + 40, what


def test_no_clusters_before_compute_capability_9():
    assert all(shape.parts != "cluster" for *_, shape in shapes(AMPERE))
    assert any(shape.parts == "cluster" for *_, shape in shapes(HOPPER))


@pytest.mark.parametrize(
    ("classes", "parts", "lanes", "cluster"),
    [
        (32, "one", 1, 1),  # a thread has a row,
        (128, "one", 4, 1),  # some lanes,
        (1024, "one", 32, 1),  # a warp,
        (4096, "one", 128, 1),  # a block,
        (8192, "one", 256, 1),
        (16384, "cluster", 256, 2),  # a cluster
        (65536, "cluster", 256, 8),
        (131072, "cluster", 512, 8),
        (262144, "cluster", 512, 8),
        (262148, "first", 256, 1),  # nothing: it is read twice
    ],
)
def test_who_has_a_row_of_float32(classes, parts, lanes, cluster):
    shape = plan.shape_of(1 << 20, classes, 4, False, 4, HOPPER)
    assert (shape.parts, shape.lanes, shape.cluster) == (parts, lanes, cluster)


def test_a_few_long_rows_occupy_the_device():
    for rows, classes in product((1, 2, 4, 8), (1 << 17, 1 << 20)):
        shape = plan.shape_of(rows, classes, 4, False, 4, HOPPER)
        assert shape.parts == "first"
        assert rows * shape.pieces >= min(2 * HOPPER.processors, rows * classes // (4 * plan.BLOCK))


def problem(shape, dtype="f4", at=1 << 20, gap=0, grad_at=1 << 30, grad_dtype=None, **options):
    """A host problem as `prepare` makes it, with arrays that are somewhere else."""
    rows, classes = shape
    x, y = np.zeros((1, classes), dtype), np.zeros(1, int)
    for name in ("sample_weight", "class_weight", "logit_bias"):
        if name in options:
            options[name] = np.ones(1 if name == "sample_weight" else classes)
    outputs = options.pop("outputs", ("loss", "grad"))
    made = prepare(x, y, outputs=outputs, reduction=options.pop("reduction", "none"), **options).problem
    step = (classes + gap) * x.itemsize
    logits = memory_at(at, (rows, 1, classes), dtype, (step, step, x.itemsize))
    kind = np.dtype(grad_dtype or dtype)
    grad = memory_at(
        grad_at, (rows, 1, classes), kind, ((classes + gap) * kind.itemsize,) * 2 + (kind.itemsize,)
    )
    answer = Answer(loss=np.empty(rows), grad=grad if "grad" in outputs else None)
    return made._replace(rows=rows, logits=logits), answer


@pytest.mark.parametrize(
    ("given", "width", "edge"),
    [
        ({"shape": (9, 1024)}, 4, False),
        ({"shape": (9, 1024), "dtype": "f2"}, 8, False),
        ({"shape": (9, 1024), "dtype": "f8"}, 2, False),
        ({"shape": (9, 1023)}, 4, True),  # rows begin anywhere
        ({"shape": (1, 1023)}, 4, True),
        ({"shape": (9, 1024), "at": 4, "grad_at": 4}, 4, True),
        ({"shape": (9, 1024), "at": 4, "grad_at": 8}, 1, False),  # logits and gradient are out of step
        ({"shape": (9, 1023), "gap": 1}, 4, True),  # rows begin well, but end badly
        ({"shape": (9, 31)}, 1, False),  # too short for an edge
        ({"shape": (9, 1024), "dtype": "f2", "grad_dtype": "f4"}, 1, False),
        ({"shape": (9, 1023), "outputs": ("loss",)}, 4, True),
    ],
)
def test_vectors_where_both_can_be_cut_into_them(given, width, edge):
    assert plan.vector(*problem(**given)) == (width, edge)


def test_vectors_are_aligned_in_every_row():
    """Of any address, step and length: what is said to be aligned is."""
    for classes, gap, at in product((64, 255, 256, 1000, 1023), (0, 1, 3, 4), (0, 4, 8, 12, 16)):
        made, answer = problem((5, classes), at=at + 4096, gap=gap, grad_at=at + 8192)
        width, edge = plan.vector(made, answer)
        if width > 1 and not edge:
            for row in range(5):
                assert (plan.address(made.logits) + row * plan.step_of(made.logits) * 4) % 16 == 0
                assert (plan.address(answer.grad) + row * plan.step_of(answer.grad) * 4) % 16 == 0
            assert classes % width == 0


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"softcap": 30.0},
        {"logit_bias": True},
        {"z_loss": 1e-4, "class_weight": True},
        {"z_loss": 1e-33},
        {"outputs": ("loss", "lse")},
        {"outputs": ("loss", "z_loss"), "z_loss": 1e-4},
        {"temperature": 1e-33},
        {"grad_scale": 1e33},
        {"reduction": "mean", "denominator": 0.0},
    ],
)
def test_what_the_general_kernel_takes(options):
    assert not plan.takes_rows(*problem((9, 100), **options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "ignore_index": -100, "grad_scale": 0.0},
        {"sample_weight": True, "class_weight": True, "reduction": "mean", "denominator": 3.0},
        {"z_loss": 1e-4, "temperature": 0.7, "sample_weight": True},
        {"outputs": ("loss",)},
        {"outputs": ("grad",)},
    ],
)
def test_what_the_kernel_of_rows_takes(options):
    assert plan.takes_rows(*problem((9, 100), **options))


def test_rows_must_be_equally_far_from_each_other():
    made, answer = problem((6, 4))
    outer = memory_at(4096, (2, 3, 4), "f4", (100, 16, 4))
    assert not plan.takes_rows(made._replace(logits=outer), answer)
    assert not plan.takes_rows(made._replace(logits=memory_at(4096, (6, 1, 4), "f4", (32, 32, 8))), answer)
    backwards = memory_at(4096, (6, 1, 4), "f4", (-16, -16, 4))
    assert plan.takes_rows(made._replace(logits=backwards), answer)
    assert plan.step_of(backwards) == -4


@pytest.mark.parametrize("rows", [1, 5, 129, 100_000, (1 << 31) // 64 + 3])
@pytest.mark.parametrize("classes", [64, 1000, 8192, 50257])
def test_the_grid_covers_every_row_once(rows, classes):
    made, answer = problem((rows, classes))
    launches = plan.rows(made, answer, HOPPER)
    spec = launches[0].spec
    for launch in launches:
        shape = plan.shape_of(rows, classes, spec.width, spec.edge, 4, HOPPER)
        assert launch.blocks % launch.cluster == 0
        assert launch.blocks < 1 << 31
        assert 0 <= launch.blocks // shape.pieces * spec.groups - rows < spec.groups
        assert launch.threads == spec.lanes * spec.groups
    assert len(launches) == (2 if spec.parts == "first" else 1)


def test_more_rows_than_a_grid_has_are_refused():
    made, answer = problem((9, 3), softcap=30.0)
    most = cuda.MOST_ROWS
    said = [cuda.refuses(made._replace(rows=rows)) for rows in (most - 1, most)]
    assert said == [None, f"{most} rows are more than a launch takes, {most - 1}: pass them in parts."]
    assert plan.general(made._replace(rows=cuda.MOST_ROWS - 1), answer).blocks < 1 << 31


@pytest.mark.parametrize("rows", [1, CHUNK, CHUNK + 1, CHUNK**2, CHUNK**2 + 1])
def test_sums_end_in_one_block(rows):
    *before, last = plan.totals(rows, "float32", True, "float64", False)
    count = rows
    for launch in before:
        assert launch.blocks == -(-count // CHUNK)
        count = launch.blocks
    assert count <= CHUNK
    assert last.blocks == 1
    assert last.spec.last
    assert not any(launch.spec.last for launch in before)


def test_two_words_hold_what_one_rounds():
    for value in (1 / 3, 1e-30, -7e20, 1.0):
        high, low = plan.words(value, "float32")
        assert (high.dtype, low.dtype) == (np.float32, np.float32)
        assert abs(float(high) + float(low) - value) <= abs(value) * 2.0**-47
    with np.errstate(over="ignore"):
        assert plan.words(1e300, "float32") == (np.inf, 0)  # an infinity has no second word
