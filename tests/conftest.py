"""The registered backends, as a fixture: a test that takes `backend` runs on each."""

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


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        names = metafunc.config.getoption("backend") or sorted(registry.registered())
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request):
    """A backend's name. Where it does not run here the test is skipped, or fails if `--backend` named it."""
    name, named = request.param, request.config.getoption("backend")
    why = registry.missing(name)
    if why is not None and named:
        pytest.fail(f"--backend {name}: {why}", pytrace=False)
    if why is not None:
        pytest.skip(why)
    if registry.load(name).debug and not named:
        pytest.skip(f"{name} is a debug backend: it runs when named, --backend {name}")
    return name
