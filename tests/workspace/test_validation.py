"""What validation measures of a policy of a few thousand weights, in every task mode."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.evaluation.worlds import held_out, write_pushes
from tests.scripts.conftest import CONFIG
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.env.pusht.reader import PushTReader
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.build import build_policy
from unified_video_action.workspace.validation import Validation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pushes(tmp_path_factory.mktemp("pushes") / "pushes.zarr", episodes=4)


@pytest.fixture
def policy() -> Any:
    corners = np.array([[0.0, 0.0], [512.0, 512.0]])
    torch.manual_seed(0)
    return build_policy(CONFIG, Normalizer.limits({"action": corners, "agent_pos": corners})).eval()


def test_every_mode_is_measured_and_a_collapsed_head_is_reported(
    policy: Any, store: Path, caplog: Any, tmp_path: Path
) -> None:
    nn.init.constant_(policy.model.action_head.trunk.fc[0].bias, -1000.0)
    validation = Validation(policy, held_out(store), 6, PushTReader())
    measured = validation.measure(7, None)
    assert {
        *(f"{mode}/action" for mode in ("policy", "inverse_dynamics", "policy_and_video")),
        *(f"{mode}/video" for mode in ("video", "forward_dynamics", "policy_and_video")),
        "action_error", "action_error_chunk", "inverse_dynamics_error", "frame_psnr", "frame_psnr_still",
        "frame_agent", "frame_whole", "forward_dynamics_psnr", "forward_dynamics_agent", "forward_dynamics_block",
        "follows_actions_agent", "follows_actions_psnr", "reads_frames", "inverse_vs_policy",
        "health/action_live", "health/action_spread", "health/video_explained", "health/video_explained_other",
    } <= measured.keys()  # fmt: skip
    assert all(np.isfinite(value) for value in measured.values()) and measured == validation.measure(8, None)
    assert measured["health/action_live"] == 0
    assert "step 7: the action head no longer depends on its input (spread 0.000" in caplog.text
    records = Mock()
    validation.draw(7, records, tmp_path / "prediction_grids", rows=2)
    path = tmp_path / "prediction_grids" / "step_00000007.png"
    records.picture.assert_called_once_with(7, "imagined", path)
    assert Image.open(path).size[1] > 2 * 3 * 96  # recorded, from history, from actions


def test_only_what_is_trained_is_measured(policy: Any, store: Path, tmp_path: Path) -> None:
    policy.trained = (TASK_MODES["video"],)
    measured = Validation(policy, held_out(store), 4).measure(0, None)
    assert {"video/video", "frame_psnr", "frame_psnr_still", "health/video_explained"} <= measured.keys()
    assert not {"action_error", "frame_agent", "forward_dynamics_psnr", "health/action_live"} & measured.keys()
    policy.trained = (TASK_MODES["policy"],)
    acting = Validation(policy, held_out(store), 4)
    assert {"policy/action", "action_error", "health/action_spread"} <= acting.measure(0, None).keys()
    acting.draw(0, Mock(), tmp_path / "prediction_grids", rows=1)
    assert not (tmp_path / "prediction_grids").exists()
