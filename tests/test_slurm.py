"""Sweeps as SLURM jobs: the configuration composes everywhere; its stand-in on one machine really trains."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.test_train_cli import BLIND, FAST, ROOT, environment

NEEDS_SUBMITIT = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="hydra-submitit-launcher is not installed (extra: slurm)"
)


@NEEDS_SUBMITIT
def test_every_gpu_has_a_task_and_the_launcher_knows_every_field():
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

    with initialize_config_dir(str(ROOT / "config"), version_base="1.3"):
        overrides = ["hydra/launcher=submitit_slurm", "hydra.launcher.gpus_per_node=4", "hydra.launcher.partition=gpu"]
        config = compose("uva_pusht", overrides, return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.job.name = "train"
    found = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert found["tasks_per_node"] == found["gpus_per_node"] == 4 and found["partition"] == "gpu"
    assert found["_target_"].endswith(".SlurmLauncher") and found["submitit_folder"].startswith("outputs/uva_pusht/")
    assert found.keys() <= {field.name for field in dataclasses.fields(SlurmQueueConf)}


@NEEDS_SUBMITIT
def test_a_sweep_trains_in_jobs_of_two_tasks(tmp_path, pusht_store):
    data_options = [f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path}/cache"]
    options = [*FAST[1:], *data_options, *BLIND, "trainer.max_steps=2", "seed=3"]
    # submitit makes the job's folder after it has started the job, which needs the folder: the job waits.
    jobs = [
        "--multirun",
        "hydra/launcher=submitit_local",
        "hydra.launcher.tasks_per_node=2",
        "+hydra.launcher.setup=[sleep 3]",
    ]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), FAST[0], *jobs, *options],
        cwd=tmp_path, env=environment() | threads, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "uva_pusht_mini").glob("sweep_*/0")
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert len(os.listdir(run / "checkpoints")) == 2  # one folder, and `latest`: the second task has written none
    (job,) = (run.parent / ".submitit").glob("[0-9]*")
    assert len(list(job.glob("*_result.pkl"))) == 2
