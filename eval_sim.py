"""Evaluate a checkpoint in the simulator it was trained for.

    python eval_sim.py --checkpoint outputs/my_run/checkpoints/latest --n-episodes 50
    torchrun --nproc-per-node 8 eval_sim.py --checkpoint ...       several GPUs share the episodes
    python eval_sim.py --checkpoint ... --disturbance background   pictures it was not trained on (paper's Table III)

Writes results.json (every episode, and what made it), films/*.mp4 and report.html into the output folder.
"""

import argparse
import logging
import sys
from datetime import datetime
from pathlib import Path
from typing import Any


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a checkpoint")
    add("--n-episodes", type=int, help="episodes, one per seed (default: the configuration's)")
    add("--n-envs", type=int, help="simulators at a time, a process each (default: one per core)")
    add("--seed", type=int, help="seed of the first episode (default: the configuration's)")
    add("--output", type=Path, help="new folder to write (default: evaluation/... of the run)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--sampler", help="kind and steps: ancestral100, ddim10, dpm16, ... (default: the configuration's)")
    add("--films", type=int, default=3, help="episodes to film, from the best to the worst (default: 3)")
    add("--weights", choices=("ema", "model"), default="ema", help="the averaged weights (default) or the last ones")
    add("--disturbance", help="a visual disturbance that the simulator knows, such as background, objects or goal")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="as task.env_runner.max_steps=400")
    return parser.parse_args()


def prepare(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """Build the policy, its runner and the options of the run; mistakes in the arguments are found here."""
    from unified_video_action.env_runner import preparation
    from unified_video_action.instantiate import instantiate
    from unified_video_action.model.diffusion import Sampler
    from unified_video_action.policy.build import load_policy

    if args.sampler is not None:
        Sampler.parse(args.sampler)
    disturbance = {} if args.disturbance is None else {"disturbance": args.disturbance}
    config = preparation.read_config(args.checkpoint, args.set + [f"task.env.{k}={v}" for k, v in disturbance.items()])
    if disturbance:
        instantiate(config["task"]["env"], "task.env").close()  # a simulator that knows no such thing says so here
    run, name = preparation.run_folder(args.checkpoint), args.checkpoint.resolve().name
    output = args.output or run / "evaluation" / f"{name}_{args.weights}_{datetime.now():%Y%m%d_%H%M%S}"
    preparation.require_new(output)
    runner = preparation.build_runner(config, n_episodes=args.n_episodes, n_envs=args.n_envs, start_seed=args.seed)
    policy = load_policy(args.checkpoint, args.weights, device := preparation.choose_device(args.device))
    facts = {"checkpoint": name, "weights": args.weights, "digest": preparation.weights_digest(policy)}
    return policy, runner, {
        "output_dir": output,
        "sampler": args.sampler,
        "films": args.films,
        "imagine": preparation.learns_frames(config),
        "title": f"{config.get('name', run.name)}: evaluation",
        "facts": facts | {"sampler": args.sampler or policy.config.sampler, "device": device} | disturbance,
        "config": config,
        "training_log": run / "metrics.jsonl",
    }  # fmt: skip


def main() -> None:
    args = parse_arguments()
    from unified_video_action.env_runner import processes

    with processes.joined() as first:
        logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
        try:
            policy, runner, options = prepare(args)
        except (FileNotFoundError, FileExistsError, ValueError) as error:
            sys.exit(f"eval_sim.py: {error}")
        try:
            metrics = runner.run(policy, **options)
        except KeyboardInterrupt:
            sys.exit(130)
    for name, value in metrics.items():
        logging.info("%-24s %s", name, f"{value:.4f}" if isinstance(value, float) else value)
    logging.info("report: %s", options["output_dir"] / "report.html")


if __name__ == "__main__":
    main()
