"""Synthetic recordings of a hand-held gripper: its camera moves over a textured table, along poses that are known.

What the camera sees follows from its pose alone (and the gripper's fingers from its opening), so a model can learn from
frames how the camera moved, and be measured against the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numcodecs.abc import Codec
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from unified_video_action.dataset.formats.pictures import JpegCodec, JpegXlCodec
from unified_video_action.demos.collecting import Attempt, ZarrCollector, option
from unified_video_action.poses import pose_matrix, to_vector

CAMERAS = ("pinhole", "fisheye")
CODECS = {"jpegxl": JpegXlCodec, "jpeg": JpegCodec}
TABLE = 1.6  # metres of the texture's side; beyond it repeats
TEXELS = 1024  # along that side
SAMPLES = 2  # of a pixel along each axis
POINT_SECONDS = 1.2  # from one point that the gripper visits to the next
WIDEST = 0.08  # metres of opening
# The camera sits above and behind the fingers' tips, where the gripper's pose is; x to the right, y down, z forward.
CAMERA_IN_GRIPPER = pose_matrix(np.array([0.0, -0.08, -0.16]), np.eye(3))
DOWN = Rotation.from_matrix([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])  # looks at the table from above


@dataclass(frozen=True)
class Collector(ZarrCollector):
    """Episodes in UMI's published layout, one per attempt number. Raises ValueError for a value out of range."""

    seed: int = option(0, "decides tables and paths")
    image_size: int = option(224, "pixels of a frame's side")
    fps: float = option(59.94, "rows per second")
    seconds: float = option(8.0, "length of an episode")
    camera: str = option("pinhole", "pinhole or fisheye")
    field_of_view: float = option(100.0, "degrees across a frame")
    speed: float = option(1.0, "of the gripper; 1: about 0.3 m/s")
    tables: int = option(0, "different tables, which episodes take in turn; 0: each has its own")
    turning: float = option(0.25, "radians by which the gripper tilts and turns, standard deviation")
    light: float = option(0.0, "how much the light's colour differs over the table, 0 to 1: frames then tell places")
    codec: str = option("jpegxl", "jpegxl or jpeg: of the frames, each in a chunk of its own")

    def __post_init__(self) -> None:
        for name, known in (("camera", CAMERAS), ("codec", CODECS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {' or '.join(known)}")
        if self.image_size < 16:
            raise ValueError(f"image_size={self.image_size}: expected 16 pixels or more")
        most = 150 if self.camera == "pinhole" else 200
        for name, low, high in (("field_of_view", 20, most), ("fps", 1, 1000), ("seconds", 0.5, 3600)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected {low} to {high}")
        for name in ("speed", "turning", "tables"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number >= 0")
        if not 0 <= self.light <= 1:
            raise ValueError(f"light={self.light}: expected 0 to 1")

    def __call__(self, attempt: int) -> Attempt:
        return Attempt(True, episode=(episode(self, attempt), {}))

    def pictures(self) -> Codec:
        return CODECS[self.codec]()


def episode(scene: Collector, number: int) -> dict[str, np.ndarray]:
    """Episode `number` of a recording: array -> (T, ...); a function of its arguments."""
    table = number % scene.tables if scene.tables else number
    texture = lit(table_texture(np.random.default_rng([scene.seed, table, 0])), scene.light)
    poses, widths = trajectory(scene, np.random.default_rng([scene.seed, number, 1]))
    camera = CameraModel(scene)
    frames = [camera.picture(texture, pose, width) for pose, width in zip(poses, widths, strict=True)]
    vectors = to_vector(poses)
    return {
        "camera0_rgb": np.stack(frames),
        "robot0_eef_pos": vectors[:, :3].astype(np.float32),
        "robot0_eef_rot_axis_angle": vectors[:, 3:].astype(np.float32),
        "robot0_gripper_width": widths[:, None].astype(np.float32),
        "robot0_demo_start_pose": np.repeat(vectors[:1], len(vectors), axis=0),
        "robot0_demo_end_pose": np.repeat(vectors[-1:], len(vectors), axis=0),
    }


def table_texture(rng: np.random.Generator) -> np.ndarray:
    """uint8 (TEXELS, TEXELS, 3): smooth grain on a ground of some colour, with patches and discs; no two are alike."""
    texture = np.tile(rng.uniform(60, 190, 3), (TEXELS, TEXELS, 1))
    for cells, strength in ((8, 30.0), (32, 20.0), (128, 14.0)):  # blotches along a side, and how much they differ
        light, tint = rng.normal(0, strength, (cells, cells, 1)), rng.normal(0, strength / 3, (cells, cells, 3))
        noise = np.pad(light + tint, ((2, 2), (2, 2), (0, 0)), "wrap")
        scale = TEXELS // cells
        large = cv2.resize(noise, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        texture += large[2 * scale : 2 * scale + TEXELS, 2 * scale : 2 * scale + TEXELS]
    texture = np.clip(texture, 0, 255).astype(np.uint8)
    for _ in range(60):
        centre, size = rng.integers(0, TEXELS, 2), int(rng.integers(12, 70))
        colour = rng.integers(0, 256, 3).tolist()
        if rng.random() < 0.5:
            cv2.circle(texture, tuple(map(int, centre)), size // 2, colour, -1, cv2.LINE_AA)
        else:
            box = cv2.boxPoints((tuple(map(float, centre)), (size, size * rng.uniform(0.3, 1)), rng.uniform(0, 180)))
            cv2.fillPoly(texture, [np.round(box).astype(np.int32)], colour, cv2.LINE_AA)
    return cv2.GaussianBlur(texture, (0, 0), 1.0)


def lit(texture: np.ndarray, strength: float) -> np.ndarray:
    """A table under coloured lamps: red grows along x, green along y, blue against both; uint8 like `texture`.

    So the colour of any spot tells roughly where on the table it is.
    """
    wave = np.sin(((np.arange(TEXELS) + 0.5) / TEXELS - 0.5) * 2 * np.pi)  # repeats as the table does
    x, y = np.meshgrid(wave, wave)
    gain = 1 + strength * np.stack([x, y, -(x + y) / 2], axis=-1)
    return np.clip(texture * gain, 0, 255).astype(np.uint8)


def trajectory(scene: Collector, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Poses (T, 4, 4) of the gripper in the table's frame, z up from its surface, and openings (T,), metres.

    The gripper visits random points, as smoothly as a cubic spline, and trembles a little.
    """
    times = np.arange(round(scene.seconds * scene.fps)) / scene.fps
    progress = times * scene.speed / POINT_SECONDS  # points visited so far
    knots = np.arange(-1, np.ceil(progress[-1]) + 3)
    points = np.column_stack([rng.normal(0, 0.16, (len(knots), 2)), rng.uniform(0.12, 0.42, len(knots))])
    turns = rng.normal(0, scene.turning, (len(knots), 3))
    position = CubicSpline(knots, points)(progress)
    position[:, 2] = np.maximum(position[:, 2], 0.05)
    turn = CubicSpline(knots, turns)(progress)
    for _ in range(3):  # a held gripper trembles at a few hertz
        frequency, phase = rng.uniform(3, 8), rng.uniform(0, 2 * np.pi, 6)
        sway = np.sin(2 * np.pi * frequency * times[:, None] + phase) * min(scene.speed, 1.0)
        position, turn = position + 3e-4 * sway[:, :3], turn + 2e-3 * sway[:, 3:]
    rotation = (DOWN * Rotation.from_rotvec(turn)).as_matrix()  # (T, 3, 3)
    opening = CubicSpline(knots, rng.choice([0.005, WIDEST], len(knots)))(progress)
    return pose_matrix(position, rotation), np.clip(opening, 0.0, WIDEST)


class CameraModel:
    """A camera on the gripper, square pixels, the optical axis in the middle."""

    def __init__(self, scene: Collector) -> None:
        self.size, self.fisheye = scene.image_size, scene.camera == "fisheye"
        half = np.radians(scene.field_of_view) / 2
        self.focal = self.size / 2 / (half if self.fisheye else np.tan(half))  # pixels
        fine = (np.arange(self.size * SAMPLES) + 0.5) / SAMPLES - self.size / 2
        x, y = np.meshgrid(fine, fine)
        radius = np.maximum(np.hypot(x, y), 1e-9)
        angle = radius / self.focal if self.fisheye else np.arctan(radius / self.focal)
        rays = np.stack([x / radius * np.sin(angle), y / radius * np.sin(angle), np.cos(angle)], axis=-1)
        self._rays = rays.astype(np.float32)  # (fine, fine, 3), of length 1 in the camera's frame

    def picture(self, texture: np.ndarray, gripper: np.ndarray, opening: float) -> np.ndarray:
        """uint8 (S, S, 3): the table, or a sky where it is not seen, and the fingers; `gripper` (4, 4)."""
        pose = (gripper @ CAMERA_IN_GRIPPER).astype(np.float32)
        rays = self._rays @ pose[:3, :3].T  # (fine, fine, 3) in the table's frame
        down = np.minimum(rays[..., 2], -1e-3)
        reach = -pose[2, 3] / down
        points = pose[:2, 3] + rays[..., :2] * reach[..., None]  # metres on the table
        texels = ((points / TABLE + 0.5) * TEXELS).astype(np.float32)
        picture = cv2.remap(texture, texels % TEXELS, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        haze = np.clip((reach - 1.0) / 2.0, 0, 1)[..., None]  # far away it fades into the sky
        sky = 200 + np.clip(rays[..., 2:], -0.2, 1) * np.array([24, 32, 40], np.float32)
        picture = (picture * (1 - haze) + sky * haze).astype(np.uint8)
        picture = cv2.resize(picture, (self.size, self.size), interpolation=cv2.INTER_AREA)
        for side in (-1, 1):
            cv2.fillPoly(picture, [self._finger(side, opening)], (35, 35, 40), cv2.LINE_AA, shift=4)
        return picture

    def _finger(self, side: int, opening: float) -> np.ndarray:
        """Outline of a finger, which reaches from below the camera to its tip: int32 (n, 2), 1/16 pixels."""
        inner, outer = side * opening / 2, side * (opening / 2 + 0.02)
        depth = np.linspace(0, -0.13, 8)  # from the tip back
        edge = [np.column_stack([np.full(8, x), np.full(8, 0.0), depth]) for x in (inner, outer)]
        points = np.concatenate([edge[0], edge[1][::-1]]) - CAMERA_IN_GRIPPER[:3, 3]  # in the camera's frame
        across = np.hypot(points[:, 0], points[:, 1])
        angle = np.arctan2(across, points[:, 2])
        radius = self.focal * (angle if self.fisheye else np.tan(np.minimum(angle, 1.5)))
        pixels = points[:, :2] / across[:, None] * radius[:, None] + self.size / 2
        return np.round(np.clip(pixels, -10 * self.size, 10 * self.size) * 16).astype(np.int32)
