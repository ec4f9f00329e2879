"""From robomimic's low-dimensional demonstrations to image demonstrations with absolute actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unified_video_action.env.robomimic.demonstrations import Demonstration
from unified_video_action.env.robomimic.simulator import Simulator, with_controller


class Converter:
    """Looks at demonstrations of one file again, in simulators that it makes when they are first needed.

    Args:
        arguments: env_args of the file.
        samples: of each pixel when drawing.
        own_model: use robosuite's model of the task in place of the recorded ones, which an old version may have made.
    """

    def __init__(self, arguments: Mapping[str, Any], samples: int = 4, own_model: bool = False) -> None:
        self.arguments, self.samples, self.own_model = arguments, samples, own_model
        self._simulators: dict[bool, Simulator] = {}

    def simulator(self, absolute: bool) -> Simulator:
        """One whose controller takes absolute actions, or steps."""
        if absolute not in self._simulators:
            self._simulators[absolute] = Simulator(with_controller(self.arguments, absolute), self.samples)
        return self._simulators[absolute]

    def absolute(self, demonstration: Demonstration) -> Demonstration:
        """Steps become the poses that the controller made of them."""
        simulator = self._restore(demonstration, absolute=False)
        actions = []
        for state, action in zip(demonstration.states, demonstration.actions, strict=True):
            simulator.show(state)
            actions.append(simulator.absolute_action(action))
        return replace(demonstration, actions=np.array(actions))

    def replay(self, demonstration: Demonstration) -> bool:
        """Whether the absolute actions succeed again when they are executed from the first state."""
        simulator = self._restore(demonstration, absolute=True)
        for action in demonstration.actions:
            simulator.step(action)
            if simulator.is_success:
                return True
        return False

    def render(self, demonstration: Demonstration, cameras: Sequence[str], size: int) -> Demonstration:
        """With what is seen in the recorded states: frames (T, size, size, 3) of the cameras, and all numbers."""
        simulator = self._restore(demonstration, absolute=True)
        seen = []
        for state in demonstration.states:
            simulator.show(state)
            seen.append(observe(simulator, tuple(cameras), size))
        return replace(demonstration, obs={name: np.stack([one[name] for one in seen]) for name in seen[0]})

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()

    def _restore(self, demonstration: Demonstration, absolute: bool) -> Simulator:
        simulator = self.simulator(absolute)
        simulator.restore(demonstration.states[0], None if self.own_model else demonstration.model)
        return simulator


def observe(simulator: Simulator, cameras: Sequence[str], size: int) -> dict[str, np.ndarray]:
    """What robomimic stores of a moment: `<camera>_image` (size, size, 3), and every number that robosuite observes."""
    return {f"{camera}_image": simulator.frame(camera, size) for camera in cameras} | simulator.low_dim()
