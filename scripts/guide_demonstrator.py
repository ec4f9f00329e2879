"""Whether a world model chooses well among plans that differ: block pushing, plans of the scripted demonstrator.

    python scripts/guide_demonstrator.py --checkpoint UVA
    python scripts/guide_demonstrator.py --checkpoint UVA --episodes 50 --json guided.json

Each plan pushes blocks into squares in an order of its own; one pair of block and square is wanted (paper, Table V,
which has the plans of a Diffusion Policy: scripts/reproduce.py guidance). Rows: any plan, the best as the checkpoint
imagines them by forward dynamics of states, and the best as the simulator has them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from unified_video_action.workspace.commands import at_least, mistakes, script_parser, write_figures

if TYPE_CHECKING:
    from unified_video_action.policy.base import BasePolicy

log = logging.getLogger("guide_demonstrator")
ROWS = {"any plan": None, "imagined": "model", "tried in the simulator": "simulator"}
STEPS, EXECUTED, NOISE = 150, 8, 0.002  # of an episode, of each plan; metres of the demonstrator's tremor


def succeeds(policy: BasePolicy, wanted: str, seed: int, by: str | None, plans: int) -> bool:
    """One episode, in which the best of so many plans is executed, `by` what is imagined, or any (None)."""
    import numpy as np
    import torch

    from unified_video_action.demos.block_push import ScriptedExpert
    from unified_video_action.env.block_push.env import BlockPushEnv
    from unified_video_action.env.block_push.layout import state_targets
    from unified_video_action.env.block_push.score import PairScore
    from unified_video_action.env.plan_score import Imagined
    from unified_video_action.inference.planner import repeated
    from unified_video_action.inference.session import PolicySession

    env, score = BlockPushEnv(observe_image=by == "model", wanted=wanted), PairScore(wanted)
    rng, session = np.random.default_rng(seed), None
    observation, info = env.reset(seed=seed)
    if by == "model":
        session = PolicySession(policy)
        session.reset(seed=seed)
        session.observe(observation)
    step, ended = 0, False
    while not ended and step < STEPS:
        drawn, ends = [], []
        for _ in range(plans if by else 1):
            expert, plan = ScriptedExpert(int(rng.integers(2**31)), NOISE), []
            with env.scene.kept():
                for _ in range(policy.task.horizon.actions):
                    plan.append(expert.act(env.scene.state))
                    env.move(plan[-1])
                ends.append(state_targets(env.scene.state))
            drawn.append(plan)
        chunks = np.asarray(drawn, np.float32)  # (K, A, 2)
        states = np.asarray(ends)[:, None]  # (K, 1, D)
        if session is not None:
            seen, noise = repeated(session.observation(), plans), [torch.Generator().manual_seed(0)] * plans
            states = policy.predict_states(seen, torch.from_numpy(chunks), noise)
            states = states[:, policy.task.horizon.history :].numpy()
        for action in chunks[score(Imagined(chunks, states)).argmax()][:EXECUTED]:
            observation, _, ended, _, info = env.step(action)
            step += 1
            if session is not None:
                session.observe(observation)
            if ended:
                break
    env.close()
    return bool(info["is_success"])


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="folder of a UVA for block pushing with an auxiliary head")
    add("--episodes", type=at_least(1), default=15, help="for each wanted pair (default: 15)")
    add("--plans", type=at_least(2), default=8, help="number of plans to choose from (default: 8)")
    add("--json", type=Path, help="write the figures to this file, too")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        from unified_video_action.env.block_push.layout import PAIRS
        from unified_video_action.env_runner.results import wilson_interval
        from unified_video_action.policy.build import load_policy

        policy, figures = load_policy(options.checkpoint), {}
        if not policy.can("forward_dynamics"):
            raise ValueError(f"{options.checkpoint}: this policy was not trained in the mode forward_dynamics")
        for name, by in ROWS.items():
            won = {}
            for column, wanted in enumerate(PAIRS, start=1):
                seeds = range(column * 100_000, column * 100_000 + options.episodes)
                won[wanted] = sum(succeeds(policy, wanted, seed, by, options.plans) for seed in seeds)
            episodes = len(PAIRS) * options.episodes
            low, high = wilson_interval(sum(won.values()), episodes)
            figures[name] = {**won, "share": sum(won.values()) / episodes, "low": low, "high": high}
            log.info(
                "%s: %s of %d each; %.0f %% (%.0f to %.0f)",
                name,
                won,
                options.episodes,
                *(100 * figures[name][key] for key in ("share", "low", "high")),
            )
        write_figures(options.json, {"episodes": options.episodes, "plans": options.plans, "rows": figures})


if __name__ == "__main__":
    main()
