"""Rollout videos show what was seen, frame by frame."""

from pathlib import Path

import av
import numpy as np
import pytest

from tests.env_runner import toy
from tests.env_runner.toy_policy import ToySession
from unified_video_action.env_runner.rollout import Episode
from unified_video_action.env_runner.videos import (
    Imagination,
    Rollout,
    imagine_episode,
    pick_for_videos,
    video_frames,
    write_mp4,
)

OFFSETS = (4, 8, 12, 16)


def walk(seed: int = 3, steps: int = 21) -> tuple[Episode, list[dict]]:
    env, episode = toy.ToyEnv(), Episode(seed)
    observations = [env.reset(seed=seed)[0]]
    for _ in range(steps):
        observation, *_, info = env.step(np.array([0.02]))
        observations.append(observation)
        episode.curve.append(info["score"])
        episode.steps += 1
    return episode, observations


@pytest.mark.parametrize("imagines", [True, False])
def test_a_video_has_a_frame_per_observation_and_shows_the_last_imagination(tmp_path: Path, imagines: bool):
    episode, observations = walk()
    session = ToySession()
    moments = imagine_episode(session, observations, 3, 8) if imagines else []
    drawn = list(video_frames(Rollout(episode, observations, moments), "image", "best"))
    write_mp4(tmp_path / "video.mp4", drawn, fps=10)
    with av.open(str(tmp_path / "video.mp4")) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert (stream.codec_context.name, stream.format.name) == ("h264", "yuv420p")
        assert stream.average_rate == 10
    assert len(frames) == len(drawn) == 22 and np.abs(frames[5].astype(int) - drawn[5]).mean() < 3
    assert frames.shape[2] > 800 if imagines else frames.shape[2] < 500
    if imagines:
        assert [moment.step for moment in moments] == [0, 8, 16]
        np.testing.assert_array_equal(moments[1].frames[0], observations[8]["image"])
        assert session.seen[0] == 21, "the last observation calls for no plan"
        moments[1] = Imagination(8, OFFSETS, np.zeros((4, toy.SIZE, toy.SIZE, 3), np.uint8))
        changed = video_frames(Rollout(episode, observations, moments), "image", "best")
        differs = [not np.array_equal(one, other) for one, other in zip(drawn, changed, strict=True)]
        assert differs == [8 <= step < 16 for step in range(22)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (2, [("best", 2), ("worst", 1)]),
        (3, [("best", 2), ("median", 0), ("worst", 1)]),
        (9, [("best", 2), ("rank 2 of 5", 4), ("median", 0), ("rank 4 of 5", 3), ("worst", 1)]),
    ],
)
def test_videos_are_spread_from_best_to_worst(count: int, expected: list):
    episodes = [Episode(seed, curve=[score]) for seed, score in enumerate((0.5, 0.1, 0.9, 0.3, 0.7))]
    episodes.append(Episode(7, curve=[1.0], crashed="it fell"))
    assert [(label, episode.seed) for label, episode in pick_for_videos(episodes, count)] == expected
    assert pick_for_videos(episodes[-1:], count) == []
