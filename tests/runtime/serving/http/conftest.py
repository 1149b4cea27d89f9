"""Servers and clients that tests of the HTTP API share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import httpx
import pytest

import mosrt
from mosrt.serving.http.app import create_app

from .servers import Server, serving

T = TypeVar("T")


@pytest.fixture(scope="session")
def scorer() -> Iterator[mosrt.AsyncScorer]:
    """What scores for the applications of tests."""
    opened = mosrt.AsyncScorer("nano", workers=2, on_bad_audio="warn").open()
    yield opened
    asyncio.run(opened.aclose())


@pytest.fixture(scope="session")
def reference() -> Iterator[mosrt.Scorer]:
    """What scores without a server."""
    with mosrt.load("nano", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server that tests share; they must not end it."""
    with serving("--demo") as started:
        yield started


@pytest.fixture
def call(scorer: mosrt.AsyncScorer) -> Callable[..., Any]:
    """Runs a function of a client with an application made with some options."""

    def run(use: Callable[[httpx.AsyncClient], Awaitable[T]], **options: Any) -> T:
        async def main() -> T:
            app = create_app(scorer, **options)
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            ):
                return await use(client)

        return asyncio.run(main())

    return run
