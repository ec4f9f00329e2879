"""docs/your_own_task.md as it stands: environment, configuration and commands are taken from the page, and run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.dataset.recordings import Episode, write_lerobot, write_video
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.instantiate import instantiate
from unified_video_action.spec import Horizon

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your_own_task.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
CODE, CONFIG, COMMANDS, SOURCES = (text for _, text in BLOCKS)
FEW = "training.steps=2 training.batch_size=4 training.schedule.warmup_steps=1 trainer.validation_windows=2 "
FEW += "trainer.prediction_grid_windows=1 trainer.tensorboard=false trainer.device=cpu trainer.peak_tflops=1 "
FEW += "vae.weights=random model.transformer.dim=32 policy.sampler=ddim2 policy.video_sampler=ddim2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What a reader of the page has: my_task, and demonstrations in `demos`, made by walking to the goal."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_task").mkdir()
    (folder / "my_task" / "env.py").write_text(CODE)
    (folder / "my_task" / "reach.yaml").write_text(CONFIG)
    spec = importlib.util.spec_from_file_location("own_env", folder / "my_task" / "env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write_lerobot(folder / "demos", [demonstrate(module.ReachEnv(), seed) for seed in range(4)])
    return folder


def demonstrate(env, seed: int) -> Episode:
    observation, _ = env.reset(seed=seed)
    frames, actions, done = [], [], False
    while not done or len(frames) < 20:
        frames.append(observation["image"])
        actions.append(np.clip((env.goal - env.agent) / 3, -1, 1))
        observation, _, done, _, info = env.step(actions[-1])
    assert info["is_success"]
    return Episode({"observation.image": np.stack(frames)}, {"action": np.stack(actions)})


def test_it_is_short_and_names_nothing_of_the_package():
    assert [kind for kind, _ in BLOCKS] == ["python", "yaml", "bash", "yaml"]
    assert sum(len(text.splitlines()) for _, text in BLOCKS) < 60
    assert "unified_video_action" not in CODE


def test_the_commands_train_and_evaluate(folder):
    export, train, evaluate = COMMANDS.splitlines()
    evaluate = evaluate.replace(
        "--n-episodes 10", "--n-episodes 2 --n-envs 1 --videos 0 --set task.env_runner.max_steps=8"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "UVA": str(ROOT), "PATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    script = "\n".join([export, f"{train} {FEW}", evaluate])
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (folder / "outputs" / "reach").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 2 and np.isfinite(lines[-1]["validation/action_error"])
    (results,) = run.glob("evaluation/*/results.json")
    episodes = json.loads(results.read_text())["episodes"]
    assert len(episodes) == 2
    assert list(folder.glob("demos@*.image.*.latents"))


def test_the_mixture_of_the_page(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_video(folder / "videos" / "a.mp4", np.full((30, 64, 64, 3), 128, np.uint8))
    nodes = {"_target_": "unified_video_action.dataset.mixture.MixtureDataset", **yaml.safe_load(SOURCES)}
    options = {"wanted": Wanted(("image",), (), 2), "horizon": Horizon(2, 2, 4, 8)}
    dataset = instantiate(nodes, MixtureDataset, "task.dataset", **options)
    assert isinstance(dataset, MixtureDataset)
    batch = dataset.__getitems__([(index, 0) for index in range(len(dataset))])
    assert batch["has_action"].float().mean().item() == pytest.approx(0.75, abs=0.02)
