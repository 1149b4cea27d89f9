"""The golden vectors of the reference implementation, and its front end re-done with librosa."""

from __future__ import annotations

from dataclasses import dataclass

import librosa
import numpy as np
import torch
from numpy.typing import NDArray

from tests.standins.utmosv2 import GOLDEN

CASES = ("plain_long", "mixup_long", "plain_short_tiled")
WINDOWS = (4096, 2048, 1024, 512)
SSL_SAMPLES, SPEC_SAMPLES = 48_000, 22_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One clip: inputs as the reference made them, and what it answered."""

    waveform: NDArray[np.float32]
    images: NDArray[np.float32]
    domain: NDArray[np.float32]
    ssl_features: NDArray[np.float32]
    spec_features: NDArray[np.float32]
    mos: float


def load_case(name: str) -> Case:
    """Reads a case and makes its inputs; checks them against the stored samples of the images."""
    with np.load(GOLDEN / "utmosv2" / f"{name}.npz") as stored:
        values = {key: stored[key] for key in stored.files}
    audio = values["waveform"].astype(np.float32) / 32768.0
    start = int(values["ssl_start"])
    crop = _tiled(audio, SSL_SAMPLES)[start : start + SSL_SAMPLES]
    crop = (crop - crop.mean()) / np.sqrt(crop.var() + 1e-7)
    tiled = _tiled(audio, SPEC_SAMPLES)
    images = []
    for c, start in enumerate(values["spec_starts"]):
        for w, window in enumerate(WINDOWS):
            image = _log_mel(tiled[start : start + SPEC_SAMPLES], window)
            if values["mix_starts"].size:
                other, weight = values["mix_starts"][c, w], values["mix_lambdas"][c, w]
                mixed = _log_mel(tiled[other : other + SPEC_SAMPLES], window)
                image = weight * image + (1 - weight) * mixed
            images.append(image.astype(np.float32))
    stack = np.stack(images)
    np.testing.assert_allclose(stack[:, ::7, ::9], values["melspec_sample"], atol=2e-4)
    resized = (
        torch.nn.functional.interpolate(
            torch.from_numpy(stack)[None], size=(512, 512), mode="bilinear", antialias=True
        )[0]
        .numpy()
        .astype(np.float32)
    )
    np.testing.assert_allclose(resized[:, ::37, ::37], values["resized_sample"], atol=2e-4)
    return Case(
        waveform=crop.astype(np.float32)[None],
        images=resized[None],
        domain=values["domain"].astype(np.float32)[None],
        ssl_features=values["ssl_features"][:-10],
        spec_features=values["spec_features"][:-10],
        mos=float(values["mos"]),
    )


def _tiled(audio: NDArray[np.float32], n_samples: int) -> NDArray[np.float32]:
    n = len(audio)
    return np.tile(audio, n_samples // n + 1) if n <= n_samples else audio


def _log_mel(crop: NDArray[np.float32], window: int) -> NDArray[np.float32]:
    """(512, 701) in [0, 1]; decibels below the crop's own maximum, floor at 80."""
    mel = librosa.feature.melspectrogram(
        y=crop, sr=16_000, n_fft=4096, hop_length=32, n_mels=512, win_length=window
    )
    image: NDArray[np.float32] = (librosa.power_to_db(mel, ref=np.max) + 80.0) / 80.0
    return image
