"""A bare copy of PushT's physics for looking ahead: no drawing, no coverage, no checks."""

from __future__ import annotations

import pymunk

from unified_video_action.env.pusht.geometry import AGENT_RADIUS, BAR, CENTRE_OF_MASS, INERTIA, STEM, Pose

SUBSTEPS = 10  # physics steps per control step
DT = 0.01
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that moves the agent to its target
WALL_LOW, WALL_HIGH = 5.0, 506.0


class Table:
    """The agent and the T between four walls. `agent` and `pose` may be read after every `move`."""

    def __init__(self) -> None:
        self._space = pymunk.Space()
        self._space.damping = 0  # nothing glides: the T stops where the agent leaves it
        corners = [(WALL_LOW, WALL_LOW), (WALL_HIGH, WALL_LOW), (WALL_HIGH, WALL_HIGH), (WALL_LOW, WALL_HIGH)]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            self._space.add(pymunk.Segment(self._space.static_body, start, end, 2))
        self._agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        self._space.add(self._agent, pymunk.Circle(self._agent, AGENT_RADIUS))
        self._block = pymunk.Body(1, INERTIA)
        self._block.center_of_gravity = tuple(CENTRE_OF_MASS)
        self._space.add(self._block, *(pymunk.Poly(self._block, rectangle_corners(*part)) for part in (BAR, STEM)))

    @property
    def agent(self) -> tuple[float, float]:
        return self._agent.position

    @property
    def pose(self) -> Pose:
        return (*self._block.position, self._block.angle)

    def place(self, agent: tuple[float, float], pose: Pose, velocity: tuple[float, float] = (0.0, 0.0)) -> None:
        """Put the agent, moving at `velocity` pixels a second, and the T, at rest."""
        agent_body, block = self._agent, self._block
        agent_body.position = float(agent[0]), float(agent[1])
        agent_body.velocity = float(velocity[0]), float(velocity[1])
        block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
        block.angle = pose[2]  # before the position: it turns the T about its centre of mass
        block.position = pose[0], pose[1]
        self._space.reindex_shapes_for_body(agent_body)
        self._space.reindex_shapes_for_body(block)

    def move(self, target: tuple[float, float]) -> None:
        """One control step with the agent pulled to `target`."""
        target_x, target_y = float(target[0]), float(target[1])
        (x, y), (speed_x, speed_y) = self._agent.position, self._agent.velocity
        for _ in range(SUBSTEPS):
            speed_x += (STIFFNESS * (target_x - x) - DAMPING * speed_x) * DT
            speed_y += (STIFFNESS * (target_y - y) - DAMPING * speed_y) * DT
            self._agent.velocity = speed_x, speed_y
            self._space.step(DT)
            x += speed_x * DT
            y += speed_y * DT


def rectangle_corners(x0: float, x1: float, y0: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
