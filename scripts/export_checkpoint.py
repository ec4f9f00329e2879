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
import os
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("export_checkpoint")
ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("float32", "float16", "bfloat16")
MACHINE_PATH = re.compile(r"(?:^|[\s=\[,:{'\"])(?:~?/[\w.]|\.\./|[A-Za-z]:\\)")
PLACES = ("output_dir=", "data.cache_dir=", "hydra.")  # of a command: they say where it writes, not what it does


def generic_paths(config: Mapping[str, Any]) -> dict[str, str]:
    """What stands for each of this machine's data paths: one in $UVA_DATA_DIR, in this project, or in its `data`."""

    def generic(path: str) -> str:
        whole = Path(path).expanduser()
        if (mine := os.environ.get("UVA_DATA_DIR")) and whole.is_relative_to(Path(mine).expanduser()):
            return f"$UVA_DATA_DIR/{whole.relative_to(Path(mine).expanduser())}"
        return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else f"data/{whole.name}"

    dataset = config["task"]["dataset"]
    sources = dataset.get("paths") or dataset.get("sources") or []
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
    """Values that are paths of this machine, with their places."""
    from unified_video_action.untrusted import leaves

    found = ((place, leaf) for place, leaf in leaves(value, name) if isinstance(leaf, str))
    return [f"{place}: {leaf}" for place, leaf in found if MACHINE_PATH.search(leaf)]


def shipped_config(config: dict[str, Any], results: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration without paths of this machine; with results, evaluating as they were made.

    Raises:
        ValueError: a path that nothing generic stands for, by its key.
    """
    config = replaced(config, generic_paths(config))
    config["output_dir"], config["data"]["cache_dir"] = f"outputs/{config['name']}", None
    if results:
        task, episodes = results["config"]["task"], results["episodes"]
        runner = task["env_runner"] | {"n_episodes": len(episodes), "n_envs": None}
        runner["start_seed"] = min(episode["seed"] for episode in episodes)
        config["task"] |= {"env": task["env"], "env_runner": runner}
        config["policy"] |= {"sampler": results["facts"]["sampler"], "action_steps": runner["action_steps"]}
    if found := machine_paths(config):
        raise ValueError(
            "config.yaml would name paths of this machine; train with paths relative to the project, or in "
            "$UVA_DATA_DIR:\n  " + "\n  ".join(found)
        )
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
        import yaml

        name = yaml.safe_load((recorded / "hydra.yaml").read_text())["hydra"]["job"]["config_name"]
        words = [f"--config-name={name}", *yaml.safe_load((recorded / "overrides.yaml").read_text())]
        given = [shlex.join(["python", "train.py", *(word for word in words if not word.startswith(PLACES))])]
    commands = replaced(given, generic_paths(config))
    if found := machine_paths(commands, "command"):
        raise ValueError("give --training-command without paths of this machine:\n  " + "\n  ".join(found))
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
        ends = {end: metrics.pop(f"{name}_{end}") for end in ("low", "high")}
        intervals[name] = {**ends, "method": methods["mean_max" if name.startswith("mean_max_") else name]}
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


def readme(name: str, metrics: Mapping[str, Any]) -> str:
    """README.md of the folder."""
    training, storage = metrics["training"], metrics["storage"]
    lines = [f"# {name}", "", "Averaged weights of a policy, and all it needs to act.", ""]
    if "evaluation" in metrics:
        evaluation, intervals = metrics["evaluation"], metrics["intervals"]
        lines += ["| over unseen start seeds | value | 95 % interval |", "|---|---|---|"]
        for key in (key for key in intervals if key != "level"):
            ends = " to ".join(f"{intervals[key][end]:.3f}" for end in ("low", "high"))
            lines.append(f"| {key.replace('_', ' ')} | {metrics[key]:.3f} | {ends} ({intervals[key]['method']}) |")
        lines += [
            "",
            f"{metrics['episodes']} episodes from seed {evaluation['start_seed']} on, sampler {evaluation['sampler']}, "
            f"{evaluation['action_steps']} actions executed of each plan; weights {evaluation['weights']}. "
            "Machine, versions and commit are in metrics.json. To repeat it:",
            "",
            *("```bash", evaluation["command"], "```", ""),
        ]
    precision = f"Stored as {storage['dtype']}"
    if storage["largest_change_of_a_weight"]:
        precision += f": no weight changed by more than {storage['largest_change_of_a_weight']:.1e}"
    lines += [
        f"Trained for {training['steps']} steps of {training['batch_size']} samples in {training['minutes']:.0f} "
        f"minutes, with seed {training['seed']}, by",
        "",
        *("```bash", *training["commands"], "```", ""),
        f"{precision}.",
    ]
    return "\n".join(lines) + "\n"


def export(options: argparse.Namespace) -> None:
    """Write the folder. Raises ValueError, FileNotFoundError or FileExistsError for what cannot be shipped."""
    from omegaconf import OmegaConf

    from unified_video_action.compat.checkpoint_files import listed, verify
    from unified_video_action.compat.tensors import digest, read_safetensors, write_safetensors
    from unified_video_action.env_runner.preparation import METRICS
    from unified_video_action.untrusted import read_checkpoint_config
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a training run: RUN/checkpoints/latest")
    parser.add_argument("--output", type=Path, required=True, help="folder to write: checkpoints/NAME")
    parser.add_argument("--evaluation", type=Path, help="output folder of eval_sim.py, for its figures and settings")
    made = "that made it; may be repeated (default: what Hydra recorded in RUN)"
    parser.add_argument("--training-command", action="append", default=[], metavar="COMMAND", help=made)
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="to store weights in (default: float32)")
    parser.add_argument("--max-piece-mb", type=float, default=15, help="largest file of weights (default: 15)")
    parser.add_argument("--max-mb", type=float, default=40, help="largest folder (default: 40)")
    parser.add_argument("--replace", action="store_true", help="replace what is at --output")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        export(options)
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
