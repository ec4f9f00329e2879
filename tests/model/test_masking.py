"""What is drawn for a training batch: each sample's by its own seed, and as the recipe says."""

from dataclasses import fields, replace

import torch

from tests.model.conftest import EVERYTHING, PLAIN, TINY
from unified_video_action.model.config import MaskConfig
from unified_video_action.model.masking import HISTORY_ACTION_DROPOUT, draw_corruption, mask_ratios
from unified_video_action.model.task_modes import TASK_MODES

MODES = list(TASK_MODES.values())


def test_a_samples_draws_depend_on_its_seed_and_mode_alone():
    masking = replace(TINY.masking, noise=True)
    config = replace(TINY, video_head=replace(TINY.video_head, rows=5, noise_draws=2), masking=masking)
    seeds = [11, 2**63 - 1, 5, 11, 7]
    together = draw_corruption(EVERYTHING, config, seeds, MODES)
    samples_of = {"video": together.video_samples.tolist()}
    samples_of |= {"action": together.action_samples.tolist(), "proprio": list(range(5))}
    for sample, (seed, mode) in enumerate(zip(seeds, MODES, strict=True)):
        alone = draw_corruption(EVERYTHING, config, [seed], [mode])
        for name in (field.name for field in fields(alone) if not field.name.endswith("_samples")):
            part = name.split("_")[0]
            where = samples_of[part] if part in samples_of else list(range(5))
            mine = getattr(together, name)[[where.index(sample)] if sample in where else []]
            assert torch.equal(getattr(alone, name), mine), name


def test_tokens_that_are_denoised_together_share_a_noise_level():
    config = replace(TINY, video_head=replace(TINY.video_head, noise_draws=2, attention_heads=4))
    t = draw_corruption(EVERYTHING, config, [1, 2, 3], [TASK_MODES["video"]] * 3).video_t  # (V, P, K, R)
    assert t.shape[-1] > 1 and (t == t[..., :1]).all() and len(t[..., 0].unique()) > 6


def test_noise_is_normal_and_its_levels_are_uniform():
    corruption = draw_corruption(EVERYTHING, TINY, range(300), [TASK_MODES["policy_and_video"]] * 300)
    for name in ("video", "action", "proprio"):
        noise, t = getattr(corruption, f"{name}_noise"), getattr(corruption, f"{name}_t")
        assert noise.dtype == torch.float32 and abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
        assert t.dtype == torch.long and 0 <= t.min() < 10 and 990 <= t.max() < 1000
        assert abs(t.double().mean() - 499.5) < 15
    assert abs((corruption.video_noise[:-1] * corruption.video_noise[1:]).mean()) < 0.02  # of neighbouring seeds
    assert abs((~corruption.sees_text).double().mean() - TINY.text_dropout) < 0.06


def test_the_ratio_follows_a_truncated_normal_and_hides_every_cell_equally_often():
    ratios = mask_ratios(MaskConfig(), (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert 0.7 <= ratios.min() < 0.701 and 0.999 < ratios.max() <= 1.0
    normal = torch.distributions.Normal(1.0, 0.25)
    edges = torch.tensor([0.7, 0.8, 0.9, 1.0])
    shares = normal.cdf(edges).diff() / (normal.cdf(edges[-1]) - normal.cdf(edges[0]))
    assert torch.allclose(torch.histogram(ratios.float(), edges).hist / len(ratios), shares, atol=1e-3)
    corruption = draw_corruption(
        PLAIN, replace(TINY, masking=MaskConfig(0.5, 0.1, 0.3, 0.5)), range(2000), [MODES[1]] * 2000
    )
    frames = corruption.masked.reshape(2000, 4, 4)
    assert (frames == frames[:, :1]).all()  # the same cells of every frame: two of four
    hidden = frames[:, 0].double()
    assert (hidden.sum(1) == 2).all() and (hidden.mean(0) - 0.5).abs().max() < 0.05


def test_video_rows_are_masked_tokens():
    config = replace(TINY, video_head=replace(TINY.video_head, rows=6))
    corruption = draw_corruption(PLAIN, config, range(50), [TASK_MODES["video"]] * 50)
    assert corruption.video_rows.shape == (50, 6) and corruption.masked.gather(1, corruption.video_rows).all()
    assert all(len(set(rows.tolist())) == 6 for rows in corruption.video_rows)


def test_inverse_dynamics_sees_the_history_in_its_share_of_samples():
    modes = [MODES[i % 5] for i in range(1000)]
    hidden = draw_corruption(PLAIN, TINY, range(1000), modes)
    shown = draw_corruption(PLAIN, replace(TINY, masking=MaskConfig(inverse_history=0.5)), range(1000), modes)
    inverse = torch.tensor([mode.name == "inverse_dynamics" for mode in modes])
    assert not hidden.sees_history[inverse].any() and hidden.sees_history[~inverse].all()
    assert 0.4 < shown.sees_history[inverse].float().mean() < 0.6 and shown.sees_history[~inverse].all()


def test_past_actions_are_hidden_in_their_share_of_samples_where_there_are_any():
    drawn = draw_corruption(EVERYTHING, TINY, range(1000), [MODES[0]] * 1000)
    assert abs((~drawn.sees_history_actions).double().mean() - HISTORY_ACTION_DROPOUT) < 0.03
    assert draw_corruption(PLAIN, TINY, [0], [MODES[0]]).sees_history_actions is None
