"""Starts `mosrt serve` in a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import HANG_S

MAIN = "from mosrt.cli.main import main; main()"


class Server:
    """A running server.

    Attributes:
        process: It.
        url: Where it listens; empty for a Unix socket.
    """

    def __init__(
        self,
        *options: str,
        env: dict[str, str] | None = None,
        stdout: Any = -1,
        must_run: bool = True,
        python: str = "",
    ) -> None:
        command = [sys.executable, "-W", "error", "-c", python + MAIN, "serve", "-m", "nano"]
        self.process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.errors: list[str] = []
        self.lines: list[str] = []
        self.url = ""
        self._started = threading.Event()
        self._readers = [threading.Thread(target=self._read_errors, daemon=True)]
        if stdout == -1:
            self._readers.append(threading.Thread(target=self._read_lines, daemon=True))
        for reader in self._readers:
            reader.start()
        assert self._started.wait(HANG_S)
        assert self.process.poll() is None or not must_run, self.log

    @property
    def log(self) -> str:
        """What it wrote to standard error."""
        return "".join(self.errors)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def access(self) -> list[dict[str, Any]]:
        """The lines of the access log so far."""
        return [json.loads(line) for line in self.lines]

    def wait_ready(self, **options: Any) -> None:
        """Waits until it wants requests."""
        ends = time.monotonic() + HANG_S
        while time.monotonic() < ends:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=HANG_S, **options).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise TimeoutError(self.log)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it with a signal, and gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(HANG_S)
        for reader in self._readers:
            reader.join(HANG_S)
        return status

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line)
            if (found := re.search(r"[Rr]unning on (?:unix )?(?:socket )?(\S+)", line)) is not None:
                self.url = found[1] if found[1].startswith("http") else ""
                self._started.set()
        self._started.set()
        self.process.stderr.close()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
        self.process.stdout.close()


@contextmanager
def serving(*options: str, **more: Any) -> Iterator[Server]:
    """Runs a server for the block, and ends it if it still runs."""
    server = Server(*options, **more)
    try:
        if server.url:
            server.wait_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.end()
            except subprocess.TimeoutExpired:
                server.process.kill()
                raise
        for reader in server._readers:
            reader.join(HANG_S)


def clip(name: str = "flite_slt_16k_mono.wav") -> bytes:
    return (Path(__file__).parents[3] / "data" / name).read_bytes()
