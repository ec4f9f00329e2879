"""Push the T yourself, or let the policy do it, and see what the model makes of it: a page for this machine's browsers.

    python scripts/play.py                                   the shipped policy, at http://127.0.0.1:8050
    python scripts/play.py --checkpoint RUN/checkpoints/latest

Drag the agent with the mouse or the arrow keys, or press "let the policy act". Beside the simulator the page shows the
future that the model imagines for what you just did, the policy's plan and its imagined future, the plans among which
a planner would choose, and the actions that the model reads from the last frames. A job that the checkpoint was not
trained for is named, not shown. Where actions are not positions in the picture, only the policy acts.
"""

import argparse
import asyncio
from pathlib import Path

from unified_video_action.workspace.commands import at_least, cores, mistakes, script_parser


def main(arguments: list[str] | None = None) -> None:
    parser = script_parser(__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoints/uva_pusht_small"), help="folder of a checkpoint")
    add("--seed", type=at_least(0), default=100_000, help="seed of the first episode (default: 100000)")
    add("--planner", type=at_least(1), default=8, metavar="K", help="plans that the planner weighs (default: 8)")
    add("--port", type=at_least(0), default=8050, help="default: 8050; 0 takes a free one")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    options = parser.parse_args(arguments)
    with mistakes(parser):
        try:
            asyncio.run(play(options))
        except KeyboardInterrupt:
            parser.exit(130)


async def play(options: argparse.Namespace) -> None:
    import torch

    from unified_video_action.env_runner import preparation
    from unified_video_action.env_runner.panels import planner_of
    from unified_video_action.env_runner.play import Player
    from unified_video_action.policy.build import load_policy

    torch.set_num_threads(max(1, cores() // 2))  # the policy acts while panels are made
    config = preparation.read_config(options.checkpoint)
    policy = load_policy(options.checkpoint, device=preparation.choose_device(options.device))
    planner = planner_of(config, policy, options.planner)
    player = Player(policy, preparation.build_runner(config), planner, options.seed, config["name"])
    await player.serve(options.port)


if __name__ == "__main__":
    main()
