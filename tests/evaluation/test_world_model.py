"""The measures of a world model, on policies of which is known how well they imagine."""

import copy

import numpy as np
import pytest
import torch

from tests.evaluation.worlds import Blank, Oracle, Unconditional, held_out, write_pushes
from unified_video_action.evaluation.frame_errors import psnr
from unified_video_action.evaluation.windows import HeldOutWindows, _others
from unified_video_action.evaluation.world_model import WorldModel
from unified_video_action.model.task_modes import TASK_MODES

WINDOWS = 6


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> HeldOutWindows:
    store = write_pushes(tmp_path_factory.mktemp("pushes") / "pushes.zarr")
    return HeldOutWindows(Oracle(), held_out(store), WINDOWS, rows=5)  # the last one alone


def world(policy: Oracle, windows: HeldOutWindows, modes=tuple(TASK_MODES), reader=Oracle.reader) -> WorldModel:
    policy.trained = tuple(TASK_MODES[name] for name in modes)
    return WorldModel(policy, windows, reader)


@pytest.fixture(scope="module")
def oracle(windows: HeldOutWindows) -> tuple[WorldModel, dict]:
    model = world(Oracle(), windows)
    return model, model.measure(samples=3)


def value(results: dict, row: str, metric: str) -> float:
    return results["frames"][row][metric]["value"]


def test_windows_are_spread_and_each_has_one_of_another_episode(windows: HeldOutWindows) -> None:
    assert len(windows) == WINDOWS and windows.indices == sorted(windows.indices)
    assert len(np.unique(windows.episode)) == 3 and (windows.episode[windows.other] != windows.episode).all()
    assert windows.history.shape == (WINDOWS, 4, 3, 96, 96) and windows.future.dtype == torch.uint8
    part = windows.part([3, 5])
    assert torch.equal(part["action"][1], windows.batch["action"][5]) and len(part["low_dim"]["agent_pos"]) == 2
    assert torch.equal(part["history"]["image"][:, -1], windows.now[[3, 5]].float() / 255)
    assert _others(np.array([0, 0, 0, 0, 1])).tolist() == [4, 4, 4, 4, 1], "the next of another episode"
    assert _others(np.array([0, 0, 0])).tolist() == [1, 2, 0], "half the windows away, where all are of one"
    black, white = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), torch.full((1, 1, 3, 8, 8), 255, dtype=torch.uint8)
    assert psnr(black, white) == 0 and np.isfinite(psnr(black, black))


def test_a_perfect_model_is_seen_to_be_one(oracle: tuple[WorldModel, dict]) -> None:
    model, found = oracle
    assert found["windows"] == WINDOWS and found["episodes"] == 3 and found["horizon"] == [4, 8, 12, 16]
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
    best, first = found["best_of"], model.best_of(1)
    assert best["samples"] == 3 and best["row"] == "video" and model.best_of(0) is None
    assert best["psnr"]["value"] > first["psnr"]["value"] and first["gain"]["value"] < best["gain"]["value"]


def test_a_model_that_ignores_its_inputs_is_found_out(windows: HeldOutWindows) -> None:
    model = world(Unconditional(), windows)
    frames = {name: model.frame_errors(name) for name in ("forward_dynamics", "forward_dynamics_other")}
    ratios = model.ratios(frames, {name: model.action_errors(name) for name in model.action_rows})
    ignored = dict.fromkeys(("follows_actions_agent", "follows_actions_block", "reads_frames", "inverse_vs_policy"), 1)
    for name, expected in (ignored | {"follows_actions_psnr": 0}).items():
        assert ratios[name]["value"] == pytest.approx(expected)


def test_what_is_not_found_is_an_error(windows: HeldOutWindows, oracle: tuple[WorldModel, dict]) -> None:
    """At least 100 units, and never less than to stay where it was."""
    model, still = world(Blank(), windows), oracle[1]["frames"]["still"]
    blank = model.summary(model.frame_errors("forward_dynamics"))
    assert blank["found"]["value"] == blank["whole"]["value"] == 0
    assert blank["agent"]["value"] >= 100 and blank["agent_mean"]["value"] >= still["agent_mean"]["value"]
    assert blank["block"]["value"] >= 100 and blank["angle"]["value"] >= 90


def test_dynamics_is_measured_by_actions_as_carried_out(
    windows: HeldOutWindows, oracle: tuple[WorldModel, dict]
) -> None:
    """Where a demonstrator chose others than its agent was given, those it chose are what a policy is measured by."""
    disturbed, action = copy.copy(windows), windows.batch["action"]
    disturbed.batch = {**windows.batch, "executed_action": action, "action": action + 400}
    found, before = world(Oracle(), disturbed), oracle[0]
    for row in ("forward_dynamics", "forward_dynamics_other"):
        assert torch.equal(found.frames(row), before.frames(row))
    for row, changes in (("inverse_dynamics", False), ("policy", True)):
        errors = [np.nanmean(model.action_errors(row)) for model in (found, before)]
        assert (errors[0] > errors[1] + 10) == changes and (changes or errors[0] == errors[1])


def test_without_a_reader_and_with_one_mode_the_rest_is_left_out(windows: HeldOutWindows) -> None:
    found = world(Oracle(), windows, ("policy_and_video",), reader=None).measure(1)
    assert set(found["frames"]) == {"codec", "still", "video", "policy_and_video"}, "that mode sees what video sees"
    assert set(found["actions"]) == {"hold", "policy"} and "plan" not in found
    assert found["not_trained"] == ["forward_dynamics", "inverse_dynamics"]
    assert found["ratios"] == {} and found["best_of"]["row"] == "video"
    assert set(found["frames"]["still"]) == {"psnr", "gain"}
    alone = world(Oracle(), windows, ("policy",))
    assert alone.best_of(4) is None and alone.plan_errors() == {}


def test_other_actions_are_seen_from_here_where_actions_are_relative(windows: HeldOutWindows, monkeypatch) -> None:
    model = world(Oracle(), windows)
    batch, other, origin = windows.batch, windows.other, windows.batch["low_dim"]["agent_pos"][:, -1:]
    relative = (batch["action"] - origin)[other]
    torch.testing.assert_close(model._other_actions() - origin, relative, atol=1e-3, rtol=0)
    monkeypatch.setattr(model.policy.config, "relative_to", None)
    assert torch.equal(model._other_actions(), batch["action"][other])
