"""The demo page in Chromium: files, recordings, keyboard, names for screen readers, two sizes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.browser import Tab, browser_tab, find_browser

from .servers import Server, clip, serving
from .test_clients import MOS

pytestmark = pytest.mark.skipif(find_browser() is None, reason="needs Chromium")
SIZES = [(390, False), (390, True), (1280, False), (1280, True)]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    browser = find_browser()
    assert browser is not None
    fakes = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with browser_tab(browser, tmp_path_factory.mktemp("demo") / "profile", *fakes) as opened:
        yield opened


def until(tab: Tab, condition: str) -> None:
    tab.value(f"""new Promise((done) => {{ const look = () => ({condition})
        ? done(true) : setTimeout(look, 20); look(); }})""")


def choose(tab: Tab, data: bytes) -> None:
    """Gives the page a file, as its chooser does."""
    text = base64.b64encode(data).decode()
    tab.value(f"""(() => {{
        const bytes = Uint8Array.from(atob({json.dumps(text)}), (c) => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], "speech.wav"));
        document.getElementById("file").files = files.files;
        document.getElementById("file").dispatchEvent(new Event("change")); }})()""")


def text(tab: Tab, name: str) -> str:
    return str(tab.value(f"document.getElementById('{name}').textContent"))


@pytest.mark.parametrize(("width", "dark"), SIZES)
def test_a_file_is_scored(width: int, dark: bool, tab: Tab, server: Server) -> None:
    tab.complaints.clear()
    tab.open(f"{server.url}/", width=width, dark=dark)
    choose(tab, clip())
    until(tab, "!document.getElementById('result').hidden")
    assert text(tab, "mos") == f"{MOS:.2f}"
    assert text(tab, "flags") == "none"
    assert text(tab, "message") == f"Score {MOS:.2f}."
    assert tab.value("document.activeElement.id") == "heading"
    assert tab.value("document.querySelectorAll('#curve .window').length") == 1
    assert tab.value("document.querySelectorAll('#rows tr').length") == 1
    assert tab.value("document.documentElement.scrollWidth") <= width
    colours = tab.value(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    page, ink = (sum(map(int, c.strip("rgb()").split(",")[:3])) for c in colours)
    assert (page < ink) == dark
    assert tab.complaints == []
    if width == 390:
        tall = "[...document.querySelectorAll('button')].filter((e) => e.offsetHeight)"
        assert tab.value(f"{tall}.every((e) => e.offsetHeight >= 44)")


def test_what_has_no_score_is_told(tab: Tab, server: Server) -> None:
    tab.open(f"{server.url}/", width=390, dark=False)
    choose(tab, b"junk")
    until(tab, "document.getElementById('message').className === 'bad'")
    assert "cannot be read as audio" in text(tab, "message")
    assert tab.value("document.getElementById('result').hidden")


def test_a_recording_is_scored(tab: Tab, server: Server) -> None:
    """With Chromium's fake microphone, which beeps."""
    tab.open(f"{server.url}/", width=390, dark=False)
    tab.value("document.getElementById('record').click()")
    until(tab, "document.getElementById('record').textContent === 'Stop and score'")
    tab.value("new Promise((done) => setTimeout(done, 1500))")
    tab.value("document.getElementById('record').click()")
    until(tab, "!document.getElementById('result').hidden")
    assert 1 <= float(text(tab, "mos")) <= 5
    assert float(text(tab, "length").split()[0]) > 0.5


def test_the_keyboard_reaches_everything(tab: Tab, server: Server) -> None:
    tab.open(f"{server.url}/", width=1280, dark=False)
    reached = []
    for _ in range(3):
        for kind in ("rawKeyDown", "keyUp"):
            tab.ask("Input.dispatchKeyEvent", type=kind, key="Tab", windowsVirtualKeyCode=9)
        reached.append(tab.value("document.activeElement.id || document.activeElement.textContent"))
        assert tab.value("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == ["file", "record", "HTTP API"]


def test_a_screen_reader_finds_a_name_for_everything(tab: Tab, server: Server) -> None:
    tab.open(f"{server.url}/", width=1280, dark=False)
    choose(tab, clip())
    until(tab, "!document.getElementById('result').hidden")
    names: dict[str, list[str]] = {}
    for node in tab.ask("Accessibility.getFullAXTree")["nodes"]:
        role = node.get("role", {}).get("value")
        if role in ("button", "image", "link", "textbox", "Audio", "heading", "status", "table"):
            names.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert "Drop a recording here, or choose one" in " ".join(names["button"])
    assert "Record" in names["button"]
    assert names["image"] == [f"1 windows, scores from {MOS:.2f} to {MOS:.2f}"]
    assert all(name for role in ("button", "link", "heading") for name in names[role])
    assert tab.value("document.documentElement.lang") == "en"


def test_a_token_is_asked_for(tab: Tab) -> None:
    with serving("--demo", env={"MOSRT_TOKEN": "sesame"}) as server:
        tab.open(f"{server.url}/", width=390, dark=True)
        choose(tab, clip())
        until(tab, "document.activeElement.id === 'token'")
        tab.value("""(() => { document.getElementById("token").value = "sesame";
            document.querySelector("#access button").click(); })()""")
        until(tab, "!document.getElementById('result').hidden")
        assert text(tab, "mos") == f"{MOS:.2f}"


def test_the_page_is_there_only_if_asked_for(call: Any) -> None:
    assert call(lambda client: client.get("/")).status_code == 404
    page = call(lambda client: client.get("/"), demo=True)
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
