"""Time a policy: latency by part (the rows of the paper's Table VII, and those of frame generation), and training.

    python scripts/benchmark.py --config-name uva_pusht_small
    python scripts/benchmark.py --checkpoint outputs/run/checkpoints/latest --sampler ddim10 --json times.json
    python scripts/benchmark.py --config-name uva_pusht --device cuda --precision bf16 vae.weights=random
    python scripts/benchmark.py --config-name uva_pusht --only training training.batch_size=2 vae.weights=random
    python scripts/benchmark.py --config-name uva_pusht_mini --only loader --workers 1
    torchrun --nproc-per-node 2 scripts/benchmark.py --config-name uva_pusht_mini --only scaling
    python scripts/benchmark.py --config-name uva_pusht_mini --only steadiness --calls 10000
    python scripts/benchmark.py --config-name uva_lift --only simulator --calls 200
    python scripts/benchmark.py --only server    what eval_real.py serve adds to a plan
    python scripts/benchmark.py --config-name uva_pusht --compare naive --repeats 5 --json naive.json vae.weights=random

A configuration is timed with an untrained model, on noise; `loader` alone reads the training data, and makes its cache
first where there is none. Where Hydra is not installed, --config takes the configuration that
`python train.py --config-name=... --cfg job --resolve` prints.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_video_action.workspace import commands

if TYPE_CHECKING:
    from unified_video_action.policy.unified_video_action_policy import UnifiedVideoActionPolicy

    from unified_video_action.dataset.window_dataset import WindowDataset
    from unified_video_action.evaluation.timing import Bench

log = logging.getLogger("benchmark")
ALONE = ("simulator", "server")  # not of a policy
PARTS = ("latency", "training", "loader", "scaling", "steadiness", "launches", *ALONE)


def read_config(options: argparse.Namespace) -> dict[str, Any]:
    """The resolved configuration that the options name."""
    if options.config_name:
        return commands.read_config(options.config_name, options.overrides)
    if options.overrides:
        raise ValueError(f"{' '.join(options.overrides)}: overrides go with --config-name")
    import yaml

    path = options.config or options.checkpoint / "config.yaml"
    return yaml.safe_load(path.read_text())


def make_policy(config: dict[str, Any], checkpoint: Path | None) -> UnifiedVideoActionPolicy:
    from unified_video_action.policy.unified_video_action_policy import CHANGE

    from unified_video_action.dataset.normalizer import Normalizer
    from unified_video_action.policy.build import build_policy, load_policy

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


def open_data(config: dict[str, Any], policy: UnifiedVideoActionPolicy) -> WindowDataset:
    """The training data, read as training reads it."""
    from unified_video_action.dataset.build import DataSettings, build_dataset, open_frames
    from unified_video_action.instantiate import build_dataclass

    dataset = build_dataset(config)
    open_frames(dataset, build_dataclass(DataSettings, config.get("data", {}), "data"), policy.codec)
    return dataset


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds by part, and each part's share of the total, as text."""
    width = max(map(len, (title, *rows)))
    lines = [f"{title:{width}}  {'median':>10} {'min':>10} {'max':>10}   share"]
    for part, times in rows.items():
        share = times["median"] / rows["total"]["median"]
        lines.append(f"{part:{width}}  {times['median']:10.2f} {times['min']:10.2f} {times['max']:10.2f}  {share:5.0%}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A figure as text, to four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, show tables on the way, and return everything."""
    import torch

    from unified_video_action.env_runner.results import git_commit, machine, versions
    from unified_video_action.evaluation.floors import floors
    from unified_video_action.evaluation.inference_timing import count_launches, peak_memory, time_steadiness
    from unified_video_action.evaluation.timing import Bench, time_latency
    from unified_video_action.instantiate import build_dataclass
    from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
    from unified_video_action.workspace.training_timing import time_loader, time_scaling, time_training

    if options.threads:
        torch.set_num_threads(options.threads)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.precision]
    bench = Bench(torch.device(device), dtype, options.repeats, options.warmup)
    if options.only == ["server"]:
        return benchmark_server(options.calls, {"machine": machine(), "versions": versions()})
    config = read_config(options)
    if options.only == ["simulator"]:
        return benchmark_simulator(config, options.calls, {"machine": machine(), "versions": versions()})
    policy = make_policy(config, options.checkpoint).to(bench.device)

    where = {**machine(), "threads": str(torch.get_num_threads()), "device": device, "precision": options.precision}
    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    samplers = [f"{sampler.kind}{sampler.steps}" for sampler in policy.config.samplers(options.sampler)]
    results: dict[str, Any] = {
        "machine": where,
        "versions": versions(),
        "commit": git_commit(),
        "parameters": parameters,
        "samplers": dict(zip(("actions", "frames"), samplers)),
        "batch": options.batch,
        "repeats": options.repeats,
    }
    log.info("\n".join(f"{name}: {value}" for name, value in where.items()))
    log.info("model: %.2f M parameters, %d video tokens", parameters / 1e6, policy.model.spec.tokens)
    log.info("sampler: %s for actions, %s for frames", *samplers)
    image = tuple(config["task"]["shape_meta"]["obs"][policy.observations.main]["shape"][1:])
    if options.compare:
        return results | compare(policy, bench, image, trained=options.checkpoint is not None)
    if "steadiness" in options.only:
        steady = results["steadiness"] = time_steadiness(policy, bench, image, options.calls, options.sampler)
        log.info("\nSteadiness over %d plans with remembered frames", options.calls)
        log.info("\n".join(f"{name}: {value:.3f}" for name, value in steady.items()))
    if "launches" in options.only:
        results["launches"] = count_launches(policy, bench, image)
        for name, row in results["launches"].items():
            log.info("\n%-10s %s", name, shown(row))
    if "latency" in options.only:
        results["latency_ms"] = time_latency(policy, bench, image, options.batch, options.sampler)
        results["floor_ms"] = floors(policy, image, options.precision, options.batch, options.sampler)
        log.info("\nLatency in ms, for %d environments at a time, over %d repeats", options.batch, options.repeats)
        for title, rows in results["latency_ms"].items():
            log.info("\n%s", table(title, rows))
    training = build_dataclass(TrainingSettings, config["training"], "training")
    trainer = build_dataclass(TrainerSettings, config.get("trainer", {}), "trainer")
    at_once = min(training.batch_size, trainer.micro_batch or training.batch_size)  # as training does
    training = dataclasses.replace(training, batch_size=options.training_batch or at_once)
    trainer = dataclasses.replace(trainer, device=bench.device.type, precision=options.precision)
    throughput: dict[str, Callable[[], dict[str, Any]]] = {
        "training": lambda: time_training(policy, bench, training, options.workers, trainer.compile),
        "loader": lambda: time_loader(policy, bench, training, open_data(config, policy), options.workers),
        "scaling": lambda: time_scaling(policy, bench, training, trainer),
    }
    for part in (part for part in throughput if part in options.only):
        measured = results[part] = throughput[part]()
        log.info("\n%s", table(f"{part}, ms per batch of {training.batch_size}", measured["ms"]))
        log.info("\n".join(f"{name}: {shown(value)}" for name, value in measured.items() if name != "ms"))
    results["peak_memory_mib"] = peak_memory(bench.device)
    return results


def benchmark_simulator(config: dict[str, Any], steps: int, results: dict[str, Any]) -> dict[str, Any]:
    """The task's simulator alone; no policy is built."""
    from unified_video_action.env_runner.rollout import time_simulator

    if not config["task"].get("env"):
        raise ValueError("the configuration has no simulator: task.env is not set")
    measured = time_simulator(config["task"]["env"], steps)
    log.info("\nThe simulator of %s, %d random steps, one process", config.get("name", "the task"), steps)
    log.info("\n".join(f"{name}: {shown(value)}" for name, value in measured.items()))
    return {**results, "simulator": measured}


def benchmark_server(calls: int, results: dict[str, Any]) -> dict[str, Any]:
    """The policy server's doors with a policy that answers at once."""
    from unified_video_action.real.serving.overhead import measure

    measured = measure(calls)
    log.info("\nRound trips over loopback less the policy's time: 4 frames of 224 px and 4 states, %d calls", calls)
    for door, row in measured.items():
        log.info(
            "%-10s median %.2f ms, p99 %.2f ms, %.1f MB a request",
            door, row["median_ms"], row["p99_ms"], row["bytes"] / 1e6,
        )  # fmt: skip
    return {**results, "server": measured}


def compare(policy: UnifiedVideoActionPolicy, bench: Bench, image: tuple[int, int], trained: bool) -> dict[str, Any]:
    """The session against the same pipeline without its measures, in turns."""
    from unified_video_action.evaluation.inference_timing import compare_naive, peak_memory, wake

    if not trained:
        wake(policy)
    compared = compare_naive(policy, bench, image)
    frames = next(iter(compared.values()))
    log.info(
        "\nOne environment in the steady state: after %d executed actions %d of %d history frames are new, the others "
        "are remembered. Medians of %d plans each way, in turns. The naive pipeline encodes all frames.",
        policy.action_steps, frames["new_frames"], frames["history_frames"], bench.repeats,
    )  # fmt: skip
    for name, row in compared.items():
        log.info(
            "%-10s fast %.1f ms, naive %.1f ms, ratio %.3f, largest difference of normalised actions %.1e",
            name, row["fast_ms"], row["naive_ms"], row["ratio"], row["max_abs_diff"],
        )  # fmt: skip
    memory = peak_memory(bench.device)
    log.info("peak memory, both pipelines in one process: %.0f MiB", memory)
    return {**compared, "peak_memory_mib": memory}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config-name", help="a configuration of config/; Hydra overrides may follow")
    what.add_argument("--config", type=Path, help="a resolved configuration file")
    what.add_argument("--checkpoint", type=Path, help="a checkpoint folder")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated (default: latency, training)")
    parser.add_argument("--compare", choices=("naive",), help="only time plans with and without what makes them fast")
    parser.add_argument("--calls", type=int, default=1000, help="plans, simulator steps or round trips (1000)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of autocast")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--batch", type=int, default=1, help="environments that are planned for at a time")
    parser.add_argument(
        "--training-batch", type=int, help="samples of a training step (default: one micro-batch of the configuration)"
    )
    parser.add_argument("--workers", type=int, default=0, help="loader processes; 0: none (default)")
    parser.add_argument("--sampler", help="kind and steps: ancestral100, ddim10, dpm16 (default: the configuration's)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as vae.weights=random")
    options = parser.parse_intermixed_args(arguments)
    options.only = options.only or ["latency", "training"]
    for part in ALONE:
        if part in options.only and len(options.only) > 1:
            parser.error(f"--only {part}: the {part} is timed alone, without the policy's other parts")
    if options.only != ["server"] and not (options.config_name or options.config or options.checkpoint):
        parser.error("one of --config-name, --config and --checkpoint is needed")
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s", stream=sys.stdout)
    try:
        if options.repeats < 1 or options.batch < 1 or options.warmup < 0 or options.calls < 10:
            raise ValueError("--repeats and --batch must be at least 1, --warmup at least 0, --calls at least 10")
        results = benchmark(options)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    if options.json and first:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
        log.info("\nWritten to %s", options.json)


if __name__ == "__main__":
    main()
