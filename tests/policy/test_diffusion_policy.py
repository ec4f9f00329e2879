"""Diffusion Policy: what its parts compute, that it learns, and that every command accepts it as it accepts UVA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from tests.shrunk import read
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.env_runner.preparation import build_runner
from unified_video_action.policy.base import Share
from unified_video_action.policy.build import build_policy, load_policy
from unified_video_action.policy.diffusion_policy import DiffusionConfig, DiffusionNetwork, DiffusionPolicy
from unified_video_action.spec import Camera, Horizon, TaskSpec
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

NETWORKS = ["unet", "transformer"]
TASK = TaskSpec(
    Horizon(history=2, future=0, stride=1),
    (Camera("image", (44, 44), True), Camera("wrist", (44, 44), False)),
    action_dim=2,
    states={"agent_pos": 2},
    state_steps=2,
)
SMALL = dict(encoder="test_resnet", crop=40, widths=(16, 32), step_embed=16, width=32, depth=2, heads=2, dropout=0.0)


def make_policy(network: str, task: TaskSpec = TASK, **changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    corners = np.array([[0.0, 0.0], [512.0, 512.0]])
    normalizer = Normalizer.limits({"action": corners, "agent_pos": corners})
    return DiffusionPolicy(task, normalizer, DiffusionConfig(network=network, **{**SMALL, **changes})).eval()


def make_batch(count: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(256, (2, count, 2, 3, 44, 44), dtype=torch.uint8, generator=generator)
    return {
        "history": dict(zip(("image", "wrist"), frames)),
        "low_dim": {"agent_pos": 512 * torch.rand(count, 2, 2, generator=generator)},
        "action": 512 * torch.rand(count, 16, 2, generator=generator),
        "action_is_pad": torch.zeros(count, 16, dtype=torch.bool),
        "has_action": torch.ones(count, dtype=torch.bool),
        "seed": torch.arange(count) + 10,
    }


def observation(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch["history"], **batch["low_dim"]}


def noise(count: int = 4) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns_and_every_input_counts(network: str) -> None:
    policy, batch = make_policy(network), make_batch(2)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        batch["seed"] = torch.arange(2) + 100 * step
        loss = policy(policy.prepare(batch, Share(step, 0, 2, 0)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.85 * np.mean(losses[:4]) and 0.6 < losses[0] < 2  # of noise that has variance 1
    obs = observation(batch)
    made = policy.predict_action(obs, noise(2), "ddim4")["action_pred"]
    for name in obs:
        changed = policy.predict_action({**obs, name: obs[name].flip(0)}, noise(2), "ddim4")["action_pred"]
        assert (changed - made).abs().max() > 5e-4, name  # rounding: 6e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("sampler", ["ancestral8", "ddim4"])
def test_actions_do_not_depend_on_the_batch_and_are_kept_where_they_are_to(network: str, sampler: str) -> None:
    policy, batch = make_policy(network), make_batch()
    obs, weight = observation(batch), torch.zeros(4, 16)
    weight[:, :5] = 1.0
    for keep in (None, (batch["action"], weight)):
        together = policy.predict_action(obs, noise(), sampler, keep)
        assert together["action"].shape == (4, 8, 2) and together["action_pred"].shape == (4, 16, 2)
        one, kept = {name: value[2:3] for name, value in obs.items()}, keep and tuple(each[2:3] for each in keep)
        alone = policy.predict_action(one, [torch.Generator().manual_seed(2)], sampler, kept)["action_pred"]
        torch.testing.assert_close(together["action_pred"][2:3], alone, rtol=0, atol=0.05)
    torch.testing.assert_close(together["action_pred"][:, :5], batch["action"][:, :5], rtol=0, atol=1e-3)
    several = policy.predict_action(obs, noise(), sampler, chunks=3)["action_pred"].unflatten(0, (4, 3))
    assert (several[:, 0] - several[:, 1]).abs().max() > 1


@pytest.mark.parametrize("sampler", ["ancestral100", "ddim100", "ddim10"])
def test_a_denoiser_that_knows_the_actions_gives_them_back(sampler: str) -> None:
    policy, batch = make_policy("unet"), make_batch()
    known = batch["action"] / 256 - 1  # normalised
    signal = torch.cos((torch.arange(101) / 100 + 0.008) / 1.008 * torch.pi / 2).square()
    signal = (1 - (1 - signal[1:] / signal[:-1]).clamp(max=0.999)).cumprod(0)  # of the chain of 100 steps

    def denoiser(x: torch.Tensor, t: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        share = signal[t].view(-1, 1, 1)
        return (x - share.sqrt() * known) / (1 - share).sqrt()

    policy.model.denoiser.forward = denoiser
    made = policy.predict_action(observation(batch), noise(), sampler)["action_pred"]
    torch.testing.assert_close(made, batch["action"], rtol=0, atol=0.1)


def test_what_is_random_depends_on_a_samples_seed_alone() -> None:
    policy, batch = make_policy("unet"), make_batch()
    whole = policy.prepare(batch, Share(3, 0, 4, 0))
    part = {
        name: {k: v[2:] for k, v in value.items()} if isinstance(value, dict) else value[2:]
        for name, value in batch.items()
    }
    part = policy.prepare(part, Share(8, 2, 4, 1))
    for name in ("t", "noise"):
        assert torch.equal(whole[name][2:], part[name])
    assert torch.equal(whole["history"]["image"][2:], part["history"]["image"])
    assert whole["history"]["image"].shape == (4, 2, 3, 40, 40) and whole["t"].unique().numel() > 1


def test_padded_actions_do_not_count() -> None:
    policy, batch = make_policy("unet"), make_batch()
    batch["action_is_pad"][:, 10:] = True
    batch["has_action"][0] = False
    prepared = policy.prepare(batch, Share(0, 0, 4, 0))
    assert policy.loss_weights(prepared) == {"action": 3 * 10}
    term = policy.loss_terms(prepared)["action"]
    assert term.weight == 30 and term.total > 0


def test_relative_actions_are_of_the_newest_state() -> None:
    policy, batch = make_policy("unet", relative_to="agent_pos"), make_batch()
    moved = {**batch, "action": batch["action"] - batch["low_dim"]["agent_pos"][:, -1:]}
    expected = make_policy("unet").loss_terms(make_policy("unet").prepare(moved, Share(0, 0, 4, 0)))["action"]
    found = policy.loss_terms(policy.prepare(batch, Share(0, 0, 4, 0)))["action"]
    torch.testing.assert_close(found.total, expected.total)
    kept = policy.predict_action(observation(batch), noise(), "ddim4", (batch["action"], torch.ones(4, 16)))
    torch.testing.assert_close(kept["action_pred"], batch["action"])


@pytest.mark.parametrize(("kind", "least", "most"), [("limits", 1.0, 1.0), ("deviations", 3.0, 10.0)])
def test_plans_reach_as_far_as_recorded_actions(kind: str, least: float, most: float) -> None:
    actions = np.concatenate([np.random.default_rng(0).normal(0.3, 0.007, (500, 2)), [[0.33, 0.33]]])
    fields = {"action": actions, "agent_pos": np.array([[0.0, 0.0], [512.0, 512.0]])}
    normalizer = getattr(Normalizer, kind)(fields)
    policy = DiffusionPolicy(TASK, normalizer, DiffusionConfig(**SMALL)).eval()
    assert least <= policy._schedule.config.clip_sample_range <= most
    policy.model.denoiser.forward = lambda x, t, cond: -1000 * torch.ones_like(x)  # as far as plans can go
    made = policy.predict_action(observation(make_batch()), noise(), "ddim4")["action_pred"]
    assert made.amax().item() == pytest.approx(0.33, abs=1e-3)


def test_published_sizes() -> None:
    task = TaskSpec(Horizon(2, 0, 1), (Camera("image", (96, 96), True),), 2, {"agent_pos": 2}, 2)
    sizes = {"unet": 262.7, "transformer": 20.2}  # millions, encoder included
    for network, size in sizes.items():
        with torch.device("meta"):
            model = DiffusionNetwork(task, DiffusionConfig(network=network))
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(size, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "hf-hub:someone/vit"}, "encoder must be the name of a model of timm, got 'hf-hub:someone/vit'"),
        ({"encoder": "local-dir:/tmp"}, "encoder must be the name of a model of timm"),
        ({"network": "mlp"}, "network must be unet or transformer, got 'mlp'"),
        ({"crop": 50}, r"crop=50 is larger than the frames of image, \(44, 44\)"),
        ({"relative_to": "wrist"}, "relative_to='wrist' is not a state of agent_pos"),
        ({"action_steps": 17}, "17 exceeds the chunk of 16"),
        ({"widths": (8, 8, 8, 8, 8, 8)}, "6 levels need a multiple of 32 actions"),
    ],
)
def test_bad_options_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(**({"network": "unet"} | changes))


def test_an_encoder_is_downloaded_to_train_it_and_never_to_act(tmp_path: Path, monkeypatch: Any) -> None:
    asked, create = [], timm.create_model

    def offline(name: str, pretrained: bool, **options: Any) -> Any:
        asked.append(pretrained)
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    config = read("dp_unet_pusht_mini", "policy.encoder=test_vit", "policy.crop=null", "policy.image_size=160")
    config["policy"] |= {"pretrained": True, "widths": [16, 32]}
    corners = np.array([[0.0, 0.0], [512.0, 512.0]])
    policy = build_policy(config, Normalizer.limits({"action": corners, "agent_pos": corners}))
    OmegaConf.save(config, tmp_path / "config.yaml")
    (tmp_path / "normalizer.json").write_text(policy.normalizer.to_json())
    save_file(policy.model.state_dict(), tmp_path / "ema.safetensors")
    loaded = load_policy(tmp_path)
    assert asked == [True, False]
    for name, value in policy.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value), name


@pytest.mark.parametrize("name", ["dp_unet_pusht_mini", "dp_transformer_pusht_mini"])
def test_a_preset_trains_resumes_and_is_evaluated(name: str, pusht_store: Path, tmp_path: Path) -> None:
    overrides = [
        *(f"output_dir={tmp_path / 'run'}", f"task.dataset.paths={pusht_store}", "task.dataset.val_ratio=0.3"),
        *("training.batch_size=2", "trainer.tensorboard=false", "trainer.validation_windows=2", "policy.sampler=ddim2"),
        *("trainer.validate_every=3", "trainer.log_every=1", "task.env_runner.n_episodes=1"),
        *("task.env_runner.max_steps=8", "task.env_runner.n_envs=1"),
        *(["policy.widths=[16,32]"] if "unet" in name else ["policy.depth=1"]),
    ]
    for steps in (2, 3):
        config = read(name, *overrides, f"trainer.max_steps={steps}")
        TrainUnifiedVideoActionWorkspace(OmegaConf.create(config)).run()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert lines.count("train/action") == 3 and "validation/action_error" in lines and "validation/health" in lines
    policy = load_policy(tmp_path / "run" / "checkpoints" / "latest")
    found = build_runner(config).run(policy, tmp_path / "evaluation", videos=1, config=config)
    assert 0 <= found["mean_score"] <= 1 and (tmp_path / "evaluation" / "report.html").is_file()
