"""The server process: what it refuses on its own, how it ends, where it listens."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from mosrt.cli.main import main
from tests.conftest import HANG_S

from .servers import Server, clip, serving

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: audio/wav\r\n"


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), HANG_S) as client:
        yield client


def answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON body of the next answer."""
    file = client.makefile("rb")
    status = int(file.readline().split()[1])
    length = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return status, json.loads(file.read(length))


def test_a_refused_upload_is_answered_while_it_is_sent(server: Server) -> None:
    """The answer reaches a client that goes on sending, and the connection is of use again."""
    with connected(server) as client:
        client.sendall(HEAD + b"Content-Length: 20000000\r\n\r\n" + bytes(100_000))
        status, body = answer(client)
        assert status == 413
        assert body["type"] == "urn:mosrt:problem:too-large"
        client.sendall(bytes(20_000_000 - 100_000))
        client.sendall(HEAD + b"Content-Length: 0\r\n\r\n")
        assert answer(client)[0] == 422


def test_no_upload_is_invited_that_is_refused(server: Server) -> None:
    with connected(server) as client:
        client.sendall(HEAD + b"Content-Length: 20000000\r\nExpect: 100-continue\r\n\r\n")
        assert answer(client)[0] == 413
    with connected(server) as client:
        client.sendall(HEAD + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 100 ")
        client.sendall(b"junk")
        assert answer(client)[0] == 422


@pytest.mark.parametrize(
    "request_",
    [b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" * 50, b"GET / HTTP/1.1\r\n\r\n",
     b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000,
     HEAD + b"Content-Length: -1\r\n\r\n",
     HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_http(request_: bytes, server: Server) -> None:
    with connected(server) as client:
        client.sendall(request_)
        status, body = answer(client)
        assert status == 400
        assert body["type"] == "urn:mosrt:problem:bad-request"
        assert client.recv(1) == b""


def test_headers_must_come_in_time() -> None:
    with serving("--header-timeout", "0.2", "--body-timeout", "0.2") as server:
        with connected(server) as client:  # it sends nothing
            assert client.recv(1) == b""
        with connected(server) as client:
            client.sendall(HEAD)
            status, body = answer(client)
            assert status == 408
            assert body["type"] == "urn:mosrt:problem:timeout"
            assert client.recv(1) == b""
        with connected(server) as client:  # the second request of a connection
            client.sendall(HEAD + b"Content-Length: 4\r\n\r\njunk")
            assert answer(client)[0] == 422
            client.sendall(HEAD)
            assert answer(client)[0] == 408
        with connected(server) as client:
            client.sendall(HEAD + b"Content-Length: 4\r\n\r\nj")
            assert answer(client)[0] == 408
            assert client.recv(1) == b""  # and nobody waits for the rest of the body


def test_a_server_that_is_told_to_end_finishes_what_it_accepted() -> None:
    """Readiness goes first; then new requests get 503; the accepted one is answered; status 0."""
    with serving("--drain-delay", "1") as server, connected(server) as client:
        data = clip()
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data[:1000])
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        seen = list[tuple[int, int]]()
        ends = time.monotonic() + HANG_S
        while not seen or (seen[-1] != (503, 503) and time.monotonic() < ends):
            ready = httpx.get(f"{server.url}/readyz").status_code
            scored = httpx.post(f"{server.url}/v1/score", content=b"").status_code
            if not seen or seen[-1] != (ready, scored):
                seen.append((ready, scored))
            time.sleep(0.05)
        assert seen[-2:] == [(503, 422), (503, 503)]
        client.sendall(data[1000:])
        status, body = answer(client)
        assert status == 200
        assert body["mos"] > 1
        assert server.end() == 0


def test_grace_has_an_end() -> None:
    with serving("--grace", "0.5") as server, connected(server) as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        time.sleep(0.2)
        assert server.end() == 0


def test_the_access_log_has_a_line_for_each_request_without_audio() -> None:
    with serving() as server:
        httpx.post(
            f"{server.url}/v1/score?domain=bvcc", content=clip(), headers={"X-Request-ID": "abc-1"}
        )
        httpx.post(f"{server.url}/v1/score", content=b"junk", headers={"X-Request-ID": "a b"})
        assert server.end() == 0
        lines = [line for line in server.access() if line["path"] == "/v1/score"]
    assert lines[0]["request_id"] == "abc-1"
    assert lines[1]["request_id"] not in ("", "a b")
    assert [line["status"] for line in lines] == [200, 422]
    assert lines[0]["bytes_in"] == len(clip())
    assert lines[0]["audio_s"] == 4.89
    assert set(lines[0]) == {
        "time", "request_id", "client", "method", "path", "status", "bytes_in", "bytes_out",
        "duration_ms", "flags", "audio_s",
    }  # fmt: skip
    assert max(map(len, server.lines)) < 500


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_unix_socket(workers: str, tmp_path: Path) -> None:
    path = tmp_path / "mosrt.sock"
    with socket.socket(socket.AF_UNIX) as left:  # as a killed server leaves it
        left.bind(str(path))
    with serving("--uds", str(path), "--workers", workers) as server:
        wait_listening(path)
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://x", timeout=HANG_S) as client:
            answered = client.post("/v1/score", content=clip())
        assert answered.status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        result = CliRunner().invoke(main, ["serve", "-m", "nano", "--uds", str(path)])
        assert result.exit_code == 3
        assert "in use" in result.output
        assert server.end() == 0
    assert not path.exists()


def test_the_token_comes_from_a_file_or_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    file.chmod(0o600)
    variable = {"MOSRT_TOKEN": "from-variable"}
    for options, token in ((("--token-file", str(file)), "from-file"), ((), "from-variable")):
        with serving(*options, env=variable) as server:
            sent = {"Authorization": f"Bearer {token}"}
            assert httpx.get(f"{server.url}/v1/models", headers=sent).status_code == 200
            assert httpx.get(f"{server.url}/v1/models").status_code == 401
            assert server.end(signal.SIGINT) == 0
            assert "Traceback" not in server.log
            assert token not in server.log
            assert token not in "".join(server.lines)


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        (("-m", "none"), 3, "none: no such bundle"),
        (("--provider", "coreml"), 3, "coreml"),
        (("--token-file", "empty"), 3, "holds no bearer token"),
        (("--token-file", "missing"), 3, "missing"),
        (("--uds", "missing/mosrt.sock"), 3, "missing/mosrt.sock"),
        (("--max-bytes", "0"), 2, "--max-bytes"),
        (("--max-seconds", "nan"), 2, "--max-seconds"),
        (("--workers", "2", "-m", "none"), 3, "none: no such bundle"),
    ],
)
def test_what_does_not_start(
    options: tuple[str, ...],
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    result = CliRunner().invoke(main, ["serve", "-m", "nano", *options])
    assert result.exit_code == status, result.output
    assert text in result.output
    assert "Traceback" not in result.output


def test_a_port_that_is_taken(server: Server) -> None:
    taken = Server("--port", str(server.port), must_run=False)
    assert taken.end() == 3
    assert "address already in use" in taken.log


def test_workers_share_a_port_and_one_that_is_killed_is_replaced() -> None:
    with serving("--workers", "2") as server:
        workers = children(server)
        assert len(workers) == 2
        with httpx.Client(base_url=server.url) as client:
            for _ in range(10):
                assert client.post("/v1/score", content=clip()).status_code == 200
            scraped = client.get("/metrics").text
        assert (
            'mosrt_http_requests_total{method="POST",path="/v1/score",status="200"} 10.0' in scraped
        )
        os.kill(workers[0], signal.SIGKILL)
        for _ in range(20):  # the other one serves
            assert httpx.post(f"{server.url}/v1/score", content=clip()).status_code == 200
        ends = time.monotonic() + HANG_S
        while len(set(children(server)) - {workers[0]}) < 2 and time.monotonic() < ends:
            time.sleep(0.1)
        assert len(set(children(server)) - {workers[0]}) == 2
        assert server.end() == 0
        assert "Traceback" not in server.log


def test_workers_end_when_their_parent_is_killed() -> None:
    with serving("--workers", "2") as server:
        workers = children(server)
        server.process.kill()
        ends = time.monotonic() + HANG_S
        while any(map(alive, workers)) and time.monotonic() < ends:
            time.sleep(0.05)
        assert not any(map(alive, workers))


def wait_listening(path: Path) -> None:
    ends = time.monotonic() + HANG_S
    while time.monotonic() < ends:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(path)) == 0:
                return
        time.sleep(0.1)


def children(server: Server) -> list[int]:
    """Worker processes of a server."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
            command = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(rest.split()[1]) == server.process.pid and b"spawn_main" in command:
            found.append(int(path.parent.name))
    return sorted(found)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
