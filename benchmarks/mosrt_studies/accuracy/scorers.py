"""Score clips with models of mosrt and with published quality models, for comparison.

The published models are DNSMOS Pro (Cumlin et al., Interspeech 2024) and Distill-MOS (arXiv
2502.05356), in torch as their authors run them. DNSMOS Pro depends on level, so it gets every clip
at -26 dBFS. DNSMOS P.808 and P.835 are bundles of `mosrt export dnsmos`.
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
from mosrt_export.distill.teachers import DnsmosPro
from mosrt_export.distillmos import published_model

__all__ = [
    "PEERS",
    "ScoreClip",
    "ScorerError",
    "Scorers",
    "model_and_variant",
    "open_peer",
    "score_clips",
    "scorers_options",
]

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


class _DistillMos:
    """Distill-MOS in eager torch, from its package."""

    def __init__(self, _: Path) -> None:
        self._model = published_model()

    def __call__(self, waveform: Float32Array) -> float:
        with torch.inference_mode():
            return float(self._model(torch.from_numpy(waveform)[None]))


PEERS: Final[Mapping[str, tuple[str, Callable[[Path], Callable[[Float32Array], float]]]]] = {
    "Distill-MOS in torch": ("", _DistillMos),
    "DNSMOS Pro BVCC": ("dnsmospro_bvcc.pt", _RepeatedDnsmosPro),
    "DNSMOS Pro NISQA": ("dnsmospro_nisqa.pt", _RepeatedDnsmosPro),
}
"""Published models by name: the file, and what opens it and then scores waveforms at 16 kHz.

The file of a package that comes with its weights is "".
"""


class Scorers:
    """All models of a run, each on one thread.

    Args:
        models: Names or paths of models, as `mosrt.load` takes them, or NAME|PATH@VARIANT.
        teachers: Folder of the published models; None for none of them.
        peers: Which of `PEERS` to use.

    Attributes:
        models: The models, and then the published ones by name.
        teachers: As given.
        defaults: Name of the score that each of `models` gives by default.

    Raises:
        ScorerError: A published model is missing, or two models have the same name.
        MosrtError: A model cannot be loaded.
    """

    def __init__(
        self, models: Sequence[str], teachers: Path | None, peers: Iterable[str] = PEERS
    ) -> None:
        chosen = [model_and_variant(model) for model in models]
        opened = [
            mosrt.load(model, variant=variant, threads=1, provider="cpu")
            for model, variant in chosen
        ]
        names = [
            f"{scorer.manifest.name} {variant or ''}".strip()
            for scorer, (_, variant) in zip(opened, chosen, strict=True)
        ]
        if len(set(names)) < len(names):
            raise ScorerError(f"models of the same name cannot be told apart: {', '.join(names)}")
        self.defaults = tuple(map(_default_score, opened, names))
        self.models, self.teachers = tuple(models), teachers
        self._score: list[_Score] = list(map(_score_of, opened, names))
        if teachers is not None:
            self._score += [_score_of_peer(name, teachers) for name in peers]
            self.models += tuple(peers)
            self.defaults += tuple(peers)
        self._cpu_ms: dict[str, list[float]] = {}
        torch.set_num_threads(1)
        self._blas = threadpoolctl.ThreadpoolController()

    @property
    def cpu_ms(self) -> dict[str, float]:
        """Median CPU time of the model behind each score, per clip so far."""
        return {name: float(np.median(times)) for name, times in self._cpu_ms.items()}

    @property
    def cpu_times_ms(self) -> dict[str, list[float]]:
        """CPU time of the model behind each score, of each clip so far."""
        return {name: list(times) for name, times in self._cpu_ms.items()}

    def __call__(self, waveform: Float32Array, rate_hz: int) -> dict[str, float]:
        """Scores a waveform (samples,) with every model; higher is better.

        Scores are called "MODEL DOMAIN" or "MODEL VARIANT DOMAIN", and those of published models by
        their names. An uncertainty model without a map to MOS gives each of its measures as
        "MODEL MEASURE".

        Raises:
            ScorerError: A model gives no score.
        """
        return self.with_flags(waveform, rate_hz)[0]

    def with_flags(
        self, waveform: Float32Array, rate_hz: int
    ) -> tuple[dict[str, float], dict[str, frozenset[str]]]:
        """As a call, and the flags of each score.

        Raises:
            ScorerError: A model gives no score.
        """
        scores: dict[str, float] = {}
        flags: dict[str, frozenset[str]] = {}
        with self._blas.limit(limits=1):
            for score in self._score:
                began = time.process_time()
                found, raised = score(waveform, rate_hz)
                elapsed_ms = 1e3 * (time.process_time() - began)
                for name, value in found.items():
                    self._cpu_ms.setdefault(name, []).append(elapsed_ms)
                    if not math.isfinite(value):
                        raise ScorerError(
                            f"{name} gives no score for a clip of {len(waveform)} samples"
                        )
                    flags[name] = raised
                scores |= found
        return scores, flags


def model_and_variant(text: str) -> tuple[str, str | None]:
    """A model, and its variant if the text is MODEL@VARIANT."""
    model, _, variant = text.rpartition("@")
    return (model, variant) if model else (text, None)


def _default_score(scorer: mosrt.Scorer, name: str) -> str:
    manifest, spec = scorer.manifest, scorer.manifest.uncertainty
    if spec is None or spec.mos_map is not None:
        return f"{name} {manifest.default_domain}"
    return f"{name} {spec.measure}"


_Score: TypeAlias = Callable[[Float32Array, int], tuple[dict[str, float], frozenset[str]]]
"""Maps a waveform (samples,) and its rate in Hz to scores by name, and the flags raised."""


def _score_of(scorer: mosrt.Scorer, model: str) -> _Score:
    """The scores of a model of mosrt."""

    def score(waveform: Float32Array, rate_hz: int) -> tuple[dict[str, float], frozenset[str]]:
        found = scorer.score(waveform, rate_hz)
        values = found.domains or {
            # the worse the speech, the higher the entropy, and the lower all else
            measure: -value if measure.endswith(".entropy") else value
            for measure, value in found.measures.items()
            if measure != "uncertainty"  # one of the others
        }
        scores = {f"{model} {name}": value for name, value in values.items()}
        return scores, frozenset(map(str, found.flags))

    return score


def open_peer(name: str, folder: Path) -> Callable[[Float32Array], float]:
    """Opens a published model, which then scores waveforms (samples,) at 16 kHz.

    Raises:
        ScorerError: Its file is missing.
    """
    file, opened = PEERS[name]
    if file and not (folder / file).is_file():
        raise ScorerError(f"{folder}: {file} is missing; pass --teachers the folder of {name}")
    return opened(folder / file)


def _score_of_peer(name: str, folder: Path) -> _Score:
    """The score of a published model, which raises no flags."""
    model = open_peer(name, folder)

    def score(waveform: Float32Array, rate_hz: int) -> tuple[dict[str, float], frozenset[str]]:
        if rate_hz != SAMPLE_RATE_HZ:
            waveform = soxr.resample(waveform, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
        return {name: model(waveform)}, frozenset()

    return score


def scorers_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that choose the models; it gets them as `scorers`."""

    @click.option("--model", "-m", "models", multiple=True, default=("nano",), show_default=True,
                  metavar="NAME|PATH[@VARIANT]",
                  help="Model to evaluate, in all its domains; may be repeated.")  # fmt: skip
    @click.option("--teachers", type=click.Path(path_type=Path), metavar="DIR",
                  help=f"Folder of {', '.join(f for f, _ in PEERS.values() if f)}. [default: no "
                  "published models]")  # fmt: skip
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
