"""Train a policy.

python train.py --config-name=uva_pusht_mini                       one process
torchrun --nproc-per-node=8 train.py --config-name=uva_pusht       several GPUs
python train.py --config-name=uva_pusht training=video             stage 1 of the two-stage recipe: frames only
python train.py --config-name=uva_pusht init_from=CHECKPOINT       stage 2: continue with all modes
python train.py --config-dir=CHECKPOINT --config-name=config init_from=CHECKPOINT init_normalizer=true
                                                                   fine-tune a checkpoint by its own recipe
python train.py --config-name=uva_pusht output_dir=FOLDER          continue the run in FOLDER, if there is one
python train.py --config-name=uva_pusht --multirun seed=1,2,3      a sweep; output_dir=FOLDER gets a folder for each
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

    from unified_video_action.messages import one_line
    from unified_video_action.workspace.train_unified_video_action_workspace import TrainUnifiedVideoActionWorkspace

    if not config:
        sys.exit(
            "train.py: choose a configuration with --config-name=, such as uva_pusht, uva_pusht_small, uva_pusht_mini"
        )
    config.output_dir = HydraConfig.get().runtime.output_dir
    with one_line("train.py", "training goes on from the newest checkpoint when the same command is given again"):
        TrainUnifiedVideoActionWorkspace(config).run()


if __name__ == "__main__":
    # Hydra has settings of its own for the folder, which a checkpoint's configuration lacks and a sweep does not share.
    kind = "sweep" if {"--multirun", "-m"} & set(sys.argv) else "run"
    sys.argv += [f"hydra.{kind}.dir={each.partition('=')[2]}" for each in sys.argv if each.startswith("output_dir=")]
    main()
