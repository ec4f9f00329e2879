"""What to tell when a loss is not a number: which step, which samples, which of their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified_video_action.policy.base import Share
from unified_video_action.workspace.batches import StepBatches

MOST_ROWS = 64  # samples listed in full


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient has become infinite or not a number."""


def non_finite_loss(batches: StepBatches, step: int, terms: Mapping[str, float], root: Path) -> NonFiniteLoss:
    """Build the error for a step, whose samples are read once more to look for the culprit among them.

    Args:
        step: counted from 0. terms: the losses. root: where the checkpoints are.
    """
    lines = [
        f"the loss of step {step} is not finite: " + ", ".join(f"{name} {value:g}" for name, value in terms.items()),
        f"Nothing was saved since the last good checkpoint in {root}. The samples of the step:",
    ]
    rows = batches.whole(step)
    for place, (index, seed) in enumerate(rows[:MOST_ROWS]):
        sample = batches.dataset.__getitems__([(index, seed)])
        prepared = batches.policy.prepare(sample, Share(step, place, batches.batch_size, batches.seed))
        mode = "".join(f", mode {name}" for name in prepared.get("task_mode", ()))
        bad = sorted(name for name, value in _floats(sample) if not torch.isfinite(value).all())
        fault = f"  <- not finite: {', '.join(bad)}" if bad else ""
        lines.append(f"  index {index}, seed {seed}{mode}: {batches.dataset.describe(index)}{fault}")
    if len(rows) > MOST_ROWS:
        lines.append(f"  and {len(rows) - MOST_ROWS} more: " + ", ".join(str(index) for index, _ in rows[MOST_ROWS:]))
    return NonFiniteLoss("\n".join(lines))


def non_finite_weights(step: int, root: Path) -> NonFiniteLoss:
    """Build the error for weights that a gradient has ruined although every loss was finite."""
    return NonFiniteLoss(
        f"after step {step - 1} the weights are not finite, although the losses are: a gradient has overflowed. "
        f"The last good checkpoint in {root} is untouched. A lower training.optimizer.learning_rate, "
        "training.optimizer.clip=1 or trainer.precision=no may help"
    )


def _floats(sample: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            yield from _floats(value, f"{name}.{key}" if name else str(key))
    elif isinstance(sample, Tensor) and sample.is_floating_point():
        yield name, sample
