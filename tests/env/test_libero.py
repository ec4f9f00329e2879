"""LIBERO in the simulator: which way is up, open, left and absolute; start states, rest, and repeatability."""

import numpy as np
import pytest

from tests.libero_recording import LIBERO, TASK, libero_cache, solved_state  # noqa: F401

pytest.importorskip("libero", reason=LIBERO)

from unified_video_action.env.libero.env import LiberoEnv
from unified_video_action.rotations import axis_angle_to_6d, matrix_to_6d

SIZE = 64
OTHER = 9  # its scene is built with other fixtures


@pytest.fixture(scope="module")
def env(libero_cache):  # noqa: F811
    env = LiberoEnv(tasks=[TASK, OTHER], image_size=SIZE, wrist=True, cache_dir=libero_cache)
    yield env
    env.close()


def hold(env: LiberoEnv, gripper: float, offset=(0, 0, 0), turn=None) -> np.ndarray:
    """The absolute action (10,) that keeps the end effector's pose, but for an offset in metres or a rotation (6,)."""
    position, rotation = env._scene.end_effector_pose()
    return np.array([*(position + offset), *(matrix_to_6d(rotation) if turn is None else turn), gripper])


def repeat(env: LiberoEnv, action: np.ndarray, steps: int) -> dict:
    """Step without drawing; the robot's states."""
    drawn, env._drawn = env._drawn, ()
    for _ in range(steps):
        observation = env.step(action)[0]
    env._drawn = drawn
    return observation


def project(env: LiberoEnv, camera: str, point: np.ndarray) -> np.ndarray:
    """(row, column) at which a camera sees a point, by the geometry of MuJoCo's cameras, which look along -z."""
    sim = env._scene._env.sim
    number = sim.model.camera_name2id(camera)
    x, y, z = sim.data.cam_xmat[number].reshape(3, 3).T @ (point - sim.data.cam_xpos[number])
    focal = SIZE / 2 / np.tan(np.deg2rad(sim.model.cam_fovy[number]) / 2)
    return np.array([SIZE / 2 - focal * y / -z, SIZE / 2 + focal * x / -z])


def test_observations_of_an_episode(env: LiberoEnv) -> None:
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["instruction"] == "put both moka pots on the stove"
    assert info == {"score": 0.0, "is_success": False, "task": "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"}
    np.testing.assert_array_equal(env.render(), observation["agentview_rgb"])
    env.mirrored = True
    np.testing.assert_array_equal(env.render(), observation["agentview_rgb"][:, ::-1])
    env.mirrored = False


@pytest.mark.parametrize(
    ("camera", "offset"),  # from the end effector, in metres: off the middle of the view
    [("agentview", [0.35, 0.2]), ("robot0_eye_in_hand", [0.12, 0.08])],
)
def test_frames_are_upright_and_not_mirrored(env: LiberoEnv, camera: str, offset: list[float]) -> None:
    env.reset(options={"task": 0, "state": 0})
    scene = env._scene
    sim, state = scene._env.sim, scene.state
    start = 1 + sim.model.get_joint_qpos_addr("moka_pot_1_joint0")[0]
    state[start : start + 2] = scene.end_effector_pose()[0][:2] + offset
    scene.show(state)
    pot = np.array(sim.data.get_body_xpos("moka_pot_1_main"))
    with_pot = scene.frame(camera, SIZE).astype(int)
    state[start : start + 3] = [5, 5, -5]
    scene.show(state)
    changed = np.abs(scene.frame(camera, SIZE) - with_pot).max(-1) > 30
    rows, columns = np.nonzero(changed)
    seen, expected = np.array([rows.mean(), columns.mean()]), project(env, camera, pot)
    assert changed.sum() > 10 and np.abs(seen - expected).max() < 0.12 * SIZE  # its shadow counts, too
    for wrong in ([SIZE - expected[0], expected[1]], [expected[0], SIZE - expected[1]]):  # upside down, mirrored
        assert np.abs(seen - wrong).max() > 0.15 * SIZE


def test_episodes_begin_at_rest_and_the_gripper_opens_below_zero_and_closes_above(env: LiberoEnv) -> None:
    observation, _ = env.reset(seed=0)
    stored, state = env.tasks[0].start_states()[0], env._scene.state
    assert state[0] - stored[0] == pytest.approx(10 / 20)  # 10 steps of a twentieth of a second
    assert np.abs(state[1 + env._scene._env.sim.model.nq :][9:]).max() < 0.02  # speeds of the objects
    np.testing.assert_allclose(state[1:8], stored[1:8], atol=0.05)  # the arm has stayed
    assert stored[8] < 0.03 and observation["gripper_qpos"] == pytest.approx([0.04, -0.04], abs=0.002)
    assert repeat(env, hold(env, 1.0), 12)["gripper_qpos"] == pytest.approx([0, 0], abs=0.003)
    assert repeat(env, hold(env, -0.2), 12)["gripper_qpos"] == pytest.approx([0.04, -0.04], abs=0.003)


def test_absolute_actions_are_poses_in_the_worlds_frame(env: LiberoEnv) -> None:
    env.reset(seed=0)
    target = hold(env, -1, (0.05, -0.06, -0.08), axis_angle_to_6d(np.array([np.pi, 0, 0])))
    after = repeat(env, target, 40)
    np.testing.assert_allclose(after["ee_pos"], target[:3], atol=0.006)
    np.testing.assert_allclose(after["ee_rotation"], target[3:9], atol=0.03)


def test_relative_actions_are_steps(env: LiberoEnv) -> None:
    env.reset(seed=0)
    scene, before = env._scene, env._scene.end_effector_pose()[0]
    scene.relative = True
    for _ in range(5):
        scene.step(np.array([0, 0.5, 0, 0, 0, 0, -1.0]))
    moved = scene.end_effector_pose()[0] - before
    assert moved[1] > 0.02 and np.abs(moved[[0, 2]]).max() < 0.01
    other = LiberoEnv(tasks=[TASK], control="relative", observe_images=False, cache_dir=str(env.cache))
    assert other.action_space.shape == (7,)
    other._scene, other._starts = scene, env._starts  # builds no second one
    assert other.reset(seed=0)[0].keys() == {"ee_pos", "ee_rotation", "gripper_qpos", "instruction"} and scene.relative
    env.reset(seed=0)
    assert not scene.relative


def test_a_solved_task_ends_its_episode(env: LiberoEnv) -> None:
    env.reset(seed=0)
    env._scene.show(solved_state(env._scene))
    action = hold(env, -1)
    repeat(env, action, 11)
    _, reward, terminated, truncated, info = env.step(action)
    assert info["is_success"] is True and info["score"] == reward == 1.0 and terminated is True and truncated is False
    assert env.reset(seed=0)[1]["is_success"] is False


def test_seeds_decide_episodes_whatever_was_played_before(env: LiberoEnv) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002

    def play(seed: int) -> list[np.ndarray]:
        first = env.reset(seed=seed)[0]
        position = env._scene._env.sim.model.body_pos[env._scene._env.sim.model.body_name2id("flat_stove_1_main")]
        for step in range(6):
            repeat(env, hold(env, -1, (0.01 * step, 0, -0.02)), 1)
        return [first["agentview_rgb"], first["ee_pos"], np.array(position), env._scene.state]

    fresh = play(4)  # an even seed is of the first task
    other = play(2)
    assert env.reset(seed=3)[1]["task"] == env.tasks[1].name  # builds another scene
    again = play(4)  # rebuilds the first one
    repeated = play(4)
    for a, b, c, d in zip(fresh, again, repeated, other):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(b, c)
        assert (a != d).any()
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.step(np.zeros(7)), "action must be 10 finite numbers"),
        (lambda env: env.step(np.zeros(10)), "names no rotation"),
        (lambda env: env.reset(options={"state": 50}), "2 tasks of 50 start states"),
        (lambda env: env._scene.show(np.zeros(5)), r"a state of \(5,\) numbers does not fit the model"),
    ],
)
def test_bad_input_is_named(env: LiberoEnv, call, message: str) -> None:
    if env._scene is None:
        env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        call(env)
