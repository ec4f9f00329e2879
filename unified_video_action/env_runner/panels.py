"""What a policy makes of an episode that is going on, as panels of a page: pictures, paths over them, and words."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner.preparation import build_planner
from unified_video_action.env_runner.simulators import Observation
from unified_video_action.env_runner.videos import Imagination, frame_errors
from unified_video_action.inference.planner import Planner
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.base import BasePolicy
from unified_video_action.spec import TaskSpec

NOW, THEN = range(2)  # slots of the session


@dataclass(frozen=True)
class Trace:
    """An episode so far."""

    seed: int
    text: torch.Tensor | None  # (text_dim,) feature of the instruction
    seen: Sequence[Observation]  # before the first action, and after each
    actions: Sequence[np.ndarray]  # each (D,)


class Panels:
    """Five jobs of a policy, by name in `why_not`: why one cannot be done, or nothing. `make` does one.

    Args:
        policy: on its device, in evaluation mode.
        reader: of positions in frames; None: paths are shown as curves, errors as PSNR.
        planner: whose candidates are shown, or why there is none.
    """

    def __init__(self, policy: BasePolicy, reader: StateReader | None, planner: Planner | str) -> None:
        self.session, self.reader, self.task = PolicySession(policy, 2), reader, policy.task
        self.policy, self.camera = self.session.policy, self.task.camera_names[0]
        self.choosing = None if isinstance(planner, str) else PolicySession(policy, planner=planner)
        self.offsets, horizon = self.task.horizon.future_offsets, self.task.horizon
        self.span = max(horizon.actions, *self.offsets, 0)  # control steps that a look back needs
        # A GPU does one thing after the other; on a CPU the policy acts while panels are made.
        self.lock = threading.Lock() if policy.device.type == "cuda" else nullcontext()
        mode = "forward_dynamics" if getattr(policy.config, "plan_first", False) else "policy_and_video"
        self.why_not = {
            "forward": lacking(policy, "predict_forward_dynamics", "forward_dynamics"),
            "plan": lacking(policy, "predict_action", "policy"),
            "future": lacking(policy, "predict_action_and_video", mode),
            "inverse": lacking(policy, "predict_inverse_dynamics", "inverse_dynamics"),
            "planner": planner if isinstance(planner, str) else "",
        }
        self.makers = {
            "forward": self._forward,
            "plan": self._plan,
            "inverse": self._inverse,
            "planner": self._candidates,
        }

    def make(self, name: str, trace: Trace) -> dict[str, Any]:
        """Of a panel whatever there is: `image`, `paths` or `curves` of chunks by label, `frames` (with `heads` above,
        `notes` and the true ones `below`), and what to `say`; pictures are data URLs, paths from 0 to 1."""
        if self.why_not[name]:
            return {"say": self.why_not[name]}
        if name in ("forward", "inverse") and len(trace.actions) < self.span:
            return {"say": f"shown from step {self.span} of an episode on"}
        with self.lock:
            return self.makers[name](trace)

    def _forward(self, trace: Trace) -> dict[str, Any]:
        """Forward dynamics from a chunk ago with the actions that were executed since, above what really came."""
        obs, then, chunk = self._past(trace)
        found = self.policy.predict_forward_dynamics(obs, torch.from_numpy(chunk)[None], noise(trace.seed))
        frames = found["frames"][0].movedim(1, -1).cpu().numpy()  # (F, H, W, 3)
        real = [each[self.camera] for each in trace.seen]
        errors = frame_errors(Imagination(then, self.offsets, frames), real, self.reader)
        below = [picture(real[then + offset]) for offset in self.offsets]
        return {**self._strip(frames), "below": below, "notes": errors}

    def _plan(self, trace: Trace) -> dict[str, Any]:
        """The policy's plan, and the frames that it imagines for it."""
        self.session.reset(NOW, trace.seed, trace.text)  # the same noise: plans change with what is seen alone
        self.session.recall(history(self.task, trace.seen), NOW)
        shown = self._drawn(trace, [("plan", self.session.plan([NOW])[0])])
        if self.why_not["future"]:
            return {**shown, "say": self.why_not["future"]}
        return {**shown, **self._strip(self.session.imagine([NOW])[0])}

    def _inverse(self, trace: Trace) -> dict[str, Any]:
        """Inverse dynamics: the actions of the last chunk, read from its frames, beside the true ones."""
        obs, then, true = self._past(trace)
        future = {}
        for camera in self.task.predicted_cameras:
            frames = np.stack([trace.seen[then + offset][camera] for offset in self.offsets])
            future[camera] = torch.from_numpy(frames).movedim(-1, 1)[None]  # (1, F, 3, H, W)
        found = self.policy.predict_inverse_dynamics(obs, future, generator=noise(trace.seed))
        read = found["action_pred"][0].cpu().numpy()  # (A, D)
        error, unit = np.linalg.norm(read - true, axis=1).mean(), self.reader.unit if self.reader else ""
        return {**self._drawn(trace, [("true", true), ("read", read)]), "say": f"mean error {error:.3g} {unit}"}

    def _candidates(self, trace: Trace) -> dict[str, Any]:
        """The planner's plans with their scores, the one that it would execute last."""
        self.choosing.reset(0, trace.seed, trace.text)
        self.choosing.recall(history(self.task, trace.seen))
        self.choosing.plan()
        (plans,), (scores,) = self.choosing.tried
        (chosen,) = self.choosing.planner.choose(scores[None])
        ranks = [*(rank for rank in scores.argsort() if rank != chosen), chosen]
        return self._drawn(trace, [(f"{scores[rank]:.3f}", plans[rank]) for rank in ranks])

    def _drawn(self, trace: Trace, chunks: Sequence[tuple[str, np.ndarray]]) -> dict[str, Any]:
        """Labels and chunks (A, D), over the newest frame, or as curves where they are not positions."""
        paths = [None if self.reader is None else self.reader.in_picture(chunk, 1) for _, chunk in chunks]
        drawable = all(each is not None for each in paths)
        lines = [
            {"label": label, "points": np.round(path if drawable else chunk, 4).tolist()}
            for (label, chunk), path in zip(chunks, paths, strict=True)
        ]
        return {"paths" if drawable else "curves": lines, "image": picture(trace.seen[-1][self.camera])}

    def _strip(self, frames: np.ndarray) -> dict[str, Any]:
        return {"frames": list(map(picture, frames)), "heads": [f"+{offset} steps" for offset in self.offsets]}

    def _past(self, trace: Trace) -> tuple[dict, int, np.ndarray]:
        """A chunk ago: the observation then, its step, and the actions (A, D) from then on."""
        then = len(trace.actions) - self.span
        self.session.reset(THEN, trace.seed, trace.text)
        self.session.recall(history(self.task, trace.seen[: then + 1]), THEN)
        chunk = np.stack(trace.actions[then : then + self.task.horizon.actions]).astype(np.float32)
        return self.session.observation([THEN]), then, chunk


def lacking(policy: BasePolicy, method: str, mode: str) -> str:
    """Why a policy cannot do one of the jobs; empty where it can."""
    if not hasattr(policy, method):
        return f"{type(policy).__name__} has no such job"
    return "" if policy.can(mode) else f"not trained: this checkpoint never learned the mode {mode}"


def history(task: TaskSpec, seen: Sequence[Observation]) -> list[Observation]:
    """The history that a policy reads, of all that was seen; before the first observation there is nothing else."""
    now = len(seen) - 1
    return [seen[max(now + offset, 0)] for offset in task.horizon.history_offsets]


def noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(frame: np.ndarray) -> str:
    """uint8 (H, W, 3) as a data URL."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def planner_of(config: Mapping[str, Any], policy: BasePolicy, candidates: int) -> Planner | str:
    """The planner of a checkpoint's configuration, or why it has none."""
    if why := lacking(policy, "predict_states", "forward_dynamics"):
        return why
    if not (config["policy"].get("planner") or config["task"].get("planner_score")):
        return "this task has no score of plans (task.planner_score)"
    planner = build_planner(config, candidates)
    if "states" in planner.score.needs and not policy.task.auxiliary_dim:
        return "not trained: this checkpoint predicts no states (task.shape_meta.auxiliary_dim)"
    return planner
