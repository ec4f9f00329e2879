"""Parameters that are spread over processes (FSDP2), and what `whole` makes of them; a plain tensor stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


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
