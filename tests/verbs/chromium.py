"""A headless Chromium with software WebGL, steered through a pipe by the DevTools protocol; it reaches loopback alone
and ends when its pipe does."""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--remote-debugging-pipe",
]
PATIENCE = 240.0
"""Seconds that anything may take: one frame of software WebGL takes tens of them on a busy machine."""


def find_chromium() -> str | None:
    """The first of the programs that is on the PATH."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """One tab of a browser; a context that ends the browser.

    Args:
        folder: for the browser's profile and what it prints.
        size: width and height of the page.

    Attributes:
        requested: addresses that pages have asked for.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._log, self._number, self._session, self._buffer = folder / "printed.txt", 0, "", b""
        self.requested: list[str] = []
        self._process, self._read, self._write = _start(folder / "profile", self._log)
        try:
            self.until(lambda: self._tabs(), "a tab")
            self._session = self.call("Target.attachToTarget", targetId=self._tabs()[0], flatten=True)["sessionId"]
            self.call("Network.enable")
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
            self.call("Emulation.setDeviceMetricsOverride", **metrics)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the browser and all its processes."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while (answer := self._receive(end)).get("id") != self._number:
            if answer.get("method") in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                told = answer["params"]
                self.requested.append(told["url"] if "url" in told else told["request"]["url"])
        assert "error" not in answer, f"{method}: {answer['error']}"
        return answer["result"]

    def go(self, url: str) -> None:
        """Opens a page in place of the one that is there."""
        answer = self.call("Page.navigate", url=url)
        assert not answer.get("errorText"), f"{url}: {answer['errorText']}"

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def picture(self) -> np.ndarray:
        """(H W 3) uint8 of the page as it is drawn."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        return np.array(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def until(self, condition: Callable[[], Any], wanted: str) -> None:
        """Returns as soon as the condition is true.

        Raises:
            AssertionError: it has not become so; with what the page says and where its picture is.
        """
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"{wanted}: not within {PATIENCE:.0f} s; {self._seen() if self._session else ''}")
            time.sleep(0.3)

    def _seen(self) -> str:
        path = self._log.with_name("seen.png")
        Image.fromarray(self.picture()).save(path)
        return f"the page, in {path}, says: {self.run('document.body.innerText')}"

    def _tabs(self) -> list[str]:
        return [told["targetId"] for told in self.call("Target.getTargets")["targetInfos"] if told["type"] == "page"]

    def _receive(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready = select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]
            part = os.read(self._read, 1 << 20) if ready else b""
            problem = "has ended" if ready else f"does not answer within {PATIENCE:.0f} s"
            assert part, f"Chromium {problem}; it printed: {self._log.read_text(errors='replace')[-2000:]}"
            self._buffer += part
        text, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(text)


def _start(profile: Path, log: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, and our ends of its pipes: where to read its answers, where to write commands."""
    program = find_chromium()
    assert program, f"none of {', '.join(PROGRAMS)} is on the PATH"
    profile.mkdir(parents=True)
    command, write = os.pipe()
    read, answer = os.pipe()
    # Chromium reads from descriptor 3 and writes to 4; ours are moved out of the way of these first.
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (command, answer)]
    script = 'exec "$@" 3</dev/fd/{} 4>/dev/fd/{}'.format(*theirs)
    words = ["sh", "-c", script, "sh", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=theirs, start_new_session=True
        )
    for end in (command, answer, *theirs):
        os.close(end)
    return process, read, write
