"""Positions read from pictures of PushT, against the states that they were drawn of."""

import cv2
import numpy as np
import pytest

from unified_video_action.env.pusht.env import render_states
from unified_video_action.env.pusht.reader import PushTReader
from unified_video_action.env.state_reader import Readings

APART = np.array([400.0, 100.0, 200.0, 300.0, 1.0])  # agent and T far from each other and from the goal
WHITE = 255


def errors(found: Readings, states: np.ndarray) -> dict[str, np.ndarray]:
    turned = np.abs((np.degrees(found.angle - states[..., 4]) + 180) % 360 - 180)
    return {
        "agent": np.linalg.norm(found.agent - states[..., :2], axis=-1),
        "block": np.linalg.norm(found.block - states[..., 2:4], axis=-1),
        "angle": turned,
    }


def check(found: Readings, states: np.ndarray, median: float, most: float) -> None:
    """Errors in table pixels and degrees: their median and their 95th percentile; every object is found whole."""
    assert found.one_agent.mean() > 0.99 and found.one_block.mean() > 0.99
    for name, error in errors(found, states).items():
        assert np.isfinite(error).all()
        assert np.median(error) < median and np.quantile(error, 0.95) < most, (name, np.quantile(error, [0.5, 0.95]))


@pytest.fixture(scope="module")
def random_states() -> np.ndarray:
    """T anywhere, agent anywhere on the table, also over or under the T."""
    rng = np.random.default_rng(0)
    agent, block, angle = rng.uniform(15, 497, (150, 2)), rng.uniform(100, 412, (150, 2)), rng.uniform(0, 6.28, 150)
    return np.concatenate([agent, block, angle[:, None]], axis=1)


@pytest.mark.parametrize(("size", "median", "most"), [(64, 1.2, 2), (96, 0.7, 1.2), (224, 0.7, 1.2)])
def test_rendered_states_are_read(size: int, median: float, most: float, random_states: np.ndarray) -> None:
    found = PushTReader()(render_states(random_states, size=size))
    check(found, random_states, median, most)
    assert ((found.angle >= 0) & (found.angle < 2 * np.pi)).all()
    np.testing.assert_allclose(found.state[:, :2], found.agent)


def test_frames_of_people_are_read(pusht_zip) -> None:
    from unified_video_action.dataset.formats.zarr import ReplayBuffer

    store = ReplayBuffer(str(pusht_zip), images=["img"], vectors=["state"])
    rows = np.arange(0, len(store), len(store) // 100)
    check(PushTReader()(store.frames("img", rows)), store.vectors["state"][rows], 0.7, 1.2)


def test_at_the_edge_on_the_goal_and_touching() -> None:
    states = np.array([
        [3.0, 250.0, 256.0, 256.0, np.pi / 4],  # agent half off the table, T on the goal
        [250.0, 300.0, 470.0, 250.0, np.pi],  # a part of the T off the table
        [200.0, 315.0, 200.0, 300.0, 0.0],  # the T drawn over the agent's edge
    ])  # fmt: skip
    found = PushTReader()(render_states(states))
    assert all((error < 2.5).all() for error in errors(found, states).values())
    assert found.one_block.all() and found.one_agent[:2].all()


def test_what_is_not_there_or_not_whole_is_not_found() -> None:
    frame = render_states(APART[None])[0]
    no_block, no_agent, nothing = frame.copy(), frame.copy(), np.full_like(frame, WHITE)
    no_block[50:85, 10:65] = WHITE
    no_agent[10:30, 60:90] = WHITE
    twice, half, cloud, pale = (frame.copy() for _ in range(4))
    twice[60:80, 70:90] = frame[10:30, 66:86]  # the agent again
    rows, columns = np.nonzero((np.abs(frame.astype(int) - (143, 163, 184)).sum(-1) < 80) & (frame[..., 1] < 200))
    half[rows[columns > np.median(columns)], columns[columns > np.median(columns)]] = WHITE
    cloud = cv2.GaussianBlur(frame, (0, 0), 6)
    pale = (WHITE - 0.3 * (WHITE - frame.astype(float))).astype(np.uint8)
    found = PushTReader()(np.stack([frame, no_block, no_agent, nothing, twice, half, cloud, pale]))
    assert found.one_block.tolist() == [True, False, True, False, True, False, False, False]
    assert found.one_agent.tolist() == [True, True, False, False, False, True, False, False]
    assert np.isnan(found.block[:4]).all(-1).tolist() == np.isnan(found.angle[:4]).tolist() == [False, True] * 2
    assert np.isnan(found.agent[:4]).all(-1).tolist() == [False, False, True, True]


def test_the_simulator_is_asked_from_what_is_seen() -> None:
    state = np.array([[250.0, 150.0, 250.0, 250.0, 0.0]])  # the agent pushes down on the T's bar
    actions = np.linspace([250.0, 160.0], [250.0, 300.0], 16)[None]
    frames = PushTReader().simulate(state, actions, [4, 16], 96)
    assert frames.shape == (1, 2, 96, 96, 3) and frames.dtype == np.uint8
    found = PushTReader()(frames)
    assert found.block[0, 0, 1] < found.block[0, 1, 1] - 10 and found.one_block.all()
    assert PushTReader(simulates=False).simulate(state, actions, [4, 16], 96) is None
    np.testing.assert_allclose(PushTReader().in_picture(actions, 96), actions * 96 / 512)
