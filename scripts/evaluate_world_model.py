"""How good a checkpoint's world model is, on held-out episodes: frames, actions, and whether either follows the other.

    python scripts/evaluate_world_model.py --checkpoint RUN/checkpoints/latest
    python scripts/evaluate_world_model.py --checkpoint checkpoints/uva_pusht_small --windows 100 --output look

Windows are those of the episodes that the run held out of the first of its stores, or with --data of these stores,
split as the run splits its own. Modes that the checkpoint was not trained in are named and left out. With a reader of
positions (task.reader) errors are also in the task's units. Written to the output folder: world_model.json, and
world_model.html with tables, curves and pictures.

follows actions   forward dynamics: error with another window's actions over that with the true ones; 1: ignores them
reads frames      inverse dynamics: the same for the future frames
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from unified_video_action.workspace.commands import at_least, held_out_parser, mistakes

log = logging.getLogger("evaluate_world_model")
SHOWN = 6  # windows whose pictures the page has


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON file holds; writes the page."""
    from unified_video_action.env_runner import preparation, results
    from unified_video_action.env_runner.world_model_report import write_world_model_report
    from unified_video_action.evaluation.bootstrap import METHOD
    from unified_video_action.evaluation.heads import heads_health, warnings
    from unified_video_action.evaluation.windows import HeldOutWindows, open_held_out
    from unified_video_action.evaluation.world_model import WorldModel
    from unified_video_action.policy.build import load_policy
    from unified_video_action.workspace.prediction_grid import draw_prediction_grid

    config = preparation.read_config(options.checkpoint, options.set, simulates=False)
    dataset = open_held_out(config, options.data)
    device = preparation.choose_device(options.device)
    policy = load_policy(options.checkpoint, options.weights, device, config["policy"])
    changes = {"sampler": options.sampler, "video_sampler": options.sampler, "iterations": options.iterations}
    policy.config = replace(policy.config, **{name: value for name, value in changes.items() if value is not None})
    if dataset.instructions:
        dataset.use_text(policy.encode_text(dataset.instructions))
    reader = preparation.build_reader(config)
    windows = HeldOutWindows(policy, dataset, options.windows, options.rows, progress=True)
    model = WorldModel(policy, windows, reader)
    health = heads_health(policy, windows.part(range(min(len(windows), options.rows))))
    found = {
        "checkpoint": str(options.checkpoint),
        **model.measure(options.samples),
        "health": health,
        "warnings": warnings(health),
        "intervals": METHOD,
        "settings": {
            **{name: getattr(policy.config, name) for name in changes},
            "weights": options.weights,
            "device": str(policy.device),
        },
        "machine": results.machine(),
        "commit": results.git_commit(),
        "versions": results.versions(),
    }
    output = options.output or preparation.run_folder(options.checkpoint) / "world_model"
    output.mkdir(parents=True, exist_ok=True)
    results.write_json(output / "world_model.json", found)
    shown = HeldOutWindows(policy, dataset, SHOWN)
    drawn = draw_prediction_grid(output / "world_model.png", WorldModel(policy, shown, reader))
    write_world_model_report(output / "world_model.html", found, output / "world_model.png" if drawn else None)
    log.info("\nWritten to %s", output)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = held_out_parser(__doc__)
    add = parser.add_argument
    add("--windows", type=at_least(2), default=500, help="how many, spread evenly (default: 500)")
    add("--samples", type=at_least(0), default=8, help="imagined futures of a window; the best counts (default: 8)")
    add("--iterations", type=at_least(1), help="steps of generation of frames (default: the configuration's)")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="changes of task.reader or policy in the configuration",
    )
    add("--output", type=Path, help="folder of the results (default: world_model/ of the run)")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        found = measure(options)
    from unified_video_action.env_runner.world_model_report import text_tables

    log.info("\n%s", text_tables(found))


if __name__ == "__main__":
    main()
