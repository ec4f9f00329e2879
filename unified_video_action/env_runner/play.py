"""A local web page: a person or the policy acts in a simulator, beside what the policy makes of it.

The simulator runs at its own rate while somebody acts, and stands still otherwise. The panels beside it are made in the
background, one after the other. Only browsers of the same machine are answered.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSMsgType, web

from unified_video_action.env_runner.panels import Panels, Trace, history, picture
from unified_video_action.env_runner.rollout import instruction_of
from unified_video_action.env_runner.runner import EnvRunner
from unified_video_action.env_runner.simulators import Crash, EnvProcesses
from unified_video_action.inference.planner import Planner
from unified_video_action.inference.session import PolicySession
from unified_video_action.policy.base import BasePolicy

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
RUNS_ON_S = 0.5  # how long the simulator goes on after a person's last input


class Player:
    """One simulator, the policy, and the pages that show them.

    Args:
        policy: on its device, in evaluation mode.
        runner: of the policy's task: environment, rate, reader of positions.
        planner: whose candidates are shown, or why there is none.
        seed: of the first episode. title: of the page.
    """

    def __init__(self, policy: BasePolicy, runner: EnvRunner, planner: Planner | str, seed: int, title: str) -> None:
        self.runner, self.reader, self.title, self.task = runner, runner.reader, title, policy.task
        self.session = PolicySession(policy, action_steps=runner.action_steps)
        self.panels = Panels(policy, self.reader, planner)
        actions = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        draggable = self.reader is not None and self.task.action_dim == 2
        self.corners = self.reader.in_picture(actions, 1) if draggable else None  # (3, 2) of these actions
        self.pages: set[web.WebSocketResponse] = set()
        self.latest: dict[str, str] = {}  # kind of message -> the newest one, for pages that come later
        self.awake, self.changed = asyncio.Event(), asyncio.Event()
        self.wanted: int | None = seed  # of an episode to begin
        self.acting, self.running, self.until = False, False, 0.0

    async def serve(self, port: int) -> None:
        """Answer browsers of this machine at `port` (0 takes a free one), for ever."""
        app = web.Application(middlewares=[own_pages_only])
        html = files(__package__).joinpath("templates/play.html").read_text("utf-8")

        async def page(_: web.Request) -> web.Response:
            return web.Response(text=html, content_type="text/html")

        app.add_routes([web.get("/", page), web.get("/live", self._talk)])
        server = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await server.setup()
        try:
            with EnvProcesses(self.runner.env_config, 1, self.runner.timeout_s) as envs:
                await self._begin(envs)
                await web.TCPSite(server, HOST, port).start()
                log.info("open http://%s:%d in a browser of this machine; Ctrl-C ends", *server.addresses[0][:2])
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._simulate(envs))
                    tasks.create_task(self._look())
        finally:
            await server.cleanup()

    async def _begin(self, envs: EnvProcesses) -> None:
        seed, self.wanted, self.ended = self.wanted, None, ""
        (first,) = (await asyncio.to_thread(envs.reset, {0: seed})).values()
        if isinstance(first, Crash):
            raise ValueError(f"the simulator cannot begin episode {seed}: {first.reason}")
        said = instruction_of(first)
        text = self.session.policy.encode_text([said])[0] if self.task.text_dim else None
        self.session.reset(seed=seed, text=text)
        self.trace, self.coming, self.stamps = Trace(seed, text, [first], []), deque(), deque(maxlen=20)
        self.score, self.acting, self.target = None, False, None
        if self.corners is not None:
            agent = self.reader(first[self.task.camera_names[0]]).agent
            self.target = agent if np.isfinite(agent).all() else self._action_at([0.5, 0.5])
        about = {"title": self.title, "seed": seed, "text": said, "drags": self.corners is not None}
        await self._send("hello", about | {"acts": not self.panels.why_not["plan"], "hz": self.runner.fps})
        self.changed.set()
        await self._show()

    async def _simulate(self, envs: EnvProcesses) -> None:
        period, due = 1 / self.runner.fps, 0.0
        while True:
            if self.wanted is not None:
                await self._begin(envs)
            if self.ended or not (self.acting or time.monotonic() < self.until):
                if self.running:
                    self.acting = self.running = False
                    self.stamps.clear()
                    await self._show()
                await self.awake.wait()
                self.awake.clear()
                continue
            due = max(due + period, time.monotonic() - 4 * period)  # a plan that took long is made up for
            await asyncio.sleep(max(due - time.monotonic(), period / 2))
            action = await self._action()
            (answer,) = (await asyncio.to_thread(envs.step, {0: action[None]})).values()
            self.running = True
            if isinstance(answer, Crash):
                self.ended = f"the simulator crashed: {answer.reason}"
                continue
            (step,) = answer
            self.trace.seen.append(step.observation)
            self.trace.actions.append(action)
            self.score = step.info.get("score")
            if step.ended:
                self.ended = "solved" if step.info.get("is_success") else "the episode is over"
            self.stamps.append(time.monotonic())
            self.changed.set()
            await self._show()

    async def _action(self) -> np.ndarray:
        """The action (D,) to execute now."""
        if not self.acting:
            self.coming.clear()
            return self.target
        if not self.coming:
            self.coming.extend((await asyncio.to_thread(self._plan))[: self.runner.action_steps])
        self.target = self.coming.popleft()
        return self.target

    def _plan(self) -> np.ndarray:
        with self.panels.lock:
            self.session.recall(history(self.task, self.trace.seen))
            return self.session.plan()[0]  # (A, D)

    async def _look(self) -> None:
        """Make all panels again after every change."""
        background = ThreadPoolExecutor(1, initializer=give_way)
        while True:
            await self.changed.wait()
            self.changed.clear()
            for name in self.panels.makers:
                trace, started = self.trace, time.monotonic()
                now = Trace(trace.seed, trace.text, list(trace.seen), list(trace.actions))
                made = await asyncio.get_running_loop().run_in_executor(background, self.panels.make, name, now)
                await self._send(name, {**made, "step": len(now.actions), "seconds": time.monotonic() - started})

    async def _show(self) -> None:
        rate = (len(self.stamps) - 1) / (self.stamps[-1] - self.stamps[0]) if len(self.stamps) > 1 else None
        shown = {"step": len(self.trace.actions), "score": self.score, "rate": rate, "running": self.running}
        target = None if self.corners is None else self.reader.in_picture(self.target, 1).tolist()
        frame = self.trace.seen[-1][self.task.camera_names[0]]
        shown |= {"acting": self.acting, "ended": self.ended, "target": target, "image": picture(frame)}
        await self._send("live", shown)

    def _action_at(self, point: Sequence[float]) -> np.ndarray:
        """The action (2,) at (x, y) in the picture, both from 0 to 1."""
        origin, x, y = self.corners
        return np.linalg.solve(np.stack([x - origin, y - origin], axis=1), np.clip(point, 0, 1) - origin)

    async def _send(self, kind: str, content: Mapping[str, Any]) -> None:
        self.latest[kind] = text = json.dumps({"kind": kind, **content})
        for page in list(self.pages):
            try:
                await page.send_str(text)
            except ConnectionError:  # closed meanwhile
                self.pages.discard(page)

    async def _talk(self, request: web.Request) -> web.WebSocketResponse:
        page = web.WebSocketResponse(max_msg_size=4096)
        await page.prepare(request)
        for text in list(self.latest.values()):
            await page.send_str(text)
        self.pages.add(page)
        try:
            async for message in page:
                if message.type is WSMsgType.TEXT:
                    self._take(json.loads(message.data))
        except (ValueError, TypeError) as error:
            log.warning("a page was closed: %s", error)
            await page.close()
        finally:
            self.pages.discard(page)
            self.acting &= bool(self.pages)  # nobody looks
        return page

    def _take(self, command: Any) -> None:
        """Do what a page asks for. Raises ValueError or TypeError for what no page of ours sends."""
        match command:
            case {"target": [x, y]} if self.corners is not None:
                self._move_to([float(x), float(y)])
            case {"nudge": [x, y]} if self.corners is not None:
                self._move_to(self.reader.in_picture(self.target, 1) + [float(x), float(y)])
            case {"act": bool(acts)} if not self.panels.why_not["plan"]:
                self.acting, self.until = acts and not self.ended, 0.0
            case {"seed": int(seed)} if 0 <= seed < 2**31:
                self.wanted = seed
            case _:
                raise ValueError(f"not understood: {str(command)[:100]}")
        self.awake.set()

    def _move_to(self, point: Sequence[float]) -> None:
        if not np.isfinite(point).all():
            raise ValueError(f"no point in the picture: {point}")
        self.target, self.acting, self.until = self._action_at(point), False, time.monotonic() + RUNS_ON_S


def give_way() -> None:
    """Lower the priority of this thread: the policy that acts comes before the panels."""
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


@web.middleware
async def own_pages_only(request: web.Request, handler: Any) -> web.StreamResponse:
    """Refuse other names than this machine's, and other sites' pages that a browser of this machine shows."""
    name, origin = urlsplit(f"//{request.host}").hostname, request.headers.get("Origin")
    if name not in (HOST, "localhost") or origin not in (None, f"http://{request.host}"):
        raise web.HTTPForbidden(text="this page is for browsers of the same machine\n")
    return await handler(request)
