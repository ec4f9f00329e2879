"""Configurations cut down to what trains, evaluates and draws its prediction grid within seconds on a CPU."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

CONFIG = Path(__file__).parents[1] / "config"
SHRUNK = (  # three steps of a few thousand weights, one look at the held-out windows, one short rollout
    "vae.weights=random",
    "model.transformer.dim=32",
    "model.video_head.width=32",
    "model.video_head.rows=4",
    "model.action_head.width=32",
    "policy.sampler=ddim2",
    "policy.video_sampler=ddim2",
    "training.batch_size=5",
    "training.steps=3",
    "training.schedule.warmup_steps=1",
    "trainer.device=cpu",
    "trainer.log_every=1",
    "trainer.validate_every=3",
    "trainer.validation_windows=2",
    "trainer.prediction_grid_every=3",
    "trainer.prediction_grid_windows=1",
    "trainer.evaluate_every=3",
    "trainer.tensorboard=false",
    "task.env_runner.n_episodes=1",
    "task.env_runner.n_envs=1",
    "task.env_runner.max_steps=8",
)


def read(name: str, *overrides: str) -> dict:
    """The resolved configuration of that name."""
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return OmegaConf.to_container(compose(name, list(overrides)), resolve=True)
