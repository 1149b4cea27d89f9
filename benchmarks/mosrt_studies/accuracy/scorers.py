"""Score clips with models of mosrt and with published quality models, for comparison.

The published models are DNSMOS P.808 (Reddy et al., ICASSP 2021), DNSMOS P.835 (ICASSP 2022) and
DNSMOS Pro (Cumlin et al., Interspeech 2024), run as their authors run them. DNSMOS Pro depends on
level, so it gets every clip at -26 dBFS.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import click
import numpy as np
import soxr
import threadpoolctl
import torch

import mosrt
from mosrt._arrays import Float32Array
from mosrt.errors import MosrtError
from mosrt_export.distill.data.speech import SAMPLE_RATE_HZ
from mosrt_export.distill.dnsmos import DnsmosP808, DnsmosP835
from mosrt_export.distill.teachers import DnsmosPro

__all__ = ["PEERS", "ScoreClip", "ScorerError", "Scorers", "score_clips", "scorers_options"]

Key = TypeVar("Key")

ScoreClip: TypeAlias = Callable[[Float32Array, int], Mapping[str, float]]
"""Maps a waveform (samples,) and its rate in Hz to scores by name; higher is better."""

_PRO_SAMPLES: Final = 160_000  # DNSMOS Pro was trained on 10 s


class ScorerError(MosrtError, ValueError):
    """A model cannot be compared: a file is missing, or it gives no score for a clip."""


class _RepeatedDnsmosPro:
    """DNSMOS Pro on clips of its training length: the clip is repeated, then cut to 10 s."""

    def __init__(self, path: Path) -> None:
        self._model = DnsmosPro(path)

    def __call__(self, waveform: Float32Array) -> float:
        # whole repetitions, so that the model normalises the level of the clip itself
        return self._model(np.tile(waveform, -(-_PRO_SAMPLES // len(waveform))))


PEERS: Final[Mapping[str, tuple[str, Callable[[Path], Callable[[Float32Array], float]]]]] = {
    "DNSMOS P.808": ("dnsmos_p808.onnx", DnsmosP808),
    "DNSMOS P.835 OVRL": ("dnsmos_p835.onnx", DnsmosP835),
    "DNSMOS Pro BVCC": ("dnsmospro_bvcc.pt", _RepeatedDnsmosPro),
    "DNSMOS Pro NISQA": ("dnsmospro_nisqa.pt", _RepeatedDnsmosPro),
}
"""Published models by name: the file, and what opens it and then scores waveforms at 16 kHz."""


class Scorers:
    """All models of a run, each on one thread.

    Args:
        models: Names or paths of models, as `mosrt.load` takes them.
        teachers: Folder of the published models; None for none of them.
        peers: Which of `PEERS` to use.

    Attributes:
        defaults: Name of the score that each model of mosrt gives by default.

    Raises:
        ScorerError: A published model is missing, or two models have the same name.
        MosrtError: A model cannot be loaded.
    """

    def __init__(
        self, models: Sequence[str], teachers: Path | None, peers: Iterable[str] = PEERS
    ) -> None:
        opened = [mosrt.load(model, threads=1, provider="cpu") for model in models]
        names = [scorer.manifest.name for scorer in opened]
        if len(set(names)) < len(names):
            raise ScorerError(f"models of the same name cannot be told apart: {', '.join(names)}")
        self.defaults = tuple(map(_default_score, opened))
        self._score: list[ScoreClip] = [_score_of(scorer) for scorer in opened]
        if teachers is not None:
            self._score += [_score_of_peer(name, teachers) for name in peers]
        self._cpu_ms: dict[str, list[float]] = {}
        torch.set_num_threads(1)
        self._blas = threadpoolctl.ThreadpoolController()

    @property
    def cpu_ms(self) -> dict[str, float]:
        """Median CPU time of the model behind each score, per clip so far."""
        return {name: float(np.median(times)) for name, times in self._cpu_ms.items()}

    def __call__(self, waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        """Scores a waveform (samples,) with every model; higher is better.

        Scores are called "MODEL DOMAIN", and those of published models by their names. An
        uncertainty model without a map to MOS gives each of its measures as "MODEL MEASURE".

        Raises:
            ScorerError: A model gives no score.
        """
        scores: dict[str, float] = {}
        with self._blas.limit(limits=1):
            for score in self._score:
                began = time.process_time()
                found = score(waveform, rate_hz)
                elapsed_ms = 1e3 * (time.process_time() - began)
                for name, value in found.items():
                    self._cpu_ms.setdefault(name, []).append(elapsed_ms)
                    if not math.isfinite(value):
                        raise ScorerError(
                            f"{name} gives no score for a clip of {len(waveform)} samples"
                        )
                scores |= found
        return scores


def _default_score(scorer: mosrt.Scorer) -> str:
    manifest, spec = scorer.manifest, scorer.manifest.uncertainty
    if spec is None or spec.mos_map is not None:
        return f"{manifest.name} {manifest.default_domain}"
    return f"{manifest.name} {spec.measure}"


def _score_of(scorer: mosrt.Scorer) -> ScoreClip:
    """The scores of a model of mosrt."""

    def score(waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        found = scorer.score(waveform, rate_hz)
        values = found.domains or {
            # the worse the speech, the higher the entropy, and the lower all else
            measure: -value if measure.endswith(".entropy") else value
            for measure, value in found.measures.items()
            if measure != "uncertainty"  # one of the others
        }
        return {f"{scorer.manifest.name} {name}": value for name, value in values.items()}

    return score


def _score_of_peer(name: str, folder: Path) -> ScoreClip:
    """The score of a published model."""
    file, open_peer = PEERS[name]
    if not (folder / file).is_file():
        raise ScorerError(f"{folder}: {file} is missing; pass --teachers the folder of {name}")
    model = open_peer(folder / file)

    def score(waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        if rate_hz != SAMPLE_RATE_HZ:
            waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
        return {name: model(waveform)}

    return score


def scorers_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that choose the models; it gets them as `scorers`."""

    @click.option("--model", "-m", "models", multiple=True, default=("nano",), show_default=True,
                  metavar="NAME|PATH",
                  help="Model to evaluate, in all its domains; may be repeated.")  # fmt: skip
    @click.option("--teachers", type=click.Path(path_type=Path), metavar="DIR",
                  help=f"Folder of the published models {', '.join(f for f, _ in PEERS.values())}. "
                  "[default: none of them]")  # fmt: skip
    @click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)),
                  default=tuple(PEERS), show_default="all",
                  help="Published model to evaluate; may be repeated.")  # fmt: skip
    @wraps(command)
    def with_scorers(
        models: tuple[str, ...], teachers: Path | None, peers: tuple[str, ...], **others: Any
    ) -> None:
        command(scorers=Scorers(models, teachers, peers), **others)

    return with_scorers


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
        By name of the score and key, the scores in the order of the clips.
    """
    scores: dict[str, dict[Key, list[float]]] = {}
    with click.progressbar(clips, length=length, file=sys.stderr, label=label) as bar:
        for key, waveform, rate_hz in bar:
            for name, value in score(waveform, rate_hz).items():
                scores.setdefault(name, {}).setdefault(key, []).append(value)
    return scores
