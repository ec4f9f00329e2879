"""The server's heart with policies that answer at once, slowly, wrongly or never."""

import threading
import time

import numpy as np
import pytest

from tests.real.server_support import INSTRUCTIONS, InstantSession, describe, instant_core, observe
from unified_video_action.real.planner import ObservationEntry, PolicyDescription, moving_average
from unified_video_action.real.server import core as core_module
from unified_video_action.real.server.core import Core, histories
from unified_video_action.real.server.errors import (
    BAD_REQUEST,
    BUSY,
    NO_EPISODE,
    POLICY_FAILED,
    STOPPING,
    SUPERSEDED,
    Refused,
)
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.spec import Horizon

TEXT = INSTRUCTIONS[0]
SECONDS = 20  # in which what is waited for has happened


def refused(call, *arguments, **options) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*arguments, **options)
    return caught.value


class HeldSession(InstantSession):
    """Plans when it is told to."""

    def __init__(self, description: PolicyDescription) -> None:
        super().__init__(description)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def plan(self, *arguments, **options) -> np.ndarray:
        self.begun.set()
        assert self.go_on.wait(SECONDS)
        return super().plan(*arguments, **options)


def test_a_client_gets_plans_of_its_newest_observation() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        client.reset(7, TEXT)
        seen = observe(core.description)
        plan = client.plan(seen)
        assert plan.actions.shape == (16, 10) and plan.actions.dtype == np.float32
        np.testing.assert_array_equal(plan.actions[0, :3], seen["robot0_eef_pos"][-1])
        assert session.resets == [(0, 7, TEXT)]
        recalled = session.recalled[0]
        assert len(recalled) == 4
        np.testing.assert_array_equal(recalled[1]["camera0_rgb"], seen["camera0_rgb"][1])


def test_a_history_is_one_observation_per_frame() -> None:
    made = histories({"image": np.arange(4), "state": np.array([7, 8])}, 4)
    assert [each["image"] for each in made] == [0, 1, 2, 3]
    assert [each["state"] for each in made] == [7, 7, 7, 8]  # the two newest; the older one stands for those before
    assert [each["state"] for each in histories({"state": np.array([5])}, 3)] == [5, 5, 5]


def test_a_plan_goes_on_from_the_one_before() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        client.reset(0, TEXT)
        kept = np.ones((3, 10), np.float32)
        client.plan(observe(core.description), kept, np.array([1.0, 0.5, 0.0]))
        client.plan(observe(core.description))
        first, second = session.going_on
        np.testing.assert_array_equal(first[0].actions, kept)
        np.testing.assert_allclose(first[0].weights, [1, 0.5, 0])
        assert second is None


def test_clients_have_slots_of_their_own_and_a_further_one_is_refused_by_name() -> None:
    with instant_core(max_clients=2) as (core, session):
        one, other = core.open("left arm"), core.open("right arm")
        for seed, client in enumerate((one, other)):
            client.reset(seed, TEXT)
            client.plan(observe(core.description, seed))
        assert sorted(session.recalled) == [0, 1]
        error = refused(core.open, "third arm")
        assert error.code == BUSY
        assert "left arm" in error.text and "right arm" in error.text and "--max-clients" in error.text
        one.close()
        assert core.open("third arm").slot == one.slot


def test_a_client_that_waits_gets_the_place_that_becomes_free() -> None:
    with instant_core() as (core, _):
        first = core.open("first")
        got = []
        waiting = threading.Thread(target=lambda: got.append(core.open("second", wait=lambda: True)))
        waiting.start()
        time.sleep(0.1)
        assert not got
        first.close()
        waiting.join(SECONDS)
        assert got[0].name == "second"
        assert refused(core.open, "third", wait=lambda: False).code == BUSY  # it gave up


def test_only_a_silent_client_loses_its_place_and_only_to_another() -> None:
    with instant_core() as (core, _):
        first = core.open("first", lease=60)
        first.reset(0, TEXT)
        assert refused(core.open, "second", lease=60).code == BUSY
        first.used -= 61
        first.plan(observe(core.description))  # it was silent, but nobody wanted its place
        assert refused(core.open, "second", lease=60).code == BUSY
        first.used -= 61
        core.open("second", lease=60)
        error = refused(first.plan, observe(core.description))
        assert error.code == NO_EPISODE and "first" in error.text


def test_a_client_whose_plan_takes_long_is_not_silent() -> None:
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description)) as core:
        client = core.open("robot", lease=60)
        client.reset(0, TEXT)
        asked = client.submit_plan(observe(description))
        assert session.begun.wait(SECONDS)
        client.used -= 61
        assert refused(core.open, "other", lease=60).code == BUSY
        session.go_on.set()
        assert asked.result(SECONDS).actions.shape == (16, 10)


def test_a_client_without_an_episode_is_told_to_reset() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE
        assert not session.recalled


def test_an_instruction_is_needed_and_has_to_be_one_that_can_be_encoded() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        assert "--task" in refused(client.reset).text
        error = refused(client.reset, 0, "unheard of")
        assert error.code == BAD_REQUEST and TEXT in error.text
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE
    with instant_core(instruction=TEXT) as (core, session):
        core.open("robot").reset(1)
        assert session.resets == [(0, 1, TEXT)]
    with instant_core(describe(follows_text=False)) as (core, session):
        client = core.open("robot")
        assert "no instructions" in refused(client.reset, 0, TEXT).text
        client.reset(2)
        assert session.resets == [(0, 2, None)]


@pytest.mark.parametrize("failure", [RuntimeError("CUDA is on fire"), MemoryError(), AssertionError("odd")], ids=repr)
def test_the_server_goes_on_after_a_policy_that_failed(failure: BaseException) -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        client.reset(0, TEXT)
        session.failure = failure
        error = refused(client.plan, observe(core.description))
        assert error.code == POLICY_FAILED and type(failure).__name__ in error.text and "Traceback" not in error.text
        session.failure = None
        assert client.plan(observe(core.description)).actions.shape == (16, 10)
        health = core.health()
        assert health["failed"] == 1 and health["plans"] == 1 and type(failure).__name__ in health["last_error"]["text"]


def test_a_plan_that_is_not_finite_is_an_error() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        client.reset(0, TEXT)
        session.failure = "nan"
        error = refused(client.plan, observe(core.description))
        assert error.code == POLICY_FAILED and "not finite" in error.text


def test_a_new_question_replaces_the_one_that_waits_but_not_the_one_under_way() -> None:
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description)) as core:
        client = core.open("robot")
        client.reset(0, TEXT)
        seen = [observe(description, seed) for seed in range(3)]
        asked = [client.submit_plan(seen[0])]
        assert session.begun.wait(SECONDS)
        asked += [client.submit_plan(each) for each in seen[1:]]
        session.go_on.set()
        np.testing.assert_array_equal(asked[0].result(SECONDS).actions[0, :3], seen[0]["robot0_eef_pos"][-1])
        np.testing.assert_array_equal(asked[2].result(SECONDS).actions[0, :3], seen[2]["robot0_eef_pos"][-1])
        error = asked[1].exception(SECONDS)
        assert isinstance(error, Refused) and error.code == SUPERSEDED


def test_clients_take_turns_and_wait_is_counted_apart() -> None:
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description), max_clients=2) as core:
        clients = [core.open(name) for name in ("one", "other")]
        for client in clients:
            client.reset(0, TEXT)
        first = clients[0].submit_plan(observe(description))
        assert session.begun.wait(SECONDS)
        second = clients[1].submit_plan(observe(description))
        assert core.health()["queue"] == 1
        time.sleep(0.5)
        session.go_on.set()
        assert first.result(SECONDS).infer_ms > 450 and first.result().wait_ms < 450
        assert second.result(SECONDS).wait_ms > 450


def test_a_server_that_stops_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    description = describe()
    session = HeldSession(description)
    core = Core(session, RequestSpec(description), max_clients=2)
    with core:
        one, other = core.open("one"), core.open("other")
        for client in (one, other):
            client.reset(0, TEXT)
        under_way = one.submit_plan(observe(description))
        assert session.begun.wait(SECONDS)
        waiting = other.submit_plan(observe(description))
        threading.Timer(0.1, session.go_on.set).start()
    assert under_way.result(0).actions.shape == (16, 10)
    assert waiting.exception(0).code == STOPPING
    assert refused(one.plan, observe(description)).code == STOPPING
    assert refused(core.open, "late").code == STOPPING
    assert core.health()["status"] == "stopping"


def test_a_server_that_stops_does_not_wait_for_a_policy_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "STOP_SECONDS", 0.1)
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description)) as core:
        client = core.open("robot")
        client.reset(0, TEXT)
        hanging = client.submit_plan(observe(description))
        assert session.begun.wait(SECONDS)
    assert hanging.exception(0).code == STOPPING
    session.go_on.set()


def test_health_tells_who_is_connected_and_how_long_plans_take() -> None:
    with instant_core() as (core, _):
        client = core.open("robot")
        client.reset(0, TEXT)
        for seed in range(3):
            client.plan(observe(core.description, seed))
        health = core.health()
        assert health["status"] == "ok" and health["plans"] == 3 and health["max_clients"] == 1
        assert [(each["name"], each["plans"]) for each in health["clients"]] == [("robot", 3)]
        assert set(health["infer_ms"]) == {"last", "median", "p99"} and health["planning_for_s"] == 0
        assert "3 plans" in core.monitor.line(1, 1)


def test_the_log_says_now_and_then_how_the_server_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core_module, "REPORT_SECONDS", 0.05)
    caplog.set_level("INFO")
    with instant_core() as (core, _):
        core.open("robot")
        end = time.monotonic() + SECONDS
        while caplog.text.count("1 of 1 clients, 0 plans") < 2:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_smoothing_averages_three_steps_and_repeats_the_ends() -> None:
    actions = np.array([[0.0], [3.0], [6.0], [0.0]], np.float32)
    np.testing.assert_allclose(moving_average(actions), [[1], [3], [3], [2]])
    with instant_core(smooth=True) as (core, _):
        client = core.open("robot")
        client.reset(0, TEXT)
        seen = observe(core.description)
        np.testing.assert_allclose(client.plan(seen).actions[5, :3], seen["robot0_eef_pos"][-1], rtol=1e-6)


def test_one_newest_state_beside_four_frames() -> None:
    entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4), "robot0_eef_pos": ObservationEntry("low_dim", (3,), 1)}
    description = PolicyDescription("one", entries, Horizon(), 10, 8, False)
    with instant_core(description) as (core, session):
        client = core.open("robot")
        client.reset()
        seen = observe(description)
        client.plan(seen)
        for step in session.recalled[0]:
            np.testing.assert_array_equal(step["robot0_eef_pos"], seen["robot0_eef_pos"][0])
