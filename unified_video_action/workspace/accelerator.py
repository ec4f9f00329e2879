"""The Accelerator of a run: its device, precision and processes."""

from __future__ import annotations

import atexit
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from unified_video_action.workspace.settings import TrainerSettings

if TYPE_CHECKING:
    from accelerate import Accelerator


def build_accelerator(settings: TrainerSettings) -> Accelerator:
    """Make the process's Accelerator; processes come from `torchrun` or `accelerate launch`.

    Raises:
        ValueError: a device or a precision that this machine does not have.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("trainer.device=cuda, but torch finds no CUDA device; take trainer.device=cpu or auto")
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if settings.precision == "fp16" and cpu:
        raise ValueError("trainer.precision=fp16 needs a CUDA device; take bf16 or no")
    AcceleratorState._reset_state()  # accelerate keeps one per process; a sweep runs several trainings in one
    atexit.register(close_process_group)
    return Accelerator(
        cpu=cpu,
        mixed_precision=settings.precision,
        kwargs_handlers=[
            # A process's share of a batch need not hold every task mode, so some heads may have no gradient in it.
            DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True),
            # The others wait while the main process evaluates in the simulator.
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ],
    )


def close_process_group() -> None:
    """Part from the other processes in order; threads of an open group may abort the process when Python exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
