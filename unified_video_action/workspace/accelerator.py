"""The Accelerator of a run: its device, precision and processes."""

from __future__ import annotations

import atexit
import logging
import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from unified_video_action.workspace.settings import TrainerSettings

logger = logging.getLogger(__name__)
PATIENCE = timedelta(hours=6)  # the others wait while the main process fills caches or measures


def build_accelerator(settings: TrainerSettings) -> Accelerator:
    """Make the process's Accelerator; processes come from `torchrun`, `accelerate launch` or a SLURM job's tasks.

    Raises:
        ValueError: a device or a precision that this machine does not have.
    """
    cpu = settings.device == "cpu" or not torch.cuda.is_available()
    if cpu and settings.device == "cuda":
        raise ValueError("trainer.device=cuda, but torch finds no CUDA device; take trainer.device=cpu or auto")
    if cpu and settings.precision == "fp16":
        raise ValueError("trainer.precision=fp16 needs a CUDA device; take bf16 or no")
    _find_tasks()
    AcceleratorState._reset_state()  # accelerate keeps one per process; a sweep runs several trainings in one
    atexit.register(_close_process_group)
    return Accelerator(
        cpu=cpu,
        mixed_precision=precision_on("cpu" if cpu else "cuda", settings.precision),
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )


def precision_on(device: str, wanted: str) -> str:
    """What `trainer.precision` means on a device: `auto` is bf16 where the hardware computes in it, else no."""
    if device == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()  # no public function says so; a CPU with AMX has it too
    if wanted == "bf16" and not native:
        logger.warning("trainer.precision=bf16, but this device only imitates it: `no` will be many times faster")
    return ("bf16" if native else "no") if wanted == "auto" else wanted


def _find_tasks() -> None:
    """Tell torch of the tasks of a job that Hydra's submitit launchers have started, as torchrun does."""
    if "SUBMITIT_EXECUTOR" in os.environ and "RANK" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        tasks = TorchDistributedEnvironment()
        if tasks.world_size > 1:
            tasks.export(set_cuda_visible_devices=False)


def _close_process_group() -> None:
    """Part from the other processes in order; threads of an open group may abort the process when Python exits."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
