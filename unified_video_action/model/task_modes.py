"""The five jobs of one model, as data (paper, section III-D).

What a mode hides and what it learns is a row of `TASK_MODES`; no other file compares mode names.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch


@dataclass(frozen=True)
class TaskMode:
    name: str
    reference_name: str  # its name in the paper's published code
    sees_history: bool  # history frames of the first camera are visible; those of a second one always are
    future: Literal["masked", "partial", "seen"]  # future frames: all masked, partly masked in training, or given
    sees_actions: bool  # the action chunk is an input
    learns_frames: bool
    learns_actions: bool


TASK_MODES: dict[str, TaskMode] = {
    mode.name: mode
    for mode in (
        # sees history, future, sees actions, learns frames, learns actions
        TaskMode("policy", "policy_model", True, "masked", False, False, True),
        TaskMode("video", "video_model", True, "partial", False, True, False),
        TaskMode("forward_dynamics", "dynamic_model", True, "partial", True, True, False),
        TaskMode("inverse_dynamics", "inverse_model", False, "seen", False, False, True),
        TaskMode("policy_and_video", "full_dynamic_model", True, "partial", False, True, True),
    )
}

RANDOM_MODES = {  # every way to hide history, future and actions that leaves something to learn (paper, Table IX)
    f"history {history}, future {future}, actions {actions}": TaskMode(
        "random", "", history, future, actions, future != "seen", not actions
    )
    for history, future, actions in itertools.product((True, False), ("masked", "partial", "seen"), (True, False))
    if future != "seen" or not actions
}


def covered(mode: TaskMode, trained: Sequence[TaskMode]) -> bool:
    """Whether a model of these modes can do `mode`: those that have its inputs learn all that it makes."""

    def inputs(mode: TaskMode) -> tuple[bool, bool, bool]:
        return mode.sees_history, mode.future == "seen", mode.sees_actions

    alike = [other for other in trained if inputs(other) == inputs(mode)]
    frames, actions = any(other.learns_frames for other in alike), any(other.learns_actions for other in alike)
    return mode.learns_frames <= frames and mode.learns_actions <= actions


@dataclass(frozen=True)
class ModeMix:
    """How a training batch is shared among the task modes.

    By default every batch holds every mode in fixed quotas, so that all parameters have a gradient on every step and
    shapes stay the same. `per_batch` draws one mode for the whole batch instead, as the paper does.
    """

    quotas: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(TASK_MODES, 1.0))  # relative shares
    per_batch: bool = False
    random: bool = False  # hide without regard to a mode; `quotas` then says only what can be asked for

    def __post_init__(self) -> None:
        for name, share in self.quotas.items():
            if name not in TASK_MODES:
                raise ValueError(f"ModeMix.quotas: unknown task mode {name!r}; known are {', '.join(TASK_MODES)}")
            if not share >= 0:
                raise ValueError(f"ModeMix.quotas[{name}] must be >= 0, got {share!r}")
        if not sum(self.quotas.values()) > 0:
            raise ValueError("ModeMix.quotas: at least one share must be above 0")

    @property
    def trained(self) -> tuple[TaskMode, ...]:
        """The modes that can be asked for afterwards."""
        return tuple(TASK_MODES[name] for name, share in self.quotas.items() if share > 0)

    def modes(self, step: int, global_batch: int, seed: int) -> list[TaskMode]:
        """Modes of the samples of one global batch: a pure function of (step, seed), equal on every rank.

        A batch smaller than the number of modes takes them in turn over the steps.
        """
        table = RANDOM_MODES if self.random else TASK_MODES
        quotas = dict.fromkeys(RANDOM_MODES, 1.0) if self.random else self.quotas
        shares = {name: share for name, share in quotas.items() if share > 0}
        names, total = list(shares), sum(shares.values())
        if self.per_batch:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
            drawn = torch.multinomial(torch.tensor(list(shares.values()), dtype=torch.float64), 1, generator=generator)
            return [table[names[int(drawn)]]] * global_batch
        if global_batch < len(names):
            first = step * global_batch
            return [table[names[(first + i) % len(names)]] for i in range(global_batch)]
        counts = {name: int(global_batch * share / total) for name, share in shares.items()}
        by_remainder = sorted(names, key=lambda name: counts[name] - global_batch * shares[name] / total)
        for name in by_remainder[: global_batch - sum(counts.values())]:
            counts[name] += 1
        # Spread each mode evenly over the batch, so that ranks and micro-batches (contiguous slices) get alike shares.
        order = sorted(((k + 0.5) / counts[name], names.index(name)) for name in names for k in range(counts[name]))
        return [table[names[index]] for _, index in order]
