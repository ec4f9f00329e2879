"""The three doors over real sockets, with openpi's own client and one that speaks as umi-arx's does."""

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
import zmq
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.real.server_support import (
    INSTRUCTIONS,
    SIZE,
    STATES,
    InstantSession,
    describe,
    instant_core,
    observe,
    open_doors,
    options,
)
from unified_video_action.compat.openpi_messages import pack, unpack
from unified_video_action.real.client import RemotePlanner
from unified_video_action.real.planner import ObservationEntry, PolicyDescription
from unified_video_action.real.server import openpi_desk, serving
from unified_video_action.real.server.core import Core
from unified_video_action.real.server.requests import RequestSpec
from unified_video_action.spec import Horizon

TEXT, OTHER_TEXT = INSTRUCTIONS
SECONDS = 20


def current(seed: int = 0) -> dict[str, Any]:
    """One observation as openpi's clients send it."""
    return {name: value[-1] for name, value in observe(describe(), seed).items()} | {"prompt": TEXT}


def until(condition, what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@contextmanager
def umi_client(port: int) -> Iterator[zmq.Socket]:
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.linger, client.rcvtimeo = 0, 1000 * SECONDS
        client.connect(f"tcp://127.0.0.1:{port}")
        yield client


def umi_message(steps: int = 16, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What umi-arx sends, and the frames (T, H, W, 3) that it saw."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(256, size=(steps, SIZE, SIZE, 3), dtype=np.uint8)
    message = {"camera0_rgb": np.moveaxis(frames.astype(np.float32) / 255, -1, 1)}  # (T, 3, H, W)
    for name, width in zip(STATES, (3, 6, 1, 6)):
        message[name] = rng.uniform(-0.5, 0.5, (steps, width))
    return message, frames


# -- openpi ------------------------------------------------------------------------------------------------------------


def test_openpis_client_gets_metadata_plans_and_timing() -> None:
    with instant_core() as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
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
    with instant_core() as (core, session), open_doors(core, "--query-steps", "5") as ports:
        broker = ActionChunkBroker(WebsocketClientPolicy("127.0.0.1", ports["websocket"]), action_horizon=5)
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
    with instant_core(description) as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
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
    with instant_core() as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        for step in (0, 8):
            client.infer(current(step) | {"step": step})
        assert len(session.resets) == 1
        client.infer(current(16) | {"step": 16} | begins)
        assert session.resets[1] == (0, 1, begins.get("prompt", TEXT))
        for shown in session.recalled[0]:  # nothing of the episode before
            np.testing.assert_array_equal(shown["robot0_eef_pos"], current(16)["robot0_eef_pos"])


def test_an_episode_begins_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    with instant_core() as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        client.infer(current())
        client.infer(current())
        assert len(session.resets) == 1
        monkeypatch.setattr(openpi_desk, "PAUSE_SECONDS", -1.0)
        client.infer(current())
        assert len(session.resets) == 2
        client.infer(current() | {"step": 100})  # who counts steps may take any time
        assert len(session.resets) == 2


def test_an_openpi_client_may_send_whole_histories() -> None:
    with instant_core() as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
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
    ],
)
def test_an_error_reaches_openpis_client_as_one_and_the_server_goes_on(change: dict[str, Any], said: str) -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        with pytest.raises(RuntimeError, match=said) as error:
            client.infer(current() | change)
        assert "Traceback" not in str(error.value) and ".py" not in str(error.value)
        with pytest.raises(ConnectionClosed) as closed:
            client.infer(current())
        assert closed.value.rcvd.code == 1011
        until(lambda: not core.health()["clients"], "the place becomes free")
        assert WebsocketClientPolicy("127.0.0.1", ports["websocket"]).infer(current())["actions"].shape == (16, 10)


def test_a_second_openpi_client_is_refused_by_name_or_waits() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        first = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        first.infer(current())
        second = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        with pytest.raises(RuntimeError, match=r"1 of 1 clients are connected: openpi client 127\.0\.0\.1:\d+"):
            second.infer(current())
        first.infer(current())
    with instant_core() as (core, _), open_doors(core, "--queue") as ports:
        first = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as second:
            with pytest.raises(TimeoutError):
                second.recv(timeout=0.3)
            first._ws.close()
            assert "policy" in unpack(second.recv(timeout=SECONDS), 100_000)


def test_an_openpi_client_that_reconnects_at_once_is_let_in() -> None:
    description = describe()
    session = InstantSession(description)
    with Core(session, RequestSpec(description)) as core, open_doors(core) as ports:
        for index in range(30):
            client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
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
        assert WebsocketClientPolicy("127.0.0.1", ports["websocket"]).infer(current())["actions"].shape == (16, 10)


def test_a_client_with_frames_of_another_size_hears_both_sizes_once() -> None:
    with instant_core() as (core, session), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
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
    with instant_core() as (core, _), open_doors(core) as ports:
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        message = {name: value for name, value in current().items() if name != "camera0_rgb"}
        with pytest.raises(RuntimeError, match=said):
            client.infer(message | {"observation/image": frame})


def test_a_client_that_counts_steps_at_another_rate_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(openpi_desk, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for period, heard in ((0.4, False), (1.0, True)):
        with instant_core() as (core, _):
            desk, notes = openpi_desk.OpenpiDesk(core, core.open("robot"), 8), []
            for index in range(15):
                notes += unpack(desk.answer(pack(current() | {"step": 8 * index})), 2**20).get("server_notes", [])
                now[0] += period
        assert [("8 Hz" in note and "20 Hz" in note) for note in notes] == [True] * heard


def test_health_is_seen_over_http() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        url = f"http://127.0.0.1:{ports['websocket']}"
        answer = urllib.request.urlopen(f"{url}/healthz")
        assert answer.status == 200 and answer.read() == b"OK\n"
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        client.infer(current())
        answer = urllib.request.urlopen(f"{url}/status")
        assert answer.headers["Content-Type"] == "application/json"
        status = json.load(answer)
        assert status["plans"] == 1 and status["clients"][0]["name"].startswith("openpi client 127.0.0.1:")


def test_a_text_in_place_of_a_message_is_an_error() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            client.send("hello")
            assert "expected a binary message" in client.recv()


def test_a_message_beyond_all_bounds_ends_its_connection_alone() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        with connect(f"ws://127.0.0.1:{ports['websocket']}", compression=None) as client:
            client.recv()
            with pytest.raises(ConnectionClosed):
                client.send(bytes(openpi_desk.CLEAR * openpi_desk.most_bytes(core) + 1))
                client.recv()
        until(lambda: not core.health()["clients"], "the place becomes free")
        assert WebsocketClientPolicy("127.0.0.1", ports["websocket"]).infer(current())["actions"].shape == (16, 10)


# -- UMI ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 13, 16, 20])
def test_umis_client_gets_plans(steps: int) -> None:
    message, frames = umi_message(steps)
    with instant_core(instruction=TEXT) as (core, session), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as client:
            client.send_pyobj(message)
            actions = client.recv_pyobj()
    assert isinstance(actions, np.ndarray) and actions.shape == (16, 10) and actions.dtype == np.float32
    chosen = range(4) if steps == 4 else range(steps - 13, steps, 4)
    for index, step in zip(chosen, session.recalled[0], strict=True):
        np.testing.assert_array_equal(step["camera0_rgb"], frames[index])
        np.testing.assert_allclose(step["robot0_eef_pos"], message["robot0_eef_pos"][index], rtol=1e-6)
    np.testing.assert_allclose(actions[0, :3], message["robot0_eef_pos"][-1], rtol=1e-6)


def test_a_umi_client_that_was_restarted_is_let_in_at_once() -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, session), open_doors(core, "--allow-umi-pickle") as ports:
        for _ in range(10):
            with umi_client(ports["umi"]) as client:
                client.send_pyobj(message)
                assert client.recv_pyobj().shape == (16, 10)
        assert len(session.resets) == 10
        until(lambda: not core.health()["clients"], "the place becomes free")


def test_umis_client_is_measured_by_the_times_it_sends(caplog: pytest.LogCaptureFixture) -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, _), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as client:
            for step, heard in ((0.05, 0), (0.058, 0), (0.125, 1), (0.125, 1)):
                client.send_pyobj(message | {"timestamp": 5.0 + step * np.arange(16)})
                assert client.recv_pyobj().shape == (16, 10)
                assert caplog.text.count("control steps come at 8 Hz, those of the training data at 20 Hz") == heard
            client.send_pyobj(message | {"timestamp": np.zeros(16)})
            assert "timestamp: expected the growing times" in client.recv_pyobj()


@pytest.mark.parametrize("protocol", range(6))
def test_umis_messages_are_read_in_every_pickle_protocol(protocol: int) -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, _), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as client:
            client.send_pyobj(message, protocol=protocol)
            np.testing.assert_allclose(client.recv_pyobj()[0, :3], message["robot0_eef_pos"][-1], rtol=1e-6)


def test_umis_task_name_chooses_the_instruction() -> None:
    message, _ = umi_message()
    with instant_core() as (core, session), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as client:
            client.send_pyobj(message)
            assert "--task" in client.recv_pyobj()
            for name in ("uva_towel", "uva_towel", "the cup", "a mouse", INSTRUCTIONS[1]):
                client.send_pyobj(message | {"task_name": name})
                answer = client.recv_pyobj()
                assert isinstance(answer, str) == (name == "a mouse")
        assert [text for _, _, text in session.resets] == [INSTRUCTIONS[1], INSTRUCTIONS[0], INSTRUCTIONS[1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera0_rgb": np.zeros((16, 3, 32, 32), np.float32)}, "camera0_rgb: got frames of 32 x 32"),
        ({"camera0_rgb": np.full((16, 3, SIZE, SIZE), 255.0)}, "outside [0, 1]"),
        ({"robot0_eef_pos": np.zeros((7, 3))}, "robot0_eef_pos: got 7 steps, expected 4, or 16"),
        ({"robot0_eef_pos": np.zeros((16, 2))}, "robot0_eef_pos: got float64 (4, 2)"),
        ({"robot0_eef_pos": np.full((16, 3), np.inf)}, "not finite"),
        ({"robot0_eef_pos": [1.0, 2.0]}, "robot0_eef_pos: got a list"),
        ({"task_name": 7}, "task_name: a int"),
    ],
)
def test_umis_client_gets_errors_as_texts(change: dict[str, Any], said: str) -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, _), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as client:
            client.send_pyobj(message | change)
            answer = client.recv_pyobj()
            assert isinstance(answer, str) and said in answer
            client.send_pyobj({name: message[name] for name in list(message)[1:]})
            assert "camera0_rgb is missing" in client.recv_pyobj()
            client.send_pyobj(message)
            assert client.recv_pyobj().shape == (16, 10)


def test_a_second_umi_client_is_refused_by_name_until_the_first_is_silent() -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, _), open_doors(core, "--allow-umi-pickle") as ports:
        with umi_client(ports["umi"]) as first, umi_client(ports["umi"]) as second:
            first.send_pyobj(message)
            assert first.recv_pyobj().shape == (16, 10)
            second.send_pyobj(message)
            assert "1 of 1 clients are connected: UMI client" in second.recv_pyobj()
            core._clients[0].used -= 10
            second.send_pyobj(message)
            assert second.recv_pyobj().shape == (16, 10)


def test_umis_client_finds_its_configuration(tmp_path) -> None:
    path = tmp_path / "latest.yaml"
    given = ("--allow-umi-pickle", "--umi-client-yaml", str(path))
    with instant_core() as (core, _), open_doors(core, *given):
        config = yaml.safe_load(path.read_text())
    assert "Run the client with -f 20." in path.read_text().splitlines()[0]
    task = config["task"]
    assert task["pose_repr"] == {"obs_pose_repr": "relative", "action_pose_repr": "relative"}
    obs = task["shape_meta"]["obs"]
    assert obs["camera0_rgb"]["shape"] == [3, SIZE, SIZE] and obs["camera0_rgb"]["type"] == "rgb"
    assert {name: (entry["shape"], entry["horizon"]) for name, entry in obs.items() if name in STATES} == {
        name: ([width], 16) for name, width in zip(STATES, (3, 6, 1, 6))
    }
    assert task["dataset"]["dataset_path"] and config["policy"]["obs_encoder"]["model_name"]
    assert task["shape_meta"]["action"]["shape"] == [10]


def test_the_umi_door_is_closed_unless_asked_for_and_opens_to_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = []
    monkeypatch.setattr(serving, "ZmqDoor", lambda *given: opened.append(given[1]))
    with instant_core() as (core, _):
        everywhere = serving.Access("0.0.0.0", "k" * 16, None)
        assert "umi" not in serving.doors(core, options("--no-websocket"), everywhere)
        serving.doors(core, options("--no-websocket", "--no-zmq", "--allow-umi-pickle"), everywhere)
    assert opened == ["0.0.0.0", "127.0.0.1"]


def test_a_policy_that_moves_no_hand_has_no_umi_door() -> None:
    description = PolicyDescription(
        "pushing", {"image": ObservationEntry("rgb", (64, 64, 3), 4)}, Horizon(), 2, 8, False
    )
    with instant_core(description) as (core, _), pytest.raises(ValueError, match="task.hand"):
        open_doors(core, "--allow-umi-pickle").__enter__()


# -- ZeroMQ ------------------------------------------------------------------------------------------------------------


def ask(client: zmq.Socket, message: Any) -> dict[str, Any]:
    client.send(pack(message))
    return unpack(client.recv(), 1_000_000)


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [
        ([1], "bad_request", "expected a map"),
        ({}, "bad_request", "kind: expected one of describe"),
        ({"kind": "fly"}, "bad_request", "kind: expected one of describe"),
        ({"kind": ["plan"]}, "bad_request", "kind"),
        ({"kind": "describe", "more": 1}, "bad_request", "more"),
        ({"kind": "reset"}, "bad_request", "client: expected a text"),
        ({"kind": "reset", "client": "x" * 81}, "bad_request", "client: expected a text"),
        ({"kind": "reset", "client": "a", "name": "b\nc"}, "bad_request", "name: expected a text"),
        ({"kind": "reset", "client": "a", "text": TEXT, "seed": -1}, "bad_request", "seed: got -1"),
        ({"kind": "reset", "client": "a"}, "bad_request", "--task"),
        ({"kind": "plan", "client": "stranger", "observation": {}}, "no_episode", "reset first"),
    ],
)
def test_zeromq_answers_what_is_wrong(message: Any, code: str, said: str) -> None:
    with instant_core() as (core, _), open_doors(core) as ports, umi_client(ports["zmq"]) as client:
        answer = ask(client, message)
        assert answer["code"] == code and said in answer["error"]
        assert ask(client, {"kind": "health"})["health"]["refused"] == 1


def test_zeromq_serves_clients_side_by_side() -> None:
    with instant_core(max_clients=2) as (core, session), open_doors(core) as ports:
        with umi_client(ports["zmq"]) as one, umi_client(ports["zmq"]) as other:
            for name, client in (("one", one), ("other", other)):
                ask(client, {"kind": "reset", "client": name, "name": name, "text": TEXT, "seed": 3})
            seen = [observe(core.description, seed) for seed in range(2)]
            for client, name, given in zip((one, other), ("one", "other"), seen):
                client.send(pack({"kind": "plan", "client": name, "observation": given}))
            for client, given in zip((one, other), seen):
                answer = unpack(client.recv(), 1_000_000)
                np.testing.assert_array_equal(answer["actions"][0, :3], given["robot0_eef_pos"][-1])
                assert set(answer["timing"]) == {"infer_ms", "wait_ms"}
            assert ask(one, {"kind": "close", "client": "one"}) == {"ok": True}
            assert [each["name"] for each in core.health()["clients"]] == ["other"]


def test_messages_of_other_frames_are_answered() -> None:
    with instant_core() as (core, _), open_doors(core) as ports:
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger, client.rcvtimeo = 0, 1000 * SECONDS
            client.connect(f"tcp://127.0.0.1:{ports['zmq']}")
            for frames in ([b"a"], [b"a", b"b"], [b"", b"", b""], [b""] * 10):
                client.send_multipart(frames)
                assert "frames: expected" in unpack(client.recv_multipart()[1], 10_000)["error"]
            client.send_multipart([b"", pack({"kind": "describe"})])
            assert "description" in unpack(client.recv_multipart()[1], 100_000)


def test_other_addresses_of_this_machine_serve_as_well() -> None:
    with instant_core() as (core, _), open_doors(core, "--host", "::1") as ports:
        with RemotePlanner(f"tcp://[::1]:{ports['zmq']}") as planner:
            planner.reset(0, TEXT)
            assert planner.plan(observe(core.description)).shape == (16, 10)
        with connect(f"ws://[::1]:{ports['websocket']}", compression=None) as client:
            assert "policy" in unpack(client.recv(timeout=SECONDS), 100_000)


def test_a_port_that_is_taken_is_named() -> None:
    with instant_core() as (core, _), open_doors(core, "--allow-umi-pickle") as ports:
        for door, option in (("websocket", "--port"), ("zmq", "--zmq-port"), ("umi", "--umi-port")):
            with pytest.raises(ValueError, match=f"port {ports[door]} .* {option}"):
                _open_one(core, option, ports[door])


def _open_one(core: Core, option: str, port: int) -> None:
    only = {"--port": ("--no-zmq",), "--zmq-port": ("--no-websocket",)}.get(
        option, ("--no-zmq", "--no-websocket", "--allow-umi-pickle")
    )
    with open_doors(core, *only, option, str(port)):
        pass
