"""Checkpoints served as `eval_real.py serve` does it, each answer against the policy's own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from tests.real.fakes import until
from tests.real.server_support import (
    INSTRUCTIONS,
    describe,
    observe,
    options,
    serve,
    umi_client,
    websocket_url,
    write_checkpoint,
)
from unified_video_action.inference.continuation import Continuation
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.build import load_policy
from unified_video_action.real.planner import PlannerError, moving_average
from unified_video_action.real.serving.client import RemotePlanner, start_server_process, stop_server_process
from unified_video_action.real.serving.histories import histories
from unified_video_action.real.serving.loading import describe as describe_checkpoint
from unified_video_action.real.serving.loading import load_core, ranges

ROOT = Path(__file__).parents[2]
TEXT, OTHER_TEXT = INSTRUCTIONS
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
SECONDS = 120  # for processes that import torch on a busy machine


@pytest.fixture(scope="module")
def end_effector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an end effector that follows instructions."""
    return write_checkpoint(tmp_path_factory.mktemp("end_effector") / "latest")


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without language, of frames and one newest state."""
    return write_checkpoint(tmp_path_factory.mktemp("pusht") / "latest", end_effector=False)


def planned(folder: Path, seen: list[dict[str, np.ndarray]], seed: int, text: str | None) -> list[np.ndarray]:
    """What the policy itself plans in one episode."""
    session = PolicySession(load_policy(folder))
    session.reset(0, seed, text)
    plans = []
    for each in seen:
        session.recall(histories(each, 4))
        plans.append(session.plan([0])[0])
    return plans


def test_a_checkpoint_describes_itself(end_effector: Path) -> None:
    found, expected = describe_checkpoint(end_effector), describe()
    assert found.observations == expected.observations and found.end_effector == expected.end_effector
    assert found.horizon == expected.horizon and found.instructions == INSTRUCTIONS
    assert (found.action_dim, found.follows_text, found.step_seconds, found.continues) == (10, True, 0.05, True)


def test_a_checkpoint_with_other_weights_has_another_description(end_effector: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(end_effector, tmp_path / end_effector.name)
    assert describe_checkpoint(folder) == describe_checkpoint(end_effector)
    weights = bytearray((folder / "ema.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(weights)
    assert describe_checkpoint(folder) != describe_checkpoint(end_effector)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.yaml", "a: 1\n", "config.yaml: task is missing"),
        ("config.yaml", ("step_seconds: 0.05", "step_seconds: -1"), "task.step_seconds"),
        ("config.yaml", ("robot0_eef_pos: position", "robot0_eef_pos: colour"), "end_effector.states.robot0_eef_pos"),
        ("config.yaml", ("robot0_eef_pos: position", "elbow: position"), "elbow is not in"),
        ("normalizer.json", "{", "normalizer.json is damaged"),
        ("instructions.json", "{}", "instructions.json: features is missing"),
        ("ema.safetensors", None, "ema.safetensors is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(
    end_effector: Path, tmp_path: Path, file: str, change: str | tuple | None, said: str
) -> None:
    damaged = tmp_path / "latest"
    shutil.copytree(end_effector, damaged)
    text = (damaged / file).read_text().replace(*change) if isinstance(change, tuple) else change
    (damaged / file).unlink() if text is None else (damaged / file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)) as error:
        load_core(options("--checkpoint", str(damaged), "--device", "cpu"))
    assert "\n" not in str(error.value)
    assert str(damaged) in str(error.value)


def test_every_client_gets_the_plans_of_the_policy(end_effector: Path) -> None:
    given = ("--checkpoint", str(end_effector), "--device", "cpu", "--max-clients", "3", "--allow-umi-pickle")
    seen = [observe(describe(), seed) for seed in range(2)]
    expected = planned(end_effector, seen, 0, TEXT)
    with load_core(options(*given)) as core, serve(core, *given[2:]) as ports:
        with RemotePlanner(websocket_url(ports)) as planner:
            planner.reset(0, TEXT)
            found = [planner.plan(each) for each in seen]
            kept = Continuation(found[1][2:6] + 0.1, np.ones(4))
            np.testing.assert_allclose(planner.plan(seen[1], kept)[:4], kept.actions, atol=1e-5)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        client = WebsocketClientPolicy("127.0.0.1", ports["websocket"])
        found = [client.infer(each | {"prompt": TEXT})["actions"] for each in seen]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        with umi_client(ports) as client:
            found = []
            for each in seen:
                frames = np.moveaxis(each["camera0_rgb"].astype(np.float32) / 255, -1, 1)
                client.send_pyobj({**each, "camera0_rgb": frames, "task_name": "cup"})
                found.append(client.recv_pyobj())
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_policy_without_language_is_served_and_smoothed(pusht: Path) -> None:
    given = ("--checkpoint", str(pusht), "--device", "cpu", "--smooth")
    rng = np.random.default_rng(0)
    seen = {
        "image": rng.integers(256, size=(4, 96, 96, 3), dtype=np.uint8),
        "agent_pos": rng.uniform(0, 500, (1, 2)).astype(np.float32),
    }
    with load_core(options(*given)) as core, serve(core) as ports:
        with RemotePlanner(websocket_url(ports)) as planner:
            planner.reset(3)
            expected = moving_average(planned(pusht, [seen], 3, None)[0])
            np.testing.assert_allclose(planner.plan(seen), expected, atol=1e-2)
            with pytest.raises(PlannerError, match="agent_pos: got 9000 at index 1, expected -"):
                planner.plan(seen | {"agent_pos": np.array([[0.0, 9000.0]])})
            with pytest.raises(PlannerError, match="prefix: got 9000 at index 1, but the training data has 0 to 512"):
                planner.plan(seen, Continuation(np.array([[0.0, 9000.0]]), np.ones(1)))


def test_a_prefix_is_held_against_the_state_that_actions_are_relative_to(pusht: Path, tmp_path: Path) -> None:
    """Their own range is that of differences, and a prefix is absolute."""
    for file in pusht.iterdir():
        shutil.copy(file, tmp_path)
    normalizer = json.loads((pusht / "normalizer.json").read_text())
    normalizer["action"]["max"] = [9.0, 9.0]
    (tmp_path / "normalizer.json").write_text(json.dumps(normalizer))
    assert ranges(tmp_path, describe_checkpoint(tmp_path))["action"][1].tolist() == [512, 512]
    config = (pusht / "config.yaml").read_text()
    assert "relative_to: agent_pos" in config
    (tmp_path / "config.yaml").write_text(config.replace("relative_to: agent_pos", "relative_to: null"))
    assert ranges(tmp_path, describe_checkpoint(tmp_path))["action"][1].tolist() == [9, 9]


def test_bad_options_are_named(end_effector: Path, pusht: Path) -> None:
    for folder, given, said in (
        (end_effector, ("--sampler", "magic"), "magic"),
        (end_effector, ("--device", "abacus"), "abacus"),
        (pusht, ("--task", TEXT), "--task"),
        (pusht, ("--allow-umi-pickle",), "task.end_effector"),
    ):
        with pytest.raises(ValueError, match=said):
            load_core(options("--checkpoint", str(folder), *given))


def test_a_server_process_serves_one_robot_and_ends_with_its_parent(
    end_effector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UVA_SERVER_KEY", "of another server")
    process, endpoint = start_server_process(end_effector, ("--device", "cpu", "--task", OTHER_TEXT))
    try:
        assert os.getpgid(process.pid) != os.getpgid(0)  # Ctrl-C does not reach it
        with RemotePlanner(endpoint) as planner:
            planner.reset(1)
            seen = observe(planner.description)
            np.testing.assert_allclose(planner.plan(seen), planned(end_effector, [seen], 1, OTHER_TEXT)[0], atol=1e-5)
        assert process.poll() is None
        process.stdin.close()  # as the end of this process does
        assert process.wait(SECONDS) == 0
    finally:
        stop_server_process(process)


def test_a_server_process_that_cannot_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlannerError, match="ended with status 1"):
        start_server_process(tmp_path / "none")


def test_ctrl_c_ends_the_server_of_eval_real(end_effector: Path, tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    command = [sys.executable, "eval_real.py", "serve", "--checkpoint", str(end_effector), "--device", "cpu"]
    command += ["--port", "0", "--ready-file", str(ready)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: ready.exists() or process.poll() is not None)
        written = json.loads(ready.read_text())
        assert set(written["ports"]) == {"websocket"} and written["description"]["instructions"] == list(INSTRUCTIONS)
        client = WebsocketClientPolicy("127.0.0.1", written["ports"]["websocket"])  # connected, and does not leave
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in errors, errors
    assert client.get_server_metadata()["policy"] == written["description"]["name"]
