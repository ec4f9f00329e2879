"""Train without Hydra: `python -m unified_video_action.workspace.run CONFIG.yaml [key=value ...]`.

CONFIG.yaml is a resolved configuration, such as the config.yaml that every run and checkpoint holds.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from omegaconf import OmegaConf

from unified_video_action.dataset.zarr_store import StoreError
from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.max_steps=100")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s")
    try:
        config = OmegaConf.merge(OmegaConf.load(options.config), OmegaConf.from_dotlist(options.overrides))
        workspace = TrainUnifiedVideoActionWorkspace(config)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{error}")
    try:
        workspace.run()
    except StoreError as error:  # damage is found when it is read
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
