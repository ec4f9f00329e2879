"""From nothing to a report: show the shipped policy, get demonstrations, train `uva_pusht_mini`, evaluate it in PushT.

`make demo` runs this. Every step is a command that can be typed by hand, and is shown before it runs. Demonstrations
are the published human ones (in $UVA_DATA_DIR, or downloaded) and scripted ones made on the spot; without a network,
scripted ones alone. The report shows what was learned over the samples: the score, and how far imagined frames are
above the newest one repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from unified_video_action.workspace.commands import ROOT, above_zero, at_least, run, script_parser

log = logging.getLogger("demo")
SHIPPED = ROOT / "checkpoints" / "uva_pusht_small"
MINUTES = {"cpu": 12.0, "cuda": 5.0}  # of the whole demo, once everything is installed
EVALUATION_MINUTES = 2.0  # left for it, the last one of the training included
LEAST_TRAINING_MINUTES = 2.0  # even when what comes before took long
TINY = (  # a run of seconds that passes through everything, for tests
    "training.batch_size=8",
    "trainer.max_steps=4",
    "trainer.log_every=2",
    "trainer.validation_windows=4",
    "trainer.prediction_grid_windows=1",
    "task.env_runner.max_steps=16",
    "task.env_runner.n_episodes=2",
)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = script_parser(__doc__)
    parser.add_argument("--minutes", type=above_zero, help="total time (default: 12 on a CPU, 5 on a GPU)")
    parser.add_argument("--train-minutes", type=above_zero, help="training time (default: the rest of --minutes)")
    parser.add_argument("--episodes", type=at_least(1), default=20, help="evaluation episodes (default: 20)")
    parser.add_argument(
        "--scripted", type=at_least(1), default=120, help="scripted demonstrations to make (default: 120)"
    )
    parser.add_argument("--scripted-only", action="store_true", help="use no human demonstrations")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where demonstrations go (default: data)")
    parser.add_argument("--output", type=Path, help="new folder of the run (default: outputs/demo_DATE)")
    parser.add_argument("--tiny", action="store_true", help="a run of seconds that learns nothing, as a test")
    options = parser.parse_args(arguments)
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


def show_shipped(checkpoint: Path, output: Path, tiny: bool) -> None:
    """Say what the policy that comes with the project has scored, and record videos of it."""
    if not checkpoint.is_dir():
        log.info("No policy is shipped in %s: the demo begins with training.", checkpoint)
        return
    figures = json.loads((checkpoint / "metrics.json").read_text())
    score, success = (figures["intervals"][name] for name in ("mean_score", "success_rate"))
    log.info(
        "The policy that comes with the project scored %.2f (95 %%: %.2f to %.2f) over %d episodes and succeeded in "
        "%.0f %% (%.0f to %.0f). Some of them:",
        *(figures["mean_score"], score["low"], score["high"], figures["episodes"]),
        *(100 * rate for rate in (figures["success_rate"], success["low"], success["high"])),
    )
    run(
        ROOT / "eval_sim.py",
        *("--checkpoint", checkpoint, "--output", output),
        *("--n-episodes", "1" if tiny else "4", "--videos", "0" if tiny else "2"),
        *(("--set", "task.env_runner.max_steps=16") if tiny else ()),
    )


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    started = time.monotonic()
    if subprocess.run([sys.executable, ROOT / "scripts" / "check_system.py"]).returncode:
        sys.exit("The demo needs what is named above.")
    show_shipped(SHIPPED, options.output / "shipped", options.tiny)
    train = (
        ROOT / "scripts" / "train_pusht.py",
        *("--config-name", "uva_pusht_mini", "--recipe", "demo", "--scripted", str(options.scripted)),
        *("--data", options.data, "--run", options.output, "--output", options.output / "result"),
        *(("--scripted-only",) if options.scripted_only else ()),
    )
    run(*train, "--prepare")
    minutes = training_minutes(options, (time.monotonic() - started) / 60)
    run(
        *train,
        *("--minutes", f"{minutes:.1f}", "--episodes", str(options.episodes)),
        *(("--videos", "1", *TINY) if options.tiny else ()),
    )
    report = options.output / "evaluation" / "stored" / "report.html"
    log.info("\nDone in %.1f minutes. Open %s", (time.monotonic() - started) / 60, report)


if __name__ == "__main__":
    main()
