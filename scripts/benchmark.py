"""Time a policy: latency by part (the rows of the paper's Table VII, and those of frame generation), and training.

    python scripts/benchmark.py --config-name uva_pusht_small
    python scripts/benchmark.py --checkpoint outputs/run/checkpoints/latest --sampler ddim10 --json times.json
    python scripts/benchmark.py --config-name uva_pusht --device cuda --precision bf16 vae.weights=random
    python scripts/benchmark.py --config-name uva_pusht_mini --only loader --workers 1
    torchrun --nproc-per-node 2 scripts/benchmark.py --config-name uva_pusht_mini --only scaling
    python scripts/benchmark.py --config-name uva_pusht_mini --only steadiness --calls 10000
    python scripts/benchmark.py --config-name uva_lift --only simulator --calls 200
    python scripts/benchmark.py --only server    what eval_real.py serve adds to a plan
    python scripts/benchmark.py --config-name uva_pusht --only naive --repeats 5 vae.weights=random

A configuration is timed with an untrained model, on noise; `loader` alone reads the training data, and makes its cache
first where there is none. `naive` times plans of one environment in the steady state, in turns with those of the plain
pipeline, which encodes all frames of the history. The roofline of a part is the larger of its arithmetic and of the
reading of its weights, at the rates measured in the same run. Where Hydra is not installed, --config takes the
configuration that `python train.py --config-name=... --cfg job --resolve` prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_video_action.workspace import commands

if TYPE_CHECKING:
    from unified_video_action.policy.base import BasePolicy

log = logging.getLogger("benchmark")
ALONE = ("simulator", "server")  # not of a policy
PARTS = ("latency", "training", "loader", "scaling", "naive", "steadiness", "launches", *ALONE)


def make_policy(config: dict[str, Any], checkpoint: Path | None = None) -> BasePolicy:
    from unified_video_action.dataset.normalizer import Normalizer
    from unified_video_action.policy.build import build_policy, load_policy
    from unified_video_action.policy.uva_transform import CHANGE

    if checkpoint:
        return load_policy(checkpoint)
    meta = config["task"]["shape_meta"]
    dims = {name: each["shape"][0] for name, each in meta["obs"].items() if each["type"] == "low_dim"}
    dims |= {CHANGE + name: 1 for name, each in meta["obs"].items() if each["type"] == "rgb"}
    normalizer = Normalizer.identity({"action": meta["action"]["shape"][0], **dims})
    try:
        return build_policy(config, normalizer)
    except FileNotFoundError as error:
        log.warning("%s\nThe frame codec is timed with random weights.", error)
        return build_policy({**config, "vae": {**config["vae"], "weights": "random"}}, normalizer)


def show(title: str, found: Mapping[str, Any]) -> None:
    """Figures, to four digits."""

    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name} {text(each)}" for name, each in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    log.info("\n%s", title)
    for name, value in found.items():
        log.info("%s: %s", name, text(value))


def show_rows(title: str, rows: Mapping[str, Mapping[str, float]], roofline: Mapping[str, Any]) -> None:
    """Milliseconds by part, with each part's share of the total and its roofline where there is one."""
    log.info("\n%-24s %10s %10s %10s   share %10s", title, "median", "min", "max", "roofline" if roofline else "")
    for part, row in rows.items():
        share, bound = 100 * row["median"] / rows["total"]["median"], roofline.get(part, {}).get("roofline")
        least = "" if bound is None else f"{bound:.2f}"
        log.info("%-24s %10.2f %10.2f %10.2f  %5.0f%% %10s", part, row["median"], row["min"], row["max"], share, least)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, show on the way, and return everything."""
    import torch

    from unified_video_action.env_runner.results import git_commit, machine, versions
    from unified_video_action.evaluation import inference_timing
    from unified_video_action.evaluation.roofline import roofline
    from unified_video_action.evaluation.timing import Bench
    from unified_video_action.model.samplers import Sampler

    if options.threads:
        torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    if options.only == ["server"]:
        from unified_video_action.real.serving.overhead import measure

        results["server"] = measure(options.calls)
        show(f"Round trips over loopback less the policy's time, {options.calls} calls", results["server"])
        return results
    config = read_config(options)
    if options.only == ["simulator"]:
        from unified_video_action.env_runner.rollout import time_simulator

        if not config["task"].get("env"):
            raise ValueError("the configuration has no simulator: task.env is not set")
        results["simulator"] = time_simulator(config["task"]["env"], options.calls)
        show(f"The simulator, {options.calls} random steps, one process", results["simulator"])
        return results

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(torch.device(device), options.precision, options.repeats, options.warmup)
    policy = make_policy(config, options.checkpoint).to(bench.device)
    own = policy.config
    chosen = (
        own.samplers(options.sampler) if hasattr(own, "samplers") else [Sampler.parse(options.sampler or own.sampler)]
    )
    samplers = (f"{sampler.kind}{sampler.steps}" for sampler in chosen)
    results["machine"] |= {"threads": str(torch.get_num_threads()), "device": device, "precision": options.precision}
    results |= {
        "commit": git_commit(),
        "parameters": sum(parameter.numel() for parameter in policy.model.parameters()),
        "samplers": dict(zip(("actions", "frames"), samplers)),
        "batch": options.batch,
        "repeats": options.repeats,
    }
    show("policy", results)
    if "naive" in options.only:
        if not options.checkpoint:
            inference_timing.wake(policy)
        compared = inference_timing.compare_naive(policy, bench)
        show("plans of one environment, and of the plain pipeline", compared)
        results |= compared
    if "steadiness" in options.only:
        steady = inference_timing.time_steadiness(policy, bench, options.calls, options.sampler)
        results["steadiness"] = steady
        show("plans with remembered frames", steady)
    if "launches" in options.only:
        results["launches"] = inference_timing.count_launches(policy, bench)
        show("launches", results["launches"])
    if "latency" in options.only:
        results["latency_ms"] = inference_timing.time_latency(policy, bench, options.batch, options.sampler)
        results["roofline_ms"] = roofline(policy, options.precision, options.batch, options.sampler)
        for title, rows in results["latency_ms"].items():
            show_rows(title, rows, results["roofline_ms"].get(title, {}))
    for part in ("training", "loader", "scaling"):
        if part in options.only:
            found = results[part] = throughput(part, options, config, policy, bench)
            show_rows(f"{part}, ms per batch", found["ms"], {})
            show("", {name: value for name, value in found.items() if name != "ms"})
    results["peak_memory_mib"] = inference_timing.peak_memory(bench.device)
    return results


def read_config(options: argparse.Namespace) -> dict[str, Any]:
    """The resolved configuration that the options name."""
    if options.config_name:
        return commands.read_config(options.config_name, options.overrides)
    if options.overrides:
        raise ValueError(f"{' '.join(options.overrides)}: overrides go with --config-name")
    import yaml

    from unified_video_action.untrusted import local_checkpoint

    return yaml.safe_load((options.config or local_checkpoint(options.checkpoint) / "config.yaml").read_text())


def throughput(part: str, options: argparse.Namespace, config: dict, policy: Any, bench: Any) -> dict[str, Any]:
    """Time training, its loader, or several processes."""
    from unified_video_action.dataset.build import build_dataset
    from unified_video_action.instantiate import build_dataclass
    from unified_video_action.workspace import training_timing
    from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings

    training = build_dataclass(TrainingSettings, config["training"], "training")
    trainer = build_dataclass(TrainerSettings, config.get("trainer", {}), "trainer")
    at_once = min(training.batch_size, trainer.micro_batch or training.batch_size)  # as training does
    training = dataclasses.replace(training, batch_size=options.training_batch or at_once)
    if part == "training":
        return training_timing.time_training(policy, bench, training, options.workers, trainer.compile)
    if part == "scaling":
        trainer = dataclasses.replace(trainer, device=bench.device.type, precision=bench.precision)
        return training_timing.time_scaling(policy, bench, training, trainer)
    dataset = build_dataset(config)
    encoders = {"codec": getattr(policy, "codec", None), "text": policy.text}
    type(policy).open_data({"data": {}, **config}, dataset, encoders, progress=True)
    return training_timing.time_loader(policy, bench, training, dataset, options.workers)


def main(arguments: list[str] | None = None) -> None:
    parser, at_least = commands.script_parser(__doc__), commands.at_least
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config-name", help="a configuration of config/; Hydra overrides may follow")
    what.add_argument("--config", type=Path, help="a resolved configuration file")
    what.add_argument("--checkpoint", type=Path, help="a checkpoint folder")
    add = parser.add_argument
    add("--only", choices=PARTS, action="append", help="may be repeated (default: latency, training)")
    add("--calls", type=at_least(10), default=1000, help="plans, simulator steps or round trips (1000)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="autocast precision")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--batch", type=at_least(1), default=1, help="environments that are planned for at a time")
    add("--training-batch", type=int, help="samples of a training step (default: a micro-batch of the configuration)")
    add("--workers", type=int, default=0, help="loader processes; 0: none (default)")
    add("--sampler", help="kind and steps: ancestral100, ddim10, dpm16 (default: the configuration's)")
    add("--repeats", type=at_least(1), default=20)
    add("--warmup", type=at_least(0), default=3)
    add("--json", type=Path, help="also write the results here")
    add("overrides", nargs="*", help="Hydra overrides, such as vae.weights=random")
    options = parser.parse_intermixed_args(arguments)
    options.only = options.only or ["latency", "training"]
    for part in ALONE:
        if part in options.only and len(options.only) > 1:
            parser.error(f"--only {part}: the {part} is timed alone, without the policy's other parts")
    if options.only != ["server"] and not (options.config_name or options.config or options.checkpoint):
        parser.error("one of --config-name, --config and --checkpoint is needed")
    first = os.environ.get("RANK", "0") == "0"
    logging.getLogger().setLevel(logging.INFO if first else logging.WARNING)
    with commands.mistakes(parser):
        commands.write_figures(options.json if first else None, benchmark(options))


if __name__ == "__main__":
    main()
