"""Evaluating whatever speaks openpi's websocket: a stand-in of openpi's server, and this project's own."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from openpi_client import msgpack_numpy
from safetensors.torch import save_file
from websockets.sync.server import serve as serve_websocket

from tests.real.server_support import SIZE, STATES, describe, instant_core, serve, websocket_url, write_checkpoint
from unified_video_action.env_runner.preparation import prepare
from unified_video_action.policy.build import build_policy, load_policy
from unified_video_action.policy.remote import RemoteConfig, RemotePolicy
from unified_video_action.poses import KINDS
from unified_video_action.real.serving.client import start_server_process, stop_server_process
from unified_video_action.spec import TaskSpec

TASK = {
    "shape_meta": {
        "obs": {
            "front": {"shape": [3, 32, 32], "type": "rgb"},
            "wrist": {"shape": [3, 32, 32], "type": "rgb"},
            "pos": {"shape": [2], "type": "low_dim"},
            "grip": {"shape": [1], "type": "low_dim"},
        },
        "action": {"shape": [3]},
        "text_dim": 4,
    },
    "horizon": {"history": 2, "future": 0, "stride": 1, "actions": 4, "action_offset": 0},
}


@pytest.fixture
def server():
    """Speaks as openpi's does, with openpi's own messages; what it answers is a function of what it got."""
    got = []

    def answer(message):
        if message.get("prompt") == "fail":
            raise RuntimeError("no such task")
        base = np.concatenate([np.atleast_2d(message["observation/state"])[-1], [len(message["prompt"])]])
        steps = 1 if message["prompt"] == "short" else 6
        return {"actions": (base[[0, 1, 3]] + np.arange(steps)[:, None]).astype(np.float64)}

    def talk(connection):
        packer = msgpack_numpy.Packer()
        connection.send(packer.pack({"model": "stand-in"}))
        for data in connection:
            got.append(msgpack_numpy.unpackb(data))
            try:
                connection.send(packer.pack(answer(got[-1])))
            except RuntimeError as error:
                connection.send(f"Traceback ...\nRuntimeError: {error}")
                return

    with serve_websocket(talk, "127.0.0.1", 0, compression=None, max_size=None) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{listening.socket.getsockname()[1]}", got
        listening.shutdown()


def make(url: str, **settings) -> RemotePolicy:
    return RemotePolicy(TaskSpec.parse(TASK), RemoteConfig(url=url, action_steps=2, timeout=20, **settings))


def observe(policy: RemotePolicy, *prompts: str) -> dict[str, torch.Tensor]:
    rows = len(prompts)
    return {
        "front": torch.arange(rows * 2, dtype=torch.uint8).reshape(rows, 2, 1, 1, 1).expand(-1, -1, 3, 32, 32),
        "wrist": torch.full((rows, 2, 3, 32, 32), 9, dtype=torch.uint8),
        "pos": torch.arange(rows * 4.0).reshape(rows, 2, 2),
        "grip": torch.full((rows, 2, 1), 0.5),
        "text": policy.encode_text(prompts),
    }


def test_every_environment_gets_the_answer_to_its_own_observation(server):
    url, got = server
    policy = make(url, image_size=16)
    planned = policy.predict_action(observe(policy, "lift", "stack it"))
    assert planned["action"].shape == (2, 2, 3) and planned["action_pred"].shape == (2, 4, 3)
    assert planned["action_pred"][:, 0].tolist() == [[2, 3, 4], [6, 7, 8]]  # newest positions, length of the prompt
    assert [message["prompt"] for message in got] == ["lift", "stack it"]
    first = got[0]
    assert first["observation/image"].shape == (16, 16, 3) and first["observation/image"].dtype == np.uint8
    assert (first["observation/image"] == 1).all() and (first["observation/wrist_image"] == 9).all()
    assert first["observation/state"].tolist() == [2, 3, 0.5]


def test_names_and_histories_are_the_servers(server):
    policy = make(server[0], history=True, keys={"front": "base", "wrist": "side", "grip": "gripper"})
    message = policy._message(observe(policy, "lift"), 0)
    assert message["base"].shape == (2, 32, 32, 3) and message["side"].shape == (2, 32, 32, 3)
    assert message["observation/state"].shape == (2, 2) and message["gripper"].tolist() == [[0.5], [0.5]]


def test_environments_do_not_share_a_history_on_a_server_of_this_project(caplog):
    caplog.set_level("INFO")
    obs = {"camera0_rgb": {"shape": [3, SIZE, SIZE], "type": "rgb"}}
    obs |= {name: {"shape": [KINDS[kind]], "type": "low_dim"} for name, kind in STATES.items()}
    task = TaskSpec.parse({"shape_meta": {"obs": obs, "action": {"shape": [10]}}, "horizon": {}})
    sent, read = [], []
    with instant_core(describe(follows_text=False)) as (core, session), serve(core) as ports:
        session.before_plan = lambda: read.append(session.shown())
        policy = RemotePolicy(task, RemoteConfig(url=websocket_url(ports), timeout=20))
        for _ in range(2):
            histories = {name: torch.rand(2, 4, KINDS[kind]) - 0.5 for name, kind in STATES.items()}
            frames = torch.zeros(2, 4, 3, SIZE, SIZE, dtype=torch.uint8)
            planned = policy.predict_action({"camera0_rgb": frames, **histories})["action_pred"]
            sent += histories["robot0_eef_pos"].tolist()
            assert torch.equal(planned[:, 0, :3], histories["robot0_eef_pos"][:, -1])
        policy._connection.close()
    np.testing.assert_array_equal(np.float32(read), np.float32(sent))  # (4 plans, 4 steps, 3)
    assert caplog.text.count("is a server of this project: it is sent histories") == 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [("fail", "refused the observation: RuntimeError: no such task"), ("short", "set task.horizon.actions=1 or less")],
)
def test_what_is_no_answer_is_named(server, prompt, message):
    policy = make("ws://127.0.0.1:9")
    with pytest.raises(ValueError, match="ws://127.0.0.1:9: no answer.*is the server running"):
        policy.predict_action(observe(policy, "lift"))
    policy = make(server[0])
    with pytest.raises(ValueError, match=message):
        policy.predict_action(observe(policy, prompt))
    assert policy.predict_action(observe(policy, "lift"))["action"].shape == (1, 2, 3)  # by a new connection


def test_the_key_is_the_environments_and_is_stored_nowhere(server, monkeypatch):
    url, _ = server
    asked = []
    monkeypatch.setattr("websockets.sync.client.connect", lambda *given, **options: asked.append(options) or 1 / 0)
    monkeypatch.setenv("UVA_SERVER_KEY", "secret-of-a-server")
    policy = make(url)
    with pytest.raises(ZeroDivisionError):
        policy.predict_action(observe(policy, "lift"))
    assert asked[0]["additional_headers"] == {"Authorization": "Api-Key secret-of-a-server"}
    assert "secret" not in str(policy.config)


def test_a_strangers_checkpoint_cannot_send_observations_elsewhere(tmp_path: Path):
    folder = tmp_path / "latest"
    folder.mkdir()
    url = "ws://stranger.example:8000"
    target = {"_target_": "unified_video_action.policy.remote.RemotePolicy", "url": url, "action_steps": 2}
    OmegaConf.save({"task": TASK, "policy": target}, folder / "config.yaml")
    (folder / "normalizer.json").write_text(json.dumps({}))
    save_file({}, folder / "ema.safetensors")
    with pytest.raises(ValueError, match="RemotePolicy has no weights to be in a checkpoint"):
        load_policy(folder)
    assert build_policy({"task": TASK, "policy": target}, None).config.url == url  # of one's own configuration


def test_a_server_of_this_project_is_evaluated(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "latest", end_effector=False)
    process, url = start_server_process(checkpoint)
    try:
        words = ["policy=remote", f"policy.url={url}", "policy.action_steps=4"]
        words += ["task=pusht_proprio", "task.env_runner.max_steps=8"]
        from eval_sim import parse_arguments

        line = ["--config-name", "uva_pusht", "--n-episodes", "2", "--n-envs", "2", "--videos", "0"]
        policy, runner, options = prepare(parse_arguments([*line, "--output", str(tmp_path / "out"), "--set", *words]))
        metrics = runner.run(policy, **options)
    finally:
        stop_server_process(process)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert metrics["episodes"] == 2 and metrics["crashed"] == 0 and found["facts"]["checkpoint"] == url
