"""What the tests of the recipe share: speech, measures of damage, voices and random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile as sf
import torch
from numpy.typing import NDArray

from mosrt_export.nano.data.clips import Pool
from mosrt_export.nano.data.dataset import LABELS
from mosrt_export.nano.data.voices import Voice
from mosrt_export.nano.train.model import Nano
from mosrt_export.nano.train.training import Standardisation

Float32Array = NDArray[np.float32]

RATE_HZ = 16_000
SPEECH = Path(__file__).parents[1] / "data" / "flite_slt_16k_mono.wav"


def speech(seconds: float) -> Float32Array:
    """The beginning of a spoken sentence, (samples,) at 16 kHz."""
    samples, rate_hz = sf.read(SPEECH, dtype="float32")
    assert rate_hz == RATE_HZ
    return np.ascontiguousarray(samples[: int(seconds * RATE_HZ)], np.float32)


def waveform_error_db(clean: Float32Array, other: Float32Array) -> float:
    """Energy of what is not the clean speech, relative to the speech at its best gain.

    In dB, and never below -100.
    """
    a, b = clean.astype(np.float64), other.astype(np.float64)
    target = (a @ b) / (a @ a) * a
    return float(10 * np.log10(np.sum((b - target) ** 2) / np.sum(target**2) + 1e-10))


def spectral_error_db(clean: Float32Array, other: Float32Array) -> float:
    """RMS difference in dB of the loudest 60 dB of two spectrograms of equal mean level."""
    levels = []
    for samples in (clean, other):
        _, _, spectrum = scipy.signal.stft(samples.astype(np.float64), nperseg=400, noverlap=240)
        power = np.abs(spectrum) ** 2
        levels.append(10 * np.log10(np.maximum(power / power.mean(), 1e-5)))
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))


def lag(clean: Float32Array, other: Float32Array) -> int:
    """Samples by which `other` comes late, by their correlation."""
    correlation = scipy.signal.correlate(other.astype(np.float64), clean.astype(np.float64))
    return int(np.argmax(correlation)) - (len(clean) - 1)


def voice(name: str, engine: Any = "flite", **changes: Any) -> Voice:
    """A voice of that name."""
    options = {"language": "en", "selector": name, "anchor": 3.0, **changes}
    return Voice(name=name, engine=engine, **options)


def small_pool() -> Pool:
    """A recorded voice and one of each engine, who all say parts of the same sentence."""
    said = np.round(speech(4.5) * 32767).astype(np.int16)
    voices = [
        voice("recorded someone", "recorded", language="", anchor=4.6),
        voice("flite slt", "flite", anchor=3.2),
        voice("festival kal_diphone", "festival", anchor=2.4),
        voice("espeak-ng en-us", "espeak-ng", anchor=1.6),
    ]
    return Pool(voices, [[said[start : start + 48_000]] for start in (0, 4000, 8000, 12_000)])


def random_nano(seed: int = 0) -> Nano:
    """A model with random weights whose batch norms have seen something."""
    torch.manual_seed(seed)
    model = Nano()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.1)
    return model.eval().requires_grad_(False)


STANDARD = Standardisation(
    np.array([2.6, 3.4, 3.9, 3.1], np.float32), np.array([0.7, 0.4, 1.1, 0.9], np.float32)
)


def provenance() -> dict[str, Any]:
    """What `train` writes beside the weights."""
    row = {name: [0.91, 0.87] for name in LABELS}
    return {
        "seed": 11,
        "clips": 30_000,
        "hours": 41.7,
        "data_sha256": "ab" * 32,
        "epochs": 10.0,
        "ablation": {"mel": row, "mel, tuned": row},
    }
