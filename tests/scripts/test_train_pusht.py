"""scripts/train_pusht.py: where demonstrations come from, what it runs, and that it goes on where it was."""

import json
import shlex
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


def test_the_data_folder_comes_first(commands: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    downloaded, mine = archive_in(tmp_path / "downloaded"), archive_in(tmp_path / "mine")
    assert script.human_demonstrations(tmp_path / "downloaded") == downloaded
    for given, found in (("mine", mine), ("empty", downloaded)):
        monkeypatch.setenv("UVA_DATA_DIR", str(tmp_path / given))
        assert script.human_demonstrations(tmp_path / "downloaded") == found
    assert not commands


def test_without_a_network_it_says_what_it_learns_from(
    commands: list, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, store = {"human": 0.5, "scripted": [{"share": 0.5, "episodes": 3}]}, tmp_path / "pusht/scripted_3.zarr.zip"
    store.parent.mkdir()
    store.touch()
    with caplog.at_level("INFO"):
        assert script.sources(recipe, tmp_path, human=True, scripted=True) == [str(store)]
    assert commands == [["scripts/download.py", "pusht", "--output", str(tmp_path)]]
    assert "download.py pusht" in caplog.text and "scripted ones alone" in caplog.text
    with pytest.raises(SystemExit, match="no human demonstrations"):
        script.sources(recipe, tmp_path, human=True, scripted=False)


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


def test_missing_demonstrations_are_made_with_the_recipes_options(commands: list, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"collect_demos\.py failed"):
        script.scripted_demonstrations(tmp_path, {"episodes": 3, "seed": 1, "action_noise": 0})
    ((name, *words),) = commands
    assert name == "scripts/collect_demos.py"
    assert shlex.join(words).startswith("--task pusht --episodes 3 --seed 1 --action-noise 0 --output ")
    assert words[words.index("--output") + 1].endswith("/pusht/scripted_3_seed1_action_noise0.zarr.zip")


def test_its_own_command_is_recorded_without_places(tmp_path: Path) -> None:
    arguments = "--config-name uva_pusht_mini --actions-only --scripted 7 --data data seed=3".split()
    options = script.parse_arguments(arguments)
    assert options.run.name == options.output.name == "uva_pusht_mini_actions"
    command = script.own_command(options)
    assert command == (
        "python scripts/train_pusht.py --config-name uva_pusht_mini --recipe uva_pusht_mini "
        "--minutes 110 --episodes 500 --scripted 7 --actions-only seed=3"
    )
    assert [kind["episodes"] for kind in options.settings["scripted"]] == [7, 7]
    assert script.own_command(script.parse_arguments(shlex.split(command)[2:])) == command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes: must be at least 1, got 0"),
        (["--minutes", "-1"], "--minutes: must be above 0, got -1"),
        (["--recipe", "cake"], "there is no recipe 'cake' in config/recipe: take one with --recipe (demo, "),
        (["--human-only", "--scripted-only"], "not allowed with"),
    ],
)
def test_bad_options_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.parse_arguments(["--config-name", "uva_pusht_mini", *arguments])
    assert message in capsys.readouterr().err


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
