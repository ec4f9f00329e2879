import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from tests.dataset.recordings import Episode, numbered_frames, write_lerobot, write_video
from unified_video_action.dataset.build import build_dataset
from unified_video_action.model.losses import loss_weights
from unified_video_action.model.masking import TrainingCorruption
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

CONFIG = str(Path(__file__).parents[2] / "config")
CAMERA = "observation.image"
WEIGHTS = {"pusht": 1.0, "lerobot": 2.0, "videos": 3.0}
TASK = """
defaults:
  - base
  - dataset@task.dataset: mixture
  - model: mar_tiny
  - vae: taef2
  - training: joint
  - _self_

name: mixed
task:
  shape_meta:
    obs: {image: {shape: [3, 96, 96], type: rgb}}
    action: {shape: [2]}
  horizon: {history: 2, future: 2, stride: 2, actions: 4}
  dataset: {pad_after: 2, val_ratio: 0.2}
vae: {weights: random, image_size: 32}
training: {batch_size: 8, steps: 3, schedule: {warmup_steps: 1}}
trainer:
  device: cpu
  tensorboard: false
  log_every: 1
  validation_windows: 2
  prediction_grid_every: null
  peak_tflops: 1.0  # not measured
policy: {action_steps: 4, sampler: ddim2, video_sampler: ddim2}
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, pusht_store) -> dict[str, Path]:
    """A zarr store with actions, a LeRobot folder with actions, and videos without any."""
    root, rng = tmp_path_factory.mktemp("mixture"), np.random.default_rng(0)
    episodes = [
        Episode({CAMERA: numbered_frames(range(30), (96, 128))}, {"action": rng.uniform(0, 512, (30, 2))})
        for _ in range(4)
    ]
    for name in ("a.mp4", "b.mp4"):
        write_video(root / "videos" / name, numbered_frames(range(40), (48, 64)))
    lerobot = write_lerobot(root / "lerobot", episodes)
    return {"pusht": pusht_store, "lerobot": lerobot, "videos": root / "videos"}


def read(folders: dict[str, Path], folder: Path, *overrides: str):
    """A task of a user's own that says dataset: mixture, with the sources on the command line."""
    (folder / "mixed.yaml").write_text(TASK)
    options = {
        "pusht": {"_target_": "unified_video_action.dataset.pusht.PushTSource"},
        "lerobot": {
            "_target_": "unified_video_action.dataset.formats.lerobot.LeRobotSource",
            "cameras": {"image": CAMERA},
            "image_size": 96,
        },
        "videos": {"_target_": "unified_video_action.dataset.formats.video_folder.VideoFolderSource", "image_size": 96},
    }
    for name in options:
        options[name] |= {"path": str(folders[name]), "weight": WEIGHTS[name]}
    sources = json.dumps(options).replace('"', "")
    chosen = [f"task.dataset.sources={sources}", f"output_dir={folder}/run", f"data.cache_dir={folder}/cache"]
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("mixed", [f"hydra.searchpath=[file://{CONFIG}]", *chosen, *overrides])


def test_shares_are_as_asked_and_actions_are_the_sources_own(folders, tmp_path):
    dataset = build_dataset(read(folders, tmp_path))
    shares = np.bincount(dataset._table) / len(dataset)
    assert shares.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6], abs=0.01)
    batch = dataset.__getitems__([(index, 0) for index in range(0, len(dataset), 7)])
    is_video = torch.from_numpy(dataset._table[::7] == 2)
    assert 0 < is_video.sum() < len(is_video) and torch.equal(batch["has_action"], ~is_video)
    assert batch["action_is_pad"][is_video].all() and not batch["action_is_pad"][~is_video].all()
    assert (batch["action"][is_video] == 0).all() and (batch["action"][~is_video] != 0).any()
    limits = dataset.fit_normalizer().fields()["action"]  # of the sources with actions, not of zeros
    known = np.concatenate([table.action for table in dataset.tables if table.action is not None])
    np.testing.assert_allclose(limits["scale"].numpy() * known.min(0) + limits["offset"].numpy(), -1, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lerobot.weight", None, "give a weight to every source, or to none"),
        ("lerobot.image_size", 64, "frames of different sizes cannot share a batch"),
        ("videos", "a path", "is not a source; give a mapping with its _target_"),
    ],
)
def test_mistakes_are_named(folders, tmp_path, key, value, message):
    config = read(folders, tmp_path)
    OmegaConf.update(config, f"task.dataset.sources.{key}", value)
    with pytest.raises(ValueError, match=message):
        build_dataset(config)


def test_videos_without_states_join_a_task_that_reads_them(folders, tmp_path):
    config = read(folders, tmp_path)
    with open_dict(config):
        del config.task.dataset.sources.lerobot
        config.task.shape_meta.obs.agent_pos = {"shape": [2], "type": "low_dim", "steps": 1}
        config.task.shape_meta.auxiliary_dim = 6
    dataset = build_dataset(config)
    picked = range(0, len(dataset), 5)
    batch = dataset.__getitems__([(index, 0) for index in picked])
    is_video = torch.from_numpy(dataset._table[list(picked)] == 1)
    assert 0 < is_video.sum() < len(is_video)
    assert torch.equal(batch["has_low_dim"], ~is_video) and torch.equal(batch["has_auxiliary"], ~is_video)
    alone = config.copy()
    with open_dict(alone):
        del alone.task.dataset.sources.videos
    fields, expected = dataset.fit_normalizer().fields(), build_dataset(alone).fit_normalizer().fields()
    assert all(torch.equal(fields["agent_pos"][name], expected["agent_pos"][name]) for name in ("scale", "offset"))
    workspace = TrainUnifiedVideoActionWorkspace(config)
    workspace.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 3 and np.isfinite(losses).all()
    caches = sorted(path.name.split(".")[0].split("@")[0] for path in (tmp_path / "cache").glob("*.latents"))
    assert caches == ["pusht", "videos"]
    policy = workspace.policy.cpu()
    dataset.use_frames()
    batch = policy.with_modes(
        dataset.__getitems__([(index, 0) for index in picked]), [TASK_MODES["video"]] * len(picked)
    )
    inputs, targets = policy.transform.training_inputs(batch), policy.transform.targets(batch)
    assert (inputs.proprio[is_video] == 0).all() and (inputs.proprio[~is_video] != 0).any()
    weights = loss_weights(policy.model.spec, targets, TrainingCorruption(**batch["corruption"]))
    assert (weights["auxiliary"][is_video] == 0).all() and (weights["auxiliary"][~is_video].amax(1) == 1).all()
    assert (weights["video"].flatten(1).sum(1) > 0).all()
