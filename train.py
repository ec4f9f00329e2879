"""Train a policy.

python train.py --config-name=uva_pusht_mini                       one process
torchrun --nproc-per-node=8 train.py --config-name=uva_pusht       several GPUs
python train.py --config-name=uva_pusht training=video             stage 1 of the two-stage recipe: frames only
python train.py --config-name=uva_pusht init_from=CHECKPOINT       stage 2: continue with all modes
python train.py --config-name=uva_pusht output_dir=FOLDER          continue the run in FOLDER, if there is one
python train.py --config-name=uva_pusht --cfg job                  show the configuration
"""

import os
import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="config")
def main(config: DictConfig) -> None:
    # Threads of a CPU that wait for each other must not spin: with another busy process, a loader worker say, that made
    # training up to 15 times slower. It counts only before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from hydra.core.hydra_config import HydraConfig

    from unified_video_action.dataset.zarr_store import StoreError
    from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

    if not config:
        sys.exit(
            "train.py: choose a configuration with --config-name=, such as uva_pusht, uva_pusht_small, uva_pusht_mini"
        )
    config.output_dir = HydraConfig.get().runtime.output_dir
    try:
        workspace = TrainUnifiedVideoActionWorkspace(config)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train.py: {error}")
    try:
        workspace.run()
    except StoreError as error:  # damage is found when it is read
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    main()
