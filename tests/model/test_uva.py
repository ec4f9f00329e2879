from dataclasses import replace

import pytest
import torch

from tests.model.conftest import EVERYTHING, PLAIN, TINY, Sample
from unified_video_action.model.diffusion import draw_noise
from unified_video_action.model.inputs import ModelInputs, Visibility, patchify, spread, unpatchify
from unified_video_action.model.masking import draw_corruption, generation_schedule
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.spec import Horizon

STEPS = 150  # in which two samples are learned by heart
FEW = Sampler("ancestral", 4)


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_tokens_are_row_major_and_come_back():
    latents = torch.arange(2 * 4 * 4 * 4 * 4.0).reshape(2, 4, 4, 4, 4)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 16, 16)
    assert torch.equal(tokens[1, 5], latents[1, 1, :, 0:2, 2:4].flatten())  # frame 1, row 0, column 1
    assert torch.equal(unpatchify(tokens, PLAIN), latents)


def test_spread_repeats_evenly_also_where_it_does_not_divide():
    rows = torch.arange(16.0).reshape(1, 16, 1)
    assert torch.equal(spread(rows, 64).flatten(), torch.arange(16.0).repeat_interleave(4))
    counts = torch.bincount(spread(rows, 36).flatten().long())
    assert counts.min() == 2 and counts.max() == 3 and counts.sum() == 36


# -- training ----------------------------------------------------------------------------------------------------------


NEWEST = replace(TINY, video_head=replace(TINY.video_head, newest_token=True))


@pytest.mark.parametrize("config", [TINY, NEWEST], ids=["plain", "newest_token"])
@pytest.mark.parametrize("history", [1, 4, 6])
@pytest.mark.parametrize("spec", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_a_mixed_batch_gives_every_parameter_a_gradient(spec, history, config):
    sample = Sample(replace(spec, horizon=Horizon(history=history)), config)
    terms = sample.model.loss_terms(sample.inputs, sample.targets, sample.corruption)
    assert set(terms) == {"video", "action"} | ({"proprio", "auxiliary"} if spec is EVERYTHING else set())
    sum(term.total for term in terms.values()).backward()
    missing = {name for name, p in sample.model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    # masked_text appears only where the instruction was dropped; a batch of five need not have any.
    assert missing <= {"mar.inputs.masked_text", "mar.inputs.masked_history_action"}


def test_a_mixed_batch_is_the_sum_of_its_samples(everything):
    together = everything.model.loss_terms(everything.inputs, everything.targets, everything.corruption)
    alone = dict.fromkeys(together, 0.0)
    for i, mode in enumerate(everything.modes):
        pick = slice(i, i + 1)
        one = ModelInputs(**{name: value[pick] for name, value in vars(everything.inputs).items()})
        given = {name: value for name, value in vars(everything.targets).items() if value is not None}
        targets = replace(everything.targets, **{name: value[pick] for name, value in given.items()})
        terms = everything.model.loss_terms(one, targets, draw_corruption(EVERYTHING, TINY, [i], [mode]))
        for name, term in terms.items():
            alone[name] += term.total.item()
    assert {name: term.total.item() for name, term in together.items()} == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("chunk", ["rows", "vector"])
def test_padded_frames_and_actions_never_count(chunk):
    config = replace(TINY, action_head=replace(TINY.action_head, chunk=chunk, noise_draws=2))
    sample = Sample(EVERYTHING, config)
    sample.targets.frame_valid[:, 2:] = False
    sample.targets.action_valid[:, 9:] = False
    visible = torch.tensor([not mode.sees_actions for mode in sample.modes])
    before = sample.losses()
    sample.inputs.future[:, :, 2:] = 100
    sample.inputs.actions[visible, 9:] = 100  # as an input, forward dynamics still sees its actions
    sample.targets.proprio[:, 9:] = 100
    sample.targets.auxiliary[:, 6:] = 100
    assert sample.losses() == before
    sample.inputs.future[:, 1, 1] = 100
    assert sample.losses()["video"] != before["video"]
    sample.targets.action_valid[:] = False
    term = sample.model.loss_terms(sample.inputs, sample.targets, sample.corruption)["action"]
    assert term.weight == 0 and term.total == 0


def test_a_sample_without_past_actions_trains_what_acting_shows_when_an_episode_begins(everything):
    model, corruption = everything.model, everything.corruption
    corruption.sees_history_actions = torch.zeros(5, dtype=torch.bool)
    terms = model.loss_terms(everything.inputs, everything.targets, corruption)
    sum(term.total for term in terms.values()).backward()
    assert model.mar.inputs.masked_history_action.grad.abs().max() > 0
    hidden = everything.losses()
    everything.inputs.history_actions = None
    assert everything.losses() == hidden
    corruption.sees_history_actions[0], everything.inputs.history_actions = True, torch.ones(5, 16, 3)
    assert everything.losses() != hidden


@torch.no_grad()
def test_hidden_inputs_do_not_matter_and_seen_ones_do(everything):
    model, inputs = everything.model, everything.inputs
    for mode in TASK_MODES.values():
        corruption = draw_corruption(EVERYTHING, TINY, range(5), [mode] * 5)
        seen = Visibility(corruption.masked, corruption.sees_history, corruption.sees_actions, corruption.sees_text)
        z, changed = model.mar(inputs, seen), {}
        for name in ("history", "future", "actions"):
            for view in range(getattr(inputs, name).shape[1] if name != "actions" else 1):
                value = getattr(inputs, name).clone()
                value[:, view if name != "actions" else slice(None)] += 1
                changed[name, view] = not torch.equal(z, model.mar(replace(inputs, **{name: value}), seen))
        some_visible = bool((~corruption.masked).any())
        assert some_visible == (mode.future != "masked")
        assert changed == {
            ("history", 0): mode.sees_history,  # other cameras are seen in every mode, as in the paper's code
            ("history", 1): True,
            ("history", 2): True,
            ("future", 0): some_visible,
            ("future", 1): some_visible,
            ("actions", 0): mode.sees_actions,
        }


@torch.no_grad()
def test_what_is_hidden_is_seen_through_noise_of_its_own_level():
    """Frames at full noise, and padded ones at any, do not matter; what is half in noise does."""
    config = replace(TINY, masking=replace(TINY.masking, noise=True))
    sample = Sample(EVERYTHING, config)
    corruption = draw_corruption(EVERYTHING, config, range(40), [TASK_MODES["policy"]] * 40)
    assert (
        10 < (corruption.levels == 1).all(1).logical_not().sum()
        and (corruption.levels[:, 0] != corruption.levels[:, 1]).any()
    )
    assert 0.3 < (corruption.levels == 1).float().mean() < 0.7
    sample.corruption = draw_corruption(EVERYTHING, config, range(5), [TASK_MODES["policy"]] * 5)
    sample.corruption.levels[:] = torch.tensor([1.0, 0.5])
    latents = []
    sample.model.mar.register_forward_hook(lambda module, given, made: latents.append(made))
    for changed in (None, "future", "actions"):
        if changed:
            setattr(sample.inputs, changed, getattr(sample.inputs, changed) + 1)
        sample.losses()
    assert torch.equal(latents[0], latents[1]) and not torch.equal(latents[1], latents[2])
    sample.corruption.levels[:] = torch.tensor([0.5, 1.0])
    sample.targets.frame_valid[:, 2:] = False
    sample.losses()
    sample.inputs.future[:, :, 2:] += 1  # padded
    sample.losses()
    sample.inputs.future[:, :, :2] += 1
    sample.losses()
    assert torch.equal(latents[3], latents[4]) and not torch.equal(latents[4], latents[5])


def test_gradient_checkpointing_changes_nothing(plain):
    grads = []
    for on in (False, True):
        plain.model.train()
        for stack in (plain.model.mar.encoder, plain.model.mar.decoder):
            stack.gradient_checkpointing = on
        plain.model.zero_grad()
        sum(
            term.total for term in plain.model.loss_terms(plain.inputs, plain.targets, plain.corruption).values()
        ).backward()
        grads.append([p.grad.clone() for p in plain.model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_the_video_head_sees_the_newest_token_at_its_place():
    sample = Sample(PLAIN, NEWEST)
    z = torch.randn(5, PLAIN.tokens, 32)
    condition = sample.model.video_condition(z, sample.inputs.history[:, 0])
    newest = patchify(sample.inputs.history[:, 0, -1:], 2)
    assert condition.shape == (5, PLAIN.tokens, 32 + PLAIN.token_dim) and torch.equal(condition[..., :32], z)
    for frame in range(4):
        assert torch.equal(condition[:, frame * 4 : frame * 4 + 4, 32:], newest)


@pytest.mark.parametrize(("learns", "prediction"), [("action", "epsilon"), ("video", "v"), ("action", "flow")])
def test_one_batch_can_be_learned_by_heart(learns, prediction):
    """After overfitting, samples equal the data: actions by policy, frames by the video model."""
    head = replace(TINY.action_head, width=64, prediction=prediction, learned_variance=prediction == "epsilon")
    config = replace(TINY, action_head=replace(head, noise_draws=8), video_head=replace(head, noise_draws=8, pool=4))
    sample = Sample(PLAIN, config, batch=2)
    sample.inputs.future = sample.inputs.future.clamp(-1, 1)
    mode = TASK_MODES["policy" if learns == "action" else "video"]
    optimizer = torch.optim.Adam(sample.model.parameters(), lr=3e-3)
    for step in range(STEPS):
        corruption = draw_corruption(PLAIN, config, [2 * step, 2 * step + 1], [mode] * 2)
        term = sample.model.loss_terms(sample.inputs, sample.targets, corruption)[learns]
        optimizer.zero_grad()
        (term.total / term.weight).backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 - step / STEPS)
    by = Sampler("euler" if prediction == "flow" else "ddim", 20)
    made = sample.model.sample(sample.inputs, mode, sampler=by, generator=generators(2))
    drawn, truth = (made.actions, sample.inputs.actions) if learns == "action" else (made.frames, sample.inputs.future)
    assert (drawn - truth).abs().mean() < 0.15 < (truth - truth.mean()).abs().mean()


# -- inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("iterations", [1, 3, 4])
def test_generation_fills_every_cell_once(plain, iterations):
    assert generation_schedule(256, 2) == [181, 0]  # as in the paper
    schedule = generation_schedule(4, iterations)
    assert schedule[-1] == 0 and schedule == sorted(schedule, reverse=True)
    options = dict(sampler=FEW, iterations=iterations, generator=generators(5))
    assert (plain.model.sample(plain.inputs, TASK_MODES["video"], **options).frames != 0).all()


def test_a_sample_does_not_depend_on_its_batch(plain):
    mode = TASK_MODES["policy_and_video"]
    together = plain.model.sample(plain.inputs, mode, sampler=FEW, generator=generators(5), iterations=2)
    one = ModelInputs(plain.inputs.history[3:4])
    alone = plain.model.sample(one, mode, sampler=FEW, generator=generators(1, first=3), iterations=2)
    assert torch.allclose(together.actions[3:4], alone.actions, atol=1e-5)
    assert torch.allclose(together.frames[3:4], alone.frames, atol=1e-3)


def test_guidance_extrapolates_from_the_prediction_without_text():
    fixed_variance = replace(TINY, action_head=replace(TINY.action_head, learned_variance=False))
    sample = Sample(EVERYTHING, fixed_variance)
    model, inputs = sample.model, sample.inputs
    for parameter in model.parameters():  # so that the instruction matters in an untrained model
        parameter.data.add_(0.2 * torch.randn_like(parameter))

    def actions(guidance):
        options = dict(sampler=FEW, generator=generators(5), guidance=guidance)
        return model.sample(inputs, TASK_MODES["policy"], **options).actions

    yes, no = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    head = model.action_head
    noise = draw_noise((5 * head.rows, head.channels), FEW.noise_draws, generators(5), torch.device("cpu"))
    for guidance, text in ((0.0, no), (1.0, yes)):
        with torch.no_grad():
            z = model.mar(inputs, Visibility(torch.ones(5, 16, dtype=torch.bool), yes, no, text))
            assert torch.allclose(actions(guidance), head.sample_chunk(z, noise, FEW), atol=1e-5)
    assert (actions(1.0) - actions(0.0)).abs().max() > 0.01
    assert (actions(3.0) - actions(1.0)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("mode", "lacking", "guidance", "message"),
    [
        ("forward_dynamics", "actions", 1.0, "needs actions"),
        ("inverse_dynamics", "future", 1.0, "needs future frames"),
        ("policy", "text", 2.0, "guidance 2.0 needs a model with language"),
    ],
)
def test_what_a_mode_lacks_is_named(plain, mode, lacking, guidance, message):
    with pytest.raises(ValueError, match=message):
        inputs = replace(plain.inputs, **{lacking: None})
        plain.model.sample(inputs, TASK_MODES[mode], sampler=FEW, guidance=guidance)
