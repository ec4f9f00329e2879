"""A planner in another process: what it says when the server is slow, lost, full, restarted or another one."""

import dataclasses
import threading
import time
from typing import Any

import numpy as np
import pytest
from websockets.sync.server import serve as serve_websocket

from tests.real.fakes import until
from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe, serve, websocket_url
from unified_video_action.compat.openpi_messages import pack
from unified_video_action.inference.continuation import Continuation
from unified_video_action.real.planner import PlannerError
from unified_video_action.real.serving.client import RemotePlanner

TEXT = INSTRUCTIONS[0]
SECONDS = 20


def test_it_knows_the_policy_and_plans(caplog: pytest.LogCaptureFixture) -> None:
    with instant_core() as (core, session), serve(core) as ports, RemotePlanner(websocket_url(ports)) as planner:
        assert planner.description == core.description
        planner.reset(4, TEXT)
        seen = observe(planner.description)
        actions = planner.plan(seen, Continuation(np.ones((2, 10)), np.array([1.0, 0.5])))
        assert session.resets == [(0, 4, TEXT)]
        assert actions.dtype == np.float32 and actions.shape == (16, 10)
        np.testing.assert_array_equal(actions[0, :3], seen["robot0_eef_pos"][-1])
        for index, step in enumerate(session.recalled[0]):
            for name, value in step.items():
                np.testing.assert_array_equal(value, seen[name][index])
        np.testing.assert_array_equal(session.going_on[0][0].weights, np.float32([1, 0.5]))
        core._clients[0].note("a", "are the units right?")
        caplog.clear()
        for _ in range(2):
            planner.plan(seen)
        assert caplog.messages == [f"{websocket_url(ports)}: are the units right?"]
        planner.close()
        until(lambda: not core.health()["clients"], "closing gives the slot back")


def test_it_says_what_the_server_refuses_and_can_be_asked_again() -> None:
    with instant_core() as (core, session), serve(core) as ports, RemotePlanner(websocket_url(ports)) as planner:
        seen = observe(planner.description)
        with pytest.raises(PlannerError, match=r"call reset\(seed, text\) first"):
            planner.plan(seen)
        with pytest.raises(PlannerError, match="unheard of"):
            planner.reset(0, "unheard of")
        planner.reset(6, TEXT)
        with pytest.raises(PlannerError, match=r"camera0_rgb: got uint8 \(3, ") as refused:
            planner.plan({name: value[:3] if value.dtype == np.uint8 else value for name, value in seen.items()})
        assert refused.value.code == "bad_request"
        for failure, said in (
            (RuntimeError("broken"), "broken"),
            (MemoryError(), "MemoryError"),
            ("nan", "not finite"),
        ):
            session.failure = failure
            with pytest.raises(PlannerError, match=said) as failed:
                planner.plan(seen)
            assert failed.value.code == "policy_failed"  # so that the arm does not go on as after a lost connection
        session.failure = None
        assert planner.plan(seen).shape == (16, 10)
        assert session.resets == [(0, 6, TEXT)] * 5  # the episode begins again through each new connection
        assert core.health()["failed"] == 3 and core.health()["plans"] == 1


def test_a_second_one_waits_for_its_slot_where_clients_queue() -> None:
    with instant_core() as (core, _), serve(core, "--queue") as ports:
        threading.Timer(0.8, RemotePlanner(websocket_url(ports)).close).start()
        with RemotePlanner(websocket_url(ports)) as second:
            second.reset(0, TEXT)
            assert second.plan(observe(second.description)).shape == (16, 10)


@pytest.mark.parametrize("hello", [b"", "hello", pack([1]), pack({"description": {"name": "x"}})])
def test_a_server_of_another_project_is_recognised(hello: bytes | str) -> None:
    with serve_websocket(lambda connection: (connection.send(hello), connection.recv()), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        with pytest.raises(PlannerError, match=url):
            RemotePlanner(url)


@pytest.mark.parametrize("actions", [None, np.zeros((15, 10)), np.zeros((16, 9)), np.full((16, 10), np.nan), "go left"])
def test_actions_that_are_none_are_refused(actions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with instant_core() as (core, _), serve(core) as ports, RemotePlanner(websocket_url(ports)) as planner:
        planner.reset(0, TEXT)
        monkeypatch.setattr(planner, "_ask", lambda *_: {"actions": actions})
        with pytest.raises(PlannerError, match="16 actions of 10 finite numbers"):
            planner.plan(observe(planner.description))


def test_a_slow_plan_is_given_up_and_its_answer_is_not_taken_for_the_next() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        with RemotePlanner(websocket_url(ports), plan_seconds=0.4) as planner:
            reset = session.reset
            session.reset = lambda *given: (time.sleep(0.5), reset(*given))
            planner.reset(0, TEXT)  # an episode may take its time to begin
            session.reset, session.before_plan = reset, lambda: time.sleep(0.6)
            with pytest.raises(PlannerError, match="no answer within 0.4 s"):
                planner.plan(observe(core.description, 1))
            session.before_plan, planner.plan_seconds = lambda: None, SECONDS
            seen = observe(core.description, 2)
            np.testing.assert_array_equal(planner.plan(seen)[0, :3], seen["robot0_eef_pos"][-1])


def test_closing_ends_a_call_that_waits() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        planner, ended = RemotePlanner(websocket_url(ports), plan_seconds=SECONDS), []
        planner.reset(0, TEXT)
        begun, go_on = threading.Event(), threading.Event()
        session.before_plan = lambda: (begun.set(), go_on.wait(SECONDS))

        def plan() -> None:
            with pytest.raises(PlannerError, match="closed"):
                planner.plan(observe(core.description))
            ended.append(True)

        thread = threading.Thread(target=plan)
        thread.start()
        assert begun.wait(SECONDS)
        planner.close()
        thread.join(SECONDS / 2)
        go_on.set()
        assert ended


def test_an_episode_survives_a_restart_of_the_server() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        planner = RemotePlanner(websocket_url(ports), plan_seconds=SECONDS)
        planner.reset(5, TEXT)
        planner.plan(observe(core.description))
    again = ("--port", str(ports["websocket"]))
    with planner:
        planner.plan_seconds = 0.3
        with pytest.raises(PlannerError, match="no answer within 0.3 s; is the server running"):
            planner.plan(observe(planner.description))
        planner.plan_seconds = SECONDS
        with instant_core() as (core, session), serve(core, *again):
            seen = observe(planner.description, 3)
            np.testing.assert_array_equal(planner.plan(seen)[0, :3], seen["robot0_eef_pos"][-1])
            assert session.resets == [(0, 5, TEXT)]
        for other in (describe(size=32), dataclasses.replace(describe(), fingerprint="other weights")):
            with instant_core(other) as (core, _), serve(core, *again):
                with pytest.raises(PlannerError, match="another policy"):
                    planner.plan(observe(planner.description))
