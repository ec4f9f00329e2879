"""A training process: its device and precision, the folder that it holds, and signals that ask it to stop."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from filelock import FileLock, Timeout

from unified_video_action.workspace.settings import TrainerSettings

logger = logging.getLogger(__name__)
PATIENCE = timedelta(hours=6)  # the others wait while the main process fills caches or measures
GRACE = 60  # seconds that a worker lives on after SIGTERM


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder, which is made, while training in it; the system frees it however the process ends.

    Raises:
        ValueError: another process trains there; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / ".training.owner"  # who holds it, for the message
    lock = FileLock(folder / ".training.lock", timeout=0)
    try:
        held = lock.acquire()
    except Timeout as error:
        who = owner.read_text() if owner.is_file() else "another process"
        raise ValueError(
            f"output_dir={folder}: {who} trains there. Wait for it or stop it, or choose another output_dir"
        ) from error
    with held:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
        owner.unlink()


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Names of the signals that have come; only a second SIGINT interrupts as usual.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """
    names: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and names:
            raise KeyboardInterrupt
        names.append(signal.Signals(number).name)

    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield names
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int = 0) -> None:
    """For loader workers: a signal to the whole process group is the training process's to answer.

    Until it has finished its step a worker goes on, yet not for ever: SIGTERM is also what ends a worker that hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))
