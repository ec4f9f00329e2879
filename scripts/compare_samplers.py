"""What fewer denoising steps cost and give: a trained policy's action chunks by sampler, against a reference sampler.

    python scripts/compare_samplers.py --checkpoint checkpoints/uva_pusht_small --json samplers.json
    python scripts/compare_samplers.py --checkpoint RUN/checkpoints/latest --n-episodes 100

Observations are those of the policy's own rollouts in its simulator, on seeds that no evaluation starts with. For each
of them a sampler draws many chunks; the table has, as means over observations, in normalised action units:

energy    energy distance to the reference's samples (0: the same distribution). The first row, a second draw of the
          reference, is the noise of this measure
shift     distance between the mean chunks
spread    of a sampler's chunks, relative to the reference's (1: as varied)
head ms   one call of the action head, for one observation; plan ms: one plan of a session, new frames encoded
score     with --n-episodes, mean score in the simulator with its 95 % interval
"""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unified_video_action.workspace.commands import at_least, mistakes, script_parser, write_figures

if TYPE_CHECKING:
    from torch import Tensor

    from unified_video_action.policy.uva import UnifiedVideoActionPolicy

log = logging.getLogger("compare_samplers")
SAMPLERS = ("ddim100", "ddim16", "ddim10", "ddim5", "ancestral16", "dpm16")
START_SEED = 200_000  # evaluations start at 100,000
PLANS_PER_EPISODE = 8
ROWS = 256  # chunks drawn at a time
SCORES = [f"{score}{end}" for score in ("mean_score", "success_rate") for end in ("", "_low", "_high")]
COLUMNS = ("energy", "energy_error", "shift", "spread", "head_ms", "plan_ms", *SCORES)


def observe(policy: UnifiedVideoActionPolicy, config: dict[str, Any], count: int) -> dict[str, Any]:
    """Observations (count, ...) of the policy's own rollouts, for `policy.predict_action`, with frames encoded."""
    import numpy as np
    import torch

    from unified_video_action.env_runner.rollout import rollout
    from unified_video_action.env_runner.simulators import EnvProcesses
    from unified_video_action.inference.session import PolicySession

    runner, task = config["task"]["env_runner"], policy.task
    action_steps, max_steps = runner.get("action_steps", policy.action_steps), runner.get("max_steps", 300)
    wanted = min(PLANS_PER_EPISODE, math.ceil(max_steps / action_steps))  # of each episode, if it is long enough
    seeds = range(START_SEED, START_SEED + math.ceil(count / wanted))
    histories: list[list[dict[str, np.ndarray]]] = []

    def keep(episode: Any, seen: list[dict[str, np.ndarray]]) -> None:
        plans = np.arange(0, max(len(seen) - 1, 1), action_steps)  # the times at which it planned
        for now in plans[np.linspace(0, len(plans) - 1, min(wanted, len(plans))).astype(int)]:
            histories.append([seen[max(now + offset, 0)] for offset in task.horizon.history_offsets])

    slots = min(len(seeds), 4)
    session, how = PolicySession(policy, slots, action_steps), {"max_steps": max_steps, "action_steps": action_steps}
    with EnvProcesses(config["task"]["env"], slots, 300.0) as envs:
        rollout(session, envs, seeds, on_end=keep, keep_observations=True, **how)

    def stacked(name: str) -> Tensor:
        return torch.from_numpy(np.stack([[step[name] for step in history] for history in histories[:count]]))

    frames = {camera: stacked(camera).movedim(-1, -3) for camera in task.camera_names}  # (n, H, 3, h, w)
    states = {name: stacked(name).float().to(policy.device) for name in task.states}  # (n, H, d)
    return {camera: policy.encode(frame) for camera, frame in frames.items()} | states


def draw(policy: UnifiedVideoActionPolicy, obs: dict[str, Any], sampler: str, samples: int, seed: int) -> Tensor:
    """Normalised action chunks (observations, samples, A * D)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    scale = policy.normalizer.scale("action")
    count, chunks = len(next(iter(obs.values()))), []
    for start in range(0, count, max(ROWS // samples, 1)):
        rows = slice(start, start + max(ROWS // samples, 1))
        repeated = {name: each[rows].repeat_interleave(samples, 0) for name, each in obs.items()}
        made = policy.predict_action(repeated, generator, sampler)["action_pred"]
        chunks.append((made * scale).flatten(1).unflatten(0, (-1, samples)))
    return torch.cat(chunks)


def time_sampler(policy: UnifiedVideoActionPolicy, config: dict[str, Any], sampler: str, repeats: int) -> dict:
    """Median milliseconds of the action head, and of a whole plan, of a session that acts in one environment."""
    from unified_video_action.evaluation.inference_timing import random_observations, stopwatch
    from unified_video_action.evaluation.timing import Bench
    from unified_video_action.inference.session import PolicySession

    bench, session = Bench(policy.device, repeats=repeats), PolicySession(policy, sampler=sampler)
    session.reset()
    observation = next(random_observations(policy))

    def measure() -> dict[str, float]:
        for _ in range(policy.action_steps):
            session.observe(observation)
        with stopwatch(bench, session.policy) as times:
            total = bench.time(session.plan)
        return {"head": times["action diffusion"], "plan": total}

    return {f"{part}_ms": row["median"] for part, row in bench.summarise(measure).items()}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON file holds."""
    import torch

    from unified_video_action.env_runner import preparation
    from unified_video_action.env_runner.results import git_commit, machine, versions
    from unified_video_action.evaluation.distributions import energy_distance, spread
    from unified_video_action.policy.build import load_policy

    config = preparation.read_config(options.checkpoint)
    policy = load_policy(options.checkpoint, device=preparation.choose_device(options.device))
    for sampler in (options.reference, *options.samplers):
        policy.config.samplers(sampler)
    obs = observe(policy, config, options.observations)
    reference = draw(policy, obs, options.reference, options.samples, seed=0)
    table: dict[str, dict[str, Any]] = {}
    for number, sampler in enumerate((options.reference, *options.samplers), start=1):
        chunks = draw(policy, obs, sampler, options.samples, seed=number)
        distances = energy_distance(chunks, reference)  # (observations,)
        row = table[sampler] = {
            "energy": float(distances.mean()),
            "energy_error": float(distances.std() / math.sqrt(len(distances))),
            "shift": float((chunks.mean(1) - reference.mean(1)).norm(dim=-1).mean()),
            "spread": float(spread(chunks).mean() / spread(reference).mean()),
            **time_sampler(policy, config, sampler, options.repeats),
        }
        if options.n_episodes:
            runner = preparation.build_runner(config, n_episodes=options.n_episodes)
            row |= runner.run(policy, sampler=sampler, videos=0)
    return {
        "checkpoint": str(options.checkpoint),
        "reference": options.reference,
        "observations": len(reference),
        "samples": options.samples,
        "spread_of_reference": float(spread(reference).mean()),
        "samplers": table,
        "machine": {**machine(), "device": str(policy.device), "threads": str(torch.get_num_threads())},
        "commit": git_commit(),
        "versions": versions(),
    }


def markdown(results: dict[str, Any]) -> str:
    """The table, for people and for pages."""
    table = results["samplers"]
    columns = [name for name in COLUMNS if name in table[results["reference"]]]
    lines = [["sampler", *(name.replace("_", " ") for name in columns)], ["---"] * (1 + len(columns))]
    for sampler, row in table.items():
        again = " (again)" if sampler == results["reference"] else ""
        lines.append([sampler + again, *(f"{row[name]:.4g}" for name in columns)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a checkpoint")
    add("--samplers", nargs="+", default=list(SAMPLERS), help=f"default: {' '.join(SAMPLERS)}")
    add("--reference", default="ancestral100", help="reference sampler (default: the paper's)")
    add("--observations", type=at_least(2), default=64, help="number of observations (default: 64)")
    add("--samples", type=at_least(2), default=64, help="chunks for each observation and sampler (default: 64)")
    add("--n-episodes", type=at_least(0), default=0, help="evaluation episodes per sampler (default: none)")
    add("--repeats", type=at_least(1), default=20, help="repetitions of each timing (default: 20)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    add("--json", type=Path, help="also write everything here")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        results = compare(options)
    log.info("\n%s", markdown(results))
    write_figures(options.json, results)


if __name__ == "__main__":
    main()
