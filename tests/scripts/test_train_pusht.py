"""scripts/train_pusht.py: where demonstrations come from, what it runs, and that it goes on where it was."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loading import load_script
from unified_video_action.workspace.commands import read_config

script = load_script("train_pusht")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What was run; every command fails."""
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "none"))
    made: list[list[str]] = []

    def failing(words: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        made.append(list(map(str, words[1:])))
        return subprocess.CompletedProcess(words, 1)

    monkeypatch.setattr(subprocess, "run", failing)
    return made


def archive_in(folder: Path) -> Path:
    path = folder / "pusht" / "pusht.zip"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_sources_are_weighted_as_the_recipe_says(commands: list, tmp_path: Path) -> None:
    human, recipe = archive_in(tmp_path), script.read_recipe("uva_pusht_mini")
    stores = [
        human.with_name(f"scripted_500_seed{seed}_disturbance{size}_choice1_mistakes0.02_action_noise0.zarr.zip")
        for seed, size in ((1, 6), (2, 3))
    ]
    for store in stores:
        store.touch()
    given = script.sources(recipe, tmp_path, human=True, scripted=True)
    config = read_config("uva_pusht_mini", [*recipe["overrides"], f"task.dataset.paths=[{','.join(given)}]"])
    read = {source["path"]: source["weight"] for source in config["task"]["dataset"]["paths"]}
    assert read == {str(human): 0.25, str(stores[0]): 0.35, str(stores[1]): 0.40} and not commands
    assert config["training"]["batch_size"] == 64 and config["training"]["ema"]["max_decay"] == 0.999
    assert script.sources(recipe, tmp_path, human=True, scripted=False) == [str(human)]


class Project:
    """Stands in for the project's commands: leaves behind what they would, or fails on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.steps, self.fails = 10, ""
        monkeypatch.setattr(subprocess, "run", self.run)

    def run(self, words: list[str], **kwargs: object) -> subprocess.CompletedProcess:
        script, value = Path(words[1]).stem, dict(zip(words, words[1:], strict=False))
        self.done.append(script)
        if script == self.fails:
            return subprocess.CompletedProcess(words, 1)
        if script == "train":
            run = Path(next(word for word in words if word.startswith("output_dir=")).partition("=")[2])
            write(run / "checkpoints" / "latest" / "trainer_state.json", {"step": self.steps})
        elif script == "eval_sim":
            self.resumed = "--resume" in words
            episodes = [{}] * int(value["--n-episodes"])
            write(Path(value["--output"]) / "results.json", {"episodes": episodes})
        elif script == "export_checkpoint":
            write(Path(value["--output"]) / "metrics.json", {"training": {"steps": self.steps}})
        return subprocess.CompletedProcess(words, 0)


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Project:
    monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / "none"))
    return Project(monkeypatch)


@pytest.fixture
def train(project: Project, tmp_path: Path) -> Callable[..., list[str]]:
    """train(*options) -> names of the scripts that were run."""
    archive_in(tmp_path / "data")

    def train(*options: str) -> list[str]:
        project.done.clear()
        data_options = ["--data", "data", "--run", "run", "--output", "shipped"]
        data_options[1::2] = [str(tmp_path / name) for name in data_options[1::2]]
        script.main(["--config-name", "uva_pusht_mini", "--human-only", *data_options, *options])
        return list(project.done)

    return train


def test_what_is_done_is_not_done_again(train: Callable[..., list[str]], project: Project, tmp_path: Path) -> None:
    export = "export_checkpoint"
    assert train("--prepare") == ["cache_latents"]
    project.fails = "eval_sim"
    with pytest.raises(SystemExit, match="eval_sim.py failed"):
        train("--episodes", "5")
    project.fails = ""
    evaluation = tmp_path / "run" / "evaluation" / "stored"
    (evaluation / "videos").mkdir(parents=True)
    assert train("--episodes", "5") == ["train", "eval_sim", export]
    assert not (evaluation / "videos").exists() and not project.resumed, "nothing there to continue"
    assert (tmp_path / "shipped" / "metrics.json").is_file()
    assert train("--episodes", "5") == ["train", export]
    (evaluation / "results.json").unlink()
    write(evaluation / "journal.json", {})  # of an evaluation that was cut off
    assert train("--episodes", "5") == ["train", "eval_sim", export]
    assert project.resumed
    (evaluation / "journal.json").unlink()
    assert train("--episodes", "6") == ["train", "eval_sim", export]
    project.steps = 20  # trained further
    assert train("--episodes", "6") == ["train", export, "eval_sim", export]
