"""How well a policy's world model works on held-out windows: frames, actions, and whether either follows the other.

A row is one way of making frames or actions; the rows `*_other` are shown the actions, or the future frames, of another
window: a model that ignores its input is no worse with them. Figures come with intervals over episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unified_video_action.env.state_reader import Readings, StateReader
from unified_video_action.evaluation.bootstrap import Bootstrap, Figure
from unified_video_action.evaluation.frame_errors import Errors, frame_errors, psnr
from unified_video_action.evaluation.windows import HeldOutWindows, generators, observation
from unified_video_action.model.task_modes import TASK_MODES, covered
from unified_video_action.policy.base import BasePolicy

FRAME_ROWS = {  # name -> the task mode that has to be trained
    "codec": None,  # the true frames, encoded and decoded
    "still": None,  # the newest frame, repeated
    "video": "video",
    "policy_and_video": "policy_and_video",
    "forward_dynamics": "forward_dynamics",  # with the recorded actions
    "forward_dynamics_other": "forward_dynamics",
}
ACTION_ROWS = {
    "hold": None,  # what the actions are relative to, repeated, or else the newest action before now
    "policy": "policy",
    "inverse_dynamics": "inverse_dynamics",  # with the recorded future frames
    "inverse_dynamics_other": "inverse_dynamics",
}
Results = dict[str, Any]


class WorldModel:
    """Measures one policy.

    Args:
        windows: held-out ones.
        reader: reads positions from frames; None: pixels alone are compared.
    """

    def __init__(self, policy: BasePolicy, windows: HeldOutWindows, reader: StateReader | None = None) -> None:
        self.policy, self.windows, self.reader = policy, windows, reader
        # Modes that the policy's training covers; no other is asked for. Policies without modes only act.
        trained = getattr(policy, "trained", ()) or (TASK_MODES["policy"],)
        known = {None, *(name for name, mode in TASK_MODES.items() if covered(mode, trained))}
        self.frame_rows = [name for name, mode in FRAME_ROWS.items() if mode in known and windows.encoded]
        self.action_rows = [name for name, mode in ACTION_ROWS.items() if mode in known]
        if self._held(windows.part([0])) is None:
            self.action_rows.remove("hold")
        self.not_trained = sorted({*FRAME_ROWS.values(), *ACTION_ROWS.values()} - known - {None})
        self.bootstrap = Bootstrap(windows.episode)

    def measure(self, samples: int = 8) -> Results:
        """Everything as one mapping; see the functions below. `samples`: of video for each window.

        Frames also have `gain`, the dB by which they are better than the newest frame repeated.
        """
        frames = {name: self.frame_errors(name) for name in self.frame_rows}
        for errors in frames.values():
            errors["gain"] = errors["psnr"] - frames["still"]["psnr"]
        actions = {name: self.action_errors(name) for name in self.action_rows}
        found = {
            "unit": "" if self.reader is None else self.reader.unit,
            "windows": len(self.windows),
            "episodes": len(np.unique(self.windows.episode)),
            "horizon": list(self.policy.task.horizon.future_offsets),
            "not_trained": self.not_trained,
            "frames": {name: self.summary(errors) for name, errors in frames.items()},
            "actions": {name: self.action_summary(errors) for name, errors in actions.items()},
            "ratios": self.ratios(frames, actions),
        }
        if best := self.best_of(samples):
            found["best_of"] = best
        if plan := self.plan_errors():
            found["plan"] = {name: self.summary(errors) for name, errors in plan.items()}
        return found

    # -- frames --------------------------------------------------------------------------------------------------------

    def frame_errors(self, row: str) -> Errors:
        """Errors (N, F) of a row of FRAME_ROWS; NaN where its actions are not recorded."""
        valid = self._frame_valid
        if row.startswith("forward_dynamics"):
            known = self.windows.batch["has_action"].numpy()
            known = known if row == "forward_dynamics" else known & known[self.windows.other]
            valid = valid & known[:, None]
        return self._compared(self.frames(row), self.windows.future, self._true_readings, valid)

    def _compared(self, frames: Tensor, true: Tensor, readings: Readings | None, valid: np.ndarray) -> Errors:
        read = () if self.reader is None else (self._read(frames), readings, self._now_readings)
        return frame_errors(frames, true, valid, *read)

    def summary(self, errors: Errors) -> dict[str, Results]:
        """Means of all metrics, over all horizons and at each; of the agent's error the median, and `agent_mean`."""
        averages = {name: (values, self.bootstrap.mean) for name, values in errors.items()}
        if "agent" in errors:
            averages |= {"agent": (errors["agent"], self.bootstrap.median)}
            averages |= {"agent_mean": (errors["agent"], self.bootstrap.mean)}
        return {
            name: average(values) | {"by_horizon": [average(column) for column in values.T]}
            for name, (values, average) in averages.items()
        }

    def best_of(self, samples: int) -> dict[str, Figure] | None:
        """PSNR of the best of several imagined futures of each window, and its gain over repeating the newest frame.

        None where no mode without actions was trained in frames.
        """
        row = next((name for name in ("video", "policy_and_video") if name in self.frame_rows), None)
        if row is None or samples < 1:
            return None
        count = self._frame_valid.sum(1)  # (N,)

        def mean_psnr(frames: Tensor) -> np.ndarray:
            close = np.where(self._frame_valid, psnr(frames, self.windows.future), 0).sum(1) / count.clip(1)
            return np.where(count > 0, close, np.nan)  # (N,)

        best = np.max([mean_psnr(self.frames(row, sample)) for sample in range(samples)], axis=0)
        gain = best - mean_psnr(self.frames("still"))
        figures = {"psnr": self.bootstrap.mean(best), "gain": self.bootstrap.mean(gain)}
        return {"samples": samples, "row": row, **figures}

    # -- actions -------------------------------------------------------------------------------------------------------

    def action_errors(self, row: str) -> np.ndarray:
        """Distance (N, A) of a row's actions from the recorded ones, in the data's units; NaN where there is none."""
        batch = self.windows.batch
        true = self.windows.executed if row.startswith("inverse_dynamics") else batch["action"]
        distance = (self.actions(row) - true).norm(dim=-1).numpy().astype(np.float64)  # (N, A)
        valid = ~batch["action_is_pad"] & batch["has_action"].unsqueeze(1)
        return np.where(valid.numpy(), distance, np.nan)

    def action_summary(self, errors: np.ndarray) -> Results:
        """The mean over all steps, and over those that lead from each frame to the next."""
        steps, ends = np.array(self.policy.task.horizon.action_offsets), self.policy.task.horizon.future_offsets
        starts = (-np.inf, *ends[:-1]) if ends else ()
        by = [errors[:, (steps >= start) & (steps < end)] for start, end in zip(starts, ends, strict=True)]
        return {"error": self.bootstrap.mean(errors) | {"by_horizon": [self.bootstrap.mean(part) for part in by]}}

    # -- one against the other -----------------------------------------------------------------------------------------

    def ratios(self, frames: Mapping[str, Errors], actions: Mapping[str, np.ndarray]) -> dict[str, Figure]:
        """Of the rows that are there: does it follow the actions, does it read the frames.

        Returns:
            follows_actions_agent, follows_actions_block: error with another window's actions over that with the true
            ones; follows_actions_psnr: dB by which the true actions are better. reads_frames: error with another
            window's frames over that with the true ones. inverse_vs_policy: error of inverse dynamics over the
            policy's. A ratio of 1, or 0 dB, says that the input is ignored.
        """
        found: dict[str, Figure] = {}
        true, other = (frames.get(name) for name in ("forward_dynamics", "forward_dynamics_other"))
        if true and other:
            for name in ("agent", "block"):
                if name in true:
                    found[f"follows_actions_{name}"] = self.bootstrap.ratio(other[name], true[name])
            found["follows_actions_psnr"] = self.bootstrap.mean(true["psnr"] - other["psnr"])
        for name, over, under in (
            ("reads_frames", "inverse_dynamics_other", "inverse_dynamics"),
            ("inverse_vs_policy", "inverse_dynamics", "policy"),
        ):
            if over in actions and under in actions:
                found[name] = self.bootstrap.ratio(actions[over], actions[under])
        return found

    def plan_errors(self) -> dict[str, Errors]:
        """Errors of imagined plans against the simulator that executes them, by how they were imagined; empty where
        the task's reader knows no simulator, or the policy does not imagine what it plans.

        `policy_and_video` is what the policy imagines, `forward_dynamics` what its plan leads to by that mode, `still`
        the newest frame. `simulator`, against what was recorded when people acted, is how exact all this can be: the
        simulator starts from what the newest frame shows, at rest.
        """
        if self.reader is None or "policy_and_video" not in self.frame_rows:
            return {}
        now = self._now_readings
        known = np.isfinite(now.state).all(-1) & now.one_agent & now.one_block  # (N,)
        made = self._each(lambda batch, noise: self.policy.predict_action_and_video(observation(batch), noise), "plan")
        plan = made["action_pred"]
        true = self._simulated(plan, known)
        if true is None:
            return {}
        imagined = {"policy_and_video": made["frames"], "still": self.frames("still")}
        if "forward_dynamics" in self.frame_rows:
            imagined["forward_dynamics"] = self._foreseen(plan, "plan by forward dynamics")
        readings, valid = self._read(true), np.broadcast_to(known[:, None], self._frame_valid.shape)
        errors = {name: self._compared(frames, true, readings, valid) for name, frames in imagined.items()}
        recorded = self._simulated(self.windows.executed, known)
        valid = valid & self._frame_valid & ~self.windows.batch["action_is_pad"].numpy().any(1)[:, None]
        return errors | {"simulator": self._compared(recorded, self.windows.future, self._true_readings, valid)}

    # -- rows ----------------------------------------------------------------------------------------------------------

    def frames(self, row: str, sample: int = 0) -> Tensor:
        """Frames uint8 (N, F, 3, S, S) of a row; `sample` numbers samples of its noise."""
        policy, windows = self.policy, self.windows
        if row == "still":
            return windows.now.unsqueeze(1).expand_as(windows.future)
        if row.startswith("forward_dynamics"):
            return self._foreseen(windows.executed if row == "forward_dynamics" else self._other_actions(), row)
        predict = {
            "codec": lambda batch, noise: {"frames": policy.decode(batch["future"][policy.task.camera_names[0]])},
            "video": lambda batch, noise: policy.predict_video(observation(batch), noise),
            "policy_and_video": lambda batch, noise: policy.predict_action_and_video(observation(batch), noise),
        }[row]
        return self._each(predict, row, sample)["frames"]

    def actions(self, row: str) -> Tensor:
        """Actions (N, A, D) of a row of ACTION_ROWS, in the data's units, on the CPU."""
        policy, windows = self.policy, self.windows
        shown = np.arange(len(windows)) if row == "inverse_dynamics" else windows.other

        def inverse(batch: dict[str, Any], noise: list[torch.Generator]) -> dict[str, Tensor]:
            future = windows.part(shown[batch["window"].cpu().numpy()])["future"]
            return policy.predict_inverse_dynamics(observation(batch), future, generator=noise)

        predict = {
            "hold": lambda batch, noise: {"action_pred": self._held(batch).expand_as(batch["action"])},
            "policy": lambda batch, noise: policy.predict_action(observation(batch), noise),
        }.get(row, inverse)
        return self._each(predict, row)["action_pred"]

    def _foreseen(self, actions: Tensor, label: str) -> Tensor:
        """Frames by forward dynamics of actions (N, A, D)."""

        def predict(batch: dict[str, Any], noise: list[torch.Generator]) -> dict[str, Tensor]:
            chunk = actions[batch["window"].cpu()].to(self.policy.device)
            return self.policy.predict_forward_dynamics(observation(batch), chunk, noise)

        return self._each(predict, label)["frames"]

    def _other_actions(self) -> Tensor:
        """Other windows' actions (N, A, D); where actions are relative, as seen from here: a plausible chunk."""
        batch, other = self.windows.batch, torch.as_tensor(self.windows.other)
        origin = self._origin(batch)
        return self.windows.executed[other] + (0 if origin is None else origin - origin[other])

    def _origin(self, batch: Mapping[str, Any]) -> Tensor | None:
        name = getattr(self.policy.config, "relative_to", None)
        return None if name is None else batch["low_dim"][name][:, -1:]

    def _held(self, batch: Mapping[str, Any]) -> Tensor | None:
        """(B, 1, D) the action that changes nothing; None: it is not known."""
        origin = self._origin(batch)
        return batch["history_action"][:, -1:] if origin is None and "history_action" in batch else origin

    def _each(
        self,
        predict: Callable[[dict[str, Any], list[torch.Generator]], dict[str, Tensor]],
        label: str,
        sample: int = 0,
    ) -> dict[str, Tensor]:
        """Predictions for all windows, on the CPU; batches also have `window` (B,), its index."""
        parts = []
        for indices in self.windows.index_batches(f"{label} {sample}" if sample else label):
            batch = self.windows.part(indices) | {"window": torch.as_tensor(indices)}
            made = predict(batch, generators([(seed + sample) % 2**63 for seed in batch["seed"].tolist()]))
            parts.append({name: made[name].cpu() for name in ("frames", "action_pred") if name in made})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _simulated(self, actions: Tensor, known: np.ndarray) -> Tensor | None:
        """What the simulator shows when it executes actions (N, A, D); black where the start is not known."""
        horizon, size = self.policy.task.horizon, self.windows.now.shape[-1]
        offsets = [offset - horizon.action_offsets[0] for offset in horizon.future_offsets]
        made = self.reader.simulate(self._now_readings.state[known], actions.numpy()[known], offsets, size)
        if made is None:
            return None
        frames = torch.zeros_like(self.windows.future)
        frames[torch.as_tensor(known)] = torch.from_numpy(made).movedim(-1, -3)
        return frames

    # -- readings ------------------------------------------------------------------------------------------------------

    def _read(self, frames: Tensor) -> Readings:
        """uint8 (..., 3, S, S) -> readings (...)."""
        return self.reader(frames.movedim(-3, -1).contiguous().numpy())

    @cached_property
    def _now_readings(self) -> Readings:
        return self._read(self.windows.now)

    @cached_property
    def _true_readings(self) -> Readings | None:
        return None if self.reader is None else self._read(self.windows.future)

    @property
    def _frame_valid(self) -> np.ndarray:
        return ~self.windows.batch["frame_is_pad"].numpy()
