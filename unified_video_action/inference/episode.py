"""What is remembered of one episode while a policy acts in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unified_video_action.spec import Horizon, TaskSpec

Observation = Mapping[str, np.ndarray]  # camera: uint8 (H, W, 3); state: float (d,)
IMAGINATION = 0x1F2E3D4C  # sets the noise of imagined frames apart from that of actions
PLANNING = 0x2B7E1516  # and the noise of frames that a planner imagines


@dataclass
class Step:
    """One observation, and what the policy made of its frames once it was asked."""

    observation: dict[str, np.ndarray]
    encoded: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # by camera; a frame as it is: a plain tuple

    @classmethod
    def of(cls, obs: Observation, task: TaskSpec) -> Step:
        """What a policy of `task` keeps of an observation. Raises ValueError: incomplete, or not uint8 (H, W, 3)."""
        names = (*task.camera_names, *task.states)
        if missing := [name for name in names if name not in obs]:
            raise ValueError(f"observation {missing[0]!r} is missing; given are {', '.join(obs)}")
        for name in task.camera_names:
            frame = obs[name]
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
                raise ValueError(f"observation {name!r} is {frame.dtype} {frame.shape}: expected uint8 (H, W, 3)")
        return cls({name: np.array(obs[name]) for name in names})


@dataclass
class Episode:
    """The memory of one slot."""

    recent: deque[Step]  # the newest last; as many as a history reaches back
    executed: deque[np.ndarray]  # the newest actions (D,), as many as a chunk has
    acting: torch.Generator
    imagining: torch.Generator  # apart, so that looking at the imagined future changes no action
    planning: torch.Generator
    slot: int
    seed: int
    text: Tensor | None  # (text_dim,)
    coming: deque[np.ndarray] = field(default_factory=deque)  # actions of the plan that are not executed yet
    recalled: list[Step] | None = None  # a history given as a whole, in place of `recent`

    @classmethod
    def begin(cls, slot: int, seed: int, horizon: Horizon, text: Tensor | None) -> Episode:
        """A new episode, whose noise follows from its seed alone."""
        return cls(
            recent=deque(maxlen=1 - horizon.history_offsets[0]),
            executed=deque(maxlen=horizon.actions),
            acting=torch.Generator().manual_seed(seed),
            imagining=torch.Generator().manual_seed(seed ^ IMAGINATION),
            planning=torch.Generator().manual_seed(seed ^ PLANNING),
            slot=slot,
            seed=seed,
            text=text,
        )

    @property
    def knows_past(self) -> bool:
        return len(self.executed) == self.executed.maxlen

    def history(self, offsets: Sequence[int]) -> list[Step]:
        """What was seen at `offsets` from now, oldest first; the oldest observation stands in for what is missing."""
        if self.recalled is not None:
            return self.recalled
        now = len(self.recent) - 1
        return [self.recent[max(now + offset, 0)] for offset in offsets]
