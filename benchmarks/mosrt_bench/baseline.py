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
from mosrt.front_end_spec import MelSpec, SslSpec
from mosrt_export.checkpoint import load_strictly, read_checkpoint
from mosrt_export.config import ModelConfig
from mosrt_export.fusion import build

__all__ = ["TorchBaseline", "librosa_image", "torch_resize"]

Float32Array = npt.NDArray[np.float32]


def librosa_image(
    crop: Float32Array, window: int, spec: MelSpec, sample_rate_hz: int
) -> Float32Array:
    """Normalised dB spectrogram (n_mels, frames) of a crop (samples,), before the resize."""
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
    return np.asarray((level_db + spec.floor_db) / spec.floor_db, np.float32)


def torch_resize(image: Float32Array, spec: MelSpec, *, channels: int) -> Float32Array:
    """Antialiased bilinear resize of an image copied to `channels`, (channels, height, width)."""
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack([image] * channels))[None],
        size=(spec.image_height, spec.image_width),
        mode="bilinear",
        antialias=True,
    )
    return np.asarray(resized[0])


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
            one_hot = torch.zeros(1, self._n_domains)
            one_hot[0, domain] = 1
            with torch.inference_mode():
                inputs = {
                    "waveform": torch.from_numpy(crop)[None],
                    "images": torch.from_numpy(self._images(waveform, sample_rate_hz, plan, view)),
                }
                scores.append(float(self._model(inputs, one_hot)))
        return float(np.mean(scores))

    def _images(
        self, waveform: Float32Array, sample_rate_hz: int, plan: CropPlan, view: int
    ) -> Float32Array:
        """The images of one view, (1, crops * windows, height, width), mixed if the plan mixes."""
        spec = self._mel

        def image(start: int, window: int) -> Float32Array:
            crop = waveform[start : start + spec.crop_samples]
            return librosa_image(crop, window, spec, sample_rate_hz)

        images = []
        for crop, start in enumerate(plan.spec_starts[view]):
            for i, window in enumerate(spec.windows):
                drawn = image(start, window)
                if plan.mix_starts is not None and plan.mix_lambdas is not None:
                    weight = np.float32(plan.mix_lambdas[view, crop, i])
                    other = image(plan.mix_starts[view, crop, i], window)
                    drawn = weight * drawn + (1 - weight) * other
                # The published code resizes three equal channels.
                images.append(torch_resize(drawn, spec, channels=3)[0])
        return np.stack(images)[None]
