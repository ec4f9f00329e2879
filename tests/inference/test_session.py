"""PolicySession against a policy without memory, over recorded observations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from unified_video_action.dataset.formats.zarr import ReplayBuffer
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.inference.episode import IMAGINATION
from unified_video_action.inference.session import PolicySession
from unified_video_action.model.config import HeadConfig, ModelConfig, TransformerConfig
from unified_video_action.model.uva import UVA
from unified_video_action.policy.config import UVAConfig
from unified_video_action.policy.uva import UnifiedVideoActionPolicy
from unified_video_action.policy.uva_transform import model_spec
from unified_video_action.spec import Camera, Horizon, TaskSpec
from unified_video_action.vae.base import FrameCodec, Moments

ACTION_STEPS = 8
PIXELS = 2e-3  # of a table of 512: rounding


class SmallCodec(FrameCodec):
    """Averages blocks of 8 x 8 pixels and counts the frames it encodes.

    Unlike a convolution, its arithmetic is the same for a frame in any batch, so memory must change nothing at all.
    """

    name, channels, downsample = "small", 3, 8

    def __init__(self, posterior: str = "mean") -> None:
        super().__init__(32, posterior)
        self.encoded = 0
        self.freeze()

    def encode_images(self, images: torch.Tensor) -> Moments:
        self.encoded += len(images)
        mean = nn.functional.avg_pool2d(images, 8)  # (N, 3, 4, 4)
        return Moments(mean, torch.full_like(mean, -2.0))

    def decode_images(self, z: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(z, scale_factor=8)


def make_policy(posterior: str = "mean", cameras: int = 1, **options) -> UnifiedVideoActionPolicy:
    torch.manual_seed(0)
    names = ("image", "wrist", "side")[:cameras]
    views = tuple(Camera(name, (96, 96), predicted=name != "wrist") for name in names)
    views = tuple(sorted(views, key=lambda camera: not camera.predicted))
    task = TaskSpec(Horizon(), views, action_dim=2, states={"agent_pos": 2}, state_steps=4, **options)
    codec = SmallCodec(posterior)
    config = ModelConfig(
        TransformerConfig(dim=32, encoder_depth=1, decoder_depth=1, heads=2),
        video_head=HeadConfig(width=32, depth=1),
        action_head=HeadConfig(width=32, depth=1, pool=2, prediction="sample"),
    )
    model = UVA(model_spec(task, codec.latent_shape), config)
    for parameter in model.parameters():  # a fresh head ignores what the model saw
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    limits = np.array([[0.0, 0.0], [512.0, 512.0]])
    normalizer = Normalizer.limits({"action": limits, "agent_pos": limits})
    settings = UVAConfig(action_steps=ACTION_STEPS, sampler="ddim3", video_sampler="ddim2")
    return UnifiedVideoActionPolicy(task, model, codec, normalizer, settings).eval()


def read_episode(location: Path, length: int = 40) -> list[dict[str, np.ndarray]]:
    """The first observations of a store; the others see the first camera's picture upside down and mirrored."""
    buffer = ReplayBuffer(location, ["img"], ["state"])
    frames = buffer.frames("img", np.arange(length))
    return [
        {"image": frame, "wrist": frame[::-1], "side": frame[:, ::-1], "agent_pos": state[:2]}
        for frame, state in zip(frames, buffer.vectors["state"][:length], strict=True)
    ]


@pytest.fixture
def observations(pusht_store: Path) -> list[dict[str, np.ndarray]]:
    return read_episode(pusht_store)


def inputs_without_memory(policy: UnifiedVideoActionPolicy, seen: list[dict]) -> dict:
    """The policy's observation (batch of 1) from everything seen so far, the newest last."""
    now = len(seen) - 1
    history = [seen[max(now + offset, 0)] for offset in policy.task.horizon.history_offsets]
    inputs = {
        camera: torch.from_numpy(np.stack([step[camera] for step in history])).permute(0, 3, 1, 2).unsqueeze(0)
        for camera in policy.task.camera_names
    }
    inputs["agent_pos"] = torch.from_numpy(np.stack([step["agent_pos"] for step in history])).unsqueeze(0)
    return inputs


def watching(session: PolicySession, seen: list[dict], seed: int = 0, slot: int = 0, **text) -> PolicySession:
    """The session after these observations of a new episode."""
    session.reset(slot, seed, **text)
    for observation in seen:
        session.observe(observation, slot)
    return session


def compare_plans(policy: UnifiedVideoActionPolicy, episode: list[dict]) -> np.ndarray:
    """Plans of a session, which equal those that the policy makes of whole histories."""
    session, noise, plans, executed = watching(PolicySession(policy), [], 3), torch.Generator().manual_seed(3), [], []
    for step, observation in enumerate(episode):
        session.observe(observation)
        if step % ACTION_STEPS == 0:
            inputs = inputs_without_memory(policy, episode[: step + 1])
            if policy.codec.posterior == "sample":  # noise of every plan's own
                inputs["image"] = policy.encode(inputs["image"], generator=[noise])
            if policy.task.history_actions and len(executed) >= 16:
                inputs["history_action"] = torch.from_numpy(np.stack(executed[-16:])).unsqueeze(0)
            plans.append(session.plan())
            expected = policy.predict_action(inputs, generator=[noise])["action_pred"].numpy()
            np.testing.assert_allclose(plans[-1], expected, rtol=0, atol=PIXELS)
        executed.append(plans[-1][0, step % ACTION_STEPS])
    return np.concatenate(plans)


@pytest.mark.parametrize("store, cameras", [("pusht_store", 1), ("pusht_store", 3), ("pusht_zip", 2)])
def test_actions_equal_those_without_memory(request: pytest.FixtureRequest, store: str, cameras: int) -> None:
    plans = compare_plans(make_policy(cameras=cameras), read_episode(request.getfixturevalue(store)))
    assert plans[:1].shape == (1, 16, 2) and plans.dtype == np.float32
    assert np.ptp(plans, axis=0).max() > 1  # they follow what is seen


@pytest.mark.parametrize("options", [{"posterior": "sample"}, {"history_actions": True}], ids=str)
def test_sampled_latents_and_executed_actions_are_inputs(options: dict, observations: list[dict]) -> None:
    compare_plans(make_policy(**options), observations)


def test_no_frame_is_encoded_twice(observations: list[dict]) -> None:
    policy = make_policy()
    session, counts = watching(PolicySession(policy), []), []
    for step, observation in enumerate(observations):
        session.observe(observation)
        if step % ACTION_STEPS == 0:
            before = policy.codec.encoded
            session.plan()
            counts.append(policy.codec.encoded - before)
    assert counts == [1, 2, 2, 2, 2]  # two of four frames are new when eight actions were executed
    session.plan()
    session.imagine()
    assert policy.codec.encoded == sum(counts) + 4  # 31 steps later than the start: the window moved by 7
    assert len(session._episodes[0].recent) == 13  # nothing older is needed again


def test_slots_do_not_disturb_each_other(observations: list[dict]) -> None:
    policy = make_policy()
    alone = {seed: watching(PolicySession(policy), observations[seed : seed + 6], seed).plan()[0] for seed in (1, 2)}
    session = PolicySession(policy, slots=3)
    for slot, seed in ((0, 2), (2, 1)):
        watching(session, observations[seed : seed + 6], seed, slot)
    both = session.plan([0, 2])
    np.testing.assert_allclose(both[0], alone[2], atol=1e-3)
    np.testing.assert_allclose(both[1], alone[1], atol=1e-3)
    with pytest.raises(RuntimeError, match="slot 1"):
        session.plan()


@pytest.mark.parametrize("action_steps", [None, 3])
def test_act_replans_when_the_actions_are_used_up(observations: list[dict], action_steps: int | None) -> None:
    policy = make_policy()
    acting = watching(PolicySession(policy, action_steps=action_steps), [], 1)
    planning, every = watching(PolicySession(policy), [], 1), action_steps or ACTION_STEPS
    for step, observation in enumerate(observations[:20]):
        planning.observe(observation)
        if step % every == 0:
            plan = planning.plan()[0]
        np.testing.assert_array_equal(acting.act(observation), plan[step % every])


def test_instructions_are_an_input(observations: list[dict]) -> None:
    session = PolicySession(make_policy(text_dim=5))
    texts = [torch.full((5,), value) for value in (0.0, 1.0)]
    plans = [watching(session, observations[:1], text=text).plan() for text in texts]
    assert np.abs(plans[0] - plans[1]).max() > 1e-2
    with pytest.raises(ValueError, match="instruction"):
        session.reset()


def test_imagined_frames_equal_the_policys(observations: list[dict]) -> None:
    policy, text = make_policy(text_dim=5), torch.ones(5)
    policy.config = replace(policy.config, iterations=2)
    session = watching(PolicySession(policy), observations[:14], 4, text=text)
    inputs = inputs_without_memory(policy, observations[:14]) | {"text": text.unsqueeze(0)}
    noise = torch.Generator().manual_seed(4 ^ IMAGINATION)
    for _ in range(2):  # what the first one leaves of the noise counts, too
        expected = policy.predict_action_and_video(inputs, generator=[noise])["frames"].numpy()
        frames = np.moveaxis(session.imagine(), -1, 2).astype(int)
        assert np.abs(frames - expected).max() <= 1 and frames.std() > 1  # rounding to a pixel's value


def test_with_plan_first_frames_are_those_of_the_plan_under_way(observations: list[dict]) -> None:
    policy = make_policy()
    policy.config = replace(policy.config, plan_first=True)
    session, noise = PolicySession(policy), torch.Generator().manual_seed(4 ^ IMAGINATION)
    session.reset(seed=4)

    def imagined() -> np.ndarray:
        return np.moveaxis(session.imagine(), -1, 2).astype(int)  # (1, F, 3, H, W)

    for step, observation in enumerate(observations[:10]):
        session.observe(observation)
        inputs = inputs_without_memory(policy, observations[: step + 1])
        if step % ACTION_STEPS == 0:
            plan = torch.from_numpy(session.plan())
            before, frames = noise.get_state(), imagined()
            expected = policy.predict_forward_dynamics(inputs, plan, [noise])["frames"].numpy()
            assert np.abs(frames - expected).max() <= 1  # rounding to a pixel's value
            noise_again = torch.Generator()
            noise_again.set_state(before)
            other = policy.predict_forward_dynamics(inputs, plan.flip(1), [noise_again])["frames"].numpy()
            assert np.abs(frames - other).max() > 1, "frames follow the plan"
        elif step == 1:  # part of the plan is executed: frames of a plan of its own
            frames = imagined()
            expected = policy.predict_action_and_video(inputs, [noise])["frames"].numpy()
            assert np.abs(frames - expected).max() <= 1


def test_bad_input_is_named(observations: list[dict]) -> None:
    policy, seen = make_policy(), observations[0]
    for options in ({"slots": 0}, {"action_steps": 17}):
        (wrong,) = (f"{name}={value}" for name, value in options.items())
        with pytest.raises(ValueError, match=wrong):
            PolicySession(policy, **options)
    session = PolicySession(policy)
    with pytest.raises(RuntimeError, match="reset"):
        session.observe(seen)
    session.reset()
    with pytest.raises(RuntimeError, match="observe"):
        session.plan()
    for wrong, message in (
        ({"image": seen["image"]}, "'agent_pos' is missing"),
        ({**seen, "image": seen["image"] / 255}, "float64"),
        ({**seen, "image": seen["image"].transpose(2, 0, 1)}, r"\(3, 96, 96\)"),
    ):
        with pytest.raises(ValueError, match=message):
            session.observe(wrong)
