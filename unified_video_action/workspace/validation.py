"""What a policy does on held-out windows while it trains: losses, errors, health of heads, a prediction grid."""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.env.state_reader import StateReader
from unified_video_action.evaluation.heads import heads_health, warnings
from unified_video_action.evaluation.windows import HeldOutWindows
from unified_video_action.evaluation.world_model import WorldModel
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace.batches import map_leaves
from unified_video_action.workspace.prediction_grid import draw_prediction_grid
from unified_video_action.workspace.records import Records

logger = logging.getLogger(__name__)
SHOWN = ("psnr", "agent", "block", "angle", "whole")  # errors of frames; all but the first need a reader


class Validation:
    """Measures a policy on fixed windows, spread evenly over the held-out episodes.

    Args:
        policy: in evaluation mode when asked to measure.
        dataset: held-out samples with frames (not latents), of which `windows` are kept in memory.
        reader: of positions in frames, where the task has one.
    """

    def __init__(
        self, policy: BasePolicy, dataset: WindowDataset, windows: int, reader: StateReader | None = None
    ) -> None:
        self.policy, self.dataset, self.windows, self.reader = policy, dataset, windows, reader

    @torch.no_grad()
    def measure(self, step: int, records: Records) -> dict[str, float]:
        """Metrics on all windows; only what the policy has learned is measured.

        Returns:
            `<term>`: losses, of policies with task modes `<mode>/<term>`. `action_error`: distance of the actions that
            would be executed from the recorded ones, in the data's units, and `action_error_chunk` for whole chunks.
            `frame_psnr`: of imagined future frames in dB, at the codec's size, and `frame_psnr_still` for repeating the
            newest frame instead. `forward_dynamics_psnr`: of frames imagined from the recorded actions.
            `inverse_dynamics_error`: of whole chunks. With a reader also `frame_agent` and the like, see
            `WorldModel.compare`. The ratios of `WorldModel.ratios`. `health/...`: see `heads_health`.
        """
        model = self._model
        rows = {name: name for name in ("forward_dynamics", "forward_dynamics_other") if name in model.frame_rows}
        if imagined := next((name for name in ("video", "policy_and_video") if name in model.frame_rows), None):
            rows |= {"frame": imagined, "still": "still"}
        errors = {name: model.frame_errors(row) for name, row in rows.items()}
        actions = {name: model.action_errors(name) for name in model.action_rows if name != "hold"}

        found: dict[str, np.ndarray] = {}  # errors of all windows, by the name of their mean
        if "policy" in actions:
            found["action_error"] = actions["policy"][:, : self.policy.action_steps]
            found["action_error_chunk"] = actions["policy"]
        if "inverse_dynamics" in actions:
            found["inverse_dynamics_error"] = actions["inverse_dynamics"]
        if "still" in errors:
            found["frame_psnr_still"] = errors["still"]["psnr"]
        for row in ("frame", "forward_dynamics"):
            found |= {f"{row}_{name}": values for name, values in errors.get(row, {}).items() if name in SHOWN}
        means = {name: values[known].mean() for name, values in found.items() if (known := np.isfinite(values)).any()}

        health = heads_health(self.policy, model.windows.part(range(min(len(model.windows), model.windows.rows))))
        for warning in warnings(health):
            logger.warning("step %d: %s", step, warning)
        metrics = self._losses() | means
        metrics |= {name: figure["value"] for name, figure in model.ratios(errors, actions).items()}
        metrics |= {f"health/{name}": value for name, value in health.items()}
        return {name: float(value) for name, value in metrics.items() if value is not None and np.isfinite(value)}

    @torch.no_grad()
    def draw(self, step: int, records: Records, folder: Path, rows: int) -> dict[str, float]:
        """Draw a prediction grid, imagined frames under the true ones into `folder`."""
        path = folder / f"step_{step:08d}.png"
        if draw_prediction_grid(path, self._measured(rows)):
            records.picture(step, "imagined", path)
        return {}

    @cached_property
    def _model(self) -> WorldModel:
        return self._measured(self.windows)

    def _measured(self, windows: int) -> WorldModel:
        return WorldModel(self.policy, HeldOutWindows(self.policy, self.dataset, windows), self.reader)

    def _losses(self) -> dict[str, float]:
        """Over all windows."""
        totals: dict[str, float] = defaultdict(float)
        sums: dict[str, float] = defaultdict(float)  # of weights
        windows = self._model.windows
        for first in range(0, len(windows), windows.rows):
            batch = windows.part(range(first, min(first + windows.rows, len(windows))))
            for prefix, prepared in self.policy.validation_batches(batch).items():
                prepared = map_leaves(prepared, Tensor, lambda tensor: tensor.to(self.policy.device))
                weights = self.policy.loss_weights(prepared)
                losses = self.policy(prepared, weights)
                for name, weight in weights.items():
                    totals[prefix + name] += float(losses[name]) * weight
                    sums[prefix + name] += weight
        return {name: total / sums[name] for name, total in totals.items() if sums[name]}
