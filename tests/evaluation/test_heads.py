"""Health of heads: seen where they are well, where they have collapsed, and whatever the trunk's activations are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.policy.conftest import batch as windows  # noqa: F401
from tests.policy.conftest import config, make_policy, normalizer, obs  # noqa: F401
from unified_video_action.evaluation.heads import heads_health, warnings
from unified_video_action.evaluation.synthetic import SyntheticWindows
from unified_video_action.model.task_modes import TASK_MODES

MODES = ("policy", "video", "forward_dynamics")


def measure(policy: Any, batch: dict[str, Any], modes: Sequence[str]) -> dict[str, float]:
    """Health of a policy that was trained in these modes."""
    policy.trained = tuple(TASK_MODES[name] for name in modes)
    return heads_health(policy, batch)


@pytest.fixture
def policy(make_policy) -> Any:  # noqa: F811
    return make_policy()


@pytest.fixture
def batch(policy: Any, windows: dict[str, Any]) -> dict[str, Any]:  # noqa: F811
    """Latents in place of frames, of which one lies beyond the end."""
    frames = windows["history"]["image"]
    windows["history"], windows["future"] = ({"image": policy.encode(x)} for x in (frames, frames.flip(1).roll(5, -1)))
    windows["frame_is_pad"][2, 3] = True
    return windows | {"has_action": torch.ones(3, dtype=torch.bool)}


def test_synthetic_windows_leave_the_policys_device_alone(policy: Any) -> None:
    """A loader process must not touch an accelerator; here the policy's weights are nowhere."""
    synthetic = SyntheticWindows(policy)
    expected = synthetic.__getitems__([(3, 1)])["action"]
    policy.to("meta")
    assert torch.equal(synthetic.__getitems__([(3, 1)])["action"], expected)


def test_a_head_that_listens_is_well(policy: Any, batch: dict[str, Any]) -> None:
    health = measure(policy, batch, MODES)
    assert set(health) == {"action_live", "action_spread", "video_explained", "video_explained_other"}
    assert health["action_live"] > 0.3 and health["action_spread"] > 0.01  # of random weights
    assert not warnings(health | {"action_spread": 0.1})
    assert health == measure(policy, batch, MODES)
    assert set(measure(policy, batch, ["video"])) == {"video_explained", "video_explained_other"}
    assert set(measure(policy, batch, ["inverse_dynamics"])) == {"action_live", "action_spread"}


@pytest.mark.parametrize("activation", [None, nn.SiLU()])
def test_dead_units_and_a_condition_of_its_own_are_seen(policy: Any, batch: dict[str, Any], activation: Any) -> None:
    trunk = policy.model.action_head.trunk
    trunk.fc[1] = activation or trunk.fc[1]
    nn.init.constant_(trunk.fc[0].bias, -1000.0)
    health = measure(policy, batch, ["policy"])
    assert health["action_live"] == 0 and health["action_spread"] < 1e-4
    (warning,) = warnings(health)
    assert "the action head no longer depends on its input (spread 0.000, live units 0.0%)" in warning
    assert "training.optimizer.learning_rate" in warning and warning.endswith("training.optimizer.fan_in")
