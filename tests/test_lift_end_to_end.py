"""Lift from scripted demonstrations to a trained policy that acts in the simulator and imagines both of its views."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.lift_demos import LIFT, SIZE, lift_images  # noqa: F401
from tests.shrunk import SHRUNK, read

pytest.importorskip("robosuite", reason=LIFT)

from unified_video_action.dataset.build import build_dataset
from unified_video_action.env_runner.simulators import build_env
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

CODEC_SIZE = 32  # pixels; what is imagined has this size
CAMERAS = ("agentview_image", "robot0_eye_in_hand_image")
SMALL = (
    *SHRUNK,
    *(f"task.shape_meta.obs.{camera}.shape=[3,{SIZE},{SIZE}]" for camera in CAMERAS),
    "task.shape_meta.proprio_output_dim=9",
    f"task.env.image_size={SIZE}",
    "task.dataset.val_ratio=0.4",
    f"vae.image_size={CODEC_SIZE}",
    "training=joint",
)


@pytest.fixture(scope="module")
def trained(lift_images, tmp_path_factory) -> tuple[dict, Path]:  # noqa: F811
    """Configuration and folder of a run of three steps that evaluates at its end."""
    folder = tmp_path_factory.mktemp("run") / "run"
    places = (f"task.dataset.sources.path={lift_images}", f"data.cache_dir={folder.parent}", f"output_dir={folder}")
    config = read("uva_lift", *SMALL, *places)
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    return config, folder


def test_a_policy_trains_and_rolls_out(trained) -> None:
    _, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = {name: value for line in lines for name, value in line.items()}
    wanted = {"train/action", "train/video", "train/proprio", "validation/action_error"}
    assert wanted | {"evaluation/mean_score", "evaluation/success_rate"} <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    results = json.loads((folder / "evaluation" / "step_00000003" / "results.json").read_text())
    assert results["metrics"]["crashed"] == 0 and results["episodes"][0]["steps"] == 8
    assert (folder / "sheets" / "step_00000003.png").is_file()


def test_both_views_come_back(trained) -> None:
    config, folder = trained
    policy = load_policy(folder / "checkpoints" / "latest", weights="model")
    dataset = build_dataset(config)
    dataset.use_frames()
    batch = dataset.__getitems__([(0, 0), (30, 0)])
    observation = {**batch["history"], **batch["low_dim"]}

    def imagine(observation: dict) -> dict[str, torch.Tensor]:
        return policy.predict_video(observation, torch.Generator().manual_seed(0))

    made = imagine(observation)
    main, wrist = (made["views"][camera] for camera in CAMERAS)
    for view in (main, wrist):
        assert view.shape == (2, 4, 3, CODEC_SIZE, CODEC_SIZE) and view.dtype == torch.uint8
    assert (main != wrist).any() and torch.equal(main, made["frames"])
    black = torch.zeros_like(observation[CAMERAS[1]])  # what the wrist sees is an input as well
    assert (imagine({**observation, CAMERAS[1]: black})["latents"] != made["latents"]).any()
    both = policy.predict_action_and_video(observation, torch.Generator().manual_seed(0))
    assert both["views"].keys() == set(CAMERAS) and both["action"].shape == (2, 8, 10)
    with pytest.raises(ValueError, match=f"observation '{CAMERAS[1]}' is missing"):
        imagine({name: value for name, value in observation.items() if name != CAMERAS[1]})


@pytest.mark.parametrize(("name", "size"), [("uva_toolhang", 240), ("uva_lift", 96)])
def test_configurations_agree_with_the_simulator(name: str, size: int) -> None:
    config = read(name)
    env = build_env({**config["task"]["env"], "observe_images": False})
    views = [f"{camera}_image" for camera in env.cameras]
    observation, info = env.reset(seed=0)
    env.close()
    entries = config["task"]["shape_meta"]["obs"]
    assert [key for key, entry in entries.items() if entry["type"] == "rgb"] == views
    assert all(entries[view]["shape"] == [3, size, size] for view in views) and env.image_size == size
    states = {key: tuple(entry["shape"]) for key, entry in entries.items() if entry["type"] == "low_dim"}
    assert states == {key: value.shape for key, value in observation.items()}
    assert config["task"]["shape_meta"]["action"]["shape"] == [*env.action_space.shape]
    assert set(config["task"]["env_runner"]["metrics"]) <= info.keys()
