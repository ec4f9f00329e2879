"""Train the project's own frame codec on scripted demonstrations and measure it.

python scripts/collect_demos.py --task pusht -n 80 --seed 1 --output demos.zarr.zip
python scripts/collect_demos.py --task pusht -n 80 --seed 1 --goal random --output demos_m.zarr.zip
python scripts/train_codec.py --demos demos.zarr.zip demos_m.zarr.zip --minutes 30 --output weights.safetensors

Trains on the demonstrations' frames and on fresh renderings of their states with other agents, goals and colours. When
UVA_DATA_DIR is set the result is also measured on human demonstrations, which are never trained on. One CPU core is
enough. The figures go to a JSON file beside the weights.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, unfold
from tqdm import tqdm

from unified_video_action.dataset.augmentation import VideoAugmentation
from unified_video_action.dataset.replay_buffer import ReplayBuffer
from unified_video_action.env.pusht.collect import random_goal
from unified_video_action.env.pusht.env import DEFAULT_GOAL
from unified_video_action.env.pusht.geometry import AGENT_RADIUS, clearance
from unified_video_action.env.pusht.renderer import StateRenderer
from unified_video_action.vae.pusht_tiny import CHANNELS, NOISE, PATCH, PushTTiny

log = logging.getLogger("train_codec")
SIZE, TABLE = 96, 512  # side of a frame in pixels, of the table in its own
BATCH = 32
CROP, CROP_SHARE = 48, 0.8  # training sees crops around the shapes, a quarter of the work, and whole frames at the end
STATISTICS_EVERY = 20  # steps
LARGEST_NOISE = 2 * NOISE  # on the latents the decoder sees, relative to their deviation
EDGE_WEIGHT = 4.0  # extra weight of a pixel per unit of contrast with its neighbours
BOUND, BOUND_WEIGHT = 3.0, 0.1  # scaled latents beyond the bound are pulled back


@dataclass(frozen=True)
class Scenes:
    """Frames and the states they show."""

    frames: np.ndarray  # uint8 (N, S, S, 3)
    states: np.ndarray  # (N, 5) agent x, y, block x, y, block angle

    def images(self) -> Tensor:
        return to_images(self.frames)


def to_images(frames: np.ndarray) -> Tensor:
    """uint8 (N, S, S, 3) -> float (N, 3, S, S) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def load(location: str | Path, most: int | None = None) -> Scenes:
    """All frames of a store of episodes, or `most` of them at even distances."""
    store = ReplayBuffer(location, images=["img"], vectors=["state"])
    rows = np.arange(len(store)) if most is None else np.linspace(0, len(store) - 1, most).astype(int)
    return Scenes(store.frames("img", rows), store.vectors["state"][rows])


def render(states: np.ndarray, count: int, rng: np.random.Generator, random_goals: float) -> Scenes:
    """Fresh scenes: poses near recorded ones, half of the agents from another moment, some goals anywhere."""
    draw = StateRenderer(SIZE)
    scenes = states[rng.integers(len(states), size=count)].astype(np.float64)
    elsewhere = rng.random(count) < 0.5
    scenes[elsewhere, :2] = states[rng.integers(len(states), size=elsewhere.sum()), :2]
    scenes += rng.normal(0, (10, 10, 20, 20, 0.3), size=scenes.shape)
    scenes[:, :4] = scenes[:, :4].clip(20, TABLE - 20)
    goals = [random_goal(rng) if rng.random() < random_goals else DEFAULT_GOAL for _ in scenes]
    return Scenes(np.stack([draw(state, goal) for state, goal in zip(scenes, goals, strict=True)]), scenes)


def vary(frames: np.ndarray, rng: np.random.Generator) -> None:
    """In place: a tenth of the frames in another light, a quarter cropped or blurred as in policy training."""
    for index in np.flatnonzero(rng.random(len(frames)) < 0.1):
        frames[index] = frames[index] * rng.uniform(0.8, 1, size=3)
    augmentation = VideoAugmentation()
    for index in np.flatnonzero(rng.random(len(frames)) < 0.25):
        frames[index] = augmentation(frames[index][None].transpose(0, 3, 1, 2), rng)[0].transpose(1, 2, 0)


def start_from_principal_components(codec: PushTTiny, images: Tensor) -> None:
    """The linear maps become whitened principal components of 8 x 8 patches, turned at random; the networks add 0."""
    patches = unfold(images, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)  # (N * h * w, 192)
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    deviations, axes = values[-CHANNELS:].sqrt(), vectors[:, -CHANNELS:]  # (16,), (192, 16)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS)).Q
    analysis, synthesis = turn @ (axes / deviations).T, turn @ (axes * deviations).T  # (16, 192)
    with torch.no_grad():
        codec.encoder.linear.weight.copy_(analysis.view(CHANNELS, 3, PATCH, PATCH))
        codec.encoder.linear.bias.copy_(-analysis @ mean)
        codec.decoder.linear.weight.copy_(synthesis.view(CHANNELS, 3, PATCH, PATCH))
        codec.decoder.linear.bias.copy_(mean.view(3, -1).mean(1))
    for last in (codec.encoder.network[-1], codec.decoder.network[-2]):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def crop_to_shapes(images: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 3, CROP, CROP) on the grid of patches, mostly around a coloured pixel."""
    interest = 0.02 + (images.amin(1) < 0.4).float()  # (N, S, S)
    interest[:, :3] = interest[:, -3:] = interest[:, :, :3] = interest[:, :, -3:] = 0.1  # the walls
    pixel = torch.multinomial(interest.flatten(1), 1)[:, 0]  # (N,)
    centre = torch.stack([pixel // SIZE, pixel % SIZE], 1) + torch.randint(-12, 13, (len(images), 2))
    corner = ((centre - CROP // 2 + PATCH // 2) // PATCH).clamp(0, (SIZE - CROP) // PATCH) * PATCH
    return torch.stack([image[:, y : y + CROP, x : x + CROP] for image, (y, x) in zip(images, corner.tolist())])


def statistics(z: Tensor) -> tuple[Tensor, Tensor]:
    """Latents (N, 16, h, w) -> the shift and the scale (16, 1, 1) that normalise them."""
    return z.mean((0, 2, 3)).view(-1, 1, 1), 1 / z.std((0, 2, 3)).view(-1, 1, 1)


class Trainer:
    """Adam on a weighted squared error of frames decoded from noisy, normalised latents; keeps a running average."""

    def __init__(self, codec: PushTTiny, learning_rate: float, precision: str) -> None:
        self.codec = codec.requires_grad_(True)
        self.parameters = [*codec.encoder.parameters(), *codec.decoder.parameters()]
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(self.parameters, learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.learning_rate, self.precision = learning_rate, precision
        self.steps = 0

    def step(self, images: Tensor, done: float) -> float:
        """One step on whole frames (N, 3, S, S), `done` of the way through training; returns the weighted error."""
        if self.steps % STATISTICS_EVERY == 0:
            self.follow_statistics(images)
        if done < CROP_SHARE:
            images = crop_to_shapes(images)
        warm = min(1.0, (self.steps + 1) / 100)
        self.optimizer.param_groups[0]["lr"] = self.learning_rate * warm * (0.01 + 0.99 * np.cos(np.pi / 2 * done) ** 2)
        error, overflow = self.loss(images.contiguous(memory_format=torch.channels_last))
        self.optimizer.zero_grad()
        (error + BOUND_WEIGHT * overflow).backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 20))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1 - decay)
        return error.item()

    @torch.no_grad()
    def follow_statistics(self, images: Tensor) -> None:
        """Move shift and scale towards those of `images`: whole frames, since crops show more than their share."""
        shift, scale = statistics(self.codec.encoder(images))
        self.codec.shift.lerp_(shift, 0.1)
        self.codec.scale.lerp_(scale, 0.1)

    def loss(self, images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16"):
            z = self.codec.encoder(images).float()  # (N, 16, h, w)
            z = (z - self.codec.shift) * self.codec.scale
            noise = LARGEST_NOISE * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
            decoded = self.codec.decoder(z + noise).float()  # (N, 3, S, S)
        grey = images.mean(1, keepdim=True)
        contrast = max_pool2d(grey, 3, 1, 1) + max_pool2d(-grey, 3, 1, 1)  # (N, 1, S, S)
        error = ((1 + EDGE_WEIGHT * contrast) * (decoded - images) ** 2).mean()
        return error, torch.relu(z.abs() - BOUND).square().mean()

    def finish(self, images: Tensor) -> PushTTiny:
        """The averaged weights, with the shift and scale that normalise their latents of `images`."""
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
            self.codec.freeze()
            z = torch.cat([self.codec.encoder(part) for part in images.split(100)])  # (N, 16, h, w)
            for mine, exact in zip((self.codec.shift, self.codec.scale), statistics(z), strict=True):
                mine.copy_(exact)
        return self.codec


def train(trainer: Trainer, frames: np.ndarray, minutes: float, steps: int | None, rng: np.random.Generator) -> None:
    """Until the time is up, or for a number of steps (which alone is reproducible)."""
    start = time.monotonic()
    with tqdm(total=steps, unit="step", desc="training", mininterval=1) as bar:
        done = 0.0
        while done < 1:
            images = to_images(frames[rng.integers(len(frames), size=BATCH)])  # (N, 3, S, S)
            error = trainer.step(images, done)
            if not np.isfinite(error):
                raise RuntimeError(f"the loss is {error} at step {trainer.steps}; use --precision fp32 or a lower rate")
            bar.set_postfix(error=f"{error:.5f}", refresh=False)
            bar.update()
            elapsed = (time.monotonic() - start) / 60
            done = elapsed / minutes if steps is None else trainer.steps / steps


def decibels(squared_error: Tensor) -> Tensor:
    """PSNR of mean squared errors of images in [-1, 1]."""
    return -10 * torch.log10(squared_error / 4)


def regions(states: np.ndarray) -> dict[str, Tensor]:
    """Pixels at most 10 table pixels from the T, or from the agent: bool (N, 1, S, S) each."""
    axis = (np.arange(SIZE) + 0.5) * TABLE / SIZE
    points = np.stack(np.meshgrid(axis, axis), axis=-1)  # (S, S, 2) of x, y
    near_block = np.stack([clearance(points, state[2:]) for state in states]) <= 10
    near_agent = np.linalg.norm(points - states[:, None, None, :2], axis=-1) <= AGENT_RADIUS + 10
    return {"block": torch.from_numpy(near_block)[:, None], "agent": torch.from_numpy(near_agent)[:, None]}


def measure(codec: PushTTiny, scenes: Scenes) -> dict[str, float]:
    """PSNR in dB (of the mean error; lowest frame; around the shapes; after noise) and the spread of the latents."""
    images = scenes.images()
    latents = codec.encode(images[:, None])  # (N, 1, 16, h, w)
    error = (codec.decode(latents)[:, 0] - images).square()  # (N, 3, S, S)
    noise = NOISE * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = (codec.decode(latents + noise)[:, 0] - images).square()
    figures = {
        "psnr": decibels(error.mean()),
        "psnr_lowest_frame": decibels(error.mean((1, 2, 3)).max()),
        "psnr_with_noise_0.1": decibels(noisy.mean()),
    }
    for name, region in regions(scenes.states).items():
        figures[f"psnr_{name}"] = decibels((error * region).sum() / (3 * region.sum()))
    figures |= {"latent_mean": latents.mean(), "latent_deviation": latents.std(), "latent_largest": latents.abs().max()}
    figures["latent_share_beyond_4"] = (latents.abs() > 4).float().mean()
    return {name: round(value.item(), 5) for name, value in figures.items()}


def measured_sets(states: np.ndarray, count: int, seed: int) -> Iterator[tuple[str, Scenes]]:
    rng = np.random.default_rng([seed, 1])
    yield "rendered", render(states, count, rng, random_goals=0)
    yield "rendered_random_goal", render(states, count, rng, random_goals=1)
    data = os.environ.get("UVA_DATA_DIR")
    real = Path(data) / "pusht" / "pusht.zip" if data else None
    if real and real.is_file():
        yield "real", load(real, count)
    else:
        log.info("not measured on human demonstrations: UVA_DATA_DIR is not set, or has no pusht/pusht.zip")


def save(codec: PushTTiny, path: Path) -> None:
    """Half precision, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    tensors = codec.state_dict().items()
    save_file({name: x.half().contiguous() if x.ndim == 4 or "bias" in name else x for name, x in tensors}, partial)
    partial.replace(path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, nargs="+", required=True, help="stores that collect_demos.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="weights file, NAME.safetensors")
    parser.add_argument("--minutes", type=float, default=30.0, help="time for training (default 30)")
    parser.add_argument("--steps", type=int, help="train for so many steps instead; gives the same weights every time")
    parser.add_argument("--resume", action="store_true", help="improve --output instead of starting anew")
    parser.add_argument("--rendered", type=int, default=12000, help="fresh renderings to train on (default 12000)")
    parser.add_argument("--measured", type=int, default=500, help="frames in each measured set (default 500)")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="of the convolutions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.measured < 1 or options.rendered < 1 or options.minutes <= 0 or (options.steps or 1) < 1:
        parser.error("--measured, --rendered, --minutes and --steps must be positive")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)

    demonstrations = [load(path) for path in options.demos]
    states = np.concatenate([scenes.states for scenes in demonstrations])
    recorded = np.concatenate([scenes.frames for scenes in demonstrations])
    normalised_on = to_images(recorded[rng.integers(len(recorded), size=2000)])
    frames = np.concatenate([recorded, render(states, options.rendered, rng, random_goals=0.5).frames])
    vary(frames, rng)
    log.info("%d demonstrated frames, %d rendered ones", len(recorded), options.rendered)

    codec = PushTTiny(weights=str(options.output) if options.resume else "random")
    if not options.resume:
        start_from_principal_components(codec, normalised_on)
    trainer = Trainer(codec, options.learning_rate, options.precision)
    train(trainer, frames, options.minutes, options.steps, rng)
    save(trainer.finish(normalised_on), options.output)

    codec = PushTTiny(str(options.output))
    figures = {name: measure(codec, scenes) for name, scenes in measured_sets(states, options.measured, options.seed)}
    for name, values in figures.items():
        log.info("%s: %s", name, ", ".join(f"{key} {value:g}" for key, value in values.items()))
    recipe = {name: value for name, value in vars(options).items() if name not in ("demos", "output")}
    recipe |= {"frames": len(frames), "steps": trainer.steps}
    options.output.with_suffix(".json").write_text(json.dumps({"recipe": recipe, "measured": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
