"""scripts/film_task.py on PushT's simulator and on demonstrations of its expert."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(ROOT / "scripts" / "film_task.py"))["main"]


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        return [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]


def test_starts_are_what_the_simulator_shows(main, tmp_path: Path) -> None:
    from unified_video_action.env.pusht.env import PushTEnv

    output = tmp_path / "films" / "starts.png"
    main(["--config-name", "uva_pusht", "--starts", "--episodes", "2", "--height", "96", "--output", str(output)])
    frames = frames_of(output)
    env = PushTEnv()
    for seed, frame in zip((100000, 100001), frames, strict=True):
        assert np.array_equal(frame, env.reset(seed=seed)[0]["image"])


def test_demonstrations_are_shown_from_their_start(main, tmp_path: Path) -> None:
    collect = runpy.run_path(str(ROOT / "scripts" / "collect_demos.py"))["main"]
    store = tmp_path / "demos.zarr.zip"
    collect(["--task", "pusht", "-n", "2", "--workers", "1", "--output", str(store)])
    output = tmp_path / "demos.webp"
    options = ["--every", "10", "--height", "48", "--output", str(output)]
    main(["--config-name", "uva_pusht", *options, f"task.dataset.paths={store}"])
    frames = frames_of(output)
    assert len(frames) > 10 and frames[0].shape == (48, 48, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 50, "something moves"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x.mp4"], "expected a name that ends in"),
        (["--output", "x.webp", "--episodes", "0"], "must be at least 1"),
        (["--output", "x.webp", "task.dataset.paths=nowhere.zip"], "nowhere.zip"),
        (["--output", "x.webp", "colour=red"], "colour"),
    ],
)
def test_mistakes_are_named(main, arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--config-name", "uva_pusht", *arguments])
    assert message in capsys.readouterr().err
