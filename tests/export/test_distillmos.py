"""Distill-MOS as a bundle, held to the package that publishes it."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import distillmos
import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from onnx import TensorProto

import mosrt
from mosrt.backends import OrtBackend
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import embedded_models
from mosrt.bundle.manifest import Manifest
from mosrt.errors import BundleError
from mosrt_bench.worker.mosrt_runner import MosrtRunner
from mosrt_bench.worker.protocol import Configuration
from mosrt_bench.worker.torch_runner import TorchRunner
from mosrt_calibration.graph import read_graph
from mosrt_export.cli.export import export
from mosrt_export.distillmos import EagerDistillMos, published_model
from mosrt_export.errors import CheckpointError
from tests.conftest import DATA, made_once

pytestmark = pytest.mark.full  # an export takes half a minute


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        options = ["distillmos", "--output", str(folder / "bundle")]
        result = CliRunner().invoke(export, options, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "written; largest difference" in result.stdout

    return made_once(tmp_path_factory, "distillmos", make) / "bundle"


def test_scores_equal_the_packages(bundle: Path) -> None:
    """Short recordings and long ones, at the rate of the model so that resampling has no part."""
    parts = [soundfile.read(DATA / name, dtype="float32")[0] for name in _AT_16_KHZ]
    mono = [part.mean(axis=1) if part.ndim == 2 else part for part in parts]
    whole = np.concatenate(mono)
    lengths = (8_000, 122_881, 200_000)
    recordings = [*mono, *(np.resize(whole, length) for length in lengths)]
    model = published_model()
    with mosrt.load(bundle, threads=2) as scorer, torch.inference_mode():
        for recording in recordings:
            score = scorer.score(recording, 16_000)
            expected = float(model(torch.from_numpy(recording.astype(np.float32))[None])[0, 0])
            assert score.mos == pytest.approx(expected, abs=1e-4)  # rounding of quiet bins
            assert score.windows[0][0] == 0
            assert score.windows[-1][1] == pytest.approx(len(recording) / 16_000)


_AT_16_KHZ = ("flite_slt_16k_mono.wav", "espeak_fr_16k_stereo.ogg")


def test_one_segment_has_no_interval(bundle: Path) -> None:
    rng = np.random.default_rng(0)
    with mosrt.load(bundle) as scorer:
        short = scorer.score(rng.normal(0, 0.1, 16_000).astype(np.float32), 16_000)
        long = scorer.score(rng.normal(0, 0.1, 200_000).astype(np.float32), 16_000)
    assert np.isnan(short.low)
    assert long.n_views == 6
    assert long.low < long.mos < long.high


def test_the_card_keeps_the_notice(bundle: Path) -> None:
    card = Bundle.open(bundle).model_card()
    assert "Copyright (c) Microsoft Corporation." in card
    assert "shall be included in all" in card
    assert "arXiv 2502.05356" in card


def test_segments_are_of_their_family(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    plain = json.loads(json.dumps(manifest.to_dict()))
    assert Manifest.from_dict(plain) == manifest
    with pytest.raises(BundleError, match="does not fit family 'ssl'"):
        Manifest.from_dict({**plain, "family": "ssl"})
    for name in ("segment_hop_samples", "segment_step_samples"):
        ssl = {key: value for key, value in plain["ssl"].items() if key != name}
        with pytest.raises(BundleError, match="does not fit family 'segments'"):
            Manifest.from_dict({**plain, "ssl": ssl})


def test_zeros_need_not_be_computed(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.ssl is not None
    lengths = [manifest.ssl.padded_samples(n) for n in (1, 2_560, 2_561, 117_760, 120_320, 122_879)]
    assert lengths == [5_120, 5_120, 7_680, 120_320, 122_880, 122_880]
    rng = np.random.default_rng(0)
    backend = OrtBackend(
        bundle, manifest.variants["fp32"], inputs=manifest.inputs, outputs=manifest.outputs
    )
    with contextlib.closing(backend):
        for n in (1, 2_560, 60_000, 117_760):
            segment = np.zeros((1, 122_880), np.float32)
            segment[:, :n] = rng.normal(0, 0.1, n)
            short = segment[:, : manifest.ssl.padded_samples(n)]
            found = [backend.run({"waveform": each}, ["mos"])["mos"] for each in (short, segment)]
            # Other sizes may be added in another order.
            np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_half_weights(bundle: Path, tmp_path: Path) -> None:
    """They halve the file and hardly move scores, and quantisation reads them."""
    options = ["distillmos", "--half-weights", "--output", str(tmp_path / "half")]
    result = CliRunner().invoke(export, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    sizes = [(each / "model.fp32.onnx.data").stat().st_size for each in (tmp_path / "half", bundle)]
    assert 0.5 < sizes[0] / sizes[1] < 0.52  # the front end's rows stay float32
    noise = np.random.default_rng(0).normal(0, 0.1, 30_000).astype(np.float32)
    with mosrt.load(tmp_path / "half") as half, mosrt.load(bundle) as full:
        assert half.score(noise, 16_000).mos == pytest.approx(
            full.score(noise, 16_000).mos, abs=0.002
        )
    graph = read_graph(tmp_path / "half" / "model.fp32.onnx").graph
    assert not [each for each in graph.initializer if each.data_type == TensorProto.FLOAT16]


def test_bench_runs_the_packages_model(tmp_path: Path) -> None:
    weights = Path(distillmos.__file__).parent / "weights" / "distill_mos_v7.pt"
    path = str(embedded_models()["distillmos"])
    here = Configuration(model="distillmos", bundle=path, variant="fp32", provider="cpu", threads=2)
    runner = MosrtRunner(here)
    torch_runner = TorchRunner(replace(here, provider="torch-cpu", checkpoints=[str(weights)]))
    for name in _AT_16_KHZ:
        scores = [each.score(DATA / name)["scores"]["overall"] for each in (torch_runner, runner)]
        assert scores[0] == pytest.approx(scores[1], abs=0.002)  # weights in half precision
    torch_runner.close()
    runner.close()
    other = tmp_path / "other.pt"
    torch.save({"weights": 1}, other)
    with pytest.raises(CheckpointError, match=r"other\.pt: not the weights of Distill-MOS"):
        EagerDistillMos(other)
