"""From robomimic's low-dimensional demonstrations to image demonstrations with absolute actions."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.env.robomimic.demonstrations import Demonstration
from unified_video_action.env.robomimic.env import Simulator, with_controller
from unified_video_action.env.system_libraries import explain_missing_libraries

with explain_missing_libraries():
    import h5py


@dataclass(frozen=True)
class Renderer:
    """Looks at the demonstrations of one file again: calling it with a name gives that demonstration.

    It may be sent to other processes; each makes its own simulator when it is first needed, and keeps it.

    Args:
        source: file with states, model_file and env_args; its frames, if any, are not read.
        cameras, image_size: what is drawn, frames (image_size, image_size, 3).
        samples: of each pixel when drawing.
        absolute: turn steps into poses, and replay these.
        own_model: use robosuite's model of the task in place of the recorded ones, which an old version may have made.
    """

    source: Path
    cameras: tuple[str, ...]
    image_size: int
    samples: int = 4
    absolute: bool = False
    own_model: bool = False

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """env_args of the source."""
        return read_arguments(self.source)

    @property
    def written_arguments(self) -> dict[str, Any]:
        """env_args of the output."""
        arguments = with_controller(self.arguments, True) if self.absolute else self.arguments
        sizes = {"camera_heights": self.image_size, "camera_widths": self.image_size}
        drawn = {"camera_names": list(self.cameras), **sizes, "use_camera_obs": True}
        return arguments | {"env_kwargs": arguments["env_kwargs"] | drawn}

    @cached_property
    def takes_steps(self) -> bool:
        """Whether the source's actions are steps rather than poses. Raises ValueError where that is not clear."""
        with h5py.File(self.source) as file:
            demos, arguments = list(file["data"].values()), file["data"].attrs.get("env_args")
            actions, effector = ([demo[name][:] for demo in demos] for name in ("actions", "obs/robot0_eef_pos"))
        ends = np.cumsum([len(part) for part in actions])
        kind = kind_of_actions(np.concatenate(actions), np.concatenate(effector), ends, arguments)
        if kind not in (ActionKind.STEPS, ActionKind.POSES):
            raise ValueError(
                f"{self.source}: its actions are neither steps of the end effector nor poses in the frame of "
                "obs/robot0_eef_pos; leave out --absolute to keep them as they are"
            )
        return kind is ActionKind.STEPS

    @cached_property
    def _simulator(self) -> Simulator:
        return Simulator(with_controller(self.arguments, absolute=True), self.samples)

    def __call__(self, name: str) -> tuple[Demonstration, bool | None]:
        """One demonstration, and whether its replay succeeds, None where that is not asked. Raises ValueError
        that names one that cannot be restored, has no such camera, or whose kind of actions is not clear."""
        try:
            with h5py.File(self.source) as file:
                group = file["data"][name]
                model, states, success = group.attrs["model_file"], group["states"][:], group["rewards"][:] > 0
                demonstration = Demonstration(model, states, group["actions"][:].astype(np.float64), {}, success)
            if self.absolute and self.takes_steps:
                poses = self._restored(demonstration).absolute_actions(demonstration.states, demonstration.actions)
                demonstration = replace(demonstration, actions=poses)
            replayed = self._replay(demonstration) if self.absolute else None
            return self._render(demonstration), replayed
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self.source}: data/{name}: {error}") from error

    def close(self) -> None:
        if "_simulator" in vars(self):
            self._simulator.close()

    def _restored(self, demonstration: Demonstration) -> Simulator:
        """The simulator at the start of the demonstration."""
        self._simulator.restore(demonstration.states[0], None if self.own_model else demonstration.model)
        return self._simulator

    def _replay(self, demonstration: Demonstration) -> bool:
        """Whether the absolute actions succeed again when they are executed from the first state."""
        simulator = self._restored(demonstration)
        for action in demonstration.actions:
            simulator.step(action)
            if simulator.is_success:
                return True
        return False

    def _render(self, demonstration: Demonstration) -> Demonstration:
        """With what is seen in the recorded states: frames (T, size, size, 3) of the cameras, and all numbers."""
        simulator = self._restored(demonstration)
        seen = []
        for state in demonstration.states:
            simulator.show(state)
            seen.append(simulator.observe(self.cameras, self.image_size))
        return replace(demonstration, obs={name: np.stack([one[name] for one in seen]) for name in seen[0]})


def read_arguments(source: Path) -> dict[str, Any]:
    """env_args of a file. Raises ValueError where they are missing."""
    with h5py.File(source) as file:
        text = file["data"].attrs.get("env_args")
    if text is None:
        raise ValueError(f"{source}: data has no attribute env_args; it is not a robomimic file")
    return json.loads(text)
