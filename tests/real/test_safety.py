"""Whatever is asked for, what goes out keeps every limit."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from tests.real.fakes import HOME, LIMITS, FakeArm, circle, cylinder, stream_faults
from unified_video_action.instantiate import build_dataclass
from unified_video_action.poses import pose_matrix
from unified_video_action.real.control.limits import Bounds, Rules, SafetyLimits
from unified_video_action.real.control.motion import JOINT_TICKS, Motion
from unified_video_action.real.control.safety import Gate, SafetyFilter, SafetyStop
from unified_video_action.real.control.trajectory import turned
from unified_video_action.real.robots.interface import ArmState

ARM = FakeArm.limits
CASES = 60  # of each kind of stream
Stream = Callable[[int], tuple[np.ndarray, float]]


def limits(**changes: object) -> SafetyLimits:
    return SafetyLimits(**(LIMITS | changes))


def state_at(pose: np.ndarray, gripper: float = 0.05) -> ArmState:
    return ArmState(0.0, pose, gripper, cylinder(pose), np.zeros(6))


def safety_at(pose: np.ndarray = HOME, rate: float = 200.0, **changes: object) -> SafetyFilter:
    safety = SafetyFilter(limits(**changes), ARM, rate, FakeArm().joints_for)
    safety.begin(state_at(pose))
    return safety


def drive(safety: SafetyFilter, stream: Stream, ticks: int, rate: float) -> tuple[np.ndarray, list[str]]:
    """Follow a stream, then brake to rest; the arm is perfect. The poses that were sent, and the limits they broke."""
    sent = [safety.commanded]
    for tick in range(ticks):
        sent.append(safety.follow(*stream(tick), safety.commanded[0]))
    for _ in range(10_000):
        if safety.at_rest:
            break
        sent.append(safety.brake())
    assert safety.at_rest, "it never came to rest"
    poses, grippers = np.stack([pose for pose, _ in sent]), np.array([gripper for _, gripper in sent])
    bounds = safety.bounds
    found = stream_faults(np.arange(len(sent)) / rate, poses, safety.limits)
    joints = np.stack([cylinder(pose) for pose in poses])
    speeds = np.diff(joints, axis=0) * rate
    joints = np.concatenate([joints[:1].repeat(2 * JOINT_TICKS, 0), joints])  # it rested before
    windows = (joints[JOINT_TICKS:] - joints[:-JOINT_TICKS]) * rate / JOINT_TICKS
    changes = (windows[JOINT_TICKS:] - windows[:-JOINT_TICKS]) * rate / JOINT_TICKS
    broken = {
        "joint range": (joints < bounds.joints_low - 1e-6).any() or (joints > bounds.joints_high + 1e-6).any(),
        "joint speed": (np.abs(speeds) > bounds.joint_speed * 1.001).any(),
        "joint acceleration": (np.abs(changes) > bounds.joint_acceleration * 1.001).any(),
        "gripper range": grippers.min() < ARM.gripper_low - 1e-9 or grippers.max() > ARM.gripper_high + 1e-9,
        "gripper speed": (np.abs(np.diff(grippers)) > bounds.gripper_speed / rate * 1.001).any(),
    }
    return poses, found + [name for name, is_broken in broken.items() if is_broken]


def leaps(rng: np.random.Generator, hold: int) -> Stream:
    """Targets far outside, each for some ticks."""
    positions, turns = rng.uniform([-0.3, -0.6, -0.3], [0.9, 0.6, 0.8], (64, 3)), rng.normal(0, 1.5, (64, 3))
    openings = rng.uniform(-0.1, 0.2, 64)
    return lambda tick: (
        pose_matrix(positions[tick // hold % 64], turned(turns[tick // hold % 64])),
        openings[tick % 64],
    )


def ram(rng: np.random.Generator, hold: int) -> Stream:
    """As fast as it goes into a wall, an edge or a corner, then away again."""
    wall = rng.choice([-1.0, 0.0, 1.0], 3)
    spin = rng.normal(0, 1, 3)

    def stream(tick: int) -> tuple[np.ndarray, float]:
        sign = 1 if tick // (3 * hold) % 2 == 0 else -1
        return pose_matrix(HOME[:3, 3] + sign * wall * 0.05 * (tick % (3 * hold)), turned(spin * 0.05 * tick)), 0.0

    return stream


def shake(rng: np.random.Generator, hold: int) -> Stream:
    """To and fro, always against the present motion."""
    way, turn = rng.normal(0, 0.3, 3), rng.normal(0, 2.0, 3)

    def stream(tick: int) -> tuple[np.ndarray, float]:
        sign = 1 if tick // hold % 2 == 0 else -1
        return pose_matrix(HOME[:3, 3] + sign * way, turned(sign * turn)), 0.04 + sign

    return stream


def to_the_axis(rng: np.random.Generator, hold: int) -> Stream:
    """Past the axis of the arm, where its first joint would have to race."""
    side = rng.normal(0, 0.03)
    return lambda tick: (pose_matrix(np.array([-0.3, side * (1 + tick / hold), 0.2]), np.eye(3)), 0.05)


STREAMS = {"leaps": leaps, "ram": ram, "shake": shake, "to the axis": to_the_axis}


@pytest.mark.parametrize("kind", STREAMS)
def test_nothing_makes_it_break_a_limit(kind: str) -> None:
    rng = np.random.default_rng(sum(map(ord, kind)))
    seen = 0
    for case in range(CASES):
        rate = (25.0, 50.0, 100.0)[case % 3]
        near_axis = {"workspace_low": [0.0, -0.3, 0.0]} if case % 2 or kind == "to the axis" else {}
        position = rng.uniform([0.12, -0.28, 0.06], [0.5, 0.28, 0.44])
        pose = pose_matrix(position * (0.5 if near_axis else 1.0) + [0.08, 0, 0.05], turned(rng.normal(0, 0.5, 3)))
        pose[:3, 3] = np.clip(pose[:3, 3], [0.1, -0.2, 0.06], [0.5, 0.2, 0.44])
        safety = safety_at(pose, rate, **near_axis)
        stream = STREAMS[kind](rng, int(rng.integers(1, 25)))
        poses, faults = drive(safety, stream, 15, rate)
        assert not faults, f"case {case} at {rate} Hz: {faults}"
        seen += len(poses)
    assert seen > CASES * 15


def test_a_long_run_keeps_the_limits_and_reaches_what_is_allowed() -> None:
    safety = safety_at(rate=100.0)
    rng = np.random.default_rng(3)
    assert not drive(safety, leaps(rng, 70), 500, 100.0)[1]
    corner = pose_matrix(np.array([0.8, 0.8, -1.0]), np.eye(3))
    position = drive(safety, lambda tick: (corner, 0.05), 300, 100.0)[0][-1][:3, 3]
    # The joints' reach, 0.6 m less its margin, cuts the corner of the workspace off.
    assert 0.55 < np.hypot(*position[:2]) < 0.571 and position[2] < 0.1


def test_what_keeps_the_limits_goes_through_unchanged() -> None:
    safety = safety_at(circle(0.0))
    for tick in range(900):  # gently from rest, then evenly
        target = circle(tick**2 / 800 / 200 if tick < 400 else (tick - 200) / 200)
        pose, _ = safety.follow(target, 0.05, safety.commanded[0])
        np.testing.assert_allclose(pose, target, atol=1e-9)
    assert not safety.clipped


def test_few_late_ticks_are_made_up_for_and_more_find_the_arm_at_rest() -> None:
    one, other, stalled = safety_at(), safety_at(), safety_at()
    target = HOME.copy()
    target[0, 3] += 0.1
    for _ in range(10):
        for _ in range(4):
            single = one.follow(target, 0.05, HOME)
        several, again = other.follow(target, 0.05, HOME, ticks=4), stalled.follow(target, 0.05, HOME, ticks=4)
    np.testing.assert_allclose(single[0], several[0], atol=1e-12)
    before, (after, _) = again[0], stalled.follow(target, 0.05, HOME, ticks=5)
    assert 0 < np.linalg.norm(after[:3, 3] - before[:3, 3]) <= 2.0 * 0.005**2 * (1 + 1e-9)  # one tick's, from rest


@pytest.mark.parametrize(
    ("rule", "start", "target", "gripper"),
    [
        ("workspace", [0.35, 0.28, 0.2], [0.35, 0.31, 0.2], 0.05),
        ("table", [0.35, 0.0, 0.08], [0.35, 0.0, 0.04], 0.05),
        ("step", [0.35, 0.0, 0.2], [0.35, 0.2, 0.2], 0.05),
        ("gripper", [0.35, 0.0, 0.2], [0.35, 0.0, 0.2], 0.2),
        ("joints", [0.55, 0.0, 0.2], [0.65, 0.0, 0.2], 0.05),
        ("speed", [0.35, 0.0, 0.2], [0.40, 0.0, 0.2], 0.05),
    ],
)
def test_a_rule_clips_or_stops(rule: str, start: list, target: list, gripper: float) -> None:
    start, target = (pose_matrix(np.array(position), np.eye(3)) for position in (start, target))
    high = {"workspace_high": [0.9, 0.3, 0.45]} if rule == "joints" else {}

    def follow(safety: SafetyFilter) -> None:
        safety.follow(start, 0.05, start)
        for _ in range(200 if rule == "joints" else 1):
            safety.follow(target, gripper, safety.commanded[0])

    clipping = safety_at(start, **high)
    follow(clipping)
    assert clipping.clipped[rule]
    stopping = safety_at(start, rules=dataclasses.replace(Rules(), **{rule: "stop"}), **high)
    with pytest.raises(SafetyStop, match=rule):
        follow(stopping)
    for _ in range(1000):  # it can still brake
        if stopping.at_rest:
            break
        stopping.brake()
    assert stopping.at_rest


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_stops(number: float) -> None:
    far, turned_to = HOME.copy(), HOME.copy()
    far[0, 3] = turned_to[1, 1] = number
    for pose, gripper in ((far, 0.05), (turned_to, 0.05), (HOME, number)):
        with pytest.raises(SafetyStop, match="finite"):
            safety_at().follow(pose, gripper, HOME)


def test_an_arm_that_stays_behind_stops() -> None:
    safety = safety_at()
    blocked = HOME.copy()
    with pytest.raises(SafetyStop, match="lag"):
        for tick in range(1000):  # a policy that pushes on, from where the commands are
            ahead = safety.commanded[0].copy()
            blocked[:3, 3] = HOME[:3, 3] if tick < 50 else HOME[:3, 3] - [0.21, 0, 0]
            safety.follow(ahead, 0.05, blocked)


def test_targets_never_lead_farther_than_a_step_from_a_blocked_arm() -> None:
    safety = safety_at(max_step=0.06)
    far = pose_matrix(np.array([0.55, 0.0, 0.2]), np.eye(3))
    ways = [np.linalg.norm(safety.follow(far, 0.05, HOME)[0][:3, 3] - HOME[:3, 3]) for _ in range(1000)]
    assert max(ways) < 0.0601 and ways[-1] > 0.0599


def test_the_arm_starts_only_where_it_may_be() -> None:
    outside = pose_matrix(np.array([0.35, 0.0, 0.02]), np.eye(3))
    with pytest.raises(SafetyStop, match=r"workspace.*0\.020.*release"):
        safety_at(outside)
    wrong = dataclasses.replace(state_at(HOME), joints=cylinder(HOME) + 0.5)
    with pytest.raises(SafetyStop, match="joints for the pose"):
        SafetyFilter(limits(), ARM, 200.0, FakeArm().joints_for).begin(wrong)


def test_an_arm_that_sags_at_rest_goes_on_from_its_last_command() -> None:
    safety = safety_at()
    for sag, kept in ((0.004, True), (0.03, False)):
        before = safety.commanded[0]
        lower = before.copy()
        lower[2, 3] -= sag
        safety.begin(state_at(lower))
        assert np.allclose(safety.commanded[0], before if kept else lower)


def test_the_gate_needs_no_governor() -> None:
    """It refuses by itself what a broken governor would let out."""
    gate = Gate(Bounds(limits(), ARM, 200.0))

    def send(way: float = 0.0, turn: float = 0.0, gripper: float = 0.05, joints: float = 0.0) -> None:
        motion = Motion.resting(pose_matrix(HOME[:3, 3] + [0, way, 0], turned([0, 0, turn])), (1.0, 1.0))
        gate.begin(Motion.resting(HOME, (1.0, 1.0)), 0.05, cylinder(HOME))
        gate.passes(motion, gripper, cylinder(motion.pose) + joints)

    for change, match in (
        ({"way": 0.01}, "speed"),
        ({"way": 0.001}, "acceleration"),
        ({"turn": 0.1}, "angular"),
        ({"way": 1.0}, "workspace"),
        ({"gripper": 0.5}, "gripper"),
        ({"gripper": 0.06}, "gripper speed"),
        ({"way": np.nan}, "finite"),
        ({"joints": 0.02}, "joint"),
    ):
        with pytest.raises(SafetyStop, match=match):
            send(**change)
    send(way=4e-5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"workspace_low": [0.6, -0.3, 0.0]}, "workspace_low"),
        ({"linear_speed": 0}, "linear_speed"),
        ({"linear_acceleration": float("inf")}, "linear_acceleration"),
        ({"table_height": 1.0}, "table_height"),
        ({"table_height": float("nan")}, "table_height"),
        ({"max_lag": 0.01}, "max_lag"),
        ({"joint_speed_share": 1.5}, "joint_speed_share"),
        ({"joint_margin": 2.0}, "joint_margin"),
        ({"rules": {"table": "ignore"}}, "safety.rules.*table"),
        ({"rules": {"lag": "clip"}}, "safety.rules.lag"),
    ],
)
def test_a_configuration_that_makes_no_sense_names_its_field(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Bounds(build_dataclass(SafetyLimits, LIMITS | change, "safety"), ARM, 200.0)
