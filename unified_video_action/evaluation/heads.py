"""Whether the heads still listen: what their condition tells them, which training losses do not show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unified_video_action.model.diffusion import Diffusion
from unified_video_action.model.task_modes import TASK_MODES
from unified_video_action.policy.base import BasePolicy

ACTIVATIONS = {"relu", "relu_", "leaky_relu", "gelu", "silu", "elu"}
LEAST_LIVE, LEAST_SPREAD = 0.05, 0.05
LEAST_SIGNAL = 0.01  # share of the data's variance in a noisy row, below which a predicted noise says nothing of it


@torch.no_grad()
def heads_health(policy: BasePolicy, batch: dict[str, Any]) -> dict[str, float]:
    """Health of the heads that a policy's task modes train, on one batch of windows with latents, on its device.

    Returns:
        `action_live`: share of units above 0 anywhere in the batch, of the hidden layer of the action head's trunk that
        has least; `action_spread`: deviation of its condition over the batch, relative to its size: near 0, actions do
        not depend on the input. The same for `proprio`. `video_explained`: share of the tokens' variance over the batch
        that the video head's guess explains at the highest noise level, and `video_explained_other` with the condition
        of another sample: where both are alike the head ignores the joint latent.
    """
    health: dict[str, float] = {}
    if hasattr(policy, "condition"):
        condition = policy.condition(batch).float()  # (B, ...)
        health["action_spread"] = float(condition.std(0).mean() / condition.std().clamp(min=1e-12))
    modes = {mode.name for mode in getattr(policy, "trained", ())}
    acting = next((name for name in ("policy", "policy_and_video", "inverse_dynamics") if name in modes), None)
    for name in ("action", "proprio") if acting else ():
        if (head := getattr(policy.model, f"{name}_head", None)) is not None:
            health |= {f"{name}_{key}": value for key, value in _trunk(policy, head, batch, acting).items()}
    imagining = next((name for name in ("forward_dynamics", "policy_and_video", "video") if name in modes), None)
    return health | (_video(policy, batch, imagining) if imagining else {})


def warnings(health: dict[str, float]) -> list[str]:
    """What is wrong, and what helps."""
    found = []
    for name in ("action", "proprio"):
        spread, live = health.get(f"{name}_spread", 1.0), health.get(f"{name}_live", 1.0)
        if spread < LEAST_SPREAD or live < LEAST_LIVE:
            found.append(
                f"the {name} head no longer depends on its input (spread {spread:.3f}, live units {live:.1%}): "
                "lower training.optimizer.learning_rate, lengthen training.schedule.warmup_steps, or set "
                "training.optimizer.fan_in"
            )
    return found


def _prepared(policy: BasePolicy, batch: dict[str, Any], mode: str) -> dict[str, Any]:
    """The batch with masks and noise of one task mode, on the policy's device."""
    prepared = policy.with_modes(batch, [TASK_MODES[mode]] * len(batch["seed"]))
    corruption = {name: value.to(policy.device) for name, value in prepared["corruption"].items()}
    return {**prepared, "corruption": corruption}


@contextmanager
def _calls(owner: nn.Module, name: str) -> Iterator[list[tuple]]:
    """Within the context the arguments of calls of a method are kept."""
    calls, method = [], getattr(owner, name)

    def kept(*args: Any) -> Any:
        calls.append(args)
        return method(*args)

    setattr(owner, name, kept)
    try:
        yield calls
    finally:
        delattr(owner, name)  # the class's own shows again


class _Activations(TorchFunctionMode):
    """Collects the outputs of activation functions, whether they are called or are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ACTIVATIONS:
            self.found.append(output)
        return output


def _trunk(policy: BasePolicy, head: Any, batch: dict[str, Any], mode: str) -> dict[str, float]:
    with _calls(head.trunk, "forward") as calls:
        policy(_prepared(policy, batch, mode))
    with _Activations() as activations:
        condition = head.trunk(*calls[0]).float()  # (B, steps, d)
    found = {"spread": float(condition.std(0).mean() / condition.std().clamp(min=1e-12))}
    layers = [(layer.movedim(1, -1) if layer.ndim == 4 else layer) for layer in activations.found]  # units come last
    live = [(layer > 0).flatten(0, -2).any(0).float().mean() for layer in layers]
    return found | ({"live": float(min(live))} if live else {})


def _video(policy: BasePolicy, batch: dict[str, Any], mode: str) -> dict[str, float]:
    """All future frames hidden, all tokens at the highest noise level."""
    spec, head, count = policy.model.spec, policy.model.video_heads[0], len(batch["seed"])
    prepared = _prepared(policy, batch, mode)
    corruption, views = prepared["corruption"], spec.predicted_views
    noise = torch.randn(count, 1, spec.tokens, spec.token_dim, generator=torch.Generator().manual_seed(0))
    corruption |= {
        "masked": torch.ones_like(corruption["masked"]),
        "video_rows": torch.arange(spec.tokens, device=policy.device).expand(count, -1),  # (B, T*S)
        "video_t": torch.full((count, views, 1, spec.tokens), _highest_level(head.diffusion), device=policy.device),
        "video_noise": noise.unsqueeze(1).expand(-1, views, -1, -1, -1).to(policy.device),
    }
    with _calls(head, "loss") as calls:
        policy(prepared)
    cond, x0, t, noise = calls[0]  # (B, 1, T*S, c), (B, 1, T*S, C), ...
    counts = ~batch["frame_is_pad"].repeat_interleave(spec.tokens_per_frame, dim=1)[:, None, :, None]  # (B, 1, T*S, 1)
    mean = (x0 * counts).sum(0) / counts.sum(0).clamp(min=1)
    total = ((x0 - mean).square() * counts).sum()

    def explained(cond: Tensor) -> float:
        noisy = head.diffusion.add_noise(x0, t, noise)
        guess = head.diffusion.x0(head.net(noisy, t, cond).float()[..., : x0.shape[-1]], noisy, t)
        return float(1 - ((guess - x0).square() * counts).sum() / total.clamp(min=1e-12))

    return {"video_explained": explained(cond), "video_explained_other": explained(cond.roll(1, 0))}


def _highest_level(diffusion: Diffusion) -> int:
    """The last step; where noise is predicted, the last that leaves a trace of the data."""
    abar = diffusion.tables.at(torch.arange(diffusion.steps, device=diffusion.tables.table.device))["signal"] ** 2
    return diffusion.steps - 1 if diffusion.prediction != "epsilon" else int((abar[:, 0] >= LEAST_SIGNAL).sum()) - 1
