"""The reports of one small bench: JSON, Markdown and the page, and what file names do to them."""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner

from mosrt.bundle.embedded import DEFAULT_MODEL, find_bundle
from mosrt_bench.bench.request import Request, shown
from mosrt_bench.bench.timing import Effort
from mosrt_bench.cli.bench import bench
from mosrt_bench.clips import AudioFile, audio_files
from mosrt_bench.errors import BenchError
from mosrt_bench.report.compare import compare_reports, comparison_table, read_report
from mosrt_bench.report.html import page
from mosrt_bench.report.sections import sections
from mosrt_bench.report.writer import markdown, write_report
from tests.benchmarks.conftest import run_bench
from tests.conftest import DATA
from tests.standins.planted_defects import one_weight_off, with_variants

HOSTILE = "<img src=x onerror=alert(1)>|`'\"&.wav"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[AudioFile]]:
    """A bench of the embedded model and of a defective variant, on two clips, one ill-named."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "clips").mkdir()
    for name in (HOSTILE, "plain.wav"):
        shutil.copy(DATA / "flite_kal_8k_mono.wav", folder / "clips" / name)
    (folder / "mos.csv").write_text("path,mos,system\nplain.wav,3,a\n")
    bundle = with_variants(find_bundle("nano"), folder / "nano", {"fp16-off": one_weight_off})
    request = Request(
        bundles=(str(bundle),), providers=("cpu", "tensorrt"), audio=(folder / "clips",),
        labels=folder / "mos.csv", lengths_s=(1.0,), callers=(1, 2), batches=(1,), starts=1,
        effort=Effort(runs=5, seconds=0.0, warm_up_runs=1), view_study=True, seeds=3, max_views=2,
        command=f"mosrt bench {HOSTILE}",
    )  # fmt: skip
    return run_bench(request)


def test_the_report_is_json_and_complete(
    measured: tuple[dict[str, Any], list[AudioFile]], tmp_path: Path
) -> None:
    report, clips = measured
    files = write_report(report, clips, tmp_path / "new" / "folder")
    assert sorted(path.name for path in files) == ["report.html", "report.json", "report.md"]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in files
    )
    assert read_report(files[0]) == report
    names = {"nano fp32 cpu x1", "nano fp16-off cpu x1"}
    assert {row["contestant"] for row in report["latency"]} == names
    assert {row["clip_s"] for row in report["latency"]} == {1.0, 5.0}
    for row in report["latency"]:
        assert set(row["stages_ms"]) == {"decode", "resample", "front_end", "model", "rest"}
        assert row["runs"] == len(row["times_ms"]) == 5
    for row in report["cold_start"]:
        assert 20 < row["peak_mb"] < 1000
        assert row["process_ms"] > row["import_ms"] + row["load_ms"]
    kinds = {(row["kind"], row["count"]) for row in report["throughput"]}
    assert kinds == {("batch", 1), ("callers", 1), ("callers", 2)}
    assert {clip["sha256"] for clip in report["audio"]} == {
        hashlib.sha256((DATA / "flite_kal_8k_mono.wav").read_bytes()).hexdigest()
    }
    (study,) = report["estimator"]
    assert [row["views"] for row in study["grid"]] == [1, 2]
    assert report["labels"][0]["n"] == 1


def test_a_report_does_not_tell_where_things_are(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report, clips = measured
    text = json.dumps(report)
    assert report["settings"]["bundles"] == ["./nano"]
    assert len(report["parity"]) == 4  # two of them do not run here, which has its own words
    assert not [part for clip in clips for part in (str(clip.path.parent),) if part in text]
    assert not re.search(r"/(tmp|home|root|private)/", text)


def test_arguments_are_shown_without_their_place() -> None:
    given = ["nano", "./utmosv2", "/a/b/utmosv2", "--audio", "/a/clips/", "--report=/a/rep",
             "--labels", "../mos.csv", "--length", "5"]  # fmt: skip
    assert shown(given) == [
        "nano", "./utmosv2", "./utmosv2", "--audio", "./clips", "--report=./rep",
        "--labels", "./mos.csv", "--length", "5",
    ]  # fmt: skip


def test_the_schema_document_names_every_entry(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    import mosrt_bench

    text = (Path(mosrt_bench.__path__[0]) / "REPORT.md").read_text(encoding="utf-8")
    report = measured[0]
    rows = [report, *(v[0] for v in report.values() if isinstance(v, list) and v)]
    for row in rows:
        if isinstance(row, dict):
            for name in row:
                assert f"`{name}`" in text, name


def test_markdown_shows_names_as_they_are(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    text = markdown(measured[0])
    assert "<img" not in text.replace("\\<img", "")
    unescaped = re.compile(r"(?<!\\)\|")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    widths = {len(section.header) + 1 for section in sections(measured[0])}
    assert {len(unescaped.findall(row)) for row in rows} == widths
    assert all(section.title in text for section in sections(measured[0]))


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script" and not self.script:
            self.script = data
        else:
            self.text += data


def test_the_page_is_safe_and_alone(measured: tuple[dict[str, Any], list[AudioFile]]) -> None:
    found = Page()
    report, clips = measured
    found.feed(page(report, clips))
    assert "img" not in found.tags
    assert HOSTILE in found.text
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    for name, value in found.attributes:
        if name in {"src", "href", "action", "poster", "srcset"}:
            assert value.startswith(("data:", "#")), value
    # nothing is fetched, and only the page's own script runs
    policy = next(value for _, value in found.attributes if value.startswith("default-src 'none'"))
    digest = base64.b64encode(hashlib.sha256(found.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert found.tags.count("table") == len(sections(report))
    assert "Parity failed" in found.text


def test_the_view_study_is_drawn_and_told(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report, clips = measured
    (study,) = report["estimator"]
    html = page(report, clips)
    section = html[html.index('<section id="estimator">') :]
    section = section[: section.index("</section>")]
    assert "nano: spread against cost" in section
    # the mean of two draws is off by less than one draw, by the root of two
    one, two = study["reference"]["sd"], study["reference"]["sd"] / 2**0.5
    assert f"mean of 1 draws: sd {one:.3f}" in section
    assert f"mean of 2 draws: sd {two:.3f}" in section
    assert f"2 views: sd {study['grid'][1]['sd']:.3f}" in section
    advised = copy.deepcopy(report)
    for number, text in (
        (2, "recommended: 2 views, the smallest number that gives an interval of at most ±0.1"),
        (None, "recommended: none; even 2 views do not give an interval of at most ±0.1 MOS"),
    ):
        advised["estimator"][0]["recommended_views"] = number
        assert text in page(advised, [])


def test_a_configuration_has_one_colour_in_all_charts(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    html = page(*measured)
    legends = re.findall(r'<path class="(s\d)" d="[^"]+"/></svg>([^<]+)</li>', html)
    found: dict[str, list[str]] = {}
    for colour, name in legends:
        found.setdefault(name.rsplit(" x", 1)[0], []).append(colour)
    configurations = [name for name in found if name.startswith("nano fp16-off")]
    assert configurations
    for name in configurations:
        assert len(found[name]) >= 3  # by length, by throughput, against the reference
        assert len(set(found[name])) == 1


def test_copies_to_a_gpu_are_said(measured: tuple[dict[str, Any], list[AudioFile]]) -> None:
    report = copy.deepcopy(measured[0])
    told = "on a GPU, model includes the copies to it and back"
    assert told not in page(report, [])
    for row in report["latency"]:
        row["contestant"] = row["contestant"].replace(" cpu ", " cuda ")
    assert page(report, []).count(told) == 1


def test_clips_inside_are_the_recordings(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    html = page(*measured)
    players = re.findall(r'src="data:audio/flac;base64,([^"]+)"', html)
    assert len(players) == 2
    wanted, rate_hz = soundfile.read(DATA / "flite_kal_8k_mono.wav", dtype="int16")
    for player in players:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(player)), dtype="int16")
        assert rate == rate_hz
        assert (samples == wanted).all()


def test_a_page_has_only_so_much_audio(
    measured: tuple[dict[str, Any], list[AudioFile]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mosrt_bench.report.html.MAX_AUDIO_BYTES", 30_000)
    html = page(*measured)
    assert len(re.findall("data:audio", html)) <= 1
    assert "the most audio that it may" in html


def test_charts_escape_and_take_any_values(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report = copy.deepcopy(measured[0])
    for row, ms in zip(report["latency"], (1e-9, 3.0, 3.0, 3.0), strict=True):
        row["contestant"] = f"{HOSTILE} fp32 cpu x1"
        row["quantiles"]["p50"]["ms"] = ms
    report["estimator"][0]["model"] = HOSTILE
    html = page(report, [])
    figures = re.findall("<figure>.*?</figure>", html, re.DOTALL)
    assert len([figure for figure in figures if "&lt;img src=x" in figure]) >= 3
    assert "<img" not in html
    assert not any(re.search(r"\bnan\b|\binf\b", figure) for figure in figures)
    nothing = page({**report, "latency": [], "throughput": [], "scores": {}, "estimator": []}, [])
    assert "<figure>" not in nothing


def slower(report: dict[str, Any], factor: float) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    for row in changed["latency"]:
        row["times_ms"] = [factor * value for value in row["times_ms"]]
    return changed


def steady(report: dict[str, Any]) -> dict[str, Any]:
    """The report with times that a test can rely on: within 2 % of 10 ms."""
    changed = copy.deepcopy(report)
    for row in changed["latency"]:
        row["times_ms"] = [9.9, 10.0, 10.1, 10.0, 9.8, 10.2, 10.0, 9.9, 10.1, 10.0]
    return changed


def test_compare_finds_what_changed(measured: tuple[dict[str, Any], list[AudioFile]]) -> None:
    report = steady(measured[0])
    assert {c.verdict for c in compare_reports(report, report, 0.05)} == {"same"}
    changes = compare_reports(report, slower(report, 1.3), 0.05)
    worse = [change for change in changes if change.verdict == "regression"]
    assert len(worse) == len(report["latency"])
    for change in worse:
        assert change.ratio == pytest.approx(1.3)
        assert change.interval_95 is not None
        assert 1.2 < change.interval_95[0] <= 1.3 <= change.interval_95[1] < 1.4
    assert "4 regression" in comparison_table(changes)
    within = compare_reports(report, slower(report, 1.04), 0.05)
    assert not [change for change in within if change.verdict == "regression"]
    better = compare_reports(report, slower(report, 0.7), 0.05)
    assert len([c for c in better if c.verdict == "improvement"]) == len(report["latency"])


def test_compare_finds_lost_parity_memory_and_configurations(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report = steady(measured[0])
    after = copy.deepcopy(report)
    after["parity"][0]["passed"] = False
    after["cold_start"][0]["peak_mb"] *= 2
    after["latency"].pop()
    after["machine"]["cpu"] = "another"
    verdicts = {c.what: c.verdict for c in compare_reports(report, after, 0.05)}
    assert verdicts["nano fp32 cpu against nano fp32 cpu, max |Δ|"] == "regression"
    assert verdicts["nano fp32 cpu x1 peak, MB"] == "regression"
    assert sorted(set(verdicts.values())) == ["gone", "note", "regression", "same"]


def test_compare_commands_exit_codes(
    measured: tuple[dict[str, Any], list[AudioFile]], tmp_path: Path
) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(steady(measured[0])))
    b.write_text(json.dumps(slower(steady(measured[0]), 2.0)))
    run = CliRunner().invoke
    assert run(bench, ["compare", str(a), str(a)]).exit_code == 0
    result = run(bench, ["compare", str(a), str(b)])
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].startswith("4 regression")
    assert run(bench, ["compare", str(a), str(b), "--tolerance", "1.5"]).exit_code == 0
    b.write_text("{}")
    result = run(bench, ["compare", str(a), str(b)])
    assert (result.exit_code, "not a report.json of `mosrt bench`" in result.output) == (3, True)


def test_command_fails_where_parity_does(tmp_path: Path) -> None:
    bundle = with_variants(find_bundle("nano"), tmp_path / "nano", {"fp16-off": one_weight_off})
    clip = str(DATA / "flite_kal_8k_mono.wav")
    arguments = ["run", str(bundle), "--audio", clip, "--provider", "cpu", "--no-speed"]
    folder = tmp_path / "report"
    result = CliRunner().invoke(
        bench,
        [*arguments, "--threads", "1", "--isolate", "--budget", "90m", "--report", str(folder)],
    )
    assert result.exit_code == 1
    assert "parity fails: nano fp16-off cpu" in result.output
    assert read_report(folder / "report.json")["settings"]["budget_s"] == 5400
    result = CliRunner().invoke(bench, [*arguments, "--variant", "fp32"])
    assert result.exit_code == 0


def test_an_interrupted_command_writes_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mosrt_bench.bench.speed.SpeedRun.run", interrupted)
    clip = str(DATA / "flite_kal_8k_mono.wav")
    arguments = ["run", "--audio", clip, "--provider", "cpu", "--threads", "1", "--report"]
    result = CliRunner().invoke(bench, [*arguments, str(tmp_path)])
    assert result.exit_code == 130
    report = read_report(tmp_path / "report.json")
    assert report["parity"][0]["passed"]
    assert not report["finished"]
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no recordings: pass --audio"),
        (["--audio", str(DATA), "--threads", "0"], 2, "0 is not in the range"),
        (["--audio", str(DATA), "--budget", "8"], 2, "'8' is not a duration"),
        (["nowhere", "--audio", str(DATA)], 3, "nowhere: no such bundle"),
        (["--audio", str(DATA / "golden"), "nano"], 2, "does not exist"),
        (["nano", "nano", "--audio", str(DATA)], 3, "cannot be told apart"),
        (["--audio", str(DATA), "--variant", "int4"], 3, "no bundle has the variant int4"),
        (["--audio", str(DATA), "--torch", "cpu"], 3, "--torch needs --reference"),
    ],
)
def test_wrong_usage_is_told(arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(bench, ["run", *arguments])
    assert result.exit_code == code
    assert message in result.output


def test_help_of_both_commands() -> None:
    runner = CliRunner()
    told = runner.invoke(bench, ["run", "--help"], prog_name="mosrt bench").output
    assert told.startswith("Usage: mosrt bench run [OPTIONS] [MODEL]...")
    assert "--provider tensorrt" in told
    assert f"; {DEFAULT_MODEL} if left out." in " ".join(told.split())
    assert "--tolerance" in runner.invoke(bench, ["compare", "--help"]).output
    assert {"run", "compare"} <= set(runner.invoke(bench, ["--help"]).output.split())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands show their help without scipy and psutil, and say what to install."""
    import sys

    modules = {n: module for n, module in sys.modules.items() if n.startswith("mosrt_bench.")}
    for name, module in modules.items():
        if name not in {"mosrt_bench.cli.bench", "mosrt_bench.cli.gate"}:
            # What the package calls by this name comes back with it, or other tests patch a twin.
            package, _, child = name.rpartition(".")
            monkeypatch.setattr(modules.get(package, sys.modules["mosrt_bench"]), child, module)
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    result = CliRunner().invoke(bench, ["run", "--audio", str(DATA)])
    assert result.exit_code == 3
    assert "pip install 'mosrt[bench]' (scipy is missing)" in result.output
    assert CliRunner().invoke(bench, ["run", "--help"]).exit_code == 0


def test_clips_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").write_bytes(folder.encode())
    with pytest.raises(BenchError, match=r"would both be called x\.wav; pass the folder above"):
        audio_files([tmp_path / "a", tmp_path / "b"])
    assert [clip.name for clip in audio_files([tmp_path])] == ["a/x.wav", "b/x.wav"]
    (tmp_path / "c").mkdir()
    with pytest.raises(BenchError, match="no audio files"):
        audio_files([tmp_path / "c"])
