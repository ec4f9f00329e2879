"""From nothing to a report: get demonstrations, train `uva_pusht_mini`, evaluate it in PushT. `make demo` runs this.

Every step is a command that can be typed by hand, and is shown before it runs. Demonstrations are the published human
ones (in $UVA_DATA_DIR, or downloaded) and scripted ones made on the spot; without a network, scripted ones alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

log = logging.getLogger("demo")
ROOT = Path(__file__).resolve().parents[1]
MINUTES = {"cpu": 11.0, "cuda": 5.0}  # of the whole demo, once everything is installed
EVALUATION_MINUTES = 1.5  # left for it
LEAST_TRAINING_MINUTES = 2.0  # even when what comes before took long
TINY = (  # a run of seconds that passes through everything, for tests
    "training.batch_size=8",
    "trainer.max_steps=4",
    "trainer.log_every=2",
    "trainer.validation_windows=4",
    "trainer.sheet_windows=1",
)


def run(*command: str | Path) -> None:
    """Show and run one of the project's commands; a failing one ends the demo."""
    if try_run(*command):
        sys.exit(f"The demo stopped: {Path(command[0]).name} failed. Its message is above.")


def try_run(*command: str | Path) -> int:
    """Show and run one of the project's commands: its exit status."""
    words = [inside(word) if isinstance(word, Path) else word for word in command]
    log.info("\n$ python %s", shlex.join(words))
    # A model this small trains faster on one thread than on several.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode


def inside(path: Path) -> str:
    """A path as a command in the project's folder takes it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def hydra_value(path: Path) -> str:
    """A path as the value of a Hydra override."""
    text = inside(path)
    return text if re.fullmatch(r"[\w./+-]+", text) else "'" + text.replace("'", r"\'") + "'"


def human_demonstrations(folder: Path) -> Path | None:
    """The published archive: in $UVA_DATA_DIR, from an earlier download in `folder`, or from a new one."""
    given = os.environ.get("UVA_DATA_DIR")
    for candidate in [Path(given).expanduser(), folder] if given else [folder]:
        archive = candidate / "pusht" / "pusht.zip"
        if archive.is_file():
            log.info("Human demonstrations: %s", archive)
            return archive.resolve()
    if try_run(ROOT / "scripts" / "download_data.py", "pusht", "--output", folder) == 0:
        return (folder / "pusht" / "pusht.zip").resolve()
    log.info("The published demonstrations are not to be had: the model will learn from scripted ones alone.")
    return None


def scripted_demonstrations(folder: Path, episodes: int) -> Path:
    """Demonstrations of the scripted expert, from an earlier demo or made now."""
    store = folder / "pusht" / f"scripted_{episodes}.zarr.zip"
    if store.is_file():
        log.info("Scripted demonstrations: %s", store)
    else:
        workers = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        script = ROOT / "scripts" / "collect_demos.py"
        run(script, "--task", "pusht", "-n", str(episodes), "--output", store, "--workers", workers)
    return store.resolve()


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="to take altogether (default: 11 on a CPU, 5 on a GPU)")
    parser.add_argument("--train-minutes", type=float, help="to train (default: what is left of --minutes)")
    parser.add_argument("--episodes", type=int, default=20, help="to evaluate (default: 20)")
    parser.add_argument("--scripted", type=int, default=120, help="scripted demonstrations to make (default: 120)")
    parser.add_argument("--scripted-only", action="store_true", help="do without the human demonstrations")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where demonstrations go (default: data)")
    parser.add_argument("--output", type=Path, help="new folder of the run (default: outputs/demo_DATE)")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that learns nothing, to test the way")
    options = parser.parse_args(arguments)
    for name in ("minutes", "train_minutes", "episodes", "scripted"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {value}")
    if options.tiny:
        options.scripted, options.episodes = min(options.scripted, 4), min(options.episodes, 2)
    options.data = options.data.resolve()
    options.output = (options.output or ROOT / "outputs" / f"demo_{datetime.now():%Y%m%d_%H%M%S}").resolve()
    return options


def training_minutes(options: argparse.Namespace, spent: float) -> float:
    """How long to train when `spent` minutes are over."""
    if options.train_minutes is not None:
        return options.train_minutes
    import torch

    whole = options.minutes or MINUTES["cuda" if torch.cuda.is_available() else "cpu"]
    return max(LEAST_TRAINING_MINUTES, whole - spent - EVALUATION_MINUTES)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    started = time.monotonic()
    if subprocess.run([sys.executable, ROOT / "scripts" / "check_system.py"]).returncode:
        sys.exit("The demo needs what is named above.")

    human = None if options.scripted_only else human_demonstrations(options.data)
    stores = [store for store in (human, scripted_demonstrations(options.data, options.scripted)) if store]
    data = [
        f"task.dataset.paths=[{','.join(map(hydra_value, stores))}]",
        f"data.cache_dir={hydra_value(options.data / 'cache')}",
    ]
    run(ROOT / "scripts" / "cache_latents.py", "--config-name=uva_pusht_mini", *data)
    minutes = training_minutes(options, (time.monotonic() - started) / 60)
    run(
        ROOT / "train.py",
        "--config-name=uva_pusht_mini",
        *data,
        f"trainer.time_budget_minutes={minutes:.1f}",
        f"output_dir={hydra_value(options.output)}",
        *(TINY if options.tiny else ()),
    )
    evaluation = options.output / "evaluation"
    run(
        ROOT / "eval_sim.py",
        *("--checkpoint", options.output / "checkpoints" / "latest"),
        *("--n-episodes", str(options.episodes)),
        *("--output", evaluation),
        *(("--films", "1", "--set", "task.env_runner.max_steps=16") if options.tiny else ()),
    )
    log.info("\nDone in %.1f minutes. Open %s", (time.monotonic() - started) / 60, evaluation / "report.html")


if __name__ == "__main__":
    main()
