"""The control loop on the simulated arm: an episode is recorded, and faults end it within all limits.

Time passes only between two ticks, so that every run is the same.
"""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.real.fakes import Bench, measured_faults, sim_bench
from unified_video_action.poses import distance
from unified_video_action.real.control.watchdog import Phase, Reason
from unified_video_action.real.robots.archive import Recording
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
    assert not made.faults(), made.faults()
    assert not measured_faults(made.measured, made.limits), measured_faults(made.measured, made.limits)


def check_ended(made: Bench, reason: Reason, within: float) -> None:
    made.run(within, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.phase is Phase.HOLDING and made.control.stop.reason is reason, made.control.stop
    sent = len(made.sent)
    made.run(0.4)
    assert len(made.sent) == sent, "it was commanded on"
    assert not made.faults(), made.faults()


def test_an_episode_follows_the_policy_and_is_recorded(tmp_path: Path) -> None:
    with EpisodeRecorder(tmp_path / "episode.zarr.zip", patient=True) as recorder:
        made = sim_bench({"episode_seconds": 4.0}, recorder)
        made.start()
        made.run(5.0, until=lambda: made.control.ending and made.control.phase is Phase.HOLDING)
        made.camera.close()
    assert made.control.stop.reason is Reason.TIME_LIMIT
    check_limits(made)
    late = [distance(state.pose, made.planner.path(state.time)) for state in made.measured[500:-200]]
    assert np.mean(late, axis=0)[0] < 0.006, "the arm's latency is made up for"
    made.control.statistics.write(tmp_path / "statistics.json")
    figures = json.loads((tmp_path / "statistics.json").read_text())
    assert 28 <= figures["counts"]["plans"] <= 33 and figures["counts"]["blends"] == figures["counts"]["plans"] - 1
    assert [each["reason"] for each in figures["stops"]] == ["time_limit"] and figures["plan_age"]["p50_ms"] > 79
    assert any(line.startswith("plan_age: count") for line in made.control.statistics.lines())
    recording = Recording.open(tmp_path / "episode.zarr.zip")
    assert len(recording.arrays["command_time"]) == len(made.sent) and len(recording.row_time) > 100
    assert len(recording.arrays["plan_actions"]) == figures["counts"]["plans"]
    assert [event["kind"] for event in recording.events] == ["start", "stop"]


@pytest.mark.parametrize(
    ("faults", "reason", "within", "mended"),
    [
        ({"dead_camera": True}, Reason.DEAD_CAMERA, 1.0, {"dead_camera": False}),
        ({"unplugged": True}, Reason.ARM_ERROR, 0.1, {"unplugged": False}),
        ({"not_a_number": True}, Reason.ARM_ERROR, 0.1, {"not_a_number": False}),
        ({"jump": np.array([0.0, 0.25, 0.0])}, Reason.TELEPORT, 0.1, {"jump": None}),
        ({"state_delay": 0.5}, Reason.STALE_STATE, 0.5, {"state_delay": 0.0}),
    ],
)
def test_faults_end_within_the_limits(made: Bench, faults: dict, reason: Reason, within: float, mended: dict) -> None:
    vars(made.arm.faults).update(faults)
    check_ended(made, reason, within)
    made.ask("resume", 0.2)
    assert made.control.phase is Phase.HOLDING, "not to be gone on with"
    vars(made.arm.faults).update(mended)
    made.run(0.5)
    assert np.abs(made.measured[-1].joint_velocities).max() < 0.02, "it still moves"
    made.ask("resume", 1.0)
    assert made.control.phase is Phase.RUNNING
    assert not made.faults(), made.faults()


def test_what_is_lived_with(made: Bench) -> None:
    """Lost frames; then a policy gone mad, whose every plan leads somewhere else, far outside and turned about."""
    made.arm.faults.dropped_frames = 0.6
    made.run(1.5)
    assert made.control.phase is Phase.RUNNING
    check_limits(made)
    rng = np.random.default_rng(1)
    made.planner.spoil = lambda actions: rng.normal(0, 1.0, actions.shape).astype(np.float32)
    made.run(1.5)
    check_limits(made)
    clipped = made.control.statistics.clipped
    assert clipped["step"] and clipped["gripper"] and clipped["speed"]


def test_a_bump_is_not_pushed_against(made: Bench) -> None:
    """Somebody pushes the arm: it is behind, and either catches up within the limits or is stopped."""
    made.arm.world.push(np.array([12.0, 0, 0, 0, 0, 0]))
    made.run(0.5)
    made.arm.world.push(np.zeros(6))
    made.run(0.5)
    assert not made.faults(), made.faults()
