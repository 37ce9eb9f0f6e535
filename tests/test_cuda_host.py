"""The host's side of the CUDA backend: what is missing and what to install, the cache, arguments."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import sce
from sce import registry
from sce.backend import memory_at

pytest.importorskip("platformdirs", reason="the kernels' cache needs platformdirs")

from sce_backends.cuda import absence, cache, kernels, plan, record
from sce_backends.cuda.plan import Launch
from sce_backends.cuda.totals import Totals

SPEC = Totals("float32", True, "float32", True, False)
CUDA_13 = 13000


def without(monkeypatch, name):
    """As if this module were not installed."""
    found = importlib.import_module

    def imported(wanted, package=None):
        if wanted == name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return found(wanted, package)

    monkeypatch.setattr(importlib, "import_module", imported)


@pytest.mark.parametrize(
    ("module", "package"), [("numba.cuda", "numba-cuda"), ("cuda.core", "cuda-core"), ("platformdirs",) * 2]
)
def test_a_missing_package_is_named(monkeypatch, module, package):
    for name in ("numba.cuda", "cuda.core"):  # whether they are installed here or not
        made = ModuleType(name)
        made.__file__ = "/site-packages/numba_cuda/__init__.py"
        monkeypatch.setitem(sys.modules, name, made)
    without(monkeypatch, module)
    why = absence.absent()
    assert f"the package {package} is missing (No module named" in why
    assert "pip install 'sce[cuda]'" in why


def test_numbas_own_cuda_is_not_enough(monkeypatch):
    made = ModuleType("numba.cuda")
    made.__file__ = "/site-packages/numba/cuda/__init__.py"
    monkeypatch.setitem(sys.modules, "numba.cuda", made)
    assert (
        "numba.cuda is Numba's own, which compiles nothing without a driver: pip install" in absence.absent()
    )


@pytest.mark.parametrize("library", ["nvvm", "nvrtc", "nvJitLink"])
def test_a_compiler_library_that_does_not_load_is_named(monkeypatch, library):
    pathfinder = pytest.importorskip("cuda.pathfinder", reason="no CUDA packages")

    def load(name):
        if name == library:
            raise OSError(f"lib{name}.so.13: no such file")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", load)
    why = absence._toolkit()
    assert why.startswith(
        f"the compiler's library {library} does not load (OSError): pip install 'sce[cuda]'"
    )
    assert f"'cuda-toolkit[{library.lower()}]==13.0.*'" in why


class Driver(SimpleNamespace):
    """What cuda.bindings.driver answers on some machine."""

    CUresult = SimpleNamespace(CUDA_SUCCESS=0, CUDA_ERROR_NOT_INITIALIZED=3, CUDA_ERROR_NO_DEVICE=100)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )

    def cuInit(self, flags):
        if self.status == "absent":
            raise RuntimeError("libcuda.so.1: cannot open shared object file")
        return (self.status,)

    def cuDriverGetVersion(self):
        return 0, self.version

    def cuDeviceGetCount(self):
        return 0, len(self.devices)

    def cuDeviceGet(self, index):
        return 0, index

    def cuDeviceGetAttribute(self, name, device):
        return 0, self.devices[device][name == "minor"]


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        (
            {"status": "absent"},
            "no NVIDIA driver: libcuda does not load. Install the driver of your GPU, 580 or",
        ),
        (
            {"status": 3},
            'forked from another, and does not work here: start processes with multiprocessing\'s "spawn"',
        ),
        ({"status": 100}, "the NVIDIA driver sees no device: is CUDA_VISIBLE_DEVICES empty"),
        ({"status": SimpleNamespace(name="CUDA_ERROR_UNKNOWN")}, "does not start: CUDA_ERROR_UNKNOWN"),
        ({"status": 0, "version": 13000, "devices": []}, "sees no device"),
        (
            {"status": 0, "version": 12080, "devices": [(9, 0)]},
            "the NVIDIA driver is for CUDA 12.8, the installed compiler makes code for CUDA 13.0: update",
        ),
        (
            {"status": 0, "version": 13000, "devices": [(7, 5)]},
            r"compute capability 7.5: the kernels need 8.0 (Ampere) or newer",
        ),
        ({"status": 0, "version": 13000, "devices": [(7, 5), (9, 0)]}, None),
        ({"status": 0, "version": 13020, "devices": [(8, 0)]}, None),
    ],
)
def test_what_a_driver_may_say(monkeypatch, machine, words):
    bindings = ModuleType("cuda.bindings")
    bindings.driver = Driver(**machine)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setattr(absence, "toolkit", lambda: CUDA_13)
    monkeypatch.setattr(absence, "started", False)
    why = absence._driver()
    assert (why is None) if words is None else words in why
    assert absence.started == (machine["status"] == 0)


def test_the_backends_listing_explains():
    """Whatever this machine has: a reason that says what to do, or none because it runs."""
    why = sce.backends()["cuda"]
    assert why is None or "nstall" in why or "CUDA_VISIBLE_DEVICES" in why or "update" in why
    assert sce.backends()["cuda-emulated"] is None or "greenlet" in sce.backends()["cuda-emulated"]
    assert registry.load("cuda-emulated").debug
    assert not registry.load("cuda").debug


# The cache.


@pytest.fixture
def kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SCE_CACHE_DIR", str(tmp_path))
    cache.directory.cache_clear()
    yield tmp_path
    cache.directory.cache_clear()


class Compiler:
    """Counts what it is asked for."""

    def __init__(self):
        self.calls = []

    def __call__(self, *key):
        self.calls.append(key)
        return repr(key).encode()


def test_machine_code_is_compiled_once_and_then_read(kept):
    first, second = Compiler(), Compiler()
    key = SPEC, (9, 0), (256, 1)
    code = cache.cubin(*key, first)
    assert cache.cubin(*key, second) == code
    assert (len(first.calls), second.calls) == (1, [])
    others = ((SPEC._replace(last=False), *key[1:]), (SPEC, (8, 0), (256, 1)), (SPEC, (9, 0), (256, 2)))
    for other in others:
        assert cache.cubin(*other, second) != code
    assert len(second.calls) == 3
    assert not list(kept.rglob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another key"])
def test_a_damaged_file_is_compiled_anew_and_replaced(kept, damage):
    key = SPEC, (9, 0), (256, 1)
    code = cache.cubin(*key, Compiler())
    (file,) = kept.rglob("*.cubin")
    data = file.read_bytes()
    if damage == "another key":
        cache._write(file, b"another", code)
    else:
        file.write_bytes({"cut": data[:-3], "changed": data[:-1] + b"?", "empty": b""}[damage])
    again = Compiler()
    assert cache.cubin(*key, again) == code
    assert len(again.calls) == 1
    assert file.read_bytes() == data


def test_where_nothing_can_be_written_it_compiles(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SCE_CACHE_DIR", str(tmp_path / "file"))
    cache.directory.cache_clear()
    made = Compiler()
    assert cache.directory() is None
    assert cache.cubin(SPEC, (9, 0), (256, 1), made)
    assert len(made.calls) == 1
    cache.directory.cache_clear()


def test_threads_compile_one_thing_once(kept):
    made = Compiler()
    threads = [threading.Thread(target=cache.cubin, args=(SPEC, (9, 0), (256, 1), made)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made.calls) == 1


def test_the_directory_depends_on_versions(kept, monkeypatch):
    before = cache.directory()
    monkeypatch.setattr(cache, "versions", lambda: {"numba-cuda": "another"})
    cache.directory.cache_clear()
    assert cache.directory() != before


# Arguments.


def test_arguments_as_cuda_core_takes_them():
    x = memory_at(4096, (3,), "f4")
    assert record.packed("*float32", x) == 0  # each call has its own address
    assert record.packed("*float32", None) == 0
    found = [record.packed(kind, 2) for kind in ("int64", "float64", "float32")]
    assert [type(value) for value in found] == [int, float, np.float32]


def test_every_kernel_has_a_name_of_its_own_and_one_argument_per_word():
    names = {kernels.name(SPEC._replace(pairs=pairs, last=last)) for pairs in (0, 1) for last in (0, 1)}
    assert len(names) == 4
    kinds = {kind for _, kind in kernels.arguments(SPEC)}
    assert kinds <= {"*float32", "*float64", "int64", "float64"}
    assert plan.bounds(Launch(SPEC, 1, 256)) == (256, 1)


def test_memory_is_described_and_not_touched():
    view = memory_at(64, (2, 3, 4), "f2", (-8, 0, 2))
    assert (view.shape, view.strides, view.dtype) == ((2, 3, 4), (-8, 0, 2), np.float16)
    assert view[1, 2, 3:].__array_interface__["data"][0] == 64 - 8 + 6
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert memory_at(64, (2,), ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
