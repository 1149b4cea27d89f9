"""Score clips with published DNSMOS models, for comparison: `mosrt bench --peer onnx:FILE`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.errors import AudioError
from mosrt_bench.clips import AudioFile
from mosrt_bench.errors import BenchError

if TYPE_CHECKING:
    from mosrt_export.distill.dnsmos import DnsmosP808, DnsmosP835

__all__ = ["parse_peer", "peer_results"]

_PREFIX: Final = "onnx:"
_SAMPLE_RATE_HZ: Final = 16_000


def parse_peer(text: str) -> Path:
    """The file of "onnx:FILE".

    Raises:
        BenchError: The text has another form, or the file does not exist.
    """
    file = Path(text.removeprefix(_PREFIX))
    if not text.startswith(_PREFIX):
        raise BenchError(f"--peer {text}: write onnx:FILE, for a DNSMOS P.835 or P.808 model")
    if not file.is_file():
        raise BenchError(f"--peer {text}: there is no file {file}")
    return file


def peer_results(files: Sequence[Path], clips: Sequence[AudioFile]) -> list[dict[str, Any]]:
    """Scores and cost of every model.

    Returns:
        Per model "peer", "scores" by clip (nan where a guard refuses it) and "ms", the median time
        per clip on one thread, front end included.
    """
    # Only runs with peers need mosrt_export.
    from mosrt_export.distill.dnsmos import open_dnsmos  # noqa: PLC0415

    models = [open_dnsmos(file) for file in files]
    return [
        {"peer": f"{model.name} ({file.name})", **_scored(model, clips)}
        for file, model in zip(files, models, strict=True)
    ]


def _scored(model: DnsmosP808 | DnsmosP835, clips: Sequence[AudioFile]) -> dict[str, Any]:
    scores, times_ms = {}, []
    for clip in clips:
        try:
            recording = Recording(FileSource(clip.path), _SAMPLE_RATE_HZ)
        except AudioError:
            scores[clip.name] = math.nan
            continue
        waveform = next(recording.chunks([(0, recording.n_samples)]))
        started = time.perf_counter()
        scores[clip.name] = model(waveform)
        times_ms.append(1e3 * (time.perf_counter() - started))
    return {"scores": scores, "ms": float(np.median(times_ms)) if times_ms else None}
