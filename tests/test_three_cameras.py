"""A task with three cameras, two of them predicted: it trains, acts and imagines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.dataset.recordings import Episode, numbered_frames, write_lerobot
from tests.shrunk import SHRUNK, read
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

CAMERAS = ("front", "wrist", "side")


def write(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(
            {
                f"observation.images.{name}": numbered_frames(range(30), (96, 96), tint)
                for tint, name in enumerate(CAMERAS)
            },
            {"action": rng.uniform(-1, 1, (30, 3)), "observation.state": rng.uniform(-1, 1, (30, 2))},
        )
        for _ in range(3)
    ]
    return write_lerobot(folder, episodes, pictures=[f"observation.images.{name}" for name in CAMERAS])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("cameras")
    overrides = [each for each in SHRUNK if not each.startswith("task.") and "evaluate_every" not in each]
    config = read("uva_pusht_mini", *overrides, f"output_dir={root / 'run'}", f"data.cache_dir={root / 'caches'}")
    obs = {name: {"shape": [3, 96, 96], "type": "rgb", "predict": name != "wrist"} for name in CAMERAS}
    obs |= {"state": {"shape": [2], "type": "low_dim", "steps": 1}}
    config["task"] = {
        "shape_meta": {"obs": obs, "action": {"shape": [3]}},
        "horizon": {"history": 4, "future": 4, "stride": 2, "actions": 8},
        "dataset": {
            "_target_": "unified_video_action.dataset.mixture.MixtureDataset",
            "val_ratio": 0.3,
            "sources": {
                "_target_": "unified_video_action.dataset.formats.lerobot.LeRobotSource",
                "path": str(write(root / "set")),
                "cameras": {name: f"observation.images.{name}" for name in CAMERAS},
                "low_dim": {"state": "observation.state"},
                "action": "action",
            },
        },
    }
    config["policy"]["relative_to"] = None
    return config


def test_it_trains_acts_and_imagines(config: dict) -> None:
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    policy = load_policy(Path(config["output_dir"]) / "checkpoints" / "latest")
    assert policy.task.camera_names == ("front", "side", "wrist")  # predicted ones come first
    assert len(policy.model.video_heads) == 2 and policy.model.spec.views == 3
    rng = np.random.default_rng(1)
    seen = {name: rng.integers(256, size=(4, 96, 96, 3), dtype=np.uint8) for name in CAMERAS}
    state = np.zeros(2, np.float32)

    def plans(frames: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        session = PolicySession(policy)
        session.reset(seed=0)
        session.recall([{name: video[i] for name, video in frames.items()} | {"state": state} for i in range(4)])
        return session.plan(), session.imagine()

    chunk, imagined = plans(seen)
    assert chunk.shape == (1, 8, 3) and imagined.shape == (1, 4, 96, 96, 3)
    for name in CAMERAS:  # every camera is an input
        assert np.abs(plans({**seen, name: 255 - seen[name]})[0] - chunk).max() > 0, name
    obs = {name: torch.from_numpy(video).movedim(-1, 1)[None] for name, video in seen.items()}
    obs["state"] = torch.zeros(1, 1, 2)
    views = policy.predict_forward_dynamics(obs, torch.from_numpy(chunk), [torch.Generator().manual_seed(0)])["views"]
    assert views.keys() == {"front", "side"} and (views["front"] != views["side"]).any()
    future = {name: views[name] for name in ("front", "side")}
    assert policy.predict_inverse_dynamics(obs, future)["action_pred"].shape == (1, 8, 3)
