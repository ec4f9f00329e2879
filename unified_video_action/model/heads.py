"""Light diffusion heads that decode the joint latent: into frames, and into actions (paper, section III-C)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.layers import Attention
from torch import Tensor, nn

from unified_video_action.model.config import HeadConfig
from unified_video_action.model.denoiser import Denoiser
from unified_video_action.model.diffusion import Diffusion
from unified_video_action.model.samplers import Known, Sampler


class TimestepEmbedding(nn.Module):
    """Sinusoids of the diffusion step, [cos | sin] of 128 frequencies, through a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))
        scale = torch.exp(-math.log(10_000) * torch.arange(frequencies, dtype=torch.float32) / frequencies)
        self.register_buffer("frequencies", scale, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t.unsqueeze(-1).float() * self.frequencies  # (..., 128)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.mlp[0].weight.dtype))  # (..., width)


class AdaLNBlock(nn.Module):
    """Residual MLP whose norm is shifted, scaled and gated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class AdaLNAttention(nn.Module):
    """Residual attention among a clip's tokens, modulated as an AdaLNBlock is (Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, qkv_bias=True)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., tokens, width)."""
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        h = self.norm(x) * (1 + scale) + shift
        return x + gate * self.attention(h.flatten(0, -3)).reshape(h.shape)


class FinalLayer(nn.Module):
    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, out_channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class SimpleMLPAdaLN(nn.Module):
    """Denoising network of a head: rows (..., in_channels) -> (..., out_channels).

    Args:
        cond_channels: width of the condition, a row of the joint latent.
        attention_heads: above 0, rows (..., tokens, in_channels) of a clip attend to each other.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, cond_channels: int, depth: int, attention_heads: int = 0
    ) -> None:
        super().__init__()
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = nn.Linear(cond_channels, width)
        self.input_proj = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(depth))
        self.final = FinalLayer(width, out_channels)
        attends = range(depth) if attention_heads else ()
        self.attentions = nn.ModuleList(AdaLNAttention(width, attention_heads) for _ in attends)  # before each block
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed.mlp[0], self.time_embed.mlp[2]):
            nn.init.normal_(layer.weight, std=0.02)
        # A fresh network gates every block off and outputs exactly 0.
        gates = (layer.modulation[-1] for layer in (*self.blocks, *self.attentions, self.final))
        for layer in (*gates, self.final.linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x (..., in_channels), t (...) steps, cond (..., cond_channels) broadcastable to x's rows."""
        y = self.time_embed(t) + self.cond_embed(cond)  # (..., width)
        x = self.input_proj(x)  # (..., width)
        for layer in self.layers():
            x = layer(x, y)
        return self.final(x, y)  # (..., out_channels)

    def layers(self) -> list[AdaLNBlock | AdaLNAttention]:
        """Between the first and the final layer, in order."""
        if not self.attentions:
            return list(self.blocks)
        return [layer for pair in zip(self.attentions, self.blocks, strict=True) for layer in pair]


class DiffusionHead(nn.Module):
    """A denoising network with its diffusion: loss on given rows, samples for given conditions."""

    tokens = 1  # rows that are denoised together
    bound: float  # on the predicted x0, where the configuration has none
    always_bound: bool  # also with the ancestral sampler

    def __init__(self, channels: int, cond_channels: int, config: HeadConfig) -> None:
        super().__init__()
        self.channels, self.config = channels, config
        self.diffusion = Diffusion(config.diffusion_steps, config.prediction, config.learned_variance)
        self.denoisers: dict[tuple, Denoiser] | None = None  # kept once the weights no longer change
        self.low_precision: torch.dtype | None = None  # of products while sampling; None: the weights' own, or autocast
        outputs = 2 * channels if config.learned_variance else channels
        size = config.width, outputs, cond_channels, config.depth, config.attention_heads
        self.net = SimpleMLPAdaLN(channels, *size)

    def loss(self, cond: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error and variational bound, elementwise, in float32 (shapes as x0; see Diffusion.loss)."""
        output = self.net(self.diffusion.add_noise(x0, t, noise), t, cond).float()
        return self.diffusion.loss(output, x0, t, noise)

    def sample(
        self, cond: Tensor, noise: Tensor, sampler: Sampler, guidance: float = 1.0, known: Known | None = None
    ) -> Tensor:
        """Denoise rows: cond (rows, cond_channels), noise (count, rows, channels) -> (rows, channels).

        With `guidance` other than 1 there are two halves of conditions, with and without the instruction, and the
        prediction is extrapolated away from the second (classifier-free guidance; the variance is the first's).
        """
        kept = {} if self.denoisers is None else self.denoisers
        if (sampler, guidance) not in kept:
            weight = self.net.cond_embed.weight
            autocast = torch.is_autocast_enabled(weight.device.type)
            dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
            kept[sampler, guidance] = Denoiser(self, sampler, guidance, self.low_precision or dtype)
        return kept[sampler, guidance](cond, noise, known)

    def clamp_for(self, sampler: Sampler) -> float | None:
        """Bound on the predicted x0, if any."""
        if self.config.sample_clamp is not None:
            return self.config.sample_clamp
        return self.bound if self.always_bound or sampler.kind != "ancestral" else None


class VideoHead(DiffusionHead):
    """Decodes rows of the joint latent into latent tokens: each on its own, or (`attention_heads`) a clip's together.

    The paper's ancestral sampler leaves latents unbounded; few-step solvers need a bound.

    Args:
        tokens: of a clip.
    """

    bound, always_bound = 5.0, False

    def __init__(self, channels: int, cond_channels: int, config: HeadConfig, tokens: int) -> None:
        super().__init__(channels, cond_channels, config)
        self.tokens = tokens


class ChunkTrunk(nn.Module):
    """Joint latent of all frames -> one condition per action: convolution, pooling, and a mix over time.

    Args:
        dim: width of the joint latent. frames, grid: its shape. steps: actions in the chunk.
    """

    def __init__(self, dim: int, frames: int, grid: tuple[int, int], steps: int, pool: int) -> None:
        super().__init__()
        self.frames, self.grid, self.pool = frames, grid, pool
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1)
        self.fc = nn.Sequential(nn.Linear(dim * pool**2, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.interpolate = nn.Linear(frames, steps)
        self.refine = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, z: Tensor) -> Tensor:
        """z (B, T*S, d) -> (B, steps, d)."""
        h, w = self.grid
        x = rearrange(z, "b (t h w) d -> (b t) d h w", h=h, w=w)
        x = F.adaptive_avg_pool2d(F.relu(self.conv(x)), self.pool)  # (B*T, d, p, p)
        x = rearrange(self.fc(x.flatten(1)), "(b t) d -> b d t", t=self.frames)
        x = rearrange(self.interpolate(x), "b d steps -> b steps d")
        return self.refine(x)


class ActionHead(DiffusionHead):
    """Decodes the joint latent into a chunk of rows in [-1, 1]: actions, or proprioceptive states.

    `chunk: rows` (the paper) denoises every step on its own; `vector` denoises the whole chunk as one row.
    """

    bound, always_bound = 1.0, True

    def __init__(
        self, row_dim: int, steps: int, dim: int, frames: int, grid: tuple[int, int], config: HeadConfig
    ) -> None:
        whole = config.chunk == "vector"
        super().__init__(row_dim * steps if whole else row_dim, dim * steps if whole else dim, config)
        self.row_dim, self.steps, self.rows = row_dim, steps, 1 if whole else steps  # rows denoised of a chunk
        self.trunk = ChunkTrunk(dim, frames, grid, steps, config.pool)

    def chunk_loss(self, z: Tensor, chunk: Tensor, valid: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of every step of the chunks, averaged over its dimensions.

        Args:
            z: (B, T*S, d). chunk: (B, steps, row_dim). valid: (B, steps) bool; other steps do not even enter as input.
            t: (B, K, rows). noise: (B, K, rows, channels), K noise samples per chunk.

        Returns:
            squared error and variational bound, (B, K, steps) each.
        """
        cond = self.conditions(z).unsqueeze(1)  # (B, 1, rows, c)
        x0 = torch.where(valid.unsqueeze(-1), chunk, torch.zeros_like(chunk))
        x0 = x0.reshape(len(x0), 1, self.rows, self.channels).expand_as(noise)  # (B, K, rows, C)
        squared_error, bound = self.loss(cond, x0, t, noise)
        per_step = (*t.shape[:2], self.steps, self.row_dim)
        return squared_error.reshape(per_step).mean(-1), bound.reshape(per_step).mean(-1)  # (B, K, steps)

    def sample_chunk(
        self,
        z: Tensor,
        noise: Tensor,
        sampler: Sampler,
        guidance: float = 1.0,
        keep: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Joint latent (B, T*S, d), or (2B, T*S, d) when guided -> chunks (n, steps, row_dim).

        Args:
            noise: (count, n * rows, C) with n a multiple of B: so many chunks are drawn of each joint latent.
            keep: normalised chunks (n, steps, row_dim) to keep to, and by how much (n, steps).
        """
        cond = self.conditions(z)  # (B, rows, c), twice as many when guided
        chunks = noise.shape[1] * (1 if guidance == 1.0 else 2) // (len(cond) * self.rows)  # of each sample
        cond = repeat(cond, "b r c -> (b k r) c", k=chunks)
        if keep is not None:
            chunk, weight = keep
            keep = tuple(x.reshape(-1, self.channels) for x in (chunk, weight.unsqueeze(-1).expand_as(chunk)))
        return self.sample(cond, noise, sampler, guidance, keep).reshape(-1, self.steps, self.row_dim)

    def conditions(self, z: Tensor) -> Tensor:
        """z (B, T*S, d) -> (B, rows, c): what each row is denoised with."""
        return self.trunk(z).reshape(len(z), self.rows, -1)
