"""The CPU backend's threads: any number of callers, forks and interrupts, and how many threads compute."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import sce

pytest.importorskip("numba", reason="the cpu backend needs numba: pip install 'sce[cpu]'")
from numba.np.ufunc import parallel

from sce_backends.cpu import launch, threads

LAYERS = ("omp", "workqueue", "tbb")
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
pins = pytest.mark.skipif(threads._current_core is None, reason="this system does not say which core")

# What every child starts with: a problem for several threads, its answer, and how to ask for it.
START = """
import os, signal, sys, threading, time
import numba, numpy as np, sce
X, Y = np.random.default_rng(0).normal(size=(24_000, 50)).astype(np.float32), np.arange(24_000) % 50
def call(_=None):
    loss, grad = sce.loss_and_grad(X, Y, backend="cpu")
    return loss.tobytes() + grad.tobytes()
def helpers():  # 1 to 3 after a call: one that is done already is asked again before another is started
    return sum(t.name.startswith("sce-") for t in threading.enumerate())
with sce.threads(1):
    want = call()
"""


def child(code, **environment):
    """What a fresh process prints; its end must be a good one. Four threads, whatever the machine has."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START + textwrap.dedent(code)],
        env={**os.environ, "NUMBA_NUM_THREADS": "4", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.fixture
def four(monkeypatch):
    """Four threads, whatever the machine has and whatever ran before."""
    monkeypatch.setattr(parallel, "_get_num_threads", lambda: 4, raising=False)
    monkeypatch.delenv("SCE_NUM_THREADS", raising=False)
    monkeypatch.setattr("sce.settings.usable_cores", lambda: 4)


def some(n, c, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, c)) * 3).astype(dtype), rng.integers(0, c, n)


# Many callers.

LAYER = """
@numba.njit(parallel=True)
def theirs(x):
    total = 0.0
    for i in numba.prange(x.size):
        total += x[i]
    return total
try:
    theirs(np.ones(10))
except ValueError as exc:
    sys.exit(print("absent:", exc))
"""


def on_layer(layer, code):
    said = child(LAYER + textwrap.dedent(code), NUMBA_THREADING_LAYER=layer)
    if said.startswith("absent:"):
        pytest.skip(f"Numba cannot load its {layer} layer here")
    return said


@pytest.mark.parametrize("layer", LAYERS)
def test_64_threads_call_at_once_beside_the_user_s_own_parallel_loop(layer):
    code = """
    start, seen = threading.Barrier(65), []
    def calls():
        start.wait()
        seen.extend(call() for _ in range(3))
    callers = [threading.Thread(target=calls) for _ in range(64)]
    [t.start() for t in callers]
    start.wait()
    ones, sums = np.ones(10_000), 0
    while any(t.is_alive() for t in callers):
        assert theirs(ones) == 10_000
        sums += 1
    print(len(seen), set(seen) == {want}, sums > 0, helpers() <= 3)
    """
    assert on_layer(layer, code) == "192 True True True\n"


@pytest.mark.parametrize("layer", LAYERS)
def test_calls_from_inside_the_user_s_own_parallel_loop(layer):
    code = """
    import ctypes
    @ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)
    def ours(i):
        return float(call() == want)
    @numba.njit(parallel=True)
    def loop(n):
        out = np.zeros(n)
        for i in numba.prange(n):
            out[i] = ours(i)
        return out
    print(loop(16).sum())
    """
    assert on_layer(layer, code) == "16.0\n"


@forks
@pytest.mark.parametrize("layer", LAYERS)
def test_forked_children_have_helpers_of_their_own(layer):
    code = """
    import multiprocessing
    theirs(np.ones(10))
    assert call() == want  # wakes the helpers before the fork
    def child(_):
        return call() == want, helpers()
    with multiprocessing.get_context("fork").Pool(4) as pool:
        right, many = zip(*pool.map(child, range(12), chunksize=1))
    print(all(right), set(many) <= {1, 2, 3}, call() == want)
    """
    assert on_layer(layer, code) == "True True True\n"


@forks
def test_a_child_forked_while_another_thread_computes_and_another_compiles(tmp_path):
    code = """
    def compiles():
        sce.cross_entropy(X, Y, label_smoothing=0.1, backend="cpu")
        done.set()
    def computes():
        while not done.is_set():
            call()
    done = threading.Event()
    others = [threading.Thread(target=f) for f in (compiles, computes)]
    [t.start() for t in others]
    children = []
    while not done.is_set():
        if not (pid := os.fork()):
            signal.alarm(60)  # a deadlock ends here
            os._exit(int(call() != want or np.isnan(sce.cross_entropy(X, Y, z_loss=0.1, backend="cpu"))))
        children.append(pid)
        time.sleep(0.05)
    [t.join() for t in others]
    print(bool(children), {os.waitpid(pid, 0)[1] for pid in children})
    """
    assert child(code, SCE_CACHE_DIR=str(tmp_path)) == "True {0}\n"


def test_callers_share_the_helpers(four):
    logits, target = some(24_000, 50)
    want = sce.loss_and_grad(logits, target, backend="cpu")[1].tobytes()
    seen = []

    def call():
        seen.extend(sce.loss_and_grad(logits, target, backend="cpu")[1].tobytes() for _ in range(5))

    callers = [threading.Thread(target=call) for _ in range(16)]
    for t in callers:
        t.start()
    for t in callers:
        t.join()
    assert len(seen) == 80
    assert set(seen) == {want}
    assert sum(t.name.startswith("sce-") for t in threading.enumerate()) <= 3


# How many threads.


def test_numba_s_own_numbers_are_respected_and_its_threads_left_alone():
    code = """
    def started():
        try:
            return bool(numba.threading_layer())
        except ValueError:
            return False
    call()
    print(0 < helpers() <= 3, started())
    numba.set_num_threads(2)
    call()
    print(sce.backends()["cpu"], numba.get_num_threads())
    from sce_backends.cpu import threads
    print(threads.available())
    """
    assert child(code, NUMBA_THREADING_LAYER="workqueue") == "True False\nNone 2\n2\n"
    assert child("call(); print(helpers())", NUMBA_NUM_THREADS="1") == "0\n"


def test_a_threading_layer_that_is_not_there_is_no_matter():
    assert child("print(call() == want)", NUMBA_THREADING_LAYER="no-such-layer") == "True\n"


@pytest.mark.parametrize(("limit", "used"), [(1, 1), (2, 2), (4, 4), (None, 4)])
def test_the_limit_is_how_many_compute(four, monkeypatch, limit, used):
    asked = []
    together = threads.together
    monkeypatch.setattr(
        threads, "together", lambda work, workers: (asked.append(workers), together(work, workers))
    )
    logits, target = some(24_000, 50)

    def call():
        sce.loss_and_grad(logits, target, backend="cpu")

    if limit is None:
        call()
    else:
        with sce.threads(limit):
            call()
        monkeypatch.setenv("SCE_NUM_THREADS", str(limit))
        call()
    assert set(asked) == {used}


def test_numba_s_number_counts_where_it_is_smaller(four, monkeypatch):
    monkeypatch.setattr(parallel, "_get_num_threads", lambda: 3)
    assert threads.available() == 3
    with sce.threads(4):
        assert threads.available() == 3
    with sce.threads(2):
        assert threads.available() == 2
    assert [threads.workers(parts) for parts in (1, 2, 3, 10)] == [1, 2, 3, 3]


def test_a_wrong_environment_is_an_error_before_anything_is_written(four, monkeypatch):
    monkeypatch.setenv("SCE_NUM_THREADS", "0")
    logits, target = some(24_000, 50)
    out = np.full_like(logits, 7)
    with pytest.raises(ValueError, match="SCE_NUM_THREADS is 0"):
        sce.loss_and_grad(logits, target, out=out, backend="cpu")
    assert (out == 7).all()


def test_info_tells_the_number(monkeypatch):
    from sce.cli import info

    monkeypatch.setenv("SCE_NUM_THREADS", "1")
    assert info.collect()["details"]["cpu"]["threads"] == "1"


# On which cores.

WHERE = """
from sce_backends.cpu import threads
def where():
    # The cores that a helper may run on, as itself sees them. One that is still busy does not come.
    began, seen = threading.Event(), []
    def work(worker):
        if worker:
            seen.append(os.sched_getaffinity(0))
            began.set()
        else:
            began.wait(0.1)
    while not seen:
        threads.together(work, 2)
    return seen[0]
"""


@pytest.fixture
def no_helpers(monkeypatch):
    """As before the first call; those that this starts are nobody's afterwards."""
    monkeypatch.setattr(threads, "_idle", threads.deque())
    monkeypatch.setattr(threads, "_helpers", 0)


@pins
def test_a_helper_keeps_off_its_caller_s_core_and_follows_it_to_others():
    code = """
    cores = os.sched_getaffinity(0)
    print(len(cores - where()) == (len(cores) > 1), where() <= cores)
    one = {min(cores)}  # a shell's `taskset` or the user, before or between calls
    os.sched_setaffinity(0, one)
    print(where() == one, call() == want, os.sched_getaffinity(0) == one)
    os.sched_setaffinity(0, cores)
    print(len(cores - where()) == (len(cores) > 1), where() <= cores, os.sched_getaffinity(0) == cores)
    """
    assert child(WHERE + textwrap.dedent(code)) == "True True\nTrue True True\nTrue True True\n"


@pins
def test_all_threads_on_one_core():
    code = """
    one = {min(os.sched_getaffinity(0))}
    os.sched_setaffinity(0, one)
    print(call() == want, 0 < helpers() <= 3, where() == one)
    """
    assert child(WHERE + textwrap.dedent(code)) == "True True True\n"


@pins
@pytest.mark.parametrize(
    ("workers", "core", "to"),
    [
        (2, 3, {0, 1, 2}),
        (4, 0, {1, 2, 3}),
        (5, 0, {0, 1, 2, 3}),  # more threads than cores: all of them
        (2, -1, {0, 1, 2, 3}),  # the system does not know
    ],
)
def test_which_cores_are_the_helpers(monkeypatch, workers, core, to):
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "_current_core", lambda: core)
    assert threads._other_cores(workers) == to


@pins
def test_a_call_leaves_its_caller_where_it_was(four, no_helpers, monkeypatch):
    """Also where a helper has no id of its own yet: the system takes 0 for the caller."""
    before, moved = os.sched_getaffinity(0), []
    logits, target = some(24_000, 50)
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", lambda thread, cores: moved.append(thread))
        threads._idle.append(threads._Helper())
        threads.together(lambda worker: None, 2)
        assert moved == []
        for _ in range(3):
            sce.loss_and_grad(logits, target, backend="cpu")
    assert moved
    assert not set(moved) & {0, threading.get_native_id()}
    for _ in range(3):
        sce.loss_and_grad(logits, target, backend="cpu")
    assert os.sched_getaffinity(0) == before


@pins
def test_a_system_that_moves_no_threads(four, no_helpers, monkeypatch):
    """Some sandboxes forbid it. They are not asked again for the same."""
    refused = []

    def refuse(thread, cores):
        refused.append((thread, *sorted(cores)))
        raise PermissionError(1, "Operation not permitted")

    logits, target = some(24_000, 50)
    with sce.threads(1):
        want = sce.loss_and_grad(logits, target, backend="cpu")[1]
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    monkeypatch.setattr(threads, "_other_cores", lambda workers: {0})
    for _ in range(5):
        assert (sce.loss_and_grad(logits, target, backend="cpu")[1] == want).all()
    assert 1 <= len(refused) == len(set(refused)) <= 3


def test_a_system_that_does_not_say_which_core(four, monkeypatch):
    monkeypatch.setattr(threads, "_current_core", None)
    assert threads._other_cores(2) is None
    logits, target = some(24_000, 50)
    with sce.threads(1):
        want = sce.loss_and_grad(logits, target, backend="cpu")[1]
    assert (sce.loss_and_grad(logits, target, backend="cpu")[1] == want).all()


# The same bits.


@pytest.mark.parametrize(("n", "c"), [(1, 10), (20_000, 3), (4099, 129), (400, 3000), (5, 70_000)])
def test_the_same_bits_for_any_number_of_threads(four, n, c):
    logits, target = some(n, c)
    answers = set()
    for most in (1, 2, 3, 4):
        with sce.threads(most):
            loss, grad = sce.loss_and_grad(logits, target, backend="cpu")
            answers.add((loss.tobytes(), grad.tobytes()))
    assert len(answers) == 1


def test_the_same_bits_in_200_runs_of_any_number_of_threads_and_any_split(four):
    """Whoever takes which chunk, and whichever rows are called together."""
    rng = np.random.default_rng(0)
    logits, target = some(9000, 100)
    loss = sce.cross_entropy(logits, target, backend="cpu")
    rows, grad = sce.loss_and_grad(logits, target, reduction="none", backend="cpu")
    for _ in range(200):
        cuts = np.sort(rng.integers(0, len(target), rng.integers(0, 4)))
        with sce.threads(int(rng.integers(1, 5))):
            assert sce.cross_entropy(logits, target, backend="cpu").tobytes() == loss.tobytes()
            parts = [
                sce.loss_and_grad(x, y, reduction="none", backend="cpu")
                for x, y in zip(np.split(logits, cuts), np.split(target, cuts), strict=True)
            ]
        assert np.concatenate([part[0] for part in parts]).tobytes() == rows.tobytes()
        assert np.concatenate([part[1] for part in parts]).tobytes() == grad.tobytes()


# Interrupts, exceptions, ends.


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
@pytest.mark.parametrize("most", [1, 2])
def test_an_interrupt_ends_a_long_call_early_and_the_next_one_is_right(most):
    """Two seconds of work and more on any machine: a call that were not interrupted would write every row."""
    code = f"""
    rows = 40_000_000
    x = np.broadcast_to(np.linspace(-1, 1, 1000, dtype=np.float32), (rows, 1000))
    y = np.broadcast_to(np.int64(3), rows)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with sce.threads({most}) if {most} <= len(os.sched_getaffinity(0)) else sce.threads(1):
        try:
            sce.evaluate(x, y, outputs=("loss",), reduction="none", backend="cpu", validate=False)
            print("it ran to its end")
        except KeyboardInterrupt:
            print("interrupted")
    print(call() == want)
    """
    assert child(code) == "interrupted\nTrue\n"


INTERRUPTS_WHILE_A_HELPER_WORKS = """
import _thread
import signal
from sce_backends.cpu import threads
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
began, ended = threading.Event(), []
def work(worker):
    if worker:
        began.set()
        for _ in range(5):
            _thread.interrupt_main()
            time.sleep(0.05)
        ended.append(worker)
    else:
        began.wait()
try:
    threads.together(work, 2)
except KeyboardInterrupt:
    print("interrupted", ended)
print(call() == want)
"""


def test_an_interrupt_waits_for_the_helpers():
    """They compute in memory that the interrupted caller is about to free; nor does a second one hurry."""
    assert child(INTERRUPTS_WHILE_A_HELPER_WORKS) == "interrupted [1]\nTrue\n"


def test_an_interrupted_caller_takes_the_remaining_chunks_from_its_helpers(four, monkeypatch):
    """Not the helpers are to finish what the user no longer wants."""
    taken = []

    def take(function, worker, chunks, parameters, counter, most):
        if worker:
            entered.set()
            stop.wait(10)
        else:
            entered.wait(10)
            raise KeyboardInterrupt
        taken.append(ctypes.c_int64.from_address(counter).value)
        return False

    def together(work, workers):
        other = threading.Thread(target=work, args=(1,))
        other.start()
        try:
            work(0)
        finally:
            stop.set()
            other.join()

    entered, stop = threading.Event(), threading.Event()
    monkeypatch.setattr(launch, "_take_chunks", take)
    monkeypatch.setattr(threads, "together", together)
    with pytest.raises(KeyboardInterrupt):
        launch.launch(0, 0, 77, 2)
    assert taken == [77]


def test_an_exception_surfaces_from_a_helper_and_from_the_caller():
    def fails(who):
        began = threading.Barrier(2, timeout=10)

        def work(worker):
            began.wait()
            if worker == who:
                raise LookupError(f"worker {worker}")

        return work

    for who in (0, 1):
        with pytest.raises(LookupError, match=f"worker {who}"):
            threads.together(fails(who), 2)
    threads.together(fails(None), 2)  # the helper is still there


def test_a_helper_that_comes_late_is_not_waited_for_and_does_nothing(monkeypatch):
    asleep = threads._Helper()  # never started
    monkeypatch.setattr(threads, "_idle", threads.deque([asleep]))
    did = []
    threads.together(did.append, 2)
    assert did == [0]
    late = threading.Thread(target=asleep.inbox.get().help)
    late.start()
    late.join()
    assert did == [0]


def test_a_call_inside_a_call_takes_no_helper_from_itself():
    inner = []

    def work(worker):
        threads.together(inner.append, 3)

    threads.together(work, 3)
    assert inner.count(0) >= 1


def test_without_more_threads_the_caller_does_it_all(four, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_idle", threads.deque())
    monkeypatch.setattr(threads, "_helpers", 0)
    monkeypatch.setattr(threading.Thread, "start", start)
    logits, target = some(24_000, 50)
    with sce.threads(1):
        want = sce.loss_and_grad(logits, target, backend="cpu")[1]
    assert (sce.loss_and_grad(logits, target, backend="cpu")[1] == want).all()
    assert threads._helpers == 0


def test_the_process_ends_while_helpers_wait_and_calls_at_exit_are_right():
    code = """
    import atexit
    atexit.register(lambda: print(call() == want))
    call()
    print(0 < helpers())
    """
    assert child(code) == "True\nTrue\n"
