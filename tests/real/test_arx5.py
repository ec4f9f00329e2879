"""The X5's driver against a stand-in of its SDK, which behaves as real-stanford/arx5-sdk's public sources say."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real import arx5
from unified_video_action.real.robots.arx5 import Arx5Arm, Arx5Setup
from unified_video_action.real.robots.interface import ArmCommand, RobotError

HOME = np.array([0.32, 0.0, 0.1565, 0.0, 0.0, 0.0])
LOW, HIGH = np.array([-3.14, -0.05, -0.1, -1.6, -1.57, -2]), np.array([2.618, 3.5, 3.2, 1.55, 1.57, 2])


class State:
    """EEFState and JointState: numbers behind methods, as pybind shows Eigen's vectors."""

    def __init__(self, numbers: np.ndarray, gripper_pos: float) -> None:
        self.timestamp, self.gripper_pos, self._numbers = 0.0, gripper_pos, np.array(numbers, float)

    def pose_6d(self) -> np.ndarray:
        return self._numbers

    pos = pose_6d

    def vel(self) -> np.ndarray:
        return np.zeros(6)


class Gain:
    def __init__(self, kp: np.ndarray, kd: np.ndarray, gripper_kp: float, gripper_kd: float) -> None:
        self._kp, self._kd, self.gripper_kp, self.gripper_kd = np.array(kp), np.array(kd), gripper_kp, gripper_kd

    def kp(self) -> np.ndarray:
        return self._kp

    def kd(self) -> np.ndarray:
        return self._kd


class Solver:
    """Of an arm whose joints are position and angles of its hand themselves."""

    def __init__(self, urdf, dof, low, high, base, eef, gravity) -> None:
        assert (base, eef) == ("base_link", "eef_link") and dof == 6

    def inverse_kinematics(self, pose: np.ndarray, near: np.ndarray) -> tuple[int, np.ndarray]:
        reachable = np.linalg.norm(pose[:3]) < 0.7
        return (0 if reachable else -3), np.array(pose)


class Controller:
    """Interpolates from where it was told to be to the newest target; its clock starts when it is made."""

    def __init__(self, robot: SimpleNamespace, settings: SimpleNamespace, interface: str) -> None:
        self.robot, self.settings, self.interface = robot, settings, interface
        self.began, self.calls, self.alive = time.monotonic(), [], True
        self.by_hand = HOME.copy()  # where somebody puts the arm while its motors are loose
        self.gain = Gain(np.zeros(6), settings.default_kd, 0.0, 0.0)
        self.way = (0.0, HOME.copy(), 0.0, HOME.copy())  # from when and where, to when and where
        self.gripper, self.froze_at = 0.04, 0.0

    def get_timestamp(self) -> float:
        return time.monotonic() - self.began

    def told(self) -> np.ndarray:
        start, here, end, there = self.way
        share = np.clip((self.get_timestamp() - start) / max(end - start, 1e-9), 0, 1)
        return here + share * (there - here)

    def _stamped(self, numbers: np.ndarray) -> State:
        state = State(numbers, self.gripper)
        state.timestamp = self.get_timestamp() if self.alive else self.froze_at
        return state

    def reached(self) -> np.ndarray:
        return self.told() if self.gain.kp().any() else self.by_hand

    def get_joint_state(self) -> State:
        return self._stamped(self.reached())

    get_eef_state = get_joint_state

    def get_eef_cmd(self) -> State:
        return self._stamped(self.told())

    def set_eef_cmd(self, command: State) -> None:
        assert self.alive, "a real one would wait for ever"
        now = self.get_timestamp()
        if command.timestamp == 0:
            command.timestamp = now + 0.1
        if command.timestamp <= now:
            raise ValueError("End time must be no less than current time")
        self.way, self.gripper = (now, self.told(), command.timestamp, command.pose_6d().copy()), command.gripper_pos
        self.calls.append(("target", command.pose_6d().copy(), command.gripper_pos, command.timestamp - now))

    def set_gain(self, gain: Gain) -> None:
        if not self.gain.kp().any() and gain.kp().any() and np.abs(self.reached() - self.told()).max() > 0.2:
            raise RuntimeError("Cannot set kp to non-zero when the joint pos cmd is far from current pos.")
        self.gain = gain
        self.calls.append(("gain", gain))

    def set_to_damping(self) -> None:
        self.by_hand = self.reached()
        self.gain = Gain(np.zeros(6), self.settings.default_kd, 0.0, 0.0)
        self.way = (0.0, self.by_hand, 0.0, self.by_hand)
        self.calls.append(("damping",))

    def reset_to_home(self) -> None:
        self.gain = Gain(self.settings.default_kp, self.settings.default_kd, 5.0, 0.2)
        self.calls.append(("home",))

    def die(self) -> None:
        """The emergency state: no new states, and the command lock is held for ever."""
        self.alive, self.froze_at = False, self.get_timestamp() - 1


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = ModuleType("arx5_interface")
    module.controllers = []

    def robot(model: str) -> SimpleNamespace:
        if model != "X5_umi":
            raise RuntimeError("Unknown robot model. Currently available: X5_umi")
        return SimpleNamespace(
            joint_dof=6, joint_pos_min=LOW, joint_pos_max=HIGH, joint_vel_max=np.array([5.0, 5, 5.5, 5.5, 5, 5]),
            gripper_width=0.086, urdf_path="X5_umi.urdf", base_link_name="base_link", eef_link_name="eef_link",
            gravity_vector=np.array([0, 0, -9.807]),
        )  # fmt: skip

    def settings(kind: str, dof: int) -> SimpleNamespace:
        assert (kind, dof) == ("cartesian_controller", 6)
        return SimpleNamespace(
            default_kp=np.full(6, 200.0), default_kd=np.full(6, 5.0), default_gripper_kp=5.0, default_gripper_kd=0.2
        )

    def controller(*args) -> Controller:
        module.controllers.append(Controller(*args))
        return module.controllers[-1]

    for name, call in (("RobotConfigFactory", robot), ("ControllerConfigFactory", settings)):
        setattr(module, name, SimpleNamespace(get_instance=lambda call=call: SimpleNamespace(get_config=call)))
    module.Arx5CartesianController, module.Arx5Solver = controller, Solver
    module.EEFState, module.Gain = State, Gain
    monkeypatch.setitem(sys.modules, "arx5_interface", module)
    (tmp_path / "can0").mkdir()
    monkeypatch.setattr(arx5, "NETWORKS", tmp_path)
    return module


@pytest.fixture
def arm(sdk: ModuleType) -> Iterator[Arx5Arm]:
    with Arx5Arm() as arm:
        yield arm


def controller_of(arm: Arx5Arm) -> Controller:
    return arm._controller


def targets(arm: Arx5Arm) -> list[tuple]:
    return [call for call in controller_of(arm).calls if call[0] == "target"]


def test_without_the_sdk_it_says_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arx5_interface", None)
    with pytest.raises(RobotError, match="build real-stanford/arx5-sdk"):
        Arx5Arm().connect()


def test_without_an_adapter_or_an_arm_it_says_so(sdk: ModuleType) -> None:
    with pytest.raises(RobotError, match="no such network interface.*ip link set up can7"):
        Arx5Arm(interface="can7").connect()
    with pytest.raises(RobotError, match="X6 on can0: Unknown robot model"):
        Arx5Arm("X6").connect()

    def silent(*args) -> None:
        raise RuntimeError("None of the motors are initialized")

    sdk.Arx5CartesianController = silent
    with pytest.raises(RobotError, match="None of the motors .* is it switched on"):
        Arx5Arm().connect()
    with pytest.raises(RobotError, match="not connected"):
        Arx5Arm().state()


def test_connecting_holds_the_arm_where_it_is(arm: Arx5Arm) -> None:
    controller = controller_of(arm)
    assert [call[0] for call in controller.calls] == ["target", "gain"]
    assert targets(arm)[0][1] == pytest.approx(HOME) and (controller.gain.kp() == 200).all()
    assert arm.limits.gripper_high == 0.086 and (arm.limits.joints_low == LOW).all()


def test_home_and_slower_joints_on_request(sdk: ModuleType) -> None:
    with Arx5Arm(home=True, joint_velocity=5.2) as arm:
        assert [call[0] for call in controller_of(arm).calls] == ["home"]
        assert arm.limits.joint_velocity.tolist() == [5, 5, 5.2, 5.2, 5, 5]
        assert controller_of(arm).robot.joint_vel_max.tolist() == [5, 5, 5.2, 5.2, 5, 5]


def test_the_hands_axes_are_umis(arm: Arx5Arm) -> None:
    pose = arm.state().pose
    assert pose[:3, 3] == pytest.approx(HOME[:3])
    right, down, ahead = pose[:3, :3].T
    assert ahead == pytest.approx([1, 0, 0])
    assert right == pytest.approx([0, -1, 0]) and down == pytest.approx([0, 0, -1])


def test_roll_pitch_yaw_turn_about_fixed_axes(sdk: ModuleType) -> None:
    with Arx5Arm(hand="maker", tool=(0.1, 0, 0)) as arm:
        roll, pitch, yaw = 0.1, 0.2, 0.3
        about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
        about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        about_z = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        turn = about_z @ about_y @ about_x
        eef = np.array([0.3, 0.1, 0.2, roll, pitch, yaw])
        controller_of(arm).way = (0.0, eef, 0.0, eef)
        pose = arm.state().pose
        assert pose == pytest.approx(pose_matrix(eef[:3] + turn @ [0.1, 0, 0], turn))
        arm.command(ArmCommand(time.monotonic() + 0.1, pose, 0.05))
        assert targets(arm)[-1][1] == pytest.approx(eef)


def test_what_is_commanded_is_reached_at_its_time(arm: Arx5Arm) -> None:
    controller_of(arm).began -= 123.4  # its clock has little to do with this computer's
    arm._synced = -np.inf
    goal = arm.state().pose.copy()
    goal[:3, 3] += [0.05, 0.1, 0]
    due = time.monotonic() + 0.2
    arm.command(ArmCommand(due, goal, 0.2))
    _, eef, gripper, ahead = targets(arm)[-1]
    assert ahead == pytest.approx(0.2, abs=0.05) and gripper == 0.086  # the gripper's end
    assert controller_of(arm).way[2] + controller_of(arm).began == pytest.approx(due, abs=0.005)
    time.sleep(0.25)
    state = arm.state()
    assert max(distance(state.pose, goal)) < 1e-9 and state.gripper == 0.086
    assert time.monotonic() - 0.05 < state.time <= time.monotonic() + 0.005


def test_a_time_that_has_passed_is_as_soon_as_the_sdk_allows(arm: Arx5Arm) -> None:
    arm.command(ArmCommand(time.monotonic() - 1, arm.state().pose, 0.04))
    assert 0 < targets(arm)[-1][3] <= arx5.SOON


def test_what_no_joints_reach_is_not_sent(arm: Arx5Arm, caplog: pytest.LogCaptureFixture) -> None:
    here, sent = arm.state().pose, len(targets(arm))
    for by in ([1.0, 0, 0], [0, 0, -0.3]):  # out of reach; a joint beyond its range
        goal = here.copy()
        goal[:3, 3] += by
        assert arm.joints_for(goal, np.zeros(6)) is None
        arm.command(ArmCommand(time.monotonic() + 0.1, goal, 0.04))
    assert arm.joints_for(np.full((4, 4), np.nan), np.zeros(6)) is None
    assert arm.joints_for(here, np.zeros(6)) == pytest.approx(HOME)
    assert len(targets(arm)) == sent and caplog.text.count("cannot reach") == 2


def test_stop_holds_where_it_was_told_to_be(arm: Arx5Arm) -> None:
    goal = arm.state().pose.copy()
    goal[1, 3] += 0.2
    arm.command(ArmCommand(time.monotonic() + 1, goal, 0.04))
    time.sleep(0.2)
    before = controller_of(arm).told()
    arm.stop()
    time.sleep(0.1)
    rest = controller_of(arm).told()
    assert 0.01 < rest[1] < 0.15 and rest == pytest.approx(before, abs=0.02)
    time.sleep(0.1)
    assert (controller_of(arm).told() == rest).all()


def test_a_dead_arm_is_noticed_before_a_call_that_would_hang(arm: Arx5Arm, caplog: pytest.LogCaptureFixture) -> None:
    pose = arm.state().pose
    controller_of(arm).die()
    with pytest.raises(RobotError, match="newest state is .* old"):
        arm.state()
    with pytest.raises(RobotError, match="emergency state, or its cable"):
        arm.command(ArmCommand(time.monotonic() + 0.1, pose, 0.04))
    with caplog.at_level(logging.ERROR):
        arm.stop()
    assert "cannot be stopped" in caplog.text and "use its emergency stop" in caplog.text
    controller_of(arm).alive = True


def test_released_and_moved_by_hand_it_does_not_jump_back(arm: Arx5Arm) -> None:
    controller = controller_of(arm)
    arm.release()
    assert not controller.gain.kp().any() and (controller.gain.kd() == 0.5).all()
    controller.by_hand = HOME + [0, 0.4, 0.1, 0, 0.3, 0]  # further than the SDK lets motors take hold
    here = arm.state().pose
    moved = []
    for _ in range(40):
        arm.command(ArmCommand(time.monotonic() + 0.01, here, 0.04))
        moved.append(controller.reached().copy())
        time.sleep(0.005)
    assert controller.gain.kp().any()
    assert np.abs(np.array(moved) - controller.by_hand).max() < 1e-6


def test_stopped_after_a_release_it_holds_where_it_is(arm: Arx5Arm) -> None:
    controller = controller_of(arm)
    arm.release()
    controller.by_hand = HOME + [0, 0.4, 0.1, 0, 0.3, 0]
    arm.stop()
    assert controller.gain.kp().any() and controller.reached() == pytest.approx(controller.by_hand)


def test_closing_lets_the_sdk_go(sdk: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    arm = Arx5Arm()
    arm.connect()
    arm.close()
    assert arm._controller is None and "the arm sinks" in caplog.text
    arm.close()


def test_a_setup_has_its_cameras() -> None:
    setup = Arx5Setup("L5_umi", "can1", [{"device": "/dev/video4", "latency": 0.12, "size": [224, 224], "fps": 60}])
    assert (setup.arm.model, setup.arm.interface) == ("L5_umi", "can1")
    assert (setup.cameras[0].device, setup.cameras[0].latency, setup.cameras[0].fps) == ("/dev/video4", 0.12, 60)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="hand='left'"):
        Arx5Arm(hand="left")
    with pytest.raises(ValueError, match="joint_velocity=0"):
        Arx5Arm(joint_velocity=0)
