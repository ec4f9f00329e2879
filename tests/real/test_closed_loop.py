"""A minute of the simulated arm in real time: plans at 8 Hz, commands at 200 Hz, recorded."""

import json
import logging
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.real.fakes import SIM, FakePlanner, circle, command_faults, reached_faults, watched
from unified_video_action.instantiate import build_dataclass
from unified_video_action.real.limits import SafetyLimits
from unified_video_action.real.loop import Control
from unified_video_action.real.recorder import EpisodeRecorder
from unified_video_action.real.watchdog import LoopSettings, Reason

if find_spec("mujoco") is None:  # importing it here would choose how it draws too early
    pytest.skip("MuJoCo is not installed: no simulated arm", allow_module_level=True)

log = logging.getLogger(__name__)
SECONDS = 60.0
PATIENT = {"frame": 5.0, "state": 5.0, "action": 5.0, "plan": 10.0, "overrun": 5.0}  # this computer may be busy


def test_a_minute_in_real_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from unified_video_action.real.sim.setup import SimSetup

    setup = SimSetup(size=(64, 64))
    robot = yaml.safe_load(SIM.read_text())
    limits = SafetyLimits.read(robot["safety"])
    settings = {"episode_seconds": SECONDS, "plan_rate": 8.0, "timeouts": PATIENT}
    settings = build_dataclass(LoopSettings, robot["loop"] | settings, "loop")
    sent, reached = [], []
    with setup.cameras[0], setup.arm, EpisodeRecorder(tmp_path / "episode.zarr.zip") as recorder:
        home = setup.arm.state().pose
        planner = FakePlanner(
            lambda: (setup.arm.world.at(seen()).pose, seen()), path=lambda time: circle(time, home=home)
        )
        planner.delay = 0.06
        watched(setup.arm, sent, reached)
        control = Control(setup, planner, limits, settings, recorder, on_ready=lambda: control.requests.put("start"))

        def seen() -> float:
            return control.observer.newest_frames()[0]

        threading.Timer(SECONDS / 2, lambda: control.requests.put("gone")).start()
        with caplog.at_level(logging.WARNING):
            stop = control.run()
    assert stop.reason is Reason.TIME_LIMIT, stop
    control.statistics.write(tmp_path / "statistics.json")
    figures = json.loads((tmp_path / "statistics.json").read_text())
    caplog.set_level(logging.INFO)
    for line in control.statistics.lines():
        log.info("%s", line)
    counts = figures["counts"]
    assert abs(counts["ticks"] + counts["missed_deadlines"] - SECONDS * 200) < 0.02 * SECONDS * 200
    assert len(sent) >= counts["ticks"]
    assert SECONDS * 2 < counts["plans"] <= SECONDS * 8 + 2
    assert counts["blends"] == counts["plans"] - 1
    assert [each["reason"] for each in figures["stops"]] == ["time_limit"]
    for name in ("period", "late", "work", "plan", "plan_age"):
        assert figures[name]["count"] > 100 and 0 <= figures[name]["p50_ms"] <= figures[name]["max_ms"]
    assert not command_faults(sent, limits), command_faults(sent, limits)
    assert not reached_faults(reached, limits, share=1.5), reached_faults(reached, limits, share=1.5)
    assert recorder.output.exists() and not control.statistics.counts["failed_plans"]
