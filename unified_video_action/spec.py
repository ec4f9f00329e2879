"""The contract on time and shapes that every module shares.

`now` is the newest observed frame. With the defaults, history frames lie at now-12, -8, -4, 0, future frames at
now+4, +8, +12, +16, and the 16 actions at now .. now+15 (paper, section III-A).
"""

from dataclasses import dataclass, fields


def _require_positive(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{type(spec).__name__}.{name} must be a positive integer, got {value!r}")


def _require_not_negative(spec: object, *names: str) -> None:
    for name in names:
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{type(spec).__name__}.{name} must be an integer >= 0, got {value!r}")


@dataclass(frozen=True)
class Horizon:
    """Which frames and actions a sample holds, as offsets in control steps from `now`."""

    history: int = 4  # observed frames, the newest at now
    future: int = 4  # frames to predict
    stride: int = 4  # control steps between two frames
    actions: int = 16  # actions in a chunk
    action_offset: int = 0  # first action at now + action_offset

    def __post_init__(self) -> None:
        _require_positive(self, "history", "future", "stride", "actions")
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
class LatentShape:
    """Shape of one frame's latent."""

    channels: int
    height: int
    width: int

    def __post_init__(self) -> None:
        _require_positive(self, *(field.name for field in fields(self)))


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of everything that enters and leaves the model; no names of tasks, cameras or files."""

    horizon: Horizon
    latent: LatentShape
    action_dim: int
    patch_size: int = 1  # a token is patch_size x patch_size latent cells
    history_actions: bool = False  # the chunk before now is an input
    wrist_input: bool = False  # history of a second camera is an input
    wrist_output: bool = False  # its future is predicted by a second video head
    proprio_dim: int = 0  # width of one proprioceptive state; 0: none
    proprio_steps: int = 0  # how many states are given
    proprio_output_dim: int = 0  # width of the states predicted for every action step; 0: none
    text_dim: int = 0  # width of the instruction's feature; 0: no language
    text_tokens: int = 64  # tokens the instruction is spread over
    auxiliary_dim: int = 0  # regression targets per frame, in training only (beyond the paper); 0: none

    def __post_init__(self) -> None:
        _require_positive(self, "action_dim", "patch_size", "text_tokens")
        _require_not_negative(self, "proprio_dim", "proprio_steps", "proprio_output_dim", "text_dim", "auxiliary_dim")
        for side in ("height", "width"):
            if getattr(self.latent, side) % self.patch_size:
                raise ValueError(
                    f"ModelSpec.patch_size {self.patch_size} does not divide the latent's {side} "
                    f"{getattr(self.latent, side)}"
                )
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
        """Video tokens of a sample: future frames x tokens per frame."""
        return self.horizon.future * self.tokens_per_frame

    @property
    def token_dim(self) -> int:
        """Latent values of one token."""
        return self.latent.channels * self.patch_size**2
