"""wav2vec 2.0 and HuBERT through the bundle, against transformers run directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from click.testing import CliRunner
from scipy.special import log_softmax, logsumexp, softmax

import mosrt
from mosrt.cli.main import main
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec2 import MaskingFamily
from mosrt_export.uncertainty.wav2vec2.source import Head, load_source
from tests.conftest import made_once
from tests.standins.wav2vec import check_batch, check_operators

FloatArray = npt.NDArray[np.float64]
Waveform = npt.NDArray[np.float32]
MEASURES = ("mean", "std", "max", "entropy")
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
    "hidden_dropout": 0.3,
    "layerdrop": 0.5,
}
LAYER_NORM: dict[str, Any] = {
    "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True,
    "num_hidden_layers": 2,
}  # fmt: skip
PASSES = 7


def saved(kind: str, directory: Path) -> Any:
    """A small random model of transformers, saved as such models are published."""
    torch.manual_seed(3)
    model: Any
    if kind == "hubert":
        model = transformers.HubertForCTC(transformers.HubertConfig(**SHAPE))
    elif kind == "headless":
        model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SHAPE))
    elif kind == "pretraining":
        model = transformers.Wav2Vec2ForPreTraining(
            transformers.Wav2Vec2Config(
                **SHAPE, num_negatives=12, codevector_dim=16, proj_codevector_dim=16,
                num_codevectors_per_group=20, mask_time_length=4, mask_time_prob=0.5,
            )
        )  # fmt: skip
    else:
        extra = LAYER_NORM if kind == "layer" else {}
        model = transformers.Wav2Vec2ForCTC(transformers.Wav2Vec2Config(**{**SHAPE, **extra}))
    for parameter in model.parameters():  # so that no bias is zero and no norm trivial
        parameter.data += 0.05 * torch.randn_like(parameter)
    if hasattr(model, "lm_head"):  # decided enough for the mean over passes to matter
        model.lm_head.weight.data *= 8.0
    model.eval().save_pretrained(directory)
    if kind == "layer":
        vocabulary = {"<s>": 4, "</s>": 5, "<unk>": 6, "<pad>": 0}
        (directory / "vocab.json").write_text(json.dumps(vocabulary))
    return model


def export(directory: Path, out: Path, *options: str) -> Path:
    command = ["export", "wav2vec2", str(directory), "--output", str(out), *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return out


def exported_once(factory: pytest.TempPathFactory, kind: str) -> Path:
    """The bundle of a model of a kind, which no test writes to; see `made_once`."""
    options = ("--passes", str(PASSES), "--dropout", "0.6")
    if kind == "pretraining":
        options = ("--passes", "2", "--head", "pretraining")

    def make(directory: Path) -> None:
        saved(kind, directory / "model")
        export(directory / "model", directory / "bundle", *options)

    return made_once(factory, f"wav2vec2-{kind}", make) / "bundle"


def waveform() -> Waveform:
    t = np.arange(9_000) / 16_000
    noise = np.random.default_rng(5).normal(0, 0.02, len(t))
    return (0.3 * np.sin(2 * np.pi * 220 * t) + noise).astype(np.float32)


def definition(matrix: FloatArray) -> list[float]:
    """The four measures of rows (rows, columns) by scipy."""
    p = softmax(matrix, axis=1)
    entropy = -(p * (matrix - logsumexp(matrix, axis=1, keepdims=True))).sum(axis=1)
    std = matrix.std(axis=1, ddof=1)
    return [float(x.mean()) for x in (matrix, std, matrix.max(axis=1), entropy)]


def direct_logits(model: Any, samples: Waveform, keep: Waveform) -> FloatArray:
    """transformers' own forward on the repeated clip, masks applied where the features end."""

    def drop(_: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (args[0] * torch.from_numpy(keep),)

    hook = model.base_model.feature_projection.register_forward_pre_hook(drop)
    with torch.inference_mode():
        output = model(torch.from_numpy(samples).expand(len(keep), -1))
    hook.remove()
    logits = output.last_hidden_state if hasattr(output, "last_hidden_state") else output.logits
    found: FloatArray = logits.double().numpy()
    return found


FULL = [pytest.param(kind, marks=pytest.mark.full) for kind in ("hubert", "headless")]


@pytest.mark.parametrize("kind", ["group", "layer", *FULL])
def test_dropout_equals_transformers(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    """1e-4 is what two orders of FP32 sums through up to two layers leave room for."""
    model = saved(kind, tmp_path / "model")
    bundle = exported_once(tmp_path_factory, kind)
    samples = waveform()
    scaled = samples
    if kind == "layer":
        scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    n_frames = (len(samples) - 400) // 320 + 1
    sampler = SeededSampler(0, 0)
    # The runtime takes passes five at a time; runs take their numbers from one stream in turn.
    keep = np.concatenate([sampler.keep(0.6, (n, n_frames, 16)) for n in (5, 2)])
    logits = direct_logits(model, scaled, keep)
    assert np.abs(logits[0] - logits[1]).max() > 1e-2
    columns = logits.shape[2]
    left_out = {"headless": (), "layer": (4, 5, 6)}.get(kind, (1, 2, 3))
    kept = [i for i in range(columns) if i not in left_out]
    expected = definition(logits.mean(axis=0)[:, kept])
    with mosrt.load(bundle, threads=1) as scorer:
        score = scorer.score(samples, 16_000, frames=True)
        again = scorer.score(samples, 16_000, frames=True)
    found = [score.measures[f"ctc.{name}"] for name in MEASURES]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found == [again.measures[f"ctc.{name}"] for name in MEASURES]
    assert len(score.frames) == n_frames
    assert score.frame_rate_hz == 50.0
    for path in bundle.glob("*.onnx"):
        check_operators(path)
    # Averaging probabilities instead of logits would give something else.
    other = definition(np.log(softmax(logits, axis=2).mean(axis=0))[:, kept])
    assert abs(other[3] - expected[3]) > 1e-3


@pytest.mark.full
def test_no_dropout_is_the_plain_model(tmp_path: Path) -> None:
    model = saved("layer", tmp_path / "model")
    bundle = export(tmp_path / "model", tmp_path / "bundle", "--dropout", "0", "--passes", "9")
    samples = waveform()
    scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        logits = model(torch.from_numpy(scaled)[None]).logits[0].double().numpy()
    expected = definition(np.delete(logits, [4, 5, 6], axis=1))
    with mosrt.load(bundle, threads=1) as scorer:
        measures = scorer.score(samples, 16_000).measures
        spec = scorer.manifest.uncertainty
    np.testing.assert_allclose(
        [measures[f"ctc.{name}"] for name in MEASURES], expected, rtol=1e-4, atol=1e-5
    )
    assert spec is not None
    assert spec.dropout is not None
    assert spec.dropout.n_passes == 1


def test_pretraining_equals_transformers(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Logits put together with transformers' own forward and its own contrastive function."""
    model = saved("pretraining", tmp_path / "model")
    bundle = exported_once(tmp_path_factory, "pretraining")
    samples = waveform()
    n_frames = (len(samples) - 400) // 320 + 1
    rows = []
    with mosrt.load(bundle, threads=1) as scorer:
        score = scorer.score(samples, 16_000)
        spec = scorer.manifest.uncertainty
    assert spec is not None
    assert spec.masking is not None
    assert spec.masking.probability == 0.65  # of the model's own training, whatever its files say
    family, sampler = MaskingFamily(spec, spec.masking, {}), SeededSampler(0, 0)
    for _ in range(2):
        spans, negatives = family.sample(sampler, n_frames)
        masked = np.flatnonzero(spans)
        assert 0 < len(masked) < n_frames
        assert np.isin(negatives[masked], masked).all()
        assert (negatives[masked] != masked[:, None]).all()
        with torch.inference_mode():
            output = model(
                torch.from_numpy(samples)[None],
                mask_time_indices=torch.from_numpy(spans)[None].bool(),
            )
        context = output.projected_states[0]
        quantised = output.projected_quantized_states[0]
        picked = quantised[torch.from_numpy(negatives)].transpose(0, 1)[:, None]
        logits = model.compute_contrastive_logits(
            quantised[None, None], picked, context[None], 0.1
        )[:, 0].T
        same = (picked == quantised[None, None]).all(-1)[:, 0].T
        logits[:, 1:][same] = -np.inf
        log_p = log_softmax(logits[masked].double().numpy(), axis=1)
        rows.append(np.stack([log_p[:, 0], logsumexp(log_p[:, 1:], axis=1)], axis=1))
    matrix = np.concatenate(rows)
    matrix[np.isneginf(matrix)] = matrix[np.isfinite(matrix)].min()
    for path in bundle.glob("*.onnx"):
        check_operators(path)
    check_batch(bundle / "convolutions.fp32.onnx", {"waveform": np.stack([samples, samples[::-1]])})
    rng = np.random.default_rng(0)
    feeds = {
        "features": rng.standard_normal((2, n_frames, 16), np.float32),
        "spans": np.stack([spans, spans[::-1]]),
        "negatives": np.stack([negatives, negatives[::-1]]),
    }
    check_batch(bundle / "encoder.fp32.onnx", feeds)
    found = [score.measures[f"pretraining.{name}"] for name in MEASURES]
    np.testing.assert_allclose(found, definition(matrix), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("group", ("--head", "pretraining"), "has no pretraining head"),
        (None, (), "not a transformers model"),
        (None, ("--mask-share", "0.5"), "--mask-share is for --head pretraining"),
        (None, ("--head", "pretraining", "--dropout", "0.5"), "--dropout is for --head ctc"),
    ],
)
def test_refusals(tmp_path: Path, kind: str | None, options: tuple[str, ...], message: str) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    if kind is not None:
        saved(kind, directory)
    command = ["export", "wav2vec2", str(directory), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, *options])
    assert result.exit_code == (2 if message.startswith("--") else 3)
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head", ["ctc", "pretraining"])
@pytest.mark.parametrize("model_type", ["wav2vec2", "unheard-of"])
def test_code_beside_a_model_never_runs(tmp_path: Path, model_type: str, head: Head) -> None:
    """Neither asked for nor answered with y; a model of a known type is read without it."""
    directory, witness = tmp_path / "model", tmp_path / "witness"
    saved("pretraining" if head == "pretraining" else "group", directory)
    (directory / "code.py").write_text(
        f"open({str(witness)!r}, 'w')\n"
        "from transformers import Wav2Vec2Config as Config, Wav2Vec2Model as Model\n"
    )
    settings = json.loads((directory / "config.json").read_text())
    settings["model_type"] = model_type
    settings["auto_map"] = {
        "AutoConfig": "code.Config",
        **{f"AutoModel{suffix}": "code.Model" for suffix in ("", "ForCTC", "ForPreTraining")},
    }
    (directory / "config.json").write_text(json.dumps(settings))
    if model_type == "wav2vec2":
        load_source(str(directory), head)
    else:
        command = ["export", "wav2vec2", str(directory), "--output", str(tmp_path / "out")]
        result = CliRunner().invoke(main, [*command, "--head", head], input="y\n" * 9)
        assert result.exit_code == 3
        assert "not a transformers model" in result.output
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, as in no model"),
        ({"vocab_size": 10**6, "hidden_size": 10**5}, "parameters; at most"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
        ({"conv_kernel": [10**6] * 7}, "conv_kernel is [1000000"),
        ({"conv_stride": [1000] * 7}, "more than 20 s"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 0]}, "conv_stride is [5, 2, 2, 2, 2, 2, 0]"),
        ({"conv_dim": [-16] * 7}, "conv_dim is [-16"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": "many"}, "not a transformers model"),
        ({"hidden_act": "none"}, "cannot be loaded"),
    ],
)
def test_settings_that_no_model_has(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory, out = tmp_path / "model", tmp_path / "out"
    saved("group", directory)
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**settings, **change}))
    command = ["export", "wav2vec2", str(directory), "--output", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 3, result.output
    assert message in result.output
    assert len(result.output) < 1_000
    assert not out.exists()
