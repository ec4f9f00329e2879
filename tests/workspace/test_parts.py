"""Parts: limits, failures, what is recorded, and that what is done is not done again."""

import json
import logging
import tarfile
import time
from pathlib import Path

import pytest

from unified_video_action.workspace.parts import Command, NotHere, Part, Parts, pack

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


def test_what_is_done_is_not_done_again_but_for_what_uses_new_results(tmp_path: Path) -> None:
    marks, made, late = (tmp_path / name for name in ("marks", "made", "late"))
    once, needs = python(PROGRAM, made, "x", makes=made), python(f"open({str(late)!r})")
    parts = [
        Part("train", "", 0.1, lambda _: [once, python(PROGRAM, marks, "t"), needs]),
        Part("export", "", 0.1, lambda _: [python(PROGRAM, marks, "e")], needs=("train",)),
        Part("other", "", 0.1, lambda _: [python(PROGRAM, marks, "o")]),
    ]
    assert do(parts, tmp_path)["train"]["state"] == "failed"
    late.touch()
    for _ in range(2):
        assert do(parts, tmp_path)["train"]["state"] == "done"
    assert marks.read_text() == "teo" + "te"
    assert made.read_text() == "x", "a command whose result was there was run again"


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


def test_times_follow_the_scale_and_the_deadline(tmp_path: Path) -> None:
    given = {}

    def part(name: str, minutes: float) -> Part:
        return Part(name, "", minutes, lambda got: given.setdefault(name, got) and [])

    do([part("short", 2.0), part("long", 0.0), part("last", 4.0)], tmp_path, seconds=600, scale=0.5)
    assert given["short"] == pytest.approx(3.0, abs=0.1), "LIMIT times its own minute"
    assert given["long"] == pytest.approx(8.0, abs=0.1), "all but the last one's two minutes"
    assert given["last"] == pytest.approx(6.0, abs=0.1)
    assert do([part("late", 1.0)], tmp_path, seconds=4).get("late") is None and "late" not in given


def test_small_files_and_pieces_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target = tmp_path / "run", tmp_path / "kept"
    texts = {"results.json": 3, "logs/a.txt": 9, "data/b.json": 1, "w/ema-1.safetensors": 30, "big.html": 100}
    for name, size in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * size)
    monkeypatch.setattr("unified_video_action.workspace.parts.PACKED", 50)
    for _ in range(2):  # again, over what is there
        pack(folder, target, {"data"}, "w/*.safetensors")
    with tarfile.open(target / "results.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["logs/a.txt", "results.json"]
    assert sorted(path.name for path in target.iterdir()) == ["ema-1.safetensors", "results.tar.gz"]
