"""A training run with one checkpoint of a few thousand weights, for scripts that read one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_run import write_run
from unified_video_action.compat.checkpoint_files import UVA

HEAD = {"width": 32, "depth": 1, "pool": 2}
CONFIG: dict[str, Any] = {
    "name": "little",
    "seed": 3,
    "output_dir": "/elsewhere/run",
    "init_from": None,
    "task": {
        "shape_meta": {
            "obs": {
                "image": {"shape": [3, 96, 96], "type": "rgb"},
                "agent_pos": {"shape": [2], "type": "low_dim", "steps": 1},
            },
            "action": {"shape": [2]},
        },
        "horizon": {},
        "dataset": {
            "_target_": "unified_video_action.dataset.pusht.PushTDataset",
            "paths": [{"path": "/elsewhere/pusht.zip", "weight": 0.5}, {"path": "/other/made.zip", "weight": 0.5}],
        },
        "env": {"_target_": "unified_video_action.env.pusht.env.PushTEnv"},
        "env_runner": {
            "_target_": "unified_video_action.env_runner.runner.EnvRunner",
            "n_episodes": 20,
            "start_seed": 100000,
            "max_steps": 16,
            "action_steps": 8,
            "metrics": ["coverage"],
        },
    },
    "data": {"frames": "latents", "cache_dir": "/elsewhere/cache", "n_views": 1},
    "model": {
        "patch_size": 2,
        "transformer": {"dim": 32, "encoder_depth": 1, "decoder_depth": 1, "heads": 2},
        "video_head": HEAD,
        "action_head": HEAD,
    },
    "vae": {"_target_": "unified_video_action.vae.pusht_tiny.PushTTiny", "weights": None},
    "policy": {"_target_": UVA, "action_steps": 8, "sampler": "ddim2", "video_sampler": "ddim2"},
    "training": {"steps": 100, "batch_size": 8},
}


@pytest.fixture
def trained_run(tmp_path: Path) -> Path:
    """RUN with checkpoints/latest, and what Hydra records of the command."""
    run = tmp_path / "run"
    folder = write_run(run, CONFIG)
    (run / "checkpoints" / "latest").symlink_to(folder.name)
    (folder / "trainer_state.json").write_text(json.dumps({"step": 10, "elapsed_seconds": 90.0, "files": {}}))
    (run / ".hydra").mkdir()
    (run / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"job": {"config_name": "uva_little"}}}))
    words = ["training.batch_size=8", "task.dataset.paths=[{path:/elsewhere/pusht.zip,weight:0.5}]"]
    (run / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump([*words, "output_dir=/elsewhere/run"]))
    return run
