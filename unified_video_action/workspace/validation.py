"""What a policy does on held-out windows while it trains: losses, errors of actions and frames, health, a sheet."""

from __future__ import annotations

import logging
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
from unified_video_action.workspace.records import Records
from unified_video_action.workspace.sheet import draw_sheet

logger = logging.getLogger(__name__)
READ = ("agent", "block", "angle", "whole")  # what a reader adds to PSNR


class Validation:
    """Measures a policy on fixed windows, spread evenly over the held-out episodes.

    Args:
        policy: in evaluation mode when asked to measure.
        dataset: held-out samples with frames (not latents), of which `windows` are kept in memory.
        windows: how many.
        reader: of positions in frames, where the task has one.
    """

    def __init__(
        self,
        policy: BasePolicy,
        dataset: WindowDataset,
        windows: int,
        reader: StateReader | None = None,
    ) -> None:
        self.policy, self.dataset, self.windows, self.reader = policy, dataset, windows, reader

    @torch.no_grad()
    def measure(self, step: int, records: Records) -> dict[str, float]:
        """Metrics on all windows.

        Returns:
            `<term>`: losses, of policies with task modes `<mode>/<term>`. `action_error`: distance of the actions that
            would be executed from the recorded ones, in the data's units, and `action_error_chunk` for whole chunks.
            `frame_psnr`: of imagined future frames in dB, at the codec's size, and `frame_psnr_still` for repeating the
            newest frame instead. `forward_dynamics_psnr`: of frames imagined from the recorded actions.
            `inverse_dynamics_error`: of whole chunks. With a reader also `frame_agent` and the like, see
            `WorldModel.compare`. The ratios of `WorldModel.ratios`. `health/...`: see `heads_health`. Only what the
            policy has learned is measured.
        """
        model = self._model
        frames = {"frame": next((name for name in ("video", "policy_and_video") if name in model.frame_rows), None)}
        frames |= {name: name for name in ("forward_dynamics", "forward_dynamics_other") if name in model.frame_rows}
        if frames["frame"]:
            frames["still"] = "still"
        errors = {name: model.frame_errors(row) for name, row in frames.items() if row}
        actions = {name: model.action_errors(name) for name in model.action_rows if name != "hold"}
        metrics = self._losses()
        if "policy" in actions:
            metrics["action_error"] = _mean(actions["policy"][:, : self.policy.action_steps])
            metrics["action_error_chunk"] = _mean(actions["policy"])
        if "inverse_dynamics" in actions:
            metrics["inverse_dynamics_error"] = _mean(actions["inverse_dynamics"])
        if "still" in errors:
            metrics["frame_psnr_still"] = _mean(errors["still"]["psnr"])
        for name in ("frame", "forward_dynamics"):
            shown = {key: values for key, values in errors.get(name, {}).items() if key in ("psnr", *READ)}
            metrics |= {f"{name}_{key}": _mean(values) for key, values in shown.items()}
        metrics |= {name: figure["value"] for name, figure in model.ratios(errors, actions).items()}
        batch = model.windows.part(range(min(len(model.windows), model.windows.rows)))
        health = heads_health(self.policy, batch)
        for warning in warnings(health):
            logger.warning("step %d: %s", step, warning)
        metrics |= {f"health/{name}": value for name, value in health.items()}
        return {name: value for name, value in metrics.items() if value is not None and np.isfinite(value)}

    @torch.no_grad()
    def draw(self, step: int, records: Records, folder: Path, rows: int) -> dict[str, float]:
        """Draw a sheet of imagined frames under the true ones into `folder`."""
        shown = HeldOutWindows(self.policy, self.dataset, rows)
        path = folder / f"step_{step:08d}.png"
        if draw_sheet(path, self._measured(shown)):
            records.picture(step, "imagined", path)
        return {}

    @cached_property
    def _model(self) -> WorldModel:
        return self._measured(HeldOutWindows(self.policy, self.dataset, self.windows))

    def _measured(self, windows: HeldOutWindows) -> WorldModel:
        return WorldModel(self.policy, windows, self.reader)

    def _losses(self) -> dict[str, float]:
        """Over all windows."""
        sums: dict[str, list[float]] = {}
        windows = self._model.windows
        for first in range(0, len(windows), windows.rows):
            batch = windows.part(range(first, min(first + windows.rows, len(windows))))
            for prefix, prepared in self.policy.validation_batches(batch).items():
                prepared = map_leaves(prepared, Tensor, lambda tensor: tensor.to(self.policy.device))
                weights = self.policy.loss_weights(prepared)
                losses = self.policy(prepared, weights)
                for name, weight in weights.items():
                    total = sums.setdefault(prefix + name, [0.0, 0.0])
                    total[0] += float(losses[name]) * weight
                    total[1] += weight
        return {name: total / weight for name, (total, weight) in sums.items() if weight}


def _mean(values: np.ndarray) -> float | None:
    """Of the known values; None where there is none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
