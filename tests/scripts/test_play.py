"""The page of scripts/play.py in a real browser: a person drags, the policy acts, panels show what it makes of it."""

import asyncio
import base64
import io
import re
import shutil
import sys
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.browser import Page, opened
from unified_video_action.env.pusht.reader import PushTReader

ROOT = Path(__file__).parents[2]


async def agent(page: Page) -> np.ndarray:
    """(2,) where the picture of the simulator shows the agent, from 0 to 1."""
    image = base64.b64decode((await page.value("view.live.image")).partition(",")[2])
    return PushTReader()(np.asarray(Image.open(io.BytesIO(image)))).agent / 512


async def drag(page: Page, start: np.ndarray, end: np.ndarray) -> None:
    """Over the simulator's picture, points from 0 to 1, in two seconds or more, until the agent has followed."""
    box = "(b => [b.left, b.top, b.width, b.height])(document.getElementById('live').getBoundingClientRect())"
    corner, size = np.split(np.array(await page.value(box)), 2)
    await page.mouse("mousePressed", *(corner + size * start).tolist())
    for share in np.linspace(0, 1, 20):
        await page.mouse("mouseMoved", *(corner + size * (start + share * (end - start))).tolist())
        await asyncio.sleep(0.1)
    await page.until(f"view.live.step > {await page.value('view.live.step') + 10}")
    await page.mouse("mouseReleased", *(corner + size * end).tolist())


async def try_out(url: str) -> None:
    async with aiohttp.ClientSession() as http:
        for headers in ({"Host": "elsewhere.example"}, {"Origin": "http://elsewhere.example"}):
            for path in ("", "/live"):
                assert (await http.get(url + path, headers=headers)).status == 403
    async with opened(url) as page:
        start = np.array(await page.until("window.view?.live?.target"))
        np.testing.assert_allclose(start, await agent(page), atol=1e-3)
        end = np.array([0.15, 0.2])
        await drag(page, start, end)
        made = "['forward', 'inverse', 'plan', 'planner'].every(name => view.shown[name]?.step === view.live.step)"
        steps = await page.until(f"!view.live.running && {made} && view.live.step", 240)  # panels give way to all else
        np.testing.assert_allclose(await agent(page), end, atol=0.02)
        assert steps > 16 and await page.value("view.live.acting") is False
        sizes = await page.value("[...document.querySelectorAll('.strip img')].map(image => image.naturalWidth)")
        assert sizes == [96] * 12  # imagined from the actions and what came, and imagined for the plan
        paths = await page.value("['inverse', 'plan', 'planner'].map(name => view.shown[name].paths)")
        assert [[line["label"] for line in each] for each in paths[:2]] == [["true", "read"], ["plan"]]
        np.testing.assert_allclose(paths[0][0]["points"][-1], end, atol=0.01)  # the last true action
        scores = [float(line["label"]) for line in paths[2]]
        assert len(scores) == 8 and scores == sorted(scores) and scores[0] < scores[-1]
        await page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", code="ArrowRight")
        np.testing.assert_allclose(
            await page.until(f"view.live.step > {steps} && view.live.target"), end + [0.04, 0], atol=1e-3
        )
        await page.value("document.getElementById('act').click()")
        await page.until(f"view.live.acting && view.live.step > {steps + 10}")
        assert np.linalg.norm(await agent(page) - end) > 0.1, "the policy goes to the T"
        await page.value("document.getElementById('next').click()")
        await page.until("view.hello.seed === 100001 && view.live.step === 0")


def test_a_person_and_the_policy_act(tmp_path: Path) -> None:
    if not shutil.which("chromium"):
        pytest.skip("chromium is not installed")

    checkpoint = shutil.copytree(ROOT / "checkpoints" / "uva_pusht_small", tmp_path / "checkpoint")
    config = OmegaConf.load(checkpoint / "config.yaml")  # with a score that tells plans apart far from the goal, too
    config.task.planner_score.update(shaping=10, margin=0)
    OmegaConf.save(config, checkpoint / "config.yaml")

    async def run() -> None:
        program = [sys.executable, str(ROOT / "scripts" / "play.py"), "--port", "0", "--device", "cpu"]
        program += ["--checkpoint", str(checkpoint)]
        script = await asyncio.create_subprocess_exec(*program, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(120):
                while not (found := re.search(rb"http://[\d.:]+", line := await script.stdout.readline())):
                    assert line, "the script has ended"
            await try_out(found[0].decode())
        finally:
            script.terminate()
            await script.wait()

    asyncio.run(run())
