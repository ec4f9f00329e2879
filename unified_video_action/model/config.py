"""Everything about the network that is not a size of its data, each field documented where it stands."""

from dataclasses import dataclass, field
from typing import Literal

from unified_video_action.model.task_modes import ModeMix
from unified_video_action.spec import require_integers


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the encoder and decoder."""

    dim: int = 768  # width of a token
    encoder_depth: int = 12
    decoder_depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    dropout: float = 0.1  # of projections and MLPs, in training
    attention_dropout: float = 0.1  # of attention weights, in training
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, a third more time
    fused_attention: bool = True  # scaled_dot_product_attention; False writes it out: faster if tiny, on a CPU

    def __post_init__(self) -> None:
        require_integers(self, "dim", "encoder_depth", "decoder_depth", "heads")
        if self.dim % self.heads:
            raise ValueError(f"TransformerConfig.heads {self.heads} does not divide dim {self.dim}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"TransformerConfig.{name} must lie in [0, 1), got {getattr(self, name)!r}")


@dataclass(frozen=True)
class HeadConfig:
    """Size and diffusion of one head."""

    width: int = 1024  # of the denoising network
    depth: int = 6  # residual blocks
    diffusion_steps: int = 1000  # length of the training chain
    prediction: Literal["epsilon", "v", "sample", "flow"] = "epsilon"  # the others are beyond the paper
    learned_variance: bool = True
    noise_draws: int = 1  # noise levels per sample and step; above 1 is beyond the paper
    rows: int | None = None  # video: train on this many random masked tokens of a sample; None: on all
    newest_token: bool = False  # video: the newest observed frame's token is part of the condition (beyond the paper)
    attention_heads: int = 0  # video: above 0, a clip's tokens are denoised together, attending to each other, so that
    # they agree; 0: each on its own, as in the paper
    chunk: Literal["rows", "vector"] = "rows"  # actions: one row each, or the chunk as one vector (beyond the paper)
    pool: int = 4  # actions: side of the grid that the trunk pools each frame to
    sample_clamp: float | None = None  # bound on predicted x0; None: the paper's, 1 for actions and none for video

    def __post_init__(self) -> None:
        require_integers(self, "width", "depth", "diffusion_steps", "noise_draws", "pool")
        if self.rows is not None:
            require_integers(self, "rows")
        if self.attention_heads < 0 or (self.attention_heads and self.width % self.attention_heads):
            raise ValueError(f"HeadConfig.attention_heads {self.attention_heads} does not divide width {self.width}")
        if self.attention_heads and self.rows is not None:
            raise ValueError("HeadConfig.rows must be null with attention_heads: a clip's tokens are denoised together")
        if self.chunk not in ("rows", "vector"):
            raise ValueError(f"HeadConfig.chunk must be rows or vector, got {self.chunk!r}")
        if self.prediction not in ("epsilon", "v", "sample", "flow"):
            raise ValueError(f"HeadConfig.prediction must be epsilon, v, sample or flow, got {self.prediction!r}")
        if self.prediction == "flow" and self.learned_variance:
            raise ValueError("HeadConfig.learned_variance must be false with prediction flow, which adds no noise")


@dataclass(frozen=True)
class MaskConfig:
    """What training hides: of a frame's cells a share that is a truncated normal (paper, section IV; MAR)."""

    mean: float = 1.0
    std: float = 0.25
    low: float = 0.7
    high: float = 1.0
    inverse_history: float = 0.0  # share of inverse-dynamics samples that see the history (the paper's code: none)
    noise: bool = False  # half of what is hidden is seen through noise of a level of its own (beyond the paper)

    def __post_init__(self) -> None:
        if not 0 <= self.inverse_history <= 1:
            raise ValueError(f"MaskConfig.inverse_history must lie in [0, 1], got {self.inverse_history!r}")
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"MaskConfig needs 0 < low <= high <= 1, got low {self.low!r} and high {self.high!r}")
        if not self.std > 0:
            raise ValueError(f"MaskConfig.std must be above 0, got {self.std!r}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything about the network that is not a size of its data."""

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    video_head: HeadConfig = field(default_factory=HeadConfig)
    action_head: HeadConfig = field(default_factory=HeadConfig)
    masking: MaskConfig = field(default_factory=MaskConfig)
    mode_mix: ModeMix = field(default_factory=ModeMix)  # shares of the task modes in training
    text_dropout: float = 0.1  # share of samples trained without their instruction
    patch_size: int = 1  # latent cells along the side of a token

    def __post_init__(self) -> None:
        if not 0 <= self.text_dropout <= 1:
            raise ValueError(f"ModelConfig.text_dropout must lie in [0, 1], got {self.text_dropout!r}")
        if self.video_head.chunk != "rows":
            raise ValueError("ModelConfig.video_head.chunk must be rows: video tokens are denoised each on its own")
        if self.action_head.rows is not None:
            raise ValueError("ModelConfig.action_head.rows must be null: it concerns video tokens")
        for name in ("newest_token", "attention_heads"):
            if getattr(self.action_head, name):
                raise ValueError(f"ModelConfig.action_head.{name} must be off: it concerns video tokens")
