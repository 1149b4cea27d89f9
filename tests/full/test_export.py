import dataclasses
import hashlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

import mosrt
from mosrt.backends.trt_module import find_tensorrt
from mosrt.bundle.bundle import Bundle
from mosrt_calibration.graph import read_graph, write_graph
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_export.parity import audio_sources
from mosrt_export.trt.builder import BuildSettings, build_engine
from mosrt_export.trt.shapes import profile_of, size_ranges
from mosrt_export.utmosv2.config import ModelConfig, SpectrogramConfig, SslConfig
from mosrt_export.utmosv2.exporter import Source, export_bundle
from tests.conftest import GoldenCase, made_once
from tests.full.conftest import Export
from tests.standins.utmosv2 import small_config, small_model


@pytest.fixture(scope="module")
def scorer(exported: Export) -> mosrt.Scorer:
    return mosrt.load(exported.bundle)


def test_golden_through_bundle_and_runtime(scorer: mosrt.Scorer, golden: GoldenCase) -> None:
    features = scorer.features(golden.waveform, 16_000, plan=golden.plan)
    for name in ("ssl_features", "spec_features"):
        expected = golden.arrays[name]
        # The reference appends ten zeros for its domain columns, which the graph leaves out.
        assert not expected[-10:].any()
        got = features[name][0, 0]
        np.testing.assert_allclose(got, expected[:-10], atol=1e-4 * np.abs(expected).max(), rtol=0)
    domain = scorer.domains[golden.domain_index]
    score = scorer.score(golden.waveform, 16_000, domain=domain, plan=golden.plan)
    assert score.mos == pytest.approx(float(golden.arrays["mos"]), abs=1e-3)


def test_manifest_and_figures(exported: Export) -> None:
    bundle = Bundle.open(exported.bundle)
    bundle.verify()
    manifest = bundle.manifest
    assert manifest.family == "fusion"
    assert len(manifest.domains) == 10
    assert manifest.default_domain == "sarulab"
    drift = manifest.variants["fp32"].drift
    assert 0 <= drift["mos_max_abs"] <= 1e-3
    assert drift["n_clips"] >= 3
    (checkpoint,) = manifest.provenance["checkpoints"]
    digest = hashlib.sha256(exported.checkpoint.read_bytes()).hexdigest()
    assert checkpoint["sha256"] == digest
    assert bundle.model_card()
    # What was on the exporting machine stays there.
    text = (exported.bundle / "manifest.json").read_text() + bundle.model_card()
    assert str(exported.checkpoint.parent) not in text


def test_memory_and_progress(exported: Export) -> None:
    assert exported.peak_bytes < 6e9
    assert "[1/" in exported.stderr


@pytest.fixture(scope="module")
def small_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small networks behind the front end of the published size, in NumPy and in the graph."""
    spectrogram = SpectrogramConfig(backbone="test_efficientnet", attention_heads=4)
    small = small_config()
    config = ModelConfig(
        domains=small.domains,
        ssl=dataclasses.replace(small.ssl, crop_samples=SslConfig().crop_samples),
        spectrogram=spectrogram,
    )

    def export(directory: Path) -> None:
        directory.mkdir()
        checkpoint = directory / "small.pth"
        torch.save(small_model("fusion", config).state_dict(), checkpoint)
        for front_end in ("numpy", "graph"):
            export_bundle(
                [Source(path=checkpoint, member="small")],
                config,
                directory / front_end,
                clips=audio_sources(None)[:1],
                step=lambda _: nullcontext(),
                front_end=front_end,
            )

    return made_once(tmp_path_factory, "front-ends", export)


def test_front_end_in_the_graph(small_networks: Path, clips: list[Path]) -> None:
    """The size of the networks does not matter here, that of crops and images does."""
    with (
        mosrt.load(small_networks / "numpy") as features,
        mosrt.load(small_networks / "graph") as audio,
    ):
        shapes = {tensor.name: tensor.shape for tensor in audio.manifest.inputs}
        assert shapes == {"waveform": ("batch", 48_000), "crops": ("batch", 2, 22_400)}
        for clip in clips[:3]:
            found, wanted = (each.score_file(clip, views=1) for each in (audio, features))
            assert found.domains == pytest.approx(wanted.domains, abs=1e-4)


def build_fp16(bundle: Path, member: str, tmp_path: Path) -> tuple[int, int]:
    """Bytes of a TensorRT engine in FP16, with the front end in FP32, and of its weights."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    manifest = Bundle.open(bundle).manifest
    fp16 = to_fp16(read_graph(bundle / f"model.{member}.fp32.onnx"))
    graph, weights = write_graph(fp16, tmp_path / "fp16.onnx")
    assert weights is not None
    engine = build_engine(
        find_tensorrt(),
        graph,
        profile_of(manifest.inputs, size_ranges(manifest, batch=(1, 1, 1))),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        settings=BuildSettings(level=0),
    )
    return engine.nbytes, weights.stat().st_size


def test_tensorrt_builds_it(exported: Export, tmp_path: Path) -> None:
    engine_bytes, weights_bytes = build_fp16(exported.bundle, "fold0", tmp_path)
    assert engine_bytes > weights_bytes > 400e6


def test_tensorrt_builds_the_front_end(small_networks: Path, tmp_path: Path) -> None:
    engine_bytes, weights_bytes = build_fp16(small_networks / "graph", "small", tmp_path)
    assert engine_bytes > weights_bytes


def test_batches_change_nothing(scorer: mosrt.Scorer, clips: list[Path]) -> None:
    alone = [scorer.score_file(clip, plan="reference:1") for clip in clips[:3]]
    scorer.batch_size = 3
    many = scorer.score_many(clips[:3], plan="reference:1")
    assert [score.views for score in many] == [score.views for score in alone]
