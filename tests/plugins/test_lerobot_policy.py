"""UVA as a policy of LeRobot, against a stand-in of LeRobot's classes or, where it is installed, LeRobot itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import default_collate

from tests.plugins.lerobot_stand_in import stood_in
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy

ROOT = Path(__file__).parents[2]
TASKS = ("pick it up", "put it down")
SMALL = [
    *("vae.weights=random", "model.transformer.dim=32", "model.video_head.width=32", "model.video_head.rows=4"),
    *("model.action_head.width=32", "policy.sampler=ddim2", "policy.relative_to=state"),
]
FEATURES = {
    "observation.images.top": {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channel"]},
    "observation.images.wrist": {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channel"]},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
}


@pytest.fixture(scope="module")
def uva() -> Iterator[ModuleType]:
    """The plug-in."""
    sys.path.insert(0, str(ROOT / "plugins" / "lerobot_policy_uva"))
    try:
        with stood_in():
            import lerobot_policy_uva
            import lerobot_policy_uva.checkpoints

            yield lerobot_policy_uva
    finally:
        del sys.path[0]


@pytest.fixture(scope="module")
def dataset(uva: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two episodes of 30 steps, a task each: step t shows grey 5t from the top and 5t + 100 at the wrist; the state is
    (t, -t), the action 3 beyond."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = tmp_path_factory.mktemp("lerobot") / "data"
    made = LeRobotDataset.create("local/test", 10, FEATURES, root=root, use_videos=False)
    for task in TASKS:
        for step in range(30):
            state = np.array([step, -step], np.float32)
            frame = {"observation.state": state, "action": state + 3, "task": task}
            for shift, name in ((0, "top"), (100, "wrist")):
                key = f"observation.images.{name}"
                frame[key] = np.full(FEATURES[key]["shape"], 5 * step + shift, np.uint8)
            made.add_frame(frame)
        made.save_episode()
    made.finalize()
    return made


def new_policy(uva: ModuleType, dataset: Any, *overrides: str, **settings: Any) -> Any:
    from lerobot.configs.types import FeatureType, PolicyFeature

    def shape(about: dict) -> tuple[int, ...]:
        return about["shape"] if len(about["shape"]) == 1 else (3, *about["shape"][:2])

    def kind(name: str) -> FeatureType:
        return FeatureType.VISUAL if "images" in name else FeatureType.STATE

    inputs = {name: PolicyFeature(kind(name), shape(about)) for name, about in FEATURES.items() if name != "action"}
    config = uva.UvaConfig(
        device="cpu",
        recipe="uva_pusht_mini",
        overrides=[*SMALL, *overrides],
        input_features=inputs,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **{"language": False, **settings},
    )
    torch.manual_seed(0)
    return uva.UvaPolicy(config, dataset_meta=dataset.meta)


def batch_of(policy: Any, dataset: Any, *places: int) -> dict[str, Any]:
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    times = resolve_delta_timestamps(policy.config, dataset.meta)
    opened = LeRobotDataset(dataset.meta.repo_id, root=dataset.meta.root, delta_timestamps=times)
    return default_collate([opened[place] for place in places])


def observation(step: int, rows: int = 2) -> dict[str, Any]:
    """What LeRobot's processors leave of the observations of some environments."""
    random = torch.Generator().manual_seed(step)
    frames = {
        f"observation.images.{name}": torch.randint(256, (rows, 3, *size), generator=random) / 255
        for name, size in (("top", (32, 32)), ("wrist", (32, 48)))
    }
    return {**frames, "observation.state": torch.randn(rows, 2, generator=random), "task": [TASKS[0]] * rows}


def actions(policy: Any, steps: int = 6) -> torch.Tensor:
    torch.manual_seed(7)
    policy._episodes = 0
    policy.reset()
    return torch.stack([policy.select_action(observation(step)) for step in range(steps)])  # (T, B, D)


def test_a_batch_holds_the_steps_that_the_model_reads(uva: ModuleType, dataset: Any) -> None:
    from lerobot_policy_uva.windows import windows

    policy = new_policy(uva, dataset)
    window = windows(batch_of(policy, dataset, 2, 50), policy.config)
    now = torch.tensor([2, 20])
    history = (now[:, None] + torch.tensor([-12, -8, -4, 0])).clamp(min=0)
    future = (now[:, None] + torch.tensor([4, 8, 12, 16])).clamp(max=29)
    for name, shift in (("top", 0), ("wrist", 100)):
        assert window["history"][name].dtype == torch.uint8
        assert torch.equal(window["history"][name][:, :, 0, 5, 5], (5 * history + shift).byte())
        assert torch.equal(window["future"][name][:, :, 2, 0, 0], (5 * future + shift).byte())
    chunk = (now[:, None] + torch.arange(16)).clamp(max=29)
    assert torch.equal(window["action"], torch.stack([chunk + 3, 3 - chunk], dim=-1).float())
    assert window["frame_is_pad"].tolist() == [[False] * 4, [False, False, True, True]]
    assert window["action_is_pad"].sum(1).tolist() == [0, 6]
    assert torch.equal(window["low_dim"]["state"][:, -1, 0], now.float())


def test_trains_with_an_average_of_the_weights(uva: ModuleType, dataset: Any) -> None:
    policy = new_policy(uva, dataset).train()
    normalizer = policy.uva.normalizer  # by the data
    assert torch.allclose(normalizer.normalize("state", torch.tensor([0.0, -29.0])), torch.tensor([-1.0, -1.0]))
    relative = np.concatenate([np.arange(min(16, 30 - now)) + 3.0 for now in range(30)])  # along x
    assert normalizer.scale("action")[0].item() == pytest.approx(1 / relative.std(), rel=1e-4)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1.0, weight_decay=0.02)
    assert {group["lr"] for group in optimizer.param_groups} >= {1.5e-3}
    batch, losses, kept = batch_of(policy, dataset, 5, 10, 35, 40, 50), [], []
    weight = policy.uva.model.action_head.net.input_proj.weight
    for _ in range(12):
        loss, terms = policy(batch)
        assert set(terms) == {"video", "action"}
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        losses.append(loss.item())
        kept.append(weight.detach().clone())
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    average = kept[0]
    for number, value in enumerate(kept[1:], start=2):
        average = torch.lerp(average, value, number**-0.75)
    assert torch.allclose(policy.average.action_head.net.input_proj.weight, average, atol=1e-6)
    policy.eval()
    acted = actions(policy)
    policy.uva.model.load_state_dict({name: 0 * each for name, each in policy.uva.model.state_dict().items()})
    policy._session = None
    assert torch.equal(actions(policy), acted)


def test_a_saved_policy_is_whole(uva: ModuleType, dataset: Any, tmp_path: Path) -> None:
    policy = new_policy(uva, dataset).eval()
    with torch.no_grad():
        for parameter in policy.codec.parameters():
            parameter.mul_(1.1)  # no codec of the package has these weights
    acted = actions(policy)
    policy.save_pretrained(tmp_path)
    again = uva.UvaPolicy.from_pretrained(tmp_path)
    assert torch.equal(actions(again), acted)
    assert not torch.equal(acted, torch.zeros_like(acted))
    tensors = load_file(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="policy.no_such"):
        uva.UvaConfig(device="cpu", settings=policy.config.settings, overrides=["policy.no_such=1"])
    del tensors["codec.encoder.0.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="codec.encoder.0.bias"):
        uva.UvaPolicy.from_pretrained(tmp_path)


def test_acts_as_a_session_of_this_project(uva: ModuleType, dataset: Any) -> None:
    policy = new_policy(uva, dataset, "policy.action_steps=2").eval()
    session = PolicySession(policy.uva, slots=2, action_steps=2)
    for slot in range(2):
        session.reset(slot, seed=7 + slot)
    expected, plan = [], np.empty(0)
    for step in range(6):
        seen = observation(step)
        for slot in range(2):
            frames = {name: seen[f"observation.images.{name}"][slot].movedim(0, -1) for name in ("top", "wrist")}
            frames = {name: (each * 255).round().byte().numpy() for name, each in frames.items()}
            session.observe({**frames, "state": seen["observation.state"][slot].numpy()}, slot)
        plan = session.plan() if step % 2 == 0 else plan
        expected.append(plan[:, step % 2])
    torch.testing.assert_close(actions(policy), torch.from_numpy(np.stack(expected)))


def test_follows_instructions_also_without_the_encoders_weights(uva: ModuleType, dataset: Any, tmp_path: Path) -> None:
    features = {text: [float(number), 1.0, -1.0] for number, text in enumerate(TASKS)}
    cache = tmp_path / "features.json"
    cache.write_text(json.dumps({"tokens": 30, "features": features}))
    policy = new_policy(uva, dataset, "+text=clip", f"text.cache={cache}", language=None).eval()
    assert policy.config.instructions == sorted(TASKS) and policy.uva.task.text_dim == 3
    acted = actions(policy)
    policy.save_pretrained(tmp_path / "saved")
    cache.unlink()
    assert torch.equal(actions(uva.UvaPolicy.from_pretrained(tmp_path / "saved")), acted)


def test_checkpoints_travel_both_ways_with_equal_actions(uva: ModuleType, tmp_path: Path) -> None:
    shipped = ROOT / "checkpoints" / "uva_pusht_mini"
    uva.checkpoints.to_lerobot(shipped, tmp_path / "theirs")
    uva.checkpoints.from_lerobot(tmp_path / "theirs", tmp_path / "ours")
    policy = uva.UvaPolicy.from_pretrained(tmp_path / "theirs")
    assert list(policy.config.input_features) == ["observation.image", "observation.state"]
    sessions = [PolicySession(load_policy(folder)) for folder in (shipped, tmp_path / "ours")]
    random = np.random.default_rng(0)
    for session in sessions:
        session.reset(seed=3)
    torch.manual_seed(3)
    for _ in range(6):
        frame, position = random.integers(0, 256, (96, 96, 3), np.uint8), random.uniform(0, 512, 2).astype(np.float32)
        first, second = (session.act({"image": frame, "agent_pos": position}) for session in sessions)
        seen = {
            "observation.image": torch.from_numpy(frame).movedim(-1, 0)[None] / 255,
            "observation.state": torch.from_numpy(position)[None],
        }
        assert np.array_equal(first, second)
        assert np.array_equal(first, policy.select_action(seen)[0].numpy())
