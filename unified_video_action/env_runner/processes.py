"""Processes that share an evaluation, started by torchrun or by the training they belong to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist


@contextmanager
def joined() -> Iterator[bool]:
    """Within the context the processes that torchrun has started together, if it has, know of each other.

    Gives:
        whether this is the first of them, which alone writes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield place()[0] == 0
        return
    dist.init_process_group("gloo")
    try:
        yield place()[0] == 0
    finally:
        dist.destroy_process_group()


def place() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_this_machine() -> int:
    """How many of them share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def gather(mine: Sequence[Any]) -> list[Any]:
    """What all processes give, one after the other; all of them call this and receive it."""
    if place()[1] == 1:
        return list(mine)
    parts: list[Any] = [None] * place()[1]
    dist.all_gather_object(parts, list(mine))
    return [item for part in parts for item in part]
