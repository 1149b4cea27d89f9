"""Tests bundles of random models: their scores, manifest, graph and model card."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile as sf
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

import mosrt
from mosrt.audio.sources import FileSource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.writer import OutputError
from mosrt.cli.main import main
from mosrt.host.files import sha256_of
from mosrt_export.distill.data.degradations import DEGRADATIONS
from mosrt_export.distill.data.resyntheses import RESYNTHESES
from mosrt_export.distill.train import exporting
from mosrt_export.distill.train.exporting import (
    export_student,
    folded,
    student_card,
    torch_scores,
)
from mosrt_export.distill.train.model import MOS_RANGE, OVERALL, StudentGraph
from mosrt_export.distill.train.network import SEGMENT_SAMPLES, STEP_SAMPLES
from mosrt_export.errors import ParityError
from mosrt_export.parity import Drift
from tests.conftest import DATA
from tests.standins.nano import LABELS, provenance, random_student

CARD = "nano-card.md"
TOLERANCE_MOS = 1e-4  # rounding through some twenty layers
COMBINATION = random_student().combination

CLIPS = [DATA / "flite_slt_16k_mono.wav", DATA / "espeak_fr_16k_stereo.ogg"]
FIGURES = {"Ladder, SRCC": "0.97", "Development systems": "0.76 (0.66 to 0.85)"}


@dataclass(frozen=True)
class Exported:
    """A checkpoint and the bundle made of it."""

    graph: StudentGraph
    checkpoint: Path
    bundle: Path
    drift: Drift


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("nano")
    student = random_student()
    checkpoint = folder / "checkpoint.pt"
    student.save(checkpoint)
    bundle = folder / "small"
    sources = [FileSource(path, name=path.name) for path in CLIPS]
    drift = export_student(checkpoint, bundle, clips=sources, card=CARD, evaluation=FIGURES)
    return Exported(StudentGraph(student), checkpoint, bundle, drift)


def read(path: Path) -> tuple[NDArray[np.float32], int]:
    samples, rate_hz = sf.read(path, dtype="float32")
    return samples, int(rate_hz)


def recording(seconds: float) -> NDArray[np.float32]:
    """Speech over and over, which gets softer, and some noise."""
    n = int(16_000 * seconds)
    samples, rate_hz = read(CLIPS[0])
    assert rate_hz == 16_000
    noise = np.random.default_rng(0).normal(0, 0.002, n)
    return (np.resize(samples, n) * np.geomspace(1, 0.1, n) + noise).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.4, 1.6, 5.0, 5.12, 5.2, 13.0])
def test_the_bundle_scores_as_torch_does(exported: Exported, seconds: float) -> None:
    """All domains, of recordings that are shorter and longer than a segment.

    torch gets whole segments; the runtime leaves out zeros at the end.
    """
    assert exported.drift.passed
    waveform = recording(seconds)
    wanted = torch_scores(exported.graph, waveform)
    assert wanted.shape == (1 + len(LABELS),)
    assert np.ptp(wanted) > 0.1
    with mosrt.load(exported.bundle, threads=1) as scorer:
        score = scorer.score(waveform, 16_000)
    assert list(score.domains) == [OVERALL, *LABELS]
    np.testing.assert_allclose(list(score.domains.values()), wanted, atol=TOLERANCE_MOS)
    assert score.low < score.mos < score.high


@torch.inference_mode()
def test_all_outputs_are_those_of_torch(exported: Exported) -> None:
    waveform = recording(SEGMENT_SAMPLES / 16_000)
    with mosrt.load(exported.bundle, threads=1) as scorer:
        found = scorer.features(waveform, 16_000)
        score = scorer.score(waveform, 16_000)
    wanted = exported.graph(torch.from_numpy(waveform)[None])
    for name, outputs in zip(("mos", "deviation", "features"), wanted, strict=True):
        np.testing.assert_allclose(found[name][0], outputs.numpy(), atol=TOLERANCE_MOS)
    # One segment: the interval is that of the deviation alone, times the factor, in the range.
    half = 1.96 * 1.5 * float(wanted[1])
    interval = np.clip([score.mos - half, score.mos + half], *MOS_RANGE)
    np.testing.assert_allclose([score.low, score.high], interval, atol=1e-3)


def test_the_manifest_has_the_provenance(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.name, manifest.family) == ("small", "segments")
    assert (manifest.front_end, manifest.mel) == ("graph", None)
    assert manifest.ssl is not None
    assert manifest.ssl.crop_samples == SEGMENT_SAMPLES
    assert manifest.ssl.segment_step_samples == STEP_SAMPLES
    assert manifest.mos_range == MOS_RANGE
    assert manifest.deviation is not None
    assert (manifest.deviation.domains, manifest.deviation.factors) == ((OVERALL,), (1.5,))
    assert (manifest.domains, manifest.default_domain) == ((OVERALL, *LABELS), OVERALL)
    notes = manifest.provenance
    assert notes["training"] == provenance()
    assert notes["combination"] == {"of": OVERALL, **COMBINATION}
    assert notes["evaluation"] == FIGURES
    (source,) = notes["checkpoints"]
    assert source["sha256"] == sha256_of(exported.checkpoint)
    assert notes["versions"]["mosrt"] == importlib.metadata.version("mosrt")
    assert notes["versions"]["torch"] == importlib.metadata.version("torch")
    json.dumps(notes)
    drift = manifest.variants["fp32"].drift
    assert drift["n_clips"] == len(CLIPS) + 1  # and all of them as one
    assert drift["mos_max_abs"] <= TOLERANCE_MOS


def test_segments_follow_the_length(exported: Exported) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * SEGMENT_SAMPLES + 1).astype(np.float32)
    with mosrt.load(exported.bundle, threads=1) as scorer:
        for n_samples, views in (
            (8_000, 1), (SEGMENT_SAMPLES, 1), (SEGMENT_SAMPLES + 1, 2), (len(noise), 3)
        ):  # fmt: skip
            assert scorer.score(noise[:n_samples], 16_000).n_views == views


def test_info_shows_the_card(exported: Exported) -> None:
    result = CliRunner().invoke(main, ["info", str(exported.bundle)])
    assert result.exit_code == 0, result.output
    shown = " ".join(result.output.split())
    for words in (
        "# small",
        "## Not for",
        "CC0",
        "CC-BY-4.0",
        "DNSMOS Pro",
        "41.7 hours (30000 clips of 5 s)",
        "ab" * 32,
        "Ladder, SRCC: 0.97",
        "Seed 11",
        str(COMBINATION["offset"]),
    ):
        assert words in shown, words


def test_the_card_counts_the_treatments(exported: Exported) -> None:
    card = student_card(Bundle.open(exported.bundle).manifest, CARD)
    assert f"in {len(DEGRADATIONS) + len(RESYNTHESES)} ways" in card
    assert "{" not in card
    for name in (OVERALL, *LABELS):
        assert f"- `{name}`" in card
    for name in (*COMBINATION["averaged"], *COMBINATION["penalties"]):
        assert name in LABELS


def test_the_graph_has_no_norms_to_compute(exported: Exported) -> None:
    """Opset 18; the batch norms of the encoder are folded, those after sums may stay."""
    path = next(exported.bundle.glob("*.onnx"))
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    used = [node.op_type for node in model.graph.node]
    assert used.count("BatchNormalization") <= 1
    assert not {"Dropout", "RandomNormal", "If", "Loop"} & set(used)
    front_end = [node for node in model.graph.node if "front_end" in node.name.split("/")[0]]
    (audio,) = model.graph.input
    readers = [node for node in model.graph.node if audio.name in node.input]
    names = {node.name for node in front_end}
    assert all(node.name in names for node in readers if node.op_type != "Shape")


@torch.inference_mode()
def test_folding_changes_nothing(exported: Exported) -> None:
    """But for rounding, and not the module that is folded."""
    graph = copy.deepcopy(exported.graph)
    before = copy.deepcopy(graph.state_dict())
    plain = folded(graph)
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    encoder = plain.model.encoder
    assert not [each for each in encoder.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    waveform = torch.from_numpy(recording(1.6))[None]
    for found, wanted in zip(plain(waveform), graph(waveform), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE_MOS)


def test_an_older_bundle_is_not_replaced(exported: Exported, tmp_path: Path) -> None:
    out = shutil.copytree(exported.bundle, tmp_path / "old")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(OutputError):
        export_student(exported.checkpoint, out, clips=[], card=CARD)
    assert (out / "manifest.json").read_bytes() == before


def test_a_parity_failure_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(graph: StudentGraph) -> StudentGraph:
        changed = folded(graph)
        changed.model.head.offset.data[0] += 0.01
        return changed

    checkpoint = tmp_path / "checkpoint.pt"
    random_student().save(checkpoint)
    monkeypatch.setattr(exporting, "folded", wrong)
    sources = [FileSource(CLIPS[0], name="clip")]
    with pytest.raises(ParityError, match="nothing was written"):
        export_student(checkpoint, tmp_path / "out", clips=sources, card=CARD)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_the_card_has_the_formula(exported: Exported) -> None:
    """A point below a threshold costs the slope times the scale."""
    card = " ".join(student_card(Bundle.open(exported.bundle).manifest, CARD).split())
    for name, penalty in COMBINATION["penalties"].items():
        cost = f"{penalty['slope'] * COMBINATION['scale']:g}"
        assert f"less {cost} for every point of `{name}` below {penalty['threshold']}" in card


def test_a_student_has_a_card_of_its_own(exported: Exported) -> None:
    """With what was measured on the bundle, and a formula only where there is one."""
    manifest = Bundle.open(exported.bundle).manifest
    row = {"lcc": 0.9123, "srcc": 0.8, "mae": 0.25, "clips": 700}
    measured = {
        "fidelity": {"held-out speakers": {"bvcc": row}},
        "cost": {"teacher.onnx": {"times_slower": 151.0, "times_larger": 33.3}},
    }
    combinations: list[dict[str, Any]] = [manifest.provenance["combination"], {}]
    for combination in combinations:
        changed = {**manifest.provenance, **measured, "combination": combination}
        full = dataclasses.replace(manifest, provenance=changed)
        card = student_card(full, "student-card.md")
        assert "| held-out speakers (700) | bvcc | 0.912 | 0.800 | 0.250 |" in card
        assert "teacher.onnx: 151 times the time of the student, and 33.3 times its size" in card
        assert "dnsmos_p808.onnx (SHA-256" in card
        assert ("z-scores" in card) == bool(combination)
        # A domain "overall" without a formula is a teacher's.
        assert ("`overall`, `bvcc`" in card) != bool(combination)
