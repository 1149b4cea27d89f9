"""What the endpoints answer: the scores of the library, in every way that a body may come."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

import mosrt
from tests.conftest import DATA

from .servers import clip

CLIPS = ("flite_slt_16k_mono.wav", "espeak_en_22k_mono.flac", "espeak_fr_16k_stereo.ogg",
         "espeak_de_48k_mono.mp3")  # fmt: skip
Call = Callable[..., Any]


def without_timings(score: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in score.items() if name != "timings_ms"}


def text(array: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("how", ["body", "form"])
def test_a_file_gets_the_score_of_the_library(
    name: str, how: str, call: Call, reference: mosrt.Scorer
) -> None:
    async def use(client: httpx.AsyncClient) -> httpx.Response:
        if how == "form":
            return await client.post("/v1/score", files={"file": (name, clip(name))})
        return await client.post("/v1/score", content=clip(name))

    answer = call(use)
    assert answer.status_code == 200
    expected = reference.score_file(DATA / name).to_dict()
    assert without_timings(answer.json()) == without_timings(expected)


@pytest.mark.parametrize("encoding", ["int16", "float32"])
@pytest.mark.parametrize("channels", [1, 2])
def test_pcm_in_json(encoding: str, channels: int, call: Call, reference: mosrt.Scorer) -> None:
    waveform, rate_hz = soundfile.read(DATA / CLIPS[0], dtype=encoding)
    waveform = np.stack([waveform, waveform // 2 if encoding == "int16" else waveform / 2])
    waveform = waveform[:channels]
    body = {"pcm": text(waveform.T), "encoding": encoding, "channels": channels,
            "sample_rate": rate_hz, "domain": "bvcc"}  # fmt: skip
    answer = call(lambda client: client.post("/v1/score", json=body))
    expected = reference.score(waveform, rate_hz, domain="bvcc").to_dict()
    assert without_timings(answer.json()) == without_timings(expected)


def test_options_come_from_the_query_or_the_body(call: Call, reference: mosrt.Scorer) -> None:
    expected = reference.score_file(DATA / CLIPS[0], domain="p808", views=2)

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        query = {"domain": "p808", "views": "2", "priority": "background", "deadline_ms": "600000"}
        return [
            await client.post("/v1/score", content=clip(), params=query),
            await client.post("/v1/score", files={"file": ("a", clip())}, data=query),
        ]

    for answer in call(use):
        assert answer.json()["mos"] == expected.mos
        assert answer.json()["n_views"] == 2


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ({"views": "0"}, "views must be a whole number from 1 to 64"),
        ({"views": "65"}, "views"),
        ({"views": "1.5"}, "views"),
        ({"domain": "none"}, "unknown domain 'none'"),
        ({"plan": "none"}, "none"),
        ({"priority": "high"}, "priority must be one of interactive, background"),
        ({"deadline_ms": "nan"}, "deadline_ms must be a number"),
        ({"models": "nano"}, "unknown parameter 'models'"),
        ([("views", "1"), ("views", "2")], "views is given twice"),
    ],
)
def test_wrong_options(query: Any, detail: str, call: Call) -> None:
    answer = call(lambda client: client.post("/v1/score", content=clip(), params=query))
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "not a JSON object"),
        ({"sample_rate": 16000}, "pcm must be text"),
        ({"pcm": "AAAA"}, "sample_rate is missing"),
        ({"pcm": "AAA", "sample_rate": 16000}, "not base64"),
        ({"pcm": "ä", "sample_rate": 16000}, "not base64"),
        ({"pcm": "AAAA", "sample_rate": 16000}, "no multiple of 2"),
        ({"pcm": "AAA=", "sample_rate": "x"}, "sample_rate must be a number"),
        ({"pcm": "AAA=", "sample_rate": True}, "sample_rate must be a number"),
        ({"pcm": "AAA=", "sample_rate": 16000, "encoding": ["int16"]}, "encoding must be one of"),
        ({"pcm": "AAA=", "sample_rate": 16000, "channels": 0}, "channels must be a whole number"),
        ({"pcm": "AAA=", "sample_rate": 16000, "rate": 1}, "unknown parameter 'rate'"),
    ],
)
def test_wrong_json(body: Any, detail: str, call: Call) -> None:
    answer = call(lambda client: client.post("/v1/score", json=body))
    assert answer.status_code == 400
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"NaN", b"1" * 5000])
def test_what_is_no_json(body: bytes, call: Call) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    answer = call(lambda client: client.post("/v1/score", content=body, headers=headers))
    assert answer.status_code == 400


def test_forms_that_are_not_well_formed(call: Call) -> None:
    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        file, url, form = ("a.wav", clip()), "/v1/score", "multipart/form-data"
        many = {f"f{i}": (None, "x") for i in range(20)}
        return [
            await client.post(url, files={"file": file}, data={"views": "x"}),
            await client.post(url, files={"file": file}, params={"views": 1}, data={"views": "1"}),
            await client.post(url, files=[("file", file), ("file", file)]),
            await client.post(url, data={"domain": "bvcc"}, files={"x": (None, "y")}),
            await client.post(url, content=b"x", headers={"Content-Type": f"{form}; boundary=x"}),
            await client.post(url, content=b"x", headers={"Content-Type": form}),
            await client.post(url, files={"file": file, **many}),
        ]

    for answer in call(use):
        assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    ("body", "flag"),
    [
        (b"", "unreadable"),
        (b"no audio at all", "unreadable"),
        (clip()[:44], "empty"),
        (clip()[: 44 + 800], "too-short"),
    ],
)
def test_what_cannot_be_scored_is_told_by_flags(body: bytes, flag: str, call: Call) -> None:
    answer = call(lambda client: client.post("/v1/score", content=body))
    assert answer.status_code == 422
    assert answer.json()["flags"] == [flag]


def test_poor_recordings_get_a_score_with_flags(call: Call) -> None:
    silence = {"pcm": text(np.zeros(16_000, np.int16)), "sample_rate": 16_000}
    answer = call(lambda client: client.post("/v1/score", json=silence))
    assert answer.status_code == 200
    assert "silent" in answer.json()["flags"]


def test_a_batch_answers_in_order(call: Call, reference: mosrt.Scorer) -> None:
    files = [("file", (name, clip(name))) for name in CLIPS]
    files.insert(1, ("file", ("junk", b"junk")))
    answer = call(lambda client: client.post("/v1/score/batch", files=files))
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [each["name"] for each in results] == [CLIPS[0], "junk", *CLIPS[1:]]
    assert results[1]["problem"]["flags"] == ["unreadable"]
    scores = [each["score"]["mos"] for each in results if "score" in each]
    assert scores == [score.mos for score in reference.score_many([DATA / n for n in CLIPS])]


def test_a_batch_in_json(call: Call) -> None:
    good = {"name": "good", "pcm": text(np.zeros(16_000, np.int16)), "sample_rate": 16_000}
    items = [good, {"name": "bad", "pcm": "?"}, 3, {**good, "extra": 1}]
    bodies: list[Any] = [{}, {"items": []}, {"items": 1}, {"items": [good], "more": 1}]

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [
            await client.post("/v1/score/batch", json={"items": items, "domain": "bvcc"}),
            *[await client.post("/v1/score/batch", json=body) for body in bodies],
            await client.post("/v1/score/batch", content=clip()),
            await client.post("/v1/score/batch", json={"items": [good] * 65}),
            await client.post("/v1/score/batch", files=[("file", ("a", b""))] * 65),
        ]  # fmt: skip

    mixed, *wrong = call(use)
    results = mixed.json()["results"]
    assert results[0]["score"]["domain"] == "bvcc"
    assert [each["problem"]["status"] for each in results[1:]] == [400] * 3
    assert [answer.status_code for answer in wrong] == [400] * 4 + [415, 422, 422]


def test_a_reward_is_the_mos(call: Call, reference: mosrt.Scorer) -> None:
    waveform, rate_hz = soundfile.read(DATA / CLIPS[0], dtype="float32")
    body = {"waveform": text(waveform), "sample_rate": rate_hz, "prompt": "Say this."}
    answer = call(lambda client: client.post("/v1/reward", json=body))
    assert answer.json() == {"score": reference.score(waveform, rate_hz).mos, "flags": []}


def test_a_floor_is_the_reward_of_what_has_no_score(call: Call) -> None:
    body = {"waveform": "", "sample_rate": 24_000, "prompt": "Say this."}

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        bodies = [
            body, {**body, "floor": 1.0}, {**body, "floor": "low"}, {**body, "waveform": "AAA="},
            {**body, "prompt": 3}, {**body, "text": "x"}, {"waveform": ""},
        ]  # fmt: skip
        return [await client.post("/v1/reward", json=each) for each in bodies]

    refused, floored, *wrong = call(use)
    assert refused.status_code == 422
    assert floored.json() == {"score": 1.0, "flags": ["empty"]}
    assert [answer.status_code for answer in wrong] == [400] * 5


def test_the_model_is_described(call: Call, scorer: mosrt.AsyncScorer) -> None:
    (model,) = call(lambda client: client.get("/v1/models")).json()["models"]
    assert model["name"] == "nano"
    assert model["domains"] == list(scorer.info.domains)
    assert model["digest"] == scorer.info.digest


def test_metrics_count_what_was_done(call: Call) -> None:
    async def use(client: httpx.AsyncClient) -> str:
        await client.post("/v1/score", content=clip())
        await client.post("/v1/score", content=b"")
        await client.post("/nothing/here")
        return (await client.get("/metrics")).text

    found = call(use)
    for line in (
        'mosrt_http_requests_total{method="POST",path="/v1/score",status="200"} 1.0',
        'mosrt_http_requests_total{method="POST",path="/v1/score",status="422"} 1.0',
        'mosrt_http_requests_total{method="",path="other",status="404"} 1.0',
        "mosrt_http_score_mos_count 1.0",
        'mosrt_http_flags_total{flag="unreadable"} 1.0',
        "mosrt_http_requests_in_flight 0.0",
    ):
        assert line in found
