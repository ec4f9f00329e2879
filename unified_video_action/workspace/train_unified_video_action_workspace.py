"""A training run from its configuration: data, codec, policy, and what is measured along the way."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf

from unified_video_action.dataset.build import build_dataset
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.dataset.tables import fingerprints
from unified_video_action.dataset.window_dataset import WindowDataset
from unified_video_action.env.plan_score import PlanScore
from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner.preparation import build_reader, build_runner
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.instantiate import PACKAGE, build_dataclass, check_node
from unified_video_action.messages import few
from unified_video_action.policy.base import BasePolicy
from unified_video_action.policy.build import build_policy, policy_class
from unified_video_action.spec import TaskSpec
from unified_video_action.untrusted import local_checkpoint, read_checkpoint_config
from unified_video_action.workspace.checkpoint import checkpoints, load_initial_weights, newest
from unified_video_action.workspace.loop import TrainingLoop
from unified_video_action.workspace.process import build_accelerator, locked
from unified_video_action.workspace.records import Periodic, Records
from unified_video_action.workspace.settings import TrainerSettings, TrainingSettings
from unified_video_action.workspace.validation import Validation

logger = logging.getLogger(__name__)

KEYS = {"name", "seed", "output_dir", "init_from", "init_allow_missing", "init_normalizer"}  # single values
GROUPS = {"task", "policy", "data", "training", "trainer"}
OPTIONAL = {"model", "vae", "text"}  # groups of some policies (`BasePolicy.GROUPS`)
NORMALIZER, DATA = "normalizer.json", "data.json"  # files of a checkpoint
ANOTHER_RUN = "choose a new output_dir (with init_from=CHECKPOINT to start from its weights)"
RECIPE = ("seed", "task", "model", "vae", "text", "policy", "data", "training")  # not to change in a run


class TrainUnifiedVideoActionWorkspace:
    """Everything a training run needs, built and checked; `run` trains.

    Args:
        config: composed by Hydra from `config/`, or the config.yaml of an earlier run.

    Raises:
        ValueError: a wrong key or value, named, before data or weights are read.
        FileNotFoundError: data or weights that are not there.
    """

    def __init__(self, config: DictConfig) -> None:
        self.config = OmegaConf.to_container(config, resolve=True)
        check_config(self.config)
        self.training = build_dataclass(TrainingSettings, self.config["training"], "training")
        self.trainer = build_dataclass(TrainerSettings, self.config["trainer"], "trainer")
        kind = policy_class(self.config)
        self.runner = None
        if self.trainer.evaluate_every:
            if not self.config["task"].get("env_runner"):
                raise ValueError(
                    "trainer.evaluate_every is set, but the task has no simulator: task.env_runner is missing"
                )
            self.runner = build_runner(self.config)
        self.accelerator = build_accelerator(self.trainer)
        if self.accelerator.num_processes > 1:  # each has resolved the time in the folder's name for itself
            (self.config["output_dir"],) = broadcast_object_list([self.config["output_dir"]])
        self.output_dir = Path(self.config["output_dir"])
        main = self.accelerator.is_main_process
        if not main:
            logging.getLogger(PACKAGE).setLevel(logging.WARNING)

        with self.accelerator.main_process_first():  # it alone downloads and fills caches; the others find them
            self.dataset = build_dataset(self.config)
            torch.manual_seed(self.config["seed"])
            encoders = kind.build_encoders(self.config)
            for encoder in encoders.values():
                if isinstance(encoder, torch.nn.Module):
                    encoder.to(self.accelerator.device)
            self.data = fingerprints(self.dataset.tables)
            begun = newest(self.output_dir / "checkpoints") if self.trainer.resume else None
            if begun:  # before hours may be spent on caches
                require_same_data(begun, self.data)
            kind.open_data(self.config, self.dataset, encoders, progress=main)
        self.normalizer = self._normalizer(kind, begun)
        torch.manual_seed(self.config["seed"])  # weights do not depend on whether a cache had to be built
        self.policy = build_policy(self.config, self.normalizer, encoders)
        if self.config["init_from"] and not checkpoints(self.output_dir / "checkpoints"):
            self._initialise(local_checkpoint(self.config["init_from"]))
        size = sum(parameter.numel() for parameter in self.policy.model.parameters()) / 1e6
        about = f"{self.config['name']}: {size:.1f} M parameters, {len(self.dataset)} windows to train on"
        logger.info("%s, %s, results in %s", about, self.accelerator.device, self.output_dir)

    def run(self) -> str:
        """Train, or continue; return why the run ended.

        Raises:
            ValueError: another process trains in output_dir, or its checkpoint does not fit this configuration.
        """
        with locked(self.output_dir) if self.accelerator.is_main_process else nullcontext():
            self._warn_of_changes()
            text = OmegaConf.to_yaml(self.config)
            if self.accelerator.is_main_process:
                (self.output_dir / "config.yaml").write_text(text)
            texts = {"config.yaml": text, NORMALIZER: self.normalizer.to_json(), DATA: json.dumps(self.data, indent=1)}
            return TrainingLoop(
                self.policy,
                self.dataset,
                self.training,
                self.trainer,
                self.config["seed"],
                self.output_dir,
                self.accelerator,
                lambda step: Records(self.output_dir, self.trainer, step, self.config["name"], self.config),
                self._periodic(),
                texts | self.policy.files(self.dataset),
            ).run()

    def _periodic(self) -> list[Periodic]:
        trainer, tasks = self.trainer, []
        if trainer.validate_every or trainer.prediction_grid_every:
            held_out = self.dataset.validation()
            held_out.use_frames()
            validation = Validation(self.policy, held_out, trainer.validation_windows, build_reader(self.config))
            folder, windows = self.output_dir / "prediction_grids", trainer.prediction_grid_windows
            draw = partial(validation.draw, folder=folder, rows=windows)
            tasks = [
                Periodic("validation", trainer.validate_every, validation.measure),
                Periodic("prediction_grid", trainer.prediction_grid_every, draw),
            ]
        if self.policy.can("policy"):
            tasks.append(Periodic("evaluation", trainer.evaluate_every, self._evaluate, together=True))
        elif trainer.evaluate_every:
            logger.info("No evaluation in the simulator: model.mode_mix does not train the policy to act")
        return [task for task in tasks if task.every]

    def _evaluate(self, step: int, records: Records | None) -> Mapping[str, float]:
        folder = self.output_dir / "evaluation" / f"step_{step:08d}"
        metrics = self.runner.run(self.policy, folder, videos=self.trainer.evaluate_videos, config=self.config)
        for video in sorted((folder / "videos").glob("*.mp4")) if records else ():
            records.video(step, f"evaluation/{video.name.partition('_seed_')[0]}", video)
        return metrics

    def _normalizer(self, kind: type[BasePolicy], begun: Path | None) -> Normalizer:
        """That of the checkpoint from which the run goes on, of `init_from` if so asked, or one fitted to the data."""
        remedy = ANOTHER_RUN
        if begun is None and self.config["init_normalizer"]:
            begun, remedy = local_checkpoint(self.config["init_from"]), "init_normalizer=false fits one to the data"
        if begun is None:
            return kind.fit_normalizer(self.config, self.dataset)
        normalizer = Normalizer.from_json((begun / NORMALIZER).read_text())
        for name in ("action", *self.dataset.low_dim_dims()):
            if name not in normalizer:
                raise ValueError(f"{begun}: {NORMALIZER} has no {name}, which is wanted now; {remedy}")
        return normalizer

    def _initialise(self, folder: Path) -> None:
        allowed = tuple(self.config["init_allow_missing"])
        absent = load_initial_weights(self.policy.model, folder / "ema.safetensors", allowed)
        logger.info("Weights from %s", folder)
        if absent:
            logger.warning("%d tensors are not in it and are initialised: %s", len(absent), ", ".join(absent))

    def _warn_of_changes(self) -> None:
        if found := checkpoints(self.output_dir / "checkpoints"):
            before = read_checkpoint_config(found[-1])
            changed = [key for part in RECIPE for key in differences(before.get(part), self.config.get(part), part)]
            if changed:
                logger.warning("This run was begun with another configuration; changed: %s", ", ".join(changed))


def require_same_data(checkpoint: Path, data: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError when a checkpoint was trained on other data than `data`, which `fingerprints` gives.

    A checkpoint of an older version does not say; a warning tells.
    """
    path = checkpoint / DATA
    if not path.is_file():
        logger.warning("%s does not say what it was trained on: whether the data has changed is unknown", checkpoint)
        return
    before = json.loads(path.read_text())
    if len(before) != len(data):  # mirror images count
        then, now = (few(dict.fromkeys(table["store"] for table in tables)) for tables in (before, data))
        raise ValueError(
            f"{checkpoint} was trained on {len(before)} tables of {then}, now there are {len(data)} of {now}; "
            + ANOTHER_RUN
        )
    if changed := dict.fromkeys(new["store"] for old, new in zip(before, data) if old["sha256"] != new["sha256"]):
        raise ValueError(
            f"{checkpoint} was trained on other data: {few(changed)} has changed since; bring the old data back, or "
            + ANOTHER_RUN
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Raise ValueError for keys that nothing reads and for values that no part accepts; nothing is loaded."""
    for key in config.keys() - KEYS - GROUPS - OPTIONAL:
        raise ValueError(f"{key}: there is no such key; known are {', '.join(sorted(KEYS | GROUPS | OPTIONAL))}")
    for key in (KEYS | GROUPS) - config.keys():
        raise ValueError(f"{key} is missing in the configuration")
    seed = config["seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    if config["init_normalizer"] and not config["init_from"]:
        raise ValueError("init_normalizer=true takes the normaliser of init_from, which is not set")
    task = config["task"]
    TaskSpec.parse(task)
    kind = policy_class(config)
    for group in kind.GROUPS - config.keys() - {"text"}:
        raise ValueError(f"{group} is missing in the configuration: {kind.__name__} needs it")
    kind.check_config(config)
    check_node(task["dataset"], WindowDataset, "task.dataset", given=("horizon", "wanted"))
    simulated = {"env": gymnasium.Env, "env_runner": EnvRunner, "planner_score": PlanScore, "reader": StateReader}
    evaluates = config["trainer"].get("evaluate_every")
    for name, interface in simulated.items():
        node = task.get(name)
        # A simulator may be elsewhere, where this machine only trains.
        if node and (evaluates or str(node.get("_target_")).startswith(f"{PACKAGE}.")):
            try:
                check_node(node, interface, f"task.{name}", given=("env_config", "reader"))
            except ModuleNotFoundError as error:
                if evaluates or name == "reader":
                    raise
                logger.info("task.%s is not looked at: %s is not installed here", name, error.name)


def differences(before: Any, after: Any, where: str) -> list[str]:
    """Dotted keys under which two configurations differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(before.keys() | after.keys())
        return [found for key in keys for found in differences(before.get(key), after.get(key), f"{where}.{key}")]
    return [] if before == after else [where]
