"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update".split()


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._asked = socket, 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer. Raises RuntimeError where the browser refuses."""
        self._asked += 1
        await self._socket.send_json({"id": self._asked, "method": method, "params": parameters})
        while (answer := await self._socket.receive_json(timeout=30)).get("id") != self._asked:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(answer["error"]["message"])
        return answer["result"]

    async def value(self, expression: str) -> Any:
        """Of a JavaScript expression. Raises RuntimeError where it throws."""
        answer = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    async def until(self, expression: str, seconds: float = 20) -> Any:
        """The value of an expression once it is true. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while not (value := await self.value(expression)):
                await asyncio.sleep(0.05)
        return value

    async def mouse(self, kind: str, x: float, y: float) -> None:
        """`kind`: mousePressed, mouseMoved or mouseReleased."""
        held = {"button": "left", "buttons": int(kind != "mouseReleased"), "clickCount": int(kind != "mouseMoved")}
        await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)


@asynccontextmanager
async def opened(url: str, size: tuple[int, int] = (1480, 900)) -> AsyncIterator[Page]:
    """A page in a browser of its own, which gets minutes to start on a busy machine.

    Raises FileNotFoundError where Chromium is not installed, RuntimeError where it ends with what it printed.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise FileNotFoundError("chromium is not installed: sudo apt-get install -y chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--window-size={},{}".format(*size)]
        port_file, printed = Path(profile) / "DevToolsActivePort", Path(profile) / "printed.txt"
        with printed.open("wb") as stderr:
            browser = await asyncio.create_subprocess_exec(
                program, "--headless", "--no-sandbox", *QUIET, *options, "about:blank", stderr=stderr
            )
        try:
            async with asyncio.timeout(180), aiohttp.ClientSession() as http:
                while not (port_file.is_file() and port_file.read_text()):
                    if browser.returncode is not None:
                        raise RuntimeError(f"chromium ended with {browser.returncode}: {printed.read_text()[-2000:]}")
                    await asyncio.sleep(0.05)
                base, pages = f"http://127.0.0.1:{port_file.read_text().split()[0]}/json", []
                while not pages:
                    pages = [each for each in await (await http.get(base)).json() if each["type"] == "page"]
            async with aiohttp.ClientSession() as http:
                page = Page(await http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0))
                await page.call("Page.navigate", url=url)
                yield page
        finally:
            if browser.returncode is None:
                browser.kill()
            await browser.wait()
