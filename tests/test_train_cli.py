"""train.py as a command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import train
from tests.shrunk import SHRUNK

ROOT = Path(__file__).parents[1]
FAST = ["--config-name=uva_pusht_mini", *SHRUNK, "training.batch_size=4", "training.steps=1000"]
FAST += ["task.dataset.val_ratio=0.25", "trainer.evaluate_every=null"]
BLIND = ["trainer.validate_every=null", "trainer.prediction_grid_every=null"]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "UVA_DATA_DIR"}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def data_options(tmp_path_factory, pusht_store) -> list[str]:
    return [f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path_factory.mktemp('cache')}"]


def test_a_run_its_continuation_and_what_it_writes(tmp_path, data_options):
    status, said = train(*FAST, *data_options, "+trainer.max_steps=3", folder=tmp_path)
    assert status == 0, said
    (run,) = (tmp_path / "outputs" / "uva_pusht_mini").iterdir()
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "prediction_grids", "train.log"} <= set(os.listdir(run))
    assert os.listdir(run / "prediction_grids") == ["step_00000003.png"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert {"validation/action_error", "validation/frame_psnr", "validation/policy/action"} <= lines[-1].keys()

    again = [*FAST, *data_options, *BLIND, f"output_dir={run}"]
    status, said = train(*again, "trainer.max_steps=5", folder=tmp_path)
    assert status == 0 and "Continuing from" in said, said
    assert (run / "checkpoints" / "latest").resolve().name == "step_00000005"
    given = run / "checkpoints" / "latest"
    tuned = [f"--config-dir={given}", "--config-name=config", f"init_from={given}", "init_normalizer=true"]
    status, said = train(*tuned, "trainer.max_steps=1", "output_dir=tuned", *BLIND, folder=tmp_path)
    assert status == 0 and f"Weights from {given}" in said, said
    made = tmp_path / "tuned" / "checkpoints" / "latest"
    assert (made / "normalizer.json").read_text() == (given / "normalizer.json").read_text()

    for change, message in {  # mistakes that show late
        "trainer.resume=false": "trainer.resume=false, but .* exists; choose another output_dir",
        "model.transformer.dim=64": "model.safetensors",
    }.items():
        status, said = train(*again, "trainer.max_steps=6", change, folder=tmp_path)
        assert status == 1 and "Traceback" not in said and re.search(message, said), said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose a configuration with --config-name="),
        ([*FAST, "trainer.max_step=5"], "Key 'max_step' is not in struct"),
        ([*FAST, "trainer.precision=half"], "TrainerSettings.precision must be auto, no, bf16 or fp16"),
        ([*FAST, "task.dataset.paths=/nowhere/x.zip"], "/nowhere/x.zip"),
    ],
)
def test_mistakes_end_with_one_line_that_names_them(tmp_path, arguments, message):
    status, said = train(*arguments, folder=tmp_path)
    assert status == 1 and message in said and "Traceback" not in said, said


def test_a_sweep_in_a_folder_that_is_given(tmp_path, data_options):
    sweep = ["training.steps=2", "trainer.max_steps=1", "seed=1,2", "output_dir=mine/${name}"]
    status, said = train("--multirun", *FAST, *data_options, *BLIND, *sweep, folder=tmp_path)
    assert status == 0, said
    for number in "01":
        assert (tmp_path / "mine" / "uva_pusht_mini" / number / "checkpoints" / "latest").is_dir()
    assert not (tmp_path / "outputs").exists()


def test_cfg_job_shows_the_configuration(tmp_path):
    status, said = train("--config-name=uva_pusht", "training=video", "--cfg", "job", folder=tmp_path)
    assert status == 0 and "video: 1.0" in said and os.listdir(tmp_path) == ["output.txt"]


def test_sigterm_saves_and_exits_with_0(tmp_path, data_options):
    """To a process started from nothing, as a user does."""
    run = tmp_path / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *FAST,
        *BLIND,
        *data_options,
        f"output_dir={run}",
        "trainer.num_workers=1",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    assert (run / "checkpoints" / "latest").resolve().name == f"step_{steps:08d}"
