"""What is left of a plan under way, for a plan that goes on from it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Continuation:
    """Actions that the new chunk is to keep to: inpainting in time, as in real-time chunking (Black et al. 2025).

    `actions` (n, D), in the data's units, are meant for the first n steps of the new chunk (relative ones as seen from
    the new observation). `weights` (n,) in [0, 1]: 1 keeps an action as it is, 0 leaves the policy free; in between,
    every denoising step moves its prediction towards the action by that share.

    Raises:
        ValueError: arrays that do not fit together, weights out of range, or a number that is not finite.
    """

    actions: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        actions, weights = (np.asarray(values, np.float32) for values in (self.actions, self.weights))
        if actions.ndim != 2 or not len(actions) or weights.shape != actions.shape[:1]:
            shapes = f"actions {actions.shape} and weights {weights.shape}"
            raise ValueError(f"continuation: {shapes}, expected (n, D) and (n,), n >= 1")
        if not np.isfinite(actions).all() or not ((weights >= 0) & (weights <= 1)).all():
            raise ValueError("continuation: actions must be finite and weights lie in [0, 1]")
        object.__setattr__(self, "actions", actions)
        object.__setattr__(self, "weights", weights)

    def padded(self, steps: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
        """Actions (steps, dim) and weights (steps,) of a whole chunk, with weight 0 for what is not given.

        Raises:
            ValueError: more actions than a chunk has, or of another width.
        """
        more = steps - len(self.actions)
        if more < 0 or self.actions.shape[1] != dim:
            raise ValueError(f"continuation: actions {self.actions.shape}, a chunk has {steps} of {dim} numbers")
        return np.pad(self.actions, ((0, more), (0, 0))), np.pad(self.weights, (0, more))
