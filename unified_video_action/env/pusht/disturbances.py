"""Visual disturbances of PushT (paper's Table III): pictures that no policy was trained on, of the same physics."""

from __future__ import annotations

import numpy as np

from unified_video_action.env.system_libraries import explain_missing_libraries

with explain_missing_libraries():
    import cv2

DISTURBANCES = ("background", "objects", "goal")
SIDE = 512  # pixels of the undisturbed picture, which is drawn without blended edges
TABLE, GOAL = (255, 255, 255), (144, 238, 144)  # RGB, as the simulator draws them
BLOCK, AGENT = (119, 136, 153), (65, 105, 225)
APART = 80.0  # least distance in RGB between things that must differ
LEAST_CHANGE = 120.0  # distance in RGB of a colour from the one it replaces, at full strength
MOST_OBJECTS = 8
CORNERS = (3, 4, 5, 32)  # of an object: a triangle to what looks like a disc
RADII = (14.0, 34.0)  # pixels
STREAM = 0x100C  # separates these random numbers from others of the same seed


class Disturbance:
    """How an episode's pictures differ from the plain ones, sampled for every episode.

    background: another colour of the table. goal: another colour of the goal. objects: coloured shapes that lie flat
    under everything, and that nothing can touch. The T, the agent and the goal still differ from each other.
    `strength`, in (0, 1], is how far colours are from the plain ones, and the share of MOST_OBJECTS objects.
    """

    def __init__(self, kind: str, strength: float = 1.0) -> None:
        if kind not in DISTURBANCES:
            raise ValueError(f"disturbance must be one of {', '.join(DISTURBANCES)}, or null, got {kind!r}")
        if not 0 < strength <= 1:
            raise ValueError(f"disturbance_strength must be above 0 and at most 1, got {strength}")
        self.kind, self.strength = kind, strength

    def begin(self, seed: int) -> None:
        """Draw what the pictures of the episode with this seed show in place of the table and the goal."""
        rng = np.random.default_rng([STREAM, seed])
        table, goal = TABLE, GOAL
        if self.kind == "background":
            table = recolour(rng, TABLE, self.strength, apart_from=(GOAL, BLOCK, AGENT))
        elif self.kind == "goal":
            goal = recolour(rng, GOAL, self.strength, apart_from=(TABLE, BLOCK, AGENT))
        canvas = np.full((SIDE, SIDE, 3), table, np.uint8)
        if self.kind == "objects":
            for _ in range(max(1, round(self.strength * MOST_OBJECTS))):
                add_object(rng, canvas)
        self._table, self._goal = packed(canvas), packed(goal)

    def apply(self, pixels: np.ndarray) -> None:
        """Change a plain picture, uint32 (SIDE, SIDE) of 0x00RRGGBB, in place."""
        table, goal = pixels == packed(TABLE), pixels == packed(GOAL)
        np.copyto(pixels, self._table, where=table)
        np.copyto(pixels, self._goal, where=goal)


def recolour(
    rng: np.random.Generator, plain: tuple[int, ...], strength: float, apart_from: tuple[tuple[int, ...], ...]
) -> tuple[int, ...]:
    """A random colour, `strength` of the way from the plain one, that differs from the others."""
    start = np.array(plain, np.float64)
    while True:
        colour = start + strength * (rng.uniform(0, 255, 3) - start)
        away = [np.linalg.norm(colour - other) for other in apart_from]
        if min(away) >= APART and np.linalg.norm(colour - start) >= strength * LEAST_CHANGE:
            return tuple(colour.round().astype(int).tolist())


def add_object(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Paint one shape somewhere on the canvas, uint8 (SIDE, SIDE, 3)."""
    colour = recolour(rng, TABLE, 1.0, apart_from=(GOAL, BLOCK, AGENT))
    corners, radius = rng.choice(CORNERS), rng.uniform(*RADII)
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    centre = rng.uniform(RADII[1], SIDE - RADII[1], 2)
    points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (corners, 2)
    cv2.fillConvexPoly(canvas, points.round().astype(np.int32), colour)


def packed(colours: np.ndarray | tuple[int, ...]) -> np.ndarray:
    """RGB (..., 3) -> 0x00RRGGBB uint32 (...)."""
    red, green, blue = np.moveaxis(np.asarray(colours, np.uint32), -1, 0)
    return red << 16 | green << 8 | blue
