"""LeRobot's own commands with the plug-in, run by `make lerobot`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gym_pusht  # noqa: F401
import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.utils import preprocess_observation
from lerobot.policies import pretrained
from lerobot.policies.factory import make_pre_post_processors
from lerobot_policy_uva import UvaPolicy
from lerobot_policy_uva.checkpoints import from_lerobot, to_lerobot
from safetensors.torch import load_file

from unified_video_action.demos.pusht import Collector
from unified_video_action.env.pusht.env import PushTEnv, start_state
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy

SHIPPED = Path(__file__).parents[3] / "checkpoints" / "uva_pusht_mini"
FEATURES = {
    "observation.image": {"dtype": "video", "shape": (96, 96, 3), "names": ["height", "width", "channel"]},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}
OLD = version("lerobot").startswith("0.4.")
ROLLOUT = [
    *("--fps=10", '--rename_map={"observation.images.top": "observation.image"}'),
    "--return_to_initial_position=false",
]
DATASET = [
    *("--dataset.root=data", "--dataset.push_to_hub=false", "--dataset.num_episodes=2", "--dataset.fps=10"),
    *("--dataset.episode_time_s=1", "--dataset.reset_time_s=0", "--dataset.single_task=Push it."),
]
EPISODIC = ["--strategy.type=episodic", "--strategy.reset_to_initial_position=false"]
new = pytest.mark.skipif(OLD, reason="lerobot-rollout needs LeRobot 0.6")
old = pytest.mark.skipif(not OLD, reason="lerobot-record of LeRobot 0.6 takes no policies")


def run(folder: Path, command: str, *words: str) -> str:
    """Run a command of LeRobot in `folder`, away from this project's sources: what it printed."""
    path = Path(sys.executable).with_name(command)
    done = subprocess.run([path, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset of two scripted episodes of PushT, `data`, and a training of four steps on it, `run`."""
    folder = tmp_path_factory.mktemp("lerobot")
    dataset = LeRobotDataset.create("local/pusht", 10, FEATURES, root=folder / "data")
    attempts = (attempt for attempt in map(Collector(), range(10)) if attempt.success)
    for _, attempt in zip(range(2), attempts):
        arrays, _ = attempt.episode
        for image, state, action in zip(arrays["img"], arrays["state"], arrays["action"]):
            frame = {"observation.image": image, "observation.state": state[:2], "action": action}
            dataset.add_frame(frame | {"task": "Push the T onto the goal."})
        dataset.save_episode()
    dataset.finalize()
    run(
        *(folder, "lerobot-train", "--policy.type=uva", "--policy.recipe=uva_pusht_mini", "--policy.device=cpu"),
        *('--policy.names={"observation.state": "agent_pos"}', "--policy.push_to_hub=false", "--output_dir=run"),
        *('--policy.overrides=["model.transformer.dim=32", "policy.sampler=ddim2"]', "--dataset.repo_id=local/pusht"),
        *("--dataset.root=data", "--dataset.video_backend=pyav", "--steps=4", "--save_freq=2", "--batch_size=4"),
        "--num_workers=0",
    )
    return folder


def test_a_resumed_training_ends_with_equal_weights(trained: Path) -> None:
    saved = [trained / "run" / "checkpoints" / step / "pretrained_model" for step in ("000002", "000004")]
    expected = load_file(saved[1] / "model.safetensors")
    run(trained, "lerobot-train", f"--config_path={saved[0]}/train_config.json", "--resume=true")
    weights = load_file(saved[1] / "model.safetensors")
    assert weights["updates"] == 4 and any(name.startswith("average.") for name in weights)
    if not OLD:  # which begins again at the first batch
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_evaluates_what_was_trained(trained: Path) -> None:
    run(
        *(trained, "lerobot-eval", "--policy.path=run/checkpoints/last/pretrained_model", "--policy.device=cpu"),
        *("--env.type=pusht", "--env.episode_length=12", "--eval.n_episodes=2", "--eval.batch_size=2"),
        *("--eval.use_async_envs=false", "--output_dir=evaluation"),
    )
    results = json.loads((trained / "evaluation" / "eval_info.json").read_text())
    assert results["overall"]["n_episodes"] == 2


@pytest.mark.parametrize(
    ("command", "dataset", "words"),
    [
        pytest.param("lerobot-rollout", None, [*ROLLOUT, "--strategy.type=base", "--duration=1"], marks=new),
        pytest.param("lerobot-rollout", "local/rollout_pusht", [*ROLLOUT, *EPISODIC, *DATASET], marks=new),
        pytest.param("lerobot-record", "local/eval_pusht", DATASET, marks=old),
    ],
)
def test_acts_on_a_robot_as_it_does_here(
    command: str, dataset: str | None, words: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # for pretend_robot
    checkpoint = trained / "run" / "checkpoints" / "last" / "pretrained_model"
    if command == "lerobot-record":  # for it a policy's camera must have the robot's name
        checkpoint = shutil.copytree(checkpoint, tmp_path / "policy")
        for file in checkpoint.glob("*.json"):
            file.write_text(file.read_text().replace('"observation.image"', '"observation.images.top"'))
    run(
        *(tmp_path, command, f"--policy.path={checkpoint}", "--robot.discover_packages_path=pretend_robot"),
        *("--robot.type=pusht", "--robot.log=log.npz", "--robot.calibration_dir=calibration", "--play_sounds=false"),
        *(*words, *([f"--dataset.repo_id={dataset}"] if dataset else [])),
    )
    log = np.load(tmp_path / "log.npz")
    lengths = [len(log["action"])]
    if dataset:
        recorded = LeRobotDataset(dataset, root=tmp_path / "data", video_backend="pyav")
        lengths = list(recorded.meta.episodes["length"])
        assert len(lengths) == 2
        for item, image, position, action in zip(recorded, log["image"], log["agent_pos"], log["action"], strict=True):
            frame = item["observation.images.top"].movedim(0, -1).numpy()
            assert np.abs(frame - image / 255).mean() < 0.02  # a lossy video
            np.testing.assert_array_equal(item["observation.state"], position)
            np.testing.assert_array_equal(item["action"], action)
    assert min(lengths) > 1
    from_lerobot(checkpoint, tmp_path / "ours")
    session = PolicySession(load_policy(tmp_path / "ours"))
    steps = zip(log["image"], log["agent_pos"], log["action"], strict=True)
    for episode, length in enumerate(lengths):
        session.reset(seed=(int(log["seed"]) + episode) % 2**63)
        for image, position, action in islice(steps, length):
            np.testing.assert_array_equal(session.act({"image": image, "agent_pos": position}), action)


def test_what_is_pushed_to_the_hub_acts_alike(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub:
        def create_repo(self, repo_id: str, **_: Any) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, folder_path: Path, **_: Any) -> SimpleNamespace:
            folder_path.rename(tmp_path / "pushed")
            return SimpleNamespace(repo_url=SimpleNamespace(url="nowhere"))

    monkeypatch.setattr(pretrained, "HfApi", Hub)
    monkeypatch.setattr(pretrained.ModelCard, "validate", lambda card: None)  # asks the hub
    source = trained / "run" / "checkpoints" / "last" / "pretrained_model"
    policy = UvaPolicy.from_pretrained(source)
    policy.config.repo_id = "me/uva"
    policy.push_model_to_hub(TrainPipelineConfig.from_pretrained(source))
    assert "uva" in (tmp_path / "pushed" / "README.md").read_text()
    again = UvaPolicy.from_pretrained(tmp_path / "pushed")
    seen = {"observation.image": torch.rand(1, 3, 96, 96), "observation.state": torch.full((1, 2), 256.0)}
    assert torch.equal(policy.select_action(seen), again.select_action(seen))


def test_a_converted_checkpoint_acts_in_gym_pusht_as_it_does_here(tmp_path: Path) -> None:
    to_lerobot(SHIPPED, tmp_path / "policy")
    policy = UvaPolicy.from_pretrained(tmp_path / "policy")
    before, after = make_pre_post_processors(policy.config, tmp_path / "policy")
    theirs, ours = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos"), PushTEnv()
    session = PolicySession(load_policy(SHIPPED))
    seed = 100_000  # for the same seed gym-pusht starts elsewhere than Diffusion Policy, so ours is set
    seen, _ = theirs.reset(options={"reset_to_state": start_state(seed)})
    observed, _ = ours.reset(seed=seed)
    session.reset(seed=seed)
    torch.manual_seed(seed)
    for _ in range(40):
        action = after(policy.select_action(before(preprocess_observation(seen))))[0].numpy()
        expected = session.act(observed)
        np.testing.assert_array_equal(action, expected)
        seen, *_, info = theirs.step(action)
        observed, *_, expected_info = ours.step(expected)
        assert info["coverage"] == expected_info["coverage"]
