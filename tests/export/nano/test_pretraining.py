"""Tests the contrastive loss against loops, and that a small model learns."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mosrt_export.nano import pretraining
from mosrt_export.nano.pretraining import (
    ARCHITECTURE,
    PretrainingConfig,
    pretrain,
    save_wav2vec,
)
from mosrt_export.uncertainty.wav2vec.checkpoint import read_wav2vec
from mosrt_export.uncertainty.wav2vec.model import Architecture, JointNorm, Wav2Vec

SMALL = Architecture(
    encoder_layers=((8, 10, 5), (16, 8, 8), (16, 4, 4)),
    context_layers=((16, 2, 1), (16, 3, 1)),
    n_steps=3,
)


@pytest.mark.parametrize("horizons", [{2: 0, 3: 1, 4: 2}, {4: 2}, {3: 0, 2: 2}])
def test_the_contrastive_loss_equals_loops(horizons: dict[int, int]) -> None:
    """Float64 loops over steps, clips, frames and negatives; the right frame is no negative."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 4, 9))
    predictions = rng.standard_normal((2, 3, 9, 4))
    negatives = rng.integers(9, size=(2, 6))
    per_step, hits, count, left_out = [], 0, 0, 0
    for ahead, step in horizons.items():
        losses = []
        for clip in range(2):
            for frame in range(9 - ahead):
                guess = predictions[clip, step, frame]
                right = float(guess @ features[clip, :, frame + ahead])
                wrong = [
                    float(guess @ features[clip, :, other])
                    for other in negatives[clip]
                    if other != frame + ahead
                ]
                left_out += 6 - len(wrong)
                losses.append(math.log(sum(math.exp(s - right) for s in [right, *wrong])))
                hits += all(right > score for score in wrong)
                count += 1
        per_step.append(sum(losses) / len(losses))
    assert left_out > 0
    loss, share = pretraining.contrastive_loss(
        torch.from_numpy(features), torch.from_numpy(predictions), horizons, negatives
    )
    assert float(loss) == pytest.approx(sum(per_step) / len(per_step), rel=1e-10)
    assert share == hits / count


def chirps(n_clips: int, n_samples: int) -> np.ndarray:
    """Returns tones that sweep up and down, so that coming frames can be predicted."""
    rng = np.random.default_rng(0)
    time_s = np.arange(n_samples) / 16_000
    rows = []
    for _ in range(n_clips):
        phase = 2 * np.pi * (300 * time_s - 200 / 9 * np.cos(9 * time_s + rng.uniform(0, 6)))
        rows.append(np.sin(phase) * (0.6 + 0.4 * np.sin(20 * time_s + rng.uniform(0, 6))))
    return np.round(8000 * np.array(rows)).astype(np.int16)


def test_a_small_model_learns() -> None:
    """From chance, log 21 or 3.04 nats with 20 negatives, to clearly less."""
    config = PretrainingConfig(
        steps=80,
        batch=4,
        excerpt_samples=8000,
        negatives=20,
        horizons=3,
        rate=3e-3,
        reduced=False,
        architecture=SMALL,
    )
    history: list[tuple[float, float]] = []

    def progress(_name: str, done: float, loss: float) -> None:
        history.append((done, loss))

    model, facts = pretrain(chirps(8, 16_000), config, torch.device("cpu"), progress)
    assert [done for done, _ in history] == pytest.approx(np.arange(1, 81) / 80)
    first, last = (np.mean([loss for _, loss in part]) for part in (history[:4], history[-8:]))
    assert first > 0.9 * math.log(21)
    assert last < math.log(21) - 0.35
    assert facts["loss_nats"] == pytest.approx(np.mean([loss for _, loss in history[-50:]]))
    assert facts["accuracy"] > 2 / 21
    assert (facts["clips"], facts["steps"]) == (8, 80)
    assert not model.training


def test_pretraining_follows_the_seed() -> None:
    config = PretrainingConfig(
        steps=3, batch=2, excerpt_samples=6000, negatives=5, horizons=2, seed=4, reduced=False,
        architecture=SMALL,
    )  # fmt: skip
    cpu = torch.device("cpu")
    states = []
    for _ in range(2):
        model, _ = pretrain(chirps(3, 9000), config, cpu, lambda *_: None)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_excerpts_come_from_everywhere() -> None:
    """Start and row of an excerpt of a ramp can be read off its first sample."""
    waveforms = np.arange(40, dtype=np.int16)[None] + np.int16(1000) * np.arange(3)[:, None]
    config = PretrainingConfig(steps=1, batch=400, excerpt_samples=38)
    cut = pretraining.excerpts(waveforms.astype(np.int16), config, np.random.default_rng(0))
    first = np.round(cut[:, 0].numpy() * 32_768)
    assert set(first) == {1000 * row + start for row in range(3) for start in range(3)}
    assert cut.shape == (400, 38)
    np.testing.assert_allclose(np.diff(cut.numpy(), axis=1), 1 / 32_768, atol=1e-7)


def test_the_architecture_is_as_described() -> None:
    """1.1 million parameters, as the command's help says; wav2vec's strides and receptive field."""
    n_parameters = sum(p.numel() for p in Wav2Vec(ARCHITECTURE).parameters())
    assert n_parameters == pytest.approx(1.1e6, rel=0.05)
    assert ARCHITECTURE.hop_samples == 160
    assert ARCHITECTURE.receptive_samples == 465


def test_the_norm_is_the_same_in_training() -> None:
    """The operator for training equals the reductions for export, within rounding."""
    torch.manual_seed(3)
    norm = JointNorm(6)
    for parameter in norm.parameters():
        parameter.data.normal_()
    gradients = []
    features = 3 * torch.randn(2, 6, 40) + 1
    weights = torch.randn(2, 6, 40)
    outputs = []
    for training in (True, False):
        x = features.clone().requires_grad_()
        outputs.append(norm.train(training)(x))
        (outputs[-1] * weights).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_can_be_read(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = Wav2Vec(ARCHITECTURE).eval()
    path = tmp_path / "wav2vec.pt"
    save_wav2vec(path, model, {"seed": 2, "data_sha256": "ab"})
    assert [file.name for file in tmp_path.iterdir()] == ["wav2vec.pt"]
    again = read_wav2vec(path).build()
    assert again.architecture == ARCHITECTURE
    waveform = torch.randn(1, 6000) / 10
    with torch.inference_mode():
        for found, wanted in zip(again.eval()(waveform), model(waveform), strict=True):
            assert torch.equal(found, wanted)
