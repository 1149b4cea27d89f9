"""Reads recorded voices, synthesises others, and decides which speech is held out."""

from __future__ import annotations

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

# Expected MOS of clean speech from each kind of engine. Only the order is common knowledge:
# recordings, then statistical synthesis (flite's slt, awb and rms, festival's HTS voices), diphones
# at 16 kHz, diphones at 8 kHz, formants. The values are ours.
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
    """A voice cannot be used, because a program, folder or file is missing or broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A speaker, recorded or synthetic.

    Attributes:
        name: Such as "flite slt" or "recorded kathleen".
        engine: The program that synthesises it, or "recorded".
        language: Language of its sentences; empty for recordings.
        selector: The engine's own name of the voice, or the folder of recordings.
        anchor: Expected MOS of the engine, 1 to 5.
        held_out: Whether the voice is kept for evaluation and never trained on.
    """

    name: str
    engine: Engine
    language: str
    selector: str
    anchor: float
    held_out: bool = False


def recorded_voices(folder: Path) -> list[Voice]:
    """Returns the recorded voices in a folder, which has one folder of FLAC files for each.

    Raises:
        VoiceError: There are no such folders.
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
    """Returns all synthetic voices of the recipe, also held-out and uninstalled ones."""
    found: list[tuple[Engine, str, str, str]] = [
        *(("flite", "en", name, kind) for name, kind in _FLITE.items()),
        *(("festival", language, name, kind) for name, (language, kind) in _FESTIVAL.items()),
    ]
    for language in _ESPEAK_LANGUAGES:
        for variant in _ESPEAK_VARIANTS:
            selector = f"{language}+{variant}" if variant else language
            found.append(("espeak-ng", language.partition("-")[0], selector, "formant"))
    return [
        Voice(
            name=f"{engine} {selector}",
            engine=engine,
            language=language,
            selector=selector,
            anchor=_ANCHORS[kind],
            held_out=f"{engine} {selector}" in _HELD_OUT_VOICES
            or selector.endswith(f"+{_HELD_OUT_VARIANT}"),
        )
        for engine, language, selector, kind in found
    ]


def missing_programs(voices: list[Voice]) -> dict[str, str]:
    """Returns the programs and festival voices that are not installed, and how to install each."""
    missing = {}
    needed = {"codec2", *(voice.engine for voice in voices)}
    for program, package in _PROGRAMS.items():
        if package in needed and shutil.which(program) is None:
            missing[program] = f"install the system package {package!r}"
    for voice in voices:
        folder = voice.selector
        if voice.engine == "festival" and not list(_FESTIVAL_VOICES_PATH.glob(f"*/{folder}")):
            missing[voice.name] = "install the system's festvox packages, which the README lists"
    return missing


def held_out_file(path: Path) -> bool:
    """Whether a recording is kept for evaluation: one in ten, chosen by a hash of its name."""
    digest = hashlib.sha256(path.stem.encode()).digest()
    return digest[0] < 256 * HELD_OUT_SHARE


def recorded(voice: Voice, *, held_out: bool) -> Iterator[Float32Array]:
    """Yields a recorded voice's utterances (samples,) at 16 kHz, held-out or not."""
    for path in sorted(Path(voice.selector).glob("*.flac")):
        if held_out_file(path) == held_out:
            yield read(path)


def read(source: Path | io.BytesIO) -> Float32Array:
    """Returns an audio file as mono (samples,) float32 at 16 kHz."""
    samples, rate_hz = sf.read(source, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate_hz != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ)
    return np.ascontiguousarray(mono, np.float32)


def synthesise(voice: Voice, count: int, rng: np.random.Generator) -> list[Float32Array]:
    """Synthesises random sentences, each at a random rate and pitch.

    Args:
        voice: The synthetic voice.
        count: Number of sentences.
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
    """Synthesises one text, and returns it as (samples,) float32 at 16 kHz.

    Args:
        voice: The synthetic voice.
        text: The text to speak.
        pace: Relative speaking rate.
        pitch: Relative pitch, for engines that support it (espeak-ng).

    Raises:
        VoiceError: The engine is missing or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        text_file = Path(folder) / "text.txt"
        # festival reads Latin-1 or the voice's own encoding; other characters are left out.
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
            raise VoiceError(f"{voice.name}: no output ({exc}); is it installed?") from exc
