"""What a run trains: the model with its optimiser and average, on one process, replicated (DDP) or sharded (FSDP)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unified_video_action.compat.checkpoint_files import upgrade_tensors
from unified_video_action.compat.tensors import read_safetensors, require_same, shapes_of
from unified_video_action.messages import few
from unified_video_action.policy.base import BasePolicy
from unified_video_action.workspace.batches import MicroBatch
from unified_video_action.workspace.optim import Ema, build_optimizer
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings

MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "trainer_state.safetensors"  # files of a checkpoint


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
        self.model = trained.to(accelerator.device).model
        for term in policy.heads.keys() - set(terms):
            for parameter in _begin_with(self.model, policy.heads[term]):
                parameter.requires_grad_(False)
        prepare_for_training(self.model, trainer.compile, self.sharded)
        forward = TrainingForward(trained)
        if self.sharded:
            heads = tuple(f"policy.model.{name}" for names in policy.heads.values() for name in names)
            shard(forward, accelerator.device, heads)
        else:
            forward = accelerator.prepare_model(forward)  # DDP looks for parameters that a process has no use for
        self.forward = forward
        self.heads = {term: _begin_with(self.model, policy.heads[term]) for term in policy.heads if term in terms}
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
        alone = without_sync if self.sharded else self.accelerator.no_sync
        with nullcontext() if last else alone(self.forward):
            with self.accelerator.autocast():
                losses = self.forward(micro_batch.batch, weights, last and self.sharded)
            # Gradients are averaged over processes; here they must add up.
            self.accelerator.backward(losses["loss"] * self.accelerator.num_processes)
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
        moments = {
            f"{name}.{quantity}": whole(value)
            for name, parameter in self.model.named_parameters()
            for quantity, value in self.optimizer.state.get(parameter, {}).items()
        }
        return {MODEL: model, EMA: {**model, **self._whole_average()}, OPTIMIZER: moments}

    def load(self, folder: Path) -> None:
        """Continue from a checkpoint, however many processes have written it.

        Raises:
            ValueError: it holds other tensors than this model has.
        """
        state, parameters = self.model.state_dict(), dict(self.model.named_parameters())
        given = upgrade_tensors(read_safetensors(folder / MODEL))
        require_same(shapes_of(state), shapes_of(given), str(folder / MODEL))
        self.model.load_state_dict({name: laid_out(value, state[name]) for name, value in given.items()})
        average = upgrade_tensors(read_safetensors(folder / EMA))
        self.ema.load({name: laid_out(average[name], parameter) for name, parameter in parameters.items()})
        moments: dict[str, dict[str, Tensor]] = {}  # parameter -> quantity -> value
        for key, value in upgrade_tensors(read_safetensors(folder / OPTIMIZER)).items():
            name, _, quantity = key.rpartition(".")
            fits = name in parameters and parameters[name].shape == value.shape  # a number of steps does not
            moments.setdefault(name, {})[quantity] = laid_out(value, parameters[name]) if fits else value
        names = {parameter: name for name, parameter in parameters.items()}
        order = [names[parameter] for group in self.optimizer.param_groups for parameter in group["params"]]
        if unknown := moments.keys() - set(order):
            raise ValueError(f"{folder / OPTIMIZER} names parameters that do not train here: {few(sorted(unknown))}")
        numbered = {number: moments[name] for number, name in enumerate(order) if name in moments}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": numbered})

    def _whole_average(self) -> dict[str, Tensor]:
        return {name: whole(value) for name, value in self.ema.weights.items()}


class TrainingForward(nn.Module):
    """A policy's losses. If asked, heads that a batch has no use for get gradients of zero.

    So processes with shares of the same parameters still sum the same gradients.
    """

    def __init__(self, policy: BasePolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, batch: Mapping[str, Any], weights: Mapping[str, Tensor], all_heads: bool) -> dict[str, Tensor]:
        losses = self.policy(batch, weights)
        if all_heads:
            absent = tuple(name for term, names in self.policy.heads.items() if term not in losses for name in names)
            unused = [parameter for parameter in _begin_with(self.policy.model, absent) if parameter.requires_grad]
            losses["loss"] = losses["loss"] + 0 * sum(parameter.sum() for parameter in unused)
        return losses


def prepare_for_training(model: nn.Module, compiled: bool, sharded: bool = False) -> None:
    """Where `compiled`, let `torch.compile` make kernels for the outermost modules that are called, in place.

    Names of tensors stay. Of a model that will be `sharded` it makes them for the blocks of its lists, one by one:
    parameters are gathered between two of them.
    """
    if compiled:
        for module in (block for _, block in blocks_of_lists(model)) if sharded else _outermost_called(model):
            module.compile(dynamic=False)


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


def _begin_with(model: nn.Module, names: tuple[str, ...]) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.startswith(names)]


def _outermost_called(module: nn.Module) -> Iterator[nn.Module]:
    """Parts of a module that have a `forward` and parts of their own; what holds others and has none is passed by."""
    for child in module.children():
        if type(child).forward is nn.Module.forward:
            yield from _outermost_called(child)
        elif any(True for _ in child.children()):
            yield child


# -- parameters that are spread over processes (FSDP2) -----------------------------------------------------------------


def shard(module: nn.Module, device: torch.device, heads: tuple[str, ...]) -> None:
    """Spread a module's parameters over all processes, in place; they are gathered while they are needed.

    Blocks of a list are gathered one after the other, provided every forward pass of every process runs them; what is
    left is gathered at once.

    Args:
        heads: how the names of parameters begin that some forward passes do not use.

    Raises:
        ValueError: this torch adds gradients up where it is to average them (2.7 does between CPUs).
    """
    mean, ones = torch.zeros(1, device=device), torch.ones(torch.distributed.get_world_size(), device=device)
    torch.distributed.reduce_scatter_tensor(mean, ones, torch.distributed.ReduceOp.AVG)
    if mean.item() != 1:
        raise ValueError(
            f"trainer.sharding=full: torch {torch.__version__} sums gradients on {device.type} in place of averaging "
            "them; take a newer torch, or trainer.sharding=none"
        )
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for name, block in blocks_of_lists(module):
        if not any(parameter.startswith(heads) for parameter, _ in block.named_parameters(name)):
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def blocks_of_lists(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is called one after the other: elements of lists, with their names, that have a `forward` and parts."""
    for list_name, blocks in module.named_modules():
        if isinstance(blocks, nn.ModuleList):
            for index, block in enumerate(blocks):
                if type(block).forward is not nn.Module.forward and any(True for _ in block.children()):
                    yield f"{list_name}.{index}", block


@contextmanager
def without_sync(module: FSDPModule) -> Iterator[None]:
    """Within the context gradients stay with the process and add up."""
    module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered; all processes call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, laid out as `like`."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
