"""Denoising diffusion for the two heads: schedule and training loss (paper, section III-C).

Cosine schedule with a learned variance, as in "Improved DDPM" and DiT. Every row (a video token or an action) is
denoised on its own, given the joint latent.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from unified_video_action.model.samplers import Sampler, Step, make_chain
from unified_video_action.noise import Generators, randn


def draw_noise(shape: Sequence[int], count: int, generator: Generators, device: torch.device) -> Tensor:
    """All noise (count, *shape) that denoising needs, float32, sampled as `count` calls of `randn` would.

    Noise of generators on the CPU stays in host memory, pinned where the device is another.
    """
    if generator is None or (not isinstance(generator, Sequence) and generator.device.type != "cpu"):
        return torch.stack([randn(shape, generator, torch.empty((), device=device)) for _ in range(count)])
    noise = torch.empty(count, *shape, pin_memory=device.type != "cpu")
    for draw in noise:
        draw.copy_(randn(shape, generator, draw))
    return noise


def cosine_betas(steps: int) -> np.ndarray:
    """(steps,) float64: alpha_bar(t) = cos^2((t + 0.008) / 1.008 * pi / 2), betas capped at 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), 0.999) for i in range(steps)])


class Tables(nn.Module):
    """Coefficients of a chain of diffusion steps, in float64 until stored."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.names = tuple(columns)
        table = torch.tensor(np.stack(list(columns.values()), axis=1), dtype=torch.float32)
        self.register_buffer("table", table, persistent=False)  # (steps, columns)

    @classmethod
    def of_betas(cls, betas: np.ndarray) -> "Tables":
        abar = np.cumprod(1 - betas)
        previous = np.append(1.0, abar[:-1])
        variance = betas * (1 - previous) / (1 - abar)
        columns = {
            "signal": np.sqrt(abar),
            "noise": np.sqrt(1 - abar),
            "sqrt_recip_abar": np.sqrt(1 / abar),
            "sqrt_recip_abar_minus_one": np.sqrt(1 / abar - 1),
            "posterior_x0": betas * np.sqrt(previous) / (1 - abar),
            "posterior_xt": (1 - previous) * np.sqrt(1 - betas) / (1 - abar),
            "log_beta": np.log(betas),
            "log_variance": np.log(np.append(variance[1], variance[1:])) if len(betas) > 1 else np.log(betas),
        }
        return cls(columns)

    @classmethod
    def of_levels(cls, levels: np.ndarray) -> "Tables":
        return cls({"signal": 1 - levels, "noise": levels})

    def at(self, index: Tensor) -> dict[str, Tensor]:
        """Columns at the rows' step indices, (..., 1) each."""
        return dict(zip(self.names, self.table[index].unsqueeze(-1).unbind(-2), strict=True))


class Diffusion(nn.Module):
    """Noise schedule and loss; owns tables, no weights.

    `prediction` is what the network's first C outputs mean (the paper: epsilon); with `learned_variance` (the paper:
    yes) it has C further ones that interpolate the log-variance. `flow` is flow matching on straight lines from data
    to noise (Lipman et al. 2023, Liu et al. 2023): the network gives their velocity, noise - x_0.
    """

    def __init__(
        self,
        steps: int = 1000,
        prediction: Literal["epsilon", "v", "sample", "flow"] = "epsilon",
        learned_variance: bool = True,
    ) -> None:
        super().__init__()
        self.steps, self.prediction, self.learned_variance = steps, prediction, learned_variance
        self.betas = cosine_betas(steps)
        levels = np.arange(1, steps + 1) / steps
        self.tables = Tables.of_levels(levels) if prediction == "flow" else Tables.of_betas(self.betas)

    def add_noise(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0) for rows x0 (..., C) at steps t (...)."""
        at = self.tables.at(t)
        return at["signal"] * x0 + at["noise"] * noise

    def loss(self, output: Tensor, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Unreduced loss of a network output for x_t = add_noise(x0, t, noise).

        Args:
            output: (..., C) or, with learned variance, (..., 2C).
            x0, noise: (..., C). t: (...) integers in [0, steps).

        Returns:
            squared error and variational bound in bits (zero without a learned variance), (..., C) each. The bound
            trains the variance only: the mean is detached, and its weight is 1, as in the paper's code.
        """
        at, channels = self.tables.at(t), x0.shape[-1]
        mean_output = output[..., :channels]
        if self.prediction == "v":
            target = at["signal"] * noise - at["noise"] * x0
        elif self.prediction == "flow":
            target = noise - x0
        else:
            target = noise if self.prediction == "epsilon" else x0
        squared_error = (target - mean_output) ** 2
        if not self.learned_variance:
            return squared_error, torch.zeros_like(squared_error)

        xt = self.add_noise(x0, t, noise)
        predicted_x0 = self.x0(mean_output.detach(), xt, t)
        true_mean = at["posterior_x0"] * x0 + at["posterior_xt"] * xt
        mean = at["posterior_x0"] * predicted_x0 + at["posterior_xt"] * xt
        fraction = (output[..., channels:] + 1) / 2
        log_variance = fraction * at["log_beta"] + (1 - fraction) * at["log_variance"]
        kl = _normal_kl(true_mean, at["log_variance"], mean, log_variance)
        decoder_nll = -_discretised_log_likelihood(x0, mean, 0.5 * log_variance)
        return squared_error, torch.where(t.unsqueeze(-1) == 0, decoder_nll, kl) / math.log(2.0)

    def x0(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean rows (..., C) that a mean output (..., C) says for x_t (..., C) at steps t (...)."""
        at = self.tables.at(t)
        if self.prediction == "epsilon":
            return at["sqrt_recip_abar"] * xt - at["sqrt_recip_abar_minus_one"] * output
        if self.prediction == "v":
            return at["signal"] * xt - at["noise"] * output
        return xt - at["noise"] * output if self.prediction == "flow" else output

    def chain(self, sampler: Sampler) -> list[Step]:
        """The sampler's steps for what the network predicts, from noise to data.

        Raises:
            ValueError: euler for a head that learns noise, another sampler for one that learns a flow.
        """
        if (sampler.kind == "euler") != (self.prediction == "flow"):
            raise ValueError(
                f"sampler {sampler.kind}{sampler.steps} is not for a head with prediction: {self.prediction}; euler, "
                f"such as euler10, is for flow, the others for the rest"
            )
        return make_chain(sampler, self.betas, self.prediction, self.learned_variance)


def _normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL divergence of two diagonal normals, in nats, elementwise."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference - 1 + torch.exp(-difference) + (mean1 - mean2) ** 2 * torch.exp(-log_variance2))


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of the bin of width 2/255 around x in [-1, 1] under a normal; the outer bins are open."""

    def cdf(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))

    inverse_scale = torch.exp(-log_scale)
    upper = cdf(inverse_scale * (x - mean + 1 / 255))
    lower = cdf(inverse_scale * (x - mean - 1 / 255))
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return torch.log(probability.clamp(min=1e-12))
