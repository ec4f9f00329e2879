"""Forward dynamics of states: the auxiliary head, given the actions."""

import pytest
import torch

from tests.inference.test_session import make_policy


def test_states_follow_the_actions() -> None:
    policy = make_policy(auxiliary_dim=3)
    seen = {"image": torch.randint(256, (2, 4, 3, 32, 32), dtype=torch.uint8), "agent_pos": 512 * torch.rand(2, 4, 2)}
    actions = 512 * torch.rand(2, 16, 2)
    states = policy.predict_states(seen, actions)
    assert states.shape == (2, 4 + 4, 3) and not states.requires_grad
    assert (policy.predict_states(seen, actions.flip(1)) - states).abs().max() > 1e-3
    torch.testing.assert_close(policy.predict_states(seen, actions), states)


def test_a_policy_without_an_auxiliary_head_says_so() -> None:
    with pytest.raises(ValueError, match="predicts no states: train one with task.shape_meta.auxiliary_dim above 0"):
        make_policy().predict_states({}, torch.zeros(1, 16, 2))
