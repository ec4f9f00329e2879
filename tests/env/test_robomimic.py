"""robosuite's tasks as environments: views, poses, seeds, success, and what robomimic's own wrapper shows."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.lift_demos import CAMERAS, LIFT, SIZE

pytest.importorskip("robosuite", reason=LIFT)

from unified_video_action.demos.lift import LiftExpert
from unified_video_action.env.robomimic.env import RobomimicEnv, Simulator, environment_arguments
from unified_video_action.rotations import matrix_to_6d, to_pose_actions


@pytest.fixture(scope="module")
def env():
    """Lift with small frames; tests that need none set `_drawn`."""
    env = RobomimicEnv("Lift", CAMERAS, image_size=SIZE, samples=0)
    yield env
    env.close()


def test_torch_compiles_in_a_process_that_has_drawn() -> None:
    """OSMesa's LLVM and triton's do not share a process when the first comes first."""
    words = "from unified_video_action.env.system_libraries import prepare_rendering; prepare_rendering(); "
    subprocess.run([sys.executable, "-c", words + "import mujoco; import torch._dynamo"], check=True, timeout=120)


@pytest.fixture
def blind(env, monkeypatch):
    monkeypatch.setattr(env, "_drawn", ())
    return env


def pose_action(position: np.ndarray, rotation: np.ndarray, gripper: float) -> np.ndarray:
    return np.concatenate([position, matrix_to_6d(rotation), [gripper]]).astype(np.float32)


def test_observations_are_upright_and_as_announced(env) -> None:
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation) and info == {"score": 0.0, "is_success": False}
    main, wrist = (observation[f"{camera}_image"].mean(axis=-1) for camera in CAMERAS)
    assert main[: SIZE // 8].mean() < main[-SIZE // 8 :].mean() - 20  # the robot stands behind a white table
    assert (
        wrist[-SIZE // 8 :].mean() < wrist[: SIZE // 8].mean() - 50
    )  # the end effector is at the lower edge of its own view
    other = RobomimicEnv("Lift", CAMERAS[:1], image_size=SIZE, samples=0)
    theirs, _ = other.reset(seed=3)
    for each, shown in ((env, observation), (other, theirs)):  # two simulators draw each its own
        np.testing.assert_array_equal(each.render(), shown["agentview_image"])
    assert (theirs["agentview_image"] != observation["agentview_image"]).any()
    other.close()


def test_an_episode_is_a_function_of_its_seed(blind) -> None:
    def play(env, seed: int) -> list[np.ndarray]:
        env.reset(seed=seed)
        position, rotation = env.simulator.end_effector_pose()
        states = [env.simulator.state]
        for step in range(6):
            env.step(pose_action(position + [0.01 * step, 0.02, -0.01 * step], rotation, 1.0 if step > 2 else -1.0))
            states.append(env.simulator.state)
        return states

    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, other, again = play(blind, 7), play(blind, 8), play(blind, 7)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.testing.assert_array_equal(first, again)
    assert np.abs(first[0] - other[0]).max() > 1e-3
    new = RobomimicEnv("Lift", CAMERAS, observe_images=False)
    assert set(new.observation_space) == {"robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"}
    np.testing.assert_array_equal(play(new, 7), first)  # whatever robosuite drew when it was made
    new.close()


def test_the_hand_goes_to_the_commanded_pose_and_the_gripper_closes_above_0(blind) -> None:
    observation, _ = blind.reset(seed=2)
    before = Rotation.from_quat(observation["robot0_eef_quat"])
    position, rotation = blind.simulator.end_effector_pose()
    goal, turned = position + [0.04, -0.05, -0.03], Rotation.from_euler("z", 0.4).as_matrix() @ rotation
    widths = []
    for steps, command in ((12, 1.0), (15, -1.0)):
        for _ in range(steps):
            observation, score, *_ = blind.step(pose_action(goal, turned, command))
        widths.append(np.ptp(observation["robot0_gripper_qpos"]))
    assert widths[0] < 0.01 < 0.07 < widths[1] and score == 0.0
    np.testing.assert_allclose(observation["robot0_eef_pos"], goal, atol=0.01)
    assert Rotation.from_matrix(blind.simulator.end_effector_pose()[1] @ turned.T).magnitude() < 0.1
    turn = Rotation.from_quat(observation["robot0_eef_quat"])  # of the end effector's body, which turns along
    assert abs((turn * before.inv()).magnitude() - 0.4) < 0.1


def test_success_ends_the_episode(blind) -> None:
    blind.reset(seed=4)
    expert, terminated, steps = LiftExpert(0), False, 0
    while not terminated:
        _, reward, terminated, truncated, info = blind.step(to_pose_actions(expert.act(blind.simulator)))
        steps += 1
        assert steps < 80 and not truncated and terminated == info["is_success"]
        assert reward == info["score"] == float(terminated)
    assert blind.simulator.body_pose("cube_main")[0][2] > 0.84  # 4 cm above the table


def another_robosuite(_) -> None:
    arguments = environment_arguments("Lift", absolute=True)
    arguments["env_kwargs"]["lite_physics"] = True
    Simulator(arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.zeros(7)), "action must be 10 finite numbers"),
        (lambda env: env.step(np.zeros(10)), "names no rotation"),
        (lambda env: env.simulator.restore(np.zeros(5)), "a state of .* does not fit the model"),
        (another_robosuite, r"env_kwargs of another robosuite than 1\.4\.1: .*lite_physics"),
        (lambda _: RobomimicEnv("Chess"), "task='Chess': robosuite knows .*Lift.*ToolHang"),
        (lambda _: RobomimicEnv("Lift", ["sideviews"]), r"cameras=\['sideviews'\]: Lift has .*agentview"),
    ],
)
def test_bad_input_is_named(blind, call, message: str) -> None:
    blind.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(blind)


def test_robomimics_own_wrapper_shows_the_same(env, monkeypatch) -> None:
    pytest.importorskip("robomimic", reason="robomimic is not installed; add the simulators with: make sims")
    monkeypatch.setitem(sys.modules, "mujoco_py", ModuleType("mujoco_py"))  # imported there, and not used
    probe = ModuleType("egl_probe")  # which has to be compiled, and would say which GPUs can draw
    probe.get_available_devices = list
    monkeypatch.setitem(sys.modules, "egl_probe", probe)
    import robomimic.utils.obs_utils as obs_utils
    from robomimic.envs.env_robosuite import EnvRobosuite

    images = [f"{camera}_image" for camera in CAMERAS]
    obs_utils.initialize_obs_modality_mapping_from_dict({"rgb": images, "low_dim": ["robot0_eef_pos"]})
    arguments = environment_arguments("Lift", absolute=True)
    sizes = {"camera_names": list(CAMERAS), "camera_heights": SIZE, "camera_widths": SIZE}
    theirs = EnvRobosuite("Lift", use_image_obs=True, postprocess_visual_obs=False, **arguments["env_kwargs"], **sizes)
    observation, _ = env.reset(seed=11)
    theirs.env.sim._render_context_offscreen.gl_ctx.make_current()  # or they free what belongs to the other
    shown = theirs.reset_to({"states": env.simulator.state, "model": env.simulator.model_xml()})
    theirs.env.close()
    for name in ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"):
        np.testing.assert_allclose(observation[name], shown[name], atol=1e-6)
    for name in images:  # they draw each pixel four times, so edges differ
        difference = np.abs(observation[name].astype(int) - shown[name])
        assert difference.mean() < 3 and np.abs(observation[name].astype(int) - shown[name][::-1]).mean() > 10


def test_tool_hang_as_the_paper_sees_it() -> None:
    env = RobomimicEnv(image_size=84, samples=0)
    observation, info = env.reset(seed=100000)
    assert env.observation_space.contains(observation) and not info["is_success"]
    for name in ("sideview_image", "robot0_eye_in_hand_image"):
        frame = observation[name].astype(int)
        brown = (frame[..., 0] > 120) & (frame[..., 0] - frame[..., 2] > 60)  # the stand
        rows = np.flatnonzero(brown.any(axis=1))
        assert brown.sum() > 100 and rows.mean() > 84 / 3
    position, rotation = env.simulator.end_effector_pose()
    env._drawn = ()
    moved, *_ = env.step(pose_action(position + [0, 0, 0.03], rotation, 1.0))
    assert moved["robot0_eef_pos"][2] > observation["robot0_eef_pos"][2]
    env.close()
