"""Processes that share an evaluation, started by torchrun or by the training they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from unified_video_action.workspace.commands import cores


@contextmanager
def process_group() -> Iterator[bool]:
    """Connects the processes that torchrun has started, if any; gives whether this is the first, which alone writes."""
    own = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("gloo")
    try:
        yield rank_and_size()[0] == 0
    finally:
        if own:
            dist.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_cores() -> int:
    """Cores of this machine for each of its processes, at least one."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def gather(mine: Sequence[Any]) -> list[Any]:
    """The items of all processes, one after the other; all of them call this and receive it."""
    size = rank_and_size()[1]
    if size == 1:
        return list(mine)
    parts: list[Any] = [None] * size
    dist.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
