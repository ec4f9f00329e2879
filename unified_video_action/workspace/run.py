"""Train without Hydra: `python -m unified_video_action.workspace.run CONFIG.yaml [key=value ...]`.

CONFIG.yaml is a resolved configuration, such as the config.yaml that every run and checkpoint holds.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from omegaconf import OmegaConf

from unified_video_action.messages import one_line
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.max_steps=100")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s")
    with one_line("run", "training goes on from the newest checkpoint when the same command is given again"):
        config = OmegaConf.merge(OmegaConf.load(options.config), OmegaConf.from_dotlist(options.overrides))
        TrainUnifiedVideoActionWorkspace(config).run()


if __name__ == "__main__":
    main()
