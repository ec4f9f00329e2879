"""The demonstrator of block pushing: it succeeds in every order and pairing, and what it collects replays."""

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="pybullet is not installed; add the simulators with: make sims")


from unified_video_action.demos.block_push import Collector, ScriptedExpert
from unified_video_action.env.block_push.env import BlockPushEnv
from unified_video_action.env.block_push.layout import COLOURS, HIGH, LOW, TOLERANCE, split_state


@pytest.fixture(scope="module")
def env():
    env = BlockPushEnv(observe_image=False)
    yield env
    env.close()


def play(env: BlockPushEnv, seed: int, expert: ScriptedExpert) -> list[dict]:
    """Infos from the start to success."""
    infos = [env.reset(seed=seed)[1]]
    while not infos[-1]["is_success"] and len(infos) <= 200:
        infos.append(env.step(expert.act(infos[-1]["state"]))[4])
    return infos


def test_every_episode_ends_as_its_seed_decided(env):
    ways = set()
    for seed in range(10):
        expert = ScriptedExpert(seed, 0.005 * (seed % 2))
        infos = play(env, seed % 3, expert)
        assert infos[-1]["is_success"], seed
        for block, square in zip(expert.order, expert.squares):
            assert infos[-1][f"{COLOURS[block]}_in_{COLOURS[square]}"] == 1.0
        blocks = np.array([split_state(info["state"])[1][:, :2] for info in infos])  # (T, 2, 2)
        began = (np.linalg.norm(blocks - blocks[0], axis=-1) > 0.01).argmax(axis=0)
        assert began[expert.order[0]] < began[expert.order[1]]
        ways.add((expert.order, expert.squares))
    assert len(ways) == 4  # two orders, two pairings


def test_collected_episodes_replay():
    attempt = Collector(seed=3, image_size=48)(1)
    arrays, meta = attempt.episode
    again, _ = Collector(seed=3, image_size=48)(1).episode
    for name, values in again.items():
        np.testing.assert_array_equal(values, arrays[name])
    assert attempt.success and set(arrays) == {"img", "effector", "action", "state"}
    assert arrays["img"].shape[1:] == (48, 64, 3) and arrays["img"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["effector"], arrays["state"][:, :2])
    assert (arrays["action"] >= LOW - 1e-6).all() and (arrays["action"] <= HIGH + 1e-6).all()
    env = BlockPushEnv(image_size=48)
    env.reset(options={"state": arrays["state"][0]})
    for action in arrays["action"]:
        *_, info = env.step(action)
    env.close()
    _, blocks, squares = split_state(info["state"])
    paired = squares[meta["squares"][np.argsort(meta["order"])]]
    assert (np.linalg.norm(blocks[:, :2] - paired[:, :2], axis=1) < TOLERANCE + 0.005).all()
