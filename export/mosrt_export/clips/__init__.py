"""Recordings that every export is compared on, unless the user brings others.

Synthetic speech made with flite (voices slt and awb) and espeak-ng (French, German): two voices,
three rates, mono and stereo, one clip shorter than a crop, one noisy. Free to copy.
"""

from __future__ import annotations

from importlib.resources import files

from mosrt.audio.sources import FileSource

__all__ = ["parity_clips"]


def parity_clips() -> list[FileSource]:
    """The recordings, in the order of their names."""
    found = [file for file in files(__name__).iterdir() if file.name.endswith(".ogg")]
    return [
        FileSource(file.read_bytes(), name=file.name)
        for file in sorted(found, key=lambda file: file.name)
    ]
