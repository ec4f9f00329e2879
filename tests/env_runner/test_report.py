"""report.html: complete, self-contained, well-formed."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from unified_video_action.env_runner.charts import Line, histogram, line_chart, number, thin, ticks
from unified_video_action.env_runner.episode import Episode
from unified_video_action.env_runner.film import write_mp4
from unified_video_action.env_runner.metrics import summarise
from unified_video_action.env_runner.report import Film, write_report
from unified_video_action.env_runner.results import describe_results, git_commit, versions, write_json


class Checker(HTMLParser):
    """Collects elements and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> does not match"

    def handle_data(self, data):
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def results() -> dict:
    rng = np.random.default_rng(0)
    episodes = [
        Episode(100 + i, 40, i % 2 == 0, {"coverage": 0.9}, np.clip(rng.normal(0.5, 0.2, 40), 0, 1).tolist())
        for i in range(8)
    ]
    episodes.append(Episode(108, 2, crashed="RuntimeError: <b>bad</b> & worse"))
    return describe_results(summarise(episodes, ["coverage"]), episodes, {"task": {"name": "<toy>"}})


def test_the_report_holds_everything(tmp_path: Path, results: dict):
    film = tmp_path / "film.mp4"
    write_mp4(film, [np.full((32, 32, 3), 40 * i, np.uint8) for i in range(5)])
    log = tmp_path / "metrics.jsonl"
    curves = {"evaluation/mean_score": 0.1, "validation/frame_psnr": 28.0, "validation/frame_psnr_still": 26.0}
    entries = [{"step": i, "time": 1.0, "train/loss": 1 / (i + 1), **curves} for i in range(5)]
    log.write_text("\n".join(map(json.dumps, entries)) + '\n{"step": 5, "train/lo')
    page = tmp_path / "report.html"
    write_report(
        page, results, "Toy <evaluation>", [Film("best", 100, 0.9, film)], log, {"weights": "ema"}, "What <films> show."
    )

    text = page.read_text()
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.count("script") == checker.count("link") == checker.count("iframe") == 0
    assert not re.search(r"https?://", text)

    (video,) = [attributes for tag, attributes in checker.elements if tag == "video"]
    kind, _, data = video["src"].partition(",")
    assert kind == "data:video/mp4;base64"
    assert base64.b64decode(data) == film.read_bytes()
    assert checker.count("svg") == 2 + 2 + 4, "of scores, of learning, and all curves of the training"
    assert checker.count("tr") == 1 + 9
    for part in ("Toy <evaluation>", "mean score", "95 %: ", "success rate", "mean max coverage", "train/loss"):
        assert part in checker.text
    for part in ("RuntimeError: <b>bad</b> & worse", "torch ", "numpy ", "python ", '"name": "<toy>"', "1 crashed"):
        assert part in checker.text
    assert "What <films> show." in checker.text


def test_the_report_shows_what_was_learned_over_samples(tmp_path: Path, results: dict):
    log = tmp_path / "metrics.jsonl"
    psnr = {"validation/forward_dynamics_psnr": 27.0, "validation/frame_psnr_still": 26.0}
    log.write_text("\n".join(json.dumps({"step": step, **psnr}) for step in (250, 500)))
    write_report(tmp_path / "steps.html", results, "Toy", training_log=log)
    write_report(tmp_path / "samples.html", results | {"config": {"training": {"batch_size": 32}}}, "Toy", [], log)
    steps, samples = ((tmp_path / f"{name}.html").read_text() for name in ("steps", "samples"))
    assert "PSNR of imagined frames, dB" in steps and " against step, 2 curves" in steps
    assert " against samples, 2 curves" in samples
    assert ">16k<" in samples and "newest frame repeated" in samples and "inverse dynamics" not in samples


def test_the_report_does_without_films_and_training(tmp_path: Path, results: dict):
    write_report(tmp_path / "report.html", results, "Toy")
    checker = Checker()
    checker.feed((tmp_path / "report.html").read_text())
    assert checker.count("video") == 0 and checker.count("svg") == 2
    assert "Training" not in checker.text


def test_results_are_written_whole_or_not_at_all(tmp_path: Path, results: dict):
    path = tmp_path / "results.json"
    write_json(path, results)
    loaded = json.loads(path.read_text())
    assert loaded == json.loads(json.dumps(results))
    first = loaded["episodes"][0]
    assert list(first) == ["seed", "score", "max_coverage", "success", "steps", "crashed", "curve"]
    assert len(path.read_text().splitlines()) < 200, "a curve is one line"
    with pytest.raises(ValueError):
        write_json(path, {"score": float("nan")})
    assert json.loads(path.read_text()) == loaded
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_results_say_what_made_them(results: dict):
    assert {"python", "torch", "numpy", "gymnasium", "pymunk"} <= results["versions"].keys() == versions().keys()
    assert results["machine"]["processor"]
    assert results["command"]
    assert git_commit() is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", git_commit())


def test_ticks_are_round():
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 300) == [0, 50, 100, 150, 200, 250, 300]
    assert ticks(0.013, 0.021, 4) == [0.014, 0.016, 0.018, 0.02]
    assert ticks(2, 2) == [2]
    assert [number(value) for value in (0.25, 300, 10_000, 3e-5)] == ["0.25", "300", "10k", "3e-5"]


def test_charts_keep_odd_values_inside():
    chart = line_chart([Line([(0, 1.0), (1, float("nan")), (2, 1.0)])], "x", "y")
    ((first, second),) = [points.split() for points in re.findall(r'points="([^"]*)"', chart)]
    assert "nan" not in chart and first.split(",")[1] == second.split(",")[1]
    bars = histogram([-1.0, 0.0, 0.51, 2.0], "score", bins=2)
    assert re.findall(r"<title>(.*?)</title>", bars) == ["0.00 to 0.50: 2", "0.50 to 1.00: 2"]


def test_thinning_keeps_the_course():
    points = [(float(x), float(x % 2)) for x in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[0] == (4.5, 0.5) and thinned[-1] == (994.5, 0.5)
    assert thin(points[:5], 100) == points[:5]
