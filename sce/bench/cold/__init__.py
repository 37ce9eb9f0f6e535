"""What a fresh process pays: import, first call, a call's overhead, memory, and what more threads give.

Every figure is taken in a process of its own (fresh.py; inside it, worker.py), so that nothing is loaded,
compiled or allocated that the measurement does not know of. One that fails is a row with the reason, like
one that is missing.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np

from sce import machine
from sce.bench import limit, suites
from sce.bench.clock import Rounds, Times, alternate
from sce.bench.contestant import Answer, Buffers, Contestant, Run
from sce.bench.task import Inputs, Task

from . import worker
from .fresh import Reply, Status, ask

What = Literal["import", "first_answer", "first_call", "decide", "prepare", "call", "memory", "scaling"]
Say = Callable[[str], None]

FIRST = Task("loss_and_grad", 64, 1000)
TINY = Task("loss_and_grad", 1, 10, where="call")
RUNS, EMPTY_RUNS = 5, 2  # processes per contestant; with an empty cache they compile, for seconds each
SCALED = ("cpu", "torch")  # the fastest of ours and of the eager peers: a process for each thread count
_THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_MEMORY = 1 << 28  # bytes of the matrix whose call's memory is measured


class Cost(NamedTuple):
    """One figure. Seconds are medians with their quartiles; None stands for what was not measured.

    import        what must be loaded before a call, over NumPy; of the contestant "sce", `import sce` alone
    first_answer  NumPy, that import, the inputs' conversion, and the first call
    first_call    the first call alone, of `FIRST`
    decide        of a warm call: the choice of the backend
    prepare       of a warm call: arguments checked and brought into canonical form
    call          a whole warm call of `TINY`
    memory        `bytes` that a warm call needs beyond its inputs and its answer
    scaling       a warm call on `threads` threads; the contestant "copy" is the machine's limit
    """

    cost: What
    contestant: str
    n: int | None = None  # of the task
    c: int | None = None
    cache: Literal["empty", "warm"] | None = None  # of compiled kernels, when the process started
    threads: int | None = None
    status: Status = "ok"
    why: str | None = None  # of every status but "ok"
    median_s: float | None = None  # measured inside the process
    low_s: float | None = None
    high_s: float | None = None
    bytes: int | None = None
    runs: int = 0  # measurements behind the median
    process_s: float | None = None  # median of the whole process, start to exit, as its parent sees it


def costs(contestants: Iterable[Contestant], *, quick: bool, say: Say) -> Iterator[Cost]:
    """Quick: of ours, the import, the first call with the user's own cache, and a call's overhead."""
    entered = [contestant for contestant in contestants if contestant.ours or not quick]
    names = [contestant.name for contestant in entered]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"contestants need names of their own: {', '.join(sorted(twice))} is there twice.")
    yield from starts(entered, say, empty=not quick)
    yield from calls(entered, say)
    if not quick:
        yield from memory(entered, say)
        yield from scaling(entered, say)


def starts(contestants: Sequence[Contestant], say: Say, *, empty: bool, task: Task = FIRST) -> Iterator[Cost]:
    """Import and first call, in alternating rounds.

    With `empty`, the first rounds find empty caches, and the others the cache that the last of these filled.
    Without, the cache is the user's, and the first round, which fills it, does not count.
    """
    cold_rounds = EMPTY_RUNS if empty else 1
    replies: dict[str, list[Reply]] = {contestant.name: [] for contestant in contestants}
    with TemporaryDirectory(prefix="sce-cold-", ignore_cleanup_errors=True) as home:
        for turn in range(cold_rounds + RUNS):
            for contestant in contestants:
                found = replies[contestant.name]
                if found and found[-1].status != "ok":
                    continue  # what is missing or fails does so every time
                say(f"{contestant.name}: first call, process {turn + 1} of {cold_rounds + RUNS}")
                caches = Path(home, f"{contestant.name}-{min(turn, cold_rounds - 1)}")
                found.append(ask(worker.start, contestant, task, _caches_in(caches) if empty else {}))
    imports = [reply.figures["sce"] for found in replies.values() for reply in found if reply.status == "ok"]
    if imports:
        yield _timed(Cost("import", "sce"), list(chain(*imports)))
    for contestant in contestants:
        found = [_with_sums(reply, contestant.ours) for reply in replies[contestant.name]]
        warm = found[cold_rounds:] or found[-1:]  # too few: the last one failed
        yield _cost("import", contestant, task, warm)
        for what in ("first_answer", "first_call"):
            if empty:
                yield _cost(what, contestant, task, found[:cold_rounds])._replace(cache="empty")
            yield _cost(what, contestant, task, warm)._replace(cache="warm")


def calls(contestants: Iterable[Contestant], say: Say, task: Task = TINY) -> Iterator[Cost]:
    """The overhead of a warm call; of ours, in its parts."""
    for contestant in contestants:
        say(f"{contestant.name}: the overhead of a call")
        reply = ask(worker.call, contestant, task)
        for what in ("decide", "prepare", "call") if contestant.ours else ("call",):
            yield _cost(what, contestant, task, [reply])


def memory(contestants: Iterable[Contestant], say: Say, task: Task | None = None) -> Iterator[Cost]:
    """What a call on a large matrix allocates and frees again."""
    if task is None:
        size = min(_MEMORY, machine.memory() // 32)  # peers may need it several times over
        task = Task("loss_and_grad", suites.rows(32000, "float32", size), 32000)
    why = worker.why_no_memory()
    for contestant in contestants:
        say(f"{contestant.name}: the memory of a call")
        reply = ask(worker.memory, contestant, task) if why is None else Reply("missing", why)
        yield _cost("memory", contestant, task, [reply])


def scaling(
    contestants: Iterable[Contestant],
    say: Say,
    tasks: Sequence[Task] | None = None,
    most: int | None = None,
) -> Iterator[Cost]:
    """One thread, twice as many, ..., all: the fastest contestants, and the copy of the same matrix."""
    if tasks is None:
        size = suites.past_cache()
        tasks = [Task("loss_and_grad", suites.rows(c, "float32", size), c) for c in (1000, 32000)]
    most = machine.usable_cores() if most is None else most
    entered = [*(contestant for contestant in contestants if contestant.name in SCALED), Copy()]
    for task in tasks:
        for threads in sorted({most, *(1 << i for i in range(most.bit_length()))}):
            for contestant in entered:
                say(f"{contestant.name}: {task.c} classes on {threads} threads")
                reply = ask(worker.scaling, contestant, task, dict.fromkeys(_THREADS, str(threads)))
                yield _cost("scaling", contestant, task, [reply])._replace(threads=threads)


class Copy(NamedTuple):
    """The machine's limit as a contestant: whichever copy of the logits is fastest on these threads."""

    name: str = "copy"
    ours: bool = False

    def missing(self) -> str | None:
        return None

    def refuses(self, task: Task) -> str | None:
        return None

    def buffers(self, task: Task) -> tuple[Buffers, ...]:
        return ("reused",)

    def prepare(self, task: Task, given: Inputs, buffers: Buffers) -> Run:
        pool = ThreadPoolExecutor(machine.threads())
        ways = limit.copies(given.logits, np.empty_like(given.logits), pool)
        for way in ways.values():
            way()  # touches the pages, starts the threads
        times = alternate(ways, Rounds(least=3, enough=0.05))
        best = min(ways, key=lambda way: times[way].median)
        return Run(ways[best], lambda got: Answer(0.0, None))


def _caches_in(directory: Path) -> dict[str, str]:
    """Where compilers keep their work: ours, and torch.compile's."""
    names = ("SCE_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    return {name: os.fspath(directory / name.lower()) for name in names}


def _with_sums(reply: Reply, ours: bool) -> Reply:
    """The figures of `worker.start`, and the sums of some. sce is no part of what a peer loads."""
    if reply.status != "ok":
        return reply
    part = {name: numbers[0] for name, numbers in reply.figures.items()}
    loaded = part["load"] + (part["sce"] if ours else 0.0)
    answered = part["numpy"] + loaded + part["prepare"] + part["first_call"]
    return reply._replace(figures={**reply.figures, "import": [loaded], "first_answer": [answered]})


def _cost(what: What, contestant: Contestant, task: Task, replies: Sequence[Reply]) -> Cost:
    cost = Cost(what, contestant.name, task.n, task.c)
    for reply in replies:
        if reply.status != "ok":
            return cost._replace(status=reply.status, why=reply.why)
    numbers = list(chain(*(reply.figures[what] for reply in replies)))
    cost = cost._replace(process_s=statistics.median(reply.process_s for reply in replies))
    if what == "memory":
        return cost._replace(bytes=int(statistics.median(numbers)), runs=len(numbers))
    return _timed(cost, numbers)


def _timed(cost: Cost, seconds: Sequence[float]) -> Cost:
    times = Times(tuple(seconds))
    low, high = times.quartiles
    return cost._replace(median_s=times.median, low_s=low, high_s=high, runs=len(seconds))
