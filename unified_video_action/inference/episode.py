"""The memory of one episode."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unified_video_action.inference.continuation import Continuation


class Frame(NamedTuple):
    """A frame as it is, for policies that keep nothing else of it."""

    pixels: Tensor  # uint8 (3, H, W)


@dataclass
class Step:
    """One observation, and what the policy made of its frames once it was asked."""

    observation: dict[str, np.ndarray]
    encoded: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)  # camera -> what `encode_frames` gave


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
    going_on: Continuation | None = None  # what the next plan keeps to

    @property
    def knows_past(self) -> bool:
        return len(self.executed) == self.executed.maxlen
