"""What `--policy.KEY=VALUE` may say, and how LeRobot's features become a task of this project."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unified_video_action.instantiate import build_dataclass
from unified_video_action.spec import Horizon
from unified_video_action.workspace.commands import read_config
from unified_video_action.workspace.settings import TrainingSettings

KEPT = ("shape_meta", "horizon")  # of the recipe's task; its data and its simulator are others
SCHEDULES = {"cosine": "cosine", "constant": "constant_with_warmup"}  # ours -> diffusers'


@PreTrainedConfig.register_subclass("uva")
@dataclass
class UvaConfig(PreTrainedConfig):
    """A configuration of this project (`recipe`, `overrides`), which a saved policy holds as a whole in `settings`.

    Raises:
        ValueError: a recipe or an override that does not exist; features without a camera or an action.
    """

    recipe: str = "uva_pusht"  # as of train.py --config-name: model, codec, horizon, task modes, optimiser
    overrides: list[str] = field(default_factory=list)  # as on train.py's command line: model=mar_small
    names: dict[str, str] = field(default_factory=dict)  # feature -> name in the task; short ones where not said
    language: bool | None = None  # follow the dataset's task strings; null: where it has several
    settings: dict[str, Any] = field(default_factory=dict)  # made of the above
    normalizer: dict[str, Any] = field(default_factory=dict)  # of states and actions; fitted to the dataset
    instructions: list[str] = field(default_factory=list)  # whose text features the policy holds
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), NormalizationMode.IDENTITY)
    )  # of LeRobot's processors: the policy normalises, see UvaPolicy

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.settings:
            config = read_config(self.recipe, [*self.overrides, "output_dir=outputs/${name}"])
            self.settings = config | {"task": {key: config["task"][key] for key in KEPT}}
        elif self.overrides:  # of a saved policy
            known = OmegaConf.create(self.settings)
            OmegaConf.set_struct(known, True)
            try:
                self.settings = OmegaConf.to_container(OmegaConf.merge(known, OmegaConf.from_dotlist(self.overrides)))
            except OmegaConfBaseException as error:
                raise ValueError(f"policy.overrides={self.overrides} of a saved policy: {error}") from error
        self.overrides = []

    @property
    def horizon(self) -> Horizon:
        return Horizon(**self.settings["task"]["horizon"])

    @property
    def training(self) -> TrainingSettings:
        return build_dataclass(TrainingSettings, self.settings["training"], "training")

    @property
    def observation_delta_indices(self) -> list[int]:
        return [*self.horizon.history_offsets, *self.horizon.future_offsets]

    @property
    def action_delta_indices(self) -> list[int]:
        history = self.horizon.history_action_offsets if self.history_actions else ()
        return [*history, *self.horizon.action_offsets]

    @property
    def reward_delta_indices(self) -> None:
        return None

    @property
    def history_actions(self) -> bool:
        """Whether the chunk before now is an input."""
        return bool(self.settings["task"]["shape_meta"]["action"].get("history"))

    def get_optimizer_preset(self) -> AdamWConfig:
        optimizer = self.training.optimizer
        return AdamWConfig(
            lr=optimizer.learning_rate,
            betas=tuple(optimizer.betas),
            weight_decay=optimizer.weight_decay,
            grad_clip_norm=optimizer.clip or 0.0,
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        schedule = self.training.schedule
        return DiffuserSchedulerConfig(name=SCHEDULES[schedule.shape], num_warmup_steps=schedule.warmup_steps)

    def validate_features(self) -> None:
        if not self.image_features or self.action_feature is None:
            found = ", ".join([*(self.input_features or {}), *(self.output_features or {})]) or "none"
            raise ValueError(f"UVA needs a camera and the feature 'action', and the data has {found}")

    @property
    def state_features(self) -> list[str]:
        """Inputs that are not images."""
        return [feature for feature in self.input_features if feature not in self.image_features]

    def describe_task(self, text_dim: int) -> None:
        """Write the features' names and shapes into `settings`; the recipe's own words on a name (predict, steps) stay.

        Raises:
            ValueError: a name for no feature, or for two; actions relative to a state that there is not.
        """
        for feature in self.input_features:  # observation.images.top becomes top
            short = feature.removeprefix("observation.").removeprefix("images.").replace(".", "_")
            self.names.setdefault(feature, short)
        if self.names.keys() != self.input_features.keys() or len(set(self.names.values())) < len(self.names):
            raise ValueError(f"policy.names={self.names}: one name is needed for each of {list(self.input_features)}")
        states, origin = [self.names[each] for each in self.state_features], self.settings["policy"]["relative_to"]
        if origin is not None and origin not in states:
            raise ValueError(
                f"policy.relative_to={origin} of the recipe {self.recipe}: the dataset's states are {states}; give "
                "--policy.overrides='[\"policy.relative_to=null\"]', or call a state so by --policy.names"
            )
        meta, entries = self.settings["task"]["shape_meta"], {}
        for feature, about in self.input_features.items():
            kind = "rgb" if about.type is FeatureType.VISUAL else "low_dim"
            given = meta["obs"].get(self.names[feature], {})
            entries[self.names[feature]] = {**given, "shape": list(about.shape), "type": kind}
        action = {**meta["action"], "shape": list(self.action_feature.shape), "names": None}
        self.settings["task"]["shape_meta"] = {"obs": entries, "action": action, "text_dim": text_dim}
