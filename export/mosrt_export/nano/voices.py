"""Synthesises the voices of the recipe, which are training data beside recordings."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile as sf

from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError
from mosrt.host.files import replacing_directory
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ, SpeechError, read
from mosrt_export.distill.recipe import Recipe

__all__ = [
    "LANGUAGES",
    "Voice",
    "VoiceError",
    "missing_programs",
    "sentences",
    "speak",
    "synthesise",
    "synthetic_voices",
    "write_utterances",
]

FESTIVAL_VOICES_PATH: Final = Path("/usr/share/festival/voices")


def _table(name: str) -> dict[str, Any]:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


# By language, the parts of a sentence in order, each with alternatives that combine freely.
_GRAMMARS: Final[dict[str, list[list[str]]]] = _table("sentences.json")
# "programs": the system package of each program.
_VOICES: Final = _table("voices.json")
_UTTERANCES: Final = {"flite": 60, "festival": 30, "espeak-ng": 8}  # per voice

LANGUAGES: Final = tuple(_GRAMMARS)


class VoiceError(MosrtError, RuntimeError):
    """A voice cannot be used, because a program, folder or file is missing or broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """A synthetic voice: its engine and kind of synthesis, and the engine's name for it."""

    engine: str
    kind: str
    language: str
    selector: str

    @property
    def name(self) -> str:
        """What messages and results call it, such as "flite slt"."""
        return f"{self.engine} {self.selector}"

    @property
    def folder(self) -> str:
        """Path of its utterances, which the recipe knows it by, such as "flite-diphone/kal16"."""
        return f"{self.engine}-{self.kind}/{self.selector}"

    @property
    def held_out(self) -> bool:
        """Whether it is kept for evaluation and never trained on."""
        return any(fnmatchcase(self.folder, pattern) for pattern in Recipe.read("nano").held_out)


def synthetic_voices() -> list[Voice]:
    """Returns all synthetic voices of the recipe, also held-out and uninstalled ones."""
    return [
        Voice(**{name: group[name] for name in ("engine", "kind", "language")}, selector=selector)
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
        if voice.engine == "festival" and not list(FESTIVAL_VOICES_PATH.glob(f"*/{folder}")):
            missing[voice.name] = "install the system's festvox packages, which the README lists"
    return missing


def write_utterances(
    voice: Voice,
    seed: int,
    out: Path,
    speak_all: Callable[[Voice, np.random.Generator], Iterable[Float32Array]] | None = None,
) -> None:
    """Writes a voice's utterances to a folder in `out`, unless they are there.

    `speak_all` synthesises them; None is for the programs. Raises VoiceError if the voice cannot be
    synthesised.
    """
    name = voice.name if speak_all is None else voice.folder
    rng = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()])
    folder = out / voice.folder
    if folder.exists():
        return
    if speak_all is None:
        said: Iterable[Float32Array] = synthesise(voice, _UTTERANCES[voice.engine], rng)
    else:
        said = speak_all(voice, rng)
    with replacing_directory(folder) as part:
        for i, speech in enumerate(said):
            sf.write(part / f"{i:05d}.flac", speech, SAMPLE_RATE_HZ)


def sentences(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """Returns `count` random sentences in one of `LANGUAGES`."""
    parts = _GRAMMARS[language]
    return [" ".join(str(rng.choice(part)) for part in parts) for _ in range(count)]


def synthesise(voice: Voice, count: int, rng: np.random.Generator) -> list[Float32Array]:
    """Synthesises random sentences, each at a random rate and pitch, as `speak` does."""
    return [
        speak(voice, text, pace=float(rng.uniform(0.85, 1.2)), pitch=float(rng.uniform(0.8, 1.25)))
        for text in sentences(voice.language, count, rng)
    ]


def speak(voice: Voice, text: str, *, pace: float = 1.0, pitch: float = 1.0) -> Float32Array:
    """Synthesises one text, and returns it as (samples,) float32 at 16 kHz.

    `pace` is the relative speaking rate, and `pitch` the relative pitch, of espeak-ng only. Raises
    VoiceError if the engine is missing or fails.
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
        except (OSError, subprocess.SubprocessError, SpeechError) as exc:
            raise VoiceError(f"{voice.name}: no output ({exc}); is it installed?") from exc
