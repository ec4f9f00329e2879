"""What every message is held against: names, shapes, types, ranges and sizes that a policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import few, shown
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.server.errors import BAD_REQUEST, Refused

TEXT_CHARACTERS = 1000
OVERHEAD = 64 * 1024  # bytes of a message that are not arrays
SEEDS = 2**63
FARTHEST = 1e6  # of a state of which nothing else is known
KIND_RANGES = {"position": 10.0, "rotation_6d": 1.01, "rotation_6d_from_start": 1.01, "gripper": 1.0}  # metres; unit
MARGIN = 2.0  # a state may leave the range of its training data by so many times that range
UNUSUAL = 0.02  # and by this share of it without a word


class RequestSpec:
    """Checks requests for one policy.

    Args:
        ranges: lowest and highest value (d,) of each state in the training data, where known.
    """

    def __init__(
        self, description: PolicyDescription, ranges: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
    ) -> None:
        self.description = description
        self.entries = description.observations
        self.cameras = tuple(name for name, entry in self.entries.items() if entry.kind == "rgb")
        self.states = {name: entry.shape[0] for name, entry in self.entries.items() if entry.kind == "low_dim"}
        self._trained = {name: ranges[name] for name in self.states if ranges and name in ranges}
        self._bounds = {name: self._bound(name, self._trained.get(name)) for name in self.states}

    @property
    def most_bytes(self) -> int:
        """Of a message with a whole history, states in float64, and a continuation."""
        chunk = self.description.horizon.actions * (self.description.action_dim + 1) * 8
        frames = sum(self.entries[name].steps * int(np.prod(self.entries[name].shape)) for name in self.cameras)
        states = sum(self.entries[name].steps * size * 8 for name, size in self.states.items())
        return frames + states + chunk + OVERHEAD

    def observation(self, given: Any) -> dict[str, np.ndarray]:
        """A whole history, entry -> (steps, *shape), uint8 frames and float32 states.

        Raises:
            Refused: with the field, what came and what was expected.
        """
        if not isinstance(given, Mapping):
            raise _bad("observation", _kind(given), "a map of names to arrays")
        others = [_name(name) for name in given if name not in self.entries]
        missing = [name for name in self.entries if name not in given]
        if others or missing:
            raise _bad("observation", few([_name(name) for name in given]), few(self.entries, 20))
        return {name: self._entry(name, given[name]) for name in self.entries}

    def unusual(self, observation: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Of states that are allowed, those outside of the range of the training data -> what to say about them."""
        said = {}
        for name, (low, high) in self._trained.items():
            slack = UNUSUAL * (high - low)
            outside = _outside(observation[name], low - slack, high + slack)
            if outside is not None:
                column, value = outside
                said[name] = (
                    f"{name}: got {value:.6g} at place {column}, outside of the training data's {low[column]:.6g} to "
                    f"{high[column]:.6g} (are the units right?)"
                )
        return said

    def continuation(self, actions: Any, weights: Any) -> Continuation | None:
        """What is left of the plan under way: (n, D) and (n,), or None and None.

        Raises:
            Refused: it does not fit the policy's actions.
        """
        if actions is None and weights is None:
            return None
        if not self.description.continues:
            raise Refused(BAD_REQUEST, "actions: this policy does not go on from earlier plans; send none")
        dim, chunk = self.description.action_dim, self.description.horizon.actions
        for name, value, ndim in (("actions", actions, 2), ("weights", weights, 1)):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != ndim:
                raise _bad(name, _kind(value), f"an array of {ndim} dimensions of floating point numbers")
        if actions.shape[1] != dim or not 1 <= len(actions) <= chunk:
            raise _bad("actions", str(actions.shape), f"1 to {chunk} actions of {dim} numbers")
        if len(weights) != len(actions):
            raise _bad("weights", str(weights.shape), f"({len(actions)},), as many as actions")
        if np.isfinite(actions).all() and np.abs(actions).max() > FARTHEST:
            raise _bad("actions", f"up to {np.abs(actions).max():.3g}", f"at most {FARTHEST:.0g}")
        try:
            return Continuation(actions, weights)
        except ValueError as error:
            raise Refused(BAD_REQUEST, str(error)) from error

    def text(self, given: Any) -> str | None:
        """An instruction, or None.

        Raises:
            Refused: it is no text, empty, too long, or the policy follows none.
        """
        if given is None:
            return None
        if not isinstance(given, str) or not given.strip() or len(given) > TEXT_CHARACTERS:
            came = f"{len(given)} characters" if isinstance(given, str) else _kind(given)
            raise _bad("text", came, f"1 to {TEXT_CHARACTERS} characters")
        if not given.isprintable():
            raise _bad("text", "line breaks or control characters", "printable characters")
        if not self.description.follows_text:
            raise Refused(BAD_REQUEST, "text: this policy follows no instructions; send none")
        return given

    def seed(self, given: Any) -> int:
        """Raises Refused for what is no whole number of 63 bits."""
        if type(given) is not int or not 0 <= given < SEEDS:
            raise _bad("seed", str(given)[:30] if type(given) is int else _kind(given), "0 to 2**63 - 1")
        return given

    def _entry(self, name: str, value: Any) -> np.ndarray:
        entry = self.entries[name]
        shape = (entry.steps, *entry.shape)
        wanted = f"{'uint8' if entry.kind == 'rgb' else 'floating point'} {shape}"
        if not isinstance(value, np.ndarray):
            raise _bad(name, _kind(value), f"an array, {wanted}")
        fits = value.dtype == np.uint8 if entry.kind == "rgb" else value.dtype.kind == "f"
        if not fits or value.shape != shape:
            raise _bad(name, f"{value.dtype} {value.shape}", wanted + _what(entry))
        return value if entry.kind == "rgb" else self._state(name, value)

    def _state(self, name: str, value: np.ndarray) -> np.ndarray:
        if not np.isfinite(value).all():
            raise _bad(name, "numbers that are not finite", "numbers")
        low, high = self._bounds[name]
        if (outside := _outside(value, low, high)) is not None:
            column, worst = outside
            wanted = f"{low[column]:.6g} to {high[column]:.6g}"
            if name in self._trained:
                lowest, highest = (each[column] for each in self._trained[name])
                wanted += f", since the training data has {lowest:.6g} to {highest:.6g}"
            raise _bad(name, f"{worst:.6g} at place {column}", f"{wanted} (are the units right?)")
        return value.astype(np.float32)

    def _bound(self, name: str, trained: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest value (d,) that a state may have."""
        hand = self.description.hand
        if hand is not None and name in hand.states:
            farthest = np.full(self.states[name], KIND_RANGES[hand.states[name]])
            return -farthest, farthest
        if trained is None:
            farthest = np.full(self.states[name], FARTHEST)
            return -farthest, farthest
        low, high = (np.asarray(values, float) for values in trained)
        margin = MARGIN * (high - low) + 1.0  # a state that did not vary in the data may do so on a robot
        return low - margin, high + margin


def _outside(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, float] | None:
    """Column and value of the first of (..., d) that is not between two bounds (d,); None: all are."""
    outside = (values < low) | (values > high)
    return (int(np.argwhere(outside)[0, -1]), float(values[outside][0])) if outside.any() else None


def _what(entry: ObservationEntry) -> str:
    if entry.kind == "rgb":
        return f" ({entry.steps} RGB frames of {entry.shape[1]} x {entry.shape[0]} pixels, oldest first)"
    return f" ({entry.steps} states of {entry.shape[0]} numbers, oldest first)"


def _bad(field: str, came: str, wanted: str) -> Refused:
    return Refused(BAD_REQUEST, f"{field}: got {came}, expected {wanted}")


def _name(name: Any) -> str:
    return f"'{shown(name)}'" if isinstance(name, str) else _kind(name)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
