"""Makes the clips that the models train on, each from a seed and its number alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.ndimage
import soxr

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.recipe import Recipe

from .artefacts.conversions import shifted_formants
from .artefacts.spectra import istft, stft
from .degradations import DEGRADATIONS, Degradation
from .resyntheses import RESYNTHESES
from .speech import SAMPLE_RATE_HZ, Speaker, SpeechError, read
from .studios import restore, vary_studio

__all__ = ["CLIP_SAMPLES", "RUNGS", "Clip", "Pool", "make_clip", "make_ladder"]

CLIP_SAMPLES: Final = 80_000
RUNGS: Final = 4
CLEAN_SHARE: Final = 0.35
_RESYNTHESIS_SHARE: Final = 0.33
_DEGRADATION_SHARE: Final = 0.22  # the other clips get a resynthesis and a degradation
_WEIGHTS: Final = {"WORLD": 0.4, "codec2": 0.5}  # below 1 because they are slow
_STUDIO_SHARE: Final = 0.45
_PEAK: Final = np.float32(0.25)
_SILENCE: Final = 1e-3
SILENT_SHARE: Final = 0.2  # of the clips, which are silent for up to half of their length
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
        return _finished([Clip(waveform, speech, speaker)], rng)[0]
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
    return _finished([Clip(treated, speech, speaker, " + ".join(kinds), severity)], rng)[0]


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
    return _finished(ladder, rng)


def _finished(clips: list[Clip], rng: np.random.Generator) -> list[Clip]:
    """Gives clips of the same speech, all alike, what should not change a score.

    Half of the time that is the other polarity; and sometimes it is silence, digital or with room
    noise, before, after or within the speech. The reference changes in the same way.
    """
    sign = np.float32(rng.choice([-1, 1]))
    silences = _random_silences(clips[0].reference, rng) if rng.random() < SILENT_SHARE else []
    return [
        dataclasses.replace(
            clip,
            waveform=_with_silences(sign * clip.waveform, silences),
            reference=_with_silences(sign * clip.reference, silences),
        )
        for clip in clips
    ]


def _random_silences(
    speech: Float32Array, rng: np.random.Generator
) -> list[tuple[int, Float32Array]]:
    """Returns silences, and the sample of the speech that each is before, in order."""
    n_samples = len(speech)
    left = int(rng.uniform(0.04, 0.5) * n_samples)
    level = scipy.ndimage.uniform_filter1d(np.abs(speech), 800)
    noise = 0.0 if rng.random() < 0.5 else float(np.quantile(level, 0.02)) + 1e-5
    silences = []
    for where in rng.permutation(["start", "end", "within"])[: int(rng.integers(1, 4))].tolist():
        length = int(left * rng.uniform(0.3, 1.0))
        left -= length
        if where == "start":
            at = 0
        elif where == "end":  # only so much speech is kept, that the silence still fits
            at = n_samples
        else:
            first = int(rng.uniform(0.12, 0.5) * n_samples)
            at = first + int(level[first : first + n_samples // 6].argmin())
        silences.append((at, rng.normal(0, noise, length).astype(np.float32)))
    return sorted(silences, key=lambda each: each[0])


def _with_silences(
    waveform: Float32Array, silences: list[tuple[int, Float32Array]]
) -> Float32Array:
    """Returns a waveform with silences, and so much of its end cut off that its length stays."""
    kept = waveform[: len(waveform) - sum(len(silence) for _, silence in silences)]
    parts, begin = [], 0
    for at, silence in silences:
        end = min(at, len(kept))
        parts += [kept[begin:end], silence]
        begin = end
    return np.concatenate([*parts, kept[begin:]])


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
    return istft(shifted_formants(stft(speech, 512), factor), len(speech))


def _best_take(
    speech: Float32Array, rng: np.random.Generator, takes: int,
    rate: Callable[[Float32Array], float],
) -> Float32Array:  # fmt: skip
    """Returns the highest scored of several restored and varied versions of the same speech."""
    versions = [vary_studio(restore(speech, rng), rng) for _ in range(takes)]
    return versions[0] if takes == 1 else max(versions, key=rate)
