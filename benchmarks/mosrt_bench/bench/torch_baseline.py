"""The baseline: UTMOSv2's front end in librosa and its model in eager torch, as published code has.

Needs the extras `bench` and `export`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import librosa
import numpy as np
import numpy.typing as npt
import torch

from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropPlan
from mosrt.errors import BundleError
from mosrt_export.utmosv2.checkpoint import load_strictly, read_checkpoint
from mosrt_export.utmosv2.config import ModelConfig
from mosrt_export.utmosv2.fusion import Model, build

__all__ = [
    "SEED",
    "TorchBaseline",
    "librosa_image",
    "published_inputs",
    "torch_model",
    "torch_resize",
]

Float32Array = npt.NDArray[np.float32]

SEED: Final = 0
"""What weights are drawn from where there is no checkpoint."""


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


def published_inputs(
    waveform: Float32Array,
    sample_rate_hz: int,
    plan: CropPlan,
    view: int,
    *,
    ssl: SslSpec,
    mel: MelSpec,
) -> dict[str, Float32Array]:
    """The inputs of one view of a clip (samples,) longer than a crop, as librosa makes them.

    Returns:
        "waveform" (samples,), normalised, and "images" (crops * windows, height, width), mixed if
        the plan mixes.
    """
    crop = waveform[plan.ssl_starts[view] :][: ssl.crop_samples]
    crop = (crop - crop.mean()) / np.sqrt(crop.var() + ssl.epsilon)

    def image(start: int, window: int) -> Float32Array:
        return librosa_image(
            waveform[start : start + mel.crop_samples], window, mel, sample_rate_hz
        )

    images = []
    for i, start in enumerate(plan.spec_starts[view]):
        for j, window in enumerate(mel.windows):
            drawn = image(start, window)
            if plan.mix_starts is not None and plan.mix_lambdas is not None:
                weight = np.float32(plan.mix_lambdas[view, i, j])
                other = image(plan.mix_starts[view, i, j], window)
                drawn = weight * drawn + (1 - weight) * other
            # The published code resizes three equal channels.
            images.append(torch_resize(drawn, mel, channels=3)[0])
    return {"waveform": crop, "images": np.stack(images)}


def torch_model(config: ModelConfig, checkpoint: Path | None, n_domains: int) -> Model:
    """The published fusion module.

    Args:
        config: What it is built like.
        checkpoint: Its weights, or None for weights drawn from a seed, which are as fast and say
            nothing about speech.
        n_domains: How many data domains the drawn one knows.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
    """
    if checkpoint is not None:
        loaded = read_checkpoint(checkpoint)
        model = build("fusion", config, loaded.n_domains)
        load_strictly(model, loaded)
        return model
    generator = torch.manual_seed(SEED)
    model = build("fusion", config, n_domains)
    for parameter in model.parameters():
        if not parameter.any():
            # Zeros, as of the weights of the windows, would hide what they are multiplied with.
            parameter.normal_(0.0, 0.1, generator=generator)
    return model


class TorchBaseline:
    """Scores a clip as the published code does, but for the random draws.

    Args:
        checkpoint: A fusion checkpoint, or None for drawn weights.
        manifest: Of a fusion bundle like it.
        threads: Threads for torch.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        BundleError: The manifest is of no fusion model.
    """

    def __init__(self, checkpoint: Path | None, manifest: Manifest, *, threads: int) -> None:
        if manifest.ssl is None or manifest.mel is None or "config" not in manifest.provenance:
            raise BundleError(f"{manifest.name}: no fusion model made from a torch checkpoint")
        torch.set_num_threads(threads)
        self._ssl = manifest.ssl
        self._mel = manifest.mel
        self._n_domains = len(manifest.domains)
        self._domain = manifest.domains.index(manifest.default_domain)
        self._model = torch_model(
            ModelConfig.from_dict(manifest.provenance["config"]), checkpoint, self._n_domains
        )

    def score(self, waveform: Float32Array, sample_rate_hz: int, plan: CropPlan) -> float:
        """MOS of a clip (samples,) that is longer than a crop, the mean over the plan's views.

        It is that of the manifest's default domain.
        """
        scores = []
        one_hot = torch.zeros(1, self._n_domains)
        one_hot[0, self._domain] = 1
        for view in range(plan.n_views):
            feeds = published_inputs(
                waveform, sample_rate_hz, plan, view, ssl=self._ssl, mel=self._mel
            )
            with torch.inference_mode():
                inputs = {name: torch.from_numpy(value)[None] for name, value in feeds.items()}
                scores.append(float(self._model(inputs, one_hot)))
        return float(np.mean(scores))
