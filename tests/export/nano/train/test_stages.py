"""Tests the order of the stages, the ablation, and when the waveform branch is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.train.pretraining import ARCHITECTURE
from mosrt_export.nano.train.stages import Clips, Outcome, Plan, ablation_table, train_nano
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

N = 180  # of which 40 in ladders; four clips to validate on
CPU = torch.device("cpu")
NONE = np.empty((0, 4), np.int64)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Short images whose level follows the labels, and short waveforms of noise."""
    rng = np.random.default_rng(0)
    quality = rng.uniform(0, 1, N)
    labels = (1 + 4 * quality[:, None] + rng.normal(0, 0.1, (N, len(LABELS)))).astype(np.float32)
    labels[: N // 2, 2] = np.nan
    shape = (N, len(MEL.windows), MEL.image_height, 24)
    images = (0.5 * rng.random(shape) + 0.5 * quality[:, None, None, None]).astype(np.float16)
    waveforms = (rng.normal(0, 900, (N, 2400)) + 500).astype(np.int16)
    # a batch of 24 has three ladders and twelve of the other clips
    ladders = np.arange(N - 40, N).reshape(10, 4)
    return Clips(waveforms, [images[i : i + 50] for i in range(0, N, 50)], labels, ladders)


def quiet(_stage: str, _done: float, _loss: float) -> None:
    """Ignores the progress."""


def trained(clips: Clips, resume: Path, *, gain: float, seed: int = 3) -> Outcome:
    torch.manual_seed(99)
    encoder = Wav2Vec(ARCHITECTURE)
    plan = Plan(
        mel_epochs=1.0, tuning_epochs=0.2, tuning_ladders=3, head_epochs=2.0, joint_epochs=0.2,
        batch=24, seed=seed, reduced=False, gain=gain,
    )  # fmt: skip
    return train_nano(clips, encoder, plan, CPU, quiet, resume)


def test_images_are_found_across_files(clips: Clips) -> None:
    chosen = np.array([0, 49, 50, 99, 100, 139])
    whole = np.concatenate(clips.images).astype(np.float32)
    batch = clips.image_batch(chosen, CPU, reduced=False)
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch.numpy(), whole[chosen])
    # bfloat16 keeps eight bits
    coarse = clips.image_batch(chosen, CPU, reduced=True)
    assert coarse.dtype == torch.bfloat16
    np.testing.assert_allclose(coarse.float().numpy(), whole[chosen], rtol=2**-8)


def test_waveforms_are_normalised(clips: Clips) -> None:
    chosen = np.array([3, 77])
    batch = clips.waveform_batch(chosen, CPU).numpy()
    rows = clips.waveforms[chosen].astype(np.float64)
    wanted = (rows - rows.mean(axis=1, keepdims=True)) / rows.std(axis=1, keepdims=True)
    np.testing.assert_allclose(batch, wanted, atol=1e-5)
    silent = Clips(np.full((1, 100), 7, np.int16), [], np.zeros((1, 4), np.float32), NONE)
    assert not silent.waveform_batch(np.array([0]), CPU).any()


def test_the_last_clips_validate(clips: Clips) -> None:
    chosen, held = clips.split()
    assert [*chosen, *held] == list(range(N - 40))
    assert len(held) == int(0.03 * (N - 40))


def test_rare_labels_are_sampled_more_often() -> None:
    """Weights are 1 / √(number of clips with such a label)."""
    labels = np.full((200, len(LABELS)), 3.0, np.float32)
    labels[:8, 0] = 1.0
    labels[-2:, 0] = 4.5
    weights = Clips(np.zeros((200, 1), np.int16), [], labels, NONE).sampling_weights()
    expected = np.repeat(1 / np.sqrt([8.0, 190.0, 2.0]), [8, 190, 2])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_spectrogram_branch_alone(clips: Clips, tmp_path: Path) -> None:
    """The same plan on the same labels continues from the saved branch."""
    seen: list[tuple[str, float]] = []

    def progress(stage: str, done: float, _loss: float) -> None:
        seen.append((stage, done))

    plan = Plan(mel_epochs=1.0, tuning_epochs=0.5, tuning_ladders=3, batch=24, reduced=False)
    first, again = (
        train_nano(clips, None, plan, CPU, progress, tmp_path / "kept") for _ in range(2)
    )
    assert [stage for stage, done in seen if done == 1.0] == ["mel", "mel, tuned"]
    state, kept = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in state.items())
    assert first.ablation == again.ablation
    labels = clips.labels.copy()
    labels[0, 0] += 0.25
    relabelled = dataclasses.replace(clips, labels=labels)
    train_nano(relabelled, None, plan, CPU, progress, tmp_path / "kept")
    assert [done for _, done in seen].count(1.0) == 4
    other = dataclasses.replace(plan, mel_epochs=0.5)
    train_nano(relabelled, None, other, CPU, progress, tmp_path / "kept")
    assert [stage for stage, done in seen if done == 1.0][4:] == ["mel", "mel, tuned"]
    assert first.model.kind == "spec"
    assert not first.model.training
    assert list(first.ablation) == ["mel", "mel, tuned"]
    assert set(first.ablation["mel"]) == set(LABELS)
    chosen, _ = clips.split()
    np.testing.assert_allclose(first.standard.mean, np.nanmean(clips.labels[chosen], axis=0))


def test_a_branch_that_adds_nothing_is_dropped(clips: Clips, tmp_path: Path) -> None:
    """No branch can add more than 2 in correlation; the ablation still has all rows."""
    outcome = trained(clips, tmp_path / "kept", gain=2.1)
    assert outcome.model.kind == "spec"
    assert list(outcome.ablation) == ["mel", "mel, tuned", "ssl", "mel, new head", "fusion"]


def test_a_branch_that_earns_its_cost_is_kept_and_the_seed_decides(
    clips: Clips, tmp_path: Path
) -> None:
    first, same, other = (
        trained(clips, tmp_path / str(i), gain=-2.1, seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    assert first.model.kind == "fusion"
    assert list(first.ablation) == [
        "mel",
        "mel, tuned",
        "ssl",
        "mel, new head",
        "fusion",
        "all together",
    ]
    assert first.ablation == same.ablation
    states = [outcome.model.state_dict() for outcome in (first, same, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["head.shared.weight"], states[2]["head.shared.weight"])
    _heading, _line, *rows = ablation_table(first.ablation).splitlines()
    for text, (network, row) in zip(rows, first.ablation.items(), strict=True):
        assert text.startswith(f"| {network} |")
        for pearson, spearman in row.values():
            assert f"{pearson:.3f} / {spearman:.3f}" in text
