"""Score a clip with models of mosrt and with published quality models, for comparison.

The published models are DNSMOS P.808 (Reddy et al., ICASSP 2021), DNSMOS P.835 (ICASSP 2022) and
DNSMOS Pro (Cumlin et al., Interspeech 2024), run as their authors run them. DNSMOS Pro depends on
level, so it gets every clip at -26 dBFS.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import click
import numpy as np
import soxr
import threadpoolctl
import torch

import mosrt
from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError
from mosrt_export.nano.data.teachers import DnsmosP808, DnsmosP835, DnsmosPro

__all__ = [
    "TEACHERS",
    "PeerError",
    "Peers",
    "ScoreClip",
    "models_option",
    "score_clips",
    "teachers_option",
]

Key = TypeVar("Key")

ScoreClip: TypeAlias = Callable[[Float32Array, int], Mapping[str, float]]
"""Maps a waveform (samples,) and its rate in Hz to scores by model; higher is better."""

TEACHERS: Final[Mapping[str, str]] = {
    "DNSMOS P.808": "dnsmos_p808.onnx",
    "DNSMOS P.835 OVRL": "dnsmos_p835.onnx",
    "DNSMOS Pro BVCC": "dnsmospro_bvcc.pt",
    "DNSMOS Pro NISQA": "dnsmospro_nisqa.pt",
}
"""Published models: their files, by name."""

_RATE_HZ: Final = 16_000
_PRO_SAMPLES: Final = 160_000  # DNSMOS Pro was trained on 10 s

models_option = click.option(
    "--model", "-m", "models", multiple=True, default=("nano",), show_default=True,
    metavar="NAME|PATH", help="Model to evaluate, in all its domains; may be repeated.",
)  # fmt: skip
teachers_option = click.option(
    "--teachers", type=click.Path(path_type=Path), metavar="DIR",
    help=f"Folder of the published models {', '.join(TEACHERS.values())}. [default: none of them]",
)  # fmt: skip


class PeerError(MosrtError, ValueError):
    """A model cannot be compared: a file is missing, or it gives no score for a clip."""


class Peers:
    """All models of a run, each on one thread.

    Args:
        models: Names or paths of models, as `mosrt.load` takes them.
        teachers: Folder of the published models; None for none of them.

    Attributes:
        defaults: "MODEL DOMAIN" of the default domain of each model.

    Raises:
        PeerError: A published model is missing, or two models have the same name.
        MosrtError: A model cannot be loaded.
    """

    def __init__(self, models: Sequence[str], teachers: Path | None) -> None:
        self._teachers = {} if teachers is None else _load_teachers(teachers)
        self._scorers = [mosrt.load(name, threads=1, provider="cpu") for name in models]
        found = [scorer.manifest.name for scorer in self._scorers]
        if len(set(found)) < len(found):
            raise PeerError(f"models of the same name cannot be told apart: {', '.join(found)}")
        self.defaults = tuple(
            f"{s.manifest.name} {s.manifest.default_domain}" for s in self._scorers
        )
        torch.set_num_threads(1)
        self._blas = threadpoolctl.ThreadpoolController()

    def __call__(self, waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        """Scores a waveform (samples,) with every model; higher is better.

        Scores are called "MODEL DOMAIN", and those of published models by their names. An
        uncertainty model without a map to MOS gives minus its uncertainty.

        Raises:
            PeerError: A model gives no score.
        """
        resampled = waveform
        if rate_hz != _RATE_HZ:
            resampled = soxr.resample(waveform, rate_hz, _RATE_HZ).astype(np.float32)
        scores: dict[str, float] = {}
        with self._blas.limit(limits=1):
            for scorer in self._scorers:
                score = scorer.score(waveform, rate_hz)
                domains = score.domains or {score.domain: -score.measures["uncertainty"]}
                for domain, value in domains.items():
                    scores[f"{scorer.manifest.name} {domain}"] = value
            for name, teacher in self._teachers.items():
                scores[name] = teacher(resampled)
        for name, value in scores.items():
            if not math.isfinite(value):
                raise PeerError(f"{name} gives no score for a clip of {len(waveform)} samples")
        return scores


def score_clips(
    clips: Iterable[tuple[Key, Float32Array, int]], score: ScoreClip, *, length: int, label: str
) -> dict[str, dict[Key, list[float]]]:
    """Scores clips with every model, and shows the progress.

    Args:
        clips: A key, a waveform (samples,) and its rate in Hz each; clips may have the same key.
        score: The models.
        length: Number of clips.
        label: What the progress is of.

    Returns:
        By model and key, the scores in the order of the clips.
    """
    scores: dict[str, dict[Key, list[float]]] = {}
    with click.progressbar(clips, length=length, file=sys.stderr, label=label) as bar:
        for key, waveform, rate_hz in bar:
            for name, value in score(waveform, rate_hz).items():
                scores.setdefault(name, {}).setdefault(key, []).append(value)
    return scores


def _load_teachers(folder: Path) -> dict[str, Callable[[Float32Array], float]]:
    missing = [name for name in TEACHERS.values() if not (folder / name).is_file()]
    if missing:
        raise PeerError(f"{folder}: {', '.join(missing)} missing; pass --teachers their folder")
    p808, p835, bvcc, nisqa = (folder / name for name in TEACHERS.values())
    models = DnsmosP808(p808), DnsmosP835(p835), _Repeated(bvcc), _Repeated(nisqa)
    return dict(zip(TEACHERS, models, strict=True))


class _Repeated:
    """DNSMOS Pro on clips of its training length: the clip is repeated, then cut to 10 s."""

    def __init__(self, path: Path) -> None:
        self._model = DnsmosPro(path)

    def __call__(self, waveform: Float32Array) -> float:
        # whole repetitions, so that the model normalises the level of the clip itself
        return self._model(np.tile(waveform, -(-_PRO_SAMPLES // len(waveform))))
