"""What a sample of each task mode costs, and which parameters it trains; counted without computing anything."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace.batches import StepBatches
from unified_video_action.workspace.packing import map_leaves


@dataclass(frozen=True)
class Work:
    """One sample of a task mode."""

    parameters: frozenset[str]  # names of those that have a gradient
    flops: int  # of its matrix products and convolutions, forward and backward; dropout and checkpointing cost none


class Survey:
    """The work of all task modes that the mix of a run can draw.

    Modes are tried on one sample each, with tensors that have shapes and no values.
    """

    def __init__(self, policy: BasePolicy, batches: StepBatches) -> None:
        self.work: dict[str, Work] = {}
        shadow = _without_values(policy)
        known: dict[tuple, Work] = {}  # samples of equal shapes are equal work
        for mode in batches.task_modes:
            sample = batches.sample(mode)
            shapes = map_leaves(sample.draws, Tensor, lambda tensor: tuple(tensor.shape))
            key = (repr(shapes), tuple(sample.weights))
            if key not in known:
                known[key] = _measure(shadow, sample.batch, sample.draws, sample.weights)
            self.work[mode.name] = known[key]
        shares = {name: batches.mode_mix.quotas[name] for name in self.work}
        self.flops_per_sample = sum(share * self.work[name].flops for name, share in shares.items()) / sum(
            shares.values()
        )
        self.trained = self.reach(self.work)  # by any of the modes
        self.shared = frozenset.intersection(*(work.parameters for work in self.work.values()))  # by all of them

    def reach(self, modes: Iterable[str]) -> frozenset[str]:
        """Names of the parameters that samples of these modes give a gradient to."""
        return frozenset().union(*(self.work[name].parameters for name in modes))


def _without_values(policy: BasePolicy) -> nn.Module:
    """A copy on the device `meta`, in evaluation mode; the trained weights are never copied."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in policy.parameters()}
    return copy.deepcopy(policy, empty).to("meta").eval()


def _measure(shadow: nn.Module, batch: Any, draws: Any, weights: Any) -> Work:
    batch, draws = map_leaves((batch, draws), Tensor, lambda tensor: tensor.to("meta"))
    trainable = {name: parameter for name, parameter in shadow.model.named_parameters() if parameter.requires_grad}
    # Attention written out as matrix products is what the counter knows on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss = shadow(batch, draws, weights)["loss"]
        gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
    reached = (name for name, gradient in zip(trainable, gradients, strict=True) if gradient is not None)
    return Work(frozenset(reached), counter.get_total_flops())
