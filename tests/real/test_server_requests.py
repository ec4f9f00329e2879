"""What is wrong with a request is said: the field, what came, what was expected."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.real.server_support import SIZE, describe, observe
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.server.errors import BAD_REQUEST, Refused
from unified_video_action.real.server.frames import as_trained
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.real.server.window import Window, picked
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
        (CAMERA, lambda x: x[:, :32], f"(4, 32, {SIZE}, 3)"),
        (CAMERA, lambda x: np.moveaxis(x, -1, 1), f"(4, 3, {SIZE}, {SIZE})"),
        (CAMERA, lambda x: x.astype(np.float32), "float32"),
        (CAMERA, lambda x: x.astype(np.int8), "int8"),
        (CAMERA, lambda x: x.tolist(), "a list"),
        (CAMERA, lambda x: None, "nothing"),
        (POSITION, lambda x: x[:, :2], "(4, 2)"),
        (POSITION, lambda x: x[-1], "(3,)"),
        (POSITION, lambda x: x.astype(np.int64), "int64"),
        (POSITION, lambda x: x.astype(complex), "complex128"),
        (POSITION, lambda x: x.astype(object), "object"),
        (POSITION, lambda x: x * np.nan, "not finite"),
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


@pytest.mark.parametrize("given", [None, [1], "image", {}, {CAMERA: 1}, observe(DESCRIPTION) | {"more": np.zeros(3)}])
def test_all_names_and_no_others_are_needed(given: Any) -> None:
    assert refusal(SPEC.observation, given).startswith("observation: got ")


def test_states_have_the_range_of_the_data_with_a_wide_margin() -> None:
    entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4), "agent_pos": ObservationEntry("low_dim", (2,), 1)}
    description = PolicyDescription("pushing", entries, Horizon(), 2, 8, False)
    spec = RequestSpec(description, {"agent_pos": (np.array([0.0, 5.0]), np.array([500.0, 5.0]))})
    good = observe(description) | {"agent_pos": np.array([[1500.0, 5.9]])}
    spec.observation(good)
    said = refusal(spec.observation, good | {"agent_pos": np.array([[6000.0, 5.0]])})
    assert "agent_pos: got 6000 at place 0, expected -1001 to 1501, since the training data has 0 to 500" in said
    assert "place 1" in refusal(spec.observation, good | {"agent_pos": np.array([[0.0, 7.0]])})
    unknown = RequestSpec(description)
    unknown.observation(good)
    assert "1e+06" in refusal(unknown.observation, good | {"agent_pos": np.array([[2e6, 0.0]])})


def test_a_state_outside_of_the_data_that_is_still_allowed_is_spoken_of_as_metres_for_pixels() -> None:
    entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4), "agent_pos": ObservationEntry("low_dim", (2,), 1)}
    spec = RequestSpec(
        PolicyDescription("pushing", entries, Horizon(), 2, 8, False),
        {"agent_pos": (np.array([1.04, 14.47]), np.array([497.5, 511.0]))},
    )
    said = spec.unusual({"agent_pos": np.array([[0.3, 0.25]])})
    expected = "agent_pos: got 0.25 at place 1, outside of the training data's 14.47 to 511 (are the units right?)"
    assert said == {"agent_pos": expected}
    assert spec.unusual({"agent_pos": np.array([[-5.0, 515.0]])}) == {}  # by a hundredth


@pytest.mark.parametrize(
    ("actions", "weights"),
    [
        (np.zeros((3, 10), np.float32), None),
        (None, np.zeros(3)),
        (np.zeros((3, 9), np.float32), np.zeros(3)),
        (np.zeros((17, 10), np.float32), np.zeros(17)),
        (np.zeros((0, 10), np.float32), np.zeros(0)),
        (np.zeros((3, 10), np.float32), np.zeros(2)),
        (np.zeros((3, 10), np.float32), np.full(3, 1.5)),
        (np.zeros((3, 10), np.float32), np.full(3, np.nan)),
        (np.full((3, 10), np.inf), np.ones(3)),
        (np.full((3, 10), 1e9), np.ones(3)),
        (np.zeros((3, 10), np.int64), np.ones(3)),
        ([[0.0] * 10], [1.0]),
    ],
)
def test_a_bad_continuation_is_refused(actions: Any, weights: Any) -> None:
    assert refusal(SPEC.continuation, actions, weights)


def test_a_policy_that_does_not_continue_says_so() -> None:
    description = PolicyDescription("no", DESCRIPTION.observations, Horizon(), 10, 8, False)
    assert RequestSpec(description).continuation(None, None) is None
    assert "send none" in refusal(RequestSpec(description).continuation, np.zeros((1, 10)), np.ones(1))


@pytest.mark.parametrize("text", ["", "  ", "x" * 1001, 7, b"fold", ["fold"]])
def test_a_bad_instruction_is_refused(text: Any) -> None:
    assert refusal(SPEC.text, text).startswith("text: got ")


@pytest.mark.parametrize("text", ["a\nb", "a\x00", "\ud800"])
def test_an_instruction_is_printable(text: str) -> None:
    assert "printable" in refusal(SPEC.text, text)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, "1", None, True])
def test_a_bad_seed_is_refused(seed: Any) -> None:
    assert refusal(SPEC.seed, seed).startswith("seed: got ")


def test_messages_are_bounded_by_what_the_policy_reads() -> None:
    raw = sum(value.nbytes for value in observe(DESCRIPTION).values())
    assert raw < SPEC.most_bytes < raw + 100_000


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
        (np.full((1, 16, 16, 3), -0.1), "outside [0, 1]"),
        (np.zeros((1, 16, 16, 3), np.int64), "int64"),
        (np.zeros((1, 16, 16, 4), np.uint8), "(1, 16, 16, 4)"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no frames"),
        (np.zeros((16, 16), np.uint8), "(16, 16)"),
        (np.zeros((1, 24, 24, 3), np.uint8), "24 x 24"),
        ("picture", "a str"),
    ],
)
def test_frames_that_are_none_are_refused(frames: Any, said: str) -> None:
    entry = ObservationEntry("rgb", (16, 16, 3), 1)
    assert said in refusal(as_trained, "a", frames, entry, False)


def test_frames_of_another_size_are_resized_only_where_that_is_asked_for_and_their_proportions_fit() -> None:
    entry = ObservationEntry("rgb", (32, 32, 3), 1)
    frames = np.zeros((2, 64, 64, 3), np.uint8)
    frames[:, :32] = 200
    made = as_trained("a", frames, entry, resize=True)
    assert made.shape == (2, 32, 32, 3) and (made[:, :16] == 200).all() and not made[:, 16:].any()
    said = refusal(as_trained, "a", frames[:, :48], entry, True)
    assert "64 x 48 pixels, whose proportions are not those of RGB frames of 32 x 32" in said
    assert "resize_with_pad(image, 32, 32)" in said
    for side in (8, 1080):
        said = refusal(as_trained, "a", np.zeros((side, side, 3), np.uint8), entry, True)
        assert f"got frames of {side} x {side} pixels, expected RGB frames of 32 x 32" in said
        assert "16 to 512 pixels" in said


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


def test_a_window_forgets_what_no_plan_can_need() -> None:
    seen = window()
    for step in range(1000):
        seen.add({"image": np.array(step), "state": np.array(step)}, step)
        assert shown(seen) == [max(step + offset, 0) for offset in (-12, -8, -4, 0)]
    assert len(seen._seen) == 13


def test_a_longer_history_is_picked_from_its_end() -> None:
    offsets = Horizon().history_offsets
    assert picked(np.arange(16), offsets, 4).tolist() == [3, 7, 11, 15]
    assert picked(np.arange(13), offsets, 4).tolist() == [0, 4, 8, 12]
    assert picked(np.arange(4), offsets, 4).tolist() == [0, 1, 2, 3]
    assert picked(np.arange(16), offsets, 1).tolist() == [15]
    assert picked(np.arange(12), offsets, 4) is None
