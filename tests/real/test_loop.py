"""The loop with an arm, a camera and a policy of no substance, whose time the test moves."""

import numpy as np
import pytest

from tests.real.fakes import HOME, Bench, bench, circle
from unified_video_action.poses import distance
from unified_video_action.real.chunks import read_plan
from unified_video_action.real.clock import Pacer
from unified_video_action.real.limits import Rules
from unified_video_action.real.loop import Phase
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.watchdog import Reason, Timeouts


class Answered(PlannerError):
    """As the client's, when a server says why there is no plan."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"the server says {code}")


@pytest.mark.parametrize("blend", ["latest", "ensemble", "continue"])
def test_the_hand_follows_the_policy_in_time(blend: str) -> None:
    made = bench({"blend": blend})
    made.planner.delay = 0.0
    made.start()
    made.run(4.0)
    late = made.arm._delay / made.arm.rate
    for command in made.arm.sent[400:]:
        way, turn = distance(command.pose, circle(command.time))
        # The chord between two actions of 0.1 s is 0.3 mm from the circle; both blends of several plans add to it.
        assert way < 1.5e-3 and turn < 0.02, (command.time, way, turn)
    assert not made.faults() and late > 0
    counts = made.control.statistics.counts
    assert counts["plans"] > 25 and counts["blends"] == counts["plans"] - 1
    assert counts["stale_actions"] >= counts["plans"]  # the first action of each chunk lies in the past
    assert (made.planner.going_on[-1] is not None) == (blend == "continue")


def test_nothing_is_sent_before_the_operator_starts() -> None:
    made = bench()
    made.run(1.0)
    assert made.control.phase is Phase.READY and not made.arm.sent and made.planner.plans == 1  # the warm-up


def test_the_policy_must_have_planned_once() -> None:
    made = bench()
    made.planner.error = RuntimeError("compiling")
    made.run(0.1)
    made.control.requests.put("start")
    made.run(0.1)
    assert made.control.phase is Phase.READY
    made.planner.error = None
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
    rest = made.arm.sent[-2:]
    if reason.brakes:
        np.testing.assert_allclose(rest[0].pose, rest[1].pose, atol=2.1 * 0.005**2)  # it had come to rest
    assert made.control.statistics.stops[-1]["reason"] == reason.title


def test_hold_resume_and_quit() -> None:
    made = bench()
    made.start()
    made.run(1.0)
    made.control.requests.put("hold")
    check_stopped(made, Reason.HOLD)
    before = len(made.arm.sent)
    made.control.requests.put("start")  # Enter is not enough
    made.run(0.05)
    assert made.control.phase is Phase.HOLDING
    made.control.requests.put("resume")
    made.run(1.0)
    assert made.control.phase is Phase.RUNNING and len(made.arm.sent) > before + 150
    assert made.planner.resets == 3  # warm-up, start, resume
    first = made.arm.sent[before]
    np.testing.assert_allclose(first.pose, made.arm.sent[before - 1].pose, atol=1e-4)
    made.control.requests.put("quit")
    check_stopped(made, Reason.QUIT)
    assert made.control._ending


def test_release_only_at_rest_and_resume_takes_hold_where_the_arm_was_moved_to() -> None:
    made = bench()
    made.start()
    made.run(0.5)
    made.control.requests.put("release")
    made.run(0.05)
    assert "release" not in made.arm.calls and made.control.phase is Phase.RUNNING
    made.control.requests.put("hold")
    check_stopped(made, Reason.HOLD)
    made.control.requests.put("release")
    made.run(0.05)
    assert made.control.phase is Phase.RELEASED and made.arm.calls[-1] == "release"
    by_hand = HOME.copy()
    by_hand[1, 3] += 0.07
    for share in np.linspace(0, 1, 40):
        made.arm.pose = HOME + share * (by_hand - HOME)
        made.run(0.01)
    before = len(made.arm.sent)
    made.control.requests.put("resume")
    made.run(0.02)
    assert made.control.phase is Phase.RUNNING and made.arm.calls[-1] == "stop"
    np.testing.assert_allclose(made.arm.sent[before].pose, by_hand, atol=1e-3)


def test_ctrl_c_holds_and_a_later_one_ends() -> None:
    made = bench()
    made.start()
    made.run(0.5)
    made.control.requests.put("ctrl_c")
    made.run(0.005)
    assert made.control.phase is Phase.BRAKING  # at the next tick
    made.control.requests.put("ctrl_c")  # in a fright
    check_stopped(made, Reason.CTRL_C)
    assert not made.control._ending and "release" not in made.arm.calls
    made.run(2.0)
    made.control.requests.put("ctrl_c")
    made.run(0.01)
    assert made.control._ending and made.control.stop.reason.code == 130 and "release" not in made.arm.calls


def test_sigterm_holds_and_ends() -> None:
    made = bench()
    made.start()
    made.control.requests.put("term")
    check_stopped(made, Reason.TERMINATED)
    assert made.control._ending


def test_the_episodes_time_ends_it() -> None:
    made = bench({"episode_seconds": 1.0})
    made.start()
    check_stopped(made, Reason.TIME_LIMIT)
    assert made.control._ending and 195 < len(made.arm.sent) < 280


def test_without_an_operator_a_stop_ends_the_run() -> None:
    made = bench()
    made.start()
    made.control.requests.put("gone")
    made.run(0.5)
    assert made.control.phase is Phase.RUNNING
    made.planner.error = RuntimeError("broken")
    check_stopped(made, Reason.POLICY_ERROR)
    assert made.control._ending


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("broken"), Reason.POLICY_ERROR),
        (Answered("policy_failed"), Reason.POLICY_ERROR),
        (Answered("busy"), Reason.LOST_SERVER),
        (PlannerError("no answer"), Reason.LOST_SERVER),
    ],
)
def test_a_policy_that_fails_and_a_server_that_is_lost_are_told_apart(error: Exception, reason: Reason) -> None:
    made = bench()
    made.start()
    made.run(0.7)
    made.planner.error = error
    check_stopped(made, reason)


@pytest.mark.parametrize("auto", [False, True])
def test_a_server_that_is_back_is_gone_on_with_only_if_asked_for(auto: bool) -> None:
    made = bench({"auto_resume": auto})
    made.start()
    made.run(0.7)
    made.planner.error = PlannerError("no answer")
    check_stopped(made, Reason.LOST_SERVER)
    assert not made.control.planning.probe()
    made.run(2.0)
    assert made.control.phase is Phase.HOLDING
    made.planner.error = None
    assert made.control.planning.probe()
    made.run(1.5)
    assert made.control.phase is (Phase.RUNNING if auto else Phase.HOLDING)
    made.control.requests.put("resume")
    made.run(0.5)
    assert made.control.phase is Phase.RUNNING and not made.faults()


def test_a_policy_that_failed_is_never_gone_on_with_unasked() -> None:
    made = bench({"auto_resume": True})
    made.start()
    made.planner.error = RuntimeError("broken")
    check_stopped(made, Reason.POLICY_ERROR)
    made.planner.error = None
    made.run(3.0)
    assert made.control.phase is Phase.HOLDING


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_an_action_that_is_no_number_stops(number: float) -> None:
    made = bench()
    made.start()
    made.run(0.7)

    def spoil(actions: np.ndarray) -> np.ndarray:
        actions[9, 4] = number
        return actions

    made.planner.spoil = spoil
    check_stopped(made, Reason.NAN_ACTION)


def test_slow_plans_are_lived_with_and_none_at_all_stop() -> None:
    """Half a second from the frame to the plan: 5 of its 16 actions are stale."""
    made = bench()
    made.start()
    planning, waiting = made.control.planning, []

    def step() -> None:
        """Ask now, and have the answer half a second later."""
        observed = made.control.observer.observation()
        actions = made.planner.plan(observed.entries)
        plan = read_plan(actions, made.planner.description, 0.1, observed.time, observed.base)
        waiting.append((made.time() + 0.5, plan))

    def tick() -> bool:
        while waiting and waiting[0][0] <= made.time():
            made.control.chunks.add(waiting.pop(0)[1], made.time(), *made.control._told)
            planning.last = made.time()
        return False

    planning.step = step
    before = made.control.statistics.counts["stale_actions"]
    made.run(4.0, until=tick)
    counts = made.control.statistics.counts
    assert made.control.phase is Phase.RUNNING and not made.faults()
    assert counts["plans"] > 20 and (counts["stale_actions"] - before) / counts["plans"] > 4.5
    for command in made.arm.sent[500:]:
        assert distance(command.pose, circle(command.time))[0] < 1.5e-3  # late plans are still about the right time
    planning.step, planning.waiting = lambda: None, True  # from now on there is no answer
    check_stopped(made, Reason.NO_ACTION)


def test_no_plan_at_all_is_a_lost_server() -> None:
    made = bench({"timeouts": Timeouts(plan=0.8)})
    made.start()
    made.control.planning.step = lambda: setattr(made.control.planning, "waiting", True)
    check_stopped(made, Reason.LOST_SERVER)


def test_a_dead_camera_stops_and_its_return_lets_go_on() -> None:
    made = bench()
    made.start()
    made.run(0.7)
    made.camera.dead_since = made.time()
    check_stopped(made, Reason.DEAD_CAMERA, within=1.0)
    made.control.requests.put("resume")
    made.run(0.1)
    assert made.control.phase is Phase.HOLDING, "no frames: not to be gone on with"
    made.camera.dead_since = None
    made.run(0.1)
    made.control.requests.put("resume")
    made.run(0.5)
    assert made.control.phase is Phase.RUNNING


def test_dropped_frames_are_lived_with() -> None:
    made = bench()
    made.camera.dropped = lambda number: number % 3 != 0
    made.start()
    made.run(2.0)
    assert made.control.phase is Phase.RUNNING and not made.faults()


def test_a_pose_that_teleports_stops_at_once() -> None:
    made = bench()
    made.start()
    made.run(0.7)
    sent = len(made.arm.sent)
    made.arm.jump = np.array([0.0, 0.3, 0.0])
    check_stopped(made, Reason.TELEPORT, within=0.1)
    assert len(made.arm.sent) == sent, "after it nothing may be sent"


def test_an_arm_that_does_not_answer_stops_and_is_not_started_again_until_it_does() -> None:
    made = bench()
    made.start()
    made.run(0.7)
    made.arm.lost = True
    check_stopped(made, Reason.ARM_ERROR, within=0.1)
    made.control.requests.put("resume")
    made.run(0.1)
    assert made.control.phase is Phase.HOLDING
    made.arm.lost = False
    made.run(0.1)
    made.control.requests.put("resume")
    made.run(0.1)
    assert made.control.phase is Phase.RUNNING


def test_an_old_state_stops() -> None:
    made = bench()
    made.start()
    made.run(0.7)
    made.arm.frozen = True
    check_stopped(made, Reason.STALE_STATE, within=0.5)


def test_a_loop_that_was_held_up_stops() -> None:
    made = bench()
    made.start()
    made.run(0.7)
    made.time.sleep(0.2)
    made.control.tick(made.time(), ticks=41)
    assert made.control.stop.reason is Reason.OVERRUN and made.control.phase is Phase.HOLDING


def test_a_rule_that_is_set_to_stop_stops_the_run() -> None:
    made = bench(limits={"rules": Rules(table="stop")})
    made.start()
    made.run(0.7)
    into_the_table = HOME.copy()
    into_the_table[2, 3] = 0.02
    made.planner.path = lambda time: into_the_table
    check_stopped(made, Reason.SAFETY_STOP)
    assert "table" in made.control.stop.detail
    assert min(command.pose[2, 3] for command in made.arm.sent) > made.limits.table_height


def test_a_blocked_arm_is_not_pushed_on() -> None:
    made = bench(limits={"max_step": 0.05, "max_lag": 0.05, "linear_acceleration": 1.0})
    made.start()
    made.run(0.7)
    made.arm.blocked = True
    ahead = made.arm.pose.copy()
    ahead[0, 3] -= 0.15
    made.planner.path = lambda time: ahead
    made.run(2.0)
    sent = np.stack([command.pose[:3, 3] for command in made.arm.sent])
    assert np.linalg.norm(sent - made.arm.pose[:3, 3], axis=1)[-50:].max() < 0.05 + 0.5**2 / 2  # and braking
    if made.control.phase is not Phase.RUNNING:
        assert made.control.stop.reason is Reason.SAFETY_STOP and "lag" in made.control.stop.detail


def test_deadlines_are_absolute_and_missed_ones_are_not_made_up_for() -> None:
    now = [100.0]
    slow = iter([0.0003, 0.0002, 0.0201, 0.0])

    def sleep(seconds: float) -> None:
        now[0] += seconds + next(slow)

    pacer = Pacer(200.0, lambda: now[0], sleep)
    assert pacer.wait() == (1, pytest.approx(0.0003))
    assert pacer.wait() == (1, pytest.approx(0.0002))
    passed, late = pacer.wait()
    assert passed == 5 and late == pytest.approx(0.0001)
    assert pacer.wait()[0] == 1
    assert pacer.deadline == pytest.approx(100.0 + 8 * 0.005) and now[0] == pytest.approx(pacer.deadline)
