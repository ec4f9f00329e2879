"""What every message is held against: names, shapes, types, ranges and units of what a policy reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from unified_video_action.inference.continuation import Continuation
from unified_video_action.messages import few, shown
from unified_video_action.real.planner import PolicyDescription

# Why a request gets no plan.
BAD_REQUEST = "bad_request"  # the message is not what this policy reads; sending it again does not help
BUSY = "busy"  # as many clients as are allowed are connected already
NO_EPISODE = "no_episode"  # the server does not know this client's episode (any more)
POLICY_FAILED = "policy_failed"  # the server's fault; it may be tried again
STOPPING = "stopping"

MOST_CHARACTERS = 1000  # of an error that is sent, and of an instruction
OVERHEAD = 64 * 1024  # bytes of a message that are not arrays
CLEAR = 4  # a message so many times as long as any good one ends its connection; a shorter one gets an answer
FARTHEST = 1e6  # of a number of which nothing else is known
KIND_RANGES = {"position": 10.0, "rotation_6d": 1.01, "rotation_6d_from_start": 1.01, "gripper": 1.0}  # metres; unit
MARGIN = 2.0  # widths of the training data's range by which a state may leave it
UNUSUAL = 0.02  # and without a warning
NARROW = 0.1  # a dimension's width counts as at least this share of its widest neighbour's
NEAR_ZERO = 0.01  # widths


class Refused(Exception):
    """An answer without a plan. The text is one line of bounded length, for the client's user and the log."""

    def __init__(self, code: str, text: str) -> None:
        self.code, self.text = code, shown(text, MOST_CHARACTERS)
        super().__init__(f"{code}: {self.text}")


class Units:
    """Tells numbers in other units by the range of the training data.

    Args:
        low, high: (d,) range of the training data.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray) -> None:
        self.low, self.high = np.asarray(low, float), np.asarray(high, float)
        self._width = self.high - self.low
        self._usual = self.low - UNUSUAL * self._width, self.high + UNUSUAL * self._width

    def check(self, name: str, values: np.ndarray) -> None:
        """Refuse values (n, d) that cannot be in the data's units.

        They cannot where a dimension is always farther outside of its range than the range is wide, or where all
        numbers are next to zero and the range is not, as with metres for pixels.

        Raises:
            Refused: with value, range and remedy.
        """
        if not self._width.any():  # data that never varied tells nothing about units
            return
        slack = np.maximum(self._width, NARROW * self._width.max())
        wrong = (values.min(0) > self.high + slack) | (values.max(0) < self.low - slack)
        if self._next_to_zero(values):
            wrong |= ((values < self._usual[0]) | (values > self._usual[1])).all(0)
        if wrong.any():
            index = int(np.argmax(wrong))
            raise Refused(
                BAD_REQUEST,
                f"{name}: got {values[-1, index]:.6g} at index {index}, but the training data has "
                f"{self.low[index]:.6g} to {self.high[index]:.6g} there: these are other units. Send {name} in the "
                "units of the training data (pixels of its table are not metres, degrees are not radians)",
            )

    def unusual(self, name: str, values: np.ndarray) -> str | None:
        """What to note about values (n, d) that are allowed; None: nothing."""
        outside, where = _outside(values, *self._usual), "outside"
        if outside is None and self._width.any() and self._next_to_zero(values) and self._next_to_zero(self.low):
            outside, where = (0, values[-1, 0]), "at the edge"  # as metres are of a table in pixels
        if outside is None:
            return None
        index, value = outside
        return (
            f"{name}: got {value:.6g} at index {index}, {where} of the training data's "
            f"{self.low[index]:.6g} to {self.high[index]:.6g} (are the units right?)"
        )

    def _next_to_zero(self, values: np.ndarray) -> bool:
        return bool((np.abs(values) <= NEAR_ZERO * self._width).all())


class RequestSpec:
    """Checks requests for one policy.

    Args:
        ranges: lowest and highest value (d,) of each state, and of `action`, in the training data, where known.
    """

    def __init__(
        self, description: PolicyDescription, ranges: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None
    ) -> None:
        self.description = description
        self.entries = description.observations
        self.cameras = tuple(name for name, entry in self.entries.items() if entry.kind == "rgb")
        self.states = {name: entry.shape[0] for name, entry in self.entries.items() if entry.kind == "low_dim"}
        self._kinds = description.end_effector.states if description.end_effector is not None else {}
        self._trained = {name: Units(*each) for name, each in (ranges or {}).items()}

    def observation(self, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """A whole history, entry -> (steps, *shape), uint8 frames and float32 states.

        Raises:
            Refused: with the field, what came and what was expected.
        """
        if given.keys() != self.entries.keys():
            raise bad("observation", few(given), few(self.entries, 20))
        return {name: self._entry(name, given[name]) for name in self.entries}

    def unusual(self, observation: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Of states that are allowed, those outside of the range of the training data -> what to note about them."""
        known = [name for name in self.states if name in self._trained]
        found = {name: self._trained[name].unusual(name, observation[name]) for name in known}
        return {name: text for name, text in found.items() if text}

    def prefix(self, actions: Any, weights: Any) -> Continuation | None:
        """What is left of the plan under way: (n, D) and (n,), or None and None.

        Raises:
            Refused: it does not fit the policy's actions.
        """
        if actions is None and weights is None:
            return None
        if not self.description.continues:
            raise Refused(BAD_REQUEST, "prefix: this policy does not go on from earlier plans; send none")
        dim, chunk = self.description.action_dim, self.description.horizon.actions
        for name, value in (("prefix", actions), ("prefix_weights", weights)):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                raise bad(name, kind(value), "an array of floating point numbers")
        if actions.ndim != 2 or actions.shape[1] != dim or not 1 <= len(actions) <= chunk:
            raise bad("prefix", str(actions.shape), f"1 to {chunk} actions of {dim} numbers")
        farthest, position = np.abs(actions).max(), np.abs(actions[:, :3]).max()
        if not farthest <= FARTHEST:  # also where it is not a number
            raise bad("prefix", f"up to {farthest:.3g}", f"finite numbers of at most {FARTHEST:.0g}")
        if self._kinds and position > KIND_RANGES["position"]:
            raise bad("prefix", f"a position of {position:.3g}", "metres, at most 10 (are the units right?)")
        if not self._kinds and "action" in self._trained:
            self._trained["action"].check("prefix", actions)
        try:
            return Continuation(actions, weights)
        except ValueError as error:
            raise Refused(BAD_REQUEST, f"prefix: {error}") from error

    def text(self, given: Any) -> str | None:
        """An instruction, or None.

        Raises:
            Refused: not a text, empty, too long, or the policy follows none.
        """
        if given is None:
            return None
        if not isinstance(given, str) or not given.strip() or len(given) > MOST_CHARACTERS or not given.isprintable():
            came = f"{len(given)} characters" if isinstance(given, str) else kind(given)
            raise bad("text", came, f"1 to {MOST_CHARACTERS} printable characters in one line")
        if not self.description.follows_text:
            raise Refused(BAD_REQUEST, "text: this policy follows no instructions; send none")
        return given

    def seed(self, given: Any) -> int:
        """Raises Refused for anything but a whole number of 63 bits."""
        if type(given) is not int or not 0 <= given < 2**63:
            raise bad("seed", str(given)[:30] if type(given) is int else kind(given), "0 to 2**63 - 1")
        return given

    def _entry(self, name: str, value: Any) -> np.ndarray:
        entry = self.entries[name]
        shape, is_rgb = (entry.steps, *entry.shape), entry.kind == "rgb"
        fits = isinstance(value, np.ndarray) and (value.dtype == np.uint8 if is_rgb else value.dtype.kind == "f")
        if not fits or value.shape != shape:
            wanted = "uint8 RGB frames" if is_rgb else "floating point numbers"
            raise bad(name, kind(value), f"{shape}, {wanted}, oldest first")
        if is_rgb:
            return value
        if not np.isfinite(value).all():
            raise bad(name, "numbers that are not finite", "numbers")
        trained = None if name in self._kinds else self._trained.get(name)
        high = np.full(entry.shape, KIND_RANGES[self._kinds[name]] if name in self._kinds else FARTHEST)
        low, since = -high, ""
        if trained is not None:
            margin = MARGIN * (trained.high - trained.low) + 1.0  # what did not vary in the data may do so on a robot
            low, high = trained.low - margin, trained.high + margin
        if (outside := _outside(value, low, high)) is not None:
            index, worst = outside
            if trained is not None:
                since = f", since the training data has {trained.low[index]:.6g} to {trained.high[index]:.6g}"
            wanted = f"{low[index]:.6g} to {high[index]:.6g}{since} (are the units right?)"
            raise bad(name, f"{worst:.6g} at index {index}", wanted)
        if trained is not None:
            trained.check(name, value)
        return value.astype(np.float32)


def _outside(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[int, float] | None:
    """Column and value of the first of (..., d) that is not between two bounds (d,); None: all are."""
    outside = (values < low) | (values > high)
    return (int(np.argwhere(outside)[0, -1]), float(values[outside][0])) if outside.any() else None


def bad(field: str, came: str, wanted: str) -> Refused:
    return Refused(BAD_REQUEST, f"{field}: got {came}, expected {wanted}")


def kind(value: Any) -> str:
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
