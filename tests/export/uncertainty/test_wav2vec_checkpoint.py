"""What wav2vec checkpoints say of themselves, vector quantisers, and what is refused."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.special
import scipy.stats
import torch
from click.testing import CliRunner

import mosrt
from mosrt.bundle.manifest import Member, TensorSpec
from mosrt.cli.main import main
from mosrt.uncertainty.sampling import SeededSampler
from mosrt_export.errors import CheckpointError
from mosrt_export.graphs.graph import write_graph
from mosrt_export.uncertainty.wav2vec.checkpoint import architecture_of, read_wav2vec
from mosrt_export.uncertainty.wav2vec.graphs import Contrast, Wav2VecGraph
from mosrt_export.uncertainty.wav2vec.model import Architecture, JointNorm, Wav2Vec
from tests.standins.wav2vec import (
    LARGE,
    SMALL,
    check_operators,
    save,
    small_state_dict,
)

HERE = Path("stand-in")
GUMBEL = {
    **SMALL, "activation": "gelu", "vq_type": "gumbel", "vq_vars": 7, "vq_groups": 2, "vq_depth": 2
}  # fmt: skip
KMEANS = {**SMALL, "vq_type": "kmeans", "vq_vars": 9, "vq_groups": 2, "combine_groups": True}


def test_the_large_model_as_published() -> None:
    architecture = architecture_of(LARGE, HERE)
    assert architecture.receptive_samples == 465
    assert architecture.hop_samples == 160
    assert architecture.first_horizon == 3
    assert architecture.min_samples == 945
    assert architecture.context_layers[-1] == (512, 13, 1)
    assert architecture.residual_scale == pytest.approx(0.5**0.5)


def built(options: dict[str, Any]) -> Wav2Vec:
    model = Wav2Vec(architecture_of(options, HERE))
    model.load_state_dict(small_state_dict(options))
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {**SMALL, "skip_connections_feat": True, "no_conv_bias": True, "agg_zero_pad": True},
        {**SMALL, "skip_connections_agg": False, "non_affine_group_norm": True, "offset": 1},
        GUMBEL,
        KMEANS,
    ],
    ids=["plain", "padded", "bare", "gumbel", "kmeans"],
)
@pytest.mark.parametrize(("batch", "n_samples"), [(1, 945), (3, 4_321)])
def test_the_graph_form_is_the_same_function(
    options: dict[str, Any], batch: int, n_samples: int
) -> None:
    """The same computation, except for the order of sums in convolutions."""
    model = built(options)
    waveform = torch.from_numpy(
        np.random.default_rng(n_samples).normal(0, 0.1, (batch, n_samples)).astype(np.float32)
    )
    with torch.inference_mode():
        expected = model(waveform)
        found = Wav2VecGraph(model)(waveform)
    for left, right in zip(found, expected, strict=True):
        assert torch.allclose(left, right, rtol=1e-4, atol=1e-5)


def test_the_norm_is_torchs_group_norm() -> None:
    ours, theirs = JointNorm(6), torch.nn.GroupNorm(1, 6)
    for parameter in theirs.parameters():
        parameter.data.normal_()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 6, 50) * 4 + 2
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_gumbel_quantiser_chooses_codes() -> None:
    """Each group's vector is the code whose score is largest, derived frame by frame."""
    quantizer: Any = built(GUMBEL).vector_quantizer
    features = torch.randn(2, 16, 5)
    with torch.inference_mode():
        found = quantizer(features)
        hidden = torch.nn.functional.gelu(quantizer.weight_proj[0][0](features.transpose(1, 2)))
        scores = quantizer.weight_proj[1](hidden)
    for clip in range(2):
        for frame in range(5):
            for group in range(2):
                best = int(scores[clip, frame, 7 * group : 7 * group + 7].argmax())
                code = quantizer.vars[0, 7 * group + best]
                assert torch.equal(found[clip, 8 * group : 8 * group + 8, frame], code)


def test_kmeans_quantiser_chooses_the_nearest_code() -> None:
    quantizer: Any = built(KMEANS).vector_quantizer
    features = torch.randn(2, 16, 5)
    norm = torch.nn.GroupNorm(2, 16)
    norm.load_state_dict(quantizer.projection[1].state_dict())
    with torch.inference_mode():
        found = quantizer(features)
        projected = norm(quantizer.projection[0](features))
        codes = quantizer.embedding[:, 0]
        for group in range(2):
            part = projected[:, 8 * group : 8 * group + 8].transpose(1, 2)
            best = torch.cdist(part, codes.expand(2, -1, -1)).argmin(dim=-1)
            assert torch.equal(found[:, 8 * group : 8 * group + 8].transpose(1, 2), codes[best])


@pytest.mark.full
def test_a_quantised_model_through_the_bundle(tmp_path: Path) -> None:
    """vq-wav2vec's command, graphs and measures, against torch and float64."""
    checkpoint = save(tmp_path / "vq-wav2vec.pt", GUMBEL, small_state_dict(GUMBEL))
    out = tmp_path / "bundle"
    command = ["export", "wav2vec", str(checkpoint), "--output", str(out)]
    done = CliRunner().invoke(
        main, [*command, "--layout", "contrastive", "--measure", "contrastive.entropy"]
    )
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.glob("*.onnx")} == {"encoder.fp32.onnx", "contrast.fp32.onnx"}
    check_operators(out / "encoder.fp32.onnx")
    model = built(GUMBEL)
    rng = np.random.default_rng(0)
    with mosrt.load(out, threads=1) as scorer:
        for n_samples in (945, 5_000):
            waveform = rng.normal(0, 0.1, n_samples).astype(np.float32)
            with torch.inference_mode():
                z, p = (x[0].double().numpy() for x in model(torch.from_numpy(waveform)[None]))
            found = scorer.features(waveform, 16_000)["features"]
            np.testing.assert_allclose(found.T, z, rtol=1e-4, atol=1e-5)
            n_frames = z.shape[1]
            negatives = SeededSampler(0, 0).negatives(10, n_frames)
            logits = [
                np.stack([z[:, t + ahead] @ p[ahead - 3, t],
                          *(z[:, negatives[:, t + ahead]].T @ p[ahead - 3, t])])
                for ahead in range(3, min(15, n_frames))
                for t in range(n_frames - ahead)
            ]  # fmt: skip
            entropy = scipy.stats.entropy(scipy.special.softmax(logits, axis=1), axis=1).mean()
            score = scorer.score(waveform, 16_000)
            assert score.measures["uncertainty"] == pytest.approx(entropy, rel=1e-5)


def test_the_other_quantised_model_as_a_graph(tmp_path: Path) -> None:
    model = built(KMEANS)

    def spec(name: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(name=name, dtype="float32", shape=("batch", *shape))

    path = tmp_path / "encoder.onnx"
    write_graph(
        "encoder",
        Wav2VecGraph(model),
        path,
        inputs=[spec("waveform", "samples")],
        outputs=[spec("features", 16, "frames"), spec("predictions", 12, "frames", 16)],
        sizes={"batch": 2, "samples": 3_000},
    )
    check_operators(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n_samples in (945, 5_000):
        waveform = np.random.default_rng(0).normal(0, 0.1, (1, n_samples)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(waveform))
        for found, wanted in zip(session.run(None, {"waveform": waveform}), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregator": "gru"}, "only cnn"),
        ({"project_features": "same"}, "only none"),
        ({"activation": "swish"}, "relu and gelu"),
        ({"vq_type": "product"}, "gumbel and kmeans"),
        ({"conv_feature_layers": None}, "not a list of layers"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "not a list of layers"),
        ({"conv_feature_layers": "[(512, 10)]"}, "not a list of layers"),
        ({"conv_feature_layers": "[(512, 10, 5)] * 1000000000"}, "not a list of layers"),
        ({"conv_aggregator_layers": "[(512, 2, 2)]"}, "stride 1"),
        ({"conv_feature_layers": "[(512, 10, 5)]" + " * 64" * 9}, "not a list of layers"),
        ({"conv_feature_layers": "[(512, 10, 5)] + " * 10**6 + "[]"}, "not a list of layers"),
        ({"conv_feature_layers": "(" * 3_000}, "not a list of layers"),
        ({"conv_feature_layers": [(512, 10, 5)] * 1_000}, "not a list of layers"),
        ({"conv_feature_layers": [(10**9, 10, 5)]}, "not a list of layers"),
        ({"conv_feature_layers": [(512, math.inf, 5)]}, "not a list of layers"),
        ({"conv_feature_layers": [(512, 10, -5)]}, "not a list of layers"),
        ({"num_negatives": 0}, "num_negatives"),
        ({"num_negatives": 10**9}, "num_negatives is 1000000000, not a positive integer up to"),
        ({"prediction_steps": math.inf}, "prediction_steps is inf, not a positive number"),
        ({"offset": 10**9}, "offset is 1000000000"),
        ({"offset": 1.5}, "offset is 1.5, not a positive integer"),
        *(
            ({"residual_scale": scale}, "residual_scale is .*, not a positive number")
            for scale in (-0.1, 0, math.nan, math.inf, "x", None)
        ),
        ({"vq_type": "gumbel", "vq_vars": 10**9}, "vq_vars is 1000000000"),
        ({"vq_type": "gumbel", "vq_depth": 10**9}, "vq_depth is 1000000000"),
        ({"vq_type": "gumbel", "vq_dim": -4}, "vq_dim is -4"),
    ],
)
def test_options_that_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        architecture_of({**LARGE, **change}, HERE)


class Evil:
    """Runs a command when unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, ("exit 1",))


def test_a_pickle_that_wants_more_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    args = argparse.Namespace(**SMALL, criterion=Evil())
    torch.save({"args": args, "model": small_state_dict(SMALL)}, path)
    with pytest.raises(
        CheckpointError, match=r"evil\.pt: .*could run code.*it needs posix\.system"
    ):
        read_wav2vec(path)
    # The allow-list ends with the reading.
    harmless = tmp_path / "namespace.pt"
    torch.save(argparse.Namespace(a=1), harmless)
    with pytest.raises(Exception, match=r"argparse\.Namespace"):
        torch.load(harmless, weights_only=True)


@pytest.mark.parametrize("args", [argparse.Namespace(arch="wav2vec2"), None])
@pytest.mark.parametrize("prefix", ["", "w2v_encoder.w2v_model."])
def test_wav2vec_small_is_sent_elsewhere(
    tmp_path: Path, args: argparse.Namespace | None, prefix: str
) -> None:
    """wav2vec_small.pt is wav2vec 2.0, whatever its name; fine-tuned ones have a prefix."""
    path = tmp_path / "wav2vec_small.pt"
    state = {
        f"{prefix}mask_emb": torch.zeros(8),
        f"{prefix}feature_extractor.conv_layers.0.0.weight": torch.zeros(8, 1, 10),
        f"{prefix}encoder.layers.0.self_attn.k_proj.weight": torch.zeros(8, 8),
    }
    torch.save({"args": args, "model": state}, path)
    out = tmp_path / "out"
    command = ["export", "wav2vec", str(path), "--output", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 3
    assert "a wav2vec 2.0 model, not wav2vec v1" in result.output
    assert "mosrt export wav2vec2 facebook" in result.output
    assert not out.exists()


def test_weights_that_contradict_the_options(tmp_path: Path) -> None:
    path = save(tmp_path / "odd.pt", {**SMALL, "prediction_steps": 11}, small_state_dict(SMALL))
    with pytest.raises(CheckpointError, match="its options and weights contradict each other"):
        read_wav2vec(path).build()
    path = save(tmp_path / "no.pt", SMALL, {"decoder.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="has no feature_aggregator and no"):
        read_wav2vec(path)
    torch.save({"model": small_state_dict(SMALL)}, path)
    with pytest.raises(CheckpointError, match="has no options of the architecture"):
        read_wav2vec(path)


def test_sizes_beyond_the_weights_take_no_memory(tmp_path: Path) -> None:
    """A network of 17 GB, by its options; the shapes in the file are compared first."""
    large = {**SMALL, "conv_feature_layers": [(65_536, 65_536, 1)]}
    path = save(tmp_path / "large.pt", large, small_state_dict(SMALL))
    with pytest.raises(CheckpointError, match="its options and weights contradict each other"):
        read_wav2vec(path).build()


def test_strides_beyond_any_recording(tmp_path: Path) -> None:
    """Weights do not show strides, so nothing contradicts these."""
    layers = [(channels, kernel, 60_000) for channels, kernel, _ in
              architecture_of(SMALL, HERE).encoder_layers]  # fmt: skip
    strides = {**SMALL, "conv_feature_layers": layers}
    path = save(tmp_path / "strides.pt", strides, small_state_dict(SMALL))
    command = ["export", "wav2vec", str(path), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 3
    assert "more than 20 s" in result.output
    assert not (tmp_path / "out").exists()


def write_contrast(path: Path) -> Member:
    def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=("batch", *shape))

    return write_graph(
        "contrast",
        Contrast(n_steps=6, first_horizon=2),
        path,
        inputs=[
            spec("features", 4, "frames"),
            spec("predictions", 6, "frames", 4),
            spec("negatives", 3, "frames", dtype="int64"),
        ],
        outputs=[spec("logits", "frames", 6, 4)],
        sizes={"batch": 2, "frames": 9},
    )


@pytest.mark.full
def test_a_graph_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (write_contrast(tmp_path / f"{name}.onnx") for name in "ab")
    assert first.graph.sha256 == second.graph.sha256


def test_contrast_graph(tmp_path: Path) -> None:
    """Right for several clips at once and for fewer frames than steps."""
    assert write_contrast(tmp_path / "a.onnx").weights is None
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for batch, n_frames in ((1, 3), (2, 20)):
        z = rng.normal(size=(batch, 4, n_frames)).astype(np.float32)
        p = rng.normal(size=(batch, 6, n_frames, 4)).astype(np.float32)
        index = rng.integers(0, n_frames, (batch, 3, n_frames))
        feeds = {"features": z, "predictions": p, "negatives": index}
        found = session.run(None, feeds)[0]
        for b in range(batch):
            for u in range(n_frames):
                for s in range(6):
                    context = u - 2 - s
                    if context < 0:
                        assert not found[b, u, s].any()
                        continue
                    frames = [u, *index[b, :, u]]
                    expected = [p[b, s, context] @ z[b, :, frame] for frame in frames]
                    np.testing.assert_allclose(found[b, u, s], expected, atol=1e-5)


def test_an_architecture_speaks_for_itself() -> None:
    layers = ((8, 10, 5), (8, 4, 2))
    architecture = Architecture(encoder_layers=layers, context_layers=((8, 2, 1),))
    assert architecture.receptive_samples == 10 + 3 * 5
    assert architecture.first_horizon == 3  # 25 samples at a hop of 10
