"""Clients, disks and processes that fail while `mosrt serve` works: nothing accepted is lost."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import mosrt
from tests.conftest import HANG_S
from tests.runtime.serving.http.servers import Server, clip, serving
from tests.runtime.serving.http.test_server import children

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"


def mos(server: Server) -> float:
    answer = httpx.post(f"{server.url}/v1/score", content=clip(), timeout=HANG_S)
    assert answer.status_code == 200
    return float(answer.json()["mos"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    return Path(shutil.copytree(Path(mosrt.__file__).parent / "models" / "nano", folder))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Server]:
    with serving("-m", str(model)) as started:
        yield started


def in_flight(server: Server) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("mosrt_http_requests_in_flight "):
            return float(line.split()[1])
    raise AssertionError


def test_clients_that_hang_up(server: Server) -> None:
    """In the middle of an upload, and before the answer: their places are free again."""
    expected = mos(server)
    data = clip()
    whole = HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data
    for length in [len(HEAD) // 2, len(HEAD) + 30, len(whole) // 2, len(whole)] * 20:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(whole[:length])
            if length % 2:  # with a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert mos(server) == expected
    ends = time.monotonic() + HANG_S
    while in_flight(server) and time.monotonic() < ends:
        time.sleep(0.05)
    assert in_flight(server) == 0
    assert "Traceback" not in server.log


def test_slow_senders_keep_nobody_waiting(server: Server) -> None:
    slow = []
    try:
        for i in range(40):
            client = socket.create_connection(("127.0.0.1", server.port))
            slow.append(client)
            client.sendall(HEAD[: 10 + i] if i % 2 else HEAD + b"Content-Length: 1000\r\n\r\nRI")
        assert mos(server) > 1
    finally:
        for client in slow:
            client.close()


def test_a_thousand_bodies_of_garbage(server: Server) -> None:
    draw = random.Random(0)
    good = clip()
    kinds = ("audio/wav", "application/json", "multipart/form-data; boundary=b", "", "text/html")
    statuses = Counter[int]()
    with httpx.Client(base_url=server.url, timeout=HANG_S) as client:
        for i in range(1000):
            body = draw.randbytes(draw.randrange(200))
            if i % 4 == 0:  # damaged rather than random
                start = draw.randrange(60)
                body = good[:start] + body + good[start + len(body) : 2000]
            elif i % 4 == 1:
                head = b'Content-Disposition: form-data; name="file"; filename="a"'
                body = b"--b\r\n" + head + b"\r\n\r\n" + body
            headers = {"Content-Type": draw.choice(kinds)}
            statuses[client.post("/v1/score", content=body, headers=headers).status_code] += 1
    assert set(statuses) <= {200, 400, 415, 422}, statuses
    assert statuses[422] > 100
    assert "Traceback" not in server.log
    assert mos(server) > 1


def test_a_model_directory_that_is_deleted(server: Server, model: Path) -> None:
    expected = mos(server)
    shutil.rmtree(model)
    assert mos(server) == expected
    assert (
        httpx.get(f"{server.url}/v1/models", timeout=HANG_S).json()["models"][0]["name"] == "nano"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_access_log() -> None:
    with Path("/dev/full").open("w") as full, serving(stdout=full) as server:
        for _ in range(3):
            assert mos(server) > 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(HANG_S) == 0
        assert "Traceback" not in server.log


def load(server: Server, stop: threading.Event, results: list[int | str]) -> None:
    """A client that sends clips one after the other, each over a connection of its own."""
    while not stop.is_set():
        try:
            answer = httpx.post(f"{server.url}/v1/score", content=clip(), timeout=HANG_S)
            results.append(answer.status_code)
        except httpx.NetworkError as exc:  # refused, reset
            results.append(type(exc).__name__)
            time.sleep(0.05)
        except httpx.RemoteProtocolError as exc:  # closed before the request was read
            assert "without sending a response" in str(exc)
            results.append("closed")


def test_sigterm_under_load() -> None:
    """Each client gets its score, a 503, or no connection; never half an answer or none."""
    stop = threading.Event()
    results: list[int | str] = []
    with serving() as server, ThreadPoolExecutor(8) as clients:
        done = [clients.submit(load, server, stop, results) for _ in range(8)]
        while len(results) < 20:
            time.sleep(0.05)
        assert server.end() == 0
        stop.set()
        for each in done:
            each.result(HANG_S)
        accepted = [line for line in server.access() if line["path"] == "/v1/score"]
    counted = Counter(results)
    refused = {"ConnectError", "ReadError", "WriteError", "closed"}
    assert set(counted) <= {200, 503, *refused}, counted
    assert counted[200] == sum(line["status"] == 200 for line in accepted)
    assert all(line["status"] in (200, 503) for line in accepted)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_worker_loses_only_its_own_requests() -> None:
    stop = threading.Event()
    results: list[int | str] = []
    with serving("--workers", "2") as server, ThreadPoolExecutor(4) as clients:
        workers = children(server)
        done = [clients.submit(load, server, stop, results) for _ in range(4)]
        while len(results) < 10:
            time.sleep(0.05)
        os.kill(workers[0], signal.SIGKILL)
        seen = len(results)
        while len(results) < seen + 20:
            time.sleep(0.05)
        stop.set()
        for each in done:
            each.result(HANG_S)
        assert server.end() == 0
    counted = Counter(results)
    failed = sum(count for kind, count in counted.items() if kind != 200)
    assert failed <= 4, counted  # at most what each client had in flight
    assert set(counted) <= {200, "ReadError", "WriteError", "closed"}, counted
