"""Intervals, results.json and report.html: complete, self-contained, well-formed."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from unified_video_action.env_runner.report import write_report
from unified_video_action.env_runner.results import (
    bootstrap_interval,
    describe_results,
    summarise,
    wilson_interval,
    write_json,
)
from unified_video_action.env_runner.rollout import Episode
from unified_video_action.env_runner.videos import (
    RolloutVideo,
    pick_for_videos,
    write_mp4,
)


@pytest.fixture
def results() -> dict:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(100 + i, 40, i % 2 == 0, {"coverage": 0.9}, np.clip(rng.normal(0.5, 0.2, 40), 0, 1).tolist())
        for i in range(8)
    ]
    episodes.append(Episode(108, 2, crashed="RuntimeError: <b>bad</b> & worse"))
    config = {"task": {"name": "<toy>"}, "training": {"batch_size": 32}}
    return describe_results(summarise(episodes, ["coverage"]), episodes, config, {"weights": "ema"})


def test_intervals_have_published_values():
    for successes, trials, low, high in [(0, 10, 0, 0.2775), (5, 10, 0.2366, 0.7634), (50, 50, 0.92865, 1)]:
        assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)
    values = np.random.default_rng(1).uniform(0.2, 1, 200)
    half = 1.96 * values.std() / np.sqrt(200)
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.006)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval([1.0, 1.0]) == (1.0, 1.0) and bootstrap_interval([0.3]) == (0.3, 0.3)


def test_a_summary_leaves_crashed_episodes_out():
    episodes = [
        Episode(1, 3, True, {"coverage": 0.96}, [0.2, 1.0, 0.7]),
        Episode(2, 2, False, {"coverage": 0.4}, [0.5, 0.4]),
        Episode(3, 1, False, {}, [0.9], crashed="exit status 3"),
    ]
    summary = summarise(episodes, ["coverage"])
    expected = {"mean_score": 0.75, "success_rate": 0.5, "mean_steps": 2.5, "episodes": 2, "crashed": 1}
    assert expected.items() <= summary.items() and summary["mean_max_coverage"] == pytest.approx(0.68)
    for name, interval in {"mean_score": (0.5, 1.0), "success_rate": wilson_interval(1, 2)}.items():
        assert (summary[f"{name}_low"], summary[f"{name}_high"]) == interval


def test_the_report_holds_everything(tmp_path: Path, results: dict):
    video = tmp_path / "video.mp4"
    write_mp4(video, [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(5)])
    log = tmp_path / "metrics.jsonl"
    curves = {"evaluation/mean_score": 0.1, "validation/frame_psnr": 28.0, "validation/frame_psnr_still": 26.0}
    entries = [{"step": 125 * i, "time": 1.0, "train/loss": 1 / (i + 1), **curves} for i in range(5)]
    log.write_text("\n".join(map(json.dumps, entries)) + '\n{"step": 5, "train/lo')
    page = tmp_path / "report.html"
    write_report(page, results, "Toy <evaluation>", [RolloutVideo("best", 100, 0.9, video)], log, "What <videos> show.")

    text = page.read_text()
    assert not re.search(r"<script|<link|<iframe|https?://", text)
    assert text.count('src="data:video/mp4;base64,' + base64.b64encode(video.read_bytes()).decode()) == 1
    assert text.count("<svg") == 2 + 2 + 4, "of scores, of learning, and all curves of the training"
    assert text.count("<tr") == 1 + 9
    for part in (
        *("Toy &lt;evaluation&gt;", "mean score", "95 %: ", "success rate", "mean max coverage", "train/loss", "ema"),
        *("RuntimeError: &lt;b&gt;bad&lt;/b&gt; &amp; worse", "&lt;toy&gt;", "1 crashed", "What &lt;videos&gt; show."),
    ):
        assert part in text, part


def test_results_are_written_whole_or_not_at_all(tmp_path: Path, results: dict):
    path = tmp_path / "results.json"
    write_json(path, results)
    loaded = json.loads(path.read_text())
    assert loaded == json.loads(json.dumps(results))
    with pytest.raises(ValueError):
        write_json(path, {"score": float("nan")})
    assert json.loads(path.read_text()) == loaded
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (2, [("best", 2), ("worst", 1)]),
        (3, [("best", 2), ("median", 0), ("worst", 1)]),
        (9, [("best", 2), ("rank 2 of 5", 4), ("median", 0), ("rank 4 of 5", 3), ("worst", 1)]),
    ],
)
def test_videos_are_spread_from_best_to_worst(count: int, expected: list):
    episodes = [Episode(seed, curve=[score]) for seed, score in enumerate((0.5, 0.1, 0.9, 0.3, 0.7))]
    episodes.append(Episode(7, curve=[1.0], crashed="it fell"))
    assert [(label, episode.seed) for label, episode in pick_for_videos(episodes, count)] == expected
    assert pick_for_videos(episodes[-1:], count) == []
