"""umi-arx's protocol over real sockets, with a client that speaks as umi-arx's does."""

import asyncio
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.real.fakes import until
from tests.real.server_support import INSTRUCTIONS, SIZE, STATES, instant_core, serve, umi_client
from unified_video_action.compat import plain_pickle
from unified_video_action.real.serving import umi_arx
from unified_video_action.real.serving.umi_arx import UmiHandler

TEXT = INSTRUCTIONS[0]


def umi_message(steps: int = 16, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What umi-arx sends, and the frames (T, H, W, 3) that it saw."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(256, size=(steps, SIZE, SIZE, 3), dtype=np.uint8)
    message = {"camera0_rgb": np.moveaxis(frames.astype(np.float32) / 255, -1, 1)}  # (T, 3, H, W)
    for name, width in zip(STATES, (3, 6, 1, 6)):
        message[name] = rng.uniform(-0.5, 0.5, (steps, width))
    return message, frames


@pytest.mark.parametrize("steps", [4, 13, 16, 20])
def test_umis_client_gets_plans(steps: int) -> None:
    message, frames = umi_message(steps)
    with instant_core(instruction=TEXT) as (core, session), serve(core, "--allow-umi-pickle") as ports:
        with umi_client(ports) as client:
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
    with instant_core(instruction=TEXT) as (core, session), serve(core, "--allow-umi-pickle") as ports:
        for index in range(5):
            session.before_plan = lambda slow=index == 3: time.sleep(0.3 * slow)
            with umi_client(ports) as client:
                client.send_pyobj(message)
                if index != 3:  # else it is killed before its answer comes
                    assert client.recv_pyobj().shape == (16, 10)
                else:
                    until(lambda: core.health()["planning_for_s"] > 0, "its plan is being made")
        assert len(session.resets) == 5
        until(lambda: not core.health()["clients"], "the slot becomes free")


def test_umis_client_is_measured_by_the_times_it_sends(caplog: pytest.LogCaptureFixture) -> None:
    message, _ = umi_message()
    with instant_core(instruction=TEXT) as (core, _), serve(core, "--allow-umi-pickle") as ports:
        with umi_client(ports) as client:
            for step, heard in ((0.05, 0), (0.058, 0), (0.125, 1), (0.125, 1)):
                client.send_pyobj(message | {"timestamp": 5.0 + step * np.arange(16)})
                assert client.recv_pyobj().shape == (16, 10)
                assert caplog.text.count("control steps come at 8 Hz, those of the training data at 20 Hz") == heard


def test_umis_client_gets_errors_as_texts() -> None:
    message, _ = umi_message()
    faults = {
        "camera0_rgb: got frames of 32 x 32": {"camera0_rgb": np.zeros((16, 3, 32, 32), np.float32)},
        "robot0_eef_pos: got 7 steps, expected 4, or 16": {"robot0_eef_pos": np.zeros((7, 3))},
        "not finite": {"robot0_eef_pos": np.full((16, 3), np.inf)},
        "task_name: a int": {"task_name": 7},
        "timestamp: expected the growing times": {"timestamp": np.zeros(16)},
    }
    with instant_core(instruction=TEXT) as (core, session), serve(core, "--allow-umi-pickle") as ports:
        with umi_client(ports) as client:
            for said, change in faults.items():
                client.send_pyobj(message | change)
                answer = client.recv_pyobj()
                assert isinstance(answer, str) and said in answer
            client.send_pyobj(message)
            assert client.recv_pyobj().shape == (16, 10)
            client.send_pyobj(message | {"task_name": "uva_towel"})  # begins an episode with its instruction
            assert client.recv_pyobj().shape == (16, 10) and session.resets[-1][2] == INSTRUCTIONS[1]
            with umi_client(ports) as second:
                second.send_pyobj(message)
                assert "1 of 1 clients are connected: UMI client" in second.recv_pyobj()


def test_the_protocol_is_offered_where_it_is_asked_for_and_to_this_machine_alone(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 16)
    everywhere = ("--host", "0.0.0.0", "--key-file", str(key))
    with instant_core() as (core, _):
        with serve(core, *everywhere) as ports:
            assert set(ports) == {"websocket"}
        with serve(core, *everywhere, "--allow-umi-pickle", "--umi-client-yaml", str(tmp_path / "a.yaml")) as ports:
            assert "shape_meta" in (tmp_path / "a.yaml").read_text()
            socket.create_connection(("127.0.0.2", ports["websocket"])).close()
            socket.create_connection(("127.0.0.1", ports["umi"])).close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", ports["umi"]))


@pytest.mark.parametrize(("period", "moves", "heard"), [(0.4, True, 0), (1.0, True, 1), (1.0, False, 0)])
def test_the_clients_rate_is_read_from_histories_that_overlap(
    period: float, moves: bool, heard: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """8 control steps lie between two requests: 0.4 s at 20 Hz, 1 s at the client's default of 8 Hz."""
    message, _ = umi_message(16 + 8 * 15)
    if not moves:
        message["camera0_rgb"][:] = message["camera0_rgb"][0]  # a scene at rest tells no rate
    now = [100.0]
    monkeypatch.setattr(umi_arx, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with instant_core(instruction=TEXT) as (core, _), asyncio.Runner() as runner:
        handler = UmiHandler(core)
        for start in range(0, 8 * 15, 8):
            history = {name: values[start : start + 16] for name, values in message.items()}
            answer = runner.run(handler.answer(plain_pickle.write(history)))
            assert plain_pickle.read(answer, 2**20).shape == (16, 10)
            now[0] += period
    assert caplog.text.count("control steps come at no more than 8 Hz, those of the training data at 20 Hz") == heard
