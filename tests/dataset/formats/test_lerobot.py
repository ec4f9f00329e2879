import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.dataset.recordings import Episode, numbered_frames, psnr, read_numbers, write_lerobot, write_video
from unified_video_action.dataset.formats.lerobot import LeRobotSource
from unified_video_action.dataset.mixture import MixtureDataset, Wanted
from unified_video_action.dataset.store import StoreError
from unified_video_action.spec import Horizon

LENGTHS = (12, 9, 17, 11, 14, 10, 13)
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
WANTED = Wanted(cameras=("image", "wrist"), low_dim=("state",), action_dim=3)
ROWS = np.arange(sum(LENGTHS))
EPISODE = np.repeat(np.arange(len(LENGTHS)), LENGTHS)


def make_episodes() -> list[Episode]:
    """The cameras show the row, the second one 2000 more; actions and states tell episode and step."""
    episodes, rng = [], np.random.default_rng(0)
    for number, (end, length) in enumerate(zip(np.cumsum(LENGTHS), LENGTHS, strict=True)):
        rows, steps = np.arange(end - length, end), np.arange(length)
        frames = {FRONT: numbered_frames(rows), WRIST: numbered_frames(rows + 2000, (96, 96), tint=90)}
        values = {
            "action": np.stack([np.full(length, number), steps, rng.uniform(-1, 1, length)], axis=1),
            "observation.state": np.stack([rows, rows * 0.5], axis=1),
            "observation.gripper": steps[:, None] / 10,
        }
        episodes.append(Episode(frames, values, "push the block" if number % 3 else "open the drawer"))
    return episodes


EPISODES = make_episodes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two episodes in each parquet file, three in each video: borders never coincide. The wrist is in parquet."""
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "set", EPISODES, pictures=[WRIST])


@pytest.fixture
def damaged(folder, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(folder, tmp_path / "set"))


def source(path: Path, **options) -> LeRobotSource:
    roles = {"cameras": {"image": FRONT, "wrist": WRIST}, "low_dim": {"state": "observation.state"}}
    return LeRobotSource(str(path), **{**roles, **options})


def test_rows_frames_and_words_belong_together_across_file_borders(folder):
    (table,) = source(folder, use_tasks=True).tables(WANTED)
    store = table.store
    assert store.episode_ends.tolist() == np.cumsum(LENGTHS).tolist()
    front, wrist = store.frames(FRONT, ROWS), store.frames(WRIST, ROWS)
    assert np.array_equal(read_numbers(front), ROWS) and np.array_equal(read_numbers(wrist), ROWS + 2000)
    assert psnr(front, np.concatenate([episode.frames[FRONT] for episode in EPISODES])) > 28
    assert np.array_equal(wrist, np.concatenate([episode.frames[WRIST] for episode in EPISODES]))  # PNG loses nothing
    assert np.array_equal(table.action[:, 0], EPISODE) and table.action.dtype == np.float32
    assert np.array_equal(table.low_dim["state"][:, 0], ROWS) and table.low_dim["state"].shape == (len(ROWS), 2)
    assert table.instructions == tuple(episode.task for episode in EPISODES)
    assert store.frame_shape(FRONT) == (48, 64) and store.frame_shape(WRIST) == (96, 96)
    keys = ["observation.gripper", "observation.state"]
    (beside,) = source(folder, low_dim={"state": keys}, action=keys).tables(WANTED)
    steps = np.concatenate([np.arange(length) for length in LENGTHS])
    np.testing.assert_allclose(beside.low_dim["state"], np.stack([steps / 10, ROWS, ROWS / 2], axis=1), atol=1e-6)
    assert np.array_equal(beside.action, beside.low_dim["state"]) and beside.instructions is None
    shuffled = np.random.default_rng(0).permutation(ROWS)[:40].reshape(8, 5)
    for name, frames in ((FRONT, front), (WRIST, wrist)):
        assert np.array_equal(store.frames(name, shuffled), frames[shuffled])
        assert np.array_equal(pickle.loads(pickle.dumps(store)).frames(name, shuffled), frames[shuffled])  # noqa: S301


@pytest.mark.parametrize(("chosen", "numbers"), [([5, 1], [1, 5]), (":-5", [0, 1])])
def test_some_episodes(folder, chosen, numbers):
    (table,) = source(folder, episodes=chosen, use_tasks=True).tables(WANTED)
    rows = ROWS[np.isin(EPISODE, numbers)]
    everything = np.arange(len(rows))
    assert np.array_equal(read_numbers(table.store.frames(FRONT, everything)), rows)
    assert np.array_equal(read_numbers(table.store.frames(WRIST, everything)), rows + 2000)
    assert np.array_equal(table.low_dim["state"][:, 0], rows)
    assert table.instructions == tuple(EPISODES[number].task for number in numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": {"image": "observation.images.top", "wrist": WRIST}}, "'observation.images.top'.*is not there; "),
        ({"cameras": {"image": "action", "wrist": WRIST}}, "'action', which is to be a camera, is float32"),
        ({"low_dim": {}}, "the task reads 'state', but its low_dim are none"),
        ({"action": "observation.state"}, "actions of 2 numbers, but task.shape_meta.action has 3"),
        ({"episodes": [3, 7]}, r"episodes=\[3, 7\]: 7 are not there"),
        ({"fps": 20}, "has 10 frames/s, expected fps=20"),
    ],
)
def test_wrong_roles_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        MixtureDataset(source(folder, **options), WANTED, Horizon(2, 2, stride=2, actions=4), 0.0)


def test_views_of_one_folder_have_caches_of_their_own_that_follow_the_frames(damaged):
    views = [{}, {"episodes": [1, 2]}, {"image_size": 32}, {"image_size": 32, "crop": False}]
    stores = [source(damaged, **options).tables(WANTED)[0].store for options in views]
    found = [store.fingerprint() for store in stores]
    assert len({store.location for store in stores}) == len(set(found)) == 4
    assert stores[0].location == source(damaged, weight=3).tables(WANTED)[0].store.location
    assert stores[2].frames(FRONT, np.arange(2)).shape == (2, 32, 32, 3)
    write_video(damaged / "videos" / FRONT / "chunk-000" / "file-001.mp4", numbered_frames([4] * sum(LENGTHS[3:6])))
    changed = [store.fingerprint() != before for store, before in zip(stores, found, strict=True)]
    assert changed == [True, False, True, True]


def refuses(folder: Path, message: str, kind: type = StoreError, **options) -> None:
    with pytest.raises(kind, match=message):
        source(folder, **options).tables(WANTED)


def test_a_camera_that_is_called_otherwise_keeps_its_cache(folder, tmp_path, toy_codec):
    codec, wanted, kept = toy_codec(image_size=48), Wanted(("image", "wrist"), (), 3), []
    for cameras in ({"image": FRONT, "wrist": WRIST}, {"image": WRIST, "wrist": FRONT}):
        made = source(folder, cameras=cameras, low_dim={}, image_size=48)
        dataset = MixtureDataset(made, wanted, Horizon(2, 2, 2, 4), 0.0, pad_after=None)
        decoded = dataset[(5, 0)]["future"]
        dataset.use_frames(tmp_path, cached=True, progress=False)
        assert all(torch.equal(dataset[(5, 0)]["future"][name], frames) for name, frames in decoded.items())
        dataset.use_latents(dataset.latents(codec, tmp_path, progress=False))
        latents = dataset[(5, 0)]["future"]
        assert all(torch.allclose(latents[name], codec.encode(decoded[name][None])[0], atol=2e-3) for name in decoded)
        kept.append((codec.encoded, sorted(path.name for path in tmp_path.iterdir())))
    assert kept[1] == (kept[0][0] + 4, kept[0][1]), "beside those four frames nothing is encoded again"


def test_what_is_no_version_3_folder_is_named_with_the_remedy(damaged, tmp_path):
    refuses(tmp_path / "nowhere", "nowhere: no such folder", FileNotFoundError)
    change_info(damaged, codebase_version="v2.1")
    refuses(damaged, "codebase_version is v2.1, expected v3.0; .*convert_dataset_v21_to_v30 ")
    change_info(damaged, codebase_version="v3.0", total_episodes=9)
    refuses(damaged, "lists 7 episodes, .* not the 9 of")
    change_info(damaged, total_episodes=7)
    index = damaged / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(index)
    write_column(index, table, "length", [*LENGTHS[:6], None])
    refuses(damaged, "lists 7 episodes, some twice or empty")
    write_column(index, table, "data/file_index", [0, None, *table["data/file_index"].to_pylist()[2:]])
    refuses(damaged, "has no entry of data for episode 1; choose the other episodes")
    pq.write_table(table, index)
    features = json.loads((damaged / "meta" / "info.json").read_text())["features"]
    features[FRONT]["shape"] = [48, 64, 1]
    change_info(damaged, features=features)
    refuses(damaged, r"shape \[48, 64, 1\]; expected 3 colours")
    (damaged / "meta" / "info.json").write_text("[]")
    refuses(damaged, "info.json: not a readable JSON")


def test_missing_and_damaged_files_are_named(damaged):
    video = damaged / "videos" / FRONT / "chunk-000" / "file-001.mp4"
    content = video.read_bytes()
    video.write_bytes(content[: len(content) // 2])
    (table,) = source(damaged).tables(WANTED)
    with pytest.raises(StoreError, match=r"file-001.mp4: not a readable video .*episode 3, observation.images.front"):
        table.store.frames(FRONT, np.array([LENGTHS[0] * 4]))
    video.unlink()
    refuses(damaged, r"file-001.mp4: the file is missing", FileNotFoundError)
    video.write_bytes(content)
    path = damaged / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    write_column(path, table, "action", [*actions[:4], [0.0, float("nan"), 0.0], *actions[5:]])
    refuses(damaged, "file-000.parquet: the column action .*not a number in row 4")
    write_column(path, table, "action", [*actions[:4], None, *actions[5:]])
    refuses(damaged, "the column action .* with 1 missing values")
    write_column(path, table, "action", [*actions[:4], actions[4][:2], [*actions[5], 0.0], *actions[6:]])
    refuses(damaged, "the column action .* expected numbers, equally many in every row")
    assert source(damaged, action=None).tables(WANTED)[0].action is None
    path.write_bytes(path.read_bytes()[:1000])
    refuses(damaged, r"file-000.parquet: not a readable parquet file .*truncated")


def test_counts_that_disagree_are_named(damaged):
    index = damaged / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(index)
    write_column(index, table, "length", [12, 9, 17, 13, 14, 10, 13])
    refuses(damaged, r"episode 3 has 13 rows, but 11.0 frames of observation.images.front")
    with pytest.raises(StoreError, match=r"file-001.parquet: episode 3 has 11 rows; meta/episodes says 13"):
        LeRobotSource(str(damaged), {"image": WRIST}).tables(Wanted(("image",), (), 3))
    begin = np.array(table[f"videos/{FRONT}/from_timestamp"].to_pylist())
    end = np.array(table[f"videos/{FRONT}/to_timestamp"].to_pylist())
    for name, values in (("from", begin), ("to", end)):  # half a frame late, as if another clock had been used
        table = write_column(index, table, f"videos/{FRONT}/{name}_timestamp", values + 0.05)
    (shifted,) = source(damaged).tables(WANTED)
    with pytest.raises(StoreError, match="no frame at .* the times in the index do not fit"):
        shifted.store.frames(FRONT, np.array([5]))


def test_a_task_that_changes_within_an_episode_is_told_by_row(damaged):
    path = damaged / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    tasks = [*table["task_index"].to_pylist()[:5], *[1] * 7, *table["task_index"].to_pylist()[12:]]
    write_column(path, table, "task_index", tasks)  # episode 0 opens the drawer for 5 steps, then pushes the block
    wrist = LeRobotSource(str(damaged), cameras={"image": WRIST}, use_tasks=True)
    dataset = MixtureDataset(wrist, Wanted(("image",), (), 3), Horizon(2, 2, stride=2, actions=4), 0.0, pad_after=2)
    words = dataset.tables[0].instructions
    assert words[:12] == ("open the drawer",) * 5 + ("push the block",) * 7 and len(words) == len(ROWS)
    assert words[12:] == tuple(EPISODES[number].task for number in EPISODE[12:])
    dataset.use_text(torch.tensor([[0.0], [1.0]]))
    batch = dataset.__getitems__([(index, 0) for index in range(len(dataset))])
    assert [dataset.instructions[int(text)] for text in batch["text"]] == [words[now] for now in dataset._now]


AB, XY = pa.array(["a", "b"]), pa.array(["x", "y"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": XY, "__index_level_0__": AB.cast(pa.large_string())}, None),
        ({"__index_level_0__": XY, "task": AB.dictionary_encode()}, None),
        ({"words": AB.cast(pa.string_view()), "count": pa.array([1, 2])}, None),
        ({"words": AB, "kind": XY}, "has columns task_index, words, kind; expected"),
        ({"task": pa.array(["a", None])}, "episode 1 has task_index 1, for which meta/tasks.parquet has no text"),
    ],
)
def test_the_column_of_task_strings_is_found_by_its_name(damaged, columns, message):
    pq.write_table(pa.table({"task_index": [0, 1]} | columns), damaged / "meta" / "tasks.parquet")
    if message is None:
        (table,) = source(damaged, use_tasks=True).tables(WANTED)
        assert table.instructions == tuple("ab"[number % 3 > 0] for number in range(len(LENGTHS)))
    else:
        refuses(damaged, message, use_tasks=True)


def test_episodes_may_not_share_a_stretch_of_video(damaged):
    begin, end = change_index(damaged, "from_timestamp"), change_index(damaged, "to_timestamp")
    early = np.array([0, -1.2, 0, 0, 0, 0, 0])  # episode 1 claims the frames of episode 0
    change_index(damaged, "from_timestamp", begin + early)
    change_index(damaged, "to_timestamp", end + early)
    refuses(damaged, r"file-000.mp4: episode 0 \(0.000 to 1.200 s\) and episode 1 \(0.000 to 0.900 s\) share a stretch")
    (table,) = source(damaged, episodes=[0, 2]).tables(WANTED)
    rows = ROWS[np.isin(EPISODE, [0, 2])]
    assert np.array_equal(read_numbers(table.store.frames(FRONT, np.arange(len(rows)))), rows)
    change_index(damaged, "from_timestamp", begin)
    for shift in (-0.1, 0.1, np.nan):  # where a stretch ends follows from the number of frames
        change_index(damaged, "to_timestamp", end + shift)
        (table,) = source(damaged).tables(WANTED)
        assert np.array_equal(read_numbers(table.store.frames(FRONT, ROWS)), ROWS)
    change_index(damaged, "to_timestamp", end)
    change_index(damaged, "file_index", [1, 1, 1, 1, 1, 1, 0])  # all of a merge point to its last file
    refuses(damaged, r"file-001.mp4: episode 0 .* and episode 3 .* share a stretch")


def test_episodes_without_a_camera_are_named_or_left_out(damaged):
    for name in ("from_timestamp", "to_timestamp", "chunk_index", "file_index"):
        values = change_index(damaged, name)
        change_index(damaged, name, [None if number in (1, 5) else value for number, value in enumerate(values)])
    refuses(damaged, f"no entry of {FRONT} for episode 1, 5; choose the other episodes with `episodes`")
    (table,) = source(damaged, episodes=[0, 2, 4]).tables(WANTED)
    rows = ROWS[np.isin(EPISODE, [0, 2, 4])]
    assert np.array_equal(read_numbers(table.store.frames(FRONT, np.arange(len(rows)))), rows)
    path = damaged / "data" / "chunk-000" / "file-000.parquet"
    pictures = pq.read_table(path)[WRIST].to_pylist()
    write_column(path, pq.read_table(path), WRIST, [*pictures[:13], None, *pictures[14:]])
    (table,) = source(damaged, episodes="2:5").tables(WANTED)
    assert np.array_equal(read_numbers(table.store.frames(WRIST, np.arange(4))), np.arange(21, 25) + 2000)
    (table,) = LeRobotSource(str(damaged), {"image": WRIST}).tables(Wanted(("image",), (), 3))
    with pytest.raises(StoreError, match=r"in row 13 \(episode 1\): there is no picture.*`episodes`"):
        table.store.frames(WRIST, np.array([13]))


def change_info(folder: Path, **changes) -> None:
    path = folder / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_index(folder: Path, name: str, values=None) -> np.ndarray:
    """A column of the front camera in meta/episodes as it was; `values`, where given, are put in its place."""
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table, column = pq.read_table(path), f"videos/{FRONT}/{name}"
    if values is not None:
        write_column(path, table, column, list(values))
    return table[column].to_numpy()


def write_column(path: Path, table: pa.Table, name: str, values) -> pa.Table:
    index = table.column_names.index(name)
    table = table.set_column(index, name, pa.array(values, type=table.schema.field(name).type))
    pq.write_table(table, path)
    return table
