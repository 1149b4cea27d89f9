"""Images: what the networks train on is what the runtime draws."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest

from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.nano.data import images
from mosrt_export.nano.data.clips import CLIP_SAMPLES
from mosrt_export.nano.data.images import MEL, draw_images, image_paths
from tests.standins.nano import speech


@pytest.fixture
def waveforms() -> np.ndarray:
    said = np.resize(speech(4), CLIP_SAMPLES)
    noise = np.random.default_rng(0).normal(0, 0.05, CLIP_SAMPLES)
    return np.round(np.stack([said, noise]) * 32_767).astype(np.int16)


def test_images_are_drawn_once(tmp_path: Path, waveforms: np.ndarray) -> None:
    for chunk in range(2):
        np.savez(tmp_path / f"chunk-{chunk:05d}.npz", waveforms=waveforms[:, ::1] // (chunk + 1))
    np.savez(tmp_path / "ladders-00000.npz", waveforms=waveforms)
    images._draw(tmp_path / "chunk-00001.npz")
    names = ["images-00000.npy", "images-00001.npy", "images-ladders-00000.npy"]
    assert [path.name for path in image_paths(tmp_path)] == names
    drawn_before = (tmp_path / names[1]).stat().st_mtime_ns
    assert list(draw_images(tmp_path, 1)) == [2, 1, 1]
    assert all(path.exists() for path in image_paths(tmp_path))
    assert (tmp_path / names[1]).stat().st_mtime_ns == drawn_before
    assert list(draw_images(tmp_path, 1)) == [0]
    assert not list(tmp_path.glob(".*"))


def test_images_are_the_runtimes(tmp_path: Path, waveforms: np.ndarray) -> None:
    """Half precision of values up to 1: 2.5e-4, a fortieth of a dB."""
    np.savez(tmp_path / "chunk-00000.npz", waveforms=waveforms)
    images._draw(tmp_path / "chunk-00000.npz")
    stored = np.load(image_paths(tmp_path)[0])
    assert stored.dtype == np.float16
    assert stored.shape == (2, len(MEL.windows), MEL.image_height, MEL.image_width)
    assert stored.min() >= -1e-6  # float32 rounds the logarithm of the floor
    assert stored.max() <= 1
    front_end = MelFrontEnd(MEL, 16_000)
    for row, waveform in zip(stored, waveforms, strict=True):
        drawn = front_end.images(waveform.astype(np.float32) / 32_768)
        for image, window in zip(row, MEL.windows, strict=True):
            np.testing.assert_allclose(image.astype(np.float32), drawn[window], atol=3e-4)


@pytest.mark.parametrize("window", MEL.windows)
def test_an_image_is_librosas_mel_spectrogram(waveforms: np.ndarray, window: int) -> None:
    """In dB below the loudest, 100 dB as 0 to 1; float32 near the floor: 0.05 dB."""
    waveform = waveforms[0].astype(np.float32) / 32_768
    mel = librosa.feature.melspectrogram(
        y=waveform, sr=16_000, n_fft=MEL.n_fft, win_length=window, hop_length=MEL.hop_length,
        n_mels=MEL.n_mels, fmin=MEL.f_min_hz, fmax=MEL.f_max_hz, pad_mode="constant",
    )  # fmt: skip
    wanted = librosa.power_to_db(mel, ref=np.max, amin=1e-30, top_db=MEL.floor_db)
    found = MelFrontEnd(MEL, 16_000).images(waveform)[window] * MEL.floor_db - MEL.floor_db
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=0.05)
