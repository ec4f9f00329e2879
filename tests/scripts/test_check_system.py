"""scripts/check_system.py on systems that lack something."""

import importlib.util
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "check_system.py"))


def test_nothing_is_missing_where_the_tests_run(script: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    assert script["main"]([]) == 0
    assert script["main"](["--packages"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_missing_library_is_named_with_its_package(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(script["main"].__globals__, "LIBRARIES", ("libGL.so.99", "libglib-2.0.so.99"))
    assert script["main"]([]) == 1
    message = capsys.readouterr().err
    assert "libGL.so.99" in message and "libglib-2.0.so.99" in message
    assert message.endswith("sudo apt-get install -y libgl1 libglib2.0-0\n")
    assert script["main"](["--packages"]) == 0
    assert capsys.readouterr().out == "libgl1 libglib2.0-0\n"


def test_a_python_without_venv_is_named(
    script: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert script["main"]([]) == 1
    assert capsys.readouterr().err.endswith("sudo apt-get install -y python3-venv\n")


def test_python_versions_are_those_of_the_project(script: dict[str, Any]) -> None:
    assert [script["version_fault"]((3, minor)) is None for minor in range(10, 15)] == [False, True, True, True, False]
    assert "make PYTHON=python3.11" in script["version_fault"]((3, 10))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (first, last) = script["PYTHON_VERSIONS"]
    assert project["requires-python"] == f">={first[0]}.{first[1]},<{last[0]}.{last[1]}"
