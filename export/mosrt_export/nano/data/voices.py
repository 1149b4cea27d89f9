"""Reads recorded voices, synthesises others, and decides which speech is held out."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import soundfile as sf
import soxr

from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError

__all__ = [
    "LANGUAGES",
    "SAMPLE_RATE_HZ",
    "Voice",
    "VoiceError",
    "missing_programs",
    "recorded",
    "recorded_voices",
    "sentences",
    "synthesise",
    "synthetic_voices",
]

Engine = Literal["recorded", "flite", "festival", "espeak-ng"]

SAMPLE_RATE_HZ: Final = 16_000
HELD_OUT_SHARE: Final = 0.1
_FESTIVAL_VOICES_PATH: Final = Path("/usr/share/festival/voices")


def _table(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


# By language, the parts of a sentence in order, each with alternatives that combine freely.
_GRAMMARS: Final[dict[str, list[list[str]]]] = _table("sentences.json")
# "anchors": expected MOS of clean speech from each kind of engine. Only the order is common
# knowledge: recordings, then statistical synthesis, diphones at 16 kHz, diphones at 8 kHz,
# formants. The values are ours. "programs": the system package of each program.
_VOICES: Final = _table("voices.json")

LANGUAGES: Final = tuple(_GRAMMARS)


class VoiceError(MosrtError, RuntimeError):
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
            anchor=_VOICES["anchors"]["recorded"],
        )
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and any(path.glob("*.flac"))
    ]
    if not voices:
        raise VoiceError(f"{folder}: no folders of FLAC recordings; pass --speech")
    return voices


def synthetic_voices() -> list[Voice]:
    """Returns all synthetic voices of the recipe, also held-out and uninstalled ones."""
    return [
        Voice(
            name=f"{group['engine']} {selector}",
            engine=group["engine"],
            language=group["language"],
            selector=selector,
            anchor=_VOICES["anchors"][group["kind"]],
            held_out=selector in group["held_out"],
        )
        for group in _VOICES["groups"]
        for selector in group["voices"]
    ]


def missing_programs(voices: list[Voice]) -> dict[str, str]:
    """Returns the programs and festival voices that are not installed, and how to install each."""
    missing = {}
    needed = {"codec2", *(voice.engine for voice in voices)}
    for program, package in _VOICES["programs"].items():
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


def sentences(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` random sentences.

    Args:
        language: One of `LANGUAGES`.
        count: Number of sentences.
        rng: Source of the choices.

    Raises:
        KeyError: There are no sentences in this language.
    """
    parts = _GRAMMARS[language]
    return [" ".join(str(rng.choice(part)) for part in parts) for _ in range(count)]


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
        out, text_file = Path(folder) / "speech.wav", Path(folder) / "text.txt"
        encoding = "utf-8"
        if voice.engine == "festival":
            # It reads Latin-1 or the voice's own encoding; other characters are left out.
            encoding = "iso-8859-2" if voice.language == "cs" else "iso-8859-15"
        text_file.write_bytes(text.encode(encoding, errors="ignore"))
        stretch = f"{1 / pace:.3f}"
        if voice.engine == "flite":
            command = ["flite", "-voice", voice.selector, "-f", str(text_file), "-o", str(out),
                       "--setf", f"duration_stretch={stretch}"]  # fmt: skip
        elif voice.engine == "festival":
            command = ["text2wave", "-o", str(out), "-eval", f"(voice_{voice.selector})",
                       "-eval", f"(Parameter.set 'Duration_Stretch {stretch})",
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
