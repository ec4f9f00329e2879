"""Parts: limits, failures, what is recorded, and that what is done is not done again."""

import json
import logging
import time
from pathlib import Path

import pytest

from unified_video_action.workspace.parts import Command, NotHere, Part, Parts

PROGRAM = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_video_action.workspace.parts.START", 1.0)


def python(*words: object, **options) -> Command:
    return Command(("-c", *map(str, words)), **options)


def raising(error: Exception):
    def commands(minutes: float) -> list[Command]:
        raise error

    return commands


def do(parts: list[Part], folder: Path, seconds: float = 60, scale: float = 1.0) -> dict:
    run = Parts(parts, folder, {})
    run.do([part.name for part in parts], time.monotonic() + seconds, scale, lambda: None)
    run.log_owed()
    return run.records


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = tmp_path / "marks"
    parts = [
        Part("fails", "", 0.1, lambda _: [python("import sys; sys.exit('bad luck')"), python(PROGRAM, marks, "y")]),
        Part("missing", "", 0.1, raising(NotHere("no such package"))),
        Part("broken", "", 0.1, raising(KeyError("a bug"))),
        Part("no figures", "", 0.1, lambda _: [], figures=lambda: {}["nothing"]),
        Part("works", "", 0.1, lambda _: [python(PROGRAM, marks, "x")], figures=lambda: {"rate": 3}),
    ]
    with caplog.at_level(logging.INFO):
        records = do(parts, tmp_path)
    assert records == json.loads((tmp_path / "results.json").read_text())
    states = ["failed", "not here", "failed", "failed", "done"]
    assert [record["state"] for record in records.values()] == states
    assert "exit status 1" in records["fails"]["reason"] and "bad luck" in records["fails"]["reason"]
    assert records["works"]["figures"] == {"rate": 3}
    assert marks.read_text() == "x", "what follows a failed command of a part was run"
    assert "bad luck" in (tmp_path / "logs" / "fails.txt").read_text()
    assert "Still owed: fails, missing, broken, no figures" in caplog.text
    assert "python -c 'import sys; sys.exit(" in caplog.text and "no such package" in caplog.text


def test_a_part_ends_at_its_limit_with_all_that_it_has_started(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    stubborn = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(8)
open({str(marks)!r}, 'a').write('stubborn')
"""
    saving = f"""
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {stubborn!r}])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open({str(marks)!r}, 'a').write('saved'), sys.exit(0)))
time.sleep(60)
"""
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {saving!r}])"  # dies of the signal
    parts = [
        Part("long", "", 0.0, lambda _: [python(program, grace=3.0)]),
        Part("after", "", 0.1, lambda _: [python(PROGRAM, marks, "x")]),
    ]
    began = time.monotonic()
    records = do(parts, tmp_path, seconds=12)
    assert records["long"]["state"] == "out of time" and records["after"]["state"] == "done"
    assert 3 < records["long"]["seconds"] < 8, "12 s less the 6 s that the part after it needs"
    time.sleep(max(0.0, began + 9 - time.monotonic()))
    assert marks.read_text() == "savedx"
