"""Evaluate a checkpoint in the simulator it was trained for.

    python eval_sim.py --checkpoint outputs/my_run/checkpoints/latest --n-episodes 50 --output FOLDER [--resume]
    torchrun --nproc-per-node 8 eval_sim.py --checkpoint ...       several GPUs share the episodes
    python eval_sim.py --checkpoint ... --disturbance background   pictures it was not trained on (paper's Table III)
    python eval_sim.py --checkpoint ... --planner 16               the best of 16 plans, as the model imagines them
    python eval_sim.py --config-name uva_libero10 --set policy=remote policy.url=ws://127.0.0.1:8000   pi0, OpenVLA, ...

Writes results.json (every episode, and what made it), rollout videos in videos/ and report.html into the output folder.
"""

import argparse
import logging
from pathlib import Path


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, help="folder of a checkpoint")
    what.add_argument("--config-name", help="a configuration, for a policy behind a server (--set policy=remote ...)")
    add("--n-episodes", type=int, help="episodes, one per seed (default: the configuration's)")
    add("--n-envs", type=int, help="simulators at a time, a process each (default: one per core)")
    add("--seed", type=int, help="seed of the first episode (default: the configuration's)")
    add("--output", type=Path, help="new folder to write (default: evaluation/... of the run)")
    add("--resume", action="store_true", help="continue the interrupted evaluation in --output")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--sampler", help="kind and steps: ancestral100, ddim10, dpm16, ... (default: the configuration's)")
    add("--precision", default="no", help="of matrix products: no (float32, default), bf16 or fp16")
    add("--videos", type=int, default=3, help="rollout videos, from the best episode to the worst (default: 3)")
    add("--rerun", type=Path, metavar="FILE.rrd", help="write all episodes with imagined frames for Rerun's viewer")
    add("--record-dataset", type=Path, metavar="FOLDER", help="write all episodes as a LeRobotDataset v3 folder")
    add("--weights", choices=("ema", "model"), default="ema", help="the averaged weights (default) or the last ones")
    add("--disturbance", help="a visual disturbance that the simulator knows, such as background, objects or goal")
    add("--planner", type=int, metavar="K", help="execute the best of K plans (default: the configuration's, or none)")
    add("--planner-model", default="policy", metavar="policy|simulator|FOLDER", help="what tries plans: the "
        "policy's own forward dynamics (default), another checkpoint's, or the simulator: the bound")  # fmt: skip
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="task.env_runner.max_steps=400, ...")
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_arguments()
    from unified_video_action.env_runner.distributed import process_group
    from unified_video_action.env_runner.preparation import prepare
    from unified_video_action.messages import one_line

    with process_group() as first:
        logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
        with one_line("eval_sim.py", "finished episodes are kept: go on with --output FOLDER --resume"):
            policy, runner, options = prepare(args)
            metrics = runner.run(policy, **options)
    for name, value in metrics.items():
        logging.info("%-24s %s", name, f"{value:.4f}" if isinstance(value, float) else value)
    logging.info("report: %s", options["output_dir"] / "report.html")


if __name__ == "__main__":
    main()
