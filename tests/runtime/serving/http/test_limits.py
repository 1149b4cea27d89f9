"""Every limit has its status and a problem body, and holds before more than needed is read."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

import mosrt
from mosrt.serving.http.app import create_app
from mosrt.serving.http.limits import Limits
from mosrt.serving.http.problems import PROBLEMS
from tests.conftest import HANG_S

from .servers import clip

Call = Callable[..., Any]
TOKEN = "sesame"
SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
    "path": "/v1/score", "raw_path": b"/v1/score", "root_path": "", "query_string": b"",
    "scheme": "http", "server": ("test", 80), "client": ("test", 1),
}  # fmt: skip


def check(answer: httpx.Response, kind: str) -> dict[str, Any]:
    """Fails unless an answer is a problem of this kind, as RFC 9457 wants it."""
    status, title = PROBLEMS[kind]
    body: dict[str, Any] = answer.json()
    assert answer.status_code == status == body["status"], answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:mosrt:problem:{kind}"
    assert body["title"] == title
    assert body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


async def refused_unread(app: Any, headers: dict[str, str]) -> int:
    """The status of an answer to a request whose body nobody asks for."""
    statuses = list[int]()

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({**SCOPE, "headers": raw}, receive, send)
    return statuses[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong", "content-length": "99999999999"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Bearer {TOKEN}", "content-length": "1001"}, 413),
        ({"authorization": f"bearer {TOKEN}", "content-length": "9" * 5000}, 413),
        ({"authorization": f"Bearer {TOKEN}", "content-length": "x"}, 400),
        ({"authorization": f"Bearer {TOKEN}", "content-encoding": "gzip"}, 415),
        ({"authorization": f"Bearer {TOKEN}", "content-type": "text/plain"}, 415),
    ],
)
def test_an_upload_is_refused_before_it_is_read(
    headers: dict[str, str], status: int, scorer: mosrt.AsyncScorer
) -> None:
    app = create_app(scorer, token=TOKEN, limits=Limits(max_bytes=1000))
    assert asyncio.run(refused_unread(app, headers)) == status


def test_a_body_a_byte_over_the_limit(call: Call) -> None:
    data = clip()

    async def chunks(length: int) -> AsyncIterator[bytes]:
        for start in range(0, length, 1000):
            yield data[start : min(start + 1000, length)]

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/score", content=data),
            await client.post("/v1/score", content=data + b"x"),
            await client.post("/v1/score", content=chunks(len(data))),
            await client.post("/v1/score", content=chunks(len(data) - 1)),
        ]

    limits = Limits(max_bytes=len(data))
    fits, over, *_ = call(use, limits=limits)
    assert fits.status_code == 200
    assert check(over, "too-large")["limit"] == len(data)
    limits = Limits(max_bytes=len(data) - 1)
    _, _, over, fits = call(use, limits=limits)
    check(over, "too-large")
    assert fits.status_code == 200


def encoded(waveform: Any, rate_hz: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("how", ["WAV", "FLAC", "OGG", "json", "reward"])
def test_long_recordings_are_refused_however_short_they_are_in_bytes(how: str, call: Call) -> None:
    waveform = np.zeros(16_000 * 3, np.float32)

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        text = base64.b64encode(waveform.tobytes()).decode()
        if how == "json":
            body = {"pcm": text, "encoding": "float32", "sample_rate": 16_000}
            return await client.post("/v1/score", json=body)
        if how == "reward":
            return await client.post("/v1/reward", json={"waveform": text, "sample_rate": 16_000})
        return await client.post("/v1/score", content=encoded(waveform, 16_000, how))

    body = check(call(use, limits=Limits(max_audio_s=2.9)), "too-long")
    assert body["limit"] == 2.9
    assert call(use, limits=Limits(max_audio_s=3.0)).status_code == 200


@pytest.mark.parametrize("how", ["WAV", "json"])
def test_too_many_channels(how: str, call: Call) -> None:
    waveform = np.zeros((16_000, 3), np.float32)

    async def use(client: httpx.AsyncClient) -> httpx.Response:
        if how == "json":
            text = base64.b64encode(waveform.tobytes()).decode()
            body = {"pcm": text, "encoding": "float32", "sample_rate": 16_000, "channels": 3}
            return await client.post("/v1/score", json=body)
        return await client.post("/v1/score", content=encoded(waveform, 16_000, how))

    check(call(use, limits=Limits(max_channels=2)), "too-many-channels")
    assert call(use, limits=Limits(max_channels=3)).status_code == 200


def test_a_slow_body(call: Call) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield clip()[:1000]
        await asyncio.sleep(HANG_S)

    answer = call(
        lambda client: client.post("/v1/score", content=slow()), limits=Limits(body_timeout_s=0.05)
    )
    check(answer, "timeout")


def test_more_requests_than_allowed(call: Call) -> None:
    """The third gets 429 at once, while two bodies are on their way."""

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        go = asyncio.Event()
        begun = [asyncio.Event(), asyncio.Event()]

        async def body(i: int) -> AsyncIterator[bytes]:
            begun[i].set()
            yield clip()[:100]
            await go.wait()
            yield clip()[100:]

        first = [asyncio.ensure_future(client.post("/v1/score", content=body(i))) for i in range(2)]
        for event in begun:
            await event.wait()
        refused = await client.post("/v1/score", content=clip())
        models = await client.get("/v1/models")
        go.set()
        done = await asyncio.gather(*first)
        return [refused, models, *done, await client.post("/v1/score", content=clip())]

    refused, *others = call(use, limits=Limits(max_requests=2))
    body = check(refused, "overloaded")
    assert int(refused.headers["retry-after"]) == body["retry_after_s"] >= 1
    assert [answer.status_code for answer in others] == [200] * 4


def test_a_deadline_that_cannot_be_met(call: Call) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/score", content=clip(), params={"deadline_ms": "1"})

    answer = call(use)
    check(answer, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1


def test_what_does_not_exist(call: Call) -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.get("/"), await client.get("/v1/none"), await client.get("/v1/score"),
            await client.delete("/healthz"),
        ]  # fmt: skip

    home, none, score, healthz = call(use)
    check(home, "not-found")
    check(none, "not-found")
    check(score, "method-not-allowed")
    check(healthz, "method-not-allowed")
    assert score.headers["allow"] == "POST"


def test_a_token_guards_scores_and_metrics_only(call: Call) -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        paths = ("/v1/models", "/metrics", "/healthz", "/readyz", "/openapi.json", "/docs")
        bare = [await client.get(path) for path in paths]
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        return bare + [await client.get(path) for path in paths]

    bare, sent = np.split(np.array(call(use, token=TOKEN), dtype=object), 2)
    assert [answer.status_code for answer in bare] == [401, 401, 200, 200, 200, 200]
    assert [answer.status_code for answer in sent] == [200] * 6
    check(bare[0], "unauthorized")
    assert bare[0].headers["www-authenticate"] == "Bearer"


def test_a_failure_tells_nothing_of_the_server(
    scorer: mosrt.AsyncScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("/secret/path of the model")

    monkeypatch.setattr(mosrt.AsyncScorer, "score_file", fail)

    async def main() -> httpx.Response:
        app = create_app(scorer)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            return await client.post("/v1/score", content=clip())

    answer = asyncio.run(main())
    assert answer.status_code == 500
    assert answer.json()["type"] == "urn:mosrt:problem:internal"
    assert "secret" not in answer.text
    assert "Error" not in answer.text


def test_nothing_is_scored_before_the_model_is_loaded() -> None:
    async def main() -> list[httpx.Response]:
        app = create_app("nano")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.post("/v1/score", content=clip()),
                await client.get("/readyz"),
                await client.get("/healthz"),
            ]

    score, readyz, healthz = asyncio.run(main())
    check(score, "unavailable")
    check(readyz, "unavailable")
    assert healthz.status_code == 200


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_positive_numbers(value: float) -> None:
    with pytest.raises(ValueError, match="max_audio_s must be a positive number"):
        Limits(max_audio_s=value)


def test_pages_of_other_origins(call: Call) -> None:
    origin = "https://voices.example"

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = {"Access-Control-Request-Method": "POST"}
        sent = {"Origin": origin, "Authorization": f"Bearer {TOKEN}"}
        return [
            await client.options("/v1/score", headers={"Origin": origin, **asked}),
            await client.options("/v1/score", headers={"Origin": "https://evil.example", **asked}),
            await client.post("/v1/score", content=b"", headers=sent),
        ]  # fmt: skip

    allowed, refused, scored = call(use, allow_origins=(origin,), token=TOKEN)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == origin
    assert refused.status_code == 400
    assert scored.status_code == 422
    assert scored.headers["access-control-allow-origin"] == origin
    assert "X-Request-ID" in scored.headers["access-control-expose-headers"]
