"""A headless Chromium that tests drive by its DevTools protocol over pipes, without a library."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium reads commands from descriptor 3 and answers on 4.
_LAUNCH = """
import fcntl, os, sys
pair = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]]
os.dup2(pair[0], 3)
os.dup2(pair[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_TIMEOUT_S = 900.0


def find_browser() -> str | None:
    """The path of one, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """A page in the browser.

    Attributes:
        complaints: What it wrote to the console, threw or was refused, so far.
    """

    def __init__(self, commands: int, answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        self.complaints: list[str] = []
        self._commands = commands
        self._answers = answers
        self._number = 0
        self._session: str | None = None
        self._server: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command's result; what happened until then is noted."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while True:
            answer = self._answers.get(timeout=_TIMEOUT_S)
            assert answer is not None, "the browser has gone"
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def show(self, file: Path, *, width: int, dark: bool) -> None:
        """Opens a file as a screen of that width shows it."""
        self.open(file.as_uri(), width=width, dark=dark)

    def open(self, url: str, *, width: int, dark: bool) -> None:
        """Opens a page; requests to its own server are no complaint."""
        self._server = url.partition("//")[2].partition("/")[0] if "//127." in url else None
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900,
                 deviceScaleFactor=1, mobile=width < 500)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=url)
        self.value("new Promise((done) => document.readyState === 'complete' ? done()"
                   " : addEventListener('load', done))")  # fmt: skip

    def value(self, expression: str) -> Any:
        """What an expression, or the promise that it is, comes to."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True,
                         returnByValue=True, userGesture=True)  # fmt: skip
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self) -> bytes:
        """The whole page as PNG."""
        found = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(found["data"])

    def _note(self, event: dict[str, Any]) -> None:
        method, parameters = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            self.complaints.append(f"console: {parameters['args']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {parameters['exceptionDetails']}")
        elif method == "Log.entryAdded":
            self.complaints.append(f"log: {parameters['entry']['text']}")
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            own = self._server is not None and url.startswith(f"http://{self._server}/")
            if not own and not url.startswith(("data:", "file:", "about:", "blob:")):
                self.complaints.append(f"request: {url}")


@contextmanager
def browser_tab(browser: str, profile: Path) -> Iterator[Tab]:
    """Starts a browser, and ends it."""
    to_browser, commands = os.pipe()
    results, from_browser = os.pipe()
    command = [sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), browser,
               "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
               "--remote-debugging-pipe", f"--user-data-dir={profile}"]  # fmt: skip
    log = profile.with_suffix(".log").open("wb")
    process = subprocess.Popen(command, pass_fds=(to_browser, from_browser), stdout=log, stderr=log)
    os.close(to_browser)
    os.close(from_browser)
    answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def read() -> None:
        with os.fdopen(results, "rb") as stream:
            rest = b""
            while chunk := os.read(stream.fileno(), 1 << 16):
                *whole, rest = (rest + chunk).split(b"\0")
                for message in whole:
                    answers.put(json.loads(message))
        answers.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield Tab(commands, answers)
    finally:
        os.close(commands)  # which ends it
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        log.close()
