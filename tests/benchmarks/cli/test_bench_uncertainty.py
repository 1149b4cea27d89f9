"""A whole bench of a model that scores by its uncertainty, as one zip file."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mosrt.bundle.bundle import Bundle
from mosrt_bench.bench.request import Request
from mosrt_bench.bench.timing import Effort
from mosrt_bench.clips import AudioFile
from mosrt_bench.report.compare import compare_reports
from mosrt_bench.report.html import page
from mosrt_bench.report.writer import markdown
from tests.benchmarks.conftest import run_bench
from tests.conftest import DATA
from tests.standins.planted_defects import rounded_weights, with_variants

CLIPS = ("flite_kal_8k_mono.wav", "flite_slt_16k_mono.wav", "espeak_fr_16k_stereo.ogg")
NAMES = {f"tiny-wav2vec {variant} cpu x1" for variant in ("fp32", "fp16")}


def zipped(folder: Path) -> Path:
    file = folder.with_suffix(".zip")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    return file


@pytest.fixture(scope="module")
def measured(
    tiny_wav2vec: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[AudioFile]]:
    folder = tmp_path_factory.mktemp("uncertain")
    (folder / "clips").mkdir()
    for name in CLIPS:
        shutil.copy(DATA / name, folder / "clips" / name)
    rows = "".join(f"{name},{mos}\n" for mos, name in enumerate(CLIPS, 2))
    (folder / "mos.csv").write_text(f"path,mos\n{rows}")
    bundle = zipped(with_variants(tiny_wav2vec, folder / "tiny", {"fp16": rounded_weights}))
    shutil.rmtree(folder / "tiny")
    request = Request(
        bundles=(str(bundle),), providers=("cpu",), audio=(folder / "clips",),
        labels=folder / "mos.csv", lengths_s=(1.0,), callers=(2,), batches=(4,), starts=1,
        effort=Effort(runs=5, seconds=0.0, warm_up_runs=1), view_study=True,
    )  # fmt: skip
    return run_bench(request)


def test_everything_is_measured(measured: tuple[dict[str, Any], list[AudioFile]]) -> None:
    report, _ = measured
    assert {row["contestant"] for row in report["latency"]} == NAMES
    assert {row["clip_s"] for row in report["latency"]} == {1.0, 5.0}
    for row in report["latency"]:
        # it hears the waveform itself: there is no front end
        assert set(row["stages_ms"]) == {"decode", "resample", "model", "rest"}
        assert min(row["stages_ms"]["model"], row["stages_ms"]["rest"]) > 0
        assert row["quantiles"]["p50"]["ms"] > 0
    for key, rows_per_name in (("throughput", 2), ("cold_start", 1)):
        rows = report[key]
        assert sorted(row["contestant"] for row in rows) == sorted([*NAMES] * rows_per_name)
    assert all(row["clips_per_s"] > 0 for row in report["throughput"])
    assert all(row["second_score_ms"] > 0 for row in report["cold_start"])
    # nothing to study: it has no views
    assert report["estimator"] == []


def test_drift_is_relative_to_its_own_scale(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report, _ = measured
    rows = {row["variant"]: row for row in report["parity"]}
    reference = report["scores"]["tiny-wav2vec fp32 cpu"]
    mean = sum(abs(f["uncertainty"]) for f in reference.values()) / len(CLIPS)
    for row in rows.values():
        assert (row["passed"], row["domain"]) == (True, "uncertainty")
        assert row["scale"] == pytest.approx(mean)
    assert rows["fp16"]["tolerance"] == pytest.approx(0.02 * mean)
    assert rows["fp32"]["max_abs"] == 0 < rows["fp16"]["max_abs"]


def test_listeners_are_held_against_the_negative(
    measured: tuple[dict[str, Any], list[AudioFile]],
) -> None:
    report, _ = measured
    for row in report["labels"]:
        assert row["n"] == len(CLIPS)
        assert row["mse"] is None
        assert -1 <= row["srcc"] <= 1
    name = "tiny-wav2vec fp32 cpu"
    for row in report["ratings"]:
        wanted = -report["scores"][name][row["clip"]]["uncertainty"]
        assert row["predicted"][name] == wanted


def test_its_reports(measured: tuple[dict[str, Any], list[AudioFile]]) -> None:
    report, clips = measured
    html = page(report, clips)
    assert "are within their tolerance." in html
    for title in ("Latency against drift", "Latency by length", "Throughput by batch size"):
        assert f"<figcaption>{title}" in html
    assert "Scores against those of tiny-wav2vec fp32 cpu" in html
    assert "tiny-wav2vec fp32 cpu, uncertainty" in html
    assert html.count("scores are not on the MOS scale, so there is no MSE") == len(NAMES)
    assert html.count("<audio ") == len(CLIPS)
    assert all(name in markdown(report) for name in NAMES)
    assert not [c for c in compare_reports(report, report, 0.05) if c.verdict != "same"]


def test_a_zip_is_identified_like_its_folder(tiny_wav2vec: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_wav2vec, tmp_path / "tiny")
    assert Bundle.open(zipped(folder)).sha256 == Bundle.open(folder).sha256
