"""Peers: a model of mosrt and published quality models, asked for the same clip in one run.

The published models are DNSMOS P.808 (Reddy et al., ICASSP 2021), DNSMOS P.835 (ICASSP 2022) and
DNSMOS Pro (Cumlin et al., Interspeech 2024), as their authors run them; DNSMOS Pro, which depends
on level, hears every clip at -26 dBFS.

Needs the extras `bench`, `export` and `train`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import click
import numpy as np
import numpy.typing as npt
import soxr
import threadpoolctl
import torch

import mosrt
from mosrt.errors import MosrtError
from mosrt.score import Score
from mosrt_export.nano.data.teachers import DnsmosP808, DnsmosP835, DnsmosPro

__all__ = ["TEACHERS", "Judge", "PeerError", "Peers", "bundle_option", "teachers_option"]

Float32Array = npt.NDArray[np.float32]
Judge: TypeAlias = Callable[[Float32Array, int], Mapping[str, float]]
"""A waveform (samples,) and its rate in Hz -> every scorer's score by name; more is better."""

TEACHERS: Final[Mapping[str, str]] = {
    "DNSMOS P.808": "dnsmos_p808.onnx",
    "DNSMOS P.835 OVRL": "dnsmos_p835.onnx",
    "DNSMOS Pro BVCC": "dnsmospro_bvcc.pt",
    "DNSMOS Pro NISQA": "dnsmospro_nisqa.pt",
}
"""Published models by name: their files in the folder of teachers."""

_RATE_HZ: Final = 16_000
_PRO_SAMPLES: Final = 160_000  # DNSMOS Pro was trained on 10 s

bundle_option = click.option(
    "--bundle",
    "bundles",
    multiple=True,
    default=("nano",),
    show_default=True,
    metavar="NAME|PATH",
    help="Model to judge, with all its domains; may be repeated.",
)
teachers_option = click.option(
    "--teachers",
    type=click.Path(path_type=Path),
    help=f"Folder of the published models {', '.join(TEACHERS.values())}. "
    "[default: the bundles alone]",
)


class PeerError(MosrtError):
    """A scorer that cannot be compared: a missing file, or no score for a clip."""


class Peers:
    """All scorers of a run, each on one thread.

    Args:
        bundles: Names or paths of models, as `mosrt.load` takes them.
        teachers: Folder of the published models; None for none.

    Attributes:
        names: Of all scorers: "MODEL DOMAIN" for every domain of every bundle, then the teachers.
        defaults: Those that are the default domain of a bundle.

    Raises:
        PeerError: A published model is missing, or two bundles have the same name.
        MosrtError: A model cannot be loaded.
    """

    def __init__(self, bundles: Sequence[str], teachers: Path | None) -> None:
        self._teachers = {} if teachers is None else _load_teachers(teachers)
        self._scorers = [mosrt.load(name, threads=1, provider="cpu") for name in bundles]
        models = [scorer.manifest.name for scorer in self._scorers]
        if len(set(models)) < len(models):
            raise PeerError(f"bundles of one name cannot be told apart: {', '.join(models)}")
        self.names = (
            *(
                f"{scorer.manifest.name} {domain}"
                for scorer in self._scorers
                for domain in scorer.domains
            ),
            *self._teachers,
        )
        self.defaults = tuple(
            f"{scorer.manifest.name} {scorer.manifest.default_domain}" for scorer in self._scorers
        )
        torch.set_num_threads(1)
        self._blas = threadpoolctl.ThreadpoolController()

    def __call__(self, waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        """Scores of a waveform (samples,) by scorer; the more the better.

        A model that gives its uncertainty and no MOS counts with minus its uncertainty.

        Raises:
            PeerError: A scorer gives no score.
        """
        narrow = waveform
        if rate_hz != _RATE_HZ:
            narrow = soxr.resample(waveform, rate_hz, _RATE_HZ).astype(np.float32)
        scores: dict[str, float] = {}
        with self._blas.limit(limits=1):
            for scorer in self._scorers:
                for domain, figure in _figures(scorer.score(waveform, rate_hz)).items():
                    scores[f"{scorer.manifest.name} {domain}"] = figure
            for name, teacher in self._teachers.items():
                scores[name] = teacher(narrow)
        for name, figure in scores.items():
            if not math.isfinite(figure):
                raise PeerError(f"{name} gives no score for a clip of {len(waveform)} samples")
        return scores


def _figures(score: Score) -> Mapping[str, float]:
    """MOS by domain, or minus the uncertainty where there is none."""
    return score.domains or {score.domain: -score.measures["uncertainty"]}


def _load_teachers(folder: Path) -> dict[str, Callable[[Float32Array], float]]:
    missing = [name for name in TEACHERS.values() if not (folder / name).is_file()]
    if missing:
        raise PeerError(f"{folder}: {', '.join(missing)} missing; pass --teachers their folder")
    p808, p835, bvcc, nisqa = (folder / name for name in TEACHERS.values())
    models = DnsmosP808(p808), DnsmosP835(p835), _Repeated(bvcc), _Repeated(nisqa)
    return dict(zip(TEACHERS, models, strict=True))


class _Repeated:
    """DNSMOS Pro as it was trained: on a clip that is repeated and cut to 10 s."""

    def __init__(self, path: Path) -> None:
        self._model = DnsmosPro(path)

    def __call__(self, waveform: Float32Array) -> float:
        # whole repetitions, so that the level that the model sets is the clip's own
        return self._model(np.tile(waveform, -(-_PRO_SAMPLES // len(waveform))))
