"""The table in pybullet: a cylinder on two sliding axes, two blocks, two painted squares, and a camera."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from unified_video_action.env.block_push.layout import (
    BLOCK_HEIGHT,
    BLOCK_SIDE,
    EFFECTOR_RADIUS,
    SQUARE_SIDE,
    join_state,
    split_state,
)
from unified_video_action.env.system_libraries import explain_missing_libraries


@contextmanager
def silence() -> Iterator[None]:
    """Keep what a C library writes to standard error to itself; pybullet names its build whenever it is imported."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 2)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 2)
            os.close(kept)


with explain_missing_libraries(), silence():
    import pybullet

SUBSTEPS = 24  # of 1/240 s in a control step of 1/10 s
SETTLING = 24  # substeps in which blocks come to rest on the table after they were placed
BLOCK_MASS = 0.1  # kg
TABLE_FRICTION, BLOCK_FRICTION, EFFECTOR_FRICTION = 1.0, 0.5, 0.5  # of a contact: the product of both sides'
EFFECTOR_LENGTH, EFFECTOR_GAP = 0.12, 0.005  # of the cylinder, and between it and the table
EFFECTOR_FORCE = 100.0  # N along each axis, far more than blocks resist

BLOCK_RGBA = ((0.85, 0.08, 0.08, 1), (0.05, 0.6, 0.1, 1))
FRAME_RGBA = ((0.9, 0.25, 0.25, 1), (0.2, 0.7, 0.25, 1))  # a square's border
FILL_RGBA = ((1.0, 0.72, 0.72, 1), (0.7, 0.93, 0.7, 1))  # and what it encloses
EFFECTOR_RGBA = (0.13, 0.2, 0.45, 1)
TABLE_RGB = (209, 210, 203)  # fills what nothing is drawn on; drawing the table itself takes most of a frame's time
BORDER, PAINT = 0.015, 0.0008  # width of a square's border; height of each coat of paint

CAMERA, LOOKS_AT = (1.0, 0.0, 0.75), (0.25, 0.0, 0.0)  # opposite the robot, 45 degrees down, as in IBC
FOCAL_LENGTH = 0.803  # in widths of the frame
ASPECT = (4, 3)  # of the frame
NEAR, FAR = 0.05, 4.0
LIGHT = (0.4, -0.3, 1.0)  # where it comes from
SMOOTH_BELOW = 200  # frames of a smaller height are drawn at twice their size and averaged, for even edges


class Client:
    """pybullet's functions, all on one world without a window."""

    def __init__(self) -> None:
        self.number = pybullet.connect(pybullet.DIRECT)
        if self.number < 0:
            raise RuntimeError("pybullet gives this process no further world: close environments that are done")

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = partial(getattr(pybullet, name), physicsClientId=self.number)
        setattr(self, name, function)  # looked up once: a control step has dozens of calls
        return function


class Scene:
    """One world, to be closed after use. Lengths in metres, angles in radians."""

    def __init__(self) -> None:
        self._bullet = Client()
        self._effector: int | None = None  # before the first `build`

    def close(self) -> None:
        self._bullet.disconnect()

    def build(self, state: np.ndarray) -> None:
        """Start from nothing with everything as `state` (14,) says: what follows owes nothing to earlier episodes."""
        bullet = self._bullet
        bullet.resetSimulation()
        bullet.setGravity(0, 0, -9.8)
        bullet.setPhysicsEngineParameter(fixedTimeStep=1 / 240, deterministicOverlappingPairs=1)
        effector, blocks, self._squares = (part.copy() for part in split_state(state))
        slab = bullet.createCollisionShape(pybullet.GEOM_BOX, halfExtents=(1.0, 1.5, 0.05))
        table = bullet.createMultiBody(0, slab, basePosition=(0.35, 0, -0.05))
        bullet.changeDynamics(table, -1, lateralFriction=TABLE_FRICTION)
        bullet.changeVisualShape(table, -1, rgbaColor=(0, 0, 0, 0))
        side, inner = SQUARE_SIDE / 2, SQUARE_SIDE / 2 - BORDER
        for pose, frame, fill in zip(self._squares, FRAME_RGBA, FILL_RGBA, strict=True):
            self._box((side, side, PAINT), frame, pose, height=0)
            self._box((inner, inner, PAINT), fill, pose, height=PAINT)
        half = BLOCK_SIDE / 2, BLOCK_SIDE / 2, BLOCK_HEIGHT / 2
        poses = zip(blocks, BLOCK_RGBA, strict=True)
        self._blocks = [self._box(half, rgba, pose, BLOCK_HEIGHT / 2, BLOCK_MASS) for pose, rgba in poses]
        for block in self._blocks:
            bullet.changeDynamics(block, -1, lateralFriction=BLOCK_FRICTION)
        self._effector = self._add_effector()
        self._target = effector
        for axis in (0, 1):
            bullet.resetJointState(self._effector, axis, effector[axis])
        self._advance(np.repeat(effector[None], SETTLING, axis=0))

    def move(self, target: np.ndarray) -> None:
        """One control step in which the effector goes to `target` (2,) at an even speed."""
        way = np.arange(1, SUBSTEPS + 1)[:, None] / SUBSTEPS
        self._advance(self._target + way * (target - self._target))  # (SUBSTEPS, 2)
        self._target = np.array(target)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leaves everything as it was."""
        target, world = self.target, self._bullet.saveState()
        try:
            yield
        finally:
            self._bullet.restoreState(world)
            self._bullet.removeState(world)
            self._target = target

    @property
    def target(self) -> np.ndarray:
        """(2,) where the effector was last sent."""
        if self._effector is None:
            raise RuntimeError("the environment was never reset: call reset(seed=...) before step")
        return self._target.copy()

    @property
    def state(self) -> np.ndarray:
        """(14,), see `layout`; angles of blocks in [-pi, pi]."""
        poses = [self._bullet.getBasePositionAndOrientation(block) for block in self._blocks]
        angles = [self._bullet.getEulerFromQuaternion(turn)[2] for _, turn in poses]
        blocks = np.array([(*position[:2], angle) for (position, _), angle in zip(poses, angles, strict=True)])
        effector = np.array([joint[0] for joint in self._bullet.getJointStates(self._effector, (0, 1))])
        return join_state(effector, blocks, self._squares)

    def render(self, height: int, width: int) -> np.ndarray:
        """What the camera sees: uint8 (height, width, 3)."""
        times = 2 if height < SMOOTH_BELOW else 1
        size = times * height, times * width
        view = self._bullet.computeViewMatrix(CAMERA, LOOKS_AT, (0, 0, 1))
        angle = np.degrees(2 * np.arctan(height / width / (2 * FOCAL_LENGTH)))
        projection = self._bullet.computeProjectionMatrixFOV(angle, width / height, NEAR, FAR)
        _, _, pixels, depth, _ = self._bullet.getCameraImage(
            *reversed(size),
            view,
            projection,
            lightDirection=LIGHT,
            shadow=0,
            flags=pybullet.ER_NO_SEGMENTATION_MASK,
            renderer=pybullet.ER_TINY_RENDERER,
        )
        pixels, drawn = np.reshape(pixels, (*size, 4))[..., :3], np.reshape(depth, (*size, 1)) < 1
        frame = np.where(drawn, pixels, np.uint8(TABLE_RGB))  # (times * height, times * width, 3)
        if times == 1:
            return frame
        return frame.reshape(height, times, width, times, 3).mean(axis=(1, 3)).round().astype(np.uint8)

    def _advance(self, targets: np.ndarray) -> None:
        """One substep for each of the effector's targets (n, 2)."""
        for target in targets.tolist():
            self._bullet.setJointMotorControlArray(
                self._effector,
                (0, 1),
                pybullet.POSITION_CONTROL,
                targetPositions=target,
                forces=(EFFECTOR_FORCE, EFFECTOR_FORCE),
                positionGains=(1.0, 1.0),
                velocityGains=(1.0, 1.0),
            )
            self._bullet.stepSimulation()

    def _box(
        self, half: tuple[float, ...], rgba: tuple[float, ...], pose: np.ndarray, height: float, mass: float = 0.0
    ) -> int:
        """A box at `pose` (3,); without a mass it is a picture that nothing touches."""
        x, y, angle = pose
        box = {"shapeType": pybullet.GEOM_BOX, "halfExtents": half}
        shape = self._bullet.createCollisionShape(**box) if mass else -1
        picture = self._bullet.createVisualShape(**box, rgbaColor=rgba, specularColor=(0, 0, 0))
        turn = self._bullet.getQuaternionFromEuler((0, 0, angle))
        return self._bullet.createMultiBody(mass, shape, picture, (x, y, height), turn)

    def _add_effector(self) -> int:
        """A cylinder that slides along x and y and can neither tilt nor leave its height."""
        bullet = self._bullet
        size = {"radius": EFFECTOR_RADIUS}
        cylinder = bullet.createCollisionShape(pybullet.GEOM_CYLINDER, height=EFFECTOR_LENGTH, **size)
        picture = bullet.createVisualShape(
            pybullet.GEOM_CYLINDER, length=EFFECTOR_LENGTH, rgbaColor=EFFECTOR_RGBA, specularColor=(0, 0, 0), **size
        )
        nowhere = [(0.0, 0.0, 0.0)] * 2
        effector = bullet.createMultiBody(
            baseMass=0,
            basePosition=(0, 0, EFFECTOR_GAP + EFFECTOR_LENGTH / 2),
            linkMasses=[1.0, 1.0],
            linkCollisionShapeIndices=[-1, cylinder],
            linkVisualShapeIndices=[-1, picture],
            linkPositions=nowhere,
            linkOrientations=[(0, 0, 0, 1)] * 2,
            linkInertialFramePositions=nowhere,
            linkInertialFrameOrientations=[(0, 0, 0, 1)] * 2,
            linkParentIndices=[0, 1],
            linkJointTypes=[pybullet.JOINT_PRISMATIC] * 2,
            linkJointAxis=[(1, 0, 0), (0, 1, 0)],
        )
        bullet.changeDynamics(effector, 1, lateralFriction=EFFECTOR_FRICTION)
        return effector
