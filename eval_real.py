"""Serve a policy to robots, or run one on an arm.

    python eval_real.py serve --checkpoint outputs/my_run/checkpoints/latest       openpi's and umi-arx's clients
    python eval_real.py run --robot sim --checkpoint ... --dry-run                 show what would be sent
    python eval_real.py run --robot arx5 --server ws://192.168.1.7:8000            plans come from another machine

docs/real_robot.md has the checklist of a first run, and what each stop means.
"""

import argparse
import logging
import sys


def parse_arguments() -> argparse.Namespace:
    from unified_video_action.real.control import running
    from unified_video_action.real.serving import server

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="serve | run")
    for name, module, what in (
        ("serve", server, "answer clients with plans of a checkpoint"),
        ("run", running, "control an arm"),
    ):
        command = commands.add_parser(
            name, help=what, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(start=module.start)
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        sys.exit(args.start(args))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"eval_real.py: {error}")


if __name__ == "__main__":
    main()
