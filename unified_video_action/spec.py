"""The contract on time and shapes that every module shares.

`now` is the newest observed frame. With the defaults, history frames lie at now-12, -8, -4, 0, future frames at
now+4, +8, +12, +16, and the 16 actions at now .. now+15 (paper, section III-A).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


def require_integers(config: object, *names: str, least: int = 1) -> None:
    """Raises ValueError, naming the field and its value, for one that is not an integer or below `least`."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            wanted = "a positive integer" if least == 1 else f"an integer >= {least}"
            raise ValueError(f"{type(config).__name__}.{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class Horizon:
    """Which frames and actions a sample holds, as offsets in control steps from `now`."""

    history: int = 4  # observed frames, the newest at now
    future: int = 4  # frames to predict; 0: none
    stride: int = 4  # control steps between two frames
    actions: int = 16  # actions in a chunk
    action_offset: int = 0  # first action at now + action_offset

    def __post_init__(self) -> None:
        require_integers(self, "history", "stride", "actions")
        require_integers(self, "future", least=0)
        if not isinstance(self.action_offset, int):
            raise ValueError(f"Horizon.action_offset must be an integer, got {self.action_offset!r}")

    @property
    def history_offsets(self) -> tuple[int, ...]:
        return tuple(range(-(self.history - 1) * self.stride, 1, self.stride))

    @property
    def future_offsets(self) -> tuple[int, ...]:
        return tuple(range(self.stride, self.future * self.stride + 1, self.stride))

    @property
    def action_offsets(self) -> tuple[int, ...]:
        return tuple(range(self.action_offset, self.action_offset + self.actions))

    @property
    def history_action_offsets(self) -> tuple[int, ...]:
        """The `actions` steps that directly precede the chunk."""
        return tuple(range(self.action_offset - self.actions, self.action_offset))


@dataclass(frozen=True)
class Camera:
    """A view that a policy reads."""

    name: str
    size: tuple[int, int]  # (H, W) of the recorded frames
    predicted: bool  # its future is an output of policies that imagine


@dataclass(frozen=True)
class TaskSpec:
    """What a task gives to a policy and wants from it: `task.shape_meta` and `task.horizon`, parsed once for everybody.

    Cameras whose future is predicted come first; otherwise the order is the configuration's.
    """

    horizon: Horizon
    cameras: tuple[Camera, ...]
    action_dim: int
    states: Mapping[str, int] = field(default_factory=dict)  # low-dim inputs: name -> width
    state_steps: int = 0  # states given of each: the history's frames, or 1 for the newest only
    predicted_states: tuple[str, ...] = ()  # states that are predicted at the steps of the actions
    predicted_state_dim: int = 0  # their width together
    history_actions: bool = False  # the chunk before now is an input
    text_dim: int = 0  # width of the instruction's feature; 0: no language
    auxiliary_dim: int = 0  # regression targets per frame, in training only; 0: none
    action_names: tuple[str, ...] = ()  # of its numbers, with units, for curves and datasets; (): not named

    @classmethod
    def parse(cls, task: Mapping[str, Any]) -> "TaskSpec":
        """From a configuration's `task`; raises ValueError for a value that is missing or wrong, named by its key.

        Every rgb observation is a camera; `predict: false` makes one an input only. Low-dim observations are inputs;
        those that say `predict: true` are outputs as well. Where none says so, `proprio_output_dim` decides: all of
        them, or none where it is 0 or absent; it stands even if it is not the width of all, as in checkpoints of the
        paper's code.
        """
        meta, where = task["shape_meta"], "task.shape_meta"
        try:
            horizon = Horizon(**task["horizon"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"task.horizon: {error}") from error
        entries: Mapping[str, Mapping[str, Any]] = meta["obs"]
        unknown = [name for name, entry in entries.items() if entry["type"] not in ("rgb", "low_dim")]
        if unknown:
            raise ValueError(f"{where}.obs: {', '.join(sorted(unknown))} must have type rgb or low_dim")
        cameras = [
            Camera(name, tuple(map(int, entry["shape"][1:])), bool(entry.get("predict", True)))
            for name, entry in entries.items()
            if entry["type"] == "rgb"
        ]
        if not cameras:
            raise ValueError(f"{where}.obs: at least one rgb observation is needed, got {', '.join(entries) or 'none'}")
        states = {name: int(entry["shape"][0]) for name, entry in entries.items() if entry["type"] == "low_dim"}
        if dotted := [name for name in states if "." in name]:
            raise ValueError(f"{where}.obs: the name of a state may not contain a dot, got {', '.join(dotted)}")
        steps = {entries[name].get("steps", horizon.history) for name in states}
        if len(steps) > 1:
            raise ValueError(f"{where}.obs: low_dim observations must share one number of steps, got {steps}")
        marked = tuple(name for name in states if entries[name].get("predict", False))
        width = given = int(meta.get("proprio_output_dim", 0))
        if marked:
            width = sum(states[name] for name in marked)
            if given and given != width:
                raise ValueError(
                    f"{where}.proprio_output_dim={given}, but {', '.join(marked)}, which say predict, have {width} "
                    "numbers; leave it out"
                )
        dim, names = int(meta["action"]["shape"][0]), tuple(meta["action"].get("names") or ())
        if names and len(names) != dim:
            raise ValueError(
                f"{where}.action.names: {len(names)} ({', '.join(names)}) for {dim} numbers; name all, or none (null)"
            )
        return cls(
            horizon,
            tuple(sorted(cameras, key=lambda camera: not camera.predicted)),
            dim,
            states,
            steps.pop() if steps else 0,
            marked or (tuple(states) if given else ()),
            width,
            bool(meta["action"].get("history", False)),
            int(meta.get("text_dim", 0)),
            int(meta.get("auxiliary_dim", 0)),
            names,
        )

    @property
    def observations(self) -> tuple[str, ...]:
        """Names of what a policy must be given: cameras, states and, with language, `text`."""
        return *self.camera_names, *self.states, *(("text",) if self.text_dim else ())

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.name for camera in self.cameras)

    @property
    def predicted_cameras(self) -> tuple[str, ...]:
        """Names of the cameras whose future is predicted, the first ones of `camera_names`."""
        return tuple(camera.name for camera in self.cameras if camera.predicted)


@dataclass(frozen=True)
class LatentShape:
    """Shape of one frame's latent."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        require_integers(self, *(field.name for field in fields(self)))


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of everything that enters and leaves the UVA model; no names of tasks, cameras or files."""

    horizon: Horizon
    latent: LatentShape
    action_dim: int
    patch_size: int = 1  # a token is patch_size x patch_size latent cells
    history_actions: bool = False  # the chunk before now is an input
    views: int = 1  # cameras whose history is an input
    predicted_views: int = 1  # the first of them whose future is predicted, each by a video head of its own
    proprio_dim: int = 0  # width of one proprioceptive state; 0: none
    proprio_steps: int = 0  # how many states are given
    proprio_output_dim: int = 0  # width of the states predicted for every action step; 0: none
    text_dim: int = 0  # width of the instruction's feature; 0: no language
    text_tokens: int = 64  # tokens the instruction is spread over
    auxiliary_dim: int = 0  # regression targets per frame, in training only (beyond the paper); 0: none

    def __post_init__(self) -> None:
        require_integers(self, "action_dim", "patch_size", "text_tokens", "views", "predicted_views")
        require_integers(self.horizon, "future")
        if self.predicted_views > self.views:
            raise ValueError(f"ModelSpec.predicted_views {self.predicted_views} exceeds its {self.views} views")
        require_integers(
            self, "proprio_dim", "proprio_steps", "proprio_output_dim", "text_dim", "auxiliary_dim", least=0
        )
        if self.latent.height % self.patch_size or self.latent.width % self.patch_size:
            raise ValueError(f"ModelSpec.patch_size {self.patch_size} does not divide the latents, {self.latent}")
        if bool(self.proprio_dim) != bool(self.proprio_steps):
            raise ValueError(
                f"ModelSpec.proprio_dim {self.proprio_dim} and proprio_steps {self.proprio_steps} go together"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of one frame, (rows, columns)."""
        return self.latent.height // self.patch_size, self.latent.width // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Video tokens of a view: future frames x tokens per frame."""
        return self.horizon.future * self.tokens_per_frame

    @property
    def token_dim(self) -> int:
        """Latent values of one token."""
        return self.latent.channels * self.patch_size**2
