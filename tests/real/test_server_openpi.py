"""openpi's websocket over real sockets, with openpi's own client."""

import asyncio
import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.real.fakes import until
from tests.real.server_support import INSTRUCTIONS, describe, instant_core, observe, serve, websocket_url
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.serving import openpi
from unified_video_action.real.serving.requests import Refused
from unified_video_action.spec import Horizon

TEXT, OTHER_TEXT = INSTRUCTIONS
SECONDS = 20
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")


def current(seed: int = 0) -> dict[str, Any]:
    """One observation as openpi's clients send it."""
    return {name: value[-1] for name, value in observe(describe(), seed).items()} | {"prompt": TEXT}


def position(seed: int) -> list[float]:
    return current(seed)["robot0_eef_pos"].tolist()


def with_image(image: Any) -> dict[str, Any]:
    """As `current`, the frame under openpi's name."""
    return {name: value for name, value in current().items() if name != "camera0_rgb"} | {"observation/image": image}


def websocket(ports: dict[str, int]) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", ports["websocket"])


def raw(ports: dict[str, int]):
    return connect(websocket_url(ports), compression=None)


def test_openpis_client_gets_metadata_plans_and_timing() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        client = websocket(ports)
        metadata = client.get_server_metadata()
        assert PolicyDescription.from_json(metadata["description"]) == core.description
        answers = [client.infer(current(seed)) for seed in range(3)]
        first = {"infer_ms", "wait_ms"}
        later = first | {"prev_total_ms"}
        assert [set(answer["server_timing"]) for answer in answers] == [first, later, later]
        for seed, answer in enumerate(answers):
            assert answer["actions"].shape == (16, 10) and answer["actions"].dtype == np.float32
            assert answer["actions"][0, :3].tolist() == position(seed)
        assert session.resets == [(0, 0, TEXT)]
        assert session.shown() == list(map(position, (0, 1, 1, 2)))  # asked for every 8 steps, read every 4


def test_openpis_broker_hands_out_one_action_at_a_time() -> None:
    with instant_core() as (core, session), serve(core, "--query-steps", "5") as ports:
        broker = ActionChunkBroker(websocket(ports), action_horizon=5)
        for step in range(20):
            action = broker.infer(current(step))["actions"]
            assert action.shape == (10,) and action[:3].tolist() == position(step - step % 5)
        assert core.health()["plans"] == 4
        assert session.shown() == list(map(position, (0, 5, 10, 15)))  # at 15; there are 0, 5, 10, 15


def test_openpis_names_of_observations_are_understood() -> None:
    entries = {name: ObservationEntry("rgb", (64, 64, 3), 4) for name in ("agentview_rgb", "eye_in_hand_rgb")}
    entries |= {"robot0_eef_pos": ObservationEntry("low_dim", (3,), 4)}
    entries |= {"gripper_qpos": ObservationEntry("low_dim", (2,), 4)}
    message = {
        "observation/image": np.full((224, 224, 3), 10, np.uint8),
        "observation/wrist_image": np.full((3, 64, 64), 20, np.uint8),
        "observation/state": np.array([1, 2, 3, 4, 5]),
        "prompt": TEXT,
        "something/else": 1,
    }
    with instant_core(PolicyDescription("kitchen", entries, Horizon(), 10, 8, True)) as (core, session):
        with serve(core) as ports:
            client = websocket(ports)
            notes = client.infer(message)["server_notes"]
            assert len(notes) == 2 and "something/else" in notes[0] and "224 x 224 pixels are resized" in notes[1]
            seen = session.recalled[0][-1]
            assert seen["agentview_rgb"].shape == (64, 64, 3) and (seen["agentview_rgb"] == 10).all()
            assert (seen["eye_in_hand_rgb"] == 20).all()
            assert seen["robot0_eef_pos"].tolist() == [1, 2, 3] and seen["gripper_qpos"].tolist() == [4, 5]
            assert "server_notes" not in client.infer(message), "each is said once"


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
        assert session.shown() == [position(16)] * 4  # nothing of the episode before


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
        kept, whole = np.full((2, 10), 0.25, np.float32), observe(core.description) | {"prompt": TEXT}
        client.infer(whole | {"prefix": kept, "prefix_weights": np.ones(2, np.float32)})
        np.testing.assert_array_equal(session.going_on[-1][0].actions, kept)
        assert session.shown() == whole["robot0_eef_pos"].tolist()  # histories may be sent as well


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"prompt": TEXT}, "camera0_rgb, .* missing"),
        (current() | {"robot0_eef_pos": np.full(3, np.nan)}, "robot0_eef_pos: .*not finite"),
        (current() | {"prompt": 5}, "text: got a int"),
        (current() | {"step": "one"}, "step: expected a whole number"),
        (current() | {"reset": 1}, "reset: got a int"),
        (current() | {"prefix": np.zeros((3, 9))}, "prefix_weights: got nothing"),
        (current() | {"robot0_eef_pos": np.zeros((4, 3))}, "robot0_eef_pos: a history, but the others are single"),
        ({"observation/state": np.zeros(8)}, r"observation/state: .*\(8,\).* expected 16 numbers: robot0_eef_pos"),
        (with_image(np.zeros((480, 640, 3), np.uint8)), "observation/image: got frames of 640 x 480 .* 64 x 64 .*_pad"),
        (with_image([[[1, 2, 3]]]), "observation/image: got a list, expected an array, RGB frames of 64 x 64"),
    ],
)
def test_what_is_wrong_with_an_observation_is_named(message: dict[str, Any], said: str) -> None:
    with instant_core() as (core, _), asyncio.Runner() as runner, pytest.raises(Refused, match=said):
        runner.run(openpi.OpenpiHandler(core, core.open("robot"), 8).answer(pack(message)))


def test_an_error_reaches_openpis_client_as_one_and_the_server_goes_on() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        client = websocket(ports)
        with pytest.raises(RuntimeError, match=f"unheard of.*{TEXT}") as error:
            client.infer(current() | {"prompt": "unheard of"})
        assert "Traceback" not in str(error.value) and ".py" not in str(error.value)
        with pytest.raises(ConnectionClosed) as closed:
            client.infer(current())
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "bad_request")
        until(lambda: not core.health()["clients"], "the slot becomes free")
        again = websocket(ports)
        assert again.infer(current())["actions"].shape == (16, 10)
        with pytest.raises(RuntimeError, match=r"1 of 1 clients are connected: client 127\.0\.0\.1:\d+"):
            websocket(ports).infer(current())


def test_an_openpi_client_that_reconnects_at_once_is_let_in() -> None:
    with instant_core() as (core, session), serve(core) as ports:
        for index in range(10):
            client = websocket(ports)
            assert client.infer(current(index))["actions"].shape == (16, 10)
            if index % 2:
                client._ws.close()
            else:
                client._ws.socket.shutdown(socket.SHUT_RDWR)  # as the end of its process does
        begun = threading.Event()
        session.before_plan = lambda: (begun.set(), time.sleep(1.0))
        leaving = raw(ports).__enter__()
        leaving.recv()
        leaving.send(pack(current()))
        assert begun.wait(SECONDS)
        session.before_plan = lambda: None
        leaving.close()  # while its plan is being made
        assert websocket(ports).infer(current())["actions"].shape == (16, 10)


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


def test_what_is_no_message_ends_its_connection_alone() -> None:
    with instant_core() as (core, _), serve(core) as ports:
        with raw(ports) as client:
            client.recv()
            client.send("hello")
            assert "expected a binary message" in client.recv()
        with raw(ports) as client:
            client.recv()
            with pytest.raises(ConnectionClosed):
                client.send(bytes(openpi.CLEAR * openpi.most_bytes(core) + 1))
                client.recv()
        until(lambda: not core.health()["clients"], "the slot becomes free")
        assert websocket(ports).infer(current())["actions"].shape == (16, 10)
