"""Recordings for the parity check of every export, unless the user names others.

Synthetic speech from flite (voices slt and awb) and espeak-ng (French, German): two voices, three
sample rates, mono and stereo, one clip shorter than a crop and one with noise. Free to copy.
"""

from __future__ import annotations

from importlib.resources import files

from mosrt.audio.sources import FileSource

__all__ = ["parity_clips"]


def parity_clips() -> list[FileSource]:
    """The recordings, sorted by name."""
    found = [file for file in files(__name__).iterdir() if file.name.endswith(".ogg")]
    return [
        FileSource(file.read_bytes(), name=file.name)
        for file in sorted(found, key=lambda file: file.name)
    ]
