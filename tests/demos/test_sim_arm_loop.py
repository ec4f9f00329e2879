"""The control loop on the simulated arm: an episode is recorded, and faults end it within all limits.

Time passes only between two ticks, so that every run is the same.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.real.fakes import Bench, sim_bench
from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real.control.watchdog import Phase, Reason
from unified_video_action.real.robots.archive import Recording
from unified_video_action.real.robots.interface import ArmState, RobotError
from unified_video_action.real.robots.recorder import EpisodeRecorder

if find_spec("mujoco") is None:  # importing it here would choose how it draws too early
    pytest.skip("MuJoCo is not installed: no simulated arm", allow_module_level=True)


@pytest.fixture
def made() -> Iterator[Bench]:
    made = sim_bench()
    made.start(1.0)
    yield made
    made.camera.close()
    made.arm.close()


def check_limits(made: Bench) -> None:
    """Of what was sent; and of what was measured, of an arm that follows its commands softly."""
    assert not made.faults(), made.faults()
    positions = np.array([state.pose[:3, 3] for state in made.measured])
    low = np.maximum(made.limits.workspace_low, [-1, -1, made.limits.table_height])
    assert (positions > low - 0.005).all() and (positions < np.array(made.limits.workspace_high) + 0.005).all()
    assert (
        np.linalg.norm(positions[4:] - positions[:-4], axis=1).max()
        < 1.3 * made.limits.linear_speed * 4 / made.arm.rate
    )


def test_an_episode_follows_the_policy_and_is_recorded(tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "episode.zarr.zip", patient=True) as recorder:
        made = sim_bench({"episode_seconds": 3.0}, recorder)
        made.start()
        made.run(4.0, until=lambda: made.control.ending and made.control.phase is Phase.HOLDING)
        made.camera.close()
    assert made.control.stop.reason is Reason.TIME_LIMIT
    check_limits(made)
    late = [distance(state.pose, made.planner.path(state.time)) for state in made.measured[400:-200]]
    assert np.mean(late, axis=0)[0] < 0.006, "the arm's latency is made up for"
    made.control.statistics.write(tmp_path / "statistics.json")
    figures = json.loads((tmp_path / "statistics.json").read_text())
    assert 21 <= figures["counts"]["plans"] <= 25 and figures["counts"]["blends"] == figures["counts"]["plans"] - 1
    assert [each["reason"] for each in figures["stops"]] == ["time_limit"] and figures["plan_age"]["p50_ms"] > 79
    assert any(line.startswith("plan_age: count") for line in made.control.statistics.lines())
    recording = Recording.open(tmp_path / "episode.zarr.zip")
    assert len(recording.arrays["command_time"]) == len(made.sent) and len(recording.row_time) > 75
    assert len(recording.arrays["plan_actions"]) == figures["counts"]["plans"]
    assert [event["kind"] for event in recording.events] == ["start", "stop"]


def unplugged(state: ArmState) -> ArmState:
    raise RobotError("the arm is unplugged")


def jumped(state: ArmState) -> ArmState:
    return replace(state, pose=pose_matrix(state.pose[:3, 3] + [0, 0.25, 0], state.pose[:3, :3]))


def late(state: ArmState) -> ArmState:
    return replace(state, time=state.time - 0.5)


@pytest.mark.parametrize(
    "fault, reason", [(unplugged, Reason.ARM_ERROR), (jumped, Reason.TELEPORT), (late, Reason.STALE_STATE)]
)
def test_faults_end_within_the_limits(made: Bench, fault: Callable[[ArmState], ArmState], reason: Reason) -> None:
    whole = made.arm.state
    made.arm.state = lambda: fault(whole())
    made.run(0.1, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.phase is Phase.HOLDING and made.control.stop.reason is reason, made.control.stop
    sent = len(made.sent)
    made.ask("resume", 0.4)
    assert made.control.phase is Phase.HOLDING and len(made.sent) == sent, "not to be gone on with"
    made.arm.state = whole
    made.run(0.3)
    assert np.abs(made.measured[-1].joint_velocities).max() < 0.02, "it still moves"
    made.ask("resume", 0.5)
    assert made.control.phase is Phase.RUNNING
    check_limits(made)


def test_what_is_lived_with(made: Bench) -> None:
    """A policy gone mad, whose every plan leads somewhere else, far outside and turned about; then a bump."""
    rng, spoil = np.random.default_rng(1), made.planner.spoil
    made.planner.spoil = lambda actions: rng.normal(0, 1.0, actions.shape).astype(np.float32)
    made.run(1.5)
    check_limits(made)
    clipped = made.control.statistics.clipped
    assert clipped["step"] and clipped["gripper"] and clipped["speed"]
    made.planner.spoil = spoil
    made.arm.world.push(np.array([12.0, 0, 0, 0, 0, 0]))  # it is behind: it catches up within the limits, or is stopped
    made.run(0.5)
    made.arm.world.push(np.zeros(6))
    made.run(0.5)
    assert not made.faults(), made.faults()
