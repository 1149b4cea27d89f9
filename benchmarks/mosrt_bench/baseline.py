"""The baseline: UTMOSv2's front end in librosa and its model in eager torch, as published code has.

Needs the extras `bench` and `export`.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import numpy.typing as npt
import torch

from mosrt.crops import CropPlan
from mosrt.manifest import MelSpec, SslSpec
from mosrt_export.checkpoint import load_strictly, read_checkpoint
from mosrt_export.config import ModelConfig
from mosrt_export.fusion import build

__all__ = ["TorchBaseline", "librosa_images"]

Float32Array = npt.NDArray[np.float32]


def librosa_images(
    crop: Float32Array, spec: MelSpec, sample_rate_hz: int, *, channels: int = 1
) -> Float32Array:
    """Images (windows, height, width) of a crop: librosa, and torch's antialiased resize.

    Args:
        crop: Samples (crop_samples,).
        spec: Geometry.
        sample_rate_hz: Rate of the crop.
        channels: Equal channels that are resized; the published code copies each image to 3.
    """
    images = []
    for window in spec.windows:
        power = librosa.feature.melspectrogram(
            y=crop,
            sr=sample_rate_hz,
            n_fft=spec.n_fft,
            hop_length=spec.hop_length,
            win_length=window,
            n_mels=spec.n_mels,
            fmin=spec.f_min_hz,
            fmax=spec.f_max_hz,
        )
        level_db = librosa.power_to_db(power, ref=np.max, top_db=spec.floor_db)
        image = (level_db + spec.floor_db) / spec.floor_db
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(np.stack([image] * channels))[None],
            size=(spec.image_height, spec.image_width),
            mode="bilinear",
            antialias=True,
        )
        images.append(resized[0, 0].numpy())
    return np.stack(images).astype(np.float32)


class TorchBaseline:
    """Scores a clip as the published code does, but for the random draws.

    Args:
        checkpoint: A fusion checkpoint.
        threads: Threads for torch.
    """

    def __init__(self, checkpoint: Path, ssl: SslSpec, mel: MelSpec, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._ssl = ssl
        self._mel = mel
        loaded = read_checkpoint(checkpoint)
        self._model = build("fusion", ModelConfig(), loaded.n_domains)
        load_strictly(self._model, loaded)
        self._n_domains = loaded.n_domains

    def score(
        self, waveform: Float32Array, sample_rate_hz: int, plan: CropPlan, domain: int
    ) -> float:
        """MOS of a clip (samples,) that is longer than a crop, the mean over the plan's views."""
        scores = []
        for view in range(plan.n_views):
            crop = waveform[plan.ssl_starts[view] :][: self._ssl.crop_samples]
            crop = (crop - crop.mean()) / np.sqrt(crop.var() + self._ssl.epsilon)
            images = np.concatenate(
                [
                    librosa_images(
                        waveform[start : start + self._mel.crop_samples],
                        self._mel,
                        sample_rate_hz,
                        channels=3,
                    )
                    for start in plan.spec_starts[view]
                ]
            )
            one_hot = torch.zeros(1, self._n_domains)
            one_hot[0, domain] = 1
            with torch.inference_mode():
                inputs = {
                    "waveform": torch.from_numpy(crop)[None],
                    "images": torch.from_numpy(images)[None],
                }
                scores.append(float(self._model(inputs, one_hot)))
        return float(np.mean(scores))
