"""The policy server's core with policies that answer at once, slowly, wrongly or never; what it says of rates."""

import re
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from tests.real.server_support import INSTRUCTIONS, InstantSession, describe, instant_core, observe
from unified_video_action.real.serving import core as core_module
from unified_video_action.real.serving.core import Client, Core
from unified_video_action.real.serving.histories import INTERVALS, RateWatch
from unified_video_action.real.serving.requests import BAD_REQUEST, BUSY, NO_EPISODE, STOPPING, Refused

TEXT = INSTRUCTIONS[0]
SECONDS = 20  # in which what is waited for has happened
TRAINED = 0.05  # seconds


def refused(call, *arguments) -> Refused:
    with pytest.raises(Refused) as caught:
        answer = call(*arguments)
        if isinstance(answer, Future):
            answer.result(SECONDS)
    return caught.value


def ready(core: Core, name: str = "robot", seed: int = 0) -> Client:
    """A client with an episode."""
    client = core.open(name)
    client.reset(seed, TEXT).result(SECONDS)
    return client


def hold(session: InstantSession) -> tuple[threading.Event, threading.Event]:
    """Have plans wait: an event when one has begun, and one to let them be made."""
    begun, go_on = threading.Event(), threading.Event()
    session.before_plan = lambda: (begun.set(), go_on.wait(SECONDS))
    return begun, go_on


def test_clients_get_plans_of_their_newest_observations_in_slots_of_their_own() -> None:
    with instant_core(max_clients=2) as (core, session):
        clients = [ready(core, name, seed) for seed, name in enumerate(("left arm", "right arm"))]
        for seed, client in enumerate(clients):
            seen = observe(core.description, seed)
            plan = client.plan(seen).result(SECONDS)
            assert plan.actions.shape == (16, 10) and plan.actions.dtype == np.float32
            np.testing.assert_array_equal(plan.actions[0, :3], seen["robot0_eef_pos"][-1])
            assert session.shown(client.slot) == seen["robot0_eef_pos"].tolist()
        assert session.resets == [(0, 0, TEXT), (1, 1, TEXT)]
        error = refused(core.open, "third arm")
        assert error.code == BUSY
        assert re.match(r"2 of 2 clients are connected: left arm \(for \d+ s\), right arm", error.text)
        clients[0].close()
        assert refused(clients[0].plan, observe(core.description)).code == NO_EPISODE
        assert core.open("third arm").slot == clients[0].slot
        clients = core.health()["clients"]
        assert [(each["name"], each["plans"]) for each in clients] == [("right arm", 1), ("third arm", 0)]


def test_an_instruction_is_needed_and_has_to_be_one_that_can_be_encoded() -> None:
    with instant_core() as (core, session):
        client = core.open("robot")
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE
        assert "--task" in refused(client.reset).text
        error = refused(client.reset, 0, "unheard of")
        assert error.code == BAD_REQUEST and TEXT in error.text
        assert refused(client.plan, observe(core.description)).code == NO_EPISODE and not session.recalled
    with instant_core(describe(follows_text=False)) as (core, session):
        client = core.open("robot")
        assert "no instructions" in refused(client.reset, 0, TEXT).text
        client.reset(2).result(SECONDS)
        assert session.resets == [(0, 2, None)]


def test_a_server_that_stops_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    with instant_core(max_clients=2) as (core, session):
        (one, other), (begun, go_on) = [ready(core, name) for name in ("one", "other")], hold(session)
        under_way = one.plan(observe(core.description))
        assert begun.wait(SECONDS)
        waiting = other.plan(observe(core.description))
        threading.Timer(0.1, go_on.set).start()
    assert under_way.result(0).actions.shape == (16, 10)
    assert waiting.exception(0).code == STOPPING
    assert refused(one.plan, observe(core.description)).code == STOPPING
    assert refused(core.open, "late").code == STOPPING
    assert core.health()["status"] == "stopping"


def test_a_server_that_stops_does_not_wait_for_a_policy_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_module, "STOP_SECONDS", 0.1)
    with instant_core() as (core, session):
        begun, go_on = hold(session)
        hanging = ready(core).plan(observe(core.description))
        assert begun.wait(SECONDS)
    assert hanging.exception(0).code == STOPPING
    go_on.set()


# -- rates of control --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "answer", "heard"),
    [
        (0.4, 0.01, ()),  # as trained
        (0.4, 0.3, ()),  # likewise; the arm moves on while it waits
        (0.7, 0.3, ()),  # it rests while it waits
        (0.48, 0.01, ()),  # a fifth slower
        (1.0, 0.0, ("no more than 8 Hz", "training data at 20 Hz", "stretched 2.5 times")),
        (0.05, 0.0, ("no less than 160 Hz", "squeezed to 0.12 of their length")),
    ],
)
def test_a_client_of_another_rate_hears_both(period: float, answer: float, heard: tuple[str, ...]) -> None:
    """It asks every `period` seconds, 8 steps apart, is answered after `answer`, and pauses twice."""
    watch, now, found = RateWatch(TRAINED), 100.0, None
    for index in range(2 * INTERVALS):
        found = watch.asked(now, 8) or found
        watch.answered(now + answer)
        now += period + (3.0 if index in (3, 12) else 0.0)
    assert bool(found) == bool(heard) and all(each in found for each in heard)
    assert RateWatch(None).judge(0.125) is None  # the training data's rate is not known
