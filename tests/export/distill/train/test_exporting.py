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
from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.distill.data.degradations import DEGRADATIONS
from mosrt_export.distill.data.images import MEL
from mosrt_export.distill.data.resyntheses import RESYNTHESES
from mosrt_export.distill.train import exporting
from mosrt_export.distill.train.exporting import export_student, folded, student_card
from mosrt_export.distill.train.model import OVERALL, StudentGraph
from mosrt_export.errors import ParityError
from mosrt_export.parity import Drift
from mosrt_export.utmosv2.parity import TOLERANCE_MOS
from tests.conftest import DATA
from tests.standins.nano import LABELS, provenance, random_student

CARD = "nano-card.md"
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


@torch.inference_mode()
def test_the_bundle_scores_as_torch_does(exported: Exported) -> None:
    """The runtime's scores of all domains are those of torch, within the parity limit."""
    assert exported.drift.passed
    assert len(exported.drift.rows) == len(CLIPS)
    samples, rate_hz = read(CLIPS[0])
    whole = np.resize(samples, 3 * MEL.crop_samples // 2)
    names = (OVERALL, *LABELS)
    with mosrt.load(exported.bundle, threads=1) as scorer:
        found = scorer.features(whole, rate_hz)["mos"].reshape(2, len(names))
        by_domain = [scorer.score(whole, rate_hz, domain=name).mos for name in names]
    np.testing.assert_allclose(found.mean(axis=0), by_domain, atol=1e-5)
    row = found[0]
    waveform = whole[: MEL.crop_samples]
    drawn = MelFrontEnd(MEL, 16_000).images(waveform)
    images = torch.from_numpy(np.stack([drawn[window] for window in MEL.windows])[None])
    wanted = exported.graph(images)[0][0]
    np.testing.assert_allclose(row, wanted.numpy(), atol=TOLERANCE_MOS)
    assert np.isfinite(row).all()
    assert np.ptp(row) > 0.1


def test_the_manifest_has_the_provenance(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    bundle.verify()
    manifest = bundle.manifest
    assert (manifest.name, manifest.family) == ("small", "spec")
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
    assert drift["n_clips"] == len(CLIPS)
    assert drift["mos_max_abs"] <= TOLERANCE_MOS


def test_views_follow_the_length(exported: Exported) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 160_001).astype(np.float32)
    with mosrt.load(exported.bundle, threads=1) as scorer:
        for n_samples, views in ((8000, 1), (80_000, 1), (80_001, 2), (160_001, 3)):
            assert scorer.score(noise[:n_samples], 16_000).n_views == views


def test_the_level_does_not_matter(exported: Exported) -> None:
    """Within 0.01, for rounding and the stabilising terms at low levels."""
    samples, rate_hz = read(CLIPS[0])
    with mosrt.load(exported.bundle, threads=1) as scorer:
        loud, soft = (scorer.score(samples * gain, rate_hz).mos for gain in (1.0, 0.1))
    assert loud is not None
    assert loud == pytest.approx(soft, abs=0.01)


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
    """Opset 18; the batch norms of the branch are folded, the one of the head may stay."""
    path = next(exported.bundle.glob("*.onnx"))
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    used = [node.op_type for node in model.graph.node]
    assert used.count("BatchNormalization") <= 1
    assert not {"Dropout", "RandomNormal", "If", "Loop"} & set(used)


@torch.inference_mode()
def test_folding_changes_nothing(exported: Exported) -> None:
    """In float64 the stages differ by the rounding of kernels to float32: 1e-6."""
    graph = copy.deepcopy(exported.graph)
    before = copy.deepcopy(graph.state_dict())
    plain = folded(graph)
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
    left = [m for m in plain.model.mel.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not left
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(
        (2, len(MEL.windows), MEL.image_height, 64), generator=generator, dtype=torch.float64
    )
    found, wanted = (module.model.mel.stages.double()(images) for module in (plain, graph))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_an_older_bundle_is_not_replaced(exported: Exported, tmp_path: Path) -> None:
    out = shutil.copytree(exported.bundle, tmp_path / "old")
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(OutputError):
        export_student(exported.checkpoint, out, clips=[], card=CARD)
    assert (out / "manifest.json").read_bytes() == before


def test_a_parity_failure_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(graph: StudentGraph) -> StudentGraph:
        changed = folded(graph)
        changed.model.head.offset.data += 0.01
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
