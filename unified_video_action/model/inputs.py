"""Modalities -> tokens: the input stage (paper, section III-B and Figure 2).

Every modality becomes one vector per video token; the vectors of a token are concatenated and mixed by one linear
layer. Language is spread over tokens of its own, in front.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from unified_video_action.spec import ModelSpec


@dataclass
class ModelInputs:
    """What the model is shown. Latents are (B, view, T, C, h, w), already scaled; actions and states are normalised."""

    history: Tensor  # (B, V, H, C, h, w)
    future: Tensor | None = None  # (B, P, F, C, h, w), of the predicted views; None: all masked
    actions: Tensor | None = None  # (B, A, action_dim)
    history_actions: Tensor | None = None  # (B, A, action_dim)
    proprio: Tensor | None = None  # (B, P, proprio_dim)
    text: Tensor | None = None  # (B, text_dim)

    @property
    def batch(self) -> int:
        return self.history.shape[0]


@dataclass
class Visibility:
    """What of the inputs is hidden, per sample. True means visible, except in `masked`."""

    masked: Tensor  # (B, T*S) bool: video tokens to predict, the same in every view
    history: Tensor  # (B,) bool: the first view's; that of the others is always visible
    actions: Tensor  # (B,) bool
    text: Tensor  # (B,) bool
    levels: Tensor | None = None  # (B, T*S, 2): hidden frames and actions are seen through so much noise; 1: not at all
    frames_noise: Tensor | None = None  # (B, P, T*S, C)
    actions_noise: Tensor | None = None  # (B, A, D)
    history_actions: Tensor | None = None  # (B,) bool; None: visible where given


T = TypeVar("T", ModelInputs, Visibility)


def doubled(batch: T) -> T:
    """The batch, twice."""
    return type(batch)(
        **{name: None if value is None else torch.cat([value] * 2) for name, value in vars(batch).items()}
    )


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, T, C, h, w) -> (B, T*S, C*patch*patch), row-major over the patches of a frame."""
    return rearrange(latents, "b t c (h p) (w q) -> b (t h w) (c p q)", p=patch, q=patch)


def unpatchify(tokens: Tensor, spec: ModelSpec) -> Tensor:
    """(B, T*S, C*patch*patch) -> (B, T, C, h, w)."""
    (h, w), p = spec.grid, spec.patch_size
    return rearrange(tokens, "b (t h w) (c p q) -> b t c (h p) (w q)", h=h, w=w, p=p, q=p)


def spread(rows: Tensor, tokens: int) -> Tensor:
    """Repeat (B, n, d) over `tokens` consecutive tokens as evenly as possible: (B, tokens, d)."""
    return rows[:, torch.arange(tokens, device=rows.device) * rows.shape[1] // tokens]


class InputStage(nn.Module):
    """Projects, hides and mixes the modalities that `spec` has; adds positions, and with `noise` how noisy they are."""

    def __init__(self, spec: ModelSpec, dim: int, noise: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.level_proj = nn.Linear(2, dim) if noise else None
        frames, cells = spec.horizon.future, spec.tokens_per_frame
        # With more frames of history than of future, each slot sees several history frames, concatenated.
        self.history_per_slot = -(-spec.horizon.history // frames)

        def token(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, dim) * 0.02)

        self.masked_frames = nn.ParameterList([token(1)])
        self.masked_action = token(1)
        self.masked_frames.extend(token(1) for _ in range(spec.predicted_views - 1))
        self.future_projs = nn.ModuleList(nn.Linear(spec.token_dim, dim) for _ in range(spec.predicted_views))
        width = spec.token_dim * self.history_per_slot
        self.history_projs = nn.ModuleList(nn.Linear(width, dim) for _ in range(spec.views))
        self.action_proj = nn.Linear(spec.action_dim, dim)
        streams = spec.predicted_views + spec.views + 1
        if spec.history_actions:
            self.masked_history_action = token(1)
            self.history_action_proj = nn.Linear(spec.action_dim, dim)
            streams += 1
        if spec.proprio_dim:
            self.proprio_proj = nn.Linear(spec.proprio_dim, dim)
            streams += 1
        self.mix = nn.Linear(streams * dim, dim)
        self.temporal_position, self.spatial_position = token(1, frames), token(1, cells)
        if spec.text_dim:
            self.masked_text = token(1)
            self.text_proj = nn.Linear(spec.text_dim, dim)
            self.text_position = token(1, spec.text_tokens)

    def forward(self, inputs: ModelInputs, seen: Visibility) -> Tensor:
        """-> (B, text_tokens + T*S, d), or (B, T*S, d) without language."""
        spec, tokens = self.spec, self.spec.tokens

        def future(view: int, project: nn.Linear, mask_token: Tensor) -> Tensor:
            if inputs.future is None:
                return mask_token.expand(inputs.batch, tokens, -1)
            x, hidden = patchify(inputs.future[:, view], spec.patch_size), seen.masked.unsqueeze(-1)
            if seen.levels is not None:
                x, hidden = _through_noise(x, hidden, seen.levels[..., :1], seen.frames_noise[:, view])
            return torch.where(hidden, mask_token, project(x))

        def chunk(actions: Tensor | None, hidden: Tensor, project: nn.Linear, mask_token: Tensor) -> Tensor:
            if actions is None:
                return mask_token.expand(inputs.batch, tokens, -1)
            return torch.where(hidden, mask_token, spread(project(actions), tokens))

        first, *others = (
            project(self.history_tokens(inputs.history[:, view]))  # (B, T*S, d)
            for view, project in enumerate(self.history_projs)
        )
        streams = [future(view, *each) for view, each in enumerate(zip(self.future_projs, self.masked_frames))]
        streams.append(torch.where(seen.history[:, None, None], first, self.masked_frames[0]))
        if spec.history_actions:
            known = torch.ones_like(seen.history) if seen.history_actions is None else seen.history_actions
            past = inputs.history_actions, ~known[:, None, None]
            streams.append(chunk(*past, self.history_action_proj, self.masked_history_action))
        actions, hidden = inputs.actions, ~seen.actions[:, None, None]
        if seen.levels is not None:
            actions, hidden = _through_noise(actions, hidden, seen.levels[:, :1, 1:], seen.actions_noise)
        streams.append(chunk(actions, hidden, self.action_proj, self.masked_action))
        streams += others  # as in the paper's code, seen in every mode, inverse dynamics included
        if spec.proprio_dim:
            streams.append(spread(self.proprio_proj(inputs.proprio), tokens))  # (B, T*S, d)

        x = self.mix(torch.cat(streams, dim=-1))  # (B, T*S, d)
        x = x + join_positions(self.temporal_position, self.spatial_position)
        if self.level_proj is not None:
            hidden = torch.stack([seen.masked, ~seen.actions[:, None].expand_as(seen.masked)], dim=-1)  # (B, T*S, 2)
            x = x + self.level_proj((hidden if seen.levels is None else hidden * seen.levels).to(x.dtype))
        if not spec.text_dim:
            return x
        text = self.text_proj(inputs.text)  # (B, d)
        text = torch.where(seen.text[:, None], text, self.masked_text)
        text = text.unsqueeze(1) + self.text_position  # (B, text_tokens, d)
        return torch.cat([text, x], dim=1)  # (B, text_tokens + T*S, d)

    def history_tokens(self, latents: Tensor) -> Tensor:
        """(B, H, C, h, w) -> (B, T*S, token_dim * frames per slot); missing frames repeat the oldest."""
        slots, group, patch = self.spec.horizon.future, self.history_per_slot, self.spec.patch_size
        if missing := slots * group - latents.shape[1]:
            latents = torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], dim=1)  # (B, T*g, C, h, w)
        return rearrange(latents, "b (t g) c (h p) (w q) -> b (t h w) (g c p q)", g=group, p=patch, q=patch)


def _through_noise(x: Tensor, hidden: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """What is hidden behind so much noise, and what of it is not seen at all."""
    return torch.where(hidden, torch.lerp(x, noise.to(x), level.to(x)), x), hidden & (level == 1)


def join_positions(temporal: Tensor, spatial: Tensor) -> Tensor:
    """Embeddings of frames (1, T, d) and of cells (1, S, d) -> (1, T*S, d)."""
    return (temporal.unsqueeze(2) + spatial.unsqueeze(1)).flatten(1, 2)
