"""What a configuration builds: the simulated arm and its cameras."""

from __future__ import annotations

from collections.abc import Sequence

from unified_video_action.real.robot import Setup
from unified_video_action.real.sim.clock import Clock
from unified_video_action.real.sim.faults import Faults
from unified_video_action.real.sim.scene import Table


class SimSetup(Setup):
    """The simulated arm, not yet connected; `setup.arm.world` is its world, `setup.arm.faults` its faults.

    Args:
        cameras: views, "wrist" or "side", in the order of the policy's observations.
        size: (height, width) of frames, pixels.
        rate: frames per second.
        latency: of the cameras, seconds.
        cup, saucer: (x, y) on the table, metres in the frame of the arm's base.
        fovy: the wrist camera's vertical angle of view, degrees.
        clock: a `ManualClock` for a run as fast as it can be computed; None is real time.
        faults: to be switched on during the run, shared by the arm and its cameras.

    Raises:
        ImportError: MuJoCo is not installed, or cannot draw; says what is missing.
        ValueError: no such camera.
    """

    def __init__(
        self,
        cameras: Sequence[str] = ("wrist",),
        size: Sequence[int] = (224, 224),
        rate: float = 30.0,
        latency: float = 0.08,
        cup: Sequence[float] = Table.cup,
        saucer: Sequence[float] = Table.saucer,
        fovy: float = 90.0,
        clock: Clock | None = None,
        faults: Faults | None = None,
    ) -> None:
        from unified_video_action.real.sim.arm import SimArm
        from unified_video_action.real.sim.camera import SimCamera
        from unified_video_action.real.sim.world import World

        faults = faults or Faults()
        world = World(clock, Table(tuple(cup), tuple(saucer)), fovy)
        views = tuple(SimCamera(world, view, tuple(size), rate, latency, faults) for view in cameras)
        super().__init__(SimArm(world, faults), views)
