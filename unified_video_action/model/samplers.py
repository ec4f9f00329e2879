"""Samplers of a diffusion head: how many denoising steps there are, and with which coefficients.

A step of every sampler here is the same arithmetic on a noisy row x and the network's output for it:

    x0   = x0_from_x * x + x0_from_output * output, clamped where the head says so
    next = from_x * x + from_x0 * x0 + from_last * last + exp(log_std + log_std_slope * spread) * noise

with `last` the x0 of the step before, and `spread` the network's second half of outputs, where it has one. So a chain
of steps is a table of numbers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Known = tuple[Tensor, Tensor]  # values (rows, C) that x0 is moved towards, and by how much (rows, C), from 0 to 1


@dataclass(frozen=True)
class Sampler:
    """How a head denoises. Raises ValueError for an unknown kind, and a step count or temperature out of range."""

    kind: Literal["ancestral", "ddim", "dpm", "euler"] = "ancestral"  # euler: of flow matching
    steps: int = 100  # network calls
    temperature: float = 0.95  # scales the noise added at each ancestral step, not the initial noise

    def __post_init__(self) -> None:
        if self.kind not in ("ancestral", "ddim", "dpm", "euler"):
            raise ValueError(f"Sampler.kind must be ancestral, ddim, dpm or euler, got {self.kind!r}")
        if not isinstance(self.steps, int) or not 1 <= self.steps <= 1000:
            raise ValueError(f"Sampler.steps must be an integer from 1 to 1000, got {self.steps!r}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"Sampler.temperature must lie in [0, 2], got {self.temperature!r}")

    @classmethod
    def parse(cls, text: str, temperature: float = 0.95) -> "Sampler":
        """`"ddim10"` -> DDIM with 10 steps; likewise `ancestral100`, `dpm16`, `euler5`."""
        kind = text.rstrip("0123456789")
        if kind == text:
            raise ValueError(
                f"sampler {text!r}: expected a kind and a step count, such as ancestral100, ddim10 or dpm16"
            )
        return cls(kind, int(text[len(kind) :]), temperature)

    @property
    def noise_draws(self) -> int:
        """How often a row is given noise: at its start, and by the ancestral sampler at every step, the last included
        (where it is not used)."""
        return 1 + self.steps if self.kind == "ancestral" else 1


class Step(NamedTuple):
    """One denoising step (see the module's formulas)."""

    t: int  # step of the training chain, an input of the network
    x0_from_x: float
    x0_from_output: float
    from_x: float
    from_x0: float
    from_last: float = 0.0
    log_std: float = -math.inf  # of the noise that is added
    log_std_slope: float = 0.0


def denoise(
    network: Callable[[int, Tensor], tuple[Tensor, Tensor | None]],
    noise: Tensor,
    chain: Sequence[Step],
    clamp: float | None = None,
    known: Known | None = None,
) -> Tensor:
    """Take all steps of a chain. No table look-up, upload or synchronisation: it can be captured as a graph.

    Args:
        network: (number of the step, x (rows, C)) -> its mean output (rows, C), and its spread (rows, C) or None.
        noise: (noise_draws, rows, C), as many as the sampler needs.
        clamp: bound on the predicted x0; the few-step solvers need one, since x0 at the last step is the network's
            error times 2e4.

    Returns:
        (rows, C).
    """
    x, last = noise[0], torch.zeros_like(noise[0])
    for i, step in enumerate(chain):
        output, spread = network(i, x)
        x0 = step.x0_from_x * x + step.x0_from_output * output
        if clamp is not None:
            x0 = x0.clamp(-clamp, clamp)
        if known is not None:
            x0 = torch.lerp(x0, *known)
        x = step.from_x * x + step.from_x0 * x0
        if step.from_last:
            x = torch.add(x, last, alpha=step.from_last)
        if step.log_std > -math.inf:
            log_std = torch.full_like(x, step.log_std) if spread is None else step.log_std + step.log_std_slope * spread
            x = torch.addcmul(x, torch.exp(log_std), noise[i + 1])
        last = x0
    return x


def make_chain(
    sampler: Sampler, betas: np.ndarray, prediction: Literal["epsilon", "v", "sample", "flow"], learned_variance: bool
) -> list[Step]:
    """The sampler's steps in the order they are taken, from noise to data.

    Args:
        betas: (T,) float64 of the training chain. prediction, learned_variance: as the head was trained.

    Raises:
        ValueError: more steps than the training chain has.
    """
    if sampler.steps > len(betas):
        raise ValueError(f"sampler {sampler.kind}{sampler.steps} has more steps than the chain of {len(betas)}")
    abar = np.cumprod(1 - betas)
    if sampler.kind == "ancestral":
        return _ancestral(sampler, abar, prediction, learned_variance)
    # "Trailing" spacing: from the last step of the training chain, evenly, to almost its first.
    spaced = np.arange(len(betas), 0, -len(betas) / sampler.steps)[: sampler.steps]  # rounding can add one, near 0
    kept = (spaced.round().astype(int) - 1).tolist()
    if sampler.kind == "euler":
        return _euler([(t + 1) / len(betas) for t in kept], kept)
    return (_ddim if sampler.kind == "ddim" else _dpm)(kept, abar, prediction)


def _ancestral(sampler: Sampler, abar: np.ndarray, prediction: str, learned_variance: bool) -> list[Step]:
    """The chain respaced, with the posterior's mean and a variance between its bounds (paper: 100 steps)."""
    last, gaps = len(abar) - 1, sampler.steps - 1
    kept = [round(i * last / gaps) for i in range(sampler.steps)] if gaps else [last]
    abar = abar[kept]
    previous = np.append(1.0, abar[:-1])
    betas = 1 - abar / previous
    variance = betas * (1 - previous) / (1 - abar)  # 0 at the first
    low, high = np.log(variance.clip(min=1e-300)), np.log(betas)
    log_temperature = math.log(sampler.temperature) if sampler.temperature else -math.inf
    steps = []
    for i in reversed(range(sampler.steps)):
        from_x = float((1 - previous[i]) * np.sqrt(1 - betas[i]) / (1 - abar[i]))
        from_x0 = float(betas[i] * np.sqrt(previous[i]) / (1 - abar[i]))
        step = Step(kept[i], *_x0(prediction, abar[i]), from_x, from_x0)
        if i > 0 and learned_variance:  # log-variance = low + (spread + 1) / 2 * (high - low)
            slope = float(high[i] - low[i]) / 4
            step = step._replace(log_std=log_temperature + float(high[i] + low[i]) / 4, log_std_slope=slope)
        elif i > 0:
            step = step._replace(log_std=log_temperature + float(low[i]) / 2)
        steps.append(step)
    return steps


def _ddim(kept: Sequence[int], abar: np.ndarray, prediction: str) -> list[Step]:
    """DDIM without noise; what comes after a step is found as diffusers finds it."""
    steps = []
    for t in kept:
        after = t - len(abar) // len(kept)
        target = abar[after] if after >= 0 else 1.0
        keep = math.sqrt((1 - target) / (1 - abar[t]))  # of the noise
        steps.append(Step(t, *_x0(prediction, abar[t]), keep, math.sqrt(target) - keep * math.sqrt(abar[t])))
    return steps


def _dpm(kept: Sequence[int], abar: np.ndarray, prediction: str) -> list[Step]:
    """DPM-Solver++ of second order with two evaluations remembered; first order at both ends."""

    def half_log_snr(t: int) -> float:
        return 0.5 * (math.log(abar[t]) - math.log1p(-abar[t]))

    steps = []
    for i, t in enumerate(kept[:-1]):
        target = abar[kept[i + 1]]
        stride = half_log_snr(kept[i + 1]) - half_log_snr(t)
        weight = -math.sqrt(target) * math.expm1(-stride)
        last = weight * stride / (2 * (half_log_snr(t) - half_log_snr(kept[i - 1]))) if i else 0.0
        from_x = math.sqrt((1 - target) / (1 - abar[t]))
        steps.append(Step(t, *_x0(prediction, abar[t]), from_x, weight + last, -last))
    return [*steps, Step(kept[-1], *_x0(prediction, abar[kept[-1]]), from_x=0.0, from_x0=1.0)]


def _euler(levels: Sequence[float], kept: Sequence[int]) -> list[Step]:
    """Straight steps along the velocity, from one share of noise to the next, and to none."""
    shares = [after / level for level, after in zip(levels, [*levels[1:], 0.0], strict=True)]
    return [Step(t, 1.0, -level, share, 1 - share) for t, level, share in zip(kept, levels, shares, strict=True)]


def _x0(prediction: str, abar: float) -> tuple[float, float]:
    """Factors of x and of the network's output in the predicted x0."""
    return {
        "epsilon": (math.sqrt(1 / abar), -math.sqrt(1 / abar - 1)),
        "v": (math.sqrt(abar), -math.sqrt(1 - abar)),
        "sample": (0.0, 1.0),
    }[prediction]
