"""DNSMOS as a bundle, held to the published script with stand-ins for the networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.manifest import Manifest
from mosrt.errors import BundleError
from mosrt_calibration.graph import read_graph
from mosrt_export.cli.export import export
from tests.conftest import DATA
from tests.standins.dnsmos import P808_SHAPE, P835_SHAPE, dnsmos_model
from tests.standins.nano import speech


def exported(file: Path, out: Path) -> Result:
    clip = DATA / "flite_slt_16k_mono.wav"
    options = ["dnsmos", str(file), "--output", str(out), "--parity-audio", str(clip)]
    return CliRunner().invoke(export, options, catch_exceptions=False)


def segments(recording: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """What dnsmos_local.py of DNS-Challenge makes of a recording (samples,) at 16 kHz."""
    audio = recording.astype(np.float64)
    n_segment = int(9.01 * 16_000)
    while len(audio) < n_segment:
        audio = np.append(audio, audio)
    n_hops = int(np.floor(len(audio) / 16_000) - 9.01) + 1
    found = [audio[i * 16_000 : int((i + 9.01) * 16_000)] for i in range(n_hops)]
    return [each for each in found if len(each) == n_segment]


def outputs(file: Path, features: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """A network's outputs (segments, scores)."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = [each.astype(np.float32)[None] for each in features]
    return np.array([session.run(None, {"input_1": feed})[0][0] for feed in feeds], np.float64)


def test_p835_scores_as_published(tmp_path: Path) -> None:
    file = dnsmos_model(tmp_path / "sig_bak_ovr.onnx", P835_SHAPE, 3)
    result = exported(file, tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert "written; largest difference" in result.stdout
    maps = {
        "sig": [-0.08397278, 1.22083953, 0.0052439],
        "bak": [-0.13166888, 1.60915514, -0.39604546],
        "ovr": [-0.06766283, 1.11546468, 0.04602535],
    }
    with mosrt.load(tmp_path / "bundle") as scorer:
        for seconds in (0.5, 3.3, 5.0, 9.01, 10.99, 17.5):
            # A ramp tells segments apart.
            ramp = np.linspace(0, 0.9, round(seconds * 16_000), dtype=np.float32)
            raw = outputs(file, segments(ramp))
            score = scorer.score(ramp, 16_000)
            assert score.domain == "ovr"
            assert score.n_views == len(raw)
            for column, (domain, polynomial) in zip(raw.T, maps.items(), strict=True):
                wanted = np.polyval(polynomial, column).mean()
                assert score.domains[domain] == pytest.approx(wanted, abs=1e-5)  # float32


def test_p808_scores_as_published(tmp_path: Path) -> None:
    librosa = pytest.importorskip("librosa")
    file = dnsmos_model(tmp_path / "model_v8.onnx", P808_SHAPE, 1)
    assert exported(file, tmp_path / "bundle").exit_code == 0
    faint = speech(3) * np.float32(0.01)  # silence has an absolute level
    faint[24_000:] = 0
    with mosrt.load(tmp_path / "bundle") as scorer:
        for recording in (np.resize(speech(4), 180_000), speech(3), faint):
            powers = [
                librosa.feature.melspectrogram(
                    y=each[:-160], sr=16_000, n_fft=321, hop_length=160, n_mels=120
                )
                for each in segments(recording)
            ]
            images = [(librosa.power_to_db(each, ref=np.max) + 40).T / 40 for each in powers]
            score = scorer.score(recording, 16_000)
            assert score.n_views == len(images)
            # A bin 80 dB below the loudest is exact to 0.01 dB in float32.
            assert score.mos == pytest.approx(outputs(file, images).mean(), abs=1e-4)


def test_what_the_bundle_says(tmp_path: Path) -> None:
    file = dnsmos_model(tmp_path / "model_v8.onnx", P808_SHAPE, 1)
    assert exported(file, tmp_path / "bundle").exit_code == 0
    bundle = Bundle.open(tmp_path / "bundle")
    manifest = bundle.manifest
    assert (manifest.name, manifest.domains) == ("dnsmos-p808", ("p808",))
    plain = json.loads(json.dumps(manifest.to_dict()))
    assert plain["ssl"]["segment_repeat"] is True
    assert Manifest.from_dict(plain) == manifest
    with pytest.raises(BundleError, match="contradict the front end"):
        Manifest.from_dict({**plain, "ssl": {**plain["ssl"], "segment_step_samples": 160}})
    drift = manifest.variants["fp32"].drift
    assert drift["mos_max_abs"] <= 1e-4
    assert f"all else in numpy {np.__version__}" in drift["against"]
    card = bundle.model_card()
    for words in ("P.808", "CC-BY-4.0", "arXiv 2010.15258", "`model_v8.onnx`", "the weights are"):
        assert words in card
    assert "P.835" not in card.replace("\n", " ").split("## ")[0]
    # Calibration keeps the front end in FP32.
    names = [node.name for node in read_graph(bundle.path / "model.fp32.onnx").graph.node]
    assert any(name.startswith("front_end/MatMul") for name in names)
    assert names[-1].startswith("network/")


def test_a_graph_that_disagrees_is_not_written(tmp_path: Path) -> None:
    file = dnsmos_model(tmp_path / "sig_bak_ovr.onnx", P835_SHAPE, 3)
    model = onnx.load(file)
    model.graph.node[-1].output[0] = "scaled"
    random = onnx.helper.make_node("RandomUniformLike", ["scaled"], ["output"], low=1.0, high=9.0)
    model.graph.node.append(random)
    onnx.save(model, file)
    result = exported(file, tmp_path / "bundle")
    assert result.exit_code == 1
    assert "differ from the published network" in result.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("shape", "n_outputs", "message"),
    [
        (None, 0, "no such file; pass model_v8.onnx"),
        (["N", 16_000], 3, "neither DNSMOS P.808"),
        (["N", 144_160], 2, "neither DNSMOS P.808"),
        (["N", 400, 120], 1, "neither DNSMOS P.808"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, shape: list[int | str] | None, n_outputs: int, message: str
) -> None:
    file = tmp_path / "other.onnx"
    if shape is not None:
        dnsmos_model(file, shape, n_outputs)
    result = exported(file, tmp_path / "bundle")
    assert result.exit_code == 3
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "bundle").exists()


def test_a_bundles_own_graph_is_refused(tmp_path: Path) -> None:
    file = dnsmos_model(tmp_path / "sig_bak_ovr.onnx", P835_SHAPE, 3)
    assert exported(file, tmp_path / "bundle").exit_code == 0
    result = exported(tmp_path / "bundle" / "model.fp32.onnx", tmp_path / "again")
    assert result.exit_code == 3
    assert "exported already" in result.stderr
