"""The server as a program of its own, as a robot's process starts it; `eval_real.py serve` for people."""

import argparse
import logging
import sys

from unified_video_action.real.server import serving


def main() -> None:
    parser = argparse.ArgumentParser(description=serving.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    serving.add_arguments(parser)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s server: %(message)s")
    try:
        sys.exit(serving.start(args))
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"server: {error}")


if __name__ == "__main__":
    main()
