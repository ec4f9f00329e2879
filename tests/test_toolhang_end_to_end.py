"""ToolHang: frames and states of the real simulator become training data, and the policy acts in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from tests.shrunk import SHRUNK, read

pytest.importorskip("robosuite", reason="robosuite is not installed; add the simulators with: make sims")

from unified_video_action.env.robomimic.demonstrations import Demonstration, new_file
from unified_video_action.env.robomimic.env import RobomimicEnv
from unified_video_action.env.robomimic.simulator import environment_arguments
from unified_video_action.rotations import to_pose_actions
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

SIZE, STEPS = 32, 36
CAMERAS = ("sideview", "robot0_eye_in_hand")
STRIDE = np.array([0.004, 0.002, -0.006])  # metres that the hand is asked to go in a step


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes in the published layout, in which the hand goes down slantwise with its gripper open."""
    path = tmp_path_factory.mktemp("tool_hang") / "image_abs.hdf5"
    env = RobomimicEnv(task="ToolHang", cameras=CAMERAS, image_size=SIZE, samples=0)
    with new_file(path, environment_arguments("ToolHang", absolute=True)) as (writer, _):
        for seed in (0, 1):
            observation, _ = env.reset(seed=seed)
            seen, actions = [], []
            for _ in range(STEPS):
                turn = Rotation.from_quat(observation["robot0_eef_quat"]).as_rotvec()
                actions.append(np.concatenate([observation["robot0_eef_pos"] + 5 * STRIDE, turn, [-1.0]]))
                seen.append(observation)
                observation, *_ = env.step(to_pose_actions(actions[-1]))
            obs = {name: np.stack([one[name] for one in seen]) for name in seen[0]}
            writer.append(Demonstration("", np.zeros((STEPS, 1)), np.stack(actions), obs, np.zeros(STEPS, bool)))
    env.close()
    assert (obs["robot0_eef_pos"][-1] - obs["robot0_eef_pos"][0])[2] < -0.05, "absolute actions move the hand"
    return path


def test_a_policy_trains_on_its_frames_and_acts_in_it(recording: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    views = [f"task.shape_meta.obs.{camera}_image.shape=[3,{SIZE},{SIZE}]" for camera in CAMERAS]
    config = read(
        "uva_toolhang",
        *SHRUNK,
        *views,
        "model=mar_tiny",
        "vae=taef2",
        f"vae.image_size={SIZE}",
        f"task.env.image_size={SIZE}",
        "task.env.samples=0",
        "task.dataset.val_ratio=0.5",
        f"task.dataset.sources.path={recording}",
        f"data.cache_dir={tmp_path}",
        f"output_dir={run}",
        "trainer.num_workers=0",
        "trainer.micro_batch=5",
        "trainer.sheet_every=null",
    )
    TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    measured = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        measured |= json.loads(line)
    assert {"train/action", "train/video", "evaluation/success_rate"} <= measured.keys()
    assert all(np.isfinite(value) for value in measured.values())
    results = json.loads((run / "evaluation" / "step_00000003" / "results.json").read_text())
    assert results["metrics"]["crashed"] == 0 and results["episodes"][0]["steps"] == 8
