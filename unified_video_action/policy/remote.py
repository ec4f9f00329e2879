"""A policy behind openpi's websocket: pi0, OpenVLA, a server of this project. It is evaluated, not trained."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unified_video_action.compat.openpi_messages import PROMPT, STATE, pack, unpack
from unified_video_action.dataset.normalizer import Normalizer
from unified_video_action.noise import Generators
from unified_video_action.policy.base import BasePolicy, Config, Keep, LossTerm, Observation, require_observations
from unified_video_action.spec import TaskSpec, require_integers
from unified_video_action.vae.base import resize

log = logging.getLogger(__name__)
IMAGES = ("observation/image", "observation/wrist_image")  # openpi's names of a robot's first and second camera
KEY_VARIABLE = "UVA_SERVER_KEY"
MOST_BYTES = 16 * 1024 * 1024  # of an answer
NOT_TRAINED = "policy=remote is not trained: evaluate it by eval_sim.py --config-name NAME --set policy=remote"


@dataclass(frozen=True)
class RemoteConfig:
    """Where the server is, and what it is sent."""

    url: str = ""  # such as ws://192.168.1.7:8000
    action_steps: int = 8  # actions executed of each chunk
    keys: Mapping[str, str] = field(default_factory=dict)  # the server's names of cameras and states; see RemotePolicy
    image_size: int | None = None  # frames are resized to this square; null: sent as they are
    history: bool = False  # send all observed frames and states, oldest first, in place of the newest; a server of this
    # project always gets them
    timeout: float = 60.0  # seconds for an answer
    sampler: str = "the server's"

    def __post_init__(self) -> None:
        require_integers(self, "action_steps")
        if self.image_size is not None:
            require_integers(self, "image_size")
        if not self.url.startswith(("ws://", "wss://")):
            raise ValueError(f"policy.url={self.url!r}: name the server, such as policy.url=ws://127.0.0.1:8000")
        if not self.timeout > 0:
            raise ValueError(f"policy.timeout must be above 0, got {self.timeout!r}")


class RemotePolicy(BasePolicy):
    """Asks a server for every chunk of actions, one environment after the other.

    A message holds uint8 frames (H, W, 3) and float32 states (d,) of the newest observation, and the instruction as
    `prompt`. Cameras are named observation/image and observation/wrist_image, all states together observation/state,
    unless `keys` names them one by one. The answer's `actions` (A, D) are in the units of the simulator. A server that
    asks for a key gets that of the environment variable UVA_SERVER_KEY, since configurations are stored with results.

    Raises:
        ValueError: more cameras than openpi has names for, without `keys`.
    """

    CONFIG = RemoteConfig
    STORED = False

    def __init__(self, task: TaskSpec, config: RemoteConfig) -> None:
        super().__init__(task, Normalizer({}), config)
        self.model = nn.Module()
        unnamed = [name for name in task.camera_names if name not in config.keys]
        if len(unnamed) > len(IMAGES):
            raise ValueError(f"policy.keys: name the server's keys of the cameras {', '.join(task.camera_names)}")
        self._cameras = dict(zip(unnamed, IMAGES)) | {name: config.keys[name] for name in config.keys}
        self._history = config.history
        self._prompts: list[str] = []
        self._connection: Any = None

    @classmethod
    def from_config(
        cls, config: Config, task: TaskSpec, normalizer: Normalizer, encoders: Mapping[str, Any] | None = None
    ) -> RemotePolicy:
        return cls(task, cls.read_config(config))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def check_config(cls, config: Config) -> None:
        raise ValueError(NOT_TRAINED)

    def loss_terms(self, batch: Mapping[str, Any]) -> dict[str, LossTerm]:
        raise ValueError(NOT_TRAINED)

    loss_weights = loss_terms

    def encode_text(self, instructions: Sequence[str]) -> Tensor:
        """The instructions' numbers, (n, text_dim): the server gets their words."""
        rows = []
        for instruction in instructions:
            if instruction not in self._prompts:
                self._prompts.append(instruction)
            rows.append(self._prompts.index(instruction))
        return torch.tensor(rows, dtype=torch.float32).unsqueeze(1).expand(-1, max(self.task.text_dim, 1))

    @torch.no_grad()
    def predict_action(
        self,
        obs: Observation,
        generator: Generators = None,
        sampler: str | None = None,
        keep: Keep | None = None,
        chunks: int = 1,
    ) -> dict[str, Tensor]:
        """As `BasePolicy.predict_action`; noise is the server's own.

        Raises:
            ValueError: the server cannot be reached, answers an error, or with something else than such actions; a
                prefix to keep to, or several plans, are asked for.
        """
        if keep is not None or chunks > 1 or sampler is not None:
            raise ValueError("policy=remote: a server gives one plan, by its own sampler, and takes no prefix")
        require_observations(obs, (*self.task.camera_names, *self.task.states))
        rows = [self._ask(obs, row) for row in range(len(obs[self.task.camera_names[0]]))]
        chunk = torch.from_numpy(np.stack(rows))  # (B, A, D)
        return {"action": chunk[:, : self.action_steps], "action_pred": chunk}

    def _message(self, obs: Observation, row: int) -> dict[str, Any]:
        message: dict[str, Any] = {}
        which, steps = (slice(None), slice(-self.task.state_steps, None)) if self._history else (-1, -1)
        for name in self.task.camera_names:
            frames = obs[name][row]  # (H, 3, h, w)
            if self.config.image_size is not None:
                frames = resize(frames.float(), self.config.image_size).round().to(torch.uint8)
            message[self._cameras[name]] = frames.movedim(-3, -1)[which].contiguous().numpy()
        states = {name: obs[name][row].float().numpy()[steps] for name in self.task.states}
        named = {self.config.keys[name]: states.pop(name) for name in list(states) if name in self.config.keys}
        if states:
            named[STATE] = np.concatenate(list(states.values()), axis=-1)
        if self.task.text_dim:
            named[PROMPT] = self._prompts[int(obs["text"][row].flatten()[0])]
        return message | named

    def _ask(self, obs: Observation, row: int) -> np.ndarray:
        """Actions (A, D) for one environment."""
        from websockets.exceptions import WebSocketException

        url = self.config.url
        try:
            if self._connection is None:
                self._connect()
            self._connection.send(pack(self._message(obs, row)))
            answer = self._connection.recv(timeout=self.config.timeout)
        except (OSError, EOFError, WebSocketException) as error:  # OSError: also a timeout
            self._connection = None
            raise ValueError(f"{url}: no answer ({type(error).__name__}: {error}); is the server running?") from error
        if isinstance(answer, str):  # an error, after which the server closes the connection
            self._connection = None
            raise ValueError(f"{url} refused the observation: {answer.strip().splitlines()[-1][:500]}")
        found = unpack(answer, MOST_BYTES)
        actions = found.get("actions") if isinstance(found, dict) else None
        steps, dim = self.task.horizon.actions, self.task.action_dim
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.shape[1] != dim:
            came = f"actions {actions.shape}" if isinstance(actions, np.ndarray) else "no array of actions"
            raise ValueError(f"{url} answered with {came}: expected (A, {dim})")
        if len(actions) < steps:
            raise ValueError(f"{url} plans {len(actions)} actions: set task.horizon.actions={len(actions)} or less")
        if not np.isfinite(actions[:steps]).all():
            raise ValueError(f"{url} answered with actions that are not finite")
        return actions[:steps].astype(np.float32)

    def _connect(self) -> None:
        from websockets.sync.client import connect

        key = os.environ.get(KEY_VARIABLE)
        headers = None if key is None else {"Authorization": f"Api-Key {key}"}
        connection = connect(
            self.config.url,
            additional_headers=headers,
            compression=None,
            max_size=MOST_BYTES,
            proxy=None,
            open_timeout=self.config.timeout,
        )
        hello = unpack(connection.recv(timeout=self.config.timeout), MOST_BYTES)  # what the server says of itself
        if not self._history and isinstance(hello, dict) and "description" in hello:
            # It makes one history of single observations, and these are of several environments and episodes.
            log.info("%s is a server of this project: it is sent histories (policy.history=true)", self.config.url)
            self._history = True
        self._connection = connection

    def __getstate__(self) -> Any:
        return {**self.__dict__, "_connection": None}  # copies open their own
