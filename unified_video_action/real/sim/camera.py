"""Cameras that look at the simulated arm, and deliver frames late as real ones do."""

from __future__ import annotations

import math
import threading
from collections import deque

import numpy as np

from unified_video_action.real.robot import Camera, Frame, RobotError
from unified_video_action.real.sim.engine import mujoco
from unified_video_action.real.sim.faults import Faults
from unified_video_action.real.sim.world import Snapshot, World

MOST_SHAPES = 100  # of a scene


class SimCamera(Camera):
    """One camera of the scene: "wrist" sees the fingers as on UMI's gripper, "side" the whole table.

    With a real clock it draws in a thread of its own. With a `ManualClock` the frame that is newest is drawn when it is
    asked for, by whoever asks: always the same thread.

    Args:
        size: (height, width) pixels.
        rate: frames per second.
        latency: seconds from the light to the frame's receipt.
    """

    def __init__(
        self,
        world: World,
        view: str = "wrist",
        size: tuple[int, int] = (224, 224),
        rate: float = 30.0,
        latency: float = 0.08,
        faults: Faults | None = None,
    ) -> None:
        views = [world.model.camera(index).name for index in range(world.model.ncam)]
        if view not in views:
            raise ValueError(f"view={view!r}: the simulated table's cameras are {', '.join(views)}")
        if rate <= 0 or latency < 0:
            raise ValueError(f"rate={rate}, latency={latency}: expected a positive rate and a latency of 0 or more")
        self.world, self.view, self.size, self.rate, self.latency = world, view, tuple(size), rate, latency
        self.faults = faults or Faults()
        self._connected = False
        self._coming: deque[tuple[float, Frame]] = deque()  # (when it arrives, frame)
        self._lock = threading.Lock()  # of what is coming
        self._newest: Frame | None = None
        self._tick = 0  # of the newest frame that was drawn; frame n is taken at n / rate
        self._painter: _Painter | None = None  # where frames are drawn when asked for

    def connect(self) -> None:
        if self._connected:
            return
        self.world.start()
        self._connected = True
        self._began = self._tick = math.floor(self.world.clock.time() * self.rate)
        if self.world.clock.runs_alone:
            self._ending, self._ready = threading.Event(), threading.Event()
            self._failure: Exception | None = None
            self._thread = threading.Thread(target=self._run, name=f"camera {self.view}", daemon=True)
            self._thread.start()
            self._ready.wait()
            if self._failure is not None:
                self.close()
                raise RobotError(f"the simulated camera {self.view!r} cannot draw: {self._failure}") from self._failure

    def latest(self) -> Frame | None:
        if not self._connected:
            raise RobotError(f"the simulated camera {self.view!r} is not connected; call connect() first")
        now = self.world.clock.time()
        if not self.world.clock.runs_alone:
            self._look(now)
        with self._lock:
            while self._coming and self._coming[0][0] <= now:
                self._newest = self._coming.popleft()[1]
        return self._newest

    def close(self) -> None:
        if not self._connected:
            return
        self._connected = False
        if self.world.clock.runs_alone:
            self._ending.set()
            self._thread.join()
        elif self._painter is not None:
            self._painter.close()
            self._painter = None
        self.world.close()

    def _run(self) -> None:
        """Draw frame after frame; those for which there was no time are left out."""
        clock = self.world.clock
        try:
            painter = _Painter(self.world, self.view, self.size)
        except Exception as error:  # of whichever library draws
            self._failure = error
            return
        finally:
            self._ready.set()
        try:
            while not self._ending.is_set():
                self._tick = max(self._tick + 1, math.floor(clock.time() * self.rate))
                clock.sleep(self._tick / self.rate - clock.time())
                self._take(painter, self._tick)
        finally:
            painter.close()

    def _look(self, now: float) -> None:
        """Take the frame that would have been delivered by now, unless it was taken already."""
        tick = math.floor((now - self.latency - self.faults.camera_delay) * self.rate + 1e-6)
        while tick > self._began and self._drops(tick):
            tick -= 1
        if tick > max(self._tick, self._began):
            self._tick = tick
            self._painter = self._painter or _Painter(self.world, self.view, self.size)
            self._take(self._painter, tick)

    def _take(self, painter: _Painter, tick: int) -> None:
        faults = self.faults
        if faults.dead_camera or self._drops(tick):
            return
        seen = self.world.at(tick / self.rate)
        last = self._coming[-1][1] if self._coming else self._newest
        image = last.image if faults.stuck_camera and last is not None else painter.draw(seen)
        with self._lock:
            self._coming.append((seen.time + self.latency + faults.camera_delay, Frame(seen.time, image)))

    def _drops(self, tick: int) -> bool:
        share = self.faults.dropped_frames
        return share > 0 and np.random.default_rng(tick).random() < share


class _Painter:
    """Draws snapshots; belongs to the thread that made it."""

    def __init__(self, world: World, view: str, size: tuple[int, int]) -> None:
        self._model, self._view = world.model, view
        self._data = mujoco.MjData(world.model)
        self._renderer = mujoco.Renderer(world.model, size[0], size[1], max_geom=MOST_SHAPES)

    def draw(self, seen: Snapshot) -> np.ndarray:
        """uint8 (H, W, 3)."""
        self._data.qpos[:] = seen.positions
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, self._view)
        return self._renderer.render()

    def close(self) -> None:
        self._renderer.close()
