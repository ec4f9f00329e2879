"""A moving average over the actions of a chunk."""

from __future__ import annotations

import numpy as np


def moving_average(actions: np.ndarray, taps: int = 3) -> np.ndarray:
    """Average each action with its neighbours, the first and the last repeated beyond the ends.

    The paper's code smooths the 16 actions of a real robot so, with 3 taps; rotations in their 6-D form.

    Args:
        actions: (A, D).
        taps: how many are averaged, an odd number; 1 changes nothing.

    Raises:
        ValueError: an even number of taps, or none.
    """
    if taps < 1 or taps % 2 == 0:
        raise ValueError(f"smooth={taps}: expected an odd number of actions to average, 3 as published")
    reach = taps // 2
    padded = np.concatenate([actions[:1].repeat(reach, 0), actions, actions[-1:].repeat(reach, 0)])
    return np.mean([padded[start : start + len(actions)] for start in range(taps)], axis=0).astype(actions.dtype)
