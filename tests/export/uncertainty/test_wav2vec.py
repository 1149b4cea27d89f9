"""wav2vec v1 through the bundle, against vectors of fairseq's own model and against definitions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from scipy.special import logsumexp, softmax

import mosrt
from mosrt.bundle.bundle import Bundle
from mosrt.cli.main import main
from mosrt.host.thread_pool import ThreadPool
from mosrt.scorer import Item
from mosrt.uncertainty.family import load_stages
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec import ContrastFamily
from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec
from tests.standins.utmosv2 import GOLDEN
from tests.standins.wav2vec import (
    LARGE,
    SMALL,
    check_batch,
    check_operators,
    large_state_dict,
    save,
    small_state_dict,
)

FloatArray = npt.NDArray[np.float64]
MEASURES = ("mean", "std", "max", "entropy")


def export(checkpoint: Path, out: Path, *options: str) -> Path:
    command = ["export", "wav2vec", str(checkpoint), "--output", str(out), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return out


@dataclass(frozen=True)
class Opened:
    """A bundle opened at its graphs, so that a test can choose the distractors."""

    family: ContrastFamily
    bundle: Bundle


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large")
    checkpoint = save(directory / "wav2vec_large.pt", LARGE, large_state_dict())
    bundle = export(checkpoint, directory / "bundle")
    checkpoint.unlink()
    return bundle


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small")
    checkpoint = save(directory / "small.pt", SMALL, small_state_dict(SMALL))
    return export(checkpoint, directory / "bundle", "--measure", "dense.entropy")


@pytest.fixture(scope="module")
def opened(large: Path) -> Iterator[Opened]:
    bundle = Bundle.open(large)
    spec = bundle.manifest.uncertainty
    assert spec is not None
    assert spec.contrast is not None
    stages = load_stages(bundle.manifest, bundle.variant("fp32"), large, provider="cpu", threads=1)
    yield Opened(ContrastFamily(spec, spec.contrast, stages, ThreadPool(1)), bundle)
    for stage in stages.values():
        stage.close()


def relative(found: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.full
@pytest.mark.parametrize("case", ["long", "short", "fewer_steps"])
def test_golden(opened: Opened, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """fairseq's features, logits and measures; 1e-4 and 1e-5 are what FP32 sums of 512 allow."""
    with np.load(GOLDEN / "wav2vec_v1" / f"{case}.npz") as stored:
        golden = dict(stored)
    waveform = golden["waveform"].astype(np.float32) / 32_768
    negatives = golden["negative_indices"].astype(np.int64)
    family = opened.family
    features, predictions = family.encode(waveform)
    assert relative(features[0, ::16, ::16], golden["features_sample"]) < 1e-4
    logits = family.logits(features, predictions, negatives)
    flat = np.concatenate([step.ravel() for step in logits])
    assert flat.shape == golden["copy_major_logits"].shape
    assert relative(flat, golden["copy_major_logits"]) < 1e-4
    rows = np.concatenate([step.T for step in logits])
    head = golden["contrastive_logits_head"]
    assert relative(rows[: len(head)], head) < 1e-4
    # The scorer's own way, with the reference's distractors.
    monkeypatch.setattr(SeededSampler, "negatives", lambda *_: negatives)
    measured = family.measure(waveform, 0)
    for layout in ("paper", "contrastive"):
        found = measured[layout].values.mean(axis=1)
        np.testing.assert_allclose(found, golden[f"{layout}_measures"], rtol=1e-5)


@pytest.mark.full
def test_context_equals_fairseq(tmp_path: Path) -> None:
    """The context, which a bundle keeps to itself: of the torch modules that are exported."""
    checkpoint = save(tmp_path / "wav2vec_large.pt", LARGE, large_state_dict())
    model = read_wav2vec(checkpoint).build().eval()
    for case in ("long", "short", "fewer_steps"):
        with np.load(GOLDEN / "wav2vec_v1" / f"{case}.npz") as golden:
            waveform = torch.from_numpy(golden["waveform"].astype(np.float32) / 32_768)
            with torch.inference_mode():
                context = model.feature_aggregator(model.features(waveform[None]))
            # FP32 sums of 512 and twelve layers of norms
            assert relative(context[0, ::16, ::16], golden["context_sample"]) < 1e-4


@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.full)])
def test_graphs_hold_nothing_that_runtimes_get_wrong(
    size: str, request: pytest.FixtureRequest
) -> None:
    graphs = list(request.getfixturevalue(size).glob("*.onnx"))
    assert len(graphs) == 3
    for path in graphs:
        check_operators(path)


def test_a_batch_is_its_clips(small: Path) -> None:
    """Norms span a clip's channels and time, and must not span clips."""
    levels = np.array([[0.01], [0.1], [1.0]])
    waveform = np.random.default_rng(2).normal(0, levels, (3, 4_000)).astype(np.float32)
    check_batch(small / "encoder.fp32.onnx", {"waveform": waveform})


def definition(matrix: FloatArray) -> FloatArray:
    """The four measures of rows (rows, columns) by scipy, (4,)."""
    p = softmax(matrix, axis=1)
    entropy = -(p * (matrix - logsumexp(matrix, axis=1, keepdims=True))).sum(axis=1)
    return np.array(
        [matrix.mean(), matrix.std(axis=1, ddof=1).mean(), matrix.max(axis=1).mean(),
         entropy.mean()]
    )  # fmt: skip


def test_dense_equals_a_float64_derivation(small: Path, tmp_path: Path) -> None:
    """Torch in float64 from the same weights, every frame against every frame, no blocks."""
    checkpoint = save(tmp_path / "small.pt", SMALL, small_state_dict(SMALL))
    model = read_wav2vec(checkpoint).build().double()
    waveform = np.random.default_rng(1).normal(0, 0.1, 40_000).astype(np.float32)
    with torch.inference_mode():
        z, p = (x[0].numpy() for x in model(torch.from_numpy(waveform.astype(np.float64))[None]))
    n_frames = z.shape[1]
    first = model.architecture.first_horizon
    per_step = [p[s, : n_frames - first - s] @ z for s in range(12)]
    curve = np.full((12, n_frames), np.nan)
    for s, matrix in enumerate(per_step):
        q = softmax(matrix, axis=1)
        curve[s, first + s :] = -(q * np.log(q)).sum(axis=1)
    with mosrt.load(small, threads=2) as scorer:
        score = scorer.score(waveform, 16_000, frames=True, horizons=True)
    found = [score.measures[f"dense.{name}"] for name in MEASURES]
    # FP32 graphs against float64 throughout.
    np.testing.assert_allclose(found, definition(np.concatenate(per_step)), rtol=1e-5, atol=1e-6)
    for s, matrix in enumerate(per_step):
        found = [score.measures[f"dense.{name}@{first + s}"] for name in MEASURES]
        np.testing.assert_allclose(found, definition(matrix), rtol=1e-5, atol=1e-6)
    assert score.measures["uncertainty"] == score.measures["dense.entropy"]
    assert math.isnan(score.mos)
    assert score.frame_rate_hz == 100.0
    assert len(score.frames) == n_frames
    assert np.isnan(score.frames[:first]).all()
    np.testing.assert_allclose(
        score.frames[first:], np.nanmean(curve[:, first:], axis=0), rtol=1e-5
    )


def test_alone_in_batches_and_again_are_bit_equal(
    small: Path, clips: list[Path], speech: npt.NDArray[np.float32]
) -> None:
    items: list[Item] = [*clips[:3], (speech[:30_000], 16_000)]

    def plain(score: mosrt.Score) -> dict[str, object]:
        values = score.to_dict()
        del values["timings_ms"]
        return values

    with mosrt.load(small, threads=2) as scorer:
        alone = [plain(scorer.score_many([item])[0]) for item in items]
        together = [plain(score) for score in scorer.score_many(items[::-1])][::-1]
    with mosrt.load(small, threads=2, batch_size=3) as scorer:
        again = [plain(score) for score in scorer.score_many(items)]
    assert alone == together == again


@pytest.mark.parametrize("layout", ["cfg", "s3prl"])
def test_layouts_of_checkpoints(tmp_path: Path, layout: str) -> None:
    state = small_state_dict(SMALL)
    path = save(tmp_path / "model.pt", SMALL, state, layout)
    checkpoint = read_wav2vec(path)
    reference = read_wav2vec(save(tmp_path / "args.pt", SMALL, state))
    assert checkpoint.architecture == reference.architecture
    waveform = torch.linspace(-1, 1, 3_000).sin()[None]
    with torch.inference_mode():
        for found, expected in zip(
            checkpoint.build()(waveform), reference.build()(waveform), strict=True
        ):
            assert torch.equal(found, expected)


@pytest.mark.full
def test_tensorrt_builds_the_large_model(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    result = CliRunner().invoke(main, ["build", str(large), "--level", "0", "--max-seconds", "5"])
    assert result.exit_code == 0, result.output
    assert max(path.stat().st_size for path in tmp_path.glob("engines/*.engine")) > 130e6
