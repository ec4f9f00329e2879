"""Parts: limits, failures, what is recorded, and that what is done is not done again."""

import json
import logging
import tarfile
import time
from pathlib import Path

import pytest

from unified_video_action.workspace.parts import Command, NotHere, Part, Parts, pack

PROGRAM = "import sys; open(sys.argv[1], 'a').write('x')"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified_video_action.workspace.parts.START", 1.0)


def python(*words: object, **options) -> Command:
    return Command(("-c", *map(str, words)), **options)


def do(parts: list[Part], folder: Path, seconds: float = 60, **changes) -> dict:
    wanted = changes.pop("wanted", [part.name for part in parts])
    after = changes.pop("after", lambda: None)
    run = Parts(parts, folder, {})
    run.do(wanted, time.monotonic() + seconds, changes.pop("scale", 1.0), after)
    run.log_owed()
    return run.records


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    marks = tmp_path / "marks"

    def missing(minutes: float) -> list[Command]:
        raise NotHere("no such package")

    def broken(minutes: float) -> list[Command]:
        raise KeyError("a bug")

    parts = [
        Part("fails", "", 0.1, lambda _: [python("import sys; sys.exit('bad luck')"), python(PROGRAM, marks)]),
        Part("missing", "", 0.1, missing),
        Part("broken", "", 0.1, broken),
        Part("works", "", 0.1, lambda _: [python(PROGRAM, marks)], figures=lambda: {"rate": 3}),
    ]
    with caplog.at_level(logging.INFO):
        records = do(parts, tmp_path)
    assert records == json.loads((tmp_path / "results.json").read_text())
    assert {name: record["state"] for name, record in records.items()} == {
        "fails": "failed", "missing": "not here", "broken": "failed", "works": "done",
    }  # fmt: skip
    assert "exit status 1" in records["fails"]["reason"] and "bad luck" in records["fails"]["reason"]
    assert records["works"]["figures"] == {"rate": 3}
    assert marks.read_text() == "x", "what follows a failed command of a part was run"
    assert "bad luck" in (tmp_path / "logs" / "fails.txt").read_text()
    assert "Still owed: fails, missing, broken" in caplog.text
    assert "python -c 'import sys; sys.exit(" in caplog.text and "no such package" in caplog.text


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    marks, made, late = (tmp_path / name for name in ("marks", "made", "late"))
    first = python(PROGRAM, made, makes=made)
    needs = python(f"import sys; open({str(marks)!r}, 'a').write('y'); open({str(late)!r})")
    parts = [Part("one", "", 0.1, lambda _: [python(PROGRAM, marks)]), Part("two", "", 0.1, lambda _: [first, needs])]
    assert do(parts, tmp_path, wanted=["two"])["two"]["state"] == "failed"
    assert do(parts, tmp_path)["one"]["state"] == "done"
    late.touch()
    assert do(parts, tmp_path)["two"]["state"] == "done"
    do(parts, tmp_path)
    assert marks.read_text() == "yxyy"
    assert made.read_text() == "x", "a command whose result was there was run again"


def test_what_uses_new_results_is_done_again(tmp_path: Path) -> None:
    marks, late = tmp_path / "marks", tmp_path / "late"

    def mark(letter: str, more: str = "") -> list[Command]:
        return [python(f"open({str(marks)!r}, 'a').write({letter!r}){more}")]

    parts = [
        Part("train", "", 0.1, lambda _: mark("t", f"; open({str(late)!r})")),
        Part("export", "", 0.1, lambda _: mark("e"), needs=("train",)),
        Part("score", "", 0.1, lambda _: mark("s"), needs=("export",)),
        Part("other", "", 0.1, lambda _: mark("o")),
    ]
    assert do(parts, tmp_path)["train"]["state"] == "failed"
    late.touch()
    do(parts, tmp_path)
    do(parts, tmp_path)
    assert marks.read_text() == "teso" + "tes"


def test_a_part_ends_at_its_limit_with_all_that_it_has_started(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    stubborn = f"""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(7)
open({str(marks)!r}, 'a').write('stubborn')
"""
    saving = f"""
import signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {stubborn!r}])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), open({str(marks)!r}, 'a').write('saved'), sys.exit(0)))
time.sleep(60)
"""
    program = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {saving!r}])"  # dies of the signal at once
    )
    parts = [
        Part("long", "", 0.0, lambda _: [python(program, grace=3.0)]),
        Part("after", "", 0.1, lambda _: [python(PROGRAM, marks)]),
    ]
    began = time.monotonic()
    records = do(parts, tmp_path, seconds=12)
    assert records["long"]["state"] == "out of time" and records["after"]["state"] == "done"
    assert 3 < records["long"]["seconds"] < 8, "12 s less the 6 s that the part after it needs"
    time.sleep(max(0.0, began + 10 - time.monotonic()))
    assert marks.read_text() == "savedx"


def test_times_follow_the_scale_and_the_deadline(tmp_path: Path) -> None:
    given = {}

    def take(name: str):
        return lambda minutes: given.setdefault(name, minutes) and []

    parts = [
        Part("short", "", 2.0, take("short")),
        Part("long", "", 0.0, take("long")),
        Part("last", "", 4.0, take("last")),
    ]
    do(parts, tmp_path, seconds=600, scale=0.5)
    assert given["short"] == pytest.approx(3.0, abs=0.1), "LIMIT times its own minute"
    assert given["long"] == pytest.approx(8.0, abs=0.1), "all but the last one's two minutes"
    assert given["last"] == pytest.approx(6.0, abs=0.1)
    assert do([Part("late", "", 1.0, take("late"))], tmp_path, seconds=4).get("late") is None
    assert "late" not in given


def test_a_part_without_figures_yet_is_recorded_all_the_same(tmp_path: Path) -> None:
    failing = Part("x", "", 0.1, lambda _: [python("raise SystemExit(3)")], figures=lambda: {}["nothing"])
    assert "exit status 3" in do([failing], tmp_path)["x"]["reason"]
    odd = Part("y", "", 0.1, lambda _: [], figures=lambda: {}["nothing"])
    assert do([odd], tmp_path)["y"]["state"] == "failed"


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
