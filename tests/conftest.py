"""The registered backends, as a fixture: a test that takes `backend` runs on each that runs here."""

from __future__ import annotations

import pytest

from sce import registry
from sce.backend import BackendError


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
