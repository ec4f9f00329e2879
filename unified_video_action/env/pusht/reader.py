"""Where the agent and the T are in pictures of PushT, and whether both are there and whole.

Every pixel's colour is taken as a mixture of two drawn colours, which gives the shares of it that agent and T cover. A
disc and a T, with edges one pixel wide, are then fitted to these shares by least squares, which finds positions to a
fraction of a pixel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from itertools import combinations

import numpy as np
from scipy import ndimage

from unified_video_action.env.pusht.env import render_states
from unified_video_action.env.pusht.geometry import AGENT_RADIUS, BAR, STEM, TABLE_SIZE
from unified_video_action.env.pusht.table import Table
from unified_video_action.env.state_reader import Readings, StateReader

COLOURS = {  # as drawn; T and agent have an outline and a lighter inside
    "table": [(255, 255, 255)],
    "wall": [(211, 211, 211)],
    "goal": [(144, 238, 144)],
    "block": [(119, 136, 153), (143, 163, 184)],
    "agent": [(65, 105, 225), (78, 126, 255)],
}
BITS = 6  # of each colour channel that decide what a pixel shows
CENTROID = np.array([0.0, 40.714])  # of the T's area, in its own frame
AREAS = {"agent": 707.0, "block": 6300.0}  # square table pixels
DRAWN_SHIFT = np.array([0.4, 0.7])  # x, y by which the T is drawn beside its pose, since pygame rounds its corners
OUTLINE_WIDTH = 1.5  # by which the drawn outline makes the T larger on every side
REACH = 96.0  # half the side of the square around the T's centroid that its fit looks at
SPECK = 0.15  # share of an object's area below which a patch of its colour is not counted
OVERLAP = {"agent": 0.4, "block": 0.75}  # least intersection over union of a whole object with its fitted shape
STARTS = 12  # angles from which the T's fit may start
STEPS = 6  # of each fit
EDGE = TABLE_SIZE / 96  # least width of the edges of fitted shapes, table pixels: sharper ones are harder to find
CHUNK = 256  # frames at a time


class PushTReader(StateReader):
    """Reads square frames of 64 px or more, in pixels of the 512 px table.

    The block's position is the simulator's, the middle of the outer side of the T's bar.

    Args:
        simulates: whether `simulate` is to be asked; it draws the usual goal.
    """

    unit = "px"

    def __init__(self, simulates: bool = True) -> None:
        self.simulates = simulates

    def __call__(self, frames: np.ndarray) -> Readings:
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
            raise ValueError(f"frames must be uint8 (..., S, S, 3), got {frames.dtype} {frames.shape}")
        if frames.shape[-2] != frames.shape[-3] or frames.shape[-2] < 64:
            raise ValueError(f"frames must be square and at least 64 px wide, got {frames.shape}")
        lead, flat = frames.shape[:-3], frames.reshape(-1, *frames.shape[-3:])
        chunks = [flat[first : first + CHUNK] for first in range(0, max(len(flat), 1), CHUNK)]
        with ThreadPoolExecutor(min(len(chunks), len(os.sched_getaffinity(0)))) as pool:
            parts = list(pool.map(_read, chunks))
        joined = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Readings)}
        return Readings(**{name: values.reshape((*lead, *values.shape[1:])) for name, values in joined.items()})

    def in_picture(self, actions: np.ndarray, size: int) -> np.ndarray:
        return actions * (size / TABLE_SIZE)

    def simulate(self, states: np.ndarray, actions: np.ndarray, offsets: Sequence[int], size: int) -> np.ndarray | None:
        if not self.simulates:
            return None
        table, reached = Table(), np.empty((len(states), len(offsets), 5))
        for now, chunk, after in zip(states, actions, reached, strict=True):
            table.place(tuple(now[:2]), tuple(now[2:]))
            for step in range(1, max(offsets) + 1):
                table.move(tuple(chunk[min(step, len(chunk)) - 1]))
                after[np.equal(offsets, step)] = *table.agent, *table.pose
        return render_states(reached.reshape(-1, 5), size=size).reshape(*reached.shape[:2], size, size, 3)


def _read(frames: np.ndarray) -> Readings:
    """uint8 (N, S, S, 3) -> readings (N,)."""
    frames = _shrunk(frames)
    pixel = TABLE_SIZE / frames.shape[1]  # table pixels
    agent, block = _shares(frames)
    position, one_agent = _find("agent", agent, np.zeros_like(agent), pixel)
    fitted, one_block = _find("block", block, agent, pixel)  # what the agent hides does not count
    offset = np.stack([-np.sin(fitted[:, 2]), np.cos(fitted[:, 2])], axis=1) * CENTROID[1]
    turned = (fitted[:, 2] % (2 * np.pi)).astype(np.float64)
    return Readings(position.astype(np.float64), fitted[:, :2] - offset - DRAWN_SHIFT, turned, one_agent, one_block)


def _shrunk(frames: np.ndarray) -> np.ndarray:
    """Large frames averaged over squares of whole pixels, so that sides of about 96 to 191 are left."""
    size = frames.shape[1]
    factor = next(f for f in range(max(size // 96, 1), 0, -1) if size % f == 0)
    if factor == 1:
        return frames
    small = size // factor
    blocks = frames.reshape(-1, small, factor, small, factor, 3)
    return blocks.mean((2, 4), dtype=np.float32).round().astype(np.uint8)


def _shares(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of agent and of T in every pixel (N, S, S), float32 in [0, 1]."""
    cut = (frames >> (8 - BITS)).astype(np.int32)
    index = (cut[..., 0] << 2 * BITS) | (cut[..., 1] << BITS) | cut[..., 2]
    return tuple(table[index] for table in _share_tables())


@cache
def _share_tables() -> tuple[np.ndarray, np.ndarray]:
    """Shares of agent and of T by colour (2 ** (3 BITS),): each colour is taken as a mixture of the nearest pair."""
    levels = (np.arange(2**BITS) + 0.5) * 2 ** (8 - BITS) - 0.5
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    shades = [(name, np.array(shade, np.float64)) for name, each in COLOURS.items() for shade in each]
    best, shares = np.full(len(colours), np.inf), {name: np.zeros(len(colours), np.float32) for name in COLOURS}
    for (first, start), (second, end) in combinations(shades, 2):
        if second == "wall" or first != "wall":  # walls are thin lines: beside anything but the table they are rare
            way = end - start
            part = np.clip((colours - start) @ way / (way @ way), 0, 1)  # of the second shade
            miss = np.square(colours - start - part[:, None] * way).sum(1)
            nearer = miss < best
            best[nearer] = miss[nearer]
            for name, values in shares.items():
                mixed = (name == first) * (1 - part) + (name == second) * part
                values[nearer] = mixed[nearer]
    return shares["agent"], shares["block"]


def _patches(mask: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Connected patches of mask (N, S, S) of at least that area in image pixels: how many there are in each frame (N,),
    and the centre of the largest (N, 2), x, y in image pixels, NaN where there is none."""
    within_frames = np.zeros((3, 3, 3), bool)
    within_frames[1] = True
    labels, found = ndimage.label(mask, within_frames)
    at = np.nonzero(labels)  # frame, row, column
    own = labels[at]
    area = np.bincount(own, minlength=found + 1)
    frame, row, column = (np.bincount(own, values, minlength=found + 1) / np.maximum(area, 1) for values in at)
    counted = np.argsort(area, kind="stable")
    counted = counted[area[counted] >= least]  # from the smallest to the largest
    frame = frame[counted].astype(int)
    centre = np.full((len(mask), 2), np.nan)
    centre[frame] = np.stack([column, row], axis=1)[counted]  # the last one written is the largest
    return np.bincount(frame, minlength=len(mask)), centre


def _around(
    centre: np.ndarray, reach: float, size: int, pixel: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The pixels within `reach` table pixels of centres (N, 2): their rows and columns (N, P), table positions x and y
    (N, P) and whether they are in the frame (N, P)."""
    half = int(np.ceil(reach / pixel))
    steps = np.arange(-half, half + 1)
    row = np.round(centre[:, 1]).astype(int)[:, None, None] + steps[:, None]  # (N, p, 1)
    column = np.round(centre[:, 0]).astype(int)[:, None, None] + steps  # (N, 1, p)
    row, column = (each.reshape(len(centre), len(steps) ** 2) for each in np.broadcast_arrays(row, column))
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    row, column = np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)
    x, y = (np.float32(pixel) * (each.astype(np.float32) + np.float32(0.5)) for each in (column, row))
    return row, column, x, y, inside


def _fit(
    shape: str, start: np.ndarray, x: np.ndarray, y: np.ndarray, share: np.ndarray, weight: np.ndarray, pixel: float
) -> np.ndarray:
    """Poses (N, 2 or 3) whose drawn shapes are nearest to the shares (N, P) at table positions x, y (N, P)."""
    pose, steps = start.astype(np.float32), np.array([0.5, 0.5, 0.01], np.float32)[: start.shape[1]]
    damping = 1e-3 * np.eye(len(steps), dtype=np.float32)
    for _ in range(STEPS):
        now = _drawn(shape, pose, x, y, pixel)
        slopes = np.stack(
            [(_drawn(shape, pose + step * unit, x, y, pixel) - now) / step for step, unit in
             zip(steps, np.eye(len(steps), dtype=np.float32))], axis=1
        )  # (N, k, P)  # fmt: skip
        weighted = slopes * weight[:, None]
        square = weighted @ slopes.transpose(0, 2, 1)  # (N, k, k)
        scale = square.diagonal(axis1=1, axis2=2)[:, None] * damping + 1e-6 * np.eye(len(steps), dtype=np.float32)
        change = np.linalg.solve(square + scale, weighted @ (share - now)[..., None])[..., 0]  # (N, k)
        pose = pose + np.clip(change, -20 * steps, 20 * steps)
    return pose


def _drawn(shape: str, pose: np.ndarray, x: np.ndarray, y: np.ndarray, pixel: float) -> np.ndarray:
    """Share of every pixel (N, P) that a disc at (N, 2), or a T with its centroid and angle at (N, 3), covers."""
    dx, dy = x - pose[:, :1], y - pose[:, 1:2]
    if shape == "agent":
        outside = np.sqrt(dx * dx + dy * dy) - AGENT_RADIUS
    else:
        cos, sin = np.cos(pose[:, 2:]), np.sin(pose[:, 2:])
        u, v = cos * dx + sin * dy, cos * dy - sin * dx + CENTROID[1].astype(np.float32)
        outside = np.minimum(*(_outside(u, v, part) for part in (BAR, STEM))) - OUTLINE_WIDTH
    return np.clip(0.5 - outside / max(pixel, EDGE), 0, 1)


def _outside(u: np.ndarray, v: np.ndarray, rectangle: tuple[float, float, float, float]) -> np.ndarray:
    """Distance of points from a rectangle along the nearer of its axes, negative inside."""
    x0, x1, y0, y1 = rectangle
    return np.maximum(np.abs(u - (x0 + x1) / 2) - (x1 - x0) / 2, np.abs(v - (y0 + y1) / 2) - (y1 - y0) / 2)


def _find(name: str, share: np.ndarray, hidden: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """What is fitted to the largest patch of shares (N, S, S): see `_drawn`, NaN where there is none; and whether one
    whole object is there (N,): one patch, of its area, that overlaps with the fitted shape."""
    count, centre = _patches(share > 0.5, SPECK * AREAS[name] / pixel**2)
    found = np.flatnonzero(count)
    reach = REACH if name == "block" else 2 * AGENT_RADIUS + pixel
    row, column, x, y, inside = _around(centre[found], reach, share.shape[1], pixel)
    local, weight = share[found[:, None], row, column], inside * (1 - hidden[found[:, None], row, column])
    centre = (centre[found] + 0.5) * pixel
    turns = np.arange(STARTS if name == "block" else 1) * 2 * np.pi / STARTS
    starts = [np.column_stack([centre, np.full(len(found), turn)]).astype(np.float32) for turn in turns]
    if name == "agent":
        starts = [starts[0][:, :2]]
    misses = [(weight * (_drawn(name, start, x, y, pixel) - local) ** 2).sum(1) for start in starts]
    start = np.stack(starts)[np.argmin(misses, axis=0), np.arange(len(found))]
    fitted = _fit(name, start, x, y, local, weight, pixel)
    shown, wanted = local > 0.5, _drawn(name, fitted, x, y, pixel) > 0.5
    common, union = (weight * (shown & wanted)).sum(1), (weight * (shown | wanted)).sum(1)
    pose, one = np.full((len(share), start.shape[1]), np.nan, np.float32), np.zeros(len(share), bool)
    pose[found] = fitted
    one[found] = (common >= OVERLAP[name] * union) & (common > 0.2 * AREAS[name] / pixel**2) & (count[found] == 1)
    return pose, one
