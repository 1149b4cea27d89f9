"""Synthetic speech-like clips for the parity check: the same samples on every machine."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLIP_RATE_HZ", "synthetic_clips"]

CLIP_RATE_HZ: Final = 16_000
# first three formants in Hz of the vowels a, i, u, e (Peterson & Barney, 1952, adult averages)
_VOWELS: Final = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
_BANDWIDTHS_HZ: Final = (90.0, 110.0, 170.0)
_SYLLABLE_S: Final = 0.22


def synthetic_clips() -> dict[str, NDArray[np.float32]]:
    """Clips by name, (samples,) float32 at 16 kHz: low and high voices, long, short, noisy, quiet.

    They sound like babble and not like speech; what matters is that mel spectrograms of them look
    like those of speech, so that the networks work where they were trained to.
    """
    return {
        "low voice, 5 s": _babble(5.0, pitch_hz=105.0, seed=1),
        "high voice, 3.5 s": _babble(3.5, pitch_hz=215.0, seed=2),
        "short, 0.8 s": _babble(0.8, pitch_hz=150.0, seed=3),
        "noisy, 4 s": _babble(4.0, pitch_hz=130.0, seed=4, noise=0.05),
        "quiet, 4 s": _babble(4.0, pitch_hz=170.0, seed=5) * np.float32(0.02),
    }


def _babble(
    duration_s: float, *, pitch_hz: float, seed: int, noise: float = 1e-3
) -> NDArray[np.float32]:
    """Vowels with formants, each after a burst of noise, with pauses between words."""
    rng = np.random.Generator(np.random.PCG64(seed))
    n_samples = round(duration_s * CLIP_RATE_HZ)
    clip = np.zeros(n_samples)
    length = round(_SYLLABLE_S * CLIP_RATE_HZ)
    for start in range(0, n_samples, length):
        n = min(length, n_samples - start)
        if rng.random() < 0.15 and start > 0:
            continue  # a pause
        vowel = _VOWELS[int(rng.integers(len(_VOWELS)))]
        pitch = pitch_hz * rng.uniform(0.9, 1.15)
        clip[start : start + n] = _syllable(length, pitch, vowel, rng)[:n]
    clip *= 0.5 / np.abs(clip).max()
    clip += noise * rng.standard_normal(n_samples)
    return clip.astype(np.float32)


def _syllable(
    length: int, pitch_hz: float, formants_hz: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Harmonics of a falling pitch, each as strong as the formants make it, after a burst."""
    time_s = np.arange(length) / CLIP_RATE_HZ
    pitch = pitch_hz * (1.0 - 0.15 * time_s / _SYLLABLE_S)
    phase = 2.0 * np.pi * np.cumsum(pitch) / CLIP_RATE_HZ
    voiced = np.zeros(length)
    for harmonic in range(1, int(7500.0 / pitch_hz) + 1):
        frequency_hz = harmonic * pitch_hz
        gain = sum(
            1.0 / (1.0 + ((frequency_hz - formant) / width) ** 2)
            for formant, width in zip(formants_hz, _BANDWIDTHS_HZ, strict=True)
        )
        # the glottal source falls by about 12 dB per octave, lip radiation gives 6 back
        voiced += (gain + 0.002) / harmonic * np.sin(harmonic * phase + harmonic)
    envelope = np.sin(np.pi * np.linspace(0.0, 1.0, length)) ** 0.5
    burst = np.zeros(length)
    n_burst = length // 5
    white = rng.standard_normal(n_burst)
    burst[:n_burst] = np.diff(white, prepend=0.0) * np.hanning(n_burst) * 0.05
    mixed: NDArray[np.float64] = voiced * envelope + burst
    return mixed
