"""The measures of a world model, on policies of which is known how well they imagine."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluation.worlds import Blank, Deaf, Oracle, held_out, write_pushes
from unified_video_action.evaluation.windows import HeldOutWindows, psnr
from unified_video_action.evaluation.world_model import WorldModel
from unified_video_action.model.task_modes import TASK_MODES


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pushes(tmp_path_factory.mktemp("pushes") / "pushes.zarr")


def world(policy: Oracle, store: Path, modes=tuple(TASK_MODES), reader=Oracle.reader) -> WorldModel:
    policy.trained = tuple(TASK_MODES[name] for name in modes)
    return WorldModel(policy, HeldOutWindows(policy, held_out(store), 12, rows=5), reader)


@pytest.fixture(scope="module")
def oracle(store: Path) -> tuple[WorldModel, dict]:
    model = world(Oracle(), store)
    return model, model.measure(samples=3)


def value(results: dict, row: str, metric: str) -> float:
    return results["frames"][row][metric]["value"]


def test_windows_are_spread_and_each_has_one_of_another_episode(store: Path) -> None:
    dataset = held_out(store)
    windows = HeldOutWindows(Oracle(), dataset, 12, rows=5)
    assert len(windows) == 12 and len(np.unique(windows.episode)) == 3 and windows.indices == sorted(windows.indices)
    assert (windows.episode[windows.other] != windows.episode).all()
    assert windows.history.shape == (12, 4, 3, 96, 96) and windows.future.dtype == torch.uint8
    part = windows.part([3, 7])
    assert torch.equal(part["action"][1], windows.batch["action"][7]) and len(part["low_dim"]["agent_pos"]) == 2
    assert torch.equal(part["history"]["image"][:, -1], windows.now[[3, 7]].float() / 255)
    alone = HeldOutWindows(Oracle(), dataset, 2)
    assert alone.other.tolist() == [1, 0]


def test_a_perfect_model_is_seen_to_be_one(oracle: tuple[WorldModel, dict]) -> None:
    model, found = oracle
    assert found["windows"] == 12 and found["episodes"] == 3 and found["horizon"] == [4, 8, 12, 16]
    assert found["not_trained"] == [] and list(found["frames"])[:2] == ["codec", "still"]
    assert value(found, "codec", "psnr") > 60 and value(found, "codec", "block") < 1e-6
    assert value(found, "forward_dynamics", "agent") < 4 and value(found, "forward_dynamics", "whole") > 0.9
    gain = value(found, "forward_dynamics", "psnr") - value(found, "still", "psnr")
    assert value(found, "forward_dynamics", "gain") == pytest.approx(gain) and gain > 3
    assert 20 < value(found, "still", "agent") < 100 and value(found, "still", "whole") == 1
    ratios = {name: figure["value"] for name, figure in found["ratios"].items()}
    assert ratios["follows_actions_agent"] > 3 and ratios["follows_actions_psnr"] > 1
    assert ratios["reads_frames"] > 3 and ratios["inverse_vs_policy"] < 0.5
    by_horizon = [at["value"] for at in found["frames"]["still"]["agent_mean"]["by_horizon"]]
    assert by_horizon == sorted(by_horizon)  # the longer, the further
    for row in found["frames"].values():
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in row.values() if figure["value"])


def test_plans_are_compared_with_the_simulator(oracle: tuple[WorldModel, dict]) -> None:
    plan = oracle[1]["plan"]
    assert set(plan) == {"policy_and_video", "still", "forward_dynamics", "simulator"}
    assert plan["policy_and_video"]["agent"]["value"] < 1 < 20 < plan["still"]["agent"]["value"]
    assert plan["simulator"]["agent_mean"]["value"] < 8  # from rest


def test_the_best_of_samples_is_no_worse_than_the_first(oracle: tuple[WorldModel, dict]) -> None:
    model, found = oracle
    best = found["best_of"]
    assert best["samples"] == 3 and best["row"] == "video"
    first = model.best_of(1)
    assert best["psnr"]["value"] > first["psnr"]["value"] and first["gain"]["value"] < best["gain"]["value"]


def test_a_model_that_ignores_its_inputs_is_found_out(store: Path) -> None:
    found = world(Deaf(), store).measure(0)
    assert "best_of" not in found
    for name, ignored in {"follows_actions_agent": 1, "follows_actions_block": 1, "reads_frames": 1}.items():
        assert found["ratios"][name]["value"] == pytest.approx(ignored)
    assert found["ratios"]["follows_actions_psnr"]["value"] == found["ratios"]["inverse_vs_policy"]["value"] - 1 == 0


def test_what_is_not_found_is_an_error(store: Path) -> None:
    """At least 100 units, and never less than to stay where it was."""
    found = world(Blank(), store).measure(0)
    blank, still = found["frames"]["forward_dynamics"], found["frames"]["still"]
    assert blank["found"]["value"] == blank["whole"]["value"] == 0
    assert blank["agent"]["value"] >= 100 and blank["agent_mean"]["value"] >= still["agent_mean"]["value"]
    assert blank["block"]["value"] >= 100 and blank["angle"]["value"] >= 90


def test_modes_that_were_not_trained_are_named_and_left_out(store: Path) -> None:
    found = world(Oracle(), store, ("policy_and_video",)).measure(1)
    assert set(found["frames"]) == {"codec", "still", "policy_and_video"} and set(found["actions"]) == {
        "hold",
        "policy",
    }
    assert found["not_trained"] == ["forward_dynamics", "inverse_dynamics", "video"]
    assert found["ratios"] == {} and found["best_of"]["row"] == "policy_and_video"
    alone = world(Oracle(), store, ("policy",))
    assert alone.best_of(4) is None and alone.plan_errors() == {}


def test_without_a_reader_frames_are_compared_in_pixels(store: Path) -> None:
    found = world(Oracle(), store, reader=None).measure(1)
    assert set(found["frames"]["still"]) == {"psnr", "gain"} and "plan" not in found
    assert set(found["ratios"]) == {"follows_actions_psnr", "reads_frames", "inverse_vs_policy"}


def test_other_actions_are_seen_from_here_where_actions_are_relative(store: Path) -> None:
    model = world(Oracle(), store)
    batch, other = model.windows.batch, model.windows.other
    moved = model._other_actions() - batch["low_dim"]["agent_pos"][:, -1:]
    torch.testing.assert_close(
        moved, (batch["action"] - batch["low_dim"]["agent_pos"][:, -1:])[other], atol=1e-3, rtol=0
    )
    model.policy.config.relative_to = None
    try:
        assert torch.equal(model._other_actions(), batch["action"][other])
    finally:
        model.policy.config.relative_to = "agent_pos"


def test_psnr() -> None:
    frames = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    other = frames.clone()
    other[0, 1] = 255
    assert torch.isfinite(psnr(frames, other)).all() and psnr(frames, other)[0, 1] == 0
