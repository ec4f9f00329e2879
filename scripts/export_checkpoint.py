"""Make a checkpoint that can be shipped: what is needed to act, with what it scored and the commands that made it.

    python scripts/export_checkpoint.py --checkpoint RUN/checkpoints/latest --output checkpoints/NAME --dtype float16
    python eval_sim.py --checkpoint checkpoints/NAME --n-episodes 500 --output RUN/evaluation/shipped
    python scripts/export_checkpoint.py --checkpoint RUN/checkpoints/latest --output checkpoints/NAME --dtype float16 \\
        --evaluation RUN/evaluation/shipped --replace

The folder gets the averaged weights, in pieces where they are large; config.yaml, without paths of this machine;
normalizer.json; metrics.json, with a checksum of each of these files; and README.md. It appears only when it is whole.
With --evaluation, its configuration evaluates as that evaluation did, so `python eval_sim.py --checkpoint
checkpoints/NAME` repeats it. The order above measures the weights as they are stored; a policy computes in float32
whatever they are stored in.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from unified_video_action.compat.checkpoint_files import METRICS, listed, verify
from unified_video_action.files import data_folder
from unified_video_action.untrusted import leaves, read_checkpoint_config
from unified_video_action.workspace.commands import ROOT, mistakes, script_parser

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("export_checkpoint")
DTYPES = ("float32", "float16", "bfloat16")
MACHINE_PATH = re.compile(r"(?:^|[\s=\[,:{'\"])(?:~?/[\w.]|\.\./|[A-Za-z]:\\)")
PASSING = ("--precision", "--planner")  # of an evaluation: no configuration has them
OUTPUT_OPTIONS = ("output_dir=", "data.cache_dir=", "hydra.")  # of a command: where it writes, not what it does


def generic_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """What stands for each of this machine's data paths: one in the data folder, in this project, or in its `data`."""
    mine = data_folder()

    def generic(path: str) -> str:
        whole = Path(path).expanduser()
        if whole.is_relative_to(mine):
            return f"$UVA_DATA_DIR/{whole.relative_to(mine)}"
        return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else f"data/{whole.name}"

    dataset = config["task"]["dataset"]
    sources = dataset.get("paths") or dataset.get("sources") or []
    if isinstance(sources, Mapping) and "path" not in sources:  # by name
        sources = list(sources.values())
    sources = [sources] if isinstance(sources, str | Mapping) else sources
    paths = [source["path"] if isinstance(source, Mapping) else source for source in sources]
    return {path: generic(path) for path in sorted(paths, key=len, reverse=True) if MACHINE_PATH.search(path)}


def replaced(value: Any, paths: Mapping[str, str]) -> Any:
    """A configuration or a list of texts with every path of the mapping replaced."""
    text = json.dumps(value, ensure_ascii=False)
    for path, other in paths.items():
        text = text.replace(json.dumps(path, ensure_ascii=False)[1:-1], other)
    return json.loads(text)


def machine_paths(value: Any, name: str = "") -> list[str]:
    """Values that are paths of this machine, with their keys."""
    found = [(key, leaf) for key, leaf in leaves(value, name) if isinstance(leaf, str)]
    return [f"{key}: {leaf}" for key, leaf in found if MACHINE_PATH.search(leaf)]


def shipped_config(config: dict[str, Any], results: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration without paths of this machine; with results, evaluating as they were made.

    Raises:
        ValueError: a path that nothing generic stands for, by its key; an evaluation with options that a configuration
            does not have.
    """
    config = replaced(config, generic_paths(config))
    config["output_dir"], config["data"]["cache_dir"] = f"outputs/{config['name']}", None
    if results:
        task, policy, episodes = results["config"]["task"], results["config"]["policy"], results["episodes"]
        if passing := [word for word in shlex.split(results["command"]) if word.startswith(PASSING)]:
            raise ValueError(f"--evaluation was made with {passing[0]}, which a configuration does not repeat")
        runner = task["env_runner"] | {"n_episodes": len(episodes), "n_envs": None}
        runner["start_seed"] = min(episode["seed"] for episode in episodes)
        config["task"] |= {"env": task["env"], "env_runner": runner}
        config["policy"] = policy | {"sampler": results["facts"]["sampler"], "action_steps": runner["action_steps"]}
    if found := machine_paths(config):
        remedy = "train with paths relative to the project, or in $UVA_DATA_DIR"
        raise ValueError(f"config.yaml would name paths of this machine; {remedy}: {'; '.join(found)}")
    return config


def training_commands(checkpoint: Path, given: list[str], config: Mapping[str, Any]) -> list[str]:
    """The commands that made the checkpoint: those given, or what Hydra has recorded in the folder of its run.

    Raises:
        ValueError: nothing is known, or a command names paths of this machine.
    """
    recorded = checkpoint.resolve().parents[1] / ".hydra"
    if not given:
        if not (recorded / "overrides.yaml").is_file():
            raise ValueError(f"{recorded} does not say how {checkpoint} was trained: give --training-command")
        name = yaml.safe_load((recorded / "hydra.yaml").read_text())["hydra"]["job"]["config_name"]
        words = [f"--config-name={name}", *yaml.safe_load((recorded / "overrides.yaml").read_text())]
        given = [shlex.join(["python", "train.py", *(word for word in words if not word.startswith(OUTPUT_OPTIONS))])]
    commands = replaced(given, generic_paths(config))
    if found := machine_paths(commands, "command"):
        raise ValueError(f"give --training-command without paths of this machine: {'; '.join(found)}")
    return commands


def stored(tensors: Mapping[str, Tensor], dtype: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights in a precision, and what metrics.json says of it.

    Raises:
        ValueError: a weight is too large for that precision.
    """
    import torch

    kind, kept, change = getattr(torch, dtype), {}, 0.0
    for name, tensor in tensors.items():
        kept[name] = tensor.to(kind) if tensor.is_floating_point() else tensor
        if not torch.isfinite(kept[name]).all():
            raise ValueError(f"{name} has weights up to {tensor.abs().max():.3g}: too large for {dtype}")
        change = max(change, float((kept[name].double() - tensor.double()).abs().max()))
    parameters = sum(tensor.numel() for tensor in kept.values())
    return kept, {"dtype": dtype, "values": parameters, "largest_change_of_a_weight": change}


def describe_evaluation(
    results: Mapping[str, Any], weights: Mapping[str, str], output: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """The part of metrics.json that an evaluation gives.

    Args:
        weights: digest of weights that it may be of -> what they are.

    Raises:
        ValueError: it is of others.
    """
    if (digest := results.get("facts", {}).get("digest")) not in weights:
        raise ValueError(f"--evaluation is of other weights ({digest}) than the averaged ones of --checkpoint")
    metrics, runner, methods = dict(results["metrics"]), config["task"]["env_runner"], results["intervals"]
    intervals: dict[str, Any] = {"level": methods["level"]}
    for name in [name.removesuffix("_low") for name in metrics if name.endswith("_low")]:
        method = methods["mean_max" if name.startswith("mean_max_") else name]
        intervals[name] = {end: metrics.pop(f"{name}_{end}") for end in ("low", "high")} | {"method": method}
    output = output.resolve()
    folder = output.relative_to(ROOT) if output.is_relative_to(ROOT) else f"checkpoints/{output.name}"
    evaluation = {
        "command": f"python eval_sim.py --checkpoint {folder}",
        "weights": weights[digest],
        **{name: runner[name] for name in ("start_seed", "max_steps", "action_steps")},
        "sampler": config["policy"]["sampler"],
        **{name: results[name] for name in ("created", "commit", "machine", "versions")},
    }
    return {**metrics, "intervals": intervals, "evaluation": evaluation}


EVALUATED = """| over unseen start seeds | value | 95 % interval |
|---|---|---|
{rows}

{episodes} episodes from seed {start_seed} on, sampler {sampler}, {action_steps} actions executed of each plan; \
weights {weights}. Machine, versions and commit are in metrics.json. To repeat it:

```bash
{command}
```

"""
README = """# {name}

Averaged weights of a policy, and all it needs to act.

{evaluated}Trained for {steps} steps of {batch_size} samples in {minutes:.0f} minutes, with seed {seed}, by

```bash
{commands}
```

Stored as {dtype}{change}.
"""


def readme(name: str, metrics: Mapping[str, Any]) -> str:
    """README.md of the folder."""
    training, storage, evaluated = metrics["training"], metrics["storage"], ""
    if "evaluation" in metrics:
        intervals = {key: found for key, found in metrics["intervals"].items() if key != "level"}
        rows = "\n".join(
            f"| {key.replace('_', ' ')} | {metrics[key]:.3f} | {found['low']:.3f} to {found['high']:.3f} "
            f"({found['method']}) |"
            for key, found in intervals.items()
        )
        evaluated = EVALUATED.format(rows=rows, episodes=metrics["episodes"], **metrics["evaluation"])
    most = storage["largest_change_of_a_weight"]
    change, commands = f": no weight changed by more than {most:.1e}" if most else "", "\n".join(training["commands"])
    about = {**training, "commands": commands, "change": change, "dtype": storage["dtype"]}
    return README.format(name=name, evaluated=evaluated, **about)


def export(options: argparse.Namespace) -> None:
    """Write the folder. Raises ValueError, FileNotFoundError or FileExistsError for what cannot be shipped."""
    from omegaconf import OmegaConf

    from unified_video_action.compat.tensors import digest, read_safetensors, write_safetensors
    from unified_video_action.workspace.checkpoint import read_state, written_whole

    checkpoint, output = options.checkpoint, options.output
    if output.exists() and not options.replace:
        raise FileExistsError(f"{output} exists already; --replace replaces it")
    for name in ("config.yaml", "normalizer.json", "trainer_state.json"):
        if not (checkpoint / name).is_file():
            raise FileNotFoundError(f"--checkpoint {checkpoint}: {name} is missing; give one of a training run")
    verify(checkpoint, "ema")
    trained = read_checkpoint_config(checkpoint)
    averaged = read_safetensors(checkpoint / "ema.safetensors")
    weights, storage = stored(averaged, options.dtype)
    results = json.loads((options.evaluation / "results.json").read_text()) if options.evaluation else None
    config = shipped_config(trained, results)
    kinds = {digest(averaged): "in float32, before they were stored", digest(weights): "as stored here"}
    state, batch = read_state(checkpoint), trained["training"]["batch_size"]
    metrics = {
        **(describe_evaluation(results, kinds, output, config) if results else {}),
        "training": {
            "commands": training_commands(checkpoint, options.training_command, trained),
            **{"steps": state["step"], "batch_size": batch, "samples": state["step"] * batch, "seed": trained["seed"]},
            "minutes": round(state["elapsed_seconds"] / 60, 1),
        },
        "storage": storage,
    }
    with written_whole(output) as folder:
        write_safetensors(folder / "ema.safetensors", weights, int(options.max_piece_mb * 1e6))
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(config))
        for name in ("normalizer.json", "instructions.json", "codec.safetensors"):
            if (checkpoint / name).is_file():
                shutil.copy(checkpoint / name, folder / name)
        (folder / METRICS).write_text(json.dumps(metrics | {"files": listed(folder)}, indent=2) + "\n")
        (folder / "README.md").write_text(readme(output.name, metrics))
        megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        if megabytes > options.max_mb:
            raise ValueError(
                f"{output} would have {megabytes:.1f} MB, more than {options.max_mb:g}: store half precision "
                "(--dtype float16), train a smaller model, or allow more with --max-mb"
            )
    log.info("%s: %.1f MB in %d files", output, megabytes, len(list(output.iterdir())))


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="checkpoint of a training run: RUN/checkpoints/latest")
    add("--output", type=Path, required=True, help="folder to write: checkpoints/NAME")
    add("--evaluation", type=Path, help="output folder of eval_sim.py, for its figures and settings")
    made = "that made it; may be repeated (default: what Hydra recorded in RUN)"
    add("--training-command", action="append", default=[], metavar="COMMAND", help=made)
    add("--dtype", choices=DTYPES, default="float32", help="dtype of the stored weights (default: float32)")
    add("--max-piece-mb", type=float, default=15, help="largest file of weights (default: 15)")
    add("--max-mb", type=float, default=60, help="largest folder (default: 60)")
    add("--replace", action="store_true", help="replace what is at --output")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        export(options)


if __name__ == "__main__":
    main()
