"""The simulated arm when something goes wrong: it ends as it should, and never beyond a limit.

Time stands still between two ticks, so that every run is the same.
"""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from tests.real.fakes import Bench, reached_faults, sim_bench
from unified_video_action.poses import distance
from unified_video_action.real.loop import Phase
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.watchdog import Reason

if find_spec("mujoco") is None:  # importing it here would choose how it draws too early
    pytest.skip("MuJoCo is not installed: no simulated arm", allow_module_level=True)


@pytest.fixture
def made() -> Iterator[Bench]:
    made = sim_bench()
    yield made
    made.camera.close()
    made.arm.close()


def moving(made: Bench) -> Bench:
    made.start()
    made.run(1.0)
    assert made.control.phase is Phase.RUNNING and not made.control.statistics.stops
    return made


def check_ended(made: Bench, reason: Reason, within: float, still: bool = True) -> None:
    made.run(within, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.phase is Phase.HOLDING, "the arm was not stopped"
    assert made.control.stop.reason is reason, made.control.stop
    sent = len(made.sent)
    made.run(0.4)
    assert len(made.sent) == sent, "it was commanded on"
    check_limits(made)
    if still:
        assert np.abs(made.reached[-1].joint_velocities).max() < 0.02, "it still moves"


def check_limits(made: Bench) -> None:
    assert not made.faults(), made.faults()
    assert not reached_faults(made.reached, made.limits), reached_faults(made.reached, made.limits)


def test_without_a_fault_it_follows_within_millimetres(made: Bench) -> None:
    moving(made)
    made.run(2.0)
    assert made.control.phase is Phase.RUNNING
    ways = [distance(state.pose, made.planner.path(state.time))[0] for state in made.reached[-300:]]
    assert max(ways) < 6e-3, max(ways)
    assert np.ptp([state.pose[0, 3] for state in made.reached[-300:]]) > 0.05
    check_limits(made)


def test_frames_that_come_half_a_second_late(made: Bench) -> None:
    """Plans are then about the past: half of the chunk is stale, the rest is followed, or the camera counts as dead."""
    moving(made)
    made.arm.faults.camera_delay = 0.35
    made.run(1.5)
    assert made.control.phase is Phase.RUNNING
    check_limits(made)
    made.arm.faults.camera_delay = 0.8  # beyond what is allowed
    check_ended(made, Reason.DEAD_CAMERA, within=2.0)


def test_dropped_frames(made: Bench) -> None:
    moving(made)
    made.arm.faults.dropped_frames = 0.6
    made.run(2.0)
    assert made.control.phase is Phase.RUNNING
    check_limits(made)


def test_a_dead_camera(made: Bench) -> None:
    moving(made)
    made.arm.faults.dead_camera = True
    check_ended(made, Reason.DEAD_CAMERA, within=1.0)
    made.arm.faults.dead_camera = False
    made.run(0.3)
    made.control.requests.put("resume")
    made.run(1.0)
    assert made.control.phase is Phase.RUNNING
    check_limits(made)


def test_a_pose_that_teleports(made: Bench) -> None:
    moving(made)
    made.arm.faults.jump = np.array([0.0, 0.25, 0.0])
    made.run(0.1, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.phase is Phase.HOLDING and made.control.stop.reason is Reason.TELEPORT
    made.control.requests.put("resume")
    made.run(0.2)
    assert made.control.phase is Phase.HOLDING, "the pose contradicts the joints: not to be gone on with"
    made.arm.faults.jump = None
    made.run(0.5)
    assert np.abs(made.reached[-1].joint_velocities).max() < 0.02
    assert not made.faults(), made.faults()


def test_a_position_that_is_no_number(made: Bench) -> None:
    moving(made)
    made.arm.faults.not_a_number = True
    made.run(0.1, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.stop.reason is Reason.ARM_ERROR and "pose is not finite" in made.control.stop.detail
    assert not made.faults()


def test_states_that_come_late(made: Bench) -> None:
    moving(made)
    made.arm.faults.state_delay = 0.5
    check_ended(made, Reason.STALE_STATE, within=0.5, still=False)  # its states are still those of before


def test_an_arm_that_is_unplugged(made: Bench) -> None:
    moving(made)
    made.arm.faults.unplugged = True
    made.run(0.1)
    assert made.control.phase is Phase.HOLDING and made.control.stop.reason is Reason.ARM_ERROR
    made.arm.faults.unplugged = False
    made.run(0.3)
    made.control.requests.put("resume")
    made.run(0.5)
    assert made.control.phase is Phase.RUNNING
    assert not made.faults()


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_an_action_that_is_no_number(made: Bench, number: float) -> None:
    moving(made)

    def spoil(actions: np.ndarray) -> np.ndarray:
        actions[3, 1] = number
        return actions

    made.planner.spoil = spoil
    check_ended(made, Reason.NAN_ACTION, within=1.0)


def test_a_policy_that_raises(made: Bench) -> None:
    moving(made)
    made.planner.error = RuntimeError("out of memory")
    check_ended(made, Reason.POLICY_ERROR, within=1.0)
    assert "out of memory" in made.control.stop.detail


def test_a_server_that_is_lost(made: Bench) -> None:
    moving(made)
    made.planner.error = PlannerError("no answer within 1.5 s")
    check_ended(made, Reason.LOST_SERVER, within=1.0)


def test_a_policy_gone_mad_is_kept_inside(made: Bench) -> None:
    """Every plan leads somewhere else, far outside and turned about."""
    moving(made)
    rng = np.random.default_rng(1)

    def spoil(actions: np.ndarray) -> np.ndarray:
        return rng.normal(0, 1.0, actions.shape).astype(np.float32)

    made.planner.spoil = spoil
    made.run(1.5)
    check_limits(made)
    clipped = made.control.statistics.clipped
    assert clipped["step"] and clipped["gripper"] and clipped["speed"]


def test_a_bump_is_not_pushed_against(made: Bench) -> None:
    """Somebody pushes the arm: it is behind, and either catches up within the limits or is stopped."""
    moving(made)
    made.arm.world.push(np.array([12.0, 0, 0, 0, 0, 0]))
    made.run(0.5)
    made.arm.world.push(np.zeros(6))
    made.run(0.5)
    assert not made.faults(), made.faults()
