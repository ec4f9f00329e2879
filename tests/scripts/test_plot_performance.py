"""scripts/plot_performance.py: bars as long as the times they stand for."""

import json
import re
import runpy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "plot_performance.py"
SVG = "{http://www.w3.org/2000/svg}"


def rows(**parts: float) -> dict[str, dict[str, float]]:
    return {name.replace("_", " "): {"median": time} for name, time in parts.items()}


RESULTS: dict[str, Any] = {
    "machine": {"processor": "A & B", "threads": "1", "device": "cpu", "precision": "no"},
    "parameters": 4.2e6,
    "samplers": {"actions": "ddim10", "frames": "ddim16"},
    "latency_ms": {
        "policy": rows(VAE_encode=2.0, transformer=3.0, total=6.0),
        "policy and video": rows(VAE_encode=2.0, transformer=3.0, video_diffusion=6.0, total=12.0),
    },
    "floor_ms": {
        "policy": {"VAE encode": {"floor": 1.0}, "transformer": {"floor": 1.5}, "total": {"floor": 2.5}},
        "policy and video": {
            name: {"floor": time}
            for name, time in {"VAE encode": 1.0, "transformer": 1.5, "video diffusion": 4.5, "total": 7.0}.items()
        },
    },
}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_bars_are_as_long_as_their_times(script: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "times.json").write_text(json.dumps(RESULTS))
    script["main"]([str(tmp_path / "times.json"), "--output", str(tmp_path / "latency.svg")])
    picture = ElementTree.parse(tmp_path / "latency.svg").getroot()
    drawn = {}
    for group in picture.iter(f"{SVG}g"):
        if (title := group.find(f"{SVG}title")) is not None:
            path = group.find(f"{SVG}path")
            xs = [float(x) for x in re.findall(r"[ML] ([\d.]+)", path.get("d"))]
            drawn.setdefault(title.text, []).append((max(xs) - min(xs), "opacity: 0.45" in path.get("style")))
    assert list(drawn)[:5] == [
        *("VAE encode: 2.00 ms", "transformer: 3.00 ms", "between: 1.00 ms"),
        *("VAE encode: 1.00 ms", "transformer: 1.50 ms"),
    ]
    per_ms = [width / float(name.split()[-2]) for name, found in drawn.items() for width, _ in found]
    assert max(per_ms) - min(per_ms) < 0.3
    assert [found[0][1] for found in drawn.values()][:5] == [False, False, False, True, True]
    words = [element.text for element in picture.iter(f"{SVG}text")]
    assert {"6 ms", "2.5 ms", "12 ms", "7 ms", "policy", "policy and video"} <= set(words)
    assert any("A & B" in word and "4.2 M" in word for word in words)


def test_what_cannot_be_drawn_is_named(script: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "times.json").write_text(json.dumps({"latency_ms": {}}))
    with pytest.raises(SystemExit):
        script["main"]([str(tmp_path / "times.json"), "--output", str(tmp_path / "x.svg")])
    assert "no 'floor_ms' in it: measure with scripts/benchmark.py" in capsys.readouterr().err
