"""Films of rollouts: the real frame, and beside it the future the policy imagined and what became of it.

The policy imagines afterwards, from the recorded observations of the episode and at the moments when it planned, so
that filming changes nothing in the rollout.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.rollout import instruction_of
from unified_video_action.env_runner.worker import Observation

MARGIN, GAP = 16, 6  # px
SMALL = 136  # height of an imagined frame, px
LINE = 20  # height of a line of text, px
PAPER, INK, FAINT, ACCENT, TRACK = "#15181e", "#f2f4f8", "#98a1b2", "#5b9dff", "#2b313c"


@dataclass(frozen=True)
class Imagination:
    """Future frames imagined at one moment of an episode."""

    step: int  # control steps executed when it was imagined
    offsets: tuple[int, ...]  # control steps from there to each frame
    frames: np.ndarray  # uint8 (F, H, W, 3)


def imagine_episode(
    session: Any, observations: Sequence[Observation], seed: int, action_steps: int, offsets: tuple[int, ...]
) -> list[Imagination]:
    """Let the policy imagine the future at every moment of an episode when it planned.

    Args:
        session: a `PolicySession`; slot 0 is used.
        observations: before the first step, and after each.
        offsets: control steps from now to each imagined frame.
    """
    session.reset(slot=0, seed=seed, text=instruction_of(observations[0]))
    imagined = []
    for step, observation in enumerate(observations[:-1]):
        session.observe(observation, slot=0)
        if step % action_steps == 0:
            session.plan([0])  # as in the episode, so that the session knows the actions that follow
            imagined.append(Imagination(step, offsets, session.imagine([0])[0]))
    return imagined


def film_frames(
    episode: Episode,
    observations: Sequence[Observation],
    camera: str,
    imagined: Sequence[Imagination] = (),
    label: str = "",
) -> Iterator[np.ndarray]:
    """Draw one film frame per observation: uint8 (H, W, 3), all of one even size.

    Left the real frame; right, above, the future imagined when the policy last planned; below, what really happened
    at those moments. Without imagination only the real frame.

    Args:
        observations: before the first step, and after each; `camera` names the one to show.
        imagined: what `imagine_episode` returned.

    Raises:
        ValueError: there is no such camera.
    """
    if camera not in observations[0]:
        raise ValueError(f"nothing to film: the observation has no {camera!r}, only {', '.join(observations[0])}")
    real = [observation[camera] for observation in observations]
    for step in range(len(real)):
        current = [moment for moment in imagined if moment.step <= step][-1:]
        score = max(episode.curve[:step], default=0.0)
        yield _draw(real, step, current[0] if current else None, episode, score, label)


def _draw(
    real: Sequence[np.ndarray], step: int, moment: Imagination | None, episode: Episode, score: float, label: str
) -> np.ndarray:
    top = MARGIN + LINE + 14
    large = 2 * SMALL + LINE + GAP
    large_width = _width(real[0], large)
    small_width = _width(real[0], SMALL) if moment else 0
    futures = len(moment.offsets) if moment else 0
    width = 2 * MARGIN + large_width + futures * (small_width + GAP) + (MARGIN - GAP if futures else 0)
    height = top + LINE + large + MARGIN
    canvas = Image.new("RGB", (max(width, 360) // 2 * 2, height // 2 * 2), PAPER)
    pen = ImageDraw.Draw(canvas)

    heading = " · ".join(filter(None, [f"seed {episode.seed}", label, "success" if episode.success else ""]))
    pen.text((MARGIN, MARGIN), heading, INK, _font(15))
    now = f"step {step} / {episode.steps}    score {score:.2f}"
    pen.text((canvas.width - MARGIN, MARGIN), now, INK, _font(15), anchor="ra")
    _bar(pen, canvas.width, MARGIN + LINE + 4, score)

    pen.text((MARGIN, top), "real, now", FAINT, _font(12))
    canvas.paste(_scaled(real[step], large), (MARGIN, top + LINE))
    for place in range(futures):
        at = moment.step + moment.offsets[place]
        left = 2 * MARGIN + large_width + place * (small_width + GAP)
        lower = top + LINE + SMALL + GAP
        pen.text((left, top), f"imagined +{moment.offsets[place]}", ACCENT, _font(12))
        canvas.paste(_scaled(moment.frames[place], SMALL, small_width), (left, top + LINE))
        if at < len(real):
            pen.text((left, lower), f"real, step {at}", FAINT, _font(12))
            canvas.paste(_scaled(real[at], SMALL), (left, lower + LINE))
        else:
            pen.text((left, lower), "after the end", FAINT, _font(12))
            pen.rectangle((left, lower + LINE, left + small_width - 1, lower + LINE + SMALL - 1), outline=TRACK)
    return np.asarray(canvas)  # (H, W, 3)


def _bar(pen: ImageDraw.ImageDraw, width: int, top: int, score: float) -> None:
    pen.rectangle((MARGIN, top, width - MARGIN, top + 3), TRACK)
    if score > 0:
        pen.rectangle((MARGIN, top, MARGIN + (width - 2 * MARGIN) * min(score, 1.0), top + 3), ACCENT)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _width(frame: np.ndarray, height: int) -> int:
    return round(frame.shape[1] * height / frame.shape[0])


def _scaled(frame: np.ndarray, height: int, width: int | None = None) -> Image.Image:
    """`width`: of a frame that the codec has made square; None keeps its shape."""
    return Image.fromarray(frame).resize((width or _width(frame, height), height), Image.Resampling.BICUBIC)


def write_mp4(path: Path, frames: Iterable[np.ndarray], fps: int = 10) -> int:
    """Write frames, uint8 (H, W, 3) of one even size, as H.264 (yuv420p, plays in browsers); return their number.

    Raises:
        ValueError: no frames, or a frame whose size is odd or differs from the first one's.
    """
    import av

    stream, count, size = None, 0, None
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        for frame in frames:
            if stream is None:
                size = frame.shape
                if size[0] % 2 or size[1] % 2:
                    raise ValueError(f"{path}: yuv420p needs an even width and height, got {size[1]} x {size[0]}")
                stream = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "veryfast"})
                stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
            if frame.shape != size:
                raise ValueError(f"{path}: frame {count} is {frame.shape}, the first is {size}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            count += 1
        if stream is None:
            raise ValueError(f"{path}: no frames to write")
        container.mux(stream.encode())
    return count
