"""Where the Numba backend keeps compiled kernels, and what it does about damaged or unwritable files."""

import json
import os
import signal
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

REFUSED = """
import os, pathlib
def refuse(*args, **options):
    raise PermissionError(13, "Permission denied")
pathlib.Path.write_bytes = pathlib.Path.mkdir = os.utime = refuse
"""
KILLED = """
import os, pathlib, signal
write, written = pathlib.Path.write_bytes, []
def killed(path, data):
    if len(written) == 2:
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    return write(path, data)
pathlib.Path.write_bytes = killed
"""
THREADS = """
import json, threading, numpy as np, sce
start, seen = threading.Barrier(8), []
def call():
    start.wait()
    loss, grad = sce.loss_and_grad(np.eye(4, dtype=np.float32), np.arange(4), backend="cpu")
    seen.append(float(loss))
threads = [threading.Thread(target=call) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
(loss,) = set(seen)
assert len(seen) == 8
print(json.dumps([loss, ""]))
"""


def start(code=CHILD, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def child(code=CHILD, **environment):
    """The loss, the cache's directory, and all that was printed."""
    process = start(code, **environment)
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


def test_a_cache_that_refuses_every_write_is_read(filled):
    """The same without asking the system; and what is not in it is compiled all the same."""
    place, loss = filled
    again, where, log = child(REFUSED + CHILD, SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert where.startswith(str(place))
    assert "data loaded from" in log
    path = next(path for path in files(place) if path.name in log)
    whole = path.read_bytes()
    path.unlink()
    try:
        again, _, log = child(REFUSED + CHILD, SCE_CACHE_DIR=str(place), NUMBA_DEBUG_CACHE="1")
        assert again == loss
        assert "data saved to" not in log
        assert not path.exists()
    finally:
        path.write_bytes(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_a_process_that_is_killed_while_it_writes(filled, tmp_path):
    """What it had finished is used, what it had not is not seen, and the next one is right."""
    _, loss = filled
    killed = start(KILLED + CHILD, SCE_CACHE_DIR=str(tmp_path))
    killed.communicate(timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert len(files(tmp_path)) == 2
    (half,) = tmp_path.rglob("*.tmp")
    again, _, log = child(SCE_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert "data loaded from" in log
    assert "data saved to" in log
    assert half.exists()
    _, _, log = child(SCE_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert "data saved to" not in log


def test_threads_that_ask_at_once_compile_once(filled, tmp_path):
    _, loss = filled
    again, _, log = child(THREADS, SCE_CACHE_DIR=str(tmp_path), NUMBA_DEBUG_CACHE="1")
    assert again == loss
    assert log.count("data saved to") == len(files(tmp_path))
    assert "data loaded from" not in log


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
