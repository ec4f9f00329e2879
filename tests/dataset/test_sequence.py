"""Windows against indices worked out by hand from the paper code's behaviour."""

import numpy as np
import pytest

from unified_video_action.dataset.sequence import clamp_rows, random_history, reach, split_episodes, window_rows
from unified_video_action.spec import Horizon


def rows_of(horizon, length, history_actions=False):
    """Frames, actions and history actions of the single unpadded window over an episode of `length` steps."""
    start, end = np.array([0]), np.array([length])
    _, now = window_rows(horizon, start, end, 0, 0, history_actions)
    assert len(now) == 1
    return [
        clamp_rows(now, start, end, offsets)[0][0].tolist()
        for offsets in (
            horizon.history_offsets,
            horizon.future_offsets,
            horizon.action_offsets,
            horizon.history_action_offsets,
        )
    ]


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
    history, future, actions, past = rows_of(Horizon(action_offset=offset), length, history_actions)
    assert history + future == frames
    assert actions == list(range(first_action, first_action + 16))
    if history_actions:
        assert past == list(range(first_past, first_past + 16))


def test_padding_of_one_before_and_seven_after_gives_the_papers_windows():
    starts, ends = np.array([0, 100]), np.array([100, 140])
    episode, now = window_rows(Horizon(), starts, ends, 1, 7)
    assert np.bincount(episode).tolist() == [100 - 23, 40 - 23]  # length - 32 + 1 + 7 + 1 windows
    assert (now[0], now[76]) == (14, 90)
    assert (now[77], now[-1]) == (114, 130)


def test_full_padding_makes_every_step_the_present_once():
    before, after = reach(Horizon())
    assert (before, after) == (15, 16)
    episode, now = window_rows(Horizon(), np.array([0, 5]), np.array([5, 50]), before, after)
    assert now.tolist() == list(range(50))
    assert episode.tolist() == [0] * 5 + [1] * 45


def test_episodes_too_short_for_a_window_have_none():
    episode, now = window_rows(Horizon(), np.array([0, 20]), np.array([20, 44]), 1, 7)
    assert (episode.tolist(), now.tolist()) == ([1], [34])


@pytest.mark.parametrize("pads", [(-1, 0), (16, 0), (0, 17)])
def test_padding_that_would_put_now_outside_the_episode_is_refused(pads):
    with pytest.raises(ValueError, match="pad_"):
        window_rows(Horizon(), np.array([0]), np.array([50]), *pads)


def test_rows_beyond_the_episode_repeat_its_edge_and_are_marked():
    now, start, end = np.array([12, 27]), np.array([10, 10]), np.array([30, 30])
    rows, is_pad = clamp_rows(now, start, end, (-8, -4, 0, 4))
    assert rows.tolist() == [[10, 10, 12, 16], [19, 23, 27, 29]]
    assert is_pad.tolist() == [[True, True, False, False], [False, False, False, True]]


def test_random_history_draws_every_multiset_that_ends_now():
    drawn = [tuple(offsets) for offsets in random_history(Horizon(), np.arange(12_000)).tolist()]
    assert all(list(offsets) == sorted(offsets) and offsets[-1] == 0 and offsets[0] >= -15 for offsets in drawn)
    assert len(set(drawn)) == 816
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert counts.max() < 4 * counts.mean()  # all alike


def test_the_split_holds_out_the_papers_episodes():
    train, held = split_episodes(206, 0.02, 42)
    assert held.tolist() == sorted(np.random.default_rng(42).choice(206, size=4, replace=False).tolist())
    assert sorted([*train, *held]) == list(range(206))
    fewer, same = split_episodes(206, 0.02, 42, max_train_episodes=90)
    assert len(fewer) == 90 and set(fewer) <= set(train) and same.tolist() == held.tolist()


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.001, 1), (0.5, 2), (0.99, 3)])
def test_at_least_one_episode_is_held_out_and_one_left(ratio, count):
    train, held = split_episodes(4, ratio, 42)
    assert (len(held), len(train)) == (count, 4 - count)


@pytest.mark.parametrize(("ratio", "most"), [(1.0, None), (-0.1, None), (0.1, 0)])
def test_bad_splits_are_refused(ratio, most):
    with pytest.raises(ValueError, match="val_ratio|max_train_episodes"):
        split_episodes(10, ratio, 42, most)
