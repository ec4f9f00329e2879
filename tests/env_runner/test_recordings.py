"""Recordings of rollouts, read back by Rerun's own reader and by the reader of LeRobotDataset folders."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rerun.chunk import RrdReader

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToyPolicy, ToySession
from unified_video_action.dataset.formats.lerobot import LeRobotSource
from unified_video_action.dataset.mixture import Wanted
from unified_video_action.env_runner import distributed
from unified_video_action.env_runner import runner as runner_module
from unified_video_action.env_runner.recordings import write_lerobot
from unified_video_action.env_runner.runner import EnvRunner

CAMERA = "observation.images.image"


def entity(path: Path, name: str, *kinds: str) -> tuple[np.ndarray, list]:
    """Frames (n,) at which an entity was logged, and what: numbers, pictures and texts, or other components."""
    frames, values = [], []
    for chunk in RrdReader(path).stream().to_chunks():
        if chunk.entity_path == name and not chunk.is_static:
            batch = chunk.to_record_batch()
            for column in batch.schema.names:
                if column.endswith(kinds or (":scalars", ":blob", ":text")):
                    frames += batch["frame"].to_pylist()
                    values += batch[column].to_pylist()
    order = np.argsort(frames)
    return np.array(frames)[order], [values[row] for row in order]


def picture(blob: list) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(np.array(blob[0], np.uint8).tobytes())))


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A folder with both recordings of two episodes, the first one known from an interrupted run; and its results."""
    tmp_path = tmp_path_factory.mktemp("recordings")
    recordings = {"rerun": tmp_path / "rollouts.rrd", "dataset": tmp_path / "rollouts"}
    options = {"progress": False, "videos": 0, "journal": True}
    runner, reset = EnvRunner(toy.TaskedEnv, n_episodes=2, start_seed=20, n_envs=1, max_steps=18), ToySession.reset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "PolicySession", ToySession)
        with patch.context() as stopped, pytest.raises(KeyboardInterrupt):
            stopped.setattr(
                ToySession, "reset", lambda *a, seed=0, **k: reset(*a, seed=seed, **k) if seed == 20 else stop()
            )
            runner.run(ToyPolicy(), tmp_path / "out", **options)
        runner.run(ToyPolicy(), tmp_path / "out", resume=True, **recordings, **options)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "rollouts", "rollouts.rrd"}, "nothing else is left"
    return tmp_path, json.loads((tmp_path / "out" / "results.json").read_text())["episodes"]


def stop() -> None:
    raise KeyboardInterrupt


def seen_again(seed: int, actions: np.ndarray) -> tuple[list[np.ndarray], list[float]]:
    """Pictures and positions when these actions are executed again: before each of them."""
    env, pictures, positions = toy.TaskedEnv(), [], []
    observation, _ = env.reset(seed=seed)
    for action in actions:
        pictures.append(observation["image"])
        positions.append(float(observation["position"][0]))
        observation, *_ = env.step(action)
    return pictures, positions


def test_rerun_has_all_episodes_on_one_timeline(rolled: tuple[Path, list[dict]]) -> None:
    path, episodes = rolled[0] / "rollouts.rrd", rolled[1]
    lengths = [episode["steps"] + 1 for episode in episodes]  # observations
    frames, texts = entity(path, "/episode")
    second = lengths[0] + 1  # begins after an empty frame
    assert frames.tolist() == [0, second] and texts[1][0].startswith("seed 21: walk to the odd end")
    frames, actions = entity(path, "/action")
    assert frames.tolist() == [*range(lengths[0] - 1), *range(second, sum(lengths))]
    _, scores = entity(path, "/score")
    np.testing.assert_allclose(np.ravel(scores), sum((each["curve"] for each in episodes), []), atol=1e-4)
    pictures, positions = seen_again(21, np.array(actions[lengths[0] - 1 :]))
    _, states = entity(path, "/state/position")
    np.testing.assert_allclose(np.ravel(states[lengths[0] : -1]), positions, atol=1e-5)
    _, shown = entity(path, "/camera/image")
    assert len(shown) == sum(lengths) and np.abs(picture(shown[lengths[0] + 5]) - pictures[5].astype(int)).mean() < 4


def test_a_dataset_is_read_back(rolled: tuple[Path, list[dict]]) -> None:
    root, episodes = rolled[0] / "rollouts", rolled[1]
    source = LeRobotSource(
        str(root), cameras={"image": CAMERA}, low_dim={"state": "observation.state"}, use_tasks=True, fps=10
    )
    (table,) = source.tables(Wanted(cameras=("image",), low_dim=("state",), action_dim=1))
    ends = np.cumsum([episode["steps"] for episode in episodes])
    assert table.store.episode_ends.tolist() == ends.tolist()
    assert table.instructions == ("walk to the even end", "walk to the odd end")
    frames = table.store.frames(CAMERA, np.arange(ends[-1]))
    for seed, end, episode in zip((20, 21), ends, episodes, strict=True):
        rows = slice(end - episode["steps"], end)
        pictures, positions = seen_again(seed, table.action[rows])
        np.testing.assert_allclose(table.low_dim["state"][rows, 0], positions, atol=1e-6)
        assert np.abs(frames[rows] - np.stack(pictures).astype(int)).mean() < 3
    (rewards,) = LeRobotSource(str(root), cameras={}, action="next.reward").tables(Wanted((), (), 1))
    np.testing.assert_allclose(rewards.action[:, 0], sum((each["curve"] for each in episodes), []), atol=1e-4)
    stats = json.loads((root / "meta" / "stats.json").read_text())
    np.testing.assert_allclose(stats["action"]["mean"], table.action.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.ravel(stats[CAMERA]["mean"]), frames.mean((0, 1, 2)) / 255, atol=0.01)


def test_what_cannot_be_recorded_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no rollout to record"):
        write_lerobot(tmp_path / "set", [], 10, "toy", ToyPolicy.task)
    monkeypatch.setattr(distributed, "rank_and_size", lambda: (0, 2))
    with pytest.raises(ValueError, match="recorded .* in one process"):
        EnvRunner(toy.ToyEnv, 1, n_envs=1).run(ToyPolicy(), rerun=tmp_path / "file.rrd")
    assert list(tmp_path.iterdir()) == []
