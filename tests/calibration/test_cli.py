import dataclasses
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.domain_head import DomainHead
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.writer import write_manifest
from mosrt.cli.command import ExitStatus
from mosrt.errors import BundleError
from mosrt.host.cpu import CpuFeatures
from mosrt_calibration import quantize as calibrator
from mosrt_calibration.cli import quantize
from mosrt_calibration.report import card_with_variants
from tests.conftest import STANDINS
from tests.standins.quantizable import convolutional, transformer, write_bundle
from tests.standins.segments import write_segments_bundle


def run(*arguments: object, cache: Path) -> Result:
    given = [str(a) for a in arguments]
    return CliRunner().invoke(quantize, [*given, "--cache", str(cache), "--threads", "1"])


def contents(directory: Path) -> dict[str, str]:
    """Digests of everything below a directory."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def nano(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with every variant."""
    root = tmp_path_factory.mktemp("nano")
    bundle = root / "bundle"
    arguments = ["--clips", 4, "--eval-clips", 8, "--method", "min-max", "--max-drift", 0.2]
    result = run(
        "nano", "--audio", recordings, "--output", bundle, *arguments, "--min-srcc", -1, cache=root
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{bundle}: written; fp16, int8-cpu, int8-trt\n"
    return bundle


def test_every_variant_of_nano_scores(nano: Path, clips: list[Path]) -> None:
    opened = Bundle.open(nano)
    opened.verify()
    assert list(opened.manifest.variants) == ["fp32", "fp16", "int8-cpu", "int8-trt"]
    with mosrt.load("nano") as scorer:
        expected = [scorer.score_file(clip).mos for clip in clips]
    with pytest.raises(mosrt.ProviderError, match="made for tensorrt"):
        mosrt.load(nano, variant="int8-trt", provider="cpu")
    for name in ("fp32", "fp16", "int8-cpu"):
        with mosrt.load(nano, variant=name) as scorer:
            found = [scorer.score_file(clip).mos for clip in clips]
            again = [score.mos for score in scorer.score_many([*clips[::-1]])][::-1]
        assert found == again  # bit for bit, in another order
        # trained weights, clips unlike those it was calibrated on
        assert found == pytest.approx(expected, abs=0 if name == "fp32" else 0.15)


def test_the_manifest_says_how_each_variant_was_made_and_how_it_drifts(
    nano: Path,
) -> None:
    manifest = Bundle.open(nano).manifest
    original = Bundle.open(find_bundle("nano")).manifest
    assert manifest.variants["fp32"] == original.variants["fp32"]
    kinds = {name: variant.kind for name, variant in manifest.variants.items()}
    assert kinds == {
        "fp32": None,
        "fp16": "float16",
        "int8-cpu": "qdq-u8s7",
        "int8-trt": "qdq-s8s8",
    }
    sizes = {
        name: sum(file.bytes for file in variant.files)
        for name, variant in manifest.variants.items()
    }
    assert sizes["int8-cpu"] < sizes["fp16"] < sizes["fp32"]
    for name in ("fp16", "int8-cpu", "int8-trt"):
        drift = manifest.variants[name].drift
        assert drift["against"] == "fp32"
        assert drift["n_clips"] == 8
        assert drift["held_out"] is True
        assert 0 < drift["mos_mean_abs"] <= drift["mos_p95_abs"] <= drift["mos_max_abs"] < 0.5
        assert drift["srcc"] > 0.9
        assert "views" not in drift  # as many as scoring takes
        cpu = CpuFeatures.read()
        assert drift["cpu"] == {"architecture": cpu.architecture, "int8_dot": cpu.int8_dot}
        folders = drift["by_folder"]
        assert set(folders) <= {"clean", "noisy"}
        assert max(folder["mos_max_abs"] for folder in folders.values()) <= drift["mos_max_abs"]
    calibration: Any = manifest.variants["int8-cpu"].calibration
    assert len(calibration["clips"]) == 4
    assert calibration["method"] == "min-max"
    text = json.dumps(calibration["clips"], ensure_ascii=False)
    assert calibration["clips_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    card = (nano / "model-card.md").read_text()
    assert card.startswith((find_bundle("nano") / "model-card.md").read_text().rstrip("\n"))
    assert card.count("\n## Variants\n") == 1
    assert "| int8-cpu | qdq-u8s7 |" in card


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundles" / "small", convolutional(n_blocks=2))


QUICK = ("--clips", 4, "--eval-clips", 8, "--method", "min-max", "--min-srcc", -1)


def test_the_report_ranks_blocks_and_draws_the_curve(
    small: Path, recordings: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    arguments = [
        "--variant",
        "fp16",
        "--variant",
        "int8-cpu",
        "--max-drift",
        10,
        "--report",
        report,
    ]
    result = run(small, "--audio", recordings, *QUICK, *arguments, cache=tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in report.iterdir()) == [
        "report.json",
        "report.txt",
        "trade-off.png",
    ]
    plain = json.loads((report / "report.json").read_text())
    assert set(plain["variants"]) == {"fp16", "int8-cpu"}
    made = plain["variants"]["int8-cpu"]
    assert {row["block"] for row in made["sensitivity"]} == {
        "net.stem",
        "net.blocks.0",
        "net.blocks.1",
    }
    drifts = [row["drift"]["mos_mean_abs"] for row in made["sensitivity"]]
    assert drifts == sorted(drifts, reverse=True)
    assert [len(point["left_float"]) for point in made["trade_off"]] == [0, 1]
    assert sum(row["share_of_work"] for row in made["sensitivity"]) == pytest.approx(1, abs=1e-4)
    worth = {row["block"]: row["worth"] for row in made["sensitivity"]}
    assert made["trade_off"][1]["left_float"] == [max(worth, key=worth.__getitem__)]
    schemes = {row["recipe"]: row["drift"]["mos_mean_abs"] for row in made["comparison"]}
    assert set(schemes) == {"min-max, 7-bit weights", "min-max, biases corrected, 7-bit weights"}
    (winner,) = (row["recipe"] for row in made["comparison"] if row["winner"])
    assert schemes[winner] == min(schemes.values())
    text = (report / "report.txt").read_text()
    assert "net.blocks.1" in text
    assert "int8-cpu: by folder" in text
    assert (report / "trade-off.png").read_bytes().startswith(b"\x89PNG")


def test_over_budget_writes_nothing(small: Path, recordings: Path, tmp_path: Path) -> None:
    before = contents(small.parent)
    arguments = ["--variant", "fp16", "--variant", "int8-cpu", "--max-drift", "1e-7"]
    report = tmp_path / "report"
    result = run(
        small, "--audio", recordings, *QUICK, *arguments, "--report", report, cache=tmp_path / "c"
    )
    assert result.exit_code == ExitStatus.NO
    assert result.stdout == ""
    # In a log each stage is told when it is done.
    assert re.search(r"^fold0: ranges: \d+ clips, [\d.]+ s$", result.stderr, re.MULTILINE)
    assert "nothing was written" in result.stderr
    assert "Allow more drift" in result.stderr
    assert contents(small.parent) == before
    assert list(small.parent.iterdir()) == [small]
    # the report says why
    plain = json.loads((report / "report.json").read_text())
    assert plain["variants"]["int8-cpu"]["left_float"] is None


def test_in_place_and_once_more(small: Path, recordings: Path, tmp_path: Path) -> None:
    arguments = [small, "--audio", recordings, *QUICK, "--max-drift", 10, "--views", 1]
    first = run(*arguments, "--variant", "int8-cpu", cache=tmp_path / "c")
    assert first.exit_code == 0, first.output
    once = contents(small)
    again = run(*arguments, "--variant", "int8-cpu", cache=tmp_path / "c")
    assert again.exit_code == 0
    # the same clips, the same bytes; nothing is doubled
    assert contents(small) == once
    other = run(*arguments, "--variant", "fp16", cache=tmp_path / "c")
    assert other.exit_code == 0
    variants = Bundle.open(small).manifest.variants
    assert list(variants) == ["fp32", "int8-cpu", "fp16"]
    assert [variants[name].drift["views"] for name in ("int8-cpu", "fp16")] == [1, 1]
    assert (small / "model-card.md").read_text().count("## Variants") == 1
    assert list(small.parent.iterdir()) == [small]


def test_a_transformer_whose_batch_is_fixed(recordings: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", transformer())
    arguments = ["--variant", "int8-cpu", "--variant", "fp16", "--max-drift", 10]
    result = run(bundle, "--audio", recordings, *QUICK, *arguments, cache=tmp_path / "c")
    assert result.exit_code == 0, result.output
    variant = Bundle.open(bundle).manifest.variants["int8-cpu"]
    assert variant.kind in {"qdq-u8s7", "qdq-u8s7+dynamic"}
    assert (variant.fixed_batch == 1) or variant.kind == "qdq-u8s7"
    with mosrt.load(bundle, variant="int8-cpu") as scorer:
        assert math.isfinite(scorer.score_file(recordings / "clean" / "01.wav").mos)


def test_a_model_from_audio_that_predicts_its_error(recordings: Path, tmp_path: Path) -> None:
    bundle = write_segments_bundle(tmp_path / "bundle")
    before = Bundle.open(bundle).manifest
    arguments = ["--variant", "int8-cpu", "--variant", "fp16", "--max-drift", 10]
    result = run(bundle, "--audio", recordings, *QUICK, *arguments, cache=tmp_path / "c")
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(bundle).manifest
    assert (manifest.deviation, manifest.mos_range) == (before.deviation, before.mos_range)
    clip = recordings / "clean" / "01.wav"
    half = {}
    for name in ("fp32", "fp16", "int8-cpu"):
        with mosrt.load(bundle, variant=name, threads=1) as scorer:
            score = scorer.score_file(clip, views=1)
        half[name] = score.high - score.mos
    # The head that predicts it stays in FP32, and reads features of a few digits.
    assert half["fp16"] == pytest.approx(half["fp32"], rel=0.01)
    assert half["int8-cpu"] == pytest.approx(half["fp32"], rel=0.2)


def test_a_model_that_scores_by_its_uncertainty(recordings: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "uncertain"
    shutil.copytree(STANDINS / "tiny_wav2vec", bundle)
    arguments = ["--variant", "fp16", "--variant", "int8-cpu", "--max-drift", 10]
    result = run(bundle, "--audio", recordings, *QUICK, *arguments, cache=tmp_path / "c")
    assert result.exit_code == 0, result.output
    manifest = Bundle.open(bundle).manifest
    for name in ("fp16", "int8-cpu"):
        variant = manifest.variants[name]
        assert "uncertainty_mean_rel" in variant.drift
        # graphs without weights, which make logits, are those of fp32
        for member, plain in zip(variant.members, manifest.variants["fp32"].members, strict=True):
            assert (member == plain) == (member.name != "encoder")
        with mosrt.load(bundle, variant=name) as scorer:
            score = scorer.score_file(recordings / "clean" / "01.wav")
        assert score.measures["uncertainty"] == score.measures["uncertainty"]


def test_a_failure_at_the_last_moment_leaves_the_bundle_as_it_was(
    small: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(small.parent)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibrator, "write_card", full)
    arguments = ["--variant", "fp16", "--max-drift", 10]
    result = run(small, "--audio", recordings, *QUICK, *arguments, cache=tmp_path / "c")
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr
    assert contents(small.parent) == before
    assert list(small.parent.iterdir()) == [small]


def test_what_is_refused_says_what_to_do(small: Path, recordings: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    embedded = run("nano", "--audio", recordings, cache=cache)
    assert embedded.exit_code == ExitStatus.UNUSABLE
    assert "--output DIR" in embedded.stderr
    few = run(small, "--audio", recordings, "--clips", 1000, cache=cache)
    assert few.exit_code == ExitStatus.UNUSABLE
    assert "--clips" in few.stderr
    unknown = run(small, "--audio", recordings, "--variant", "int4", cache=cache)
    assert unknown.exit_code == ExitStatus.USAGE
    assert "'int4'" in unknown.stderr
    taken = run(small, "--audio", recordings, "--output", recordings, cache=cache)
    assert taken.exit_code == ExitStatus.UNUSABLE
    assert "exists already" in taken.stderr
    zipped = tmp_path / "small.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        for path in small.iterdir():
            archive.write(path, path.name)
    packed = run(zipped, "--audio", recordings, cache=cache)
    assert packed.exit_code == ExitStatus.UNUSABLE
    assert "unpack it" in packed.stderr
    damaged = small / "model.fold0.fp32.onnx"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    changed = run(small, "--audio", recordings, cache=cache)
    assert changed.exit_code == ExitStatus.UNUSABLE
    assert "SHA-256" in changed.stderr
    assert list(small.parent.iterdir()) == [small]


def test_help_teaches_and_imports_no_onnx() -> None:
    result = CliRunner().invoke(quantize, ["--help"])
    assert result.exit_code == 0
    assert "mosrt quantize nano --audio speech/" in result.stdout
    assert "\\b" not in result.stdout
    code = "import sys, mosrt_calibration.cli; print('onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"


def test_without_the_extra_it_says_which_one(small: Path, recordings: Path) -> None:
    code = (
        "import sys; sys.modules['onnx'] = None\n"
        "from mosrt_calibration.cli import quantize\n"
        f"quantize([{str(small)!r}, '--audio', {str(recordings)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == ExitStatus.UNUSABLE
    assert "mosrt[calibrate]" in done.stderr


def test_a_section_in_the_middle_of_a_card_is_replaced(nano: Path) -> None:
    manifest = Bundle.open(nano).manifest
    card = "# m\n\nText.\n\n## Variants\n\nold\n\n## Licence\n\nMIT\n"
    new = card_with_variants(card, manifest)
    assert "old" not in new
    assert new.startswith("# m\n\nText.\n\n## Licence\n\nMIT\n\n## Variants\n\n")
    assert card_with_variants(new, manifest) == new


@pytest.mark.parametrize(
    ("field", "value"), [("fixed_batch", 0), ("kind", 8), ("calibration", ["min-max"])]
)
def test_a_variant_that_is_described_wrongly_is_refused(
    small: Path, field: str, value: object
) -> None:
    manifest = json.loads((small / "manifest.json").read_text())
    manifest["variants"]["fp32"][field] = value
    with pytest.raises(BundleError, match=rf"variants\.fp32\.{field}"):
        Manifest.from_dict(manifest)


def test_a_domain_that_is_computed_from_the_outputs_is_kept(
    recordings: Path, tmp_path: Path
) -> None:
    """Its drift is measured, and follows from that of the domains that it weighs."""
    bundle = write_bundle(tmp_path / "bundle", convolutional())
    manifest = Bundle.open(bundle).manifest
    drifts = {}
    for name in ("south", "ours"):
        out = tmp_path / name
        shutil.copytree(bundle, out)
        head = DomainHead(
            kind="affine", weights={"mos": (0.0, 0.5)}, bias=1.0, n_clips=9, description="ours"
        )
        write_manifest(
            out, dataclasses.replace(manifest, heads={"ours": head}, default_domain=name)
        )
        options = ("--clips", 4, "--eval-clips", 8, "--method", "min-max", "--variant", "int8-cpu")
        limits = ("--max-drift", 9, "--min-srcc", -1)
        result = run(out, "--audio", recordings, *options, *limits, cache=tmp_path / "cache")
        assert result.exit_code == 0, result.output
        made = Bundle.open(out).manifest
        assert made.heads == {"ours": head}
        drift = made.variants["int8-cpu"].drift
        drifts[name] = drift["mos_mean_abs"]
        if name == "ours":
            assert drift["ours_mean_abs"] == pytest.approx(drift["mos_mean_abs"], rel=0.06)
        assert drift["ours_max_abs"] >= drift["ours_mean_abs"] > 0
        with mosrt.load(out, variant="int8-cpu") as scorer:
            domains = scorer.score_file(next(recordings.rglob("*.wav"))).domains
        assert domains["ours"] == pytest.approx(min(5, max(1, 1.0 + 0.5 * domains["south"])))
    assert drifts["ours"] == pytest.approx(0.5 * drifts["south"], rel=0.1)
