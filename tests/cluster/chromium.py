"""A page in headless Chromium, driven over the DevTools protocol through a pipe: no port, no driver, no library.

Source: https://chromedevtools.github.io/devtools-protocol/ (Target, Runtime, Page, Emulation); `--remote-debugging-pipe` reads
commands from descriptor 3 and writes answers to 4, JSON with a zero byte after each.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

WAIT_S = 45.0
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
    "--no-first-run",
)


class Page:
    """One open page. Every answer of the browser is waited for at most `WAIT_S`."""

    def __init__(self, reader: asyncio.StreamReader, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.complaints: list[str] = []
        """Errors in the page's console, and exceptions: a page without faults has none."""

    async def open(self, url: str) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        attached = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        os.write(self._writer, json.dumps(command).encode() + b"\0")
        said = await asyncio.wait_for(answer, WAIT_S)
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        said = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, script: str, timeout_s: float = WAIT_S) -> None:
        """Waits for a condition of the page."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self.run(script):  # noqa: ASYNC110 - the page tells of nothing by itself
                    await asyncio.sleep(0.05)
        except TimeoutError:
            shown = await self.run("document.body?.innerText")
            raise AssertionError(f"not within {timeout_s:g} s: {script}\n{shown}\n{self.complaints}") from None

    async def looks(self, width: int, height: int, scheme: str = "light", is_phone: bool = False) -> None:
        """The screen, in pixels, and what its owner prefers."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        await self.send("Emulation.setDeviceMetricsOverride", **screen)
        await self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def screenshot(self, file: Path) -> None:
        """The whole page, below the screen's end too."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        await asyncio.to_thread(file.write_bytes, base64.b64decode(shot["data"]))

    async def listen(self) -> None:
        """Takes what the browser says; returns when it has gone."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                said = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if "id" in said:
                    self._answers.pop(said["id"]).set_result(said)
                elif said["method"] == "Runtime.exceptionThrown":
                    self.complaints.append(said["params"]["exceptionDetails"]["text"])
                elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                    self.complaints.append(said["params"]["entry"]["text"])


@contextlib.asynccontextmanager
async def page_at(url: str, profile: Path) -> AsyncIterator[Page]:
    """A browser of its own, gone at the end."""
    assert CHROMIUM is not None
    (commands, to_browser), (from_browser, answers) = os.pipe(), os.pipe()
    # A shell, because descriptors 3 and 4 may be in use here.
    start = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
    nowhere = asyncio.subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(
        *start, pass_fds=(commands, answers), stdout=nowhere, stderr=nowhere, env=_environment(profile)
    )
    for given in (commands, answers):
        os.close(given)
    reader = asyncio.StreamReader(limit=1 << 26)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
    )
    page = Page(reader, to_browser)
    listening = asyncio.create_task(page.listen())
    try:
        await page.open(url)
        yield page
    finally:
        listening.cancel()
        os.close(to_browser)  # it ends by itself when nobody commands it any more
        transport.close()
        try:
            await asyncio.wait_for(browser.wait(), 10)
        except TimeoutError:
            browser.kill()
            await browser.wait()


def _environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's proxies or home."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | {"HOME": str(home)}
