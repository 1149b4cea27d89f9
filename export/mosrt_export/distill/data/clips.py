"""Makes the clips that the models train on, each from a seed and its number alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.ndimage
import scipy.signal
import soxr

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.recipe import Recipe

from .degradations import DEGRADATIONS, Degradation, coloured_noise, filtered, reverberated
from .resyntheses import RESYNTHESES
from .speech import SAMPLE_RATE_HZ, Speaker, SpeechError, read

__all__ = ["CLIP_SAMPLES", "RUNGS", "Clip", "Pool", "make_clip", "make_ladder"]

CLIP_SAMPLES: Final = 80_000
RUNGS: Final = 4
CLEAN_SHARE: Final = 0.35
_RESYNTHESIS_SHARE: Final = 0.33
_DEGRADATION_SHARE: Final = 0.22  # the other clips get a resynthesis and a degradation
_WEIGHTS: Final = {"WORLD": 0.4, "Griffin-Lim": 0.8}  # below 1 because they are slow
_STUDIO_SHARE: Final = 0.45
_PEAK: Final = np.float32(0.25)
_SILENCE: Final = 1e-3
_FEWEST_SAMPLES: Final = 8000
_MAX_RECORDINGS: Final = 200
_LADDER_WEIGHTS: Final = {**_WEIGHTS, "MP3": 4.0, "Opus": 4.0, "low-pass": 2.0, "Griffin-Lim": 2.0}


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip and how it was made.

    Attributes:
        waveform: (CLIP_SAMPLES,) float32 at 16 kHz.
        reference: The same speech before any treatment, aligned.
        speaker: Name of the speaker.
        treatment: Names of the treatments, joined by " + ", or "clean".
        severity: Severity of the treatment, 0 to 1.
    """

    waveform: Float32Array
    reference: Float32Array
    speaker: str
    treatment: str = "clean"
    severity: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """The speech that clips are made of, and the treatments.

    `shares` and `ladder_shares` (speakers,) sum to 1. Of `takes` takes the best is used.
    """

    speakers: Sequence[Speaker]
    shares: FloatArray
    ladder_shares: FloatArray
    resyntheses: Mapping[str, Degradation]
    degradations: Mapping[str, Degradation]
    takes: int

    @classmethod
    def of(cls, speakers: Sequence[Speaker], recipe: Recipe) -> Pool:
        """Returns speech in the shares, and with the treatments, that a recipe states."""
        sizes = Counter(recipe.group_of(speaker.name) for speaker in speakers)
        shares = np.array(
            [
                recipe.group(speaker.name).shares / sizes[recipe.group_of(speaker.name)]
                for speaker in speakers
            ]
        )
        shares /= shares.sum(axis=0)
        resyntheses, degradations = (
            {name: change for name, change in table.items() if name not in recipe.leave_out}
            for table in (RESYNTHESES, DEGRADATIONS)
        )
        return cls(speakers, shares[:, 0], shares[:, 1], resyntheses, degradations, recipe.takes)

    def speech(
        self, rng: np.random.Generator, n_samples: int, shares: FloatArray
    ) -> tuple[str, Float32Array]:
        """Returns a random speaker and `n_samples` of his or her recordings, joined with pauses.

        Raises SpeechError if most of the recordings are silent, short or unreadable.
        """
        speaker = self.speakers[int(rng.choice(len(self.speakers), p=shares))]
        parts: list[Float32Array] = []
        for _ in range(_MAX_RECORDINGS):
            file = speaker.files[int(rng.integers(len(speaker.files)))]
            at = 0.0 if parts else float(rng.random())
            try:
                part = read(file, n_samples / SAMPLE_RATE_HZ, at=at)
            except SpeechError:
                continue
            if len(part) < _FEWEST_SAMPLES or part.std() < _SILENCE:
                continue
            part *= _PEAK / np.abs(part).max()
            pause = np.zeros(int(rng.uniform(0.05, 0.4) * SAMPLE_RATE_HZ), np.float32)
            if rng.random() < 0.7:  # most recordings have noise between sentences
                quiet = float(np.quantile(np.abs(part), 0.05)) + 1e-5
                pause += rng.normal(0, quiet, len(pause)).astype(np.float32)
            parts += [part, pause]
            if sum(map(len, parts)) >= n_samples:
                return speaker.name, np.concatenate(parts)[:n_samples]
        raise SpeechError(
            f"{speaker.name}: most of {len(speaker.files)} recordings are silent, shorter than "
            "half a second or no audio; remove the speaker"
        )


def make_clip(pool: Pool, seed: int, number: int, rate: Callable[[Float32Array], float]) -> Clip:
    """Makes clip `number` of the data set with seed `seed`.

    Args:
        pool: The speech.
        seed: Seed of the data set.
        number: Number of the clip. The same seed, number and pool give the same clip.
        rate: A quality model, which takes a waveform (CLIP_SAMPLES,) at 16 kHz and chooses the
            best of several takes. Otherwise few clips would score as high as good synthetic speech.
    """
    rng = np.random.default_rng([seed, number])
    speaker, speech = _random_speech(pool, rng, pool.shares)
    draw = rng.random()
    severity = float(rng.beta(1.0, 1.6))
    studio = rng.random() < _STUDIO_SHARE
    if studio:
        speech = _best_take(speech, rng, pool.takes, rate)
    if draw < CLEAN_SHARE:
        waveform = speech if studio else vary_studio(speech, rng)
        return Clip(waveform, speech, speaker)
    tables = [pool.resyntheses, pool.degradations]
    if draw < CLEAN_SHARE + _RESYNTHESIS_SHARE:
        tables = [pool.resyntheses]
    elif draw < CLEAN_SHARE + _RESYNTHESIS_SHARE + _DEGRADATION_SHARE:
        tables = [pool.degradations]
    kinds: list[str] = []
    treated = speech
    for table in tables:
        kinds.append(_choose_kind(list(table), rng, _WEIGHTS))
        treated = table[kinds[-1]](treated, severity, rng)
    if not studio and rng.random() < 0.5:
        treated = vary_studio(treated, rng)
    return Clip(treated, speech, speaker, " + ".join(kinds), severity)


def make_ladder(
    pool: Pool, seed: int, number: int, rate: Callable[[Float32Array], float]
) -> list[Clip]:
    """Makes ladder `number` of the data set with seed `seed`, as `make_clip` makes a clip.

    It is RUNGS clips of the same speech: a clean one, then ever more severe ones of one treatment.
    The treatment uses the same random numbers for all, so that only the severity differs.
    """
    rng = np.random.default_rng([seed, number, 2])
    speaker, speech = _random_speech(pool, rng, pool.ladder_shares)
    if rng.random() < _STUDIO_SHARE:
        clean = _best_take(speech, rng, pool.takes, rate)
    else:
        clean = vary_studio(speech, rng)
    table = {**pool.resyntheses, **pool.degradations}
    kind = _choose_kind(list(table), rng, _LADDER_WEIGHTS)
    state = int(rng.integers(2**32))
    ladder = [Clip(clean, clean, speaker)]
    for step in range(RUNGS - 1):
        severity = (step + float(rng.random())) / (RUNGS - 1)
        treated = table[kind](clean, severity, np.random.default_rng(state))
        ladder.append(Clip(treated, clean, speaker, kind, severity))
    return ladder


def _choose_kind(names: list[str], rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    shares = np.array([weights.get(name, 1.0) for name in names])
    return str(rng.choice(names, p=shares / shares.sum()))


def _random_speech(
    pool: Pool, rng: np.random.Generator, shares: FloatArray
) -> tuple[str, Float32Array]:
    """Returns a speaker and CLIP_SAMPLES of speech, often with another pitch or formants."""
    factor = float(np.exp(rng.normal(0, 0.12))) if rng.random() < 0.7 else 1.0
    speaker, speech = pool.speech(rng, int(CLIP_SAMPLES * factor) + 16, shares)
    if factor != 1.0:
        speech = soxr.resample(speech, factor, 1.0)
    if rng.random() < 0.4:
        speech = shift_formants(speech, float(np.exp(rng.normal(0, 0.09))))
    return speaker, np.resize(speech, CLIP_SAMPLES)


def shift_formants(speech: Float32Array, factor: float) -> Float32Array:
    """Scales the frequencies of the spectral envelope by `factor` and keeps the pitch."""
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
    shifted = (1 - part) * envelope[below] + part * envelope[above]
    _, out = scipy.signal.istft(spectrum * np.exp(shifted - envelope), nperseg=512, noverlap=384)
    return np.resize(out.astype(np.float32), len(speech))


def _best_take(
    speech: Float32Array, rng: np.random.Generator, takes: int,
    rate: Callable[[Float32Array], float],
) -> Float32Array:  # fmt: skip
    """Returns the highest scored of several restored and varied versions of the same speech."""
    versions = [vary_studio(restore(speech, rng), rng) for _ in range(takes)]
    return versions[0] if takes == 1 else max(versions, key=rate)


def restore(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Reduces background noise by spectral subtraction, and rumble by a high-pass filter."""
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
        out = filtered(out, 2, float(rng.uniform(50, 130)), "highpass")
    return out


def vary_studio(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Varies what differs between good studios: tone, room, bandwidth, noise gate, noise floor."""
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
        out = filtered(out, 8, float(rng.uniform(6000, 7900)))
    if rng.random() < 0.35:
        out = gate_pauses(out, rng)
    if rng.random() < 0.6:
        noise = coloured_noise(len(out), float(rng.uniform(0, 1.5)), rng)
        out = out + np.float32(out.std() * 10 ** (-rng.uniform(40, 80) / 20)) * noise
    return out


def gate_pauses(speech: Float32Array, rng: np.random.Generator) -> Float32Array:
    """Attenuates pauses by a random number of dB, or mutes them."""
    window = 400
    level = np.sqrt(scipy.signal.fftconvolve(np.square(speech), np.ones(window) / window, "same")
                    .clip(1e-12))  # fmt: skip
    threshold = float(np.quantile(level, 0.95)) * 10 ** (-rng.uniform(25, 45) / 20)
    floor = 0.0 if rng.random() < 0.4 else 10 ** (-rng.uniform(6, 30) / 20)
    gate = np.where(level > threshold, 1.0, floor)
    gate = scipy.signal.fftconvolve(gate, np.hanning(322)[1:-1] / np.hanning(322).sum(), "same")
    return np.asarray(speech * gate, np.float32)
