"""The registered backends, as a fixture: a test that takes `backend` runs on each that runs here."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from sce import registry
from sce.backend import BackendError, memory_at


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="run the tests of backends on this one alone; that it cannot run is a failure then (repeatable)",
    )


def pytest_configure(config):
    for name in config.getoption("backend"):
        try:
            registry.load(name)
        except BackendError as exc:
            raise pytest.UsageError(f"--backend: {exc}") from exc


def objection(name):
    """Why the tests leave a registered backend out unless it is named, or None."""
    try:
        if registry.load(name).debug:
            return "a debug backend: it runs when named"
        return registry.missing(name)
    except BackendError as exc:  # somebody else's broken registration
        return str(exc)


def pytest_report_header(config):
    if config.getoption("backend"):
        return None
    return [
        f"backend {name}: {'tested' if why is None else f'NOT tested: {why}'}"
        for name, why in ((name, objection(name)) for name in sorted(registry.registered()))
    ]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        here = [name for name in sorted(registry.registered()) if objection(name) is None]
        metafunc.parametrize("backend", metafunc.config.getoption("backend") or here, indirect=True)


@pytest.fixture
def backend(request):
    """A backend's name. One that does not run here is a failure: only `--backend` can have named it."""
    if why := registry.missing(request.param):
        pytest.fail(f"--backend {request.param}: {why}", pytrace=False)
    return request.param


@pytest.fixture
def pretended(monkeypatch):
    """A backend for arrays on a device, which is the emulator; it remembers what it was asked."""
    pytest.importorskip("greenlet", reason="the emulator needs greenlet")
    from sce_backends.cuda import emulated, execute

    module = ModuleType("pretended.cuda")
    module.on_device, module.debug, module.takes_binary = True, False, True
    module.launches, module.problems, module.inspected = [], [], []
    module.refuses = lambda problem: None
    module.missing = lambda: None

    def machine():
        made = emulated.Machine()
        made.launches = module.launches
        return made

    class Bound:
        """In the emulator, at the addresses it is given."""

        def __init__(self, problem, answer):
            self.given = problem, answer

        def there(self, at):
            found = iter(at)
            for part in self.given:
                arrays = {k: x for k, x in part._asdict().items() if isinstance(x, np.ndarray)}
                yield part._replace(
                    **{k: memory_at(next(found), x.shape, x.dtype, x.strides) for k, x in arrays.items()}
                )

        @np.errstate(all="ignore")  # the emulator's arithmetic is NumPy's
        def inspect(self, at, stream):
            module.inspected.append(self.given[0])
            return execute.illegal(next(self.there(at)), machine(), np.copy)

        @np.errstate(all="ignore")
        def run(self, at, stream):
            module.problems.append(self.given[0])
            execute.execute(*self.there(at), machine())

    module.run = None
    module.bind = Bound
    module.total_weight = lambda problem: float(execute.total_weight(problem, machine())[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield module
    registry.load.cache_clear()
