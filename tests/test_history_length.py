"""1 to 16 frames of history (paper's Figure 6): trained, stored, loaded and played, with one setting changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.shrunk import SHRUNK, read
from unified_video_action.env.pusht.env import PushTEnv
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy
from unified_video_action.policy.uva import UnifiedVideoActionPolicy
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

PIXELS = 2e-3  # of a table of 512: rounding of the session's engine against the policy
READS_HISTORY = "mar.inputs.history_projs.0.weight"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def plan_without_memory(policy: UnifiedVideoActionPolicy, frames: list[np.ndarray], agent: np.ndarray, seed: int):
    """The plan (A, D) from a whole history of frames (H, W, 3), the newest last."""
    obs = {
        "image": torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).unsqueeze(0),  # (1, H, 3, h, w)
        "agent_pos": torch.from_numpy(agent)[None, None],  # (1, 1, 2)
    }
    return policy.predict_action(obs, [torch.Generator().manual_seed(seed)])["action_pred"][0].numpy()


@pytest.mark.parametrize("history", [1, 2, 16])
def test_any_length_of_history_trains_and_plays(history: int, pusht_store: Path, cache: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["task.dataset.val_ratio=0.25", "training.optimizer.learning_rate=0.01", "training.steps=2"]
    options += ["trainer.validate_every=2", "trainer.prediction_grid_every=2", "trainer.evaluate_every=2"]
    options += [f"task.dataset.paths={pusht_store}", f"data.cache_dir={cache}", f"output_dir={run}"]
    options += [f"task.horizon.history={history}", "task.env_runner.max_steps=17"]
    workspace = TrainUnifiedVideoActionWorkspace(OmegaConf.create(read("uva_pusht_mini", *SHRUNK, *options)))
    before = workspace.policy.model.state_dict()[READS_HISTORY].clone()
    dataset = workspace.dataset
    assert len(dataset) + 2 * len(dataset.validation()) == 2 * 150  # every step is `now` once, and once in the mirror
    assert dataset.__getitems__([(0, 0), (30, 1)])["history"]["image"].shape[:2] == (2, history)
    workspace.run()  # plays an episode at its end
    assert (run / "evaluation" / "step_00000002" / "results.json").is_file()

    policy = load_policy(run / "checkpoints" / "latest", "model")
    stored, trained = policy.model.state_dict(), workspace.policy.model.state_dict()
    assert all(torch.equal(stored[name], trained[name]) for name in trained)
    assert not torch.equal(stored[READS_HISTORY], before)  # what reads the history has learned
    frames = max(1, history // policy.task.horizon.future)  # in a slot
    assert before.shape[1] == policy.model.spec.token_dim * frames

    for parameter in policy.model.parameters():  # after two steps, what it saw hardly matters yet
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    env, session = PushTEnv(), PolicySession(policy)
    observation, _ = env.reset(seed=0)
    seen = []
    for step in range(4 * (history - 1) + 3):  # the whole history lies in the episode
        seen.append(observation)
        action = np.array([256 + 3 * step, 400 - 5 * step], np.float32)
        observation = env.step(np.clip(action, 0, 512))[0]
    session.reset(seed=5)
    for observation in seen:
        session.observe(observation)
    plan = session.plan()[0]
    assert plan.shape == (16, 2) and np.isfinite(plan).all()

    frames = [seen[len(seen) - 1 - 4 * ago]["image"] for ago in reversed(range(history))]
    assert len({frame.tobytes() for frame in frames}) == history
    agent = seen[-1]["agent_pos"]
    np.testing.assert_allclose(plan, plan_without_memory(policy, frames, agent, 5), atol=PIXELS)
    other = plan_without_memory(policy, [np.zeros_like(frames[0]), *frames[1:]], agent, 5)
    assert np.abs(plan - other).max() > 5 * PIXELS  # the oldest frame of the history counts
