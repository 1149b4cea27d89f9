"""Lessons: damaged speech, what `nano` says of it, and the inputs that UTMOSv2 sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

import mosrt
from mosrt.mel.front_end import MelFrontEnd
from mosrt_export.nano.data.degradations import DEGRADATIONS
from mosrt_export.nano.data.voices import SAMPLE_RATE_HZ, recorded, recorded_voices
from mosrt_export.utmosv2.config import SpectrogramConfig
from mosrt_studies.accuracy.heldout import levelled

__all__ = ["Lessons", "make_lessons"]

Float32Array = npt.NDArray[np.float32]

_LESSON_SAMPLES: Final = 4 * SAMPLE_RATE_HZ
_CLEAN_SHARE: Final = 0.25
_KINDS: Final = tuple(kind for kind in DEGRADATIONS if kind != "codec2")  # needs a program


@dataclass(frozen=True, slots=True)
class Lessons:
    """Clips with targets.

    Attributes:
        waveforms: (clips, samples) float32 at 16 kHz.
        targets: (clips,) float32, MOS that `nano` gives by default.
        front_end: Makes mel images.
        spec: Of the images.
    """

    waveforms: Float32Array
    targets: Float32Array
    front_end: MelFrontEnd
    spec: SpectrogramConfig

    def images(self, clip: int, rng: np.random.Generator) -> Float32Array:
        """Images of one crop at a random place, (windows, mels, columns) float32 in [0, 1]."""
        size = self.spec.crop_samples
        start = int(rng.integers(self.waveforms.shape[1] - size))
        made = self.front_end.images(self.waveforms[clip, start : start + size])
        return np.stack([made[window] for window in self.spec.windows])

    def view(self, clip: int, rng: np.random.Generator) -> Float32Array:
        """All images of one view, (crops * windows, mels, columns), crop by crop."""
        return np.concatenate([self.images(clip, rng) for _ in range(self.spec.n_crops)])

    def crop(self, clip: int, n_samples: int, rng: np.random.Generator) -> Float32Array:
        """A piece at a random place, (n_samples,), of zero mean and unit variance."""
        start = int(rng.integers(self.waveforms.shape[1] - n_samples + 1))
        piece = self.waveforms[clip, start : start + n_samples]
        return np.asarray((piece - piece.mean()) / np.sqrt(piece.var() + 1e-7), np.float32)


def make_lessons(
    speech: Path, count: int, spec: SpectrogramConfig, seed: int, *, held_out: bool
) -> Lessons:
    """Cuts clips of 4 s from recorded voices, damages three in four, and lets `nano` judge.

    Args:
        speech: A folder of recordings per voice.
        count: Clips.
        spec: Of the images.
        seed: Of cuts and damage.
        held_out: Whether to use the recordings that nano was not trained on, or the others.

    Raises:
        VoiceError: There are no recordings.
    """
    rng = np.random.default_rng(seed)
    voices = [
        [part for part in recorded(voice, held_out=held_out) if len(part) >= SAMPLE_RATE_HZ]
        for voice in recorded_voices(speech)
    ]
    waveforms = np.stack([_damaged(_cut(voices, rng), rng) for _ in range(count)])
    with mosrt.load("nano") as nano:
        scores = [nano.score(waveform, SAMPLE_RATE_HZ).mos for waveform in waveforms]
    return Lessons(
        waveforms, np.array(scores, np.float32), MelFrontEnd(spec.images, SAMPLE_RATE_HZ), spec
    )


def _cut(voices: Sequence[Sequence[Float32Array]], rng: np.random.Generator) -> Float32Array:
    """Speech of one voice (_LESSON_SAMPLES,): utterances one after the other."""
    utterances = voices[int(rng.integers(len(voices)))]
    parts: list[Float32Array] = []
    while sum(map(len, parts)) < _LESSON_SAMPLES:
        parts.append(utterances[int(rng.integers(len(utterances)))])
    return np.concatenate(parts)[:_LESSON_SAMPLES]


def _damaged(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    loud = levelled(speech)
    if rng.random() >= _CLEAN_SHARE:
        kind = _KINDS[int(rng.integers(len(_KINDS)))]
        loud = levelled(DEGRADATIONS[kind](loud, float(rng.beta(1.0, 1.3)), rng))
    return loud * np.float32(10 ** (rng.uniform(-10, 3) / 20))
