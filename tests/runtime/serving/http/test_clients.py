"""The clients that the documents show, and those that people use, against a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.conftest import DATA, HANG_S

from .servers import Server, clip

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
