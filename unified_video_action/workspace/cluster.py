"""Jobs that Hydra's submitit launchers have started: on SLURM, or on this machine."""

from __future__ import annotations

import os


def find_tasks() -> None:
    """Tell torch of the tasks of this job, one process each, as torchrun does; without such a job, do nothing."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    from submitit.helpers import TorchDistributedEnvironment

    tasks = TorchDistributedEnvironment()
    if tasks.world_size > 1:
        tasks.export(set_cuda_visible_devices=False)
