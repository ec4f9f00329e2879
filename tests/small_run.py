"""A training run's folder with one checkpoint of a few thousand random weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.policy.build import build_policy


def write_run(run: Path, config: Mapping[str, Any]) -> Path:
    """Write what an evaluation reads of a run of 10 steps; return the folder of its checkpoint."""
    folder = run / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    corners = np.array([[0.0, 0.0], [512.0, 512.0]])
    normalizer = Normalizer.limits({"action": corners, "agent_pos": corners})
    torch.manual_seed(0)
    policy = build_policy(config, normalizer)
    for parameter in policy.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "normalizer.json").write_text(normalizer.to_json())
    save_file(policy.model.state_dict(), folder / "ema.safetensors")
    (run / "metrics.jsonl").write_text('{"step": 5, "train/loss": 2.0}\n{"step": 10, "train/loss": 1.0}\n')
    return folder
