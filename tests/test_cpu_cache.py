"""Where the Numba backend keeps compiled kernels, and what it does about damaged or unwritable files."""

import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
import numba

from sce_backends.cpu import cache

CHILD = """
import json, sys, numpy as np, sce
loss, grad = sce.loss_and_grad(np.eye(4, dtype=np.float32), np.arange(4), backend="cpu")
from sce_backends.cpu import cache
print(json.dumps([float(loss), str(cache.directory())]))
"""


def start(**environment):
    return subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child(**environment):
    """The loss, the cache's directory, and all that was printed."""
    process = start(**environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return *json.loads(out.splitlines()[-1]), out


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """(a cache with the kernels of one call, that call's loss)"""
    place = tmp_path_factory.mktemp("cache")
    loss, where, _ = child(SCE_CACHE_DIR=str(place))
    assert where.startswith(str(place))
    return place, loss


def files(place):
    found = sorted(place.rglob("*.nbc"))
    assert found
    return found


def test_a_second_process_takes_its_kernels_from_the_cache(filled):
    place, loss = filled
    stamps = [f.stat().st_mtime_ns for f in files(place)]
    again, _, log = child(SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert "data loaded from" in log
    assert "data saved to" not in log
    assert [f.stat().st_mtime_ns for f in files(place)] == stamps


def test_damaged_files_are_compiled_anew_and_replaced(filled):
    """Cut short, emptied, garbage, another kernel's under this name: nothing of it is run, nothing raises."""
    place, loss = filled
    good = {path: path.read_bytes() for path in files(place)}
    paths = list(good)
    for i, path in enumerate(paths):
        whole = good[path]
        path.write_bytes([whole[: len(whole) // 2], b"", bytes(200), good[paths[i - 1]]][i % 4])
    again, _, log = child(SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert "data saved to" in log
    last, _, log = child(SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
    assert last == loss
    assert "data saved to" not in log


def test_two_processes_that_compile_at_once(tmp_path):
    both = [start(SCE_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    answers = {json.loads(process.communicate(timeout=300)[0].splitlines()[-1])[0] for process in both}
    assert len(answers) == 1
    assert not list(tmp_path.rglob("*.tmp"))
    _, _, log = child(SCE_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert "data saved to" not in log


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    _, where, _ = child(SCE_CACHE_DIR=str(blocked / "below"))
    assert where == "None"
    assert blocked.read_text() == "not a directory"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_cache_that_is_read_only_is_read(filled):
    place, loss = filled
    folders = [place, *(path for path in place.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        again, _, log = child(SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert again == loss
    assert "data loaded from" in log


def test_a_cache_whose_files_cannot_be_written_is_read(filled, monkeypatch):
    """The same without asking the system, which lets the superuser write anywhere."""
    place, _ = filled
    path = files(place)[0]

    def refuse(*args):
        raise OSError("read-only")

    monkeypatch.setattr(cache, "_write_whole", refuse)
    kept = cache._Cache.__new__(cache._Cache)
    kept._py_func, kept.cache_path = refuse, str(path.parent)
    kept._file = lambda sig, codegen: (path, "key")

    class Compiled:
        codegen = staticmethod(lambda: None)
        _reduce = staticmethod(lambda: ())

    kept.save_overload(None, Compiled())  # raises nothing
    assert path.read_bytes()


def test_directories_of_other_versions_go_after_a_month(tmp_path, monkeypatch):
    monkeypatch.setenv("SCE_CACHE_DIR", str(tmp_path))
    old = tmp_path / f"cpu-numba-0.1-{'0' * 16}"
    recent = tmp_path / f"cpu-numba-0.2-{'1' * 16}"
    other = tmp_path / "somebody else's"
    for path in (old, recent, other):
        path.mkdir()
        (path / "file").write_text("kept?")
    month = time.time() - 40 * 86400
    for path in (old, other):
        os.utime(path, (month, month))
    own = cache.directory.__wrapped__()
    assert own.is_dir()
    assert not old.exists()
    assert recent.exists()
    assert other.exists()


def test_the_cache_is_named_after_every_source_file(monkeypatch, tmp_path):
    """Numba looks at one file per kernel: a change in a file that it calls must start a new cache, too."""
    monkeypatch.setenv("SCE_CACHE_DIR", str(tmp_path / "cache"))
    before = cache.directory.__wrapped__()
    package = tmp_path / "package"
    package.mkdir()
    for source in ("cache.py", "vector_math.py"):
        (package / source).write_bytes(b"# changed")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    assert cache.directory.__wrapped__() != before


def test_the_user_s_own_cache_directory_is_left_alone():
    assert os.environ.get("NUMBA_CACHE_DIR", "") == numba.config.CACHE_DIR
