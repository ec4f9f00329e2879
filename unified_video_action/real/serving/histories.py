"""Frames and states as clients send them, made into the histories that a policy was trained on, and at which rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from unified_video_action.dataset.frame_fit import Fit
from unified_video_action.real.planner import ObservationEntry
from unified_video_action.real.serving.requests import bad, kind
from unified_video_action.spec import Horizon

SMALLEST, LARGEST = 16, 512  # pixels of a side that is resized
ROUNDING = 1e-3  # by which a float frame may leave [0, 1]
TOLERANCE = 1.25  # by which a control step may be longer or shorter than one of the training data
INTERVALS = 10  # between requests, whose median counts


def as_trained(name: str, frames: Any, entry: ObservationEntry, resize: bool) -> np.ndarray:
    """uint8 (..., H, W, 3).

    Args:
        frames: (..., h, w, 3) or (..., 3, h, w), uint8 or floating point in [0, 1].
        resize: another size of the same proportions is resized, as clients that always send one size need it.

    Raises:
        Refused: something else.
    """
    height, width, _ = entry.shape
    wanted = f"RGB frames of {width} x {height} pixels, uint8 or floating point in [0, 1]"
    is_array = isinstance(frames, np.ndarray) and 3 <= frames.ndim <= 4 and frames.size > 0
    if not is_array or frames.dtype.kind not in "uf" or 3 not in (frames.shape[-1], frames.shape[-3]):
        raise bad(name, kind(frames), f"an array, {wanted}")
    came = pixels(frames)
    if frames.shape[-1] != 3:
        frames = np.moveaxis(frames, -3, -1)  # (..., h, w, 3)
    if came == (height, width):
        return _bytes(name, frames, wanted)
    got = f"frames of {came[1]} x {came[0]} pixels"
    if not resize:
        raise bad(name, got, wanted)
    if abs(came[0] * width - came[1] * height) > max(came[0] * width, came[1] * height) / 50:
        pad = f"openpi_client.image_tools.resize_with_pad(image, {height}, {width})"
        raise bad(name, got, f"the proportions of {wanted}; crop them as the training data was, or pad them: {pad}")
    if not all(SMALLEST <= side <= LARGEST for side in came):
        raise bad(name, got, f"{wanted}; others are resized from {SMALLEST} to {LARGEST} pixels a side")
    frames = _bytes(name, frames, wanted)
    fit = Fit((height, width), crop=False)
    return np.stack([fit(each) for each in frames.reshape(-1, *came, 3)]).reshape(*frames.shape[:-3], *entry.shape)


def pixels(frames: np.ndarray) -> tuple[int, int]:
    """Height and width of frames (..., h, w, 3) or (..., 3, h, w)."""
    return frames.shape[-3:-1] if frames.shape[-1] == 3 else frames.shape[-2:]


def _bytes(name: str, frames: np.ndarray, wanted: str) -> np.ndarray:
    """uint8 (..., h, w, 3), contiguous; k / 255 becomes k."""
    if frames.dtype == np.uint8 and frames.flags.c_contiguous:
        return frames
    if frames.dtype.kind == "f":
        if not (frames.min() >= -ROUNDING and frames.max() <= 1 + ROUNDING):  # both are false for what is not a number
            raise bad(name, "values outside [0, 1]", wanted)
        frames = frames.astype(np.float32, copy=False)
    elif frames.dtype != np.uint8:
        raise bad(name, kind(frames), wanted)
    made = np.empty(frames.shape, np.uint8)
    for one, into in zip(frames.reshape(-1, *frames.shape[-3:]), made.reshape(-1, *frames.shape[-3:])):
        colours = [one[..., colour] for colour in range(3)]
        if one.dtype != np.uint8:
            colours = [cv2.convertScaleAbs(each, alpha=255.0) for each in colours]
        cv2.merge(colours, into)  # several times as fast as a copy by NumPy
    return made


class Window:
    """A history for a client that sends one observation at a time.

    Args:
        query_steps: control steps between two observations of a client that does not count them.
    """

    def __init__(self, horizon: Horizon, entries: Mapping[str, ObservationEntry], query_steps: int) -> None:
        self._offsets, self._entries, self._query_steps = horizon.history_offsets, entries, query_steps
        self._seen: deque[tuple[int, Mapping[str, np.ndarray]]] = deque()  # steps grow

    def clear(self) -> None:
        self._seen.clear()

    def goes_back(self, step: int | None) -> bool:
        """Whether a step is not after the newest one, as at the start of another episode."""
        return step is not None and bool(self._seen) and step <= self._seen[-1][0]

    def add(self, observation: Mapping[str, np.ndarray], step: int | None = None) -> int:
        """Entry -> (*shape), seen at a control step; returns how many steps after the one before, 0 for the first."""
        before = self._seen[-1][0] if self._seen else None
        if step is None:
            step = 0 if before is None else before + self._query_steps
        self._seen.append((step, observation))
        while len(self._seen) > 1 and self._seen[1][0] <= step + self._offsets[0]:
            self._seen.popleft()  # the next one is old enough for the oldest frame of every plan to come
        return 0 if before is None else step - before

    def history(self) -> dict[str, np.ndarray]:
        """Entry -> (steps, *shape): for every time of the history the newest observation that is not newer than it;
        the oldest one for times before that."""
        now = self._seen[-1][0]
        chosen = [self._at(now + offset) for offset in self._offsets]
        return {
            name: np.stack([each[name] for each in chosen[len(chosen) - entry.steps :]])
            for name, entry in self._entries.items()
        }

    def _at(self, step: int) -> Mapping[str, np.ndarray]:
        return next((seen for at, seen in reversed(self._seen) if at <= step), self._seen[0][1])


def picked(values: np.ndarray, offsets: tuple[int, ...], steps: int) -> np.ndarray | None:
    """Of a history (T, ...) with one entry per control step those `steps` that a policy reads; one that has just them
    already as it is; None for another length."""
    if len(values) == steps:
        return values
    return values[[offset - 1 for offset in offsets[-steps:]]] if len(values) > -offsets[0] else None


def histories(observation: Mapping[str, np.ndarray], frames: int) -> list[dict[str, np.ndarray]]:
    """Entry -> (steps, ...) becomes one observation per frame of the history, oldest first; where an entry has fewer
    steps, which are the newest, its oldest one stands for those before."""
    return [
        {name: values[max(len(values) - frames + index, 0)] for name, values in observation.items()}
        for index in range(frames)
    ]


class RateWatch:
    """Measures control steps by the clock.

    A robot may rest while it waits for a plan, or go on: a step lasts at least the time from an answer to the next
    request, and at most the time from one request to the next, by the number of steps between them.

    Args:
        step_seconds: of the training data; None: not known, and nothing is measured.
    """

    def __init__(self, step_seconds: float | None) -> None:
        self._trained = step_seconds
        self._intervals: deque[tuple[float, float]] = deque(maxlen=INTERVALS)  # shortest and longest step, seconds
        self._asked = self._answered = 0.0

    def clear(self) -> None:
        """An episode begins."""
        self._intervals.clear()
        self._asked = 0.0

    def asked(self, now: float, steps: int) -> str | None:
        """A request came, that many control steps after the one before (0: not known); what to note, if anything.

        Args:
            now: seconds of a steady clock.
        """
        if self._asked and self._trained is not None and steps:
            self._intervals.append(((now - self._answered) / steps, (now - self._asked) / steps))
        self._asked = self._answered = now
        if len(self._intervals) < INTERVALS:
            return None
        shortest, longest = np.median(np.array(self._intervals), axis=0)
        return self.judge(shortest, "no more than ", fast=False) or self.judge(longest, "no less than ", slow=False)

    def answered(self, now: float) -> None:
        self._answered = now

    def judge(self, seconds: float, bound: str = "", slow: bool = True, fast: bool = True) -> str | None:
        """What is to be noted about control steps of that length, if anything."""
        if self._trained is None or not seconds > 0:
            return None
        ratio = seconds / self._trained
        if not (slow and ratio > TOLERANCE) and not (fast and ratio < 1 / TOLERANCE):
            return None
        times = f"stretched {ratio:.3g} times" if ratio > 1 else f"squeezed to {ratio:.2g} of their length"
        rate = f"{1 / self._trained:.3g} Hz"
        return (
            f"control steps come at {bound}{1 / seconds:.3g} Hz, those of the training data at {rate}: history and "
            f"actions are {times}; run the client at {rate}"
        )
