"""`bin/test`: what it counts, and what becomes of tests that fail only beside others."""

import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
# Fails as often as its folder has a file for it, each of which it removes.
TESTS = """
import pathlib, pytest

@pytest.mark.parametrize("number", range(5))
def test_it(number):
    for path in sorted(pathlib.Path(__file__).parent.glob(f"fail-{number}-*")):
        path.unlink()
        pytest.fail("once less")
"""


@pytest.fixture
def module(monkeypatch):
    """bin/test, as a module."""
    loader = SourceFileLoader("bin_test", str(REPO / "bin/test"))
    made = module_from_spec(spec_from_loader("bin_test", loader))
    monkeypatch.setitem(sys.modules, "bin_test", made)
    loader.exec_module(made)
    return made


def test_every_file_of_tests_is_run_by_somebody(module):
    """Those on the real peers are named in bin/test, those of a whole site in a scenario."""
    named = {f"test_{name}.py" for names in module.ON_PEERS.values() for name in names}
    for path in (REPO / "molecule").glob("*/molecule.yml"):
        named |= set(re.findall(r"/(test_\w+\.py)$", path.read_text(), re.MULTILINE))
    there = {path.name for path in (REPO / "tests/integration").glob("test_*.py")}
    by_hand = {"test_overload.py"}  # a measurement, which wants the machine for itself
    assert there - named == by_hand


@pytest.fixture
def command(module, tmp_path, monkeypatch):
    """`command(again=True, failures={number: times})`: bin/test with one step, those five tests; its exit status."""
    monkeypatch.setattr(module, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(module, "REPO", tmp_path)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setenv("PATH", f"{REPO / '.venv/bin'}:/usr/bin:/bin")
    (tmp_path / "test_them.py").write_text(TESTS)

    def run(failures, *, again=True):
        for number, times in failures.items():
            for time in range(times):
                (tmp_path / f"fail-{number}-{time}").touch()
        quick = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        step = module.Step("them", "pytest test_them.py", "light", 60, quick, counts_tests=True, again=again)
        monkeypatch.setattr(module, "STEPS", [step])
        return module.main([])

    return run


def test_what_passes_is_counted(command, capsys):
    assert command({}) == 0
    assert "\n5 passed, 0 failed\n" in capsys.readouterr().out


def test_what_fails_once_and_passes_alone_is_named(command, capsys):
    assert command({1: 1, 3: 1}) == 0
    said = capsys.readouterr().out
    assert "\n5 passed, 0 failed\n" in said
    for number in (1, 3):
        assert f"unsteady: failed beside other steps, and passed alone: test_them.py::test_it[{number}]\n" in said


@pytest.mark.parametrize(
    ("failures", "again", "summary"),
    [
        ({1: 2}, True, "4 passed, 1 failed"),
        ({1: 1, 2: 2}, True, "3 passed, 2 failed"),
        ({0: 1, 1: 1, 2: 1, 3: 1}, True, "1 passed, 4 failed"),
        ({1: 1}, False, "4 passed, 1 failed"),
    ],
)
def test_what_fails_again_or_is_too_much_or_cannot_be_asked_alone_has_failed(command, capsys, failures, again, summary):
    assert command(failures, again=again) == 1
    said = capsys.readouterr().out
    assert f"\n{summary}\n" in said
    assert "unsteady" not in said
