"""Clips: what the models train on, each made from a seed and its number alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.ndimage
import scipy.signal
import soxr
from numpy.typing import NDArray

from mosrt._arrays import Float32Array

from .degradations import DEGRADATIONS, coloured_noise, reverberated
from .resyntheses import RESYNTHESES
from .voices import SAMPLE_RATE_HZ, Voice

__all__ = ["CLIP_SAMPLES", "RUNGS", "Clip", "Pool", "make_clip", "make_ladder"]


CLIP_SAMPLES: Final = 80_000
RUNGS: Final = 4
_RECORDED_SHARE: Final = 0.6
_CLEAN_SHARE: Final = 0.35
_RESYNTHESIS_SHARE: Final = 0.33
_DEGRADATION_SHARE: Final = 0.22  # the rest gets two treatments
_ENGINE_SHARES: Final = {"flite": 0.3, "festival": 0.35, "espeak-ng": 0.35}
_COSTLY: Final = {"WORLD": 0.4, "Griffin-Lim": 0.8}
_STUDIO_SHARE: Final = 0.45
_TAKES: Final = 4
# Ladders are what teaches small differences, of voices in general: more voices, more codecs.
_LADDER_RECORDED_SHARE: Final = 0.35
_LADDER_WEIGHTS: Final = {**_COSTLY, "MP3": 4.0, "Opus": 4.0, "low-pass": 2.0, "Griffin-Lim": 2.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One clip and what is known of it.

    Attributes:
        waveform: (CLIP_SAMPLES,) float32 at 16 kHz.
        reference: The same speech before any treatment, aligned.
        voice: Name of the voice.
        anchor: Where listeners put the voice's engine.
        treatment: What was done to it: names joined by " + ", or "clean".
        severity: Of the treatment, 0 to 1.
    """

    waveform: Float32Array
    reference: Float32Array
    voice: str
    anchor: float
    treatment: str
    severity: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Utterances by voice, from which clips are cut.

    Attributes:
        voices: The voices.
        utterances: Of each voice, (samples,) int16 each.
    """

    voices: Sequence[Voice]
    utterances: Sequence[Sequence[NDArray[np.int16]]]

    def stretch(
        self, rng: np.random.Generator, n_samples: int, recorded_share: float = _RECORDED_SHARE
    ) -> tuple[Voice, Float32Array]:
        """A voice and `n_samples` of its speech: utterances in a row, with pauses."""
        index = self._choose(rng, recorded_share)
        parts: list[Float32Array] = []
        length = 0
        offset = -1
        while length < n_samples:
            utterances = self.utterances[index]
            stored = utterances[int(rng.integers(len(utterances)))]
            part: Float32Array = stored.astype(np.float32) / np.float32(32768)
            if offset < 0:
                offset = int(rng.integers(max(1, len(part) - SAMPLE_RATE_HZ)))
                part = part[offset:]
            pause = np.zeros(int(rng.uniform(0.05, 0.4) * SAMPLE_RATE_HZ), np.float32)
            if rng.random() < 0.7:  # recordings do not fall silent between sentences
                quiet = float(np.quantile(np.abs(part), 0.05)) + 1e-5
                pause += rng.normal(0, quiet, len(pause)).astype(np.float32)
            parts += [part, pause]
            length += len(part) + len(pause)
        return self.voices[index], np.concatenate(parts)[:n_samples]

    def _choose(self, rng: np.random.Generator, recorded_share: float) -> int:
        if rng.random() < recorded_share:
            engine = "recorded"
        else:
            engine = str(rng.choice(list(_ENGINE_SHARES), p=list(_ENGINE_SHARES.values())))
        chosen = [i for i, voice in enumerate(self.voices) if voice.engine == engine]
        return int(rng.choice(chosen or len(self.voices)))


def make_clip(pool: Pool, seed: int, number: int, taste: Callable[[Float32Array], float]) -> Clip:
    """Makes clip `number` of the data set `seed`.

    Args:
        pool: Speech.
        seed: Of the data set.
        number: Of the clip; the same seed, number and pool give the same clip.
        taste: A quality model. Almost half of all clips are made from the best of several takes by
            its judgement, since the top of the scale, where good synthesis lives, is otherwise
            rare.
    """
    rng = np.random.default_rng([seed, number])
    voice, speech = _spoken(pool, rng)
    draw = rng.random()
    severity = float(rng.beta(1.0, 1.6))
    studio = rng.random() < _STUDIO_SHARE
    if studio:
        takes = [_finish(_restored(speech, rng), rng) for _ in range(_TAKES)]
        speech = max(takes, key=taste)
    if draw < _CLEAN_SHARE:
        waveform = speech if studio else _finish(speech, rng)
        return _clip(waveform, speech, voice, "clean", 0.0)
    kinds: list[str] = []
    treated = speech
    tables = [RESYNTHESES, DEGRADATIONS]
    if draw < _CLEAN_SHARE + _RESYNTHESIS_SHARE:
        tables = [RESYNTHESES]
    elif draw < _CLEAN_SHARE + _RESYNTHESIS_SHARE + _DEGRADATION_SHARE:
        tables = [DEGRADATIONS]
    for table in tables:
        kind = _kind(list(table), rng, _COSTLY)
        treated = table[kind](treated, severity, rng)
        kinds.append(kind)
    if not studio and rng.random() < 0.5:
        treated = _finish(treated, rng)
    return _clip(treated, speech, voice, " + ".join(kinds), severity)


def make_ladder(
    pool: Pool, seed: int, number: int, taste: Callable[[Float32Array], float]
) -> list[Clip]:
    """Makes ladder `number` of the data set `seed`: a clean clip, then ever more of one treatment.

    Args:
        pool: Speech.
        seed: Of the data set.
        number: Of the ladder; the same seed, number and pool give the same ladder.
        taste: As for `make_clip`.

    Returns:
        RUNGS clips. Whatever is random about the treatment is the same on all rungs, so that they
        differ in severity alone.
    """
    rng = np.random.default_rng([seed, number, 2])
    voice, speech = _spoken(pool, rng, _LADDER_RECORDED_SHARE)
    if rng.random() < _STUDIO_SHARE:
        takes = [_finish(_restored(speech, rng), rng) for _ in range(_TAKES)]
        clean = max(takes, key=taste)
    else:
        clean = _finish(speech, rng)
    table = {**RESYNTHESES, **DEGRADATIONS}
    kind = _kind(list(table), rng, _LADDER_WEIGHTS)
    state = int(rng.integers(2**32))
    ladder = [_clip(clean, clean, voice, "clean", 0.0)]
    for step in range(RUNGS - 1):
        severity = (step + float(rng.random())) / (RUNGS - 1)
        treated = table[kind](clean, severity, np.random.default_rng(state))
        ladder.append(_clip(treated, clean, voice, kind, severity))
    return ladder


def _kind(names: list[str], rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    shares = np.array([weights.get(name, 1.0) for name in names])
    return str(rng.choice(names, p=shares / shares.sum()))


def _spoken(
    pool: Pool, rng: np.random.Generator, recorded_share: float = _RECORDED_SHARE
) -> tuple[Voice, Float32Array]:
    """Speech of a voice that is often another one: faster or slower, so higher or lower."""
    factor = float(np.exp(rng.normal(0, 0.12))) if rng.random() < 0.7 else 1.0
    voice, speech = pool.stretch(rng, int(CLIP_SAMPLES * factor) + 16, recorded_share)
    if factor != 1.0:
        speech = soxr.resample(speech, factor, 1.0)
    if rng.random() < 0.4:
        speech = _formants(speech, float(np.exp(rng.normal(0, 0.09))))
    return voice, np.resize(speech, CLIP_SAMPLES)


def _formants(speech: Float32Array, factor: float) -> Float32Array:
    """Stretches the spectral envelope, not the pitch, by `factor`: another vocal tract."""
    _, _, spectrum = scipy.signal.stft(speech, nperseg=512, noverlap=384)
    log_magnitude = np.log(np.abs(spectrum) + 1e-7)
    cepstrum = np.fft.irfft(log_magnitude, axis=0)
    cepstrum[26:-25] = 0  # 1.6 ms: shorter than any pitch period
    envelope = np.fft.rfft(cepstrum, axis=0).real
    bins = np.arange(len(envelope))
    low = np.clip(bins / factor, 0, len(bins) - 1)
    below = low.astype(int)
    above = np.minimum(below + 1, len(bins) - 1)
    part = (low - below)[:, None]
    moved = (1 - part) * envelope[below] + part * envelope[above]
    _, out = scipy.signal.istft(spectrum * np.exp(moved - envelope), nperseg=512, noverlap=384)
    return np.resize(out.astype(np.float32), len(speech))


def _restored(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Background taken out by spectral subtraction, rumble filtered off: a better microphone."""
    out = speech
    if rng.random() < 0.75:
        floor = float(10 ** (-rng.uniform(6, 30) / 20))
        _, _, spectrum = scipy.signal.stft(out, nperseg=512, noverlap=384)
        magnitude = np.abs(spectrum)
        background = 2 * np.quantile(magnitude, 0.1, axis=1, keepdims=True)
        gain = np.clip(1 - (background / np.maximum(magnitude, 1e-9)) ** 2, floor, 1)
        gain = scipy.ndimage.gaussian_filter(gain, 1)
        _, quiet = scipy.signal.istft(spectrum * gain, nperseg=512, noverlap=384)
        out = np.resize(quiet.astype(np.float32), len(speech))
    if rng.random() < 0.5:
        cutoff_hz = float(rng.uniform(50, 130))
        sections = scipy.signal.butter(2, cutoff_hz, "highpass", fs=SAMPLE_RATE_HZ, output="sos")
        out = scipy.signal.sosfilt(sections, out).astype(np.float32)
    return out


def _finish(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """What differs between studios, not qualities: tone, noise floor, gate, a small room."""
    out = speech
    if rng.random() < 0.5:
        tilt_db = float(rng.normal(0, 4))
        gains = 10 ** (np.linspace(-tilt_db / 2, tilt_db / 2, 9) / 20)
        gains = gains * 10 ** (rng.normal(0, 1.5, 9) / 20)
        taps = scipy.signal.firwin2(129, np.linspace(0, 1, 9), gains)
        out = scipy.signal.fftconvolve(out, taps, mode="same").astype(np.float32)
    if rng.random() < 0.25:
        out = reverberated(out, float(rng.uniform(0.08, 0.25)), float(rng.uniform(8, 60)), rng)
    if rng.random() < 0.3:
        cutoff_hz = float(rng.uniform(6000, 7900))
        sections = scipy.signal.butter(8, cutoff_hz, fs=SAMPLE_RATE_HZ, output="sos")
        out = scipy.signal.sosfilt(sections, out).astype(np.float32)
    if rng.random() < 0.35:
        out = _gated(out, rng)
    if rng.random() < 0.6:
        noise = coloured_noise(len(out), float(rng.uniform(0, 1.5)), rng)
        out = out + np.float32(out.std() * 10 ** (-rng.uniform(40, 80) / 20)) * noise
    return out


def _gated(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Pauses lowered by some dB, or to nothing."""
    window = 400
    level = np.sqrt(scipy.signal.fftconvolve(np.square(speech), np.ones(window) / window, "same")
                    .clip(1e-12))  # fmt: skip
    threshold = float(np.quantile(level, 0.95)) * 10 ** (-rng.uniform(25, 45) / 20)
    floor = 0.0 if rng.random() < 0.4 else 10 ** (-rng.uniform(6, 30) / 20)
    gate = np.where(level > threshold, 1.0, floor)
    gate = scipy.signal.fftconvolve(gate, np.hanning(322)[1:-1] / np.hanning(322).sum(), "same")
    return np.asarray(speech * gate, np.float32)


def _clip(waveform: Float32Array, reference: Float32Array, voice: Voice, treatment: str,
          severity: float) -> Clip:  # fmt: skip
    return Clip(
        waveform=np.ascontiguousarray(waveform, np.float32),
        reference=reference,
        voice=voice.name,
        anchor=voice.anchor,
        treatment=treatment,
        severity=severity,
    )
