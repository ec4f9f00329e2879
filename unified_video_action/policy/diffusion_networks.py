"""Networks of Diffusion Policy (Chi et al. 2023): an encoder of observations and two denoisers of action chunks."""

from __future__ import annotations

import timm
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import Timesteps
from einops import rearrange
from timm.layers import GroupNorm
from torch import Tensor, nn

from unified_video_action.spec import TaskSpec

KEYPOINTS = 32  # of the spatial softmax, for each camera


class SpatialSoftmax(nn.Module):
    """Feature maps (N, C, h, w) -> expected positions of keypoints (N, 2 * KEYPOINTS), in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keypoints = nn.Conv2d(channels, KEYPOINTS, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.keypoints(x)
        h, w = x.shape[-2:]
        share = x.flatten(2).softmax(-1)  # (N, K, h*w)
        y, x = torch.meshgrid(*(torch.linspace(-1, 1, side, device=x.device) for side in (h, w)), indexing="ij")
        coordinates = torch.stack([x.flatten(), y.flatten()], dim=-1)  # (h*w, 2)
        return (share @ coordinates).flatten(1)  # (N, 2K)


class ImageEncoder(nn.Module):
    """Frames of one camera, (N, 3, H, W) in [-1, 1] -> features (N, width).

    ResNets have group norms, whose statistics the averaged weights do not spoil, and end in keypoints, on the feature
    map of their last stage or an earlier, finer one; any other encoder of timm sees pixels on its own scale and ends in
    its own pooling.
    """

    def __init__(self, name: str, pretrained: bool, image_size: int | None, stages: int = 4) -> None:
        super().__init__()
        self.image_size = image_size
        scale = {"mean": [0.5] * 3, "std": [0.5] * 3}  # of pixels in [0, 1]
        if "resnet" in name:
            options = dict(num_classes=0, global_pool="", norm_layer=_group_norm)
            self.net = timm.create_model(name, pretrained=pretrained, **options)
            for stage in range(stages + 1, 5):
                setattr(self.net, f"layer{stage}", nn.Identity())
            pool = SpatialSoftmax(self.net.feature_info[stages]["num_chs"])
            self.head = nn.Sequential(pool, nn.Linear(2 * KEYPOINTS, 2 * KEYPOINTS))
            self.width = 2 * KEYPOINTS
        else:
            self.net = timm.create_model(name, pretrained=pretrained, num_classes=0)
            self.head, self.width = nn.Identity(), self.net.num_features
            scale = self.net.pretrained_cfg
        self.register_buffer("mean", 2 * torch.tensor(scale["mean"]).view(3, 1, 1) - 1, persistent=False)
        self.register_buffer("std", 2 * torch.tensor(scale["std"]).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.image_size is not None and x.shape[-2:] != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.head(self.net((x - self.mean) / self.std))


def _group_norm(channels: int, **options: object) -> GroupNorm:
    return GroupNorm(channels, num_groups=max(1, channels // 16))


class ObservationEncoder(nn.Module):
    """Histories of frames and states, and an instruction -> one vector for each step of the history."""

    def __init__(self, task: TaskSpec, encoder: str, pretrained: bool, image_size: int | None, stages: int = 4) -> None:
        super().__init__()
        self.cameras = nn.ModuleList(ImageEncoder(encoder, pretrained, image_size, stages) for _ in task.cameras)
        self.text = nn.Linear(task.text_dim, 64) if task.text_dim else None
        self.width = sum(camera.width for camera in self.cameras) + sum(task.states.values())
        self.width += 64 if task.text_dim else 0

    def forward(self, frames: list[Tensor], states: Tensor, text: Tensor | None) -> Tensor:
        """Frames (B, H, 3, h, w) of each camera in [-1, 1], normalised states (B, H, d), text (B, text_dim) ->
        (B, H, width)."""
        steps = states.shape[1]
        parts = [
            rearrange(encoder(rearrange(video, "b t c h w -> (b t) c h w")), "(b t) f -> b t f", t=steps)
            for encoder, video in zip(self.cameras, frames, strict=True)
        ]
        parts.append(states)
        if self.text is not None:
            parts.append(self.text(text).unsqueeze(1).expand(-1, steps, -1))
        return torch.cat(parts, dim=-1)  # (B, H, width)


def _steps(width: int) -> Timesteps:
    """Denoising steps (B,) -> sinusoids (B, width)."""
    return Timesteps(width, flip_sin_to_cos=False, downscale_freq_shift=1)


class ResidualBlock1d(nn.Module):
    """Two convolutions over time, the first one's output scaled and shifted by the condition (FiLM)."""

    def __init__(self, inputs: int, outputs: int, cond: int, kernel: int) -> None:
        super().__init__()
        self.first, self.second = _conv_block(inputs, outputs, kernel), _conv_block(outputs, outputs, kernel)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, bias = self.film(cond).unsqueeze(-1).chunk(2, dim=1)  # (B, C, 1)
        return self.second(scale * self.first(x) + bias) + self.skip(x)


def _conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), nn.GroupNorm(8, outputs), nn.Mish())


class ConditionalUnet1d(nn.Module):
    """Denoises a chunk by convolutions over its time; the condition is one vector.

    Args:
        action_dim, steps: of a chunk; steps must divide by 2 at every level but the last.
        cond: width of the condition. widths: channels of each level.
    """

    def __init__(
        self, action_dim: int, steps: int, cond: int, widths: tuple[int, ...], kernel: int, embed: int
    ) -> None:
        super().__init__()
        if steps % 2 ** (len(widths) - 1):
            raise ValueError(f"policy.widths: {len(widths)} levels need a multiple of {2 ** (len(widths) - 1)} actions")
        self.embed = nn.Sequential(_steps(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed))
        levels = list(zip((action_dim, *widths), widths))

        def block(inputs: int, outputs: int) -> ResidualBlock1d:
            return ResidualBlock1d(inputs, outputs, cond + embed, kernel)

        self.down = nn.ModuleList(nn.ModuleList([block(a, b), block(b, b)]) for a, b in levels)
        self.shrink = nn.ModuleList(nn.Conv1d(b, b, 3, stride=2, padding=1) for _, b in levels[:-1])
        self.middle = nn.ModuleList([block(widths[-1], widths[-1]), block(widths[-1], widths[-1])])
        self.up = nn.ModuleList(nn.ModuleList([block(2 * b, a), block(a, a)]) for a, b in reversed(levels[1:]))
        self.grow = nn.ModuleList(nn.ConvTranspose1d(a, a, 4, stride=2, padding=1) for a, _ in reversed(levels[1:]))
        self.final = nn.Sequential(_conv_block(widths[0], widths[0], kernel), nn.Conv1d(widths[0], action_dim, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x (B, A, D), t (B,), cond (B, H, width) -> (B, A, D)."""
        cond = torch.cat([self.embed(t), cond.flatten(1)], dim=-1)  # (B, embed + H*width)
        x, kept = rearrange(x, "b a d -> b d a"), []
        for level, (first, second) in enumerate(self.down):
            x = second(first(x, cond), cond)
            kept.append(x)
            x = self.shrink[level](x) if level < len(self.shrink) else x
        for block in self.middle:
            x = block(x, cond)
        for (first, second), grow in zip(self.up, self.grow, strict=True):
            x = grow(second(first(torch.cat([x, kept.pop()], dim=1), cond), cond))
        return rearrange(self.final(x), "b d a -> b a d")


class CausalTransformer(nn.Module):
    """Denoises a chunk by a transformer whose actions see earlier ones, the step and the observations.

    Args:
        action_dim, steps: of a chunk. cond: width of a step's observation. history: steps of it.
    """

    def __init__(
        self, action_dim: int, steps: int, cond: int, history: int, width: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.step = _steps(width)
        self.embed, self.embed_cond = nn.Linear(action_dim, width), nn.Linear(cond, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, steps, width))
        self.cond_position = nn.Parameter(0.02 * torch.randn(1, 1 + history, width))
        self.encoder = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, depth)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, action_dim))
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(steps), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.MultiheadAttention):
                for parameter in module.parameters(recurse=False):
                    nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x (B, A, D), t (B,), cond (B, H, width) -> (B, A, D)."""
        seen = torch.cat([self.step(t).unsqueeze(1), self.embed_cond(cond)], dim=1)  # (B, 1 + H, w)
        memory = self.encoder(seen + self.cond_position)
        x = self.decoder(self.embed(x) + self.position, memory, tgt_mask=self.causal, tgt_is_causal=True)
        return self.head(x)
