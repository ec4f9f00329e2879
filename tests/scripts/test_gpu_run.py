"""scripts/gpu_run.py: which commands its parts are, what it takes with it, and a rehearsal of the first part."""

import json
import signal
from pathlib import Path

import pytest

from tests.loading import load_script
from unified_video_action.workspace.parts import NotHere

script = load_script("gpu_run")


@pytest.fixture(autouse=True)
def without_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "none"))


def commands(name: str, output: Path, *words: str) -> list[str]:
    options = script.parse_arguments(["--output", str(output), *words])
    (part,) = [part for part in script.parts(options) if part.name == name]
    return [str(command).replace(str(output), "OUT") for command in part.commands(5.0)]


def test_parts_that_need_weights_say_so(tmp_path: Path) -> None:
    for name, needed in (("evaluate", "export"), ("planner", "export"), ("world_model", "export"), ("export", "train")):
        with pytest.raises(NotHere, match=f"part {needed}"):
            commands(name, tmp_path)


@pytest.mark.parametrize("words", [["--parts", "tests,nothing"], ["--minutes", "0"], ["--train-minutes", "-1"]])
def test_bad_options_are_named(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.main(words)
    assert words[0] in capsys.readouterr().err


def test_a_rehearsal_of_the_tests_is_recorded_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(script, "CUDA_TESTS", ("tests/test_messages.py",))  # in place of some that import far more
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    words = ["--parts", "tests", "--device", "cpu", "--output", tmp_path / "run", "--collect", tmp_path / "kept"]
    with caplog.at_level("INFO"):
        script.main(list(map(str, words)))
    record = json.loads((tmp_path / "run" / "results.json").read_text())["tests"]
    assert record["state"] == "done" and "passed" in record["figures"]["tests"]
    assert "Still owed: data, train, export" in caplog.text
    assert (tmp_path / "kept" / "results.tar.gz").is_file()
