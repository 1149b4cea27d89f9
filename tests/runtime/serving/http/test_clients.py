"""The clients that the documents show, and those that people use, against a real server."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

import mosrt
from tests.conftest import DATA, HANG_S
from tests.fakes.browser import browser_tab, find_browser

from .servers import Server, clip, serving

GUIDE = Path(__file__).parents[4] / "runtime" / "HTTP.md"
MOS = 3.3476006984710693  # of the clip, by `nano`


def block(language: str, begin: str) -> str:
    """The block of code of the guide that has these words."""
    found: list[str] = [
        text
        for text in re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.S)
        if begin in text
    ]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(DATA / "flite_slt_16k_mono.wav", tmp_path / "speech.wav")
    return tmp_path


def test_the_client_in_python(server: Server, folder: Path) -> None:
    code = block("py", "httpx.Client").replace("http://127.0.0.1:8000", server.url)
    assert len(code.splitlines()) <= 12
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True
    )
    assert done.stdout == f"{MOS:.2f} []\n", done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server, folder: Path) -> None:
    command = block("sh", "curl").replace("http://127.0.0.1:8000", server.url)
    done = subprocess.run(
        ["sh", "-ec", f"{command.strip()} -s"], cwd=folder, capture_output=True, text=True
    )
    assert f'"mos":{MOS}' in done.stdout
    refused = subprocess.run(
        ["curl", "-s", "-w", "%{http_code} %{size_upload}", "-o", "answer", "-T", "-", "-X", "POST",
         "-H", "Content-Type: audio/wav", f"{server.url}/v1/score"],
        input=bytes(17 << 20), cwd=folder, capture_output=True,
    )  # fmt: skip
    assert refused.stdout.split()[0] == b"413"


def test_requests(server: Server) -> None:
    with requests.Session() as session:
        for _ in range(3):
            answer = session.post(f"{server.url}/v1/score", files={"file": clip()}, timeout=HANG_S)
            assert answer.json()["mos"] == MOS


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium")
def test_the_client_in_javascript(tmp_path: Path) -> None:
    """On a page of another origin, which has to be allowed."""
    browser = find_browser()
    assert browser is not None
    with (
        serving("--allow-origin", "http://127.0.0.1:1") as server,
        serving("--demo") as other,
        browser_tab(browser, tmp_path / "profile") as tab,
    ):
        code = block("js", "async function score").replace("http://127.0.0.1:8000", server.url)
        samples = list(clip())
        call = f"{code}; score(new Blob([new Uint8Array({samples})])).catch((e) => String(e))"
        tab.open(f"{other.url}/openapi.json", width=1280, dark=False)
        assert "TypeError" in tab.value(call)  # this origin is not allowed
        tab.open(f"{server.url}/openapi.json", width=1280, dark=False)
        assert tab.value(call) == MOS


def test_an_application_that_mounts_this_one(scorer: mosrt.AsyncScorer) -> None:
    """The one of the guide; and one that also scores in routes of its own."""
    fastapi = pytest.importorskip("fastapi")
    names: dict[str, Any] = {}
    exec(block("py", "FastAPI"), names)
    app = names["app"]

    async def main() -> tuple[httpx.Response, ...]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            scored = await client.post("/speech/v1/score", content=clip())
            metrics = await client.get("/speech/metrics")
        own = fastapi.FastAPI()
        own.mount("/speech", names["create_app"](scorer))

        async def own_route() -> float:
            return (await scorer.score_file(clip())).mos

        own.add_api_route("/own", own_route)

        transport = httpx.ASGITransport(own)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return scored, metrics, await client.get("/own"), await client.post(
                "/speech/v1/score", content=clip()
            )  # fmt: skip

    scored, metrics, own, shared = asyncio.run(main())
    assert scored.json()["mos"] == own.json() == shared.json()["mos"] == MOS
    assert 'path="/v1/score"' in metrics.text


@pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")
@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn_with_workers_of_uvicorn(preload: bool, tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    (tmp_path / "app.py").write_text(
        "import mosrt\n"
        "from mosrt.serving.http.app import create_app\n"
        f"scorer = mosrt.AsyncScorer('nano'){'.open()' if preload else ''}\n"
        "app = create_app(scorer)\n"
    )
    worker = "uvicorn.workers.UvicornWorker"
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "-w", "2", "-t", "600",
               "-b", f"127.0.0.1:{port}", *(["--preload"] * preload), "app:app"]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            ends = time.monotonic() + HANG_S
            while time.monotonic() < ends and process.poll() is None:
                try:
                    if httpx.get(f"{url}/readyz", timeout=HANG_S).status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            for _ in range(8):
                answer = httpx.post(f"{url}/v1/score", content=clip(), timeout=HANG_S)
                assert answer.json()["mos"] == MOS
        finally:
            process.terminate()
            status = process.wait(HANG_S)
    assert status == 0, (tmp_path / "log").read_text()
