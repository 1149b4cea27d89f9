"""Tests the stages, their resumption and the table of correlations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.images import MEL
from mosrt_export.nano.train.stages import Clips, Plan, ablation_table, train_nano

N = 180  # of which 40 in ladders; four clips to validate on
CPU = torch.device("cpu")
NONE = np.empty((0, 4), np.int64)


@pytest.fixture(scope="module")
def clips() -> Clips:
    """Short images whose level follows the labels."""
    rng = np.random.default_rng(0)
    quality = rng.uniform(0, 1, N)
    labels = (1 + 4 * quality[:, None] + rng.normal(0, 0.1, (N, len(LABELS)))).astype(np.float32)
    labels[: N // 2, 2] = np.nan
    shape = (N, len(MEL.windows), MEL.image_height, 24)
    images = (0.5 * rng.random(shape) + 0.5 * quality[:, None, None, None]).astype(np.float16)
    # a batch of 24 has three ladders and twelve of the other clips
    ladders = np.arange(N - 40, N).reshape(10, 4)
    return Clips([images[i : i + 50] for i in range(0, N, 50)], labels, ladders)


def quiet(_stage: str, _done: float, _loss: float) -> None:
    """Ignores the progress."""


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


def test_the_last_clips_validate(clips: Clips) -> None:
    chosen, held = clips.split()
    assert [*chosen, *held] == list(range(N - 40))
    assert len(held) == int(0.03 * (N - 40))


def test_rare_labels_are_sampled_more_often() -> None:
    """Weights are 1 / √(number of clips with such a label)."""
    labels = np.full((200, len(LABELS)), 3.0, np.float32)
    labels[:8, 0] = 1.0
    labels[-2:, 0] = 4.5
    weights = Clips([], labels, NONE).sampling_weights()
    expected = np.repeat(1 / np.sqrt([8.0, 190.0, 2.0]), [8, 190, 2])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_stages_and_their_resumption(clips: Clips, tmp_path: Path) -> None:
    """The same plan on the same labels continues from the saved models."""
    seen: list[tuple[str, float]] = []

    def progress(stage: str, done: float, _loss: float) -> None:
        seen.append((stage, done))

    plan = Plan(epochs=1.0, tuning_epochs=0.5, tuning_ladders=3, batch=24, reduced=False)
    first, again = (train_nano(clips, plan, CPU, progress, tmp_path / "kept") for _ in range(2))
    assert [stage for stage, done in seen if done == 1.0] == ["mel", "mel, tuned"]
    state, kept = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(value, kept[key]) for key, value in state.items())
    assert first.ablation == again.ablation
    labels = clips.labels.copy()
    labels[0, 0] += 0.25
    relabelled = dataclasses.replace(clips, labels=labels)
    train_nano(relabelled, plan, CPU, progress, tmp_path / "kept")
    assert [done for _, done in seen].count(1.0) == 4
    other = dataclasses.replace(plan, epochs=0.5)
    train_nano(relabelled, other, CPU, progress, tmp_path / "kept")
    assert [stage for stage, done in seen if done == 1.0][4:] == ["mel", "mel, tuned"]
    assert not first.model.training
    assert list(first.ablation) == ["mel", "mel, tuned"]
    assert set(first.ablation["mel"]) == set(LABELS)
    chosen, _ = clips.split()
    np.testing.assert_allclose(first.standard.mean, np.nanmean(clips.labels[chosen], axis=0))


def test_the_seed_decides(clips: Clips, tmp_path: Path) -> None:
    plan = Plan(epochs=0.5, tuning_epochs=0.2, tuning_ladders=3, batch=24, reduced=False)
    first, same, other = (
        train_nano(clips, dataclasses.replace(plan, seed=seed), CPU, quiet, tmp_path / str(i))
        for i, seed in enumerate((3, 3, 4))
    )
    assert first.ablation == same.ablation
    states = [outcome.model.state_dict() for outcome in (first, same, other)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["head.shared.weight"], states[2]["head.shared.weight"])
    _heading, _line, *rows = ablation_table(first.ablation).splitlines()
    for text, (stage, row) in zip(rows, first.ablation.items(), strict=True):
        assert text.startswith(f"| {stage} |")
        for pearson, spearman in row.values():
            assert f"{pearson:.3f} / {spearman:.3f}" in text
