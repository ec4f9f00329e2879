"""openpi's websocket over real sockets, with openpi's own client."""

import asyncio
import json
import socket
import threading
import time
import urllib.request
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.real.server_support import (
    INSTRUCTIONS,
    SIZE,
    InstantSession,
    describe,
    instant_core,
    observe,
    serve,
    until,
)
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving import openpi
from unified_video_action.real.serving.core import Core
from unified_video_action.real.serving.requests import RequestSpec
from unified_video_action.spec import Horizon

TEXT, OTHER_TEXT = INSTRUCTIONS
SECONDS = 20
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


def current(seed: int = 0) -> dict[str, Any]:
    """One observation as openpi's clients send it."""
    return {name: value[-1] for name, value in observe(describe(), seed).items()} | {"prompt": TEXT}


def websocket(ports: dict[str, int]) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", ports["websocket"])


def test_openpis_client_gets_metadata_plans_and_timing() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        metadata = client.get_server_metadata()
        assert PolicyDescription.from_json(metadata["description"]) == core.description
        answers = [client.infer(current(seed)) for seed in range(3)]
        assert [set(answer["server_timing"]) for answer in answers] == [
            {"infer_ms", "wait_ms"},
            *[{"infer_ms", "wait_ms", "prev_total_ms"}] * 2,
        ]
        for seed, answer in enumerate(answers):
            assert answer["actions"].shape == (16, 10) and answer["actions"].dtype == np.float32
            np.testing.assert_array_equal(answer["actions"][0, :3], current(seed)["robot0_eef_pos"])
        assert session.resets == [(0, 0, TEXT)]
        shown = [step["robot0_eef_pos"] for step in session.recalled[0]]  # asked for every 8 steps, read every 4
        for found, seed in zip(shown, (0, 1, 1, 2)):
            np.testing.assert_array_equal(found, current(seed)["robot0_eef_pos"])


def test_openpis_broker_hands_out_one_action_at_a_time() -> None:
    with instant_core() as (core, session), serve(core, "--query-steps", "5") as ports:
        broker = ActionChunkBroker(websocket(ports), action_horizon=5)
        for step in range(20):
            action = broker.infer(current(step))["actions"]
            assert action.shape == (10,)
            np.testing.assert_array_equal(action[:3], current(step - step % 5)["robot0_eef_pos"])
        assert core.health()["plans"] == 4
        shown = [step["robot0_eef_pos"] for step in session.recalled[0]]  # at 15; there are 0, 5, 10, 15
        for found, seed in zip(shown, (0, 5, 10, 15)):
            np.testing.assert_array_equal(found, current(seed)["robot0_eef_pos"])


def test_openpis_names_of_observations_are_understood() -> None:
    entries = {
        "agentview_rgb": ObservationEntry("rgb", (64, 64, 3), 4),
        "eye_in_hand_rgb": ObservationEntry("rgb", (64, 64, 3), 4),
        "robot0_eef_pos": ObservationEntry("low_dim", (3,), 4),
        "gripper_qpos": ObservationEntry("low_dim", (2,), 4),
    }
    description = PolicyDescription("kitchen", entries, Horizon(), 10, 8, True)
    message = {
        "observation/image": np.full((224, 224, 3), 10, np.uint8),
        "observation/wrist_image": np.full((3, 64, 64), 20, np.uint8),
        "observation/state": np.array([1, 2, 3, 4, 5]),
        "prompt": TEXT,
        "something/else": 1,
    }
    with instant_core(description) as (core, session), serve(core) as ports:
        client = websocket(ports)
        client.infer(message)
        seen = session.recalled[0][-1]
        assert seen["agentview_rgb"].shape == (64, 64, 3) and (seen["agentview_rgb"] == 10).all()
        assert (seen["eye_in_hand_rgb"] == 20).all()
        assert seen["robot0_eef_pos"].tolist() == [1, 2, 3] and seen["gripper_qpos"].tolist() == [4, 5]
        message |= {"observation/gripper_qpos": np.array([7.0, 8.0])}  # its own name wins
        client.infer(message)
        assert session.recalled[0][-1]["gripper_qpos"].tolist() == [7, 8]
        with pytest.raises(RuntimeError, match=r"observation/state: .*\(8,\).* expected 5 numbers: robot0_eef_pos"):
            client.infer(message | {"observation/state": np.zeros(8)})


@pytest.mark.parametrize(
    "begins",
    [{"prompt": OTHER_TEXT}, {"reset": True}, {"step": 0}],
    ids=["another prompt", "reset", "a step that goes back"],
)
def test_an_episode_of_an_openpi_client_begins(begins: dict[str, Any]) -> None:
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        for step in (0, 8):
            client.infer(current(step) | {"step": step})
        assert len(session.resets) == 1
        client.infer(current(16) | {"step": 16} | begins)
        assert session.resets[1] == (0, 1, begins.get("prompt", TEXT))
        for shown in session.recalled[0]:  # nothing of the episode before
            np.testing.assert_array_equal(shown["robot0_eef_pos"], current(16)["robot0_eef_pos"])


def test_an_openpi_client_may_send_whole_histories() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        whole = observe(core.description)
        client.infer(whole | {"prompt": TEXT})
        for index, step in enumerate(session.recalled[0]):
            np.testing.assert_array_equal(step["camera0_rgb"], whole["camera0_rgb"][index])
        with pytest.raises(RuntimeError, match="a history, but the others are single"):
            client.infer(whole | {"prompt": TEXT, "robot0_eef_pos": whole["robot0_eef_pos"][-1]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera0_rgb": np.zeros((32, 64, 3), np.uint8)}, "proportions"),
        ({"camera0_rgb": 3}, "camera0_rgb: got a int"),
        ({"robot0_eef_pos": np.zeros(4)}, r"robot0_eef_pos: got \(4,\), expected \(3,\)"),
        ({"robot0_eef_pos": np.full(3, np.nan)}, "robot0_eef_pos: .*not finite"),
        ({"robot0_eef_pos": "here"}, "robot0_eef_pos: got a str"),
        ({"prompt": 5}, "text: got a int"),
        ({"prompt": "unheard of"}, f"unheard of.*{TEXT}"),
        ({"step": "one"}, "step: expected a whole number"),
        ({"reset": 1}, "reset: got a int"),
        ({"reset": True, "seed": -1}, "seed: got -1"),
        ({"prefix": np.zeros((3, 9))}, "prefix_weights: got nothing"),
        ({"prefix": np.zeros((3, 9)), "prefix_weights": np.ones(3)}, r"prefix: got \(3, 9\)"),
    ],
)
def test_an_error_reaches_openpis_client_as_one_and_the_server_goes_on(change: dict[str, Any], said: str) -> None:
    with instant_core() as (core, _), serve(core) as ports:
        client = websocket(ports)
        with pytest.raises(RuntimeError, match=said) as error:
            client.infer(current() | change)
        assert "Traceback" not in str(error.value) and ".py" not in str(error.value)
        with pytest.raises(ConnectionClosed) as closed:
            client.infer(current())
        assert closed.value.rcvd.code == 1011
        until(lambda: not core.health()["clients"], "the slot becomes free")
        assert websocket(ports).infer(current())["actions"].shape == (16, 10)


def test_a_second_openpi_client_is_refused_by_name() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        first = websocket(ports)
        first.infer(current())
        second = websocket(ports)
        with pytest.raises(RuntimeError, match=r"1 of 1 clients are connected: client 127\.0\.0\.1:\d+"):
            second.infer(current())
        first.infer(current())


def test_an_openpi_client_that_reconnects_at_once_is_let_in() -> None:
    description = describe()
    session = InstantSession(description)
    with Core(session, RequestSpec(description)) as core, serve(core) as ports:
        for index in range(30):
            client = websocket(ports)
            assert client.infer(current(index))["actions"].shape == (16, 10)
            if index % 2:
                client._ws.close()
            else:
                client._ws.socket.shutdown(socket.SHUT_RDWR)  # as the end of its process does
        begun = threading.Event()

        def plan(*_: Any) -> np.ndarray:
            begun.set()
            time.sleep(1.5)
            return np.zeros((1, 16, 10), np.float32)

        leaving = connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None).__enter__()
        leaving.recv()
        session.plan = plan
        leaving.send(pack(current()))
        assert begun.wait(SECONDS)
        del session.plan
        leaving.close()  # while its plan is being made
        assert websocket(ports).infer(current())["actions"].shape == (16, 10)


def test_a_client_with_frames_of_another_size_hears_both_sizes_once() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        large = np.full((224, 224, 3), 7, np.uint8)
        message = {name: value for name, value in current().items() if name != "camera0_rgb"}
        answers = [client.infer(message | {"observation/image": large}) for _ in range(3)]
        said = f"observation/image: frames of 224 x 224 pixels are resized to {SIZE} x {SIZE}, as trained"
        assert [answer.get("server_notes") for answer in answers] == [[said], None, None]
        assert session.recalled[0][-1]["camera0_rgb"].shape == (SIZE, SIZE, 3)


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (np.zeros((480, 640, 3), np.uint8), "observation/image: got frames of 640 x 480 .* 64 x 64 .*resize_with_pad"),
        (np.zeros((1080, 1080, 3), np.uint8), "observation/image: got frames of 1080 x 1080 pixels, expected .* 64 x"),
        (np.zeros((224, 224, 3), np.uint8).tolist(), "as arrays"),
        (np.zeros((64, 64, 3), np.uint8).tolist(), "as arrays"),
        ([[[1, 2, 3]]], "observation/image: got a list, expected an array, RGB frames of 64 x 64"),
    ],
    ids=["another aspect", "too large", "a list", "a small list", "a tiny list"],
)  # fmt: skip
def test_frames_that_do_not_fit_are_answered_in_words(frame: Any, said: str) -> None:
    with instant_core() as (core, _), serve(core) as ports:
        client = websocket(ports)
        message = {name: value for name, value in current().items() if name != "camera0_rgb"}
        with pytest.raises(RuntimeError, match=said):
            client.infer(message | {"observation/image": frame})


def test_a_client_of_another_rate_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(openpi, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for period, counts, heard in ((0.4, True, 0), (1.0, True, 1), (1.0, False, 1)):
        with instant_core() as (core, _), asyncio.Runner() as runner:
            handler, notes = openpi.OpenpiHandler(core, core.open("robot"), 8), []
            for index in range(15):
                message = pack(current() | ({"step": 8 * index} if counts else {}))
                notes += unpack(runner.run(handler.answer(message)), 2**20).get("server_notes", [])
                now[0] += period
        assert [("8 Hz" in note and "20 Hz" in note) for note in notes] == [True] * heard
        assert all(("--query-steps, which is 8" in note) != counts for note in notes)


def test_an_episode_begins_after_a_pause_of_a_client_that_does_not_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openpi, "PAUSE_SECONDS", -1.0)
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        for _ in range(2):
            client.infer(current())
        assert len(session.resets) == 2
        client.infer(current() | {"step": 100})  # who counts steps may take any time
        assert "actions" not in client.infer({"reset": True, "seed": 41, "prompt": TEXT})
        for _ in range(2):  # and so may who says `reset`
            assert client.infer(current())["actions"].shape == (16, 10)
        client.infer(current() | {"reset": True, "seed": 7})
        assert session.resets[2:] == [(0, 41, TEXT), (0, 7, TEXT)]
        kept = np.full((2, 10), 0.25, np.float32)
        client.infer(current() | {"prefix": kept, "prefix_weights": np.ones(2, np.float32)})
        np.testing.assert_array_equal(session.going_on[-1][0].actions, kept)


def test_health_is_seen_over_http() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        url = f"http://127.0.0.1:{ports['websocket']}"
        answer = urllib.request.urlopen(f"{url}/healthz")
        assert answer.status == 200 and answer.read() == b"OK\n"
        client = websocket(ports)
        client.infer(current())
        answer = urllib.request.urlopen(f"{url}/status")
        assert answer.headers["Content-Type"] == "application/json"
        status = json.load(answer)
        assert status["plans"] == 1 and status["clients"][0]["name"].startswith("client 127.0.0.1:")


def test_what_is_no_message_ends_its_connection_alone() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            client.send("hello")
            assert "expected a binary message" in client.recv()
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            with pytest.raises(ConnectionClosed):
                client.send(bytes(openpi.CLEAR * openpi.most_bytes(core) + 1))
                client.recv()
        until(lambda: not core.health()["clients"], "the slot becomes free")
        assert websocket(ports).infer(current())["actions"].shape == (16, 10)
