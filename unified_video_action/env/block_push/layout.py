"""The table of the block pushing task in numbers: sizes, the state vector, and where an episode starts.

Poses are those of the multi-modal block pushing task of IBC (Florence et al. 2021), as BET and Diffusion Policy use it:
the robot stands at the origin, x points away from it and y to its left; metres and radians.
"""

from __future__ import annotations

import numpy as np

COLOURS = ("red", "green")  # of the blocks, and of the squares
LOW, HIGH = np.array([0.15, -0.5]), np.array([0.7, 0.5])  # where the effector may go, xy
STEP = 0.03  # the effector's longest way in a control step
EFFECTOR_RADIUS = 0.012
BLOCK_SIDE, BLOCK_HEIGHT = 0.05, 0.04
SQUARE_SIDE = 0.12
TOLERANCE = 0.05  # a block is in a square when their centres are closer

EFFECTOR_START = np.array([0.3, -0.4])
BLOCK_CENTRE, BLOCK_SPREAD = np.array([0.4, -0.2]), np.array([0.1, 0.15])  # where blocks start: centre +- spread
BLOCK_DISTANCE = 0.1  # at least, along x
SQUARE_CENTRE, SQUARE_SPREAD = np.array([0.4, 0.2]), np.array([0.005, 0.0075])
SQUARE_OFFSET = 0.12  # along x: one square to either side of the centre
SQUARE_TURN = np.pi / 30  # at most

STATE_SIZE = 14  # effector x, y; x, y, angle of the red block, the green block, the red square, the green square
PLACES = (slice(0, 2), slice(2, 4), slice(5, 7), slice(8, 10), slice(11, 13))  # their x and y in the state
PAIRS = {f"{block}_in_{square}": (i, j) for i, block in enumerate(COLOURS) for j, square in enumerate(COLOURS)}


def start_state(rng: np.random.Generator) -> np.ndarray:
    """A start drawn at random: state (14,)."""
    while True:
        blocks = BLOCK_CENTRE + rng.uniform(-1, 1, (2, 2)) * BLOCK_SPREAD
        if abs(blocks[0, 0] - blocks[1, 0]) > BLOCK_DISTANCE:
            break
    squares = SQUARE_CENTRE + rng.uniform(-1, 1, (2, 2)) * SQUARE_SPREAD
    squares[:, 0] += SQUARE_OFFSET * rng.permutation([-1, 1])
    block_angles, square_angles = rng.uniform(0, np.pi, 2), rng.uniform(-1, 1, 2) * SQUARE_TURN
    return join_state(EFFECTOR_START, np.c_[blocks, block_angles], np.c_[squares, square_angles])


def join_state(effector: np.ndarray, blocks: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Effector (2,), blocks (2, 3) and squares (2, 3) -> state (14,)."""
    return np.concatenate([effector, blocks.ravel(), squares.ravel()])


def split_state(state: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State (14,) -> effector (2,), blocks (2, 3) and squares (2, 3): x, y, angle of the red and of the green one."""
    return state[:2], state[2:8].reshape(2, 3), state[8:].reshape(2, 3)


def state_targets(states: np.ndarray) -> np.ndarray:
    """States (..., 14) -> (..., 10) as a model predicts them: x and y of effector, blocks and squares, metres."""
    return np.concatenate([states[..., place] for place in PLACES], axis=-1)


def blocks_in_squares(state: np.ndarray) -> np.ndarray:
    """(2, 2) bool: whether block i (row) is in square j."""
    _, blocks, squares = split_state(state)
    return np.linalg.norm(blocks[:, None, :2] - squares[None, :, :2], axis=-1) < TOLERANCE
