"""What is drawn for a training batch: each sample's by its own seed, and as the recipe says."""

from dataclasses import fields, replace

import pytest
import torch

from tests.model.conftest import EVERYTHING, PLAIN, TINY
from unified_video_action.model.config import MaskConfig
from unified_video_action.model.masking import draw_training, mask_ratios
from unified_video_action.model.task_modes import TASK_MODES

MODES = list(TASK_MODES.values())


def test_a_samples_draws_depend_on_its_seed_and_mode_alone():
    config = replace(TINY, video_head=replace(TINY.video_head, rows=5, noise_draws=2))
    seeds = [11, 2**63 - 1, 5, 11, 7]
    together = draw_training(EVERYTHING, config, seeds, MODES)
    places = {"video": together.video_samples.tolist()}
    places |= {"action": together.action_samples.tolist(), "proprio": list(range(5))}
    for sample, (seed, mode) in enumerate(zip(seeds, MODES, strict=True)):
        alone = draw_training(EVERYTHING, config, [seed], [mode])
        for name in (field.name for field in fields(alone) if not field.name.endswith("_samples")):
            part = name.split("_")[0]
            where = places[part] if part in places else list(range(5))
            mine = getattr(together, name)[[where.index(sample)] if sample in where else []]
            assert torch.equal(getattr(alone, name), mine), name


def test_noise_is_normal_and_its_levels_are_uniform():
    draws = draw_training(EVERYTHING, TINY, range(300), [TASK_MODES["policy_and_video"]] * 300)
    for name in ("video", "action", "proprio"):
        noise, t = getattr(draws, f"{name}_noise"), getattr(draws, f"{name}_t")
        assert noise.dtype == torch.float32 and abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
        assert t.dtype == torch.long and 0 <= t.min() < 10 and 990 <= t.max() < 1000
        assert abs(t.double().mean() - 499.5) < 15
        assert len(torch.unique(noise.flatten(1), dim=0)) == 300
    correlation = (draws.video_noise[:-1] * draws.video_noise[1:]).mean()  # of neighbouring seeds
    assert abs(correlation) < 0.02
    assert abs((~draws.sees_text).double().mean() - TINY.text_dropout) < 0.06


def test_the_ratio_follows_a_truncated_normal():
    config = MaskConfig(mean=1.0, std=0.25, low=0.7, high=1.0)
    ratios = mask_ratios(config, (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert 0.7 <= ratios.min() < 0.701 and 0.999 < ratios.max() <= 1.0
    normal = torch.distributions.Normal(1.0, 0.25)
    edges = torch.tensor([0.7, 0.8, 0.9, 1.0])
    shares = normal.cdf(edges).diff() / (normal.cdf(edges[-1]) - normal.cdf(edges[0]))
    found = torch.histogram(ratios.float(), edges).hist / len(ratios)
    assert torch.allclose(found, shares, atol=1e-3)


def test_every_cell_is_hidden_equally_often():
    draws = draw_training(PLAIN, replace(TINY, masking=MaskConfig(0.5, 0.1, 0.3, 0.5)), range(2000), [MODES[1]] * 2000)
    hidden = draws.masked.reshape(2000, 4, 4)[:, 0].double()  # two of four cells
    assert (hidden.sum(1) == 2).all() and (hidden.mean(0) - 0.5).abs().max() < 0.05


def test_seeds_and_modes_go_together():
    with pytest.raises(ValueError, match="2 seeds for 1 modes"):
        draw_training(PLAIN, TINY, [1, 2], [MODES[0]])
