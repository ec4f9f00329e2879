"""Options of the model that the paper does not have."""

from dataclasses import replace

import pytest
import torch

from tests.model.conftest import EVERYTHING, PLAIN, TINY, Sample
from unified_video_action.model.config import MaskConfig, ModelConfig
from unified_video_action.model.inputs import patchify
from unified_video_action.model.masking import draw_training
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES

NEWEST = replace(TINY, video_head=replace(TINY.video_head, newest_token=True))


def test_the_video_head_sees_the_newest_token_at_its_place():
    sample = Sample(PLAIN, NEWEST)
    z = torch.randn(5, PLAIN.tokens, 32)
    condition = sample.model.video_condition(z, sample.inputs.history[:, 0])
    newest = patchify(sample.inputs.history[:, 0, -1:], 2)
    assert condition.shape == (5, PLAIN.tokens, 32 + PLAIN.token_dim) and torch.equal(condition[..., :32], z)
    for frame in range(4):
        assert torch.equal(condition[:, frame * 4 : frame * 4 + 4, 32:], newest)


@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_newest_tokens_train_and_imagine(spec):
    sample = Sample(spec, NEWEST)
    terms = sample.model.loss_terms(sample.inputs, sample.targets, sample.draws)
    sum(term.total for term in terms.values()).backward()
    for head in sample.model.video_heads:
        assert head.net.cond_embed.weight.grad[:, 32:].abs().max() > 0
    made = sample.model.sample(
        sample.inputs,
        TASK_MODES["forward_dynamics"],
        sampler=Sampler("ancestral", 4),
        iterations=2,
        guidance=1.5 if spec.text_dim else 1.0,
    )
    assert made.frames.shape == sample.inputs.future.shape


def test_inverse_dynamics_sees_the_history_in_its_share_of_samples():
    modes = [list(TASK_MODES.values())[i % 5] for i in range(1000)]
    hidden = draw_training(PLAIN, TINY, range(1000), modes)
    shown = draw_training(PLAIN, replace(TINY, masking=MaskConfig(inverse_history=0.5)), range(1000), modes)
    inverse = torch.tensor([mode.name == "inverse_dynamics" for mode in modes])
    assert not hidden.sees_history[inverse].any() and hidden.sees_history[~inverse].all()
    assert 0.4 < shown.sees_history[inverse].float().mean() < 0.6 and shown.sees_history[~inverse].all()


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"MaskConfig.inverse_history must lie in \[0, 1\], got 1.5"):
        MaskConfig(inverse_history=1.5)
    with pytest.raises(ValueError, match="action_head.newest_token"):
        ModelConfig(action_head=replace(TINY.action_head, newest_token=True))
