"""From robomimic's low-dimensional demonstrations to image demonstrations with absolute actions, by many processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unified_video_action.env.robomimic.action_kind import ActionKind, kind_of_actions
from unified_video_action.env.robomimic.demonstrations import Demonstration, write_demonstration
from unified_video_action.env.robomimic.simulator import Simulator, with_controller
from unified_video_action.env.system_libraries import explain_missing_libraries

with explain_missing_libraries():
    import h5py


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
            seen.append(simulator.observe(cameras, size))
        return replace(demonstration, obs={name: np.stack([one[name] for one in seen]) for name in seen[0]})

    def close(self) -> None:
        for simulator in self._simulators.values():
            simulator.close()

    def _restore(self, demonstration: Demonstration, absolute: bool) -> Simulator:
        simulator = self.simulator(absolute)
        simulator.restore(demonstration.states[0], None if self.own_model else demonstration.model)
        return simulator


@dataclass(frozen=True)
class RenderJob:
    """What is done with each demonstration of a file.

    Args:
        source: file with states, model_file and env_args; its frames, if any, are not read.
        absolute: turn steps into poses, and replay these.
        own_model: see `Converter`.
    """

    source: Path
    cameras: tuple[str, ...]
    image_size: int
    samples: int = 4
    absolute: bool = False
    own_model: bool = False

    def written_arguments(self) -> dict[str, Any]:
        """env_args of the output."""
        arguments = read_arguments(self.source)
        if self.absolute:
            arguments = with_controller(arguments, True)
        sizes = {"camera_heights": self.image_size, "camera_widths": self.image_size}
        arguments["env_kwargs"] |= {"camera_names": list(self.cameras), **sizes, "use_camera_obs": True}
        return arguments

    def results(self, names: Sequence[str], folder: Path, workers: int) -> Iterator[tuple[str, Path, bool | None]]:
        """Each demonstration's name, its own new file in `folder`, and whether its replay succeeds, in order.

        Raises:
            ValueError: a demonstration that cannot be restored, or has no such camera; names it. Or it is not clear
                what the actions are.
        """
        parts = [folder / f"{name}.hdf5" for name in names]
        converts = self.absolute and holds_steps(self.source)
        if workers == 1:
            renderer = _Renderer(self, converts)
            try:
                for name, part in zip(names, parts, strict=True):
                    yield name, part, renderer(name, part)
            finally:
                renderer.converter.close()
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _adopt, (self, converts)) as pool:
            try:
                yield from zip(names, parts, pool.map(_render, names, parts), strict=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def read_arguments(source: Path) -> dict[str, Any]:
    """env_args of a file. Raises ValueError where there are none."""
    with h5py.File(source) as file:
        text = file["data"].attrs.get("env_args")
    if text is None:
        raise ValueError(f"{source}: data has no attribute env_args; it is no file of robomimic")
    return json.loads(text)


def holds_steps(source: Path) -> bool:
    """Whether the actions of a file are steps rather than poses. Raises ValueError where that is not clear."""
    with h5py.File(source) as file:
        demos = list(file["data"].values())
        actions, hand = ([demo[name][:] for demo in demos] for name in ("actions", "obs/robot0_eef_pos"))
        ends = np.cumsum([len(part) for part in actions])
        kind = kind_of_actions(np.concatenate(actions), np.concatenate(hand), ends, file["data"].attrs.get("env_args"))
    if kind in (ActionKind.STEPS, ActionKind.POSES):
        return kind is ActionKind.STEPS
    raise ValueError(
        f"{source}: its actions are neither steps of the hand nor poses in the frame of obs/robot0_eef_pos; leave out "
        "--absolute to keep them as they are"
    )


class _Renderer:
    """Does the job, with simulators that it keeps."""

    def __init__(self, job: RenderJob, converts: bool) -> None:
        self.job, self.converts = job, converts
        self.converter = Converter(read_arguments(job.source), job.samples, job.own_model)

    def __call__(self, name: str, part: Path) -> bool | None:
        """Write one demonstration to a file; whether its replay succeeds, None where that is not asked."""
        job, replayed = self.job, None
        try:
            demonstration = self._read(name)
            if job.absolute:
                if self.converts:
                    demonstration = self.converter.absolute(demonstration)
                replayed = self.converter.replay(demonstration)
            demonstration = self.converter.render(demonstration, job.cameras, job.image_size)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{job.source}: data/{name}: {error}") from error
        with h5py.File(part, "w") as file:
            write_demonstration(file.create_group("demo"), demonstration)
        return replayed

    def _read(self, name: str) -> Demonstration:
        """A demonstration without observations."""
        with h5py.File(self.job.source) as file:
            group = file["data"][name]
            model, states, actions = group.attrs["model_file"], group["states"][:], group["actions"][:]
            success = group["rewards"][:] > 0
        return Demonstration(model, states, actions.astype(np.float64), {}, success)


def _adopt(job: RenderJob, converts: bool) -> None:
    """Keep the simulators for all demonstrations of this process."""
    _render.renderer = _Renderer(job, converts)


def _render(name: str, part: Path) -> bool | None:
    return _render.renderer(name, part)
