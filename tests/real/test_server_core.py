"""The policy server's core with policies that answer at once, slowly, wrongly or never."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from tests.real.server_support import INSTRUCTIONS, InstantSession, describe, instant_core, observe, until
from unified_video_action.real.planner import ObservationEntry, PolicyDescription, moving_average
from unified_video_action.real.serving import core as core_module
from unified_video_action.real.serving.core import Client, Core
from unified_video_action.real.serving.histories import histories
from unified_video_action.real.serving.requests import (
    BAD_REQUEST,
    BUSY,
    NO_EPISODE,
    POLICY_FAILED,
    STOPPING,
    Refused,
    RequestSpec,
)
from unified_video_action.spec import Horizon

TEXT = INSTRUCTIONS[0]
SECONDS = 20  # in which what is waited for has happened


def refused(call, *arguments, **options) -> Refused:
    with pytest.raises(Refused) as caught:
        answer = call(*arguments, **options)
        if isinstance(answer, Future):
            answer.result(SECONDS)
    return caught.value


def ready(core: Core, name: str = "robot", seed: int = 0) -> Client:
    """A client with an episode."""
    client = core.open(name)
    client.reset(seed, TEXT).result(SECONDS)
    return client


class HeldSession(InstantSession):
    """Plans when it is allowed to."""

    def __init__(self, description: PolicyDescription) -> None:
        super().__init__(description)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def plan(self, *arguments, **options) -> np.ndarray:
        self.begun.set()
        assert self.go_on.wait(SECONDS)
        return super().plan(*arguments, **options)


def test_clients_get_plans_of_their_newest_observations_in_slots_of_their_own() -> None:
    with instant_core(max_clients=2) as (core, session):
        clients = [ready(core, name, seed) for seed, name in enumerate(("left arm", "right arm"))]
        for seed, client in enumerate(clients):
            seen = observe(core.description, seed)
            plan = client.plan(seen).result(SECONDS)
            assert plan.actions.shape == (16, 10) and plan.actions.dtype == np.float32
            np.testing.assert_array_equal(plan.actions[0, :3], seen["robot0_eef_pos"][-1])
            recalled = session.recalled[client.slot]
            assert len(recalled) == 4
            np.testing.assert_array_equal(recalled[1]["camera0_rgb"], seen["camera0_rgb"][1])
        assert session.resets == [(0, 0, TEXT), (1, 1, TEXT)]
        error = refused(core.open, "third arm")
        assert error.code == BUSY
        assert "2 of 2 clients are connected: left arm (for 0 s), right arm" in error.text
        clients[0].close()
        assert core.open("third arm").slot == clients[0].slot


def test_a_history_is_one_observation_per_frame() -> None:
    made = histories({"image": np.arange(4), "state": np.array([7, 8])}, 4)
    assert [each["image"] for each in made] == [0, 1, 2, 3]
    assert [each["state"] for each in made] == [7, 7, 7, 8]  # the two newest; the older one stands for those before
    entries = {"image": ObservationEntry("rgb", (16, 16, 3), 4), "robot0_eef_pos": ObservationEntry("low_dim", (3,), 1)}
    description = PolicyDescription("one", entries, Horizon(), 10, 8, False)
    with instant_core(description) as (core, session):
        client = core.open("robot")
        client.reset().result(SECONDS)
        seen = observe(description)
        client.plan(seen).result(SECONDS)
        for step in session.recalled[0]:
            np.testing.assert_array_equal(step["robot0_eef_pos"], seen["robot0_eef_pos"][0])


def test_a_plan_goes_on_from_the_one_before() -> None:
    with instant_core() as (core, session):
        client = ready(core)
        kept = np.ones((3, 10), np.float32)
        client.plan(observe(core.description), kept, np.array([1.0, 0.5, 0.0])).result(SECONDS)
        client.plan(observe(core.description)).result(SECONDS)
        first, second = session.going_on
        np.testing.assert_array_equal(first[0].actions, kept)
        np.testing.assert_allclose(first[0].weights, [1, 0.5, 0])
        assert second is None


def test_only_a_silent_client_with_a_lease_loses_its_slot_and_only_to_another() -> None:
    description = describe()
    session = HeldSession(description)
    session.go_on.set()
    with Core(session, RequestSpec(description)) as core:
        first = core.open("first", lease=60)
        first.reset(0, TEXT).result(SECONDS)
        assert refused(core.open, "second").code == BUSY
        first.used -= 61
        first.plan(observe(description)).result(SECONDS)  # it was silent, but nobody wanted its slot
        session.go_on.clear()
        asked = first.plan(observe(description))
        first.used -= 61
        assert refused(core.open, "second").code == BUSY  # whose plan takes long is not silent
        session.go_on.set()
        asked.result(SECONDS)
        until(lambda: not first.pending, "it is done")
        first.used -= 61
        second = core.open("second")
        second.used -= 61
        assert refused(core.open, "third").code == BUSY  # the second has no lease
        error = refused(first.plan, observe(description))
        assert error.code == NO_EPISODE and "first" in error.text


def test_an_instruction_is_needed_and_has_to_be_one_that_can_be_encoded() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE
        assert "--task" in refused(client.reset).text
        error = refused(client.reset, 0, "unheard of")
        assert error.code == BAD_REQUEST and TEXT in error.text
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE and not session.recalled
    with instant_core(instruction=TEXT) as (core, session):
        core.open("robot").reset(1).result(SECONDS)
        assert session.resets == [(0, 1, TEXT)]
    with instant_core(describe(follows_text=False)) as (core, session):
        client = core.open("robot")
        assert "no instructions" in refused(client.reset, 0, TEXT).text
        client.reset(2).result(SECONDS)
        assert session.resets == [(0, 2, None)]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RuntimeError("CUDA is on fire"), "RuntimeError"),
        (MemoryError(), "MemoryError"),
        (AssertionError("odd"), "AssertionError"),
        ("nan", "not finite"),
    ],
    ids=repr,
)
def test_the_server_goes_on_after_a_policy_that_failed(failure: BaseException | str, said: str) -> None:
    with instant_core() as (core, session):
        client = ready(core)
        session.failure = failure
        error = refused(client.plan, observe(core.description))
        assert error.code == POLICY_FAILED and said in error.text and "Traceback" not in error.text
        session.failure = None
        assert client.plan(observe(core.description)).result(SECONDS).actions.shape == (16, 10)
        health = core.health()
        assert health["failed"] == 1 and health["plans"] == 1 and said in health["last_error"]["text"]


def test_clients_take_turns_and_wait_is_counted_apart() -> None:
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description), max_clients=2) as core:
        clients = [ready(core, name) for name in ("one", "other")]
        first = clients[0].plan(observe(description))
        assert session.begun.wait(SECONDS)
        second, given_up = clients[1].plan(observe(description)), clients[1].plan(observe(description))
        assert given_up.cancel() and core.health()["queue"] == 2
        time.sleep(0.5)
        session.go_on.set()
        assert first.result(SECONDS).infer_ms > 450 and first.result().wait_ms < 450
        assert second.result(SECONDS).wait_ms > 450
    assert core.health()["plans"] == 2


def test_a_server_that_stops_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    description = describe()
    session = HeldSession(description)
    with Core(session, RequestSpec(description), max_clients=2) as core:
        one, other = ready(core, "one"), ready(core, "other")
        under_way = one.plan(observe(description))
        assert session.begun.wait(SECONDS)
        waiting = other.plan(observe(description))
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
        hanging = ready(core).plan(observe(description))
        assert session.begun.wait(SECONDS)
    assert hanging.exception(0).code == STOPPING
    session.go_on.set()


def test_health_tells_who_is_connected_and_how_long_plans_take() -> None:
    with instant_core() as (core, _):
        client = ready(core)
        for seed in range(3):
            client.plan(observe(core.description, seed)).result(SECONDS)
        health = core.health()
        assert health["status"] == "ok" and health["plans"] == 3 and health["max_clients"] == 1
        assert [(each["name"], each["plans"]) for each in health["clients"]] == [("robot", 3)]
        assert set(health["infer_ms"]) == {"last", "median", "p99"} and health["planning_for_s"] == 0
        assert "1 of 1 clients, 3 plans" in core.line()


def test_smoothing_averages_three_steps_and_repeats_the_ends() -> None:
    actions = np.array([[0.0], [3.0], [6.0], [0.0]], np.float32)
    np.testing.assert_allclose(moving_average(actions), [[1], [3], [3], [2]])
    with instant_core(smooth=True) as (core, _):
        seen = observe(core.description)
        plan = ready(core).plan(seen).result(SECONDS)
        np.testing.assert_allclose(plan.actions[5, :3], seen["robot0_eef_pos"][-1], rtol=1e-6)
