from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from tests.policy.conftest import MeanCodec, config, encoders
from unified_video_action.model.masking import TrainingCorruption
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy import build, uva
from unified_video_action.policy.unipi import UniPiPolicy


def noise(seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(3)]


def test_five_modes_answer_in_the_datas_units(make_policy, obs):
    policy = make_policy()
    future = {"image": obs["image"].flip(1)}
    acted = policy.predict_action(obs, noise())
    assert acted["action"].shape == (3, 8, 2) and acted["action_pred"].shape == (3, 16, 2)
    assert acted["action_pred"].min() >= 0 and acted["action_pred"].max() <= 512  # clamped to the data's limits
    latents = {"image": policy.encode(obs["image"]), "agent_pos": obs["agent_pos"]}
    assert torch.equal(policy.predict_action(latents, noise())["action_pred"], acted["action_pred"])
    both = policy.predict_action_and_video(obs, noise())
    inverse = policy.predict_inverse_dynamics(obs, future, hide_history=False, generator=noise())
    hidden = policy.predict_inverse_dynamics(obs, future, hide_history=True, generator=noise())
    assert both["action_pred"].shape == inverse["action_pred"].shape == (3, 16, 2)
    assert not torch.equal(inverse["action_pred"], hidden["action_pred"])
    trained = policy.model.config.masking
    for share, expected in ((0.0, hidden), (0.5, inverse)):  # left open: as the training was
        policy.model.config = replace(policy.model.config, masking=replace(trained, inverse_history=share))
        found = policy.predict_inverse_dynamics(obs, future, generator=noise())
        assert torch.equal(found["action_pred"], expected["action_pred"])
    forward = policy.predict_forward_dynamics(obs, acted["action_pred"], noise())
    for made in (both, forward, policy.predict_video(obs, noise())):
        assert made["frames"].shape == (3, 4, 3, 32, 32) and made["frames"].dtype == torch.uint8
    moved = policy.predict_forward_dynamics(obs, acted["action_pred"] + 100, noise())
    assert not torch.equal(forward["latents"], moved["latents"])


def test_dynamics_is_learnt_from_actions_as_carried_out(make_policy, batch):
    policy, modes = make_policy(), list(TASK_MODES.values())
    few = {name: value for name, value in batch.items() if name in ("action", "seed")}
    few = {name: torch.cat([value, value])[: len(modes)] for name, value in few.items()}
    made = policy.with_modes({**few, "executed_action": few["action"] + 5}, modes)
    changed = (made["action"] - few["action"]).mean(dim=(1, 2)).round().tolist()
    assert {mode.name: by for mode, by in zip(modes, changed, strict=True)} == {
        "policy": 0, "video": 0, "forward_dynamics": 5, "inverse_dynamics": 5, "policy_and_video": 0
    }  # fmt: skip


@pytest.mark.parametrize("noise_levels", [False, True])
def test_actions_that_a_video_lacks_are_hidden_from_its_dynamics(make_policy, batch, noise_levels):
    policy = make_policy()
    if noise_levels:
        settings = config()
        settings["model"]["masking"] = {"noise": True}
        policy = build.build_policy(settings, policy.normalizer, encoders()).eval()
        for parameter in policy.parameters():  # some start at zero
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    for mode, seen in (("forward_dynamics", True), ("policy_and_video", noise_levels)):
        made = policy.with_modes({**batch, "seed": torch.tensor([8, 8, 8])}, [TASK_MODES[mode]] * 3)
        inputs, depends = policy.transform.training_inputs(made), []
        for sample in (0, 2):  # the third has no actions
            other = inputs.actions.clone()
            other[sample] += 1
            at = TrainingCorruption(**made["corruption"]), policy.transform.targets(made)
            losses = [
                policy.model.loss_terms(replace(inputs, actions=actions), at[1], at[0])["video"].total
                for actions in (inputs.actions, other)
            ]
            depends.append(bool(losses[0] != losses[1]))
        assert depends == [seen, False]


def test_relative_actions_move_with_what_they_are_relative_to(make_policy, obs):
    policy = make_policy(relative_to="agent_pos")
    actions = torch.rand(3, 16, 2) * 512
    relative = policy.transform.normalized_actions(actions, obs)
    shifted = policy.transform.normalized_actions(actions + 30, {**obs, "agent_pos": obs["agent_pos"] + 30})
    assert torch.allclose(relative, shifted, atol=1e-5)
    origin = obs["agent_pos"]  # a normalised 0 action is the middle of the limits, away from the origin
    assert torch.allclose(policy.normalizer.unnormalize("action", relative) + origin, actions, atol=1e-3)


def test_training_losses_divide_by_the_given_weights_and_scales_apply_to_the_sum_only(make_policy, batch):
    policy = make_policy(loss_scale={"video": 0.5})
    batch = policy.with_modes(batch, [TASK_MODES["policy_and_video"]] * 3)
    weights = policy.loss_weights(batch)
    assert weights["action"] == 2 * 16  # the third sample has no actions
    own, given = policy(batch), policy(batch, weights)
    double = policy(batch, {name: 2 * weight for name, weight in weights.items()})
    assert torch.allclose(own["loss"], 0.5 * own["video"] + own["action"])
    for name in own:
        assert torch.allclose(own[name], given[name]) and torch.allclose(own[name], 2 * double[name])


@pytest.fixture
def checkpoint(make_policy, tmp_path, monkeypatch) -> Path:
    policy = make_policy()
    monkeypatch.setattr(uva, "instantiate", lambda *node: MeanCodec())  # the tests' codec is not the package's
    save_file(policy.model.state_dict(), tmp_path / "ema.safetensors")
    OmegaConf.save(OmegaConf.create(config()), tmp_path / "config.yaml")
    (tmp_path / "normalizer.json").write_text(policy.normalizer.to_json())
    return tmp_path


def test_a_checkpoint_acts_as_what_was_saved(make_policy, checkpoint, obs):
    loaded = build.load_policy(checkpoint)
    expected = make_policy().predict_action(obs, noise())["action_pred"]
    assert torch.equal(loaded.predict_action(obs, noise())["action_pred"], expected)


@pytest.mark.parametrize(
    ("value", "message"), [(torch.zeros(3), "misshapen: mar.inputs.mix.bias is"), (torch.full((32,), torch.nan), "nan")]
)
def test_weights_that_do_not_fit_are_not_loaded(checkpoint, value, message):
    weights = load_file(checkpoint / "ema.safetensors")
    save_file({**weights, "mar.inputs.mix.bias": value}, checkpoint / "ema.safetensors")
    with pytest.raises(ValueError, match=rf"(?s)ema.safetensors.*{message}"):
        build.load_policy(checkpoint)


def test_a_hostile_config_is_refused(make_policy, tmp_path):
    policy, hostile = make_policy(), config()
    hostile["vae"] = {"_target_": "os.system", "command": f"touch {tmp_path}/owned"}
    save_file(policy.model.state_dict(), tmp_path / "ema.safetensors")
    OmegaConf.save(OmegaConf.create(hostile), tmp_path / "config.yaml")
    (tmp_path / "normalizer.json").write_text(policy.normalizer.to_json())
    with pytest.raises(ValueError, match="os.system"):
        build.load_policy(tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"action_steps": 17}, "17 exceeds the chunk of 16"),
        ({"relative_to": "block_pos"}, "block_pos"),
        ({"colour": "red"}, "policy.colour"),
        ({"_target_": "unified_video_action.downloads.download"}, "derived from .*BasePolicy is needed"),
    ],
)
def test_bad_options_are_refused(make_policy, options, message):
    with pytest.raises(ValueError, match=message):
        make_policy(**options)


def test_what_cannot_be_asked_is_named(make_policy, obs):
    policy = make_policy()
    with pytest.raises(ValueError, match="precision='half': expected one of no, bf16, fp16"):
        policy.accelerated("half")
    with pytest.raises(ValueError, match="predicts no states: train one with task.shape_meta.auxiliary_dim above 0"):
        policy.predict_states({}, torch.zeros(1, 16, 2))
    with pytest.raises(ValueError, match="'agent_pos' is missing"):
        policy.predict_action({"image": obs["image"]})
    with pytest.raises(ValueError, match="3 frames of history given, the policy needs 4"):
        policy.predict_action({**obs, "image": obs["image"][:, :3]})


@pytest.mark.parametrize(
    ("kind", "modes", "acts", "imagines"),
    [
        (uva.UnifiedVideoActionPolicy, ["video"], False, False),
        (uva.UnifiedVideoActionPolicy, ["policy"], True, False),
        (uva.UnifiedVideoActionPolicy, ["policy_and_video"], True, True),
        (UniPiPolicy, ["policy"], False, False),
        (UniPiPolicy, ["video", "inverse_dynamics"], True, True),
    ],
)
def test_a_policy_says_whether_it_can_act_and_imagine_its_plans(make_policy, kind, modes, acts, imagines):
    policy = make_policy()
    policy.__class__, policy.trained = kind, tuple(TASK_MODES[name] for name in modes)
    assert (policy.can("policy"), policy.imagines) == (acts, imagines)


def test_unipi_does_what_its_video_shows(make_policy, obs):
    policy = make_policy()
    policy.__class__ = UniPiPolicy
    planned = policy.predict_action(obs, noise())
    source = noise()
    video = policy.predict_video(obs, source)["latents"]
    shown = policy.predict_inverse_dynamics(obs, {"image": video[:, 0]}, generator=source)
    assert torch.equal(planned["action_pred"], shown["action_pred"]) and planned["action"].shape == (3, 8, 2)
    both = policy.predict_action_and_video(obs, noise())
    assert torch.equal(both["latents"], video) and torch.equal(both["action_pred"], planned["action_pred"])
    plans = policy.predict_action(obs, torch.Generator().manual_seed(0), chunks=2)["action_pred"].unflatten(0, (3, 2))
    assert plans.shape == (3, 2, 16, 2) and not torch.allclose(plans[:, 0], plans[:, 1])
