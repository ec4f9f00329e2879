"""Why a run stops."""

import dataclasses

import numpy as np
import pytest

from tests.real.fakes import HOME, FakeArm, ManualTime, cylinder, description
from unified_video_action.instantiate import build_dataclass
from unified_video_action.poses import pose_matrix
from unified_video_action.real.robot import ArmState
from unified_video_action.real.trajectory import turned
from unified_video_action.real.watchdog import LoopSettings, Plausibility, Reason, Timeouts, Watchdog, step_seconds_of

LIMITS = FakeArm.limits
WATCH = Watchdog(Timeouts(frame=0.5, state=0.1, action=0.2, plan=2.0, overrun=0.1))


def test_every_reason_has_a_code_of_its_own_and_a_text() -> None:
    failures = [reason for reason in Reason if reason.code not in (0,)]
    assert len({reason.code for reason in failures}) == len(failures)
    assert all(reason.text and reason.title == reason.name.lower() for reason in Reason)


def test_old_frames_states_and_plans_are_noticed() -> None:
    assert WATCH.frames(10.0, [9.6, 9.9]) is None
    assert WATCH.frames(10.0, [9.9, 9.4]).reason is Reason.DEAD_CAMERA
    assert "camera 1: none came" in str(WATCH.frames(10.0, [9.9, -np.inf]))
    state = ArmState(9.95, HOME, 0.0, cylinder(HOME), np.zeros(6))
    assert WATCH.state(10.0, state) is None
    assert WATCH.state(10.2, state).reason is Reason.STALE_STATE
    assert WATCH.plans(10.0, 9.0, 9.9, waiting=False) is None
    assert WATCH.plans(10.0, 9.0, None, waiting=True) is None
    assert WATCH.plans(10.0, 9.0, 9.7, waiting=True).reason is Reason.NO_ACTION
    assert WATCH.plans(10.0, 7.9, None, waiting=True).reason is Reason.LOST_SERVER
    assert WATCH.plans(10.0, 7.9, 11.0, waiting=False).reason is Reason.NO_ACTION
    assert WATCH.ticks(0.09) is None and WATCH.ticks(0.2).reason is Reason.OVERRUN


def test_a_state_may_not_jump_farther_than_an_arm_moves() -> None:
    can = Plausibility(speed=3.0, spin=20.0, joint_share=2.0, slack=0.02)
    before = FakeArm(ManualTime()).state()

    def then(**changes: object) -> ArmState:
        return dataclasses.replace(before, **({"time": before.time + 0.005} | changes))

    def moved(way: float, turn: float = 0.0) -> np.ndarray:
        return pose_matrix(HOME[:3, 3] + [way, 0, 0], turned([0, turn, 0]))

    assert can.fault(None, before, LIMITS) is None
    assert can.fault(before, then(pose=moved(0.03)), LIMITS) is None
    for state in (
        then(pose=moved(0.05)),
        then(pose=moved(0.0, 0.15)),
        then(joints=before.joints + 0.1),
        then(time=before.time, pose=moved(0.03)),
    ):
        assert can.fault(before, state, LIMITS).reason is Reason.TELEPORT
    assert can.fault(before, then(time=before.time + 0.1, pose=moved(0.25)), LIMITS) is None
    assert can.fault(before, then(pose=moved(np.nan)), LIMITS).reason is Reason.ARM_ERROR


def test_settings_name_their_field() -> None:
    for change, match in (
        ({"plan_rate": 0.0}, "loop: plan_rate"),
        ({"latency": -1.0}, "loop: latency"),
        ({"timeouts": {"frame": -1.0}}, "loop.timeouts: frame"),
        ({"timeouts": {"off": 1.0}}, "loop.timeouts.off"),
        ({"plausibility": {"speed": 0.0}}, "loop.plausibility: speed"),
    ):
        with pytest.raises(ValueError, match=match):
            build_dataclass(LoopSettings, change, "loop")
    assert step_seconds_of(description(), LoopSettings()) == 0.1
    assert step_seconds_of(description(), LoopSettings(step_seconds=0.05)) == 0.05
    with pytest.raises(ValueError, match="loop.step_seconds"):
        step_seconds_of(description(step_seconds=None), LoopSettings())
