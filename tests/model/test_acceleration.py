"""An accelerated model against the plain one: same weights, same noise, same results; and when it refuses."""

from dataclasses import replace

import pytest
import torch

from tests.model.conftest import EVERYTHING, PLAIN, TINY, Sample
from unified_video_action.model.denoiser import Denoiser
from unified_video_action.model.heads import DiffusionHead
from unified_video_action.model.inputs import patchify
from unified_video_action.model.masking import generation_schedule
from unified_video_action.model.samplers import Sampler
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.spec import ModelSpec

TOLERANCE = 5e-5  # of values around 1; random networks amplify rounding
ACT = dict(mode=TASK_MODES["policy"], sampler=Sampler("ddim", 4))


def make_sample(spec: ModelSpec, newest_token: bool = False, attention_heads: int = 0, **head: object) -> Sample:
    config = replace(
        TINY,
        action_head=replace(TINY.action_head, **head),
        video_head=replace(
            TINY.video_head,
            **(head | {"chunk": "rows", "newest_token": newest_token, "attention_heads": attention_heads}),
        ),
    )
    sample = Sample(spec, config, batch=3)
    for parameter in sample.model.parameters():  # so that everything matters
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return sample


def noise() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(3)]


def plain_sample(head: DiffusionHead, cond: torch.Tensor, drawn: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """The denoising loop as its formulas say, with the network as it trains."""
    x, last = drawn[0], 0.0
    for i, step in enumerate(head.diffusion.chain(sampler), 1):
        output = head.net(x, torch.full(x.shape[:1], step.t), cond)
        mean, spread = output[:, : head.channels], output[:, head.channels :]
        x0 = step.x0_from_x * x + step.x0_from_output * mean
        if (clamp := head.clamp_for(sampler)) is not None:
            x0 = x0.clamp(-clamp, clamp)
        x = step.from_x * x + step.from_x0 * x0 + step.from_last * last
        if i < len(drawn) - 1:
            slope = step.log_std_slope * spread if head.config.learned_variance else 0.0
            x = x + torch.exp(torch.as_tensor(step.log_std + slope)) * drawn[i]
        last = x0
    return x


@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
@pytest.mark.parametrize("learned_variance", [True, False])
@torch.no_grad()
def test_the_denoiser_equals_the_network_that_trains(prediction: str, learned_variance: bool) -> None:
    head = make_sample(PLAIN, prediction=prediction, learned_variance=learned_variance).model.action_head
    for sampler in map(Sampler.parse, ("ancestral1", "ancestral16", "ddim10", "dpm10")):
        cond, drawn = torch.randn(6, 32), torch.randn(sampler.noise_draws, 6, head.channels)
        made = head.sample(cond, drawn, sampler)
        assert (made - plain_sample(head, cond, drawn, sampler)).abs().max() < TOLERANCE and made.std() > 0.1


@torch.no_grad()
def test_tokens_that_are_denoised_together_equal_the_network_that_trains_and_see_each_other() -> None:
    sample = make_sample(PLAIN, attention_heads=4)
    head, tokens, sampler = sample.model.video_heads[0], PLAIN.tokens, Sampler("ddim", 5)
    cond, drawn = torch.randn(3, tokens, 32), torch.randn(1, 3, tokens, head.channels)
    made = head.sample(cond.flatten(0, 1), drawn.flatten(1, 2), sampler).unflatten(0, (3, tokens))
    x = drawn[0]
    for step in head.diffusion.chain(sampler):
        output = head.net(x, torch.full((3, tokens), step.t), cond)[..., : head.channels]
        x0 = (step.x0_from_x * x + step.x0_from_output * output).clamp(
            -head.clamp_for(sampler), head.clamp_for(sampler)
        )
        x = step.from_x * x + step.from_x0 * x0
    assert (made - x).abs().max() < TOLERANCE * x.abs().max() and made.std() > 0.1
    drawn[0, 1, 0] += 1
    other = head.sample(cond.flatten(0, 1), drawn.flatten(1, 2), sampler).unflatten(0, (3, tokens))
    changed = (other - made).abs().amax(-1) > 1e-6  # (3, tokens)
    assert changed[1].all() and not changed[[0, 2]].any(), "a clip's tokens see each other, and those of no other clip"


def test_tokens_of_earlier_iterations_are_kept_where_a_clip_is_denoised_as_a_whole() -> None:
    sample, cells = make_sample(PLAIN, attention_heads=4), PLAIN.tokens_per_frame
    order = torch.stack([torch.randperm(cells) for _ in range(3)])
    left = generation_schedule(cells, 2)[0]
    clips = []
    for iterations in (1, 2):
        options = dict(sampler=Sampler("ddim", 3), order=order, iterations=iterations, generator=noise())
        frames = sample.model.sample(sample.inputs, TASK_MODES["video"], **options).frames[:, 0]
        clips.append(patchify(frames, PLAIN.patch_size).unflatten(1, (-1, cells)))  # (B, T, S, C)
    apart = (clips[0] - clips[1]).abs().amax((1, 3)).gather(1, order)  # (B, S) in the order of generation
    assert 0 < left < cells and apart[:, left:].max() < 1e-5 and apart[:, :left].min() > 1e-4


def test_steps_in_portions_equal_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head, sampler = make_sample(PLAIN).model.action_head, Sampler("ancestral", 7)
    cond, drawn = torch.randn(6, 32), torch.randn(sampler.noise_draws, 6, head.channels)
    made = []
    for limit in (1, 3 * 6 * 4 * (2 * 3 * 32 + 2 * 32), 2**25):  # one step, three, all
        monkeypatch.setattr("unified_video_action.model.denoiser.MODULATION_BYTES", limit)
        made.append(Denoiser(head, sampler, 1.0, torch.float32)(cond, drawn))
    assert torch.allclose(made[0], made[1], atol=1e-6) and torch.allclose(made[0], made[2], atol=1e-6)


@pytest.mark.parametrize(("spec", "guidance"), [(PLAIN, 1.0), (EVERYTHING, 1.0), (EVERYTHING, 2.5)])
@pytest.mark.parametrize("chunk", ["rows", "vector"])
def test_all_modes_equal_the_plain_models(spec: ModelSpec, guidance: float, chunk: str) -> None:
    beyond = chunk == "vector"
    sample = make_sample(spec, chunk=chunk, newest_token=beyond, attention_heads=4 * beyond)
    options = dict(sampler=Sampler("ancestral", 5), guidance=guidance, iterations=2)
    fast = sample.model.accelerated()
    for mode in TASK_MODES.values():
        mine, theirs = noise(), noise()
        made = fast.sample(sample.inputs, mode, generator=mine, **options)
        expected = sample.model.sample(sample.inputs, mode, generator=theirs, **options)
        assert (made.frames is not None, made.actions is not None) == (mode.learns_frames, mode.learns_actions)
        for found, wanted in zip(made, expected, strict=True):
            assert found is None or torch.allclose(found, wanted, atol=TOLERANCE * max(1, wanted.abs().max()))
        left = [[torch.rand((), generator=each).item() for each in used] for used in (mine, theirs)]
        assert left[0] == left[1]


@pytest.mark.parametrize(
    ("chunk", "guidance", "keeps"), [("rows", 2.5, True), ("vector", 1.0, True), ("rows", 1.0, False)]
)
def test_several_chunks_of_one_joint_latent(guidance: float, chunk: str, keeps: bool) -> None:
    sample = make_sample(EVERYTHING, chunk=chunk)
    keep = (sample.inputs.actions, torch.rand(sample.inputs.actions.shape[:2])) if keeps else None
    model = sample.model.accelerated()
    made = model.sample(sample.inputs, generator=noise(), keep=keep, chunks=2, guidance=guidance, **ACT).actions
    made = made.unflatten(0, (3, 2))
    for row, own in enumerate(noise()):
        single = replace(sample.inputs, **{k: v[row : row + 1] for k, v in vars(sample.inputs).items()})
        own_keep = keep and tuple(each[row : row + 1] for each in keep)
        first = model.sample(single, generator=[own], keep=own_keep, guidance=guidance, **ACT).actions
        assert (made[row, 0] - first[0]).abs().max() < TOLERANCE
    assert (made[:, 0] - made[:, 1]).abs().max() > 0.1


def write_many(sample: Sample) -> None:
    parameters = [parameter.detach() for parameter in sample.model.parameters()]
    torch._foreach_copy_(parameters, [0.9 * parameter for parameter in parameters])


def take_a_training_step(sample: Sample) -> None:
    sum(
        term.total for term in sample.model.loss_terms(sample.inputs, sample.targets, sample.corruption).values()
    ).backward()
    torch.optim.AdamW(sample.model.parameters(), fused=True).step()


def load_weights(sample: Sample) -> None:
    sample.model.load_state_dict({name: 1.1 * value for name, value in sample.model.state_dict().items()})


@pytest.mark.parametrize("change", [write_many, take_a_training_step, load_weights])
def test_weights_that_changed_are_noticed(change) -> None:
    sample = make_sample(PLAIN)
    model = sample.model.accelerated()
    before = model.sample(sample.inputs, generator=noise(), **ACT).actions
    change(sample)
    with pytest.raises(RuntimeError, match="make a new PolicySession"):
        model.sample(sample.inputs, generator=noise(), **ACT)
    after = sample.model.accelerated().sample(sample.inputs, generator=noise(), **ACT).actions
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close_and_an_outer_autocast_changes_nothing(dtype: torch.dtype) -> None:
    sample = make_sample(EVERYTHING)
    options = dict(mode=TASK_MODES["policy_and_video"], sampler=Sampler("ddim", 10))
    model = sample.model.accelerated(dtype)
    fast = model.sample(sample.inputs, generator=noise(), **options)
    plain = sample.model.sample(sample.inputs, generator=noise(), **options)
    assert fast.actions.dtype == fast.frames.dtype == torch.float32
    assert 0 < (fast.actions - plain.actions).abs().mean() < 0.05
    assert all(tensor.dtype == torch.float32 for tensor in sample.model.state_dict().values())
    exact = sample.model.accelerated()
    expected = exact.sample(sample.inputs, generator=noise(), **ACT).actions
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact.sample(sample.inputs, generator=noise(), **ACT).actions, expected)


@pytest.mark.parametrize("chunk", ["rows", "vector"])
@pytest.mark.parametrize("sampler", ["ancestral5", "ddim4", "dpm4"])
def test_kept_actions_are_kept_by_their_weight(chunk: str, sampler: str) -> None:
    sample = make_sample(PLAIN, chunk=chunk)
    actions, weight = torch.rand(3, 16, 2) - 0.5, torch.rand(3, 16)
    weight[:, :2], weight[:, 10:] = 1.0, 0.0
    options = dict(mode=TASK_MODES["policy"], sampler=Sampler.parse(sampler))
    kept = sample.model.sample(sample.inputs, generator=noise(), keep=(actions, weight), **options).actions
    torch.testing.assert_close(kept[:, :2], actions[:, :2], rtol=0, atol=1e-6)
    free = sample.model.sample(sample.inputs, generator=noise(), **options).actions
    assert ((kept - actions).abs() < (free - actions).abs() + 1e-6)[:, 2:10].float().mean() > 0.8
    others = (kept - free)[:, 10:].abs().max()
    assert others > 1e-3 if chunk == "vector" else others < 1e-6  # rows know nothing of each other
