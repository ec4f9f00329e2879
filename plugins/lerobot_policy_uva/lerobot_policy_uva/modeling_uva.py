"""UVA behind LeRobot's policy interface: training with an average of the weights, and acting step by step."""

from __future__ import annotations

import copy
import json
from collections import deque
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_uva.configuration_uva import UvaConfig
from lerobot_policy_uva.windows import SampledWindows, as_frames, windows
from unified_video_action.compat.tensors import load_exactly, read_safetensors
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.inference.session import PolicySession
from unified_video_action.instantiate import resolve_class
from unified_video_action.policy.base import Share
from unified_video_action.policy.uva import UnifiedVideoActionPolicy
from unified_video_action.spec import TaskSpec
from unified_video_action.workspace.batches import map_leaves
from unified_video_action.workspace.optim import Ema, parameter_groups

CLIP = {"_target_": "unified_video_action.text.clip.ClipText"}


class UvaPolicy(PreTrainedPolicy):
    """Trains `uva.model`; evaluates and acts with the average of its weights, which `update` keeps.

    Who normalises: the policy itself. LeRobot's processors leave values as they are, in the data's units, in which
    actions come out as well. The normaliser is fitted to the dataset that a policy is made for, lies in config.json,
    and stays when the policy is trained further, on whatever data: its weights know no other.

    model.safetensors holds all that acting needs: the weights and, once trained, their average, the frame codec, and
    text features of the instructions that were trained on.

    Args:
        config: what is found out here is added to it, so that it is saved.
        dataset_meta: of the dataset that a new policy is for.

    Raises:
        ValueError: a new policy without a dataset; features or settings that do not fit together.
        FileNotFoundError: no weights of the codec, or of the text encoder.
    """

    config_class = UvaConfig
    name = "uva"

    def __init__(self, config: UvaConfig, dataset_stats: Any = None, dataset_meta: Any = None) -> None:
        super().__init__(config)
        config.validate_features()
        settings = config.settings
        kind = resolve_class(settings["policy"].get("_target_"), UnifiedVideoActionPolicy, "policy")
        if not config.normalizer and dataset_meta is None:
            raise ValueError("a new UVA policy needs the dataset that it is for; load a trained one by --policy.path")
        new = not config.normalizer
        if new and follows_instructions(config, dataset_meta):
            config.instructions = sorted(dataset_meta.tasks.index)
            settings["text"] = settings.get("text") or CLIP
        encoders = kind.build_encoders(settings | ({} if config.instructions else {"text": None}))
        features = torch.zeros(0, 0)
        if new:
            if config.instructions:
                features = encoders["text"].encode(config.instructions)  # (n, text_dim)
            config.describe_task(features.shape[-1])
            fitted = kind.fit_normalizer(settings, SampledWindows(config, dataset_meta, encoders["codec"]))
            config.normalizer = json.loads(fitted.to_json())
            settings["vae"]["weights"] = "random"  # from now on they are saved and loaded with the policy's
        task = TaskSpec.parse(settings["task"])
        if not new:
            features = torch.zeros(len(config.instructions), task.text_dim)
        normalizer = Normalizer.from_json(json.dumps(config.normalizer))
        self.uva = kind.from_config(settings, task, normalizer, encoders)
        self.codec = self.uva.codec
        self.average: torch.nn.Module | None = None
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("text_features", features)
        self._ema = config.training.ema
        self._session: PolicySession | None = None
        self._rows, self._begun, self._episodes = 0, False, 0
        self._actions: deque = deque()

    @classmethod
    def _load_as_safetensor(cls, model: UvaPolicy, model_file: str, map_location: str, strict: bool) -> UvaPolicy:
        """Exactly what the policy has, whatever `strict` says."""
        tensors = read_safetensors(model_file)
        if any(name.startswith("average.") for name in tensors):
            model._begin_average()
        load_exactly(model, tensors, model_file)
        if model.config.instructions:
            features = dict(zip(model.config.instructions, model.text_features.tolist(), strict=True))
            text = model.uva.text
            text.remember(json.dumps({"tokens": text.tokens, "features": features}), model_file)
        return model

    # -- training ------------------------------------------------------------------------------------------------------

    def get_optim_params(self) -> list[dict[str, Any]]:
        """As this project's trainer: no decay of vectors, and a lower rate of wide layers where the recipe says so."""
        optimizer = self.config.training.optimizer
        groups = parameter_groups(self.uva.model, optimizer)
        return [{**group, "lr": group["scale"] * optimizer.learning_rate} for group in groups]

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and its terms."""
        made = windows(batch, self.config)
        if self.uva.task.text_dim:
            made["text"] = self.uva.encode_text(batch["task"])
        size, step = len(made["action"]), int(self.updates)
        # Masks and noise follow from LeRobot's seed, the step and the sample alone, so a resumed run repeats them.
        generator = torch.Generator().manual_seed((torch.initial_seed() + step) % 2**63)
        made["seed"] = torch.randint(2**62, (size,), generator=generator) + batch["index"].cpu()
        prepared = self.uva.prepare(made, Share(step, 0, size, 0))
        prepared = map_leaves(prepared, Tensor, lambda tensor: tensor.to(self.uva.device))
        losses = (self.uva if self.training else self._averaged())(prepared)
        return losses["loss"], {name: value.item() for name, value in losses.items() if name != "loss"}

    @torch.no_grad()
    def update(self) -> None:
        """After every step of the optimiser: add its weights to their average."""
        self.updates += 1
        self._session = None  # it was made from weights that changed
        if self.average is None:
            self._begin_average()
        average = dict(self.average.named_parameters())
        Ema(self.uva.model, self._ema, average).update(int(self.updates))

    def _begin_average(self) -> None:
        self.average = copy.deepcopy(self.uva.model).requires_grad_(False)

    def _averaged(self) -> UnifiedVideoActionPolicy:
        """The policy with averaged weights, in evaluation mode."""
        policy = copy.copy(self.uva)
        if self.average is not None:
            policy._modules = {**self.uva._modules, "model": self.average}
        return policy.eval()

    # -- acting --------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the episodes that were played."""
        self._begun = False
        self._actions.clear()

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """Takes in what every environment shows, and plans again once `policy.action_steps` actions are executed.

        Returns:
            (B, D) in the data's units, on the CPU.
        """
        self._observe(batch)
        if not self._actions:
            self._actions.extend(self._plan().unbind(1)[: self.uva.action_steps])
        return self._actions.popleft()

    def predict_action_chunk(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """(B, A, D): the plan from here. For a history of the right rate, call it at every control step."""
        self._observe(batch)
        return self._plan()

    @torch.no_grad()
    def _plan(self) -> Tensor:
        with torch.inference_mode(False):  # what a session keeps outlives LeRobot's inference mode
            return torch.from_numpy(self._session.plan())

    @torch.no_grad()
    def _observe(self, batch: dict[str, Any]) -> None:
        names, cameras = self.config.names, self.config.image_features
        values = {
            name: as_frames(batch[feature]).movedim(1, -1) if feature in cameras else batch[feature]
            for feature, name in names.items()
        }
        arrays = {name: value.cpu().numpy() for name, value in values.items()}  # (B, H, W, 3) or (B, d)
        rows = len(next(iter(arrays.values())))
        with torch.inference_mode(False):
            if not self._begun:
                self._begin(rows, batch.get("task"))
            for slot in range(rows):
                self._session.observe({name: array[slot] for name, array in arrays.items()}, slot)

    def _begin(self, rows: int, instructions: list[str] | None) -> None:
        """Begin an episode in each of so many environments. The noise of the n-th one follows from LeRobot's seed + n,
        which is also what lerobot-eval starts that episode's environment from."""
        if self._session is None or self._rows != rows:
            self._session, self._rows = PolicySession(self._averaged(), rows), rows
        for slot in range(rows):
            text = instructions[slot] if self.uva.task.text_dim else None
            self._session.reset(slot, (torch.initial_seed() + self._episodes) % 2**63, text)
            self._episodes += 1
        self._begun = True


def follows_instructions(config: UvaConfig, dataset_meta: Any) -> bool:
    """Whether a new policy follows instructions."""
    return len(dataset_meta.tasks.index) > 1 if config.language is None else config.language
