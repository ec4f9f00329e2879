"""scripts/gpu_run.py: which commands its parts are, what it takes with it, and a rehearsal of the first part."""

import json
import shlex
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


def write_state(output: Path, seconds: float) -> None:
    folder = output / "train" / "checkpoints" / "latest"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"step": 7, "elapsed_seconds": seconds}))


def test_training_gets_the_time_that_is_left_and_goes_on(tmp_path: Path) -> None:
    (command,) = commands("train", tmp_path, "--human-only", "training.batch_size=64")
    words = shlex.split(command)
    assert "--train-only" in words and "--human-only" in words and words[-1] == "training.batch_size=64"
    assert words[words.index("--minutes") + 1] == "4.25"
    assert any(word.startswith("trainer.num_workers=") for word in words)
    write_state(tmp_path, 120)
    assert "--minutes 6.25 " in commands("train", tmp_path)[0]
    assert "--minutes 8.00 " in commands("train", tmp_path, "--train-minutes", "8")[0]


def test_parts_that_need_weights_say_so(tmp_path: Path) -> None:
    for name, needed in (("evaluate", "export"), ("planner", "export"), ("world_model", "export"), ("export", "train")):
        with pytest.raises(NotHere, match=f"part {needed}"):
            commands(name, tmp_path)
    write_state(tmp_path, 66)
    assert "--config-name uva_pusht_small --minutes 1.1" in commands("export", tmp_path)[0]


def test_an_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "train" / "stored").mkdir(parents=True)
    (tmp_path / "train" / "stored" / "config.yaml").touch()
    assert "--resume" not in commands("evaluate", tmp_path)[0]
    (tmp_path / "train" / "stored" / "metrics.json").write_text('{"training": {"steps": 70}}')
    folder = tmp_path / "train" / "evaluation" / "step_00000070" / "policy"
    folder.mkdir(parents=True)
    assert "--resume" not in commands("evaluate", tmp_path)[0] and not folder.exists()
    folder.mkdir()
    (folder / "journal.json").touch()
    assert "--resume" in commands("evaluate", tmp_path)[0]


def test_the_paper_s_model_is_timed_on_a_gpu_and_a_small_one_on_a_cpu(tmp_path: Path) -> None:
    on_gpu = commands("latency", tmp_path)
    assert len(on_gpu) == 4 and all("uva_pusht " in line and "bf16" in line for line in on_gpu)
    on_cpu = commands("latency", tmp_path, "--device", "cpu")
    assert len(on_cpu) == 3 and all("uva_pusht_mini" in line for line in on_cpu)


def test_a_file_or_a_folder_of_demonstrations_is_taken(tmp_path: Path) -> None:
    folder, target = tmp_path / "given" / "pusht", tmp_path / "data"
    folder.mkdir(parents=True)
    with pytest.raises(NotHere, match="nor scripted"):
        script.copy_data(folder.parent, target)
    for name in (script.ARCHIVES[1], "scripted_3_seed1.zarr.zip", "notes.txt"):
        (folder / name).write_text(name)
    script.copy_data(folder.parent, target)
    assert {path.name for path in target.iterdir()} == {"pusht.zip", "scripted_3_seed1.zarr.zip"}
    script.copy_data(folder / script.ARCHIVES[1], tmp_path / "other")
    assert (tmp_path / "other" / "pusht.zip").read_text() == script.ARCHIVES[1]


def test_figures_are_read_from_what_the_parts_leave(tmp_path: Path) -> None:
    left = {
        "train/metrics.jsonl": '{"step": 1, "a": 1}\n{"step": 2, "b": 3}\n',
        "train/evaluation/step_7/policy/results.json": '{"metrics": {"mean_score": 1}, "episodes": []}',
        "latency/naive.json": '{"policy_16": {"ratio": 0.5}}',
    }
    for name, text in left.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    options = script.parse_arguments(["--output", str(tmp_path)])
    figures = {part.name: part.figures() for part in script.parts(options) if part.name != "tests"}
    assert {name: found for name, found in figures.items() if found} == {
        "train": {"step": 2, "a": 1, "b": 3},
        "evaluate": {"results": {"mean_score": 1}},
        "latency": {"naive": {"policy_16": {"ratio": 0.5}}},
    }


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
