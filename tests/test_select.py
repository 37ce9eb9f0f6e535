"""The choice of a backend: who may ask, what a name and `auto` mean, and how a bad registration is reported.

Backends here are tiny modules written to a temporary directory, registered by real distribution metadata
(a .dist-info folder on sys.path) or by replacing `registry.registered`.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import subprocess
import sys
import textwrap
import threading
from importlib.metadata import EntryPoint

import numpy as np
import pytest

import sce
from sce import registry, select
from sce.problem import prepare

X, Y = np.array([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]]), np.array([2, 0])

GOOD = """
from sce_backends import reference

on_device = False
debug = False
calls = []

def refuses(problem):
    calls.append("refuses")
    return None

def missing():
    calls.append("missing")
    return None

def run(problem, answer):
    calls.append("run")
    reference.run(problem, answer)
"""


def forget():
    """What the registry remembers, forgotten."""
    for cached in (registry.registered, registry.load):
        getattr(cached, "cache_clear", lambda: None)()
    registry._ready.clear()


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.delenv(select.ENV, raising=False)
    forget()
    loaded = set(sys.modules)
    yield
    forget()
    for name in set(sys.modules) - loaded:
        if name.startswith("acme"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a module; its source may say more than GOOD."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, source=GOOD):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return name

    return write


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with entry points, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(dist, points, extras=()):
        info = tmp_path / f"{dist.replace('-', '_')}-1.0.dist-info"  # importlib.metadata splits at the "-"
        info.mkdir()
        lines = [
            "Metadata-Version: 2.1",
            f"Name: {dist}",
            "Version: 1.0",
            *(f"Provides-Extra: {e}" for e in extras),
        ]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        body = "\n".join(f"{name} = {value}" for name, value in points.items())
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{body}\n")
        importlib.invalidate_caches()
        forget()

    return install


@pytest.fixture
def only(monkeypatch):
    """Let the registry know these entry points and no others."""

    def only(**values):
        known = {name: (EntryPoint(name, value, registry.GROUP),) for name, value in values.items()}
        monkeypatch.setattr(registry, "registered", lambda: known)

    return only


def problem(**options):
    return prepare(X, Y, outputs=("loss", "grad"), **options).problem


def calls(name):
    return importlib.import_module(name).calls


# ---------------------------------------------------------------- who may ask


def test_argument_before_context_before_environment_before_auto(write, monkeypatch):
    names = {how: write(f"acme_{how}.backend") for how in ("argument", "context", "environment")}
    assert select.decide(problem()).asked_by == "default"
    monkeypatch.setenv(select.ENV, names["environment"])
    assert sce.explain(X, Y)[:2] == (names["environment"], "SCE_BACKEND")
    with sce.use(names["context"]):
        assert sce.explain(X, Y)[:2] == (names["context"], "sce.use")
        assert sce.explain(X, Y, backend=names["argument"])[:2] == (names["argument"], "backend=")
        assert sce.explain(X, Y, backend="auto").asked_by == "backend="
        with sce.use("auto"):
            assert sce.explain(X, Y).asked_by == "sce.use"
            assert sce.explain(X, Y).chosen in select.AUTO
    assert sce.explain(X, Y).chosen == names["environment"]
    monkeypatch.setenv(select.ENV, "auto")
    assert sce.explain(X, Y).asked_by == "SCE_BACKEND"
    assert sce.explain(X, Y).chosen in select.AUTO


def test_the_call_obeys_what_explain_says(write, monkeypatch):
    first, second = write("acme_first.backend"), write("acme_second.backend")
    sce.cross_entropy(X, Y, backend=first)
    assert "run" in calls(first)
    with sce.use(second):
        for call in (
            lambda: sce.loss_and_grad(X, Y), lambda: sce.cross_entropy(X, Y), lambda: sce.evaluate(X, Y),
            lambda: sce.softmax(X), lambda: sce.log_softmax(X), lambda: sce.logsumexp(X),
        ):  # fmt: skip
            before = calls(second).count("run")
            call()
            assert calls(second).count("run") == before + 1
    assert calls(first).count("run") == 1


def test_the_environment_is_read_per_call_and_empty_means_unset(write, monkeypatch):
    name = write("acme_env.backend")
    assert sce.explain(X, Y).asked_by == "default"
    monkeypatch.setenv(select.ENV, name)
    assert sce.explain(X, Y).chosen == name
    monkeypatch.setenv(select.ENV, "")
    assert sce.explain(X, Y).asked_by == "default"
    monkeypatch.setenv(select.ENV, "refrence")
    with pytest.raises(sce.BackendError, match="Did you mean 'reference'") as caught:
        sce.cross_entropy(X, Y)
    assert "asked by SCE_BACKEND" in str(caught.value.__notes__)
    assert float(sce.cross_entropy(X, Y, backend="reference")) > 0  # the argument overrides a bad environment


def test_use_nests_and_restores_after_errors():
    def asked():
        return sce.explain(X, Y)[:2]

    outside = asked()
    with sce.use("reference"):
        inside = asked()
        assert inside == ("reference", "sce.use")
        with sce.use("auto"):
            assert asked()[1] == "sce.use"
            with sce.use("reference"):
                assert asked() == inside
        assert asked() == inside
        with pytest.raises(ZeroDivisionError), sce.use("auto"):
            raise ZeroDivisionError
        assert asked() == inside
        with pytest.raises(sce.BackendError), sce.use("refrence"):
            raise AssertionError("a bad name must fail at the door")
        assert asked() == inside
    assert asked() == outside


def test_use_decorates_a_function_that_calls_itself():
    seen = []

    @sce.use("reference")
    def work(depth):
        seen.append(sce.explain(X, Y).asked_by)
        if depth:
            work(depth - 1)
        seen.append(sce.explain(X, Y).asked_by)

    work(2)
    assert seen == ["sce.use"] * 6
    assert sce.explain(X, Y).asked_by == "default"


def test_use_is_local_to_a_thread():
    seen = []
    with sce.use("reference"):
        thread = threading.Thread(target=lambda: seen.append(sce.explain(X, Y).asked_by))
        thread.start()
        thread.join()
        carried = contextvars.copy_context()
        thread = threading.Thread(target=lambda: seen.append(carried.run(sce.explain, X, Y).asked_by))
        thread.start()
        thread.join()
    assert seen == ["default", "sce.use"]


def test_use_is_local_to_a_task():
    async def one(name, gate, other):
        with sce.use(name):
            gate.set()
            await other.wait()  # both are inside their blocks now
            return sce.explain(X, Y)[:2]

    async def both():
        a, b = asyncio.Event(), asyncio.Event()
        got = await asyncio.gather(one("reference", a, b), one("auto", b, a))
        return got, sce.explain(X, Y).asked_by

    (named, automatic), after = asyncio.run(both())
    assert named == ("reference", "sce.use")
    assert automatic[1] == "sce.use"
    assert after == "default"


# ---------------------------------------------------------------- a name is an order


def test_a_named_backend_that_refuses_is_an_error_not_a_fallback(write):
    name = write("acme_refuses.backend", GOOD + "\ndef refuses(problem):\n    return 'no float64 here.'\n")
    with pytest.raises(
        sce.BackendError, match=rf"backend '{name}' cannot run this \(asked by backend=\): no float64 here\."
    ):
        sce.cross_entropy(X, Y, backend=name)
    with sce.use(name), pytest.raises(sce.BackendError, match=r"asked by sce\.use"):
        sce.cross_entropy(X, Y)
    assert "run" not in calls(name)
    decision = sce.explain(X, Y, backend=name)
    assert decision == (None, "backend=", ((name, "no float64 here."),))


def test_a_named_backend_that_is_missing_is_an_error_not_a_fallback(write, monkeypatch):
    name = write("acme_missing.backend", GOOD + "\ndef missing():\n    return 'no such chip.'\n")
    for ask in ("argument", "environment"):
        with monkeypatch.context() as patch:
            if ask == "environment":
                patch.setenv(select.ENV, name)
            with pytest.raises(sce.BackendError, match="no such chip"):
                sce.cross_entropy(X, Y, backend=name if ask == "argument" else None)
    assert "run" not in calls(name)


def test_the_facts_are_asked_before_the_machine(write):
    """`missing` may import a heavy library; a problem that is refused must not pay for it."""
    name = write("acme_order.backend", GOOD + "\ndef refuses(problem):\n    return 'no.'\n")
    sce.explain(X, Y, backend=name)
    assert calls(name) == []


def test_out_of_a_refused_call_is_untouched(write):
    name = write("acme_out.backend", GOOD + "\ndef missing():\n    return 'no.'\n")
    out = np.full_like(X, 7)
    with pytest.raises(sce.BackendError):
        sce.loss_and_grad(X, Y, out=out, backend=name)
    assert (out == 7).all()


# ---------------------------------------------------------------- auto is a search


def test_auto_takes_the_first_that_runs_and_says_why_not_the_others(write, only):
    only(
        cuda=write("acme_cuda.backend", GOOD + "\non_device = True\n"),
        cpu=write("acme_cpu.backend", GOOD + "\ndef missing():\n    return 'no compiler.'\n"),
        reference=write("acme_reference.backend"),
    )
    decision = sce.explain(X, Y)
    assert decision.chosen == "reference"
    assert [name for name, _ in decision.passed_over] == ["cuda", "cpu"]
    assert "never moves data" in decision.passed_over[0][1]
    assert decision.passed_over[1][1] == "no compiler."
    assert str(decision).splitlines() == [
        "reference (asked by default)",
        "  cuda: auto never moves data between host and device.",
        "  cpu: no compiler.",
    ]
    sce.cross_entropy(X, Y)
    assert "run" in calls("acme_reference.backend")


def test_host_arrays_never_wake_a_device_backend(write, only):
    only(
        cuda=write("acme_asleep.backend", GOOD + "\non_device = True\n"),
        cpu=write("acme_awake.backend"),
        reference="sce_backends.reference",
    )
    for _ in range(3):
        sce.loss_and_grad(X, Y)
        sce.explain(X, Y)
    assert calls("acme_asleep.backend") == []


def test_the_real_cuda_door_is_not_asked_for_host_arrays(monkeypatch):
    def woken():
        raise AssertionError("the CUDA backend was asked whether this machine has a device")

    monkeypatch.setattr(registry.load("cuda"), "missing", woken)
    sce.explain(X, Y)
    sce.cross_entropy(X, Y, backend="reference")


def test_auto_considers_built_in_names_only(write, install):
    """Installing a package changes no answer."""
    write("acme_third.backend")
    before = sce.explain(X, Y)
    install("acme-third", {"aaa": "acme_third.backend", "fastest": "acme_third.backend"})
    assert {"aaa", "fastest"} <= set(registry.registered())
    assert sce.explain(X, Y) == before
    assert sce.explain(X, Y, backend="fastest").chosen == "fastest"


def test_auto_with_nothing_that_runs_gives_every_reason(write, only):
    refusing = GOOD + "\ndef refuses(problem):\n    return 'not me.'\n"
    only(**{name: write(f"acme_none_{name}.backend", refusing) for name in select.AUTO})
    with pytest.raises(sce.BackendError) as caught:
        sce.cross_entropy(X, Y)
    for name in select.AUTO:
        assert f"{name}: not me." in str(caught.value)
    assert sce.explain(X, Y).chosen is None


def test_a_decision_is_pure():
    facts = problem()
    assert select.decide(facts, "reference") == select.decide(facts, "reference")
    with pytest.raises(AttributeError):
        select.decide(facts, "reference").chosen = "cpu"


# ---------------------------------------------------------------- registration


def test_names_by_entry_point(write, install):
    write("acme_named.backend")
    install("acme-named", {"acme": "acme_named.backend"})
    sce.cross_entropy(X, Y, backend="acme")
    assert "run" in calls("acme_named.backend")
    assert sce.backends()["acme"] is None
    with pytest.raises(
        sce.BackendError, match=r"unknown backend 'acm'; registered: acme, .*Did you mean 'acme'\?"
    ):
        sce.cross_entropy(X, Y, backend="acm")


def test_an_entry_point_may_name_an_object(write, install):
    write("acme_object.backends", "import types\n" + GOOD + "\nmine = types.SimpleNamespace(**globals())\n")
    install("acme-object", {"acme": "acme_object.backends:mine"})
    assert sce.cross_entropy(X, Y, backend="acme") == sce.cross_entropy(X, Y, backend="reference")


def test_registering_imports_nothing(write, install):
    write("acme_lazy.backend", "raise AssertionError('imported')")
    install("acme-lazy", {"lazy": "acme_lazy.backend"})
    assert "lazy" in registry.registered()
    sce.cross_entropy(X, Y, backend="reference")
    sce.explain(X, Y)
    assert "acme_lazy.backend" not in sys.modules


def test_two_distributions_that_claim_a_name(write, install):
    write("acme_one.backend")
    write("acme_two.backend")
    install("acme-one", {"twice": "acme_one.backend"})
    install("acme-two", {"twice": "acme_two.backend"})
    words = "backend 'twice' is claimed by acme-one, acme-two: uninstall all but one"
    with pytest.raises(sce.BackendError, match=words):
        sce.cross_entropy(X, Y, backend="twice")
    assert words in sce.backends()["twice"]
    sce.cross_entropy(X, Y)  # nobody else is disturbed
    sce.cross_entropy(X, Y, backend="acme_one.backend")  # and the import path still works


def test_a_clash_over_a_built_in_name_is_an_error_even_under_auto(write, install):
    """Otherwise which one runs would depend on the order of sys.path."""
    write("acme_clash.backend")
    install("acme-clash", {"cuda": "acme_clash.backend"})
    with pytest.raises(sce.BackendError, match=r"backend 'cuda' is claimed by acme-clash, sce") as caught:
        sce.cross_entropy(X, Y)
    assert "asked by default" in str(caught.value.__notes__)
    sce.cross_entropy(X, Y, backend="reference")


def test_the_same_claim_listed_twice_is_one(write, install):
    """An editable install beside a wheel."""
    write("acme_same.backend")
    install("acme-same", {"same": "acme_same.backend"})
    install("acme-same-again", {"same": "acme_same.backend"})
    assert len(registry.registered()["same"]) == 1
    sce.cross_entropy(X, Y, backend="same")


def test_no_registration_at_all(monkeypatch):
    monkeypatch.setattr(registry, "registered", dict)
    with pytest.raises(sce.BackendError, match=r"no backend is registered: is sce installed\?.*pip install"):
        sce.cross_entropy(X, Y)


@pytest.mark.parametrize(
    "error", ["ImportError('no libfoo')", "RuntimeError('no libfoo')", "OSError('no libfoo')"]
)
def test_a_backend_that_fails_to_import(write, install, error):
    write("acme_broken.backend", f"raise {error}")
    install("acme-broken", {"broken": "acme_broken.backend"}, extras=["broken"])
    with pytest.raises(
        sce.BackendError, match=r"backend 'broken' \(acme_broken\.backend\) failed to import.*no libfoo"
    ):
        sce.cross_entropy(X, Y, backend="broken")
    assert "no libfoo" in sce.backends()["broken"]
    sce.cross_entropy(X, Y)


def test_a_failed_import_is_tried_again(write):
    name = write("acme_retry.backend", "raise ImportError('not yet')")
    with pytest.raises(sce.BackendError, match="not yet"):
        sce.cross_entropy(X, Y, backend=name)
    write("acme_retry.backend", GOOD + "\n# installed now\n")
    assert sce.cross_entropy(X, Y, backend=name) == sce.cross_entropy(X, Y, backend="reference")


@pytest.mark.parametrize("lacking", ["on_device", "debug", "refuses", "missing", "run"])
def test_a_module_that_lacks_a_name(write, lacking):
    name = write("acme_lacking.backend", GOOD + f"\ndel {lacking}\n")
    with pytest.raises(
        sce.BackendError, match=rf"{name} is not a backend: it lacks {lacking}; see sce\.backend"
    ):
        sce.cross_entropy(X, Y, backend=name)


def test_a_name_with_a_dot_is_an_import_path(write):
    for name in (write("acme_path.backend"), write("acme_path.deep.backend")):
        sce.cross_entropy(X, Y, backend=name)
        assert "run" in calls(name)
        with sce.use(name):
            assert sce.explain(X, Y).chosen == name
        assert name not in sce.backends()


# ---------------------------------------------------------------- missing, and what to install


def test_missing_that_raises_import_error_gets_the_pip_command(write, install):
    write("acme_heavy.backend", GOOD + "\ndef missing():\n    import acme_not_there\n")
    install("acme-heavy", {"heavy": "acme_heavy.backend"}, extras=["heavy", "other"])
    why = "No module named 'acme_not_there'. Try: pip install 'acme-heavy[heavy]'"
    assert sce.backends()["heavy"] == why
    with pytest.raises(sce.BackendError) as caught:
        sce.cross_entropy(X, Y, backend="heavy")
    assert why in str(caught.value)


def test_no_pip_command_without_an_extra_of_that_name(write, install):
    write("acme_plain.backend", GOOD + "\ndef missing():\n    import acme_not_there\n")
    install("acme-plain", {"plain": "acme_plain.backend"}, extras=["other"])
    assert sce.backends()["plain"] == "No module named 'acme_not_there'."
    with pytest.raises(sce.BackendError, match="No module named 'acme_not_there'") as caught:
        sce.cross_entropy(X, Y, backend="acme_plain.backend")
    assert "pip install" not in str(caught.value)


def test_the_built_in_extras_carry_their_backends_names():
    """What makes the hint right for our own backends."""
    for name in ("cpu", "cuda"):
        assert registry.install_hint(name) == f" Try: pip install 'sce[{name}]'"
    assert registry.install_hint("reference") == ""


def test_missing_that_breaks_is_a_reason_and_spoils_no_listing(write, install):
    """A driver library that fails to load raises OSError, and `sce.backends()` is how one finds out."""
    write("acme_driver.backend", GOOD + "\ndef missing():\n    raise OSError('libfoo.so: bad ELF')\n")
    install("acme-driver", {"driver": "acme_driver.backend"})
    assert "libfoo.so: bad ELF" in sce.backends()["driver"]
    with pytest.raises(sce.BackendError, match=r"libfoo\.so: bad ELF"):
        sce.cross_entropy(X, Y, backend="driver")


def test_only_success_is_remembered(write):
    name = write(
        "acme_later.backend",
        GOOD + "\nwhy = 'not yet.'\ndef missing():\n    calls.append('missing')\n    return why\n",
    )
    module = importlib.import_module(name)
    assert registry.missing(name) == "not yet."
    assert registry.missing(name) == "not yet."
    module.why = None
    for _ in range(3):
        assert registry.missing(name) is None
    assert module.calls.count("missing") == 3


def test_backends_lists_every_registration_with_its_reason():
    listed = sce.backends()
    assert list(listed) == sorted(registry.registered())
    assert {"reference", "cpu", "cuda"} <= set(listed)
    assert listed["reference"] is None
    assert all(why is None or (isinstance(why, str) and why.strip()) for why in listed.values())


# ---------------------------------------------------------------- explain


def test_explain_checks_the_arguments_like_the_call():
    with pytest.raises(sce.LabelError, match="label 9"):
        sce.explain(X, [0, 9])
    with pytest.raises(ValueError, match="temperature"):
        sce.explain(X, Y, temperature=0.0)
    with pytest.raises(sce.BackendError, match="unknown backend"):
        sce.explain(X, Y, backend="refrence")


def test_explain_runs_nothing_and_needs_no_target(write):
    name = write("acme_explain.backend")
    assert str(sce.explain(X, backend=name)) == f"{name} (asked by backend=)"
    assert "run" not in calls(name)


def test_a_fresh_process_obeys_the_environment():
    code = "import sce; print(sce.explain([[0.0, 1.0]], [1]))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"SCE_BACKEND": "reference", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "reference (asked by SCE_BACKEND)"
