"""The measures of a world model, on policies of which is known how well they imagine."""

import copy

import numpy as np
import pytest
import torch

from tests.evaluation.worlds import Blank, Oracle, Unconditional, held_out, write_pushes
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.evaluation.windows import HeldOutWindows, observation
from unified_video_action.evaluation.world_model import WorldModel
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.base import normalized_states

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


def test_dynamics_is_measured_where_actions_are_recorded(windows: HeldOutWindows) -> None:
    videos, recorded = copy.copy(windows), torch.arange(WINDOWS) < WINDOWS - 1
    videos.batch = {**windows.batch, "has_action": recorded}
    model, whole = world(Oracle(), videos), world(Oracle(), windows)
    other = recorded & recorded[torch.as_tensor(windows.other)]
    assert other.any() and not torch.equal(other, recorded)
    for row, known in (("forward_dynamics", recorded), ("forward_dynamics_other", other), ("video", recorded | True)):
        found, usual = model.frame_errors(row)["psnr"], whole.frame_errors(row)["psnr"]
        np.testing.assert_array_equal(found, np.where(known[:, None], usual, np.nan))
    videos.batch["has_action"] = recorded & False
    nothing = model.summary(model.frame_errors("forward_dynamics"))
    assert nothing["psnr"]["value"] is None and nothing["agent"]["value"] is None


def test_a_window_without_states_is_shown_as_in_training(windows: HeldOutWindows) -> None:
    batch = {**windows.part([0, 1]), "has_low_dim": torch.tensor([True, False])}
    normalizer = Normalizer.limits({"agent_pos": np.array([[100.0, 100.0], [512.0, 512.0]])})
    shown = normalized_states(Oracle.task, normalizer, observation(batch), torch.device("cpu"))  # (2, 1, 2)
    assert shown[0].abs().min() > 0 and (shown[1] == 0).all()


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
