"""The description of the API is valid, and true."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.routing import Mount, Route, WebSocketRoute

import mosrt
from mosrt.serving.http.app import create_app
from mosrt.serving.http.problems import PROBLEMS
from tests.fakes.browser import browser_tab, find_browser

from .servers import Server, clip

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    folder = Path(mosrt.__file__).parent / "serving" / "http" / "pages"
    loaded: dict[str, Any] = json.loads((folder / "openapi.json").read_bytes())
    return loaded


def check(description: dict[str, Any], answer: httpx.Response, path: str, method: str) -> None:
    """Fails unless an answer is as the description says."""
    found = description["paths"][path][method]["responses"][str(answer.status_code)]
    if "$ref" in found:
        found = description["components"]["responses"][found["$ref"].rpartition("/")[2]]
    kind = answer.headers["content-type"].partition(";")[0]
    schema = {**found["content"][kind]["schema"], "components": description["components"]}
    if kind.endswith("json"):
        Draft202012Validator(schema).validate(answer.json())
    for header in found["headers"]:
        assert header in answer.headers


def test_it_is_valid(description: dict[str, Any], call: Call) -> None:
    validate(description)
    assert description["openapi"].startswith("3.1.")
    assert call(lambda client: client.get("/openapi.json")).json() == description


def test_every_route_is_described(description: dict[str, Any], scorer: mosrt.AsyncScorer) -> None:
    found = set[tuple[str, str]]()

    def walk(routes: Any, above: str = "") -> None:
        for route in routes:
            if isinstance(route, Mount):
                walk(route.routes, above + route.path)
            elif isinstance(route, Route):
                methods = (route.methods or set()) - {"HEAD"}
                found.update((above + route.path, method.lower()) for method in methods)
            elif isinstance(route, WebSocketRoute):
                found.add((above + route.path, "get"))

    walk(create_app(scorer).routes)
    described = {(path, method) for path, at in description["paths"].items() for method in at}
    assert found == described


def test_every_kind_of_problem_has_a_described_status(description: dict[str, Any]) -> None:
    described = {int(name[1:]) for name in description["components"]["responses"]}
    statuses = {status for status, _ in PROBLEMS.values()}
    assert statuses - described == {404, 405}  # which no resource answers


def test_answers_are_as_described(description: dict[str, Any], call: Call) -> None:
    samples = base64.b64encode(np.zeros(16_000, np.float32).tobytes()).decode()
    pcm = {"pcm": samples, "encoding": "float32", "sample_rate": 16_000}
    reward = {"waveform": samples, "sample_rate": 16_000}
    text = {"Content-Type": "text/plain"}
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("/v1/score", "post", {"content": clip()}),
        ("/v1/score", "post", {"json": pcm}),
        ("/v1/score", "post", {"content": b"junk"}),
        ("/v1/score", "post", {"content": clip(), "params": {"views": "x"}}),
        ("/v1/score", "post", {"content": clip(), "params": {"deadline_ms": "1"}}),
        ("/v1/score", "post", {"content": b"", "headers": text}),
        ("/v1/score/batch", "post", {"json": {"items": [pcm, 1]}}),
        ("/v1/score/batch", "post", {"content": b"", "headers": text}),
        ("/v1/reward", "post", {"json": reward}),
        ("/v1/reward", "post", {"json": {}}),
        ("/v1/models", "get", {}),
        ("/healthz", "get", {}),
        ("/readyz", "get", {}),
        ("/metrics", "get", {}),
        ("/docs", "get", {}),
    ]

    async def use(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.request(method, path, **more) for path, method, more in requests]

    answers = call(use)
    assert {answer.status_code for answer in answers} == {200, 400, 415, 422, 429}
    for (path, method, _), answer in zip(requests, answers, strict=True):
        check(description, answer, path, method)


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium")
def test_the_page_shows_all_of_it(
    description: dict[str, Any], server: Server, tmp_path: Path
) -> None:
    browser = find_browser()
    assert browser is not None
    with browser_tab(browser, tmp_path / "profile") as tab:
        tab.open(f"{server.url}/docs", width=390, dark=False)
        shown = tab.value("""new Promise((done) => { const look = () => {
            const found = [...document.querySelectorAll("summary")].map((e) => e.textContent);
            found.length ? done(found) : setTimeout(look, 20); }; look(); })""")
        schemas = description["components"]["schemas"]
        assert len(shown) == len(description["paths"]) + len(schemas)
        assert any(line.startswith("POST /v1/score Score a recording") for line in shown)
        assert tab.value("document.documentElement.scrollWidth") <= 390
        assert tab.complaints == []
