"""Tests that training images are the runtime's, and random frequency responses on them."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.distill.data.clips import CLIP_SAMPLES
from mosrt_export.distill.data.images import MEL, images_of, vary_response
from tests.standins.nano import speech


@pytest.fixture
def waveforms() -> NDArray[np.int16]:
    said = np.resize(speech(4), CLIP_SAMPLES)
    noise = np.random.default_rng(0).normal(0, 0.05, CLIP_SAMPLES)
    return np.round(np.stack([said, noise]) * 32_767).astype(np.int16)


def test_images_are_those_of_the_runtime(waveforms: NDArray[np.int16]) -> None:
    """Within 2.5e-4, the rounding of half precision near 1."""
    stored = images_of(waveforms)
    assert stored.dtype == np.float16
    assert stored.shape == (2, len(MEL.windows), MEL.image_height, MEL.image_width)
    assert stored.min() >= -1e-6  # float32 rounds the logarithm of the floor
    assert stored.max() <= 1
    front_end = MelFrontEnd(MEL, 16_000)
    for row, waveform in zip(stored, waveforms, strict=True):
        wanted = front_end.images(waveform.astype(np.float32) / 32_768)
        for image, window in zip(row, MEL.windows, strict=True):
            np.testing.assert_allclose(image.astype(np.float32), wanted[window], atol=3e-4)


@pytest.mark.parametrize("window", MEL.windows)
def test_an_image_is_librosas_mel_spectrogram(waveforms: NDArray[np.int16], window: int) -> None:
    """Within 0.05 dB, the rounding of float32 near the floor."""
    waveform = waveforms[0].astype(np.float32) / 32_768
    mel = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=MEL.n_fft, win_length=window, hop_length=MEL.hop_length,
        n_mels=MEL.n_mels, fmin=MEL.f_min_hz, fmax=MEL.f_max_hz, pad_mode="constant",
    )  # fmt: skip
    wanted = librosa.power_to_db(mel, ref=np.max, amin=1e-30, top_db=MEL.floor_db)
    found = MelFrontEnd(MEL, 16_000).images(waveform)[window] * MEL.floor_db - MEL.floor_db
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=0.05)


SHAPE = (len(MEL.windows), MEL.image_height, 30)


def responses(images: torch.Tensor, varied: torch.Tensor) -> NDArray[np.float64]:
    """Returns the added responses in dB around their mean, (clips, mels)."""
    added = MEL.floor_db * (varied - images).double().numpy()
    assert np.ptp(added, axis=3).max() < 1e-3  # the same at all times
    by_window = added.mean(axis=3)
    by_window -= by_window.mean(axis=2, keepdims=True)
    np.testing.assert_allclose(by_window[:, 0], by_window[:, 1], atol=1e-3)
    return np.asarray(by_window[:, 0])


def test_clips_of_a_group_get_the_same_response() -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(0.6, 0.9, (40, *SHAPE)).astype(np.float32))
    images[:, :, 50, 3] = 1.0  # the maximum, of both windows
    groups = np.repeat(np.arange(20), 2)
    varied = vary_response(images, groups, np.random.default_rng(1))
    assert varied.shape == images.shape
    assert varied.dtype == torch.float32
    np.testing.assert_allclose(varied.amax(dim=(2, 3)), 1.0, atol=1e-6)
    found = responses(images, varied)
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
        varied = vary_response(images, np.array([0]), np.random.default_rng(seed))
        assert float(varied.min()) == 0.0
        assert float(varied.max()) == 1.0
        assert float(varied.median()) < 0.2
