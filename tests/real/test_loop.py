"""The loop with an arm, a camera and a policy of no substance, whose time the test moves; and its faults."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest

from tests.real.fakes import HOME, Bench, FakeArm, Later, ManualTime, bench, circle, description
from unified_video_action.instantiate import build_dataclass
from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real.control.limits import Rules
from unified_video_action.real.control.timing import Pacer
from unified_video_action.real.control.trajectory import turned
from unified_video_action.real.control.watchdog import LoopSettings, Phase, Reason, Stop, Timeouts, implausible
from unified_video_action.real.planner import PlannerError


@pytest.mark.parametrize("blend", ["latest", "ensemble", "continue"])
def test_the_arm_follows_the_policy_in_time(blend: str) -> None:
    made = bench({"blend": blend})
    made.start(3.0)
    for command in made.arm.sent[400:]:
        way, turn = distance(command.pose, circle(command.time))
        # The chord between two actions of 0.1 s is 0.3 mm from the circle; both blends of several plans add to it.
        assert way < 1.5e-3 and turn < 0.02, (command.time, way, turn)
    assert not made.faults()
    counts = made.control.statistics.counts
    assert counts["plans"] > 20 and counts["blends"] == counts["plans"] - 1
    assert counts["stale_actions"] >= counts["plans"]  # the first action of each chunk lies in the past
    assert (made.planner.continuation is not None) == (blend == "continue")


def test_nothing_is_sent_before_the_policy_is_ready_and_the_operator_starts() -> None:
    made = bench()
    made.planner.error = RuntimeError("compiling")
    made.run(0.15)
    made.ask("start")
    assert made.control.phase is Phase.READY and not made.arm.sent
    made.planner.error = None
    made.run(1.0)
    assert made.control.phase is Phase.READY and not made.arm.sent and made.planner.plans == 1  # the warm-up
    made.start()


def check_stopped(made: Bench, reason: Reason, within: float = 3.0) -> None:
    """The run goes on until the arm holds, for this reason, with nothing beyond a limit."""
    made.run(within, until=lambda: made.control.phase is Phase.HOLDING)
    assert made.control.phase is Phase.HOLDING, "the arm was not stopped"
    assert made.control.stop.reason is reason, made.control.stop
    assert made.arm.calls[-1] == "stop"
    assert not made.faults(), made.faults()
    sent = len(made.arm.sent)
    made.run(0.2)
    assert len(made.arm.sent) == sent, "it was commanded on"
    if reason.brakes:
        np.testing.assert_allclose(made.arm.sent[-2].pose, made.arm.sent[-1].pose, atol=2.1 * 0.005**2)  # at rest
    assert made.control.statistics.stops[-1]["reason"] == reason.title


def test_hold_resume_and_quit() -> None:
    made = bench()
    made.start(1.0)
    made.control.requests.put("hold")
    check_stopped(made, Reason.HOLD)
    before = len(made.arm.sent)
    made.ask("start")  # Enter is not enough
    assert made.control.phase is Phase.HOLDING
    made.ask("resume", 1.0)
    assert made.control.phase is Phase.RUNNING and len(made.arm.sent) > before + 150
    assert made.planner.resets == 3  # warm-up, start, resume
    np.testing.assert_allclose(made.arm.sent[before].pose, made.arm.sent[before - 1].pose, atol=1e-4)
    made.control.requests.put("quit")
    check_stopped(made, Reason.QUIT)
    assert made.control.ending


@pytest.mark.parametrize("way", [0.07, 0.008])  # farther than an arm sags, and less
def test_release_only_at_rest_and_resume_takes_hold_where_the_arm_was_moved_to(way: float) -> None:
    made = bench()
    made.start(0.5)
    made.ask("release")
    assert "release" not in made.arm.calls and made.control.phase is Phase.RUNNING
    made.control.requests.put("hold")
    check_stopped(made, Reason.HOLD)
    made.ask("release")
    assert made.control.phase is Phase.RELEASED and made.arm.calls[-1] == "release"
    held = made.arm.pose
    by_hand = held.copy()
    by_hand[1, 3] += way
    for share in np.linspace(0, 1, 40):
        made.arm.pose = held + share * (by_hand - held)
        made.run(0.01)
    made.arm.gripper = 0.08
    before = len(made.arm.sent)
    made.ask("resume")
    assert made.control.phase is Phase.RUNNING and made.arm.calls[-1] == "stop"
    first = made.arm.sent[before]
    np.testing.assert_allclose(first.pose, by_hand, atol=1e-3)
    assert first.gripper == pytest.approx(0.08, abs=2e-3)


def test_ctrl_c_holds_and_a_later_one_ends() -> None:
    made = bench()
    made.start(0.5)
    made.ask("ctrl_c", 0.005)
    assert made.control.phase is Phase.BRAKING  # at the next tick
    made.control.requests.put("ctrl_c")  # in a fright
    check_stopped(made, Reason.CTRL_C)
    assert not made.control.ending and "release" not in made.arm.calls
    made.run(2.0)
    made.ask("ctrl_c")
    assert made.control.ending and made.control.stop.reason.code == 130 and "release" not in made.arm.calls


def test_a_signal_the_episodes_time_and_a_stop_without_an_operator_end_the_run() -> None:
    made = bench({"episode_seconds": 1.0})
    made.start()
    check_stopped(made, Reason.TIME_LIMIT)
    assert made.control.ending and 195 < len(made.arm.sent) < 280
    made = bench()
    made.start()
    made.control.requests.put("term")
    check_stopped(made, Reason.TERMINATED)
    assert made.control.ending
    made = bench()
    made.start()
    made.ask("gone", 0.5)
    assert made.control.phase is Phase.RUNNING
    made.planner.error = RuntimeError("broken")
    check_stopped(made, Reason.POLICY_ERROR)
    assert made.control.ending


def test_without_an_operator_only_a_stop_that_may_pass_is_waited_out() -> None:
    waiting = bench({"auto_resume": True})
    waiting.run(0.15)
    waiting.ask("gone")
    assert waiting.control.ending  # nobody can start it any more
    for name, reason, ends in (("camera dies", Reason.DEAD_CAMERA, False), ("policy fails", Reason.POLICY_ERROR, True)):
        made = bench({"auto_resume": True})
        made.start(0.5)
        made.ask("gone")
        FAULTS[name][0](made)
        check_stopped(made, reason)
        assert made.control.ending == ends
    held = bench({"auto_resume": True})
    held.start(0.5)
    held.control.requests.put("hold")
    check_stopped(held, Reason.HOLD)
    held.ask("gone")
    assert held.control.ending


def switch(device: str, field: str, value: object) -> Callable[[Bench], None]:
    return lambda made: setattr(getattr(made, device), field, value)


def spoil(number: float, made: Bench) -> None:
    def spoilt(actions: np.ndarray) -> np.ndarray:
        actions[9, 4] = number
        return actions

    made.planner.spoil = spoilt


MEND = switch("planner", "error", None)
FAULTS = {  # how something breaks, the stop, how soon, and how it is mended
    "policy fails": (switch("planner", "error", RuntimeError("broken")), Reason.POLICY_ERROR, 3.0, MEND),
    "server says so": (switch("planner", "error", PlannerError("no", "policy_failed")), Reason.POLICY_ERROR, 3.0, MEND),
    "server is full": (switch("planner", "error", PlannerError("no", "busy")), Reason.LOST_SERVER, 3.0, MEND),
    "server is lost": (switch("planner", "error", PlannerError("no answer")), Reason.LOST_SERVER, 3.0, MEND),
    "action nan": (partial(spoil, np.nan), Reason.NAN_ACTION, 3.0, partial(spoil, 0.0)),
    "action inf": (partial(spoil, -np.inf), Reason.NAN_ACTION, 3.0, partial(spoil, 0.0)),
    "camera dies": (
        lambda made: setattr(made.camera, "dead_since", made.time()), Reason.DEAD_CAMERA, 1.0,
        switch("camera", "dead_since", None),
    ),
    "arm is lost": (switch("arm", "lost", True), Reason.ARM_ERROR, 0.1, switch("arm", "lost", False)),
    "arm takes no command": (switch("arm", "deaf", True), Reason.ARM_ERROR, 0.1, switch("arm", "deaf", False)),
    "state is old": (switch("arm", "frozen", True), Reason.STALE_STATE, 0.5, switch("arm", "frozen", False)),
    "pose teleports": (
        switch("arm", "jump", np.array([0.0, 0.3, 0.0])), Reason.TELEPORT, 0.1, switch("arm", "jump", None),
    ),
    "pose is nan": (switch("arm", "jump", np.full(3, np.nan)), Reason.ARM_ERROR, 0.1, switch("arm", "jump", None)),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_stops_the_arm_and_it_goes_on_only_when_mended_and_asked_to(name: str) -> None:
    broken, reason, within, mended = FAULTS[name]
    made = bench()
    made.start(0.7)
    sent = len(made.arm.sent)
    broken(made)
    check_stopped(made, reason, within)
    if reason in (Reason.TELEPORT, Reason.ARM_ERROR):
        assert len(made.arm.sent) == sent, "what is known of the arm cannot be trusted"
    if reason in (Reason.DEAD_CAMERA, Reason.ARM_ERROR, Reason.STALE_STATE):
        made.ask("resume")
        assert made.control.phase is Phase.HOLDING, "not to be gone on with"
    mended(made)
    made.run(2.0)
    assert made.control.phase is Phase.HOLDING
    made.ask("resume", 0.5)
    assert made.control.phase is Phase.RUNNING and not made.faults()


@pytest.mark.parametrize("name, goes_on", [("server is lost", True), ("policy fails", False)])
def test_only_a_stop_that_may_mend_itself_is_gone_on_with_unasked(name: str, goes_on: bool) -> None:
    broken, reason, within, mended = FAULTS[name]
    made = bench({"auto_resume": True})
    made.start(0.7)
    broken(made)
    check_stopped(made, reason, within)
    made.run(2.0)
    assert made.control.phase is Phase.HOLDING
    mended(made)
    made.run(2.0)
    assert (made.control.phase is Phase.RUNNING) == goes_on and not made.faults()


@pytest.mark.parametrize("asked", ["hold", "ctrl_c"])
@pytest.mark.parametrize("phase", [Phase.BRAKING, Phase.HOLDING])
def test_an_operator_who_holds_ends_the_automatic_resuming(asked: str, phase: Phase) -> None:
    made = bench({"auto_resume": True})
    made.start(0.7)
    made.camera.dead_since = made.time()
    made.run(3.0, until=lambda: made.control.phase is phase)
    assert made.control.phase is phase and made.control.stop.reason is Reason.DEAD_CAMERA
    made.ask(asked)
    made.camera.dead_since = None
    made.run(4.0)
    assert made.control.phase is Phase.HOLDING and made.control.stop.reason.title == asked and not made.faults()
    assert not made.control.ending
    made.ask("resume")
    assert made.control.phase is Phase.RUNNING


def test_slow_plans_are_lived_with_and_none_at_all_stop() -> None:
    """Half a second from the frame to the plan: 5 of its 16 actions are stale."""
    made = bench()
    made.start()
    executor = made.control.planning.executor = Later(made.planner)
    asked: list[tuple[object, float]] = []

    def answer() -> bool:
        if executor.future is not None and not executor.future.done():
            if not asked or asked[-1][0] is not executor.future:
                asked.append((executor.future, made.time()))
            if made.time() > asked[-1][1] + 0.5:
                executor.answer()
        return False

    try:
        before = dict(made.control.statistics.counts)
        made.run(5.0, until=answer)
        counts = made.control.statistics.counts
        plans = counts["plans"] - before["plans"]
        assert made.control.phase is Phase.RUNNING and not made.faults()
        assert plans > 6 and (counts["stale_actions"] - before["stale_actions"]) / plans > 4.5
        for command in made.arm.sent[500:]:
            assert distance(command.pose, circle(command.time))[0] < 1.5e-3  # late plans are still about the right time
        check_stopped(made, Reason.NO_ACTION)  # from now on there is no answer
    finally:
        executor.shutdown()
    made = bench({"timeouts": Timeouts(plan=0.8)})
    made.start()
    made.control.planning.executor = Later(made.planner)
    check_stopped(made, Reason.LOST_SERVER)
    made.control.planning.executor.shutdown()


def test_plans_that_all_come_too_late_are_not_a_lost_server() -> None:
    made = bench({"timeouts": Timeouts(action=60.0)})
    made.start()
    executor = made.control.planning.executor = Later(made.planner)
    asked: dict[object, float] = {}

    def answer() -> bool:
        if executor.future is not None and not executor.future.done():
            if made.time() > asked.setdefault(executor.future, made.time()) + 1.6:  # the last action is due after 1.5 s
                executor.answer()
        return made.control.phase is not Phase.RUNNING

    try:
        made.run(6.0, until=answer)
        assert made.control.stop.reason is Reason.NO_ACTION
        assert re.search(r"arrive 1\.[67]\d s after their frame", made.control.stop.detail), made.control.stop
    finally:
        executor.shutdown()


def test_a_loop_that_was_held_up_stops() -> None:
    made = bench()
    made.start(0.7)
    made.time.sleep(0.2)
    made.control.tick(made.time(), ticks=41)
    assert made.control.stop.reason is Reason.OVERRUN and made.control.phase is Phase.HOLDING


def test_a_rule_that_is_set_to_stop_stops_the_run() -> None:
    made = bench(limits={"rules": Rules(table="stop")})
    made.start(0.7)
    into_the_table = HOME.copy()
    into_the_table[2, 3] = 0.02
    made.planner.path = lambda time: into_the_table
    check_stopped(made, Reason.SAFETY_STOP)
    assert "table" in made.control.stop.detail
    assert min(command.pose[2, 3] for command in made.arm.sent) > made.limits.table_height


def test_a_command_that_the_safety_filter_refuses_while_braking_holds_the_arm_at_once() -> None:
    made = bench()
    made.start(0.7)
    made.control.safety.brake = lambda ticks: made.control.safety.follow(
        np.full((4, 4), np.nan), 0.04, made.arm.pose, ticks
    )
    made.ask("hold", 0.1)
    sent = len(made.arm.sent)
    made.run(0.1)
    assert made.control.stop.reason is Reason.SAFETY_STOP and made.control.phase is Phase.HOLDING
    assert made.arm.calls[-1] == "stop" and len(made.arm.sent) == sent


def test_a_blocked_arm_is_not_pushed_on() -> None:
    made = bench(limits={"max_step": 0.05, "max_lag": 0.05, "linear_acceleration": 1.0})
    made.start(0.7)
    made.arm.blocked = True
    ahead = made.arm.pose.copy()
    ahead[0, 3] -= 0.15
    made.planner.path = lambda time: ahead
    made.run(2.0)
    sent = np.stack([command.pose[:3, 3] for command in made.arm.sent])
    assert np.linalg.norm(sent - made.arm.pose[:3, 3], axis=1)[-50:].max() < 0.05 + 0.5**2 / 2  # and braking
    if made.control.phase is not Phase.RUNNING:
        assert made.control.stop.reason is Reason.SAFETY_STOP and "lag" in made.control.stop.detail


def test_a_run_ends_with_the_arm_stopped_whatever_happens() -> None:
    made = bench({"release_on_exit": True})
    made.control.requests.put("quit")
    assert made.control.run().reason is Reason.QUIT and made.arm.calls == ["stop", "release"]
    made = bench({"release_on_exit": True})
    made.arm.lost = True
    made.control.stop, made.control.ending = Stop(Reason.ARM_ERROR), True
    ended = made.control.planning.executor.shutdown = Mock()
    assert made.control.run().reason is Reason.ARM_ERROR and made.arm.calls == ["stop"]
    ended.assert_called()
    made = bench()
    made.control._answer = lambda request: 1 / 0
    made.control.requests.put("start")
    with pytest.raises(ZeroDivisionError):
        made.control.run()
    assert made.arm.calls == ["stop"]


def test_deadlines_are_absolute_and_missed_ones_are_not_made_up_for() -> None:
    clock, slow = ManualTime(), iter([0.0003, 0.0002, 0.0201, 0.0])
    pacer = Pacer(200.0, clock, lambda seconds: clock.sleep(seconds + next(slow)))
    for passed, late in ((1, 0.0003), (1, 0.0002), (5, 0.0001), (1, 0.0)):
        assert pacer.wait() == (passed, pytest.approx(late, abs=1e-9))
    assert pacer.deadline == pytest.approx(100.0 + 8 * 0.005) and clock() == pytest.approx(pacer.deadline)


def test_a_state_may_not_jump_farther_than_an_arm_moves() -> None:
    before, limits = FakeArm(ManualTime()).state(), FakeArm.limits

    def fault(way: float = 0.0, turn: float = 0.0, joints: float = 0.0, seconds: float = 0.005) -> Reason | None:
        pose = pose_matrix(HOME[:3, 3] + [way, 0, 0], turned([0, turn, 0]))
        state = dataclasses.replace(before, time=before.time + seconds, pose=pose, joints=before.joints + joints)
        stop = implausible(before, state, limits)
        return None if stop is None else stop.reason

    assert implausible(None, before, limits) is None
    assert fault(way=0.03) is None and fault(way=0.25, seconds=0.1) is None
    for change in ({"way": 0.05}, {"turn": 0.15}, {"joints": 0.1}, {"way": 0.03, "seconds": 0.0}):
        assert fault(**change) is Reason.TELEPORT


def test_settings_name_their_field() -> None:
    for change, match in (
        ({"latency": -1.0}, "loop: latency"),
        ({"timeouts": {"frame": -1.0}}, "loop.timeouts: frame"),
    ):
        with pytest.raises(ValueError, match=match):
            build_dataclass(LoopSettings, change, "loop")
    assert LoopSettings().step_of(description()) == 0.1
    assert LoopSettings(step_seconds=0.05).step_of(description()) == 0.05
    with pytest.raises(ValueError, match="loop.step_seconds"):
        LoopSettings().step_of(description(step_seconds=None))
