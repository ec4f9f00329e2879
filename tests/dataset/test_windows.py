"""Windows: rows, states and actions worked out by hand; latencies, noise, times, normalisation, what is predicted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.dataset.recordings import numbered_frames, read_numbers, write_umi
from tests.reseed import tensor_list
from tests.shrunk import read
from unified_video_action.compat.published import infer_spec
from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.formats.umi import UmiSource
from unified_video_action.dataset.formats.zarr import ZarrSource
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.sequence import (
    WindowOptions,
    clamp_rows,
    random_history,
    scattered_history,
    split_episodes,
    window_rows,
)
from unified_video_action.dataset.transforms import (
    END_EFFECTOR_STATES,
    GRIPPER,
    POSE,
    START_POSE,
    EndEffectorWindows,
    StartNoise,
    WindowStates,
    normal,
    rows_between,
)
from unified_video_action.policy.uva_transform import model_spec
from unified_video_action.poses import EndEffectorSpec, distance, from_vector
from unified_video_action.spec import Horizon, LatentShape, TaskSpec

CAMERA = "camera0_rgb"
RIGHT = np.pi / 2
STATES = {"position": "position", "rotation": "rotation_6d", "width": "gripper", "from_start": "rotation_6d_from_start"}
END_EFFECTOR = EndEffectorSpec(STATES)
WANTED = Wanted((CAMERA,), END_EFFECTOR_STATES, 10)
ROWS = 120
SHOWN = numbered_frames(range(ROWS), (48, 48))


def windows(history: list, future: list, now: list, start: list, training: bool = False, seeds=(0,)) -> WindowStates:
    """One window of given poses, repeated for each seed; the gripper opens by 1 cm a state."""

    def section(poses: list) -> dict[str, np.ndarray]:
        count = len(poses)
        widths = np.arange(count)[:, None] / 100
        own = {POSE: np.array(poses, np.float32), GRIPPER: widths, START_POSE: np.array([start] * count, np.float32)}
        return {name: np.repeat(np.array(values)[None], len(seeds), axis=0) for name, values in own.items()}

    return WindowStates(
        history=section(history),
        now=section([now]),
        future=section(future),
        targets=section(future),
        past_targets={},
        action=np.zeros((len(seeds), len(future), 10)),
        history_action=None,
        action_is_pad=np.zeros((len(seeds), len(future)), bool),
        seeds=np.array(seeds),
        training=training,
    )


# -- poses worked out by hand ------------------------------------------------------------------------------------------


def test_states_and_actions_of_quarter_turns() -> None:
    """Now the end effector is at (1, 2, 3), turned by 90 degrees about z: x is the world's y, y the world's -x."""
    now, before = [1, 2, 3, 0, 0, RIGHT], [1, 0, 3, 0, 0, 0]
    later = [1, 5, 3.5, 0, 0, 2 * RIGHT]  # 3 m ahead of it, half a metre higher, turned a quarter more
    made = EndEffectorWindows(END_EFFECTOR)(windows([before, now], [later, now], now, before))
    history, action = made.history, made.action[0]
    # Two metres behind in the world's y are two metres behind in the end effector's x.
    assert np.allclose(history["position"][0], [[-2, 0, 0], [0, 0, 0]], atol=1e-6)
    # It was turned by -90 degrees then: rows (0, 1, 0) and (-1, 0, 0) of the matrix.
    assert np.allclose(history["rotation"][0], [[0, 1, 0, -1, 0, 0], [1, 0, 0, 0, 1, 0]], atol=1e-6)
    assert np.allclose(history["width"][0, :, 0], [0, 0.01])
    assert np.allclose(history["from_start"][0], [[1, 0, 0, 0, 1, 0], [0, -1, 0, 1, 0, 0]], atol=1e-6)
    assert np.allclose(action[0], [3, 0, 0.5, 0, -1, 0, 1, 0, 0, 0], atol=1e-6)
    assert np.allclose(action[1], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0.01], atol=1e-6)
    # Where the world's frame is kept: later is turned by half a turn, rows (-1, 0, 0) and (0, -1, 0).
    assert np.allclose(made.future["from_start"][0, 0], [-1, 0, 0, 0, -1, 0], atol=1e-6)
    absolute = EndEffectorWindows(EndEffectorSpec(STATES, relative_states=False, relative_actions=False))
    made = absolute(windows([before], [later], now, before))
    assert np.allclose(made.history["position"][0, 0], [1, 0, 3], atol=1e-6)
    assert np.allclose(made.action[0, 0], [1, 5, 3.5, -1, 0, 0, 0, -1, 0, 0], atol=1e-6)


def test_between_rows_numbers_are_mixed_and_poses_turn_along_the_shortest_way() -> None:
    poses = np.array([[0, 0, 0, 0, 0, 0], [3, 0, 6, 0, 0, RIGHT], [3, 4, 6, 0, 0, 0]])
    third, late, whole = rows_between(poses, np.array([1 / 3, 1.75, 2.0]), poses=True)
    assert np.allclose(third, [1, 0, 2, 0, 0, RIGHT / 3])  # 30 degrees
    assert np.allclose(late, [3, 3, 6, 0, 0, RIGHT / 4]) and np.allclose(whole, poses[2])
    # From 170 to -170 degrees the short way leads over 180: mixed numbers would give 0.
    across = np.radians([[0, 0, 0, 0, 0, 170], [0, 0, 0, 0, 0, -170]])
    assert np.allclose(np.abs(rows_between(across, np.array([0.25]), poses=True)[0, 5]), np.radians(175))
    # From a quarter about x to a quarter about y the turn is 120 degrees about (-1, 1, 1) / sqrt(3): half of it, 60.
    corner = np.array([[0, 0, 0, RIGHT, 0, 0], [0, 0, 0, 0, RIGHT, 0]])
    half = from_vector(rows_between(corner, np.array([0.5]), poses=True))[0]
    to_start, to_end = (distance(half, from_vector(end))[1] for end in corner)
    assert np.allclose([to_start, to_end], np.radians(60))
    assert rows_between(poses, np.array([1, 0])).tolist() == poses[[1, 0]].tolist()


# -- whole windows -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """Two episodes of 60 rows: the end effector moves 1 cm a row along x, turned about z in the second one."""
    poses = np.zeros((ROWS, 6))
    poses[:, 0] = np.arange(ROWS) / 100
    poses[60:, 5] = RIGHT
    widths = np.arange(ROWS)[:, None] / 1000
    return write_umi(tmp_path_factory.mktemp("windows") / "a.zarr.zip", SHOWN, poses, widths, ends=[60, 120])


def dataset(recording: Path, **options) -> MixtureDataset:
    given = {"horizon": Horizon(action_offset=1), "val_ratio": 0, "end_effector": END_EFFECTOR, **options}
    return MixtureDataset(UmiSource(str(recording)), WANTED, pad_before=None, pad_after=None, **given)


def shown(video: torch.Tensor) -> list[int]:
    return read_numbers(np.moveaxis(video.numpy(), 1, -1)).tolist()


def test_every_third_row_makes_a_step_and_every_row_may_be_now(recording) -> None:
    data = dataset(recording, down_sample=3, horizon=Horizon(3, 2, 2, 4, 1))
    assert len(data) == ROWS
    sample = data[(30, 0)]
    assert shown(sample["history"][CAMERA]) == [18, 24, 30] and shown(sample["future"][CAMERA]) == [36, 42]
    # Actions at rows 33, 36, 39, 42: 3 cm apart, the first one after now.
    assert np.allclose(sample["action"][:, 0], [0.03, 0.06, 0.09, 0.12], atol=1e-6)
    assert np.allclose(sample["action"][:, 9], [0.033, 0.036, 0.039, 0.042], atol=1e-6)
    assert np.allclose(sample["low_dim"]["position"][:, 0], [-0.12, -0.06, 0], atol=1e-6)
    assert not sample["action_is_pad"].any() and not sample["frame_is_pad"].any()


def test_the_chunk_before_now_is_relative_to_now_and_without_a_hand_nothing_is(recording) -> None:
    sample = dataset(recording, history_actions=True, horizon=Horizon(2, 2, 2, 3, 1))[(20, 0)]
    assert np.allclose(sample["history_action"][:, 0], [-0.02, -0.01, 0], atol=1e-6)
    sample = dataset(recording, end_effector=None, horizon=Horizon(2, 2, 2, 3, 1))[(70, 0)]
    assert np.allclose(sample["action"][0], [0.71, 0, 0, 0, -1, 0, 1, 0, 0, 0.071], atol=1e-6)
    assert sample["low_dim"][POSE].shape == (2, 6)


def test_latencies_shift_what_is_read(recording) -> None:
    """A pose 1.5 rows and an opening 2 rows newer than the frame; actions half a row later."""
    latency = {POSE: 1.5, GRIPPER: 2, "action": 0.5}
    sample = dataset(recording, latency=latency, horizon=Horizon(2, 2, 2, 3, 1))[(20, 0)]
    assert shown(sample["history"][CAMERA]) == [18, 20]
    assert np.allclose(sample["low_dim"]["width"][:, 0], [0.020, 0.022], atol=1e-6)
    assert np.allclose(sample["low_dim"]["position"][:, 0], [-0.02, 0], atol=1e-6), "now is at row 21.5 as well"
    assert np.allclose(sample["action"][:, 0], [0, 0.01, 0.02], atol=1e-6), "rows 21.5, 22.5, 23.5, seen from 21.5"
    assert np.allclose(sample["action"][:, 9], [0.0215, 0.0225, 0.0235], atol=1e-6)
    end = dataset(recording, latency=latency, horizon=Horizon(2, 2, 2, 3, 1))[(57, 0)]
    assert end["action_is_pad"].tolist() == [False, True, True], "rows 58.5, 59.5, 60.5 of 59"
    with pytest.raises(ValueError, match="latency.wrist: there is no such state; there are pose, gripper, start_pose"):
        dataset(recording, latency={"wrist": 1})


def test_poses_of_any_source_turn_between_rows(tmp_path) -> None:
    """The end effector turns by 10 degrees a row, past 180: mixed numbers would turn it the long way."""
    poses, frames = np.zeros((30, 6)), SHOWN[:30]
    poses[:, 5] = (np.arange(30) * np.radians(10) + np.pi) % (2 * np.pi) - np.pi
    more = {"pose": poses.astype(np.float32), "command": np.zeros((30, 10), np.float32)}
    path = str(write_umi(tmp_path / "a.zarr.zip", frames, poses, **more))
    low_dim = {POSE: "pose", GRIPPER: "robot0_gripper_width", START_POSE: "pose"}
    other = ZarrSource(path, cameras={CAMERA: CAMERA}, low_dim=low_dim, action="command")
    options = {"val_ratio": 0, "pad_before": None, "pad_after": None, "end_effector": END_EFFECTOR}
    options |= {"latency": {POSE: 0.5, "action": 0.5}, "horizon": Horizon(2, 2, 2, 3, 1)}
    for source in (other, UmiSource(path), [other, UmiSource(path)]):
        turned = MixtureDataset(source, WANTED, **options)[(17, 0)]["action"][:, 3:5]
        angles = np.radians([10, 20, 30])
        assert np.allclose(turned, np.stack([np.cos(angles), -np.sin(angles)], axis=1), atol=1e-5)


def test_actions_are_not_made_of_states_that_are_left_out(recording) -> None:
    def mixed(*sources: UmiSource) -> MixtureDataset:
        return MixtureDataset(
            sources, WANTED, Horizon(2, 2, 2, 3, 1), 0, pad_before=None, pad_after=None, end_effector=END_EFFECTOR
        )

    whole, path = UmiSource(str(recording)), str(recording)
    with pytest.raises(ValueError, match="makes actions of states, which has_low_dim: false leaves out"):
        mixed(whole, UmiSource(path, has_low_dim=False))
    video = UmiSource(path, has_low_dim=False, has_action=False)
    with pytest.raises(ValueError, match="task.end_effector makes .* of recorded poses, but no source has states"):
        mixed(video)
    assert [mixed(whole, video)[(index, 0)]["has_action"].item() for index in (0, ROWS)] == [True, False]


# -- random choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("draw", "sets", "apart"), [(scattered_history, 1820, 1), (random_history, 816, 0)])
def test_every_set_of_history_times_is_drawn_alike(draw, sets, apart) -> None:
    drawn = draw(Horizon(), np.arange(40_000))
    assert drawn.shape == (40_000, 4) and drawn.min() == -15 and drawn.max() == 0
    assert (np.diff(drawn, axis=1) >= apart).all()
    found, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(found) == sets and counts.max() < 3 * counts.mean()
    shown = {scattered_history: 4 / 16, random_history: 1}[draw]  # how often now is one of them
    assert np.mean(drawn[:, -1] == 0) == pytest.approx(shown, abs=0.01)
    assert np.array_equal(drawn[:50], draw(Horizon(), np.arange(50)))


def test_states_are_given_at_the_times_of_scattered_frames(recording) -> None:
    data = dataset(recording, history_frequency="scattered", down_sample=3, horizon=Horizon(action_offset=1))
    for seed in range(5):
        sample = data[(50, seed)]
        rows = np.array(shown(sample["history"][CAMERA]))
        assert np.allclose(sample["low_dim"]["position"][:, 0], (rows - 50) / 100, atol=1e-6)
        assert np.allclose(sample["action"][0, 0], 0.03, atol=1e-6), "seen from now, whether it is shown or not"
    assert len({tuple(shown(data[(50, seed)]["history"][CAMERA])) for seed in range(8)}) > 5
    held = dataset(recording, history_frequency="scattered", val_ratio=0.5).validation()
    assert np.diff(shown(held[(30, 0)]["history"][CAMERA])).tolist() == [4, 4, 4]


def test_noise_on_the_start_is_normal_a_function_of_the_seed_and_absent_in_validation(recording) -> None:
    numbers = normal(np.arange(4000), 7, 6)
    assert numbers.shape == (4000, 6) and abs(numbers.mean()) < 0.02 and numbers.std() == pytest.approx(1, abs=0.01)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(6)).max() < 0.06
    pose = [1, 2, 3, 0.1, 0.2, 0.3]
    still = windows([pose], [pose], pose, pose, training=True, seeds=range(2000))
    noisy = StartNoise(0.05)(still)
    moved = noisy.now[START_POSE][:, 0] - pose
    assert moved.std(axis=0) == pytest.approx([0.05] * 6, rel=0.07) and abs(moved.mean()) < 0.003
    assert np.array_equal(noisy.now[POSE], still.now[POSE]) and np.allclose(still.now[START_POSE], pose)
    data = dataset(recording, transforms=[StartNoise()], val_ratio=0.5)
    first, second = (data[(30, seed)]["low_dim"]["from_start"] for seed in (0, 1))
    assert not torch.allclose(first, second) and torch.equal(first, data[(30, 0)]["low_dim"]["from_start"])
    assert torch.allclose(data.validation()[(30, 5)]["low_dim"]["from_start"][0], torch.eye(3)[:2].flatten())


def test_what_the_normaliser_fits(recording) -> None:
    def fitted(kind: str, **options):
        return dataset(recording, normalizer=kind, horizon=Horizon(2, 2, 2, 3, 1), **options).fit_normalizer()

    none, limits, raw = fitted("none"), fitted("limits"), fitted("limits", raw_dims={"action": [0]})
    assert none.names == ("action", *STATES)
    assert all((none.scale(name) == 1).all() and (none.offset(name) == 0).all() for name in none.names)
    # Relative positions: 1 to 3 cm along x in the first episode, along -y in the second.
    assert limits.stats["action"]["min"][:3].tolist() == pytest.approx([0, -0.03, 0], abs=1e-6)
    assert limits.stats["action"]["max"][:3].tolist() == pytest.approx([0.03, 0, 0], abs=1e-6)
    assert raw.scale("action")[0] == 1 and raw.scale("action")[1] == limits.scale("action")[1]
    with pytest.raises(ValueError, match="relative_to='position': the data's transforms make actions relative already"):
        dataset(recording).fit_normalizer("position")


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_a_task_predicts_the_states_that_say_so_and_its_end_effector_fits(recording) -> None:
    data_options = (f"task.dataset.sources.path={recording}", "task.dataset.sources.image_size=96")
    config = read("uva_umi_mini", *data_options, "task.dataset.val_ratio=0.5")
    shapes = {name: tuple(value.shape) for name, value in build_dataset(config)[(10, 0)]["future_low_dim"].items()}
    assert shapes == {"robot0_eef_rot_axis_angle_wrt_start": (16, 6)}
    task = config["task"]
    obs = task["shape_meta"]["obs"]
    obs["robot0_gripper_width"]["predict"] = True
    predicted = TaskSpec.parse(task)
    assert predicted.predicted_states == ("robot0_gripper_width", "robot0_eef_rot_axis_angle_wrt_start")
    assert predicted.predicted_state_dim == 7
    task["shape_meta"]["proprio_output_dim"] = 6
    with pytest.raises(ValueError, match=r"proprio_output_dim=6, but .* say predict, have 7 numbers; leave it out"):
        build_dataset(config)
    for entry in obs.values():
        entry.pop("predict", None)
    assert TaskSpec.parse(task).predicted_state_dim == 6, "a published checkpoint's, which does not say which"
    del task["shape_meta"]["proprio_output_dim"]
    for change, message in (
        ({"end_effector": None}, "the task reads 'robot0_eef_pos'"),
        ({"end_effector": {"states": {"robot0_eef_pos": "position"}}}, "name the same ones in the same order"),
        ({"end_effector": {"states": {"robot0_eef_pos": "red"}}}, "end_effector.states.robot0_eef_pos='red': expected"),
    ):
        with pytest.raises(ValueError, match=message):
            build_dataset({**config, "task": task | change})


def test_the_configuration_has_the_sizes_of_the_published_model() -> None:
    config = read("uva_umi_multi")
    spec = model_spec(TaskSpec.parse(config["task"]), LatentShape(16, 16, 16))
    assert spec == infer_spec(tensor_list("umi"), different_history_freq=True, shift_action=False)
    single = read("uva_umi")
    assert model_spec(TaskSpec.parse(single["task"]), LatentShape(16, 16, 16)).text_dim == 0


# -- rows, as the paper's code reads them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "history_actions", "length", "frames", "first_action", "first_past"),
    [
        (0, False, 32, [3, 7, 11, 15, 19, 23, 27, 31], 15, None),  # actions[15:31]
        (1, False, 32, [3, 7, 11, 15, 19, 23, 27, 31], 16, None),  # actions[16:32]
        (0, True, 33, [4, 8, 12, 16, 20, 24, 28, 32], 16, 0),  # actions[16:32] after [0:16]; frame streams drop step 0
        (1, True, 33, [4, 8, 12, 16, 20, 24, 28, 32], 17, 1),  # actions[17:33] after [1:17]
    ],
)
def test_a_window_reads_the_rows_of_the_papers_code(offset, history_actions, length, frames, first_action, first_past):
    horizon, start, end = Horizon(action_offset=offset), np.array([0]), np.array([length])
    _, now = window_rows(WindowOptions(horizon, 0, 0, history_actions=history_actions), start, end)

    def rows(offsets) -> list[int]:
        return clamp_rows(now, start, end, offsets)[0][0].tolist()

    assert len(now) == 1 and rows(horizon.history_offsets) + rows(horizon.future_offsets) == frames
    assert rows(horizon.action_offsets) == list(range(first_action, first_action + 16))
    if history_actions:
        assert rows(horizon.history_action_offsets) == list(range(first_past, first_past + 16))


def test_padding_of_one_before_and_seven_after_gives_the_papers_windows():
    starts, ends = np.array([0, 100]), np.array([100, 140])
    episode, now = window_rows(WindowOptions(), starts, ends)
    assert np.bincount(episode).tolist() == [100 - 23, 40 - 23]  # length - 32 + 1 + 7 + 1 windows
    assert (now[0], now[76]) == (14, 90)
    assert (now[77], now[-1]) == (114, 130)


def test_the_split_holds_out_the_papers_episodes():
    train, held = split_episodes(206, 0.02, 42)
    assert held.tolist() == sorted(np.random.default_rng(42).choice(206, size=4, replace=False).tolist())
    assert sorted([*train, *held]) == list(range(206))
    for ratio, count in ((0.0, 0), (0.001, 1), (0.99, 3)):  # one is held out, and one left
        assert [len(each) for each in split_episodes(4, ratio, 42)] == [4 - count, count]
    fewer, same = split_episodes(206, 0.02, 42, max_train_episodes=90)
    assert len(fewer) == 90 and set(fewer) <= set(train) and same.tolist() == held.tolist()
