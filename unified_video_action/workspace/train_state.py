"""What a run trains: the model with its optimiser and average, on one process, replicated (DDP) or sharded (FSDP)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unified_video_action.compat.old_checkpoints import upgrade_tensors
from unified_video_action.compat.tensors import read_safetensors, require_same, shapes_of
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace import checkpoint as ckpt
from unified_video_action.workspace.batches import MicroBatch
from unified_video_action.workspace.ema import Ema
from unified_video_action.workspace.optim import build_optimizer
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
from unified_video_action.workspace.sharding import (
    blocks_of_lists,
    laid_out,
    own_part,
    shard,
    whole,
    whole_of_part,
    without_sync,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainState:
    """A policy's model in training.

    Args:
        policy: moves to the accelerator's device. With `trainer.sharding: full` and several processes a sharded copy is
            trained in its place; the policy itself waits on the CPU and gets the averaged weights while `averaged`.
        terms: the losses that it can have; what only others train stays as it is.
    """

    def __init__(
        self,
        policy: BasePolicy,
        training: TrainingSettings,
        trainer: TrainerSettings,
        accelerator: Accelerator,
        terms: Collection[str],
    ) -> None:
        self.policy, self.accelerator = policy, accelerator
        self.clip = training.optimizer.clip
        self.sharded = trainer.sharding == "full" and accelerator.num_processes > 1
        trained = copy.deepcopy(policy) if self.sharded else policy
        trained.to(accelerator.device)
        self.model = trained.model
        for name, parameter in self.model.named_parameters():
            if any(name.startswith(prefixes) for term, prefixes in policy.heads.items() if term not in terms):
                parameter.requires_grad_(False)
        prepare_for_training(self.model, trainer.compile, self.sharded)
        forward = TrainingForward(trained)
        if self.sharded:
            every = tuple(chain.from_iterable(policy.heads.values()))
            names = {name for name, _ in self.model.named_parameters() if not name.startswith(every)}
            shard(forward, accelerator.device, {f"policy.model.{name}" for name in names})
        else:
            forward = accelerator.prepare_model(forward)  # DDP looks for parameters that a process has no use for
        self.forward = forward
        self.heads = {
            term: [p for name, p in self.model.named_parameters() if name.startswith(prefixes)]
            for term, prefixes in policy.heads.items()
            if term in terms
        }
        self.optimizer = accelerator.prepare_optimizer(build_optimizer(self.model, training.optimizer))
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.ema = Ema(self.model, training.ema)

    def train(self) -> None:
        """Switch to training mode."""
        self.policy.train()
        self.forward.train()

    def backward(self, micro_batch: MicroBatch, weights: Mapping[str, Tensor], last: bool) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch; those of the `last` one of a step are summed over the processes.

        Returns:
            the losses, this process's part of them.
        """
        processes = self.accelerator.num_processes
        alone = without_sync if self.sharded else self.accelerator.no_sync
        with nullcontext() if last else alone(self.forward):
            with self.accelerator.autocast():
                losses = self.forward(micro_batch.batch, weights, last and self.sharded)
            # Gradients are averaged over processes; here they must add up.
            self.accelerator.backward(losses["loss"] * processes)
        return losses

    def update(self, number: int, rate: float, weights: Mapping[str, Tensor]) -> Tensor | None:
        """Do optimiser step `number` (1, 2, ...) at a learning rate.

        Args:
            weights: of each loss term in the step, over all processes; what only terms without weight train stays.

        Returns:
            the norm of the gradient, if it is clipped.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for term, parameters in self.heads.items():
            if not weights[term] > 0:
                for parameter in parameters:
                    parameter.grad = None
        norm = None
        if self.clip is not None:
            norm = whole(self.accelerator.clip_grad_norm_(self.parameters, self.clip))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(number)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the policy computes with the averaged weights, in evaluation mode; all processes enter."""
        self.policy.eval()
        if self.sharded:
            self.policy.model.load_state_dict({**self.policy.model.state_dict(), **self._whole_average()})
            self.policy.to(self.accelerator.device)
        # Kernels are made for the shapes of training alone.
        with nullcontext() if self.sharded else self.ema.applied(), torch.compiler.set_stance("force_eager"):
            with self.accelerator.autocast():
                yield
        if self.sharded:
            self.policy.to("cpu")
        self.policy.train()

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds, file name -> whole tensors; all processes call this together."""
        model = {name: whole(value) for name, value in self.model.state_dict().items()}
        moments = ckpt.optimizer_tensors(self.optimizer, self.model)
        return {
            "model.safetensors": model,
            "ema.safetensors": {**model, **self._whole_average()},
            "trainer_state.safetensors": {name: whole(value) for name, value in moments.items()},
        }

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint, however many processes have written it.

        Raises:
            ValueError: it holds other tensors than this model has.
        """
        state = self.model.state_dict()
        given = upgrade_tensors(read_safetensors(folder / "model.safetensors"))
        require_same(shapes_of(state), shapes_of(given), f"{folder}/model.safetensors")
        self.model.load_state_dict({name: laid_out(value, state[name]) for name, value in given.items()})
        average = upgrade_tensors(read_safetensors(folder / "ema.safetensors"))
        parameters = dict(self.model.named_parameters())
        self.ema.load_state_dict({name: own_part(laid_out(average[name], p)) for name, p in parameters.items()})
        moments = {}
        for key, value in upgrade_tensors(read_safetensors(folder / "trainer_state.safetensors")).items():
            parameter = parameters.get(key.rpartition(".")[0])
            fits = parameter is not None and parameter.shape == value.shape
            moments[key] = laid_out(value, parameter) if fits else value
        ckpt.load_optimizer_tensors(self.optimizer, self.model, moments)

    def _whole_average(self) -> dict[str, Tensor]:
        parameters = dict(self.model.named_parameters())
        return {name: whole_of_part(part, parameters[name]) for name, part in self.ema.state_dict().items()}


class TrainingForward(nn.Module):
    """A policy's losses. If asked, heads that a batch has no use for get gradients of zero.

    So processes with shares of the same parameters still sum the same gradients.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Mapping[str, Any], weights: Mapping[str, Tensor], all_heads: bool) -> dict[str, Tensor]:
        losses = self.policy(batch, weights)
        absent = tuple(p for term, names in self.policy.heads.items() if term not in losses for p in names)
        if all_heads and absent:
            named = self.policy.model.named_parameters()
            unused = [parameter for name, parameter in named if name.startswith(absent) and parameter.requires_grad]
            losses["loss"] = _Touched.apply(losses["loss"], *unused)
        return losses


class _Touched(torch.autograd.Function):
    """The first argument; the gradients of the others are zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *others: Tensor) -> Tensor:
        ctx.others = others
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *map(torch.zeros_like, ctx.others)


def prepare_for_training(model: nn.Module, compiled: bool, sharded: bool = False) -> None:
    """Where `compiled`, let `torch.compile` make kernels for the outermost modules that are called, in place.

    Names of tensors stay. Of a model that will be `sharded` it makes them for the blocks of its lists, one by one:
    parameters are gathered between two of them.
    """
    if not compiled:
        return
    for module in (block for _, block in blocks_of_lists(model)) if sharded else _outermost_called(model):
        module.compile(dynamic=False)


def _outermost_called(module: nn.Module) -> Iterator[nn.Module]:
    """Parts of a module that have a `forward` and parts of their own; what holds others and has none is passed by."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _outermost_called(child)
        elif any(True for _ in child.children()):
            yield child


def count_flops(policy: BasePolicy, micro_batch: MicroBatch) -> float:
    """Operations per sample of a micro-batch's matrix products and convolutions, forward and backward.

    They are counted on tensors that have shapes and no values.
    """
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in policy.parameters()}
    shadow = copy.deepcopy(policy, empty).to("meta").eval()
    moved = micro_batch.to("meta")
    # Attention written out as matrix products is what the counter knows on every device.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        shadow(moved.batch, moved.weights)["loss"].backward()
    return counter.get_total_flops() / len(moved.batch["seed"])
