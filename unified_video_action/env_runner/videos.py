"""Rollout videos: the real frame, and beside it the future that the policy imagined and what became of it.

The policy imagines after the episode, from its recorded observations and at the moments when it planned, so a video
changes nothing in the rollout. Between an imagined frame and the real one stands the error: in the task's units where
its configuration names a reader of positions, otherwise in dB.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unified_video_action.env.state_reader import StateReader
from unified_video_action.env_runner.rollout import Episode, instruction_of
from unified_video_action.env_runner.simulators import Observation

MARGIN, GAP = 16, 6  # px
SMALL = 136  # height of an imagined frame, px
FOR_EYES = {"crf": "23", "preset": "veryfast"}
LINE, ERROR_LINE = 20, 16  # heights of lines of text, px
PAPER, INK, FAINT, ACCENT, TRACK = "#15181e", "#f2f4f8", "#98a1b2", "#5b9dff", "#2b313c"


@dataclass(frozen=True)
class RolloutVideo:
    """A finished video."""

    label: str  # best, median, worst, ...
    seed: int
    score: float
    path: Path  # mp4

    @property
    def base64(self) -> str:
        return base64.b64encode(self.path.read_bytes()).decode("ascii")


@dataclass(frozen=True)
class Imagination:
    """Future frames imagined at one moment of an episode."""

    step: int  # control steps executed when it was imagined
    offsets: tuple[int, ...]  # control steps from there to each frame
    frames: np.ndarray  # uint8 (F, H, W, 3)


@dataclass(frozen=True)
class Rollout:
    """An episode, its observations (before the first step, and after each), and what was imagined meanwhile."""

    episode: Episode
    seen: Sequence[Observation]
    imagined: Sequence[Imagination] = ()


def imagine_episode(
    session: Any, observations: Sequence[Observation], seed: int, action_steps: int
) -> list[Imagination]:
    """Let the policy in slot 0 of a `PolicySession` imagine the future whenever it planned in an episode."""
    session.reset(slot=0, seed=seed, text=instruction_of(observations[0]))
    imagined, offsets = [], session.task.horizon.future_offsets
    for step, observation in enumerate(observations[:-1]):
        session.observe(observation, slot=0)
        if step % action_steps == 0:
            session.plan([0])  # as in the episode, so that the session knows the actions that follow
            imagined.append(Imagination(step, offsets, session.imagine([0])[0]))
    return imagined


def pick_for_videos(episodes: Sequence[Episode], count: int) -> list[tuple[str, Episode]]:
    """Choose `count` completed episodes spread from the best score to the worst, each with a label.

    One is the best; two are the best and the worst; three are the best, the median and the worst.
    """
    ranked = sorted((episode for episode in episodes if episode.crashed is None), key=lambda e: (-e.score, e.seed))
    last = len(ranked) - 1
    ranks = sorted({int(rank) for rank in np.linspace(0, last, min(count, len(ranked)))}) if ranked else []
    names = {last // 2: "median", last: "worst", 0: "best"}
    return [(names.get(rank, f"rank {rank + 1} of {len(ranked)}"), ranked[rank]) for rank in ranks]


def video_note(imagines: bool, plan_first: bool, action_steps: int, reader: StateReader | None) -> str:
    """One line for the report: what the videos show. `plan_first`: the policy imagines the plan that it executes."""
    if not imagines:
        return "Camera frames; this policy learned no video."
    plan = " for the plan that it executed" if plan_first else ""
    error = f"in {reader.unit} and degrees" if reader else "as PSNR in dB"
    return (
        f"Left: the camera frames. Right: the future that the policy imagined{plan} (top), the true frames (bottom), "
        f"and between them the error {error}. It plans again every {action_steps} steps."
    )


def video_frames(
    rollout: Rollout, camera: str, label: str = "", reader: StateReader | None = None
) -> Iterator[np.ndarray]:
    """Draw one video frame per observation: uint8 (H, W, 3), all of one even size.

    Left the real frame; right, above, the future imagined when the policy last planned; below, what really happened
    at those moments, and between them the error. Without imagination only the real frame.

    Raises:
        ValueError: the reader takes no such frames.
    """
    real = [observation[camera] for observation in rollout.seen]
    errors = [frame_errors(moment, real, reader) for moment in rollout.imagined]
    for step in range(len(real)):
        moment, lines = ([(None, [])] + [pair for pair in zip(rollout.imagined, errors) if pair[0].step <= step])[-1]
        yield _draw(real, step, moment, lines, rollout.episode, label)


def frame_errors(moment: Imagination, real: Sequence[np.ndarray], reader: StateReader | None) -> list[list[str]]:
    """Lines of text for each imagined frame, those after the episode's end left out."""
    at = [moment.step + offset for offset in moment.offsets if moment.step + offset < len(real)]
    if not at:
        return []
    height, width = moment.frames.shape[1:3]
    made = moment.frames[: len(at)]
    true = np.stack([np.asarray(scaled(real[step], height, width)) for step in at])  # (n, H, W, 3)
    if reader is None:
        error = np.square(made.astype(np.float64) - true).mean((1, 2, 3)).clip(1e-10)  # (n,)
        return [[f"PSNR {10 * np.log10(255**2 / each):.1f} dB"] for each in error]
    made, true = reader(made), reader(true)
    angle = np.abs((np.degrees(made.angle - true.angle) + 180) % 360 - 180)

    def lines(name: str, more: Sequence[str]) -> list[str]:
        found, error = getattr(made, name), np.linalg.norm(getattr(made, name) - getattr(true, name), axis=-1)
        return [
            f"no {name}" if np.isnan(at).any()
            else f"{name} not in view" if np.isnan(off)
            else f"{name} {off:.0f} {reader.unit}{end}"
            for at, off, end in zip(found, error, more, strict=True)
        ]  # fmt: skip

    turns = [f", {each:.0f}°" for each in angle]
    return [list(pair) for pair in zip(lines("agent", [""] * len(at)), lines("block", turns), strict=True)]


def _draw(
    real: Sequence[np.ndarray],
    step: int,
    moment: Imagination | None,
    errors: Sequence[Sequence[str]],
    episode: Episode,
    label: str,
) -> np.ndarray:
    score = max(episode.curve[:step], default=0.0)
    offsets = moment.offsets if moment else ()
    top, between = MARGIN + LINE + 14, LINE + 2 * ERROR_LINE  # where frames begin; between imagined and real ones
    large = 2 * SMALL + between + GAP
    large_width, small_width = _width(real[0], large), _width(real[0], SMALL)
    width = 2 * MARGIN + large_width + (len(offsets) * (small_width + GAP) + MARGIN - GAP if offsets else 0)
    height = top + LINE + large + MARGIN
    canvas = Image.new("RGB", (max(width, 360) // 2 * 2, height // 2 * 2), PAPER)
    pen = ImageDraw.Draw(canvas)

    heading = " · ".join(filter(None, [f"seed {episode.seed}", label, "success" if episode.success else ""]))
    pen.text((MARGIN, MARGIN), heading, INK, _font(15))
    now = f"step {step} / {episode.steps}    score {score:.2f}"
    pen.text((canvas.width - MARGIN, MARGIN), now, INK, _font(15), anchor="ra")
    bar, length = MARGIN + LINE + 4, canvas.width - 2 * MARGIN
    pen.rectangle((MARGIN, bar, MARGIN + length, bar + 3), TRACK)
    if score > 0:
        pen.rectangle((MARGIN, bar, MARGIN + length * min(score, 1.0), bar + 3), ACCENT)

    pen.text((MARGIN, top), "real, now", FAINT, _font(12))
    canvas.paste(scaled(real[step], large), (MARGIN, top + LINE))
    lower = top + SMALL + GAP + between
    for column, offset in enumerate(offsets):
        at, left = moment.step + offset, 2 * MARGIN + large_width + column * (small_width + GAP)
        pen.text((left, top), f"imagined +{offset}", ACCENT, _font(12))
        canvas.paste(scaled(moment.frames[column], SMALL, small_width), (left, top + LINE))
        pen.text((left, lower), f"real, step {at}" if at < len(real) else "after the end", FAINT, _font(12))
        if at < len(real):
            for row, line in enumerate(errors[column]):
                pen.text((left, top + LINE + SMALL + 3 + row * ERROR_LINE), line, INK, _font(12))
            canvas.paste(scaled(real[at], SMALL), (left, lower + LINE))
        else:
            pen.rectangle((left, lower + LINE, left + small_width - 1, lower + LINE + SMALL - 1), outline=TRACK)
    return np.asarray(canvas)  # (H, W, 3)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _width(frame: np.ndarray, height: int) -> int:
    return round(frame.shape[1] * height / frame.shape[0])


def scaled(frame: np.ndarray, height: int, width: int | None = None) -> Image.Image:
    """`width`: of a frame that the codec has made square; None keeps its shape."""
    return Image.fromarray(frame).resize((width or _width(frame, height), height), Image.Resampling.BICUBIC)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = 10, options: Mapping[str, str] = FOR_EYES) -> None:
    """Write frames, uint8 (H, W, 3) of one even size, as H.264 (yuv420p, plays in browsers); `options` of the encoder.

    Raises:
        ValueError: no frames, or a frame whose size is odd or differs from the first one's.
    """
    import av

    stream, size = None, None
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        for number, frame in enumerate(frames):
            if stream is None:
                size = frame.shape
                if size[0] % 2 or size[1] % 2:
                    raise ValueError(f"{path}: yuv420p needs an even width and height, got {size[1]} x {size[0]}")
                stream = container.add_stream("libx264", rate=fps, options=dict(options))
                stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
            if frame.shape != size:
                raise ValueError(f"{path}: frame {number} is {frame.shape}, the first is {size}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        if stream is None:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())
