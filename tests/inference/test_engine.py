"""The engine against the plain path of the model: same weights, same noise, same results."""

from dataclasses import replace

import pytest
import torch

from tests.inference.test_session import SmallCodec
from tests.model.conftest import EVERYTHING, PLAIN, TINY, Sample
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.inference.denoiser import Denoiser
from unified_video_action.inference.engine import Engine
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.base import ObservationSpec
from unified_video_action.policy.config import PolicyConfig
from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy
from unified_video_action.spec import Horizon, ModelSpec

TOLERANCE = 5e-5  # of values around 1; random networks amplify rounding


def make_sample(spec: ModelSpec, newest_token: bool = False, **head: object) -> Sample:
    config = replace(
        TINY,
        action_head=replace(TINY.action_head, **head),
        video_head=replace(TINY.video_head, **(head | {"chunk": "rows", "newest_token": newest_token})),
    )
    sample = Sample(spec, config, batch=3)
    for parameter in sample.model.parameters():  # so that everything matters
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return sample


def make_policy(sample: Sample, sampler: str = "ancestral4", guidance: float = 1.0) -> UnifiedVideoActionPolicy:
    settings = PolicyConfig(sampler=sampler, video_sampler=sampler, guidance=guidance)
    normalizer = Normalizer.identity({"action": sample.spec.action_dim})
    return UnifiedVideoActionPolicy(sample.model, SmallCodec(), normalizer, ObservationSpec("image"), settings).eval()


def noise() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(3)]


def both(sample: Sample, policy: UnifiedVideoActionPolicy, mode: str, precision: str = "no"):
    """What the engine makes and what the model makes, and what the two leave of their generators."""
    engine, inputs = Engine(policy, precision=precision), sample.inputs
    seen = replace(inputs, future=None, actions=None)
    if sample.spec.text_dim:
        seen.text = torch.stack([engine.instruction(text) for text in inputs.text])
    fast_noise, plain_noise = noise(), noise()
    fast = engine.sample(seen, fast_noise, frames=mode == "policy_and_video")
    for_actions, for_frames = policy.config.samplers()
    options = dict(sampler=for_actions, video_sampler=for_frames, guidance=policy.config.guidance)
    plain = sample.model.sample(inputs, TASK_MODES[mode], generator=plain_noise, **options)
    left = [[torch.rand((), generator=each).item() for each in made] for made in (fast_noise, plain_noise)]
    return fast, plain, left


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("learned_variance", [True, False])
@pytest.mark.parametrize("sampler", ["ancestral1", "ancestral16", "ddim10", "dpm10"])
def test_actions_equal_the_models(prediction: str, learned_variance: bool, sampler: str) -> None:
    sample = make_sample(PLAIN, prediction=prediction, learned_variance=learned_variance)
    fast, plain, left = both(sample, make_policy(sample, sampler), "policy")
    assert (fast.actions - plain.actions).abs().max() < TOLERANCE
    assert plain.actions.std() > 0.1 and fast.frames is None and left[0] == left[1]


@pytest.mark.parametrize("sampler", ["ancestral100", "ddim16"])
def test_presets_equal_the_models(sampler: str) -> None:
    sample = make_sample(PLAIN)
    fast, plain, left = both(sample, make_policy(sample, sampler), "policy")
    assert (fast.actions - plain.actions).abs().max() < TOLERANCE and left[0] == left[1]


@pytest.mark.parametrize(
    ("spec", "guidance"), [(PLAIN, 1.0), (EVERYTHING, 1.0), (EVERYTHING, 2.5)], ids=["plain", "everything", "guided"]
)
@pytest.mark.parametrize("chunk", ["rows", "vector"])
@pytest.mark.parametrize("sampler", ["ancestral5", "ddim4"])
def test_frames_and_actions_equal_the_models(spec: ModelSpec, chunk: str, sampler: str, guidance: float) -> None:
    sample = make_sample(spec, chunk=chunk)
    fast, plain, left = both(sample, make_policy(sample, sampler, guidance), "policy_and_video")
    assert (fast.actions - plain.actions).abs().max() < TOLERANCE
    scale = plain.frames.abs().max()  # the ancestral sampler of a random network leaves large latents
    difference = (fast.frames - plain.frames).abs()
    # A first step from pure noise multiplies rounding by 2e4 in the few values of x0 that are not clamped.
    assert scale > 0.1 and difference.mean() < TOLERANCE * scale and difference.max() < 1e-3 * scale
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("spec", "guidance"), [(PLAIN, 1.0), (EVERYTHING, 1.0), (EVERYTHING, 2.5)], ids=["plain", "everything", "guided"]
)
@pytest.mark.parametrize("sampler", ["ancestral5", "ddim4"])
def test_frames_that_see_the_newest_token_equal_the_models(spec: ModelSpec, sampler: str, guidance: float) -> None:
    sample = make_sample(spec, newest_token=True, prediction="sample")
    fast, plain, left = both(sample, make_policy(sample, sampler, guidance), "policy_and_video")
    assert (fast.frames - plain.frames).abs().max() < TOLERANCE * plain.frames.abs().max()
    assert plain.frames.std() > 0.1 and left[0] == left[1]


@pytest.mark.parametrize("chunk", ["rows", "vector"])
@pytest.mark.parametrize(("spec", "guidance"), [(PLAIN, 1.0), (EVERYTHING, 2.5)], ids=["plain", "guided"])
@pytest.mark.parametrize("keeps", [False, True])
def test_several_chunks_of_one_joint_latent(spec: ModelSpec, guidance: float, chunk: str, keeps: bool) -> None:
    sample = make_sample(spec, chunk=chunk)
    engine = Engine(make_policy(sample, guidance=guidance))
    inputs = replace(sample.inputs, future=None, actions=None)
    if spec.text_dim:
        inputs.text = torch.stack([engine.instruction(text) for text in inputs.text])
    keep = (sample.inputs.actions, torch.rand(sample.inputs.actions.shape[:2])) if keeps else None
    together, apart = noise(), noise()
    made = engine.sample(inputs, together, keep=keep, chunks=2).actions.unflatten(0, (3, 2))
    for row, own in enumerate(apart):
        single = replace(inputs, **{k: v[row : row + 1] for k, v in vars(inputs).items() if v is not None})
        own_keep = keep and tuple(each[row : row + 1] for each in keep)
        z = engine.joint_latent(single)
        head = sample.model.action_head
        drawn = engine.draw_noise(head, engine.samplers[0], head.rows, [own, own])
        halves = drawn.chunk(2, dim=1)  # of the two chunks
        expected = torch.cat([engine.denoise_actions(z, half, own_keep) for half in halves])
        assert (made[row] - expected).abs().max() < TOLERANCE
    assert (made[:, 0] - made[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("history", [1, 4, 6])
@pytest.mark.parametrize("given", [True, False])
def test_inputs_fold_for_any_history_with_and_without_past_actions(history: int, given: bool) -> None:
    sample = make_sample(replace(EVERYTHING, horizon=Horizon(history=history)))
    if not given:
        sample.inputs.history_actions = None
    fast, plain, _ = both(sample, make_policy(sample), "policy")
    assert (fast.actions - plain.actions).abs().max() < TOLERANCE


def test_every_input_reaches_the_actions() -> None:
    sample = make_sample(EVERYTHING)
    engine = Engine(make_policy(sample))
    inputs = replace(sample.inputs, text=torch.stack([engine.instruction(text) for text in sample.inputs.text]))
    made = engine.sample(inputs, noise()).actions
    for name in ("history", "wrist_history", "history_actions", "proprio", "text"):
        changed = replace(inputs, **{name: getattr(inputs, name) + torch.randn_like(getattr(inputs, name))})
        assert (engine.sample(changed, noise()).actions - made).abs().max() > 1e-3, name


def test_a_sample_does_not_depend_on_its_batch() -> None:
    sample = make_sample(PLAIN)
    engine = Engine(make_policy(sample))
    together = engine.sample(sample.inputs, noise(), frames=True)
    one = replace(sample.inputs, history=sample.inputs.history[1:2])
    alone = engine.sample(one, [torch.Generator().manual_seed(1)], frames=True)
    assert (together.actions[1:2] - alone.actions).abs().max() < TOLERANCE
    assert (together.frames[1:2] - alone.frames).abs().max() < TOLERANCE * alone.frames.abs().max()


def test_steps_in_portions_equal_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = make_sample(PLAIN)
    head, sampler = sample.model.action_head, Sampler("ancestral", 7)
    cond, drawn = torch.randn(6, 32), torch.randn(sampler.noise_draws, 6, head.channels)
    made = []
    for limit in (1, 3 * 6 * 4 * (2 * 3 * 32 + 2 * 32), 2**25):  # one step, three, all
        monkeypatch.setattr("unified_video_action.inference.denoiser.MODULATION_BYTES", limit)
        made.append(Denoiser(head, sampler, 1.0, torch.float32)(cond, drawn))
    assert torch.allclose(made[0], made[1], atol=1e-6) and torch.allclose(made[0], made[2], atol=1e-6)


def write_in_place(sample: Sample) -> None:
    with torch.no_grad():
        sample.model.action_head.net.final.linear.bias.add_(1)


def write_many(sample: Sample) -> None:
    parameters = [parameter.detach() for parameter in sample.model.parameters()]
    torch._foreach_copy_(parameters, [0.9 * parameter for parameter in parameters])


def take_a_training_step(sample: Sample) -> None:
    sum(term.total for term in sample.model.loss_terms(sample.inputs, sample.targets, sample.draws).values()).backward()
    torch.optim.AdamW(sample.model.parameters(), fused=True).step()


def load_weights(sample: Sample) -> None:
    sample.model.load_state_dict({name: 1.1 * value for name, value in sample.model.state_dict().items()})


@pytest.mark.parametrize("change", [write_in_place, write_many, take_a_training_step, load_weights])
def test_weights_that_changed_are_noticed(change) -> None:
    sample = make_sample(PLAIN)
    policy = make_policy(sample)
    engine = Engine(policy)
    before = engine.sample(sample.inputs, noise()).actions
    change(sample)
    with pytest.raises(RuntimeError, match="make a new PolicySession"):
        engine.sample(sample.inputs, noise())
    fast, plain, _ = both(sample, policy, "policy")
    assert (fast.actions - plain.actions).abs().max() < TOLERANCE
    assert (fast.actions - before).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_stays_close(precision: str) -> None:
    sample = make_sample(EVERYTHING)
    fast, plain, left = both(sample, make_policy(sample, "ddim10"), "policy_and_video", precision)
    assert fast.actions.dtype == fast.frames.dtype == torch.float32 and left[0] == left[1]
    difference = (fast.actions - plain.actions).abs()
    assert 0 < difference.mean() < 0.05
    for tensors in (sample.model.parameters(), sample.model.buffers()):
        assert all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point())


def test_an_outer_autocast_changes_nothing() -> None:
    sample = make_sample(PLAIN)
    engine = Engine(make_policy(sample))
    expected = engine.sample(sample.inputs, noise()).actions
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(engine.sample(sample.inputs, noise()).actions, expected)


def test_mistakes_are_named() -> None:
    sample = make_sample(PLAIN)
    with pytest.raises(ValueError, match="precision='half'"):
        Engine(make_policy(sample), precision="half")
    with pytest.raises(ValueError, match="guidance 2.0"):
        Engine(make_policy(sample, guidance=2.0))


@pytest.mark.parametrize("chunk", ["rows", "vector"])
@pytest.mark.parametrize("sampler", ["ancestral5", "ddim4", "dpm4"])
def test_kept_actions_equal_the_models(chunk: str, sampler: str) -> None:
    sample = make_sample(PLAIN, chunk=chunk)
    policy, inputs = make_policy(sample, sampler), replace(sample.inputs, future=None, actions=None)
    actions, weight = torch.rand(3, 16, 2) - 0.5, torch.rand(3, 16)
    weight[:, :2], weight[:, 10:] = 1.0, 0.0
    fast = Engine(policy).sample(inputs, noise(), keep=(actions, weight)).actions
    options = dict(sampler=Sampler.parse(sampler), generator=noise())
    plain = sample.model.sample(inputs, TASK_MODES["policy"], keep=(actions, weight), **options).actions
    assert (fast - plain).abs().max() < TOLERANCE
    torch.testing.assert_close(fast[:, :2], actions[:, :2], rtol=0, atol=1e-6)
    free = Engine(policy).sample(inputs, noise()).actions
    assert ((fast - actions).abs() < (free - actions).abs() + 1e-6)[:, 2:10].float().mean() > 0.8
    others = (fast - free)[:, 10:].abs().max()
    assert others > 1e-3 if chunk == "vector" else others < 1e-6  # rows know nothing of each other
