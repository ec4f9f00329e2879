"""A planner in another process: what it says when the server is slow, lost, full, restarted or another one."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from tests.real.server_support import INSTRUCTIONS, InstantSession, describe, instant_core, observe, open_doors
from unified_video_action.compat.openpi_messages import pack
from unified_video_action.inference.continuation import Continuation
from unified_video_action.real.client import RemotePlanner
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.requests import RequestSpec

TEXT = INSTRUCTIONS[0]
SECONDS = 20


def endpoint(ports: dict[str, int]) -> str:
    return f"tcp://127.0.0.1:{ports['zmq']}"


def test_it_needs_no_torch() -> None:
    modules = "unified_video_action.real.client, unified_video_action.real.server.serving"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_it_knows_the_policy_and_plans() -> None:
    with instant_core() as (core, session), open_doors(core) as ports, RemotePlanner(endpoint(ports)) as planner:
        assert planner.description == core.description
        planner.reset(4, TEXT)
        assert session.resets == [(0, 4, TEXT)]
        seen = observe(planner.description)
        actions = planner.plan(seen, Continuation(np.ones((2, 10)), np.array([1.0, 0.5])))
        assert actions.dtype == np.float32 and actions.shape == (16, 10)
        np.testing.assert_array_equal(actions[0, :3], seen["robot0_eef_pos"][-1])
        np.testing.assert_array_equal(session.going_on[0][0].weights, np.float32([1, 0.5]))
        assert planner.timing["round_trip_ms"] > planner.timing["infer_ms"] >= 0
        assert planner.health()["clients"][0]["name"] == "robot"
        planner.close()
        planner.close()
        end = time.monotonic() + SECONDS
        while core.health()["clients"]:
            assert time.monotonic() < end, "closing gives the place back"
            time.sleep(0.01)


def test_it_says_what_the_server_refuses_and_can_be_asked_again() -> None:
    with instant_core() as (core, session), open_doors(core) as ports, RemotePlanner(endpoint(ports)) as planner:
        with pytest.raises(PlannerError, match=r"call reset\(seed, text\) first"):
            planner.plan(observe(planner.description))
        with pytest.raises(PlannerError, match="unheard of"):
            planner.reset(0, "unheard of")
        planner.reset(0, TEXT)
        with pytest.raises(PlannerError, match=r"camera0_rgb: got uint8 \(3, "):
            planner.plan({k: v[:3] if v.dtype == np.uint8 else v for k, v in observe(planner.description).items()})
        for failure in (RuntimeError("broken"), "nan"):
            session.failure = failure
            with pytest.raises(PlannerError, match="broken|not finite"):
                planner.plan(observe(planner.description))
        session.failure = None
        assert planner.plan(observe(planner.description)).shape == (16, 10)


def test_a_second_one_is_refused_by_name_or_waits_for_its_place() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        first = RemotePlanner(endpoint(ports), name="left arm")
        first.reset(0, TEXT)
        with RemotePlanner(endpoint(ports), name="right arm") as second:
            with pytest.raises(PlannerError, match=r"1 of 1 clients are connected: left arm \(for 0 s\)"):
                second.reset(0, TEXT)
            second.queue_seconds = SECONDS
            threading.Timer(0.2, first.close).start()
            second.reset(0, TEXT)
            assert second.plan(observe(second.description)).shape == (16, 10)


def test_who_connects_right_after_another_has_closed_is_let_in() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        for _ in range(20):
            with RemotePlanner(endpoint(ports)) as planner:
                planner.reset(0, TEXT)
    description = describe()
    session = SlowSession(description)
    with Core(session, RequestSpec(description)) as core, open_doors(core) as ports:
        with RemotePlanner(endpoint(ports), plan_seconds=0.1) as planner:
            planner.reset(0, TEXT)
            session.seconds = 0.5
            with pytest.raises(PlannerError, match="no answer"):
                planner.plan(observe(description))
        with RemotePlanner(endpoint(ports)) as planner:
            planner.reset(0, TEXT)


def test_what_the_server_notes_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with instant_core() as (core, _), open_doors(core) as ports, RemotePlanner(endpoint(ports)) as planner:
        planner.reset(0, TEXT)
        core._clients[0].note("a", "are the units right?")
        caplog.clear()
        planner.plan(observe(planner.description))
        planner.plan(observe(planner.description))
        assert caplog.messages == [f"{endpoint(ports)}: are the units right?"]


def test_an_episode_may_take_its_time_to_begin() -> None:
    description = describe()
    session = SlowSession(description)
    session.reset = lambda *_: time.sleep(0.5)
    with Core(session, RequestSpec(description)) as core, open_doors(core) as ports:
        with RemotePlanner(endpoint(ports), plan_seconds=0.2) as planner:
            planner.reset(0, TEXT)


def test_nobody_there_is_said_in_time() -> None:
    begun = time.monotonic()
    with pytest.raises(PlannerError, match=r"tcp://127\.0\.0\.1:9: no answer within 0.3 s; is the server running"):
        RemotePlanner("tcp://127.0.0.1:9", connect_seconds=0.3)
    assert time.monotonic() - begun < SECONDS


@contextmanager
def other_server(answer: bytes) -> Iterator[str]:
    """A server that says the same to everything."""
    with zmq.Context() as context, context.socket(zmq.REP) as server:
        server.linger = 0
        port = server.bind_to_random_port("tcp://127.0.0.1")
        stop = threading.Event()

        def run() -> None:
            while not stop.is_set():
                if server.poll(20):
                    server.recv()
                    server.send(answer)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "answer", [b"", b"hello", pack([1]), pack({}), pack({"description": 5}), pack({"description": {"name": "x"}})]
)
def test_a_server_of_another_project_is_recognised(answer: bytes) -> None:
    with other_server(answer) as place, pytest.raises(PlannerError, match=place):
        RemotePlanner(place)


@pytest.mark.parametrize("actions", [None, np.zeros((15, 10)), np.zeros((16, 9)), np.full((16, 10), np.nan), "go left"])
def test_actions_that_are_none_are_refused(actions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with instant_core() as (core, _), open_doors(core) as ports, RemotePlanner(endpoint(ports)) as planner:
        planner.reset(0, TEXT)
        monkeypatch.setattr(planner, "_ask", lambda *_: {"actions": actions})
        with pytest.raises(PlannerError, match="16 actions of 10 finite numbers"):
            planner.plan(observe(planner.description))


class SlowSession(InstantSession):
    seconds = 0.0

    def plan(self, *arguments, **options) -> np.ndarray:
        time.sleep(self.seconds)
        return super().plan(*arguments, **options)


def test_a_slow_plan_is_given_up_and_its_answer_is_not_taken_for_the_next() -> None:
    description = describe()
    session = SlowSession(description)
    with Core(session, RequestSpec(description)) as core, open_doors(core) as ports:
        with RemotePlanner(endpoint(ports), plan_seconds=0.4) as planner:
            planner.reset(0, TEXT)
            session.seconds = 0.8
            with pytest.raises(PlannerError, match="no answer within 0.4 s"):
                planner.plan(observe(description, 1))
            session.seconds = 0.0
            planner.plan_seconds = SECONDS
            seen = observe(description, 2)
            np.testing.assert_array_equal(planner.plan(seen)[0, :3], seen["robot0_eef_pos"][-1])


def test_closing_ends_a_call_that_waits() -> None:
    description = describe()
    session = SlowSession(description)
    session.seconds = 2.0
    with Core(session, RequestSpec(description)) as core, open_doors(core) as ports:
        planner = RemotePlanner(endpoint(ports), plan_seconds=SECONDS)
        planner.reset(0, TEXT)
        ended = []

        def plan() -> None:
            try:
                planner.plan(observe(description))
            except PlannerError as error:
                ended.append((str(error), time.monotonic()))

        thread = threading.Thread(target=plan)
        thread.start()
        time.sleep(0.2)
        begun = time.monotonic()
        planner.close()
        thread.join()
        assert "closed" in ended[0][0] and ended[0][1] - begun < 1.5


def test_an_episode_survives_a_restart_of_the_server() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        planner = RemotePlanner(endpoint(ports), plan_seconds=SECONDS)
        planner.reset(5, TEXT)
        planner.plan(observe(core.description))
    with planner:
        planner.plan_seconds = 0.5
        with pytest.raises(PlannerError, match="no answer"):
            planner.plan(observe(planner.description))
        with instant_core() as (core, session), open_doors(core, "--zmq-port", str(ports["zmq"])):
            planner.plan_seconds = SECONDS
            seen = observe(planner.description, 3)
            np.testing.assert_array_equal(planner.plan(seen)[0, :3], seen["robot0_eef_pos"][-1])
            assert session.resets == [(0, 5, TEXT)]
        planner.plan_seconds = 0.5
        with pytest.raises(PlannerError, match="no answer"):
            planner.plan(observe(planner.description))
        planner.plan_seconds = SECONDS
        with instant_core(describe(size=32)) as (core, _), open_doors(core, "--zmq-port", str(ports["zmq"])):
            with pytest.raises(PlannerError, match="another policy"):
                planner.plan(observe(planner.description))


def test_a_place_that_was_lost_is_taken_again() -> None:
    with instant_core() as (core, session), open_doors(core) as ports:
        with RemotePlanner(endpoint(ports), name="one") as one, RemotePlanner(endpoint(ports), name="other") as other:
            one.reset(1, TEXT)
            core._clients[0].used -= 100  # as though it had been silent
            other.reset(2, TEXT)
            with pytest.raises(PlannerError, match="connected: other"):
                one.plan(observe(one.description))
            core._clients[0].used -= 100
            assert one.plan(observe(one.description)).shape == (16, 10)
            assert [seed for _, seed, _ in session.resets] == [1, 2, 1]
