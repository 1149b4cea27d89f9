"""The comparison with the original that a bundle must pass before it is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import mosrt
from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AUDIO_SUFFIXES, AudioSource, FileSource
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.writer import write_card, write_manifest
from mosrt.errors import AudioError
from mosrt.host.files import files_below

from .errors import ParityError

__all__ = ["Drift", "Step", "audio_sources", "compared", "publish", "relative", "rounded"]

Step = Callable[[str], AbstractContextManager[None]]
"""Announces a step of an export, whose context manager is open while it lasts."""

_MAX_FILES: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What the comparison of a bundle's graphs with torch found.

    Attributes:
        values: The differences, for the manifest.
        limit: The largest difference that passes, with its unit.
        rows: A line for each comparison, and whether it passed.
        header: The line above them.
    """

    values: Mapping[str, Any]
    limit: str
    rows: Sequence[tuple[str, bool]]
    header: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is at least one comparison, and all agree."""
        return bool(self.rows) and all(passed for _, passed in self.rows)

    def check(self) -> None:
        """Raises ParityError, with the table, unless all comparisons agree."""
        if not self.passed:
            raise ParityError(
                f"the graphs differ from {self.values.get('against', 'torch')} by more than "
                f"{self.limit}, or are not finite; "
                f"nothing was written\n{self.table()}"
            )

    def table(self) -> str:
        """The lines of all comparisons, with a mark at those that differ."""
        lines = [self.header] if self.header else []
        lines += [line if passed else f"{line}  <- differs" for line, passed in self.rows]
        return "\n".join(lines)


def compared(
    directory: Path,
    manifest: Manifest,
    published: Callable[[Float32Array], NDArray[np.floating[Any]]],
    clips: Sequence[AudioSource],
    *,
    tolerance_mos: float,
    against: str,
) -> Drift:
    """Compares the scores that mosrt gives whole recordings with published ones.

    Args:
        directory: The graph's directory, where the manifest is written.
        manifest: The manifest.
        published: MOS (domains,) of a waveform (samples,) at the model's rate.
        clips: Audio to compare on; all clips one after the other are compared, too.
        tolerance_mos: Largest difference that passes.
        against: What `published` is.

    Raises:
        AudioError: A clip cannot be scored.
        ParityError: The scores disagree.
    """
    rate_hz = manifest.sample_rate_hz
    recordings = [Recording(clip, rate_hz) for clip in clips]
    waveforms = [next(each.chunks([(0, each.n_samples)])) for each in recordings]
    names = [clip.name for clip in clips]
    if len(waveforms) > 1:
        waveforms.append(np.concatenate(waveforms))
        names.append("all clips as one")
    rows = []
    differences = []
    write_manifest(directory, manifest)
    with mosrt.load(directory, provider="cpu", on_bad_audio="nan") as scorer:
        for clip, waveform in zip(names, waveforms, strict=True):
            found, expected = scorer.score(waveform, rate_hz).domains, published(waveform)
            pairs = list(zip(expected.tolist(), found.values(), strict=True))
            old, new = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
            differences.append(abs(old - new))
            line = f"{clip[:28]:28} {waveform.size / rate_hz:6.1f} {old:9.5f} {new:9.5f} "
            rows.append((f"{line}{differences[-1]:9.1e}", differences[-1] <= tolerance_mos))
    drift = Drift(
        values={
            "mos_max_abs": rounded(max(differences)),
            "mos_mean_abs": rounded(float(np.mean(differences))),
            "n_clips": len(rows),
            "against": against,
        },
        limit=f"{tolerance_mos:g} MOS",
        rows=rows,
        header=f"{'clip':28} {'s':>6} {'original':>9} {'onnx':>9} {'|d|':>9}",
    )
    drift.check()
    return drift


def publish(
    directory: Path, manifest: Manifest, drift: Drift, *, card: Callable[[Manifest], str]
) -> None:
    """Writes the manifest, with the drift of "fp32", and the model card beside the graphs.

    Raises:
        BundleError: The manifest contradicts itself.
        ParityError: A graph and its torch module disagree.
    """
    drift.check()
    variant = dataclasses.replace(manifest.variants["fp32"], drift=dict(drift.values))
    manifest = dataclasses.replace(manifest, variants={"fp32": variant})
    write_manifest(directory, manifest)
    write_card(directory, card(manifest))


def audio_sources(path: Path | None) -> list[AudioSource]:
    """The audio file at `path`, or those below it; by default the clips that come with mosrt.

    Raises:
        AudioError: There is no audio at `path`.
    """
    if path is None:
        clips = resources.files(__package__).joinpath("clips").iterdir()
        found = sorted((clip.name, clip) for clip in clips if clip.name.endswith(".ogg"))
        return [FileSource(clip.read_bytes(), name=name) for name, clip in found]
    files = [path]
    if path.is_dir():
        files = [file for file in files_below(path) if file.suffix.lower() in AUDIO_SUFFIXES]
    if not files:
        raise AudioError(
            f"{path}: no audio files ({', '.join(sorted(AUDIO_SUFFIXES))}) to compare on", flags=()
        )
    try:
        return [FileSource(file, name=file.name) for file in files[:_MAX_FILES]]
    except AudioError as exc:
        raise AudioError(f"--parity-audio: {exc}", flags=exc.flags) from exc


def relative(found: NDArray[np.floating[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """Largest difference relative to the largest expected value; nan or inf if there is one."""
    with np.errstate(invalid="ignore"):
        scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
        return float(np.abs(found.astype(np.float64) - expected).max()) / scale


def rounded(value: float) -> float:
    """A difference as the manifest states it, with two digits."""
    return float(f"{value:.2g}")
