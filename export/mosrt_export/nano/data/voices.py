"""Voices: where speech comes from, recorded or synthesised, and which of it is held out."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import soundfile as sf
import soxr

from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError

from .sentences import sentences

__all__ = [
    "SAMPLE_RATE_HZ",
    "Voice",
    "VoiceError",
    "missing_programs",
    "recorded",
    "recorded_voices",
    "synthesise",
    "synthetic_voices",
]

Engine = Literal["recorded", "flite", "festival", "espeak-ng"]

SAMPLE_RATE_HZ: Final = 16_000
HELD_OUT_SHARE: Final = 0.1

# Where listeners put the engines when nothing else is wrong with a clip, on the 1 to 5 scale.
# Only the order is common knowledge: recordings, then statistical synthesis (flite's slt, awb and
# rms, festival's HTS voices), diphones at 16 kHz, diphones at 8 kHz, formants.
_ANCHORS: Final[Mapping[str, float]] = {
    "recorded": 4.6,
    "statistical": 3.2,
    "diphone": 2.4,
    "diphone 8 kHz": 1.9,
    "formant": 1.6,
}

_FLITE: Final = {
    "slt": "statistical",
    "rms": "statistical",
    "awb": "statistical",
    "kal16": "diphone",
    "kal": "diphone 8 kHz",
}
_FESTIVAL: Final = {
    "cmu_us_slt_arctic_hts": ("en", "statistical"),
    "upc_ca_ona_hts": ("ca", "statistical"),
    "ked_diphone": ("en", "diphone"),
    "kal_diphone": ("en", "diphone"),
    "czech_dita": ("cs", "diphone"),
    "czech_krb": ("cs", "diphone"),
    "czech_machac": ("cs", "diphone"),
    "czech_ph": ("cs", "diphone"),
    "hy_fi_mv_diphone": ("fi", "diphone"),
    "suo_fi_lj_diphone": ("fi", "diphone"),
    "lp_diphone": ("it", "diphone"),
    "pc_diphone": ("it", "diphone"),
}
_ESPEAK_LANGUAGES: Final = ("en-us", "en-gb", "de", "fr", "es", "it", "cs", "fi", "ca", "ru", "pt",
                            "pl")  # fmt: skip
_ESPEAK_VARIANTS: Final = ("", "f2", "f5", "m3", "m7", "Annie", "klatt2", "steph", "david",
                           "belinda")  # fmt: skip
_HELD_OUT_VOICES: Final = ("flite awb", "festival suo_fi_lj_diphone", "festival pc_diphone")
_HELD_OUT_VARIANT: Final = "belinda"
_PROGRAMS: Final = {
    "flite": "flite",
    "text2wave": "festival",
    "espeak-ng": "espeak-ng",
    "c2enc": "codec2",
}
_FESTIVAL_VOICES_PATH: Final = Path("/usr/share/festival/voices")


class VoiceError(MosrtError):
    """A voice that cannot be heard: a missing program, folder or file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A speaker, recorded or synthetic.

    Attributes:
        name: E.g. "flite slt" or "recorded kathleen".
        engine: What speaks.
        language: Of the sentences it reads; empty for recordings.
        selector: The engine's own name of the voice; the folder of recordings.
        anchor: Where listeners put the engine, on the 1 to 5 scale.
        held_out: Whether the voice is kept for evaluation, never trained on.
    """

    name: str
    engine: Engine
    language: str
    selector: str
    anchor: float
    held_out: bool = False


def recorded_voices(folder: Path) -> list[Voice]:
    """The recorded voices in a folder: one folder of FLAC files each.

    Raises:
        VoiceError: There are none.
    """
    voices = [
        Voice(
            name=f"recorded {path.name}",
            engine="recorded",
            language="",
            selector=str(path),
            anchor=_ANCHORS["recorded"],
        )
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and any(path.glob("*.flac"))
    ]
    if not voices:
        raise VoiceError(f"{folder}: no folders of FLAC recordings; pass --speech")
    return voices


def synthetic_voices() -> list[Voice]:
    """All synthetic voices of the recipe, held-out ones included, whether installed or not."""
    voices = [
        Voice(name=f"flite {name}", engine="flite", language="en", selector=name,
              anchor=_ANCHORS[kind])
        for name, kind in _FLITE.items()
    ]  # fmt: skip
    voices += [
        Voice(name=f"festival {name}", engine="festival", language=language, selector=name,
              anchor=_ANCHORS[kind])
        for name, (language, kind) in _FESTIVAL.items()
    ]  # fmt: skip
    voices += [
        Voice(
            name=f"espeak-ng {language}{'+' if variant else ''}{variant}",
            engine="espeak-ng",
            language=language.partition("-")[0],
            selector=f"{language}+{variant}" if variant else language,
            anchor=_ANCHORS["formant"],
            held_out=variant == _HELD_OUT_VARIANT,
        )
        for language in _ESPEAK_LANGUAGES
        for variant in _ESPEAK_VARIANTS
    ]
    return [
        dataclasses.replace(voice, held_out=True) if voice.name in _HELD_OUT_VOICES else voice
        for voice in voices
    ]


def missing_programs(voices: list[Voice]) -> dict[str, str]:
    """What is not installed: a program that speaks or codes, or a festival voice, and the cure."""
    missing = {}
    needed = {"codec2", *(voice.engine for voice in voices)}
    for program, package in _PROGRAMS.items():
        if package in needed and shutil.which(program) is None:
            missing[program] = f"install the system package {package!r}"
    for voice in voices:
        folder = voice.selector
        if voice.engine == "festival" and not list(_FESTIVAL_VOICES_PATH.glob(f"*/{folder}")):
            missing[voice.name] = "install the system's festvox packages (the README lists them)"
    return missing


def held_out_file(path: Path) -> bool:
    """Whether a recording is kept for evaluation: one in ten, by a hash of its name."""
    digest = hashlib.sha256(path.stem.encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def recorded(voice: Voice, *, held_out: bool) -> Iterator[Float32Array]:
    """A recorded voice's utterances (samples,) at 16 kHz: the held-out ones or the rest."""
    for path in sorted(Path(voice.selector).glob("*.flac")):
        if held_out_file(path) == held_out:
            yield read(path)


def read(source: Path | io.BytesIO) -> Float32Array:
    """An audio file as mono at 16 kHz, (samples,) float32."""
    samples, rate_hz = sf.read(source, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(mono, np.float32)


def synthesise(voice: Voice, count: int, rng: np.random.Generator) -> list[Float32Array]:
    """Lets a synthetic voice read random sentences at a random rate and pitch.

    Args:
        voice: Who reads.
        count: Sentences.
        rng: Source of text, rate and pitch.

    Returns:
        One utterance (samples,) float32 at 16 kHz per sentence.

    Raises:
        VoiceError: The engine is missing or failed.
    """
    return [
        speak(voice, text, pace=float(rng.uniform(0.85, 1.2)), pitch=float(rng.uniform(0.8, 1.25)))
        for text in sentences(voice.language, count, rng)
    ]


def speak(voice: Voice, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Float32Array:
    """One sentence by a synthetic voice.

    Args:
        voice: Who reads.
        text: What.
        pace: Relative speaking rate.
        pitch: Relative pitch, where the engine allows it (espeak-ng).

    Raises:
        VoiceError: The engine is missing or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        text_file = Path(folder) / "text.txt"
        # festival reads Latin-1 or the voice's own encoding; what it cannot spell it leaves out
        encoding = {"cs": "iso-8859-2"}.get(voice.language, "iso-8859-15")
        if voice.engine != "festival":
            encoding = "utf-8"
        text_file.write_bytes(text.encode(encoding, errors="ignore"))
        if voice.engine == "flite":
            command = ["flite", "-voice", voice.selector, "-f", str(text_file), "-o", str(out),
                       "--setf", f"duration_stretch={1 / pace:.3f}"]  # fmt: skip
        elif voice.engine == "festival":
            command = ["text2wave", "-o", str(out),
                       "-eval", f"(voice_{voice.selector})",
                       "-eval", f"(Parameter.set 'Duration_Stretch {1 / pace:.3f})",
                       str(text_file)]  # fmt: skip
        else:
            command = ["espeak-ng", "-v", voice.selector, "-s", str(round(165 * pace)),
                       "-p", str(round(min(99, 50 * pitch**2))), "-f", str(text_file),
                       "-w", str(out)]  # fmt: skip
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=120)  # noqa: S603
            return read(out)
        except (OSError, subprocess.SubprocessError, sf.LibsndfileError) as exc:
            raise VoiceError(f"{voice.name} did not speak ({exc}); is it installed?") from exc
