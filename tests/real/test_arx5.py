"""The X5's driver against a stand-in of its SDK, which behaves as real-stanford/arx5-sdk's public sources say."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml

from tests.real.fakes import ROBOTS, ManualTime
from unified_video_action.instantiate import instantiate
from unified_video_action.poses import distance, pose_matrix
from unified_video_action.real.control.trajectory import turned
from unified_video_action.real.robots import arx5
from unified_video_action.real.robots.arx5 import Arx5Arm
from unified_video_action.real.robots.interface import ArmCommand, RobotError, Setup

HOME = np.array([0.32, 0.0, 0.1565, 0.0, 0.0, 0.0])
BY_HAND = HOME + [0, 0.4, 0.1, 0, 0.3, 0]  # farther than the SDK lets motors take hold
LOW, HIGH = np.array([-3.14, -0.05, -0.1, -1.6, -1.57, -2]), np.array([2.618, 3.5, 3.2, 1.55, 1.57, 2])
BEHIND = 23.4  # seconds by which the SDK's clock, which starts with its controller, lies behind this computer's


class State:
    """EEFState and JointState: numbers behind methods, as pybind shows Eigen's vectors."""

    def __init__(self, numbers: np.ndarray, gripper_pos: float, timestamp: float = 0.0) -> None:
        self.timestamp, self.gripper_pos, self._numbers = timestamp, gripper_pos, np.array(numbers, float)

    def pose_6d(self) -> np.ndarray:
        return self._numbers

    pos = pose_6d

    def vel(self) -> np.ndarray:
        return np.zeros(6)


class Gain:
    def __init__(self, kp: np.ndarray, kd: np.ndarray, gripper_kp: float, gripper_kd: float) -> None:
        self._kp, self._kd = np.array(kp), np.array(kd)

    def kp(self) -> np.ndarray:
        return self._kp

    def kd(self) -> np.ndarray:
        return self._kd


class Solver:
    """Of an arm whose joints are position and angles of its end effector themselves."""

    def __init__(self, urdf, dof, low, high, base, eef, gravity) -> None:
        assert (base, eef) == ("base_link", "eef_link") and dof == 6

    def inverse_kinematics(self, pose: np.ndarray, near: np.ndarray) -> tuple[int, np.ndarray]:
        return (0 if np.linalg.norm(pose[:3]) < 0.7 else -3), np.array(pose)


class Controller:
    """Interpolates from its last command to the newest."""

    def __init__(self, clock: ManualTime, robot: SimpleNamespace, settings: SimpleNamespace) -> None:
        self.clock, self.robot, self.settings, self.calls, self.alive = clock, robot, settings, [], True
        self.by_hand = HOME.copy()  # where somebody puts the arm while its motors are loose
        self.gain = Gain(np.zeros(6), settings.default_kd, 0.0, 0.0)
        self.way = (0.0, HOME.copy(), 0.0, HOME.copy())  # from when and where, to when and where
        self.gripper, self.died = 0.04, 0.0

    def get_timestamp(self) -> float:
        return self.clock() - BEHIND

    def commanded(self) -> np.ndarray:
        start, here, end, there = self.way
        return here + np.clip((self.get_timestamp() - start) / max(end - start, 1e-9), 0, 1) * (there - here)

    def measured(self) -> np.ndarray:
        return self.commanded() if self.gain.kp().any() else self.by_hand

    def get_joint_state(self) -> State:
        return State(self.measured(), self.gripper, self.get_timestamp() if self.alive else self.died)

    get_eef_state = get_joint_state

    def get_eef_cmd(self) -> State:
        return State(self.commanded(), self.gripper, self.get_timestamp())

    def set_eef_cmd(self, command: State) -> None:
        assert self.alive, "a real one would wait for ever"
        now = self.get_timestamp()
        command.timestamp = command.timestamp or now + 0.1
        if command.timestamp <= now:
            raise ValueError("End time must be no less than current time")
        self.way = (now, self.commanded(), command.timestamp, command.pose_6d().copy())
        self.gripper = command.gripper_pos
        self.calls.append(("target", command.pose_6d().copy(), command.gripper_pos, command.timestamp - now))

    def set_gain(self, gain: Gain) -> None:
        if not self.gain.kp().any() and gain.kp().any() and np.abs(self.measured() - self.commanded()).max() > 0.2:
            raise RuntimeError("Cannot set kp to non-zero when the joint pos cmd is far from current pos.")
        self.gain = gain
        self.calls.append(("gain",))

    def set_to_damping(self) -> None:
        self.by_hand = self.measured()
        self.gain = Gain(np.zeros(6), self.settings.default_kd, 0.0, 0.0)
        self.way = (0.0, self.by_hand, 0.0, self.by_hand)
        self.calls.append(("damping",))

    def targets(self) -> list[tuple]:
        return [call for call in self.calls if call[0] == "target"]


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module, clock = ModuleType("arx5_interface"), ManualTime()

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
        kp, kd = np.full(6, 200.0), np.full(6, 5.0)
        return SimpleNamespace(default_kp=kp, default_kd=kd, default_gripper_kp=5.0, default_gripper_kd=0.2)

    for name, call in (("RobotConfigFactory", robot), ("ControllerConfigFactory", settings)):
        setattr(module, name, SimpleNamespace(get_instance=lambda call=call: SimpleNamespace(get_config=call)))
    module.Arx5CartesianController = lambda robot, settings, interface: Controller(clock, robot, settings)
    module.Arx5Solver, module.EEFState, module.Gain, module.clock = Solver, State, Gain, clock
    monkeypatch.setitem(sys.modules, "arx5_interface", module)
    monkeypatch.setattr(arx5, "time", SimpleNamespace(monotonic=clock, sleep=clock.sleep))
    (tmp_path / "can0").mkdir()
    monkeypatch.setattr(arx5, "NETWORKS", tmp_path)
    return module


@pytest.fixture
def arm(sdk: ModuleType) -> Iterator[Arx5Arm]:
    with Arx5Arm() as arm:
        yield arm


def test_what_is_missing_or_wrong_is_named(sdk: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args) -> None:
        raise RuntimeError("None of the motors are initialized")

    for options, message in (
        ({"interface": "can7"}, "no such network interface.*ip link set up can7"),
        ({"model": "X6"}, "X6 on can0: Unknown robot model"),
    ):
        with pytest.raises(RobotError, match=message):
            Arx5Arm(**options).connect()
    sdk.Arx5CartesianController = silent
    with pytest.raises(RobotError, match="None of the motors .* is it switched on"):
        Arx5Arm().connect()
    monkeypatch.setitem(sys.modules, "arx5_interface", None)
    with pytest.raises(RobotError, match="build real-stanford/arx5-sdk"):
        Arx5Arm().connect()


def test_on_connecting_it_holds_where_it_stands(arm: Arx5Arm, caplog) -> None:
    controller = arm._controller
    assert [call[0] for call in controller.calls] == ["target", "gain"]
    assert controller.targets()[0][1] == pytest.approx(HOME) and (controller.gain.kp() == 200).all()
    assert arm.limits.gripper_high == 0.086 and (arm.limits.joints_low == LOW).all()
    arm.close()
    assert arm._controller is None and "the arm sinks" in caplog.text
    instantiate(yaml.safe_load((ROBOTS / "arx5.yaml").read_text())["setup"], Setup, "setup")


def test_axes_are_umis_and_angles_turn_about_fixed_axes(arm: Arx5Arm, sdk: ModuleType) -> None:
    pose = arm.state().pose
    assert pose[:3, 3] == pytest.approx(HOME[:3])
    assert pose[:3, :3].T == pytest.approx(np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]))  # right, down, ahead
    axes = pose[:3, :3]
    with Arx5Arm(tool=(0.1, 0, 0)) as arm:
        eef = np.array([0.3, 0.1, 0.2, 0.1, 0.2, 0.3])  # roll, pitch and yaw about x, y and z, which stay
        turn = turned([0, 0, 0.3]) @ turned([0, 0.2, 0]) @ turned([0.1, 0, 0])
        arm._controller.way = (0.0, eef, 0.0, eef)
        pose = arm.state().pose
        assert pose == pytest.approx(pose_matrix(eef[:3] + turn @ [0.1, 0, 0], turn @ axes))
        arm.command(ArmCommand(sdk.clock() + 0.1, pose, 0.05))
        assert arm._controller.targets()[-1][1] == pytest.approx(eef)


def test_a_command_holds_for_its_time(arm: Arx5Arm, sdk: ModuleType) -> None:
    goal = arm.state().pose.copy()
    goal[:3, 3] += [0.05, 0.1, 0]
    due = sdk.clock() + 0.2
    arm.command(ArmCommand(due, goal, 0.2))
    _, _, gripper, ahead = arm._controller.targets()[-1]
    assert ahead == pytest.approx(0.2) and gripper == 0.086  # the gripper's end
    sdk.clock.sleep(0.25)
    state = arm.state()
    assert max(distance(state.pose, goal)) < 1e-9 and state.gripper == 0.086 and state.time == pytest.approx(due + 0.05)
    arm.command(ArmCommand(due - 1, goal, 0.04))  # has passed: as soon as the SDK allows
    assert 0 < arm._controller.targets()[-1][3] <= arx5.SOON + 1e-9


def test_what_no_joints_reach_is_not_sent(arm: Arx5Arm, sdk: ModuleType, caplog) -> None:
    here, sent = arm.state().pose, len(arm._controller.targets())
    for by in ([1.0, 0, 0], [0, 0, -0.3]):  # out of reach; a joint beyond its range
        goal = here.copy()
        goal[:3, 3] += by
        assert arm.joints_for(goal, np.zeros(6)) is None
        arm.command(ArmCommand(sdk.clock() + 0.1, goal, 0.04))
    assert arm.joints_for(np.full((4, 4), np.nan), np.zeros(6)) is None
    assert arm.joints_for(here, np.zeros(6)) == pytest.approx(HOME)
    assert len(arm._controller.targets()) == sent and caplog.text.count("cannot reach") == 2


def test_stop_holds_at_the_present_command(arm: Arx5Arm, sdk: ModuleType) -> None:
    goal = arm.state().pose.copy()
    goal[1, 3] += 0.2
    arm.command(ArmCommand(sdk.clock() + 1, goal, 0.04))
    sdk.clock.sleep(0.2)
    before = arm._controller.commanded()
    arm.stop()
    sdk.clock.sleep(0.1)
    assert before[1] == pytest.approx(0.04) and arm._controller.commanded() == pytest.approx(before)


def test_a_dead_arm_is_noticed_before_a_call_that_would_hang(arm: Arx5Arm, sdk: ModuleType, caplog) -> None:
    pose = arm.state().pose
    arm._controller.alive, arm._controller.died = False, arm._controller.get_timestamp() - 1
    with pytest.raises(RobotError, match="newest state is .* old"):
        arm.state()
    with pytest.raises(RobotError, match="emergency state, or its cable"):
        arm.command(ArmCommand(sdk.clock() + 0.1, pose, 0.04))
    arm.stop()
    assert "cannot be stopped" in caplog.text and "use its emergency stop" in caplog.text


def test_motors_that_do_not_take_hold_are_an_error_and_the_next_try_starts_anew(
    arm: Arx5Arm, sdk: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def refuse(self, gain: Gain) -> None:
        raise RuntimeError("the motors are too far from their command")

    controller = arm._controller
    arm.release()
    command = ArmCommand(sdk.clock() + 1, arm.state().pose, 0.04)
    with monkeypatch.context() as patch:
        patch.setattr(Controller, "set_gain", refuse)
        arm.stop()
        assert "cannot be stopped" in caplog.text
        sdk.clock.sleep(1.0)
        arm.command(command)
        sdk.clock.sleep(arx5.ENGAGE)
        with pytest.raises(RobotError, match="does not take hold: the motors"):
            arm.command(command)
        other = Arx5Arm()
        for _ in range(2):
            with pytest.raises(RobotError, match="does not take hold"):
                other.connect()
    controller.by_hand = BY_HAND
    arm.command(command)
    assert controller.targets()[-1][1] == pytest.approx(BY_HAND)  # where the arm is now
    sdk.clock.sleep(arx5.ENGAGE)
    arm.command(command)
    assert controller.gain.kp().any()


def test_released_and_moved_by_hand_it_does_not_jump_back(arm: Arx5Arm, sdk: ModuleType) -> None:
    controller = arm._controller
    arm.release()
    assert not controller.gain.kp().any() and (controller.gain.kd() == 0.5).all()
    controller.by_hand = BY_HAND
    here = arm.state().pose
    for _ in range(40):
        arm.command(ArmCommand(sdk.clock() + 0.01, here, 0.04))
        assert controller.measured() == pytest.approx(BY_HAND, abs=1e-6)
        sdk.clock.sleep(0.005)
    assert controller.gain.kp().any()
    arm.release()
    controller.by_hand = HOME
    arm.stop()  # takes hold as well
    assert controller.gain.kp().any() and controller.measured() == pytest.approx(HOME)
