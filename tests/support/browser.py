"""A headless Chromium, driven by its DevTools protocol over two pipes: no driver, no port, no package."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium-headless-shell", "chromium", "google-chrome", "chromium-browser", "chrome")


def find() -> str | None:
    """What tools/chromium.sh unpacked, or one on PATH."""
    path = os.pathsep.join([str(ROOT / ".venv/chromium/bin"), os.environ.get("PATH", "")])
    return next((found for name in NAMES if (found := shutil.which(name, path=path))), None)


@contextlib.contextmanager
def browsing(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with one page, which ends with the context."""
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-pipe".split()
    with contextlib.ExitStack() as stack:
        (read, requests), (answers, write) = os.pipe(), os.pipe()
        out, answered = stack.enter_context(open(requests, "wb", 0)), stack.enter_context(open(answers, "rb"))
        shell = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash"]  # the browser reads from 3 and writes to 4
        try:
            process = subprocess.Popen(
                [*shell, program, *flags, f"--user-data-dir={profile}"],
                pass_fds=(read, write),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(read)
            os.close(write)
        try:
            yield Browser(out, answered)
        finally:
            process.kill()
            process.wait()


class Browser:
    """Commands of the DevTools protocol: `browser("Page.navigate", url=...)`."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers
        self._number = 0
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        page = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]}
        self("Page.enable")
        self("Network.enable")

    def __call__(self, method: str, **arguments: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments, **self._session}
        self._requests.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has gone")
            text += byte
        return json.loads(text)

    def open(self, address: str) -> None:
        """Go there, and wait for the page's load event."""
        self._events.clear()
        self("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())

    def requested(self) -> list[str]:
        """The addresses asked for since `open`."""
        return [e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"]

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript, of a promise too."""
        got = self("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in got:
            raise RuntimeError(got["exceptionDetails"]["exception"]["description"])
        return got["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """A colour scheme: "light" or "dark"."""
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png")["data"]))
