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

ROOT = Path(__file__).parents[1]
FAST = [
    "--config-name=uva_pusht_mini",
    "vae.weights=random",
    "training.batch_size=4",
    "task.dataset.val_ratio=0.25",
    "trainer.validation_windows=2",
    "trainer.sheet_windows=1",
    "trainer.tensorboard=false",
]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "UVA_DATA_DIR"}
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def train(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def test_a_run_its_continuation_and_what_it_writes(tmp_path, pusht_store):
    options = [*FAST, f"task.dataset.paths={pusht_store}", "+trainer.max_steps=3", "trainer.log_every=1"]
    done = train(*options, f"data.cache_dir={tmp_path}/cache", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "uva_pusht_mini").iterdir()
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "sheets", "train.log"} <= set(os.listdir(run))
    assert os.listdir(run / "sheets") == ["step_00000003.png"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3]
    assert {"validation/action_error", "validation/frame_psnr", "validation/policy/action"} <= lines[-1].keys()

    options[-2] = "trainer.max_steps=5"
    again = train(*options, f"data.cache_dir={tmp_path}/cache", f"output_dir={run}", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Continuing from" in again.stdout + again.stderr
    assert (run / "checkpoints" / "latest").resolve().name == "step_00000005"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "choose a configuration with --config-name="),
        (["--config-name=uva_pusht_mini", "trainer.max_step=5"], "Key 'max_step' is not in struct"),
        (
            ["--config-name=uva_pusht_mini", "trainer.precision=half"],
            "TrainerSettings.precision must be auto, no, bf16 or fp16",
        ),
        (["--config-name=uva_pusht_mini", "task.dataset.paths=/nowhere/x.zip"], "/nowhere/x.zip"),
    ],
)
def test_mistakes_end_with_one_line_that_names_them(tmp_path, arguments, message):
    done = train(*arguments, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_sweep_in_a_folder_that_is_given(tmp_path, pusht_store):
    options = [*FAST, f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path}/cache", "training.steps=1"]
    options += ["trainer.validate_every=null", "trainer.sheet_every=null"]
    done = train("--multirun", *options, "seed=1,2", "output_dir=mine/${name}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for number in "01":
        assert (tmp_path / "mine" / "uva_pusht_mini" / number / "checkpoints" / "latest").is_dir()
    assert not (tmp_path / "outputs").exists()


def test_mistakes_that_show_late_end_with_one_line_too(tmp_path, pusht_store):
    run = tmp_path / "run"
    options = [*FAST, f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path}/cache", f"output_dir={run}"]
    options += ["trainer.validate_every=null", "trainer.sheet_every=null", "training.schedule.warmup_steps=1"]
    assert train(*options, "training.steps=1", folder=tmp_path).returncode == 0
    for change, message in {
        "trainer.resume=false": "trainer.resume=false, but .* exists; choose another output_dir",
        "model.transformer.dim=64": "model.safetensors",
    }.items():
        done = train(*options, "training.steps=2", change, folder=tmp_path)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert re.search(message, done.stderr), done.stderr


def test_cfg_job_shows_the_configuration(tmp_path):
    done = train("--config-name=uva_pusht", "training=video", "--cfg", "job", folder=tmp_path)
    assert done.returncode == 0 and "video: 1.0" in done.stdout and not list(tmp_path.iterdir())


def test_sigterm_saves_and_exits_with_0(tmp_path, pusht_store):
    run = tmp_path / "run"
    options = [*FAST, f"task.dataset.paths={pusht_store}", f"data.cache_dir={tmp_path}/cache", f"output_dir={run}"]
    command = [sys.executable, str(ROOT / "train.py"), *options, "trainer.log_every=1", "trainer.num_workers=1"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    assert (run / "checkpoints" / "latest").resolve().name == f"step_{steps:08d}"
