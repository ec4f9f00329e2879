"""From nothing to a report: get demonstrations, train `uva_pusht_mini`, evaluate it in PushT. `make demo` runs this.

Every step is a command that can be typed by hand, and is shown before it runs. Demonstrations are the published human
ones (in $UVA_DATA_DIR, or downloaded) and scripted ones made on the spot; without a network, scripted ones alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

log = logging.getLogger("demo")
ROOT = Path(__file__).resolve().parents[1]
TRAIN_MINUTES = {"cpu": 6.5, "cuda": 3.0}
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
    words = [str(word) for word in command]
    log.info("\n$ python %s", shlex.join([os.path.relpath(words[0], ROOT), *words[1:]]))
    return subprocess.run([sys.executable, *words], cwd=ROOT).returncode


def human_demonstrations(folder: Path) -> Path | None:
    """The published archive: in $UVA_DATA_DIR, from an earlier download in `folder`, or from a new one."""
    folders = [Path(value).expanduser() for value in (os.environ.get("UVA_DATA_DIR"),) if value] + [folder]
    for candidate in folders:
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
    parser.add_argument("--train-minutes", type=float, help="default: 6.5 on a CPU, 3 on a GPU")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate (default: 20)")
    parser.add_argument("--scripted", type=int, default=200, help="scripted demonstrations to make (default: 200)")
    parser.add_argument("--scripted-only", action="store_true", help="do without the human demonstrations")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where demonstrations go (default: data)")
    parser.add_argument("--output", type=Path, help="new folder of the run (default: outputs/demo_DATE)")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that learns nothing, to test the way")
    options = parser.parse_args(arguments)
    if options.episodes < 1 or options.scripted < 1:
        parser.error("--episodes and --scripted must be at least 1")
    if options.train_minutes is not None and options.train_minutes <= 0:
        parser.error("--train-minutes must be above 0")
    if options.tiny:
        options.scripted, options.episodes = min(options.scripted, 4), min(options.episodes, 2)
    options.data = options.data.resolve()
    options.output = (options.output or ROOT / "outputs" / f"demo_{datetime.now():%Y%m%d_%H%M%S}").resolve()
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    started = time.monotonic()
    if subprocess.run([sys.executable, ROOT / "scripts" / "check_system.py"]).returncode:
        sys.exit("The demo needs what is named above.")
    import torch

    minutes = options.train_minutes or TRAIN_MINUTES["cuda" if torch.cuda.is_available() else "cpu"]
    human = None if options.scripted_only else human_demonstrations(options.data)
    stores = [store for store in (human, scripted_demonstrations(options.data, options.scripted)) if store]
    run(
        ROOT / "train.py",
        "--config-name=uva_pusht_mini",
        f"task.dataset.paths=[{','.join(repr(str(store)) for store in stores)}]",
        f"data.cache_dir='{options.data / 'cache'}'",
        f"trainer.time_budget_minutes={minutes:g}",
        f"output_dir='{options.output}'",
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
