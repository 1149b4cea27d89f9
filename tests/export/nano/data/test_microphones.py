"""Microphones: a response added to images is one that a filter could have added to the sound."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt_export.nano.data.images import MEL, other_microphones

SHAPE = (len(MEL.windows), MEL.image_height, 30)


def responses(images: torch.Tensor, heard: torch.Tensor) -> NDArray[np.float64]:
    """What was added, in dB around its mean, (clips, mels); each window has its own loudest."""
    added = MEL.floor_db * (heard - images).double().numpy()
    assert np.ptp(added, axis=3).max() < 1e-3  # the same at all times
    by_window = added.mean(axis=3)
    by_window -= by_window.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(by_window[:, 0], by_window[:, 1], atol=1e-3)
    return np.asarray(by_window[:, 0])


def test_the_same_speech_has_the_same_microphone() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(0.6, 0.9, (40, *SHAPE)).astype(np.float32))
    images[:, :, 50, 3] = 1.0  # the loudest, of both windows
    speeches = np.repeat(np.arange(20), 2)
    heard = other_microphones(images, speeches, np.random.default_rng(1))
    assert heard.shape == images.shape
    assert heard.dtype == torch.float32
    np.testing.assert_allclose(heard.amax(dim=(2, 3)), 1.0, atol=1e-6)
    found = responses(images, heard)
    np.testing.assert_allclose(found[::2], found[1::2], atol=1e-3)
    unchanged = np.abs(found[::2]).max(axis=1) < 1e-3
    assert 2 <= unchanged.sum() <= 10  # 30 % of 20, within two and a half deviations
    assert 1.0 < found[::2][~unchanged].std() < 4.0
    # smooth: 120 mels have seven knots
    assert np.abs(np.diff(found, axis=1)).max() < 1.0


def test_silence_stays_silent() -> None:
    images = torch.zeros((1, *SHAPE))
    images[:, :, 60, 10] = 1.0
    for seed in range(10):
        heard = other_microphones(images, np.array([0]), np.random.default_rng(seed))
        assert float(heard.min()) == 0.0
        assert float(heard.max()) == 1.0
        assert float(heard.median()) < 0.2
