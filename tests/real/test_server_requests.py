"""What is wrong with a request is said: the field, what came, what was expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.real.server_support import SIZE, describe, observe
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving.histories import Window, as_trained, picked
from unified_video_action.real.serving.requests import BAD_REQUEST, Refused, RequestSpec
from unified_video_action.spec import Horizon

DESCRIPTION = describe()
SPEC = RequestSpec(DESCRIPTION)
POSITION, CAMERA = "robot0_eef_pos", "camera0_rgb"


def refusal(call: Callable, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert caught.value.code == BAD_REQUEST
    return caught.value.text


def test_a_good_observation_passes_in_the_types_of_the_policy() -> None:
    given = observe(DESCRIPTION)
    checked = SPEC.observation(given | {POSITION: given[POSITION].astype(np.float64)})
    assert list(checked) == list(DESCRIPTION.observations)
    assert checked[POSITION].dtype == np.float32 and checked[CAMERA].dtype == np.uint8
    np.testing.assert_array_equal(checked[POSITION], given[POSITION])


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (CAMERA, lambda x: x[:3], f"(3, {SIZE}, {SIZE}, 3)"),
        (CAMERA, lambda x: np.moveaxis(x, -1, 1), f"(4, 3, {SIZE}, {SIZE})"),
        (CAMERA, lambda x: x.astype(np.float32), "float32"),
        (CAMERA, lambda x: None, "nothing"),
        (POSITION, lambda x: x[:, :2], "(4, 2)"),
        (POSITION, lambda x: x.astype(object), "object"),
        (POSITION, lambda x: np.where(x == x.max(), np.inf, x), "not finite"),
        (POSITION, lambda x: x * 1000, "units"),
        ("robot0_eef_rot_axis_angle", lambda x: x + 2, "-1.01 to 1.01"),
        ("robot0_gripper_width", lambda x: x + 80, "-1 to 1"),
    ],
)
def test_a_bad_field_is_named_with_what_came(name: str, change: Callable, said: str) -> None:
    given = observe(DESCRIPTION)
    text = refusal(SPEC.observation, given | {name: change(given[name])})
    assert text.startswith(f"{name}: got ") and "expected" in text and said in text
    for names in ({CAMERA: 1}, given | {"more": np.zeros(3)}):
        assert refusal(SPEC.observation, names).startswith("observation: got ")


# -- ranges and units --------------------------------------------------------------------------------------------------

TABLE = (np.array([13.5, 32.9]), np.array([496.1, 510.9]))  # pixels


def pushing(low: Any = TABLE[0], high: Any = TABLE[1], steps: int = 1) -> RequestSpec:
    """A policy of one state, whose actions are in the same units."""
    low, high = np.array(low, float), np.array(high, float)
    entries = {
        "image": ObservationEntry("rgb", (16, 16, 3), 4),
        "agent_pos": ObservationEntry("low_dim", low.shape, steps),
    }
    description = PolicyDescription("pushing", entries, Horizon(), len(low), 8, False, continues=True)
    return RequestSpec(description, {"agent_pos": (low, high), "action": (low, high)})


def at(spec: RequestSpec, *states: list[float]) -> dict[str, np.ndarray]:
    return observe(spec.description) | {"agent_pos": np.array(states, float)}


@pytest.mark.parametrize("state", [[0.3, 0.25], [0.0, 0.0], [1200.0, 300.0], [-600.0, 300.0]])
def test_a_state_in_other_units_is_refused_with_value_range_and_remedy(state: list[float]) -> None:
    spec = pushing(steps=2)
    for name, said in (
        ("agent_pos", refusal(spec.observation, at(spec, state, state))),
        ("prefix", refusal(spec.prefix, np.tile(np.array(state, np.float32), (5, 1)), np.ones(5))),
    ):
        assert said.startswith(f"{name}: got ") and "the training data has" in said and "units" in said
        assert ("13.5 to 496.1" in said) or ("32.9 to 510.9" in said)


@pytest.mark.parametrize(
    ("low", "high", "states", "noted"),
    [
        (*TABLE, [[250.0, 250.0], [260.0, 250.0]], False),
        (*TABLE, [[-5.0, 515.0], [-5.0, 515.0]], True),  # slightly outside
        (*TABLE, [[900.0, 250.0], [900.0, 250.0]], True),  # not by the range's width
        (*TABLE, [[1200.0, 250.0], [250.0, 250.0]], True),  # but it was inside a moment ago
        (*TABLE, [[0.3, 100.0], [0.3, 100.0]], True),  # at the edge of the table, not next to the origin
        ([0.0, 0.0], [512.0, 512.0], [[0.3, 0.25]] * 2, True),  # metres in a corner of the data's range
        ([-1.0, -2.0], [1.0, 2.0], [[0.0, 0.0]] * 2, False),  # zero is amidst the data
        ([0.001, 0.002], [0.3, 0.5], [[0.0, 0.0]] * 2, True),  # or a little beside it
        ([5.0, 5.0], [5.0, 5.0], [[5.9, 4.2]] * 2, True),  # data that never varied
    ],
)
def test_a_state_outside_of_the_data_is_allowed_and_noted(low: Any, high: Any, states: list, noted: bool) -> None:
    spec = pushing(low, high, steps=2)
    checked = spec.observation(at(spec, *states))
    np.testing.assert_array_equal(checked["agent_pos"], np.float32(states))
    said = spec.unusual(checked)
    assert bool(said) == noted and all("(are the units right?)" in text for text in said.values())


def test_no_single_value_may_leave_the_range_by_twice_its_width() -> None:
    spec = pushing([0.0, 5.0], [500.0, 5.0], steps=2)
    said = refusal(spec.observation, at(spec, [0.0, 5.0], [6000.0, 5.0]))
    assert "agent_pos: got 6000 at index 0, expected -1001 to 1501, since the training data has 0 to 500" in said
    assert "index 1" in refusal(spec.observation, at(spec, [0.0, 7.0], [0.0, 5.0]))
    assert "1e+06" in refusal(RequestSpec(spec.description).observation, at(spec, [2e6, 0.0], [0.0, 5.0]))


# -- the rest of a request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "weights"),
    [
        (np.zeros((3, 10), np.float32), None),
        (None, np.zeros(3)),
        (np.zeros((3, 9), np.float32), np.zeros(3)),
        (np.zeros((17, 10), np.float32), np.zeros(17)),
        (np.zeros((3, 10), np.float32), np.zeros(2)),
        (np.zeros((3, 10), np.float32), np.full(3, 1.5)),
        (np.zeros((3, 10), np.float32), np.full(3, np.nan)),
        (np.full((3, 10), np.inf), np.ones(3)),
        (np.full((3, 10), 300.0), np.ones(3)),  # no metres
        (np.zeros((3, 10), np.int64), np.ones(3)),
        ([[0.0] * 10], [1.0]),
    ],
)
def test_a_bad_prefix_is_refused(actions: Any, weights: Any) -> None:
    assert refusal(SPEC.prefix, actions, weights)
    spec = RequestSpec(PolicyDescription("does not continue", DESCRIPTION.observations, Horizon(), 10, 8, False))
    assert "send none" in refusal(spec.prefix, np.zeros((1, 10)), np.ones(1))


def test_bad_instructions_and_seeds_are_refused() -> None:
    for text in ("", "  ", "x" * 1001, 7, b"fold", "a\nb", "a\x00", "\ud800"):
        assert refusal(SPEC.text, text).startswith("text: got ")
    for seed in (-1, 2**63, 1.0, "1", None, True):
        assert refusal(SPEC.seed, seed).startswith("seed: got ")


def test_float_frames_become_the_bytes_that_they_were_made_of() -> None:
    entry = ObservationEntry("rgb", (16, 16, 3), 1)
    frames = np.arange(768, dtype=np.uint8).reshape(1, 16, 16, 3)
    for made in (frames.astype(np.float32) / 255, frames / 255.0, np.moveaxis(frames.astype(np.float32) / 255, -1, 1)):
        for layout in (made, np.ascontiguousarray(made), made.astype(made.dtype.newbyteorder())):
            np.testing.assert_array_equal(as_trained("a", layout, entry, resize=False), frames)
    np.testing.assert_array_equal(as_trained("a", np.moveaxis(frames, -1, 1), entry, resize=False), frames)
    np.testing.assert_array_equal(as_trained("a", frames[0], entry, resize=False), frames[0])


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.full((1, 16, 16, 3), 2.0), "outside [0, 1]"),
        (np.full((1, 16, 16, 3), np.nan), "outside [0, 1]"),
        (np.zeros((1, 16, 16, 3), np.int64), "int64"),
        (np.zeros((1, 16, 16, 4), np.uint8), "(1, 16, 16, 4)"),
        (np.zeros((0, 16, 16, 3), np.uint8), "(0, 16, 16, 3)"),
        (np.zeros((1, 24, 24, 3), np.uint8), "24 x 24"),
    ],
)
def test_frames_that_are_none_are_refused(frames: Any, said: str) -> None:
    assert said in refusal(as_trained, "a", frames, ObservationEntry("rgb", (16, 16, 3), 1), False)


def test_frames_of_another_size_are_resized_only_where_that_is_asked_for_and_their_proportions_fit() -> None:
    entry = ObservationEntry("rgb", (32, 32, 3), 1)
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[:, :32] = 200
    made = as_trained("a", frames, entry, resize=True)
    assert made.shape == (2, 32, 32, 3) and (made[:, :16] == 200).all() and not made[:, 16:].any()
    assert "64 x 48 pixels, expected the proportions of" in refusal(as_trained, "a", frames[:, :48], entry, True)
    for side in (8, 1080):
        said = refusal(as_trained, "a", np.zeros((side, side, 3), np.uint8), entry, True)
        assert f"got frames of {side} x {side} pixels" in said and "16 to 512 pixels" in said


def shown(window: Window) -> list[int]:
    return window.history()["image"].tolist()


def window(query_steps: int = 4) -> Window:
    entries = {"image": ObservationEntry("rgb", (1, 1, 3), 4), "state": ObservationEntry("low_dim", (1,), 2)}
    return Window(Horizon(), entries, query_steps)


def test_a_window_picks_the_newest_observation_that_is_not_newer() -> None:
    seen = window()
    for step, expected in (
        (0, [0, 0, 0, 0]),
        (5, [0, 0, 0, 5]),
        (8, [0, 0, 0, 8]),  # 4 steps ago only the one of step 0 was there
        (9, [0, 0, 5, 9]),
        (17, [5, 9, 9, 17]),
        (40, [17, 17, 17, 40]),
    ):
        seen.add({"image": np.array(step), "state": np.array(step)}, step)
        assert shown(seen) == expected
        assert seen.history()["state"].tolist() == expected[-2:]
    assert seen.goes_back(40) and seen.goes_back(3) and not seen.goes_back(41) and not seen.goes_back(None)
    seen.clear()
    assert not seen.goes_back(0)


@pytest.mark.parametrize(("query_steps", "expected"), [(4, [1, 2, 3, 4]), (8, [2, 3, 3, 4]), (1, [0, 0, 0, 4])])
def test_a_window_counts_steps_for_clients_that_do_not(query_steps: int, expected: list[int]) -> None:
    seen = window(query_steps)
    for index in range(5):
        seen.add({"image": np.array(index), "state": np.array(index)})
    assert shown(seen) == expected
    for step in range(100, 200):
        seen.add({"image": np.array(step), "state": np.array(step)}, step)
    assert shown(seen) == [187, 191, 195, 199] and len(seen._seen) == 13  # it forgets what no plan can need


def test_a_longer_history_is_picked_from_its_end() -> None:
    offsets = Horizon().history_offsets
    assert picked(np.arange(16), offsets, 4).tolist() == [3, 7, 11, 15]
    assert picked(np.arange(13), offsets, 4).tolist() == [0, 4, 8, 12]
    assert picked(np.arange(4), offsets, 4).tolist() == [0, 1, 2, 3]
    assert picked(np.arange(16), offsets, 1).tolist() == [15]
    assert picked(np.arange(12), offsets, 4) is None
