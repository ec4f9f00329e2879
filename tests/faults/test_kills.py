"""A training that is killed at random moments, and started again each time, ends as one that never was."""

import multiprocessing
import os
import signal
from pathlib import Path
from random import Random

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

from tests.faults import count
from tests.shrunk import CONFIG, SHRUNK
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

fork = multiprocessing.get_context("fork")


def train(config: DictConfig) -> None:
    torch.set_num_threads(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    TrainUnifiedVideoActionWorkspace(config).run()


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def run_and_kill(config: DictConfig, more: int | None, seconds: float) -> int:
    """Train in a process of its own; kill it some seconds after it took `more` steps (None: never).

    Returns its exit status.
    """
    folder = Path(config.output_dir)
    before, process = lines(folder), fork.Process(target=train, args=(config,))
    process.start()
    while process.is_alive() and (more is None or lines(folder) < before + more):
        process.join(0.002)
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    return process.exitcode


@pytest.mark.timeout(count(300, 3600))
def test_killed_runs_end_with_the_same_weights(tmp_path, pusht_store):
    kills, steps = count(3, 100), count(18, 500)
    fixed = ["trainer.checkpoint_every=1", "trainer.validate_every=null", f"training.steps={steps}"]
    fixed += [f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path / 'cache'}"]

    def config(name: str) -> DictConfig:
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            return compose("uva_pusht_mini", [*SHRUNK, *fixed, f"output_dir={tmp_path / name}"])

    assert run_and_kill(config("whole"), None, 0) == 0
    random = Random(0)
    for _ in range(kills):  # before its first step, or in the middle of one, or of a checkpoint
        assert run_and_kill(config("killed"), random.choice([0, 1, 1, 2]), random.uniform(0, 0.2)) == -signal.SIGKILL
    assert run_and_kill(config("killed"), None, 0) == 0
    for name in ("model.safetensors", "ema.safetensors", "trainer_state.safetensors"):
        expected, found = (load_file(tmp_path / run / "checkpoints" / "latest" / name) for run in ("whole", "killed"))
        assert all(torch.equal(expected[key], found[key]) for key in expected.keys() | found.keys()), name
    assert not [path for path in Path(tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]
