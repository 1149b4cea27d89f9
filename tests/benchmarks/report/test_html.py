"""The report's page in a real browser, where there is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mosrt_bench.bench.request import Request
from mosrt_bench.bench.timing import Effort
from mosrt_bench.clips import audio_files
from mosrt_bench.report.html import page
from tests.benchmarks.conftest import run_bench
from tests.conftest import DATA
from tests.fakes.browser import Tab, browser_tab, find_browser

CLIPS = (DATA / "flite_slt_16k_mono.wav", DATA / "flite_kal_8k_mono.wav")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser here: neither chromium nor google-chrome is on the path"
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    request = Request(
        bundles=("nano",), providers=("cpu",), audio=CLIPS, lengths_s=(1.0,), threads=(1, 2),
        batches=(1,), callers=(1, 2), starts=0, effort=Effort(runs=5, seconds=0.0, warm_up_runs=1),
    )  # fmt: skip
    report, _ = run_bench(request)
    # times and names that sorting must tell apart, and one that must stay text
    for row, ms in zip(report["latency"][2:], (100.5, 20.25), strict=True):
        row["quantiles"]["p50"]["ms"] = ms
    report["command"] = "mosrt bench '<img src=x onerror=alert(1)>'"
    found = tmp_path_factory.mktemp("page") / "report.html"
    found.write_text(page(report, audio_files(CLIPS)), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    assert BROWSER is not None
    with browser_tab(BROWSER, tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_too_wide_and_nothing_complains(
    file: Path, tab: Tab, width: int, dark: bool
) -> None:
    tab.show(file, width=width, dark=dark)
    assert tab.value("innerWidth") == width
    assert tab.value("document.documentElement.scrollWidth") <= width
    # by what is seen: ink on its ground, of the scheme that the reader has
    ground, ink = json.loads(tab.value(
        "(() => { const style = getComputedStyle(document.body), sum = (text) =>"
        " text.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0);"
        " return JSON.stringify([sum(style.backgroundColor), sum(style.color)]); })()"
    ))  # fmt: skip
    assert min(ground, ink) < 150
    assert max(ground, ink) > 600
    assert (ground < ink) is dark
    assert tab.value("document.images.length") == 0
    assert len(tab.picture()) > 20_000
    assert tab.complaints == []


def test_a_heading_sorts_both_ways(file: Path, tab: Tab) -> None:
    tab.show(file, width=390, dark=False)

    def p50s() -> Any:
        return tab.value(
            "[...document.querySelectorAll('#latency tbody tr')].map((r) => r.cells[1].textContent)"
        )

    press = "document.querySelectorAll('#latency thead button')[1].click()"
    assert p50s() == ["100.50", "20.25"]
    tab.value(press)
    assert p50s() == ["20.25", "100.50"]
    tab.value(press)
    assert p50s() == ["100.50", "20.25"]
    assert tab.value("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == (
        "descending"
    )
    assert tab.complaints == []


def test_clips_play(file: Path, tab: Tab) -> None:
    tab.show(file, width=1280, dark=False)
    played = tab.value(
        "Promise.all([...document.querySelectorAll('audio')].map(async (audio) => {"
        " audio.muted = true; audio.currentTime = Math.max(0, audio.duration - 0.3);"
        " const ended = new Promise((done) => { audio.onended = done; });"
        " await audio.play(); await ended; return [audio.currentTime, audio.duration]; }))"
    )
    assert len(played) == len(CLIPS)
    for ended_s, duration_s in played:
        assert duration_s > 1
        assert ended_s == pytest.approx(duration_s, abs=0.05)
    assert tab.complaints == []


def test_complaints_would_be_heard(file: Path, tab: Tab) -> None:
    """The page's policy refuses what is put into it, and these tests would know."""
    tab.show(file, width=1280, dark=False)
    tab.value("document.body.append(Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))")
    tab.value("new Promise((done) => setTimeout(done, 100))")
    tab.value("console.error('heard')")
    tab.value("1")
    complaints, tab.complaints = tab.complaints, []
    assert any("Content Security Policy" in complaint for complaint in complaints)
    assert any("heard" in complaint for complaint in complaints)
