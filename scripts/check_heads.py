"""Whether the heads of a configuration still depend on their input after some steps of its training.

    python scripts/check_heads.py --config-name uva_pusht_mini
    python scripts/check_heads.py --all --json heads.json

Needs no data: a configuration's model, at its own width and with its own heads, optimiser, rate and warm-up, trains on
synthetic windows of its shapes. Wide models are made shallow, with small frames and few trained video tokens, so that a
CPU can do it; the output says so. For every head of actions or states it shows how much its condition varies over
samples (spread; near 0 its output does not depend on the input) and the share of units that are ever above 0 (live).
Exit status 1: a head has collapsed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from unified_video_action.workspace import commands

log = logging.getLogger("check_heads")
WIDE = 512  # width from which a model is cut
DEPTH, IMAGE, ROWS = 1, 64, 16  # to: blocks of encoder and decoder, pixels of a frame's side, trained video tokens
WINDOWS = 16  # held-out ones that health is measured on
MODE = "policy"  # task mode in which it is


def cut(config: dict[str, Any], depth: int | None) -> str:
    """Make a configuration cheap, in place: what was cut, in words."""
    transformer, vae, done = config["model"]["transformer"], config["vae"], []
    wide = transformer["dim"] >= WIDE
    if (depth := depth or (DEPTH if wide else None)) and depth < transformer["encoder_depth"]:
        done.append(f"depth {depth} of {transformer['encoder_depth']}")
        transformer |= {"encoder_depth": depth, "decoder_depth": depth}
    if wide and vae["image_size"] > IMAGE:
        done.append(f"frames of {IMAGE} px in place of {vae['image_size']}, {ROWS} video tokens")
        vae["image_size"] = IMAGE
        config["model"]["video_head"]["rows"] = ROWS
    return ", ".join(done)


def trained_alike(config: dict[str, Any]) -> str:
    """What decides the health of a configuration's heads; equal for those of which one run is enough."""
    model, training = json.loads(json.dumps(config["model"])), config["training"]
    for head in ("video_head", "action_head"):
        del model[head]["sample_clamp"]  # concerns sampling alone
    recipe = [training[key] for key in ("optimizer", "schedule")]
    return json.dumps([model, recipe, config["vae"], config["policy"]["relative_frames"]], sort_keys=True)


def check(config: dict[str, Any], steps: int, batch_size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Health of the heads before and after training."""
    import torch

    from unified_video_action.dataset.normalizer import Normalizer
    from unified_video_action.evaluation.heads import heads_health
    from unified_video_action.evaluation.synthetic import SyntheticWindows, change_fields
    from unified_video_action.instantiate import build_dataclass
    from unified_video_action.policy.base import Share
    from unified_video_action.policy.build import build_policy
    from unified_video_action.spec import TaskSpec
    from unified_video_action.workspace.optim import build_optimizer, learning_rate_factor
    from unified_video_action.workspace.settings import TrainingSettings

    torch.manual_seed(config["seed"])
    training = build_dataclass(TrainingSettings, config["training"], "training")
    task = TaskSpec.parse(config["task"])
    fields = Normalizer.identity({"action": task.action_dim, **task.states}).fields()
    fields |= change_fields(task.camera_names, task.horizon.future_offsets)
    config = {**config, "text": None, "vae": {**config["vae"], "weights": "random"}}
    policy = build_policy(config, Normalizer(fields))
    windows = SyntheticWindows(policy)
    held_out = windows.__getitems__([(len(windows) + i, i) for i in range(WINDOWS)])
    before = heads_health(policy.eval(), held_out)
    policy.train()
    optimizer, parameters = build_optimizer(policy.model, training.optimizer), list(policy.model.parameters())
    for step in range(steps):
        seeds = range(step * batch_size, (step + 1) * batch_size)
        batch = windows.__getitems__([(seed, seed) for seed in seeds])
        policy(policy.prepare(batch, Share(step, 0, batch_size, config["seed"])))["loss"].backward()
        if training.optimizer.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, training.optimizer.clip)
        rate = training.optimizer.learning_rate * learning_rate_factor(training.schedule, step, training.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        optimizer.step()
        optimizer.zero_grad()
    return before, heads_health(policy.eval(), held_out)


def main(arguments: list[str] | None = None) -> int:
    parser = commands.script_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config-name", action="append", help="a configuration of config/; may be repeated")
    what.add_argument("--all", action="store_true", help="all of them, those that train alike once")
    parser.add_argument("--steps", type=commands.at_least(1), default=300)
    parser.add_argument(
        "--batch-size", type=commands.at_least(1), help="windows a step (default: 4; 16 of two cameras)"
    )
    parser.add_argument("--depth", type=int, help=f"most blocks of encoder and decoder each ({DEPTH} for wide models)")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as training.optimizer.learning_rate=1e-3")
    options = parser.parse_intermixed_args(arguments)

    from unified_video_action.evaluation.heads import warnings

    results: dict[str, dict[str, Any]] = {}
    seen: dict[str, str] = {}
    for name in options.config_name or sorted(path.stem for path in commands.CONFIGS.glob("uva_*.yaml")):
        with commands.mistakes(parser):
            config = commands.read_config(name, options.overrides)
        done = cut(config, options.depth)
        if (key := trained_alike(config)) in seen:
            log.info("%s: as %s", name, seen[key])
            results[name] = {"as": seen[key]}
            continue
        seen[key] = name
        began = time.monotonic()
        cameras = sum(entry.get("type") == "rgb" for entry in config["task"]["shape_meta"]["obs"].values())
        before, after = check(config, options.steps, options.batch_size or (4 if cameras == 1 else 16))
        row = results[name] = {"before": before, "after": after, "collapsed": warnings(after), "cut": done}
        row["seconds"] = round(time.monotonic() - began, 1)
        figures = ", ".join(f"{key} {before[key]:.3f} -> {value:.3f}" for key, value in after.items())
        log.info("%s (%s): %s, %.0f s", name, done or "whole", figures, row["seconds"])
        for line in row["collapsed"]:
            log.warning("  %s", line)
        if options.json is not None:  # after each of them: all take hours
            options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(any(row.get("collapsed") for row in results.values()))


if __name__ == "__main__":
    sys.exit(main())
