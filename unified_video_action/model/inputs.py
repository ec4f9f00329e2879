"""Modalities -> tokens: the input stage (paper, section III-B and Figure 2).

Every modality becomes one vector per video token; the vectors of a token are concatenated and mixed by one linear
layer. Language is spread over tokens of its own, in front.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unified_video_action.spec import ModelSpec


@dataclass
class ModelInputs:
    """What the model is shown. Latents are (B, T, C, h, w), already scaled; actions and states are normalised."""

    history: Tensor  # (B, H, C, h, w)
    future: Tensor | None = None  # (B, F, C, h, w); None: all masked
    actions: Tensor | None = None  # (B, A, action_dim)
    history_actions: Tensor | None = None  # (B, A, action_dim)
    wrist_history: Tensor | None = None  # (B, H, C, h, w)
    wrist_future: Tensor | None = None  # (B, F, C, h, w)
    proprio: Tensor | None = None  # (B, P, proprio_dim)
    text: Tensor | None = None  # (B, text_dim)

    @property
    def batch(self) -> int:
        return self.history.shape[0]

    def repeat(self, times: int) -> "ModelInputs":
        """The batch, `times` over."""
        present = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: torch.cat([value] * times) for name, value in present.items()})


@dataclass
class Visibility:
    """What of the inputs is hidden, per sample. True means visible, except in `masked`."""

    masked: Tensor  # (B, T*S) bool: video tokens to predict
    history: Tensor  # (B,) bool: the first camera's; a second camera's is always visible
    actions: Tensor  # (B,) bool
    text: Tensor  # (B,) bool

    def repeat(self, times: int) -> "Visibility":
        return Visibility(**{name: torch.cat([value] * times) for name, value in vars(self).items()})


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, T, C, h, w) -> (B, T*S, C*patch*patch), row-major over the patches of a frame."""
    b, t, c, h, w = latents.shape
    values = torch.arange(c * h * w, device=latents.device).reshape(c, h // patch, patch, w // patch, patch)
    order = values.permute(1, 3, 0, 2, 4).flatten()  # (h/p, w/p, C, p, p), as one row
    x = latents.reshape(b * t, -1).index_select(1, order)  # a tenth of the time of copying a permuted tensor on a CPU
    return x.reshape(b, t * (h // patch) * (w // patch), c * patch**2)  # (B, T*S, C*p*p)


def unpatchify(tokens: Tensor, spec: ModelSpec) -> Tensor:
    """(B, T*S, C*patch*patch) -> (B, T, C, h, w)."""
    (rows, columns), patch, channels = spec.grid, spec.patch_size, spec.latent.channels
    x = tokens.reshape(len(tokens), -1, rows, columns, channels, patch, patch)
    x = x.permute(0, 1, 4, 2, 5, 3, 6)  # (B, T, C, h/p, p, w/p, p)
    return x.reshape(len(x), x.shape[1], channels, rows * patch, columns * patch)


def spread(rows: Tensor, tokens: int) -> Tensor:
    """Repeat (B, n, d) over `tokens` consecutive tokens as evenly as possible: (B, tokens, d)."""
    return rows[:, torch.arange(tokens, device=rows.device) * rows.shape[1] // tokens]


class InputStage(nn.Module):
    """Projects, hides and mixes the modalities; adds positions.

    Args:
        spec: which modalities there are, and their sizes. dim: width of a token.
    """

    def __init__(self, spec: ModelSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        frames, cells = spec.horizon.future, spec.tokens_per_frame
        # With more frames of history than of future, each slot sees several history frames, concatenated.
        self.history_per_slot = -(-spec.horizon.history // frames)

        def token(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, dim) * 0.02)

        self.masked_frame, self.masked_action = token(1), token(1)
        self.future_proj = nn.Linear(spec.token_dim, dim)
        self.history_proj = nn.Linear(spec.token_dim * self.history_per_slot, dim)
        self.action_proj = nn.Linear(spec.action_dim, dim)
        streams = 3
        if spec.wrist_output:
            self.masked_wrist = token(1)
            self.wrist_future_proj = nn.Linear(spec.token_dim, dim)
            streams += 1
        if spec.history_actions:
            self.masked_history_action = token(1)
            self.history_action_proj = nn.Linear(spec.action_dim, dim)
            streams += 1
        if spec.wrist_input:
            self.wrist_history_proj = nn.Linear(spec.token_dim * self.history_per_slot, dim)
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

        def future(latents: Tensor | None, project: nn.Linear, mask_token: Tensor) -> Tensor:
            if latents is None:
                return mask_token.expand(inputs.batch, tokens, -1)
            return torch.where(seen.masked.unsqueeze(-1), mask_token, project(patchify(latents, spec.patch_size)))

        def chunk(actions: Tensor | None, visible: Tensor, project: nn.Linear, mask_token: Tensor) -> Tensor:
            if actions is None:
                return mask_token.expand(inputs.batch, tokens, -1)
            return torch.where(visible[:, None, None], spread(project(actions), tokens), mask_token)

        streams = [future(inputs.future, self.future_proj, self.masked_frame)]
        if spec.wrist_output:
            streams.append(future(inputs.wrist_future, self.wrist_future_proj, self.masked_wrist))
        history = self.history_proj(self.history_tokens(inputs.history))  # (B, T*S, d)
        streams.append(torch.where(seen.history[:, None, None], history, self.masked_frame))
        if spec.history_actions:
            always = torch.ones_like(seen.history)
            streams.append(chunk(inputs.history_actions, always, self.history_action_proj, self.masked_history_action))
        streams.append(chunk(inputs.actions, seen.actions, self.action_proj, self.masked_action))
        if spec.wrist_input:
            # As in the paper's code a second camera's history is seen in every mode, inverse dynamics included.
            streams.append(self.wrist_history_proj(self.history_tokens(_required(inputs, "wrist_history"))))
        if spec.proprio_dim:
            streams.append(spread(self.proprio_proj(_required(inputs, "proprio")), tokens))  # (B, T*S, d)

        x = self.mix(torch.cat(streams, dim=-1))  # (B, T*S, d)
        x = x + self.positions()
        if not spec.text_dim:
            return x
        text = self.text_proj(_required(inputs, "text"))  # (B, d)
        text = torch.where(seen.text[:, None], text, self.masked_text)
        text = text.unsqueeze(1) + self.text_position  # (B, text_tokens, d)
        return torch.cat([text, x], dim=1)  # (B, text_tokens + T*S, d)

    def positions(self) -> Tensor:
        """(1, T*S, d): a frame's embedding plus a cell's."""
        return join_positions(self.temporal_position, self.spatial_position)

    def history_tokens(self, latents: Tensor) -> Tensor:
        """(B, H, C, h, w) -> (B, T*S, token_dim * frames per slot); missing frames repeat the oldest."""
        wanted = self.spec.horizon.future * self.history_per_slot
        if missing := wanted - latents.shape[1]:
            latents = torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], dim=1)  # (B, T*g, C, h, w)
        tokens = patchify(latents, self.spec.patch_size)  # (B, T*g*S, c)
        if self.history_per_slot == 1:
            return tokens
        b, _, c = tokens.shape
        x = tokens.reshape(b, self.spec.horizon.future, self.history_per_slot, -1, c).transpose(2, 3)  # (B, T, S, g, c)
        return x.reshape(b, self.spec.tokens, self.history_per_slot * c)


def join_positions(temporal: Tensor, spatial: Tensor) -> Tensor:
    """(1, T, d) and (1, S, d) -> (1, T*S, d)."""
    return (temporal.unsqueeze(2) + spatial.unsqueeze(1)).flatten(1, 2)


def _required(inputs: ModelInputs, name: str) -> Tensor:
    value = getattr(inputs, name)
    if value is None:
        raise ValueError(f"the model was built with {name} as an input, but the batch has none")
    return value
