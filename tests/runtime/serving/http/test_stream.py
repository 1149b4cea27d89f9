"""WS /v1/stream against a real server."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from jsonschema import Draft202012Validator
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

import mosrt
from tests.conftest import DATA, HANG_S

from .servers import Server, clip, serving
from .test_openapi import description

__all__ = ["description"]

Samples = npt.NDArray[np.int16]
RATE_HZ = 16_000
END = json.dumps({"type": "end"})


@pytest.fixture(scope="module")
def speech() -> Samples:
    samples, rate_hz = soundfile.read(DATA / "flite_slt_16k_mono.wav", dtype="int16")
    assert rate_hz == RATE_HZ
    return np.asarray(samples, np.int16)


def stream(server: Server, query: str = "", **options: Any) -> ClientConnection:
    url = f"{server.url.replace('http', 'ws')}/v1/stream?sample_rate={RATE_HZ}&{query}"
    opened: ClientConnection = connect(url, open_timeout=HANG_S, proxy=None, **options)
    return opened


def messages(socket: ClientConnection) -> list[dict[str, Any]]:
    """Everything that the server sends until it closes."""
    found = []
    try:
        for message in socket:
            found.append(json.loads(message))  # noqa: PERF401 - some come before an exception
    except ConnectionClosed:
        return found
    return found


@pytest.mark.parametrize("piece", [333, 16_000, 500_000])
def test_windows_get_the_scores_of_the_library(
    piece: int,
    server: Server,
    speech: Samples,
    reference: mosrt.Scorer,
    description: dict[str, Any],
) -> None:
    data = speech.tobytes()
    with stream(server, "window_s=2&hop_s=1.5&domain=bvcc") as socket:
        for start in range(0, len(data), piece):
            socket.send(data[start : start + piece])
        socket.send(END)
        *windows, end = messages(socket)
    assert socket.close_code == 1000
    bounds = [(0, 2), (1.5, 3.5), (3, 4.89)]
    assert [(each["start_s"], each["end_s"]) for each in windows] == bounds
    expected = []
    for each, (start_s, end_s) in zip(windows, bounds, strict=True):
        part = speech[round(start_s * RATE_HZ) : round(end_s * RATE_HZ)]
        expected.append(reference.score(part, RATE_HZ, domain="bvcc").mos)
        assert each["mos"] == expected[-1]
        assert each["mean"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert end["mean"] == windows[-1]["mean"]
    assert end["duration_s"] == 4.89
    assert (end["windows"], end["scored"]) == (3, 3)
    schema = {
        **description["components"]["schemas"]["StreamMessage"],
        "components": description["components"],
    }
    for message in (*windows, end):
        Draft202012Validator(schema).validate(message)


def test_channels_are_mixed(server: Server, speech: Samples, reference: mosrt.Scorer) -> None:
    stereo = np.stack([speech, speech // 2], axis=1)
    with stream(server, "channels=2&window_s=30") as socket:
        socket.send(stereo.tobytes())
        socket.send(END)
        window, _ = messages(socket)
    assert window["mos"] == reference.score(np.ascontiguousarray(stereo.T), RATE_HZ).mos


def test_windows_without_a_score_do_not_count(server: Server, speech: Samples) -> None:
    with stream(server, "window_s=1") as socket:
        socket.send(np.zeros(50, np.int16).tobytes())  # too short for a window
        socket.send(END)
        (end,) = messages(socket)
    assert (end["windows"], end["mean"]) == (0, None)
    with stream(server, "window_s=1") as socket:
        socket.send(np.zeros(RATE_HZ, np.int16).tobytes() + speech[:RATE_HZ].tobytes())
        socket.send(END)
        silent, _, end = messages(socket)
    assert "silent" in silent["flags"]
    assert end["windows"] == 2


@pytest.mark.parametrize(
    ("query", "status"),
    [("window_s=0.1", 400), ("window_s=31", 400), ("hop_s=5", 400), ("channels=9", 400),
     ("sample_rate=8000", 400), ("views=0", 400), ("nothing=1", 400)],
)  # fmt: skip
def test_what_is_refused_before_the_stream_opens(query: str, status: int, server: Server) -> None:
    with pytest.raises(InvalidStatus) as error:
        stream(server, query)
    answer = error.value.response
    assert answer.status_code == status
    body = json.loads(answer.body or b"")
    assert body["type"] == "urn:mosrt:problem:bad-request"
    assert body["request_id"] == answer.headers["X-Request-ID"]


@pytest.mark.parametrize("message", ["", "{", '{"type": "stop"}', "[" * 100_000])
def test_other_messages_close_the_stream(message: str, server: Server) -> None:
    with stream(server) as socket:
        socket.send(message)
        (problem,) = messages(socket)
    assert problem["problem"]["type"] == "urn:mosrt:problem:bad-request"
    assert socket.close_code == 1008


def test_a_message_that_is_too_long(server: Server) -> None:
    with stream(server) as socket:
        socket.send(bytes((1 << 20) + 1))
        assert messages(socket) == []
        assert socket.close_code == 1009


def test_a_domain_that_the_model_does_not_know(server: Server, speech: Samples) -> None:
    with stream(server, "domain=none") as socket:
        socket.send(speech[: 4 * RATE_HZ].tobytes())
        (problem,) = messages(socket)
    assert "unknown domain" in problem["problem"]["detail"]


def test_a_stream_needs_the_token_and_ends_with_the_server(speech: Samples) -> None:
    with serving("--max-requests", "1", env={"MOSRT_TOKEN": "sesame"}) as server:
        sent = {"Authorization": "Bearer sesame"}
        with pytest.raises(InvalidStatus) as error:
            stream(server)
        assert error.value.response.status_code == 401
        with stream(server, additional_headers=sent) as socket:
            socket.send(speech[: 2 * RATE_HZ].tobytes())
            with pytest.raises(InvalidStatus) as error:
                stream(server, additional_headers=sent)
            assert error.value.response.status_code == 429
            assert "Retry-After" in error.value.response.headers
            time.sleep(0.2)
            server.process.send_signal(signal.SIGTERM)
            window, end = messages(socket)
        assert window["end_s"] == end["duration_s"] == 2
        assert end["reason"] == "the server is ending"
        assert socket.close_code == 1012
        assert server.end() == 0


def test_a_flood_harms_nobody(server: Server) -> None:
    """Streams that send faster than they can be scored, and read nothing, are slowed down."""
    sockets = [stream(server, "window_s=0.5") for _ in range(8)]
    try:
        for socket in sockets:
            socket.socket.settimeout(0.2)
            try:
                for _ in range(4):
                    socket.socket.sendall(b"\x82\x7e\xfa\x00" + bytes(4) + bytes(64_000))
            except OSError:
                continue
        for _ in range(3):
            answer = httpx.post(f"{server.url}/v1/score", content=clip(), timeout=HANG_S)
            assert answer.status_code == 200
    finally:
        for socket in sockets:
            socket.socket.close()
    assert httpx.post(f"{server.url}/v1/score", content=clip(), timeout=HANG_S).status_code == 200
