"""scripts/check_system.py on systems that lack something."""

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.loading import load_script

ROOT = Path(__file__).resolve().parents[2]
script = load_script("check_system")


def test_what_is_missing_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert script.main([]) == 0 and script.main(["--packages"]) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(script, "LIBRARIES", ("libGL.so.99", "libglib-2.0.so.99"))
    assert script.main(["--packages"]) == 0
    assert capsys.readouterr().out == "libgl1 libglib2.0-0\n"
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else find(name))
    assert script.main([]) == 1
    message = capsys.readouterr().err
    assert "libGL.so.99" in message and message.endswith("sudo apt-get install -y libgl1 libglib2.0-0 python3-venv\n")
