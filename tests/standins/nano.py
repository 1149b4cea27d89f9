"""What tests of distillation share: speech, measures of damage, recordings, random models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import soundfile as sf
import torch
from numpy.typing import NDArray

from mosrt_export.distill.data.clips import Pool
from mosrt_export.distill.data.speech import find_speakers
from mosrt_export.distill.recipe import Group, Overall, Penalty, Recipe
from mosrt_export.distill.train.model import Student, combination
from mosrt_export.distill.train.network import STEP_SAMPLES, StudentNetwork
from mosrt_export.distill.train.training import Standardisation

LABELS = ("bvcc", "p808", "fidelity", "anchor")
OVERALL_RULE = Overall(
    averaged=("p808", "bvcc"),
    offset=3.4,
    scale=0.6,
    penalties={
        "fidelity": Penalty(threshold=3.0, slope=0.4),
        "anchor": Penalty(threshold=2.8, slope=0.5),
    },
)
Float32Array = NDArray[np.float32]

RATE_HZ = 16_000
SPEECH = Path(__file__).parents[1] / "data" / "flite_slt_16k_mono.wav"


def speech(seconds: float) -> Float32Array:
    """The beginning of a spoken sentence, (samples,) at 16 kHz."""
    samples, rate_hz = sf.read(SPEECH, dtype="float32")
    assert rate_hz == RATE_HZ
    return np.ascontiguousarray(samples[: int(seconds * RATE_HZ)], np.float32)


def waveform_error_db(clean: Float32Array, other: Float32Array) -> float:
    """Energy of what is not the clean speech, relative to the speech at its best gain.

    In dB, and never below -100.
    """
    a, b = clean.astype(np.float64), other.astype(np.float64)
    target = (a @ b) / (a @ a) * a
    return float(10 * np.log10(np.sum((b - target) ** 2) / np.sum(target**2) + 1e-10))


def spectral_error_db(clean: Float32Array, other: Float32Array) -> float:
    """RMS difference in dB of the loudest 60 dB of two spectrograms of equal mean level."""
    levels = []
    for samples in (clean, other):
        _, _, spectrum = scipy.signal.stft(samples.astype(np.float64), nperseg=400, noverlap=240)
        power = np.abs(spectrum) ** 2
        levels.append(10 * np.log10(np.maximum(power / power.mean(), 1e-5)))
    return float(np.sqrt(np.mean((levels[0] - levels[1]) ** 2)))


def lag(clean: Float32Array, other: Float32Array) -> int:
    """Samples by which `other` comes late, by their correlation."""
    correlation = scipy.signal.correlate(other.astype(np.float64), clean.astype(np.float64))
    return int(np.argmax(correlation)) - (len(clean) - 1)


def recordings(
    folder: Path, speakers: Sequence[str] = ("anna", "flite/slt"), count: int = 3
) -> Path:
    """A folder of speakers who all say parts of the same sentence."""
    for number, name in enumerate(speakers):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            start = 4000 * number + 1000 * i
            said = speech(4.5)[start : start + 48_000]
            sf.write(folder / name / f"{name.replace('/', '-')}-{i}.flac", said, RATE_HZ)
    return folder


def small_pool(folder: Path, recipe: Recipe | None = None) -> Pool:
    """A recorded and a synthetic speaker, of whom the first has a share of 0.75."""
    groups = {"*": Group(share=0.75, ladder_share=0.5), "flite": Group(share=0.25)}
    return Pool.of(find_speakers([recordings(folder)]), recipe or Recipe(groups=groups))


def random_student(seed: int = 0, domains: Sequence[str] = LABELS) -> Student:
    """A student with random weights, whose batch norms fit speech and noise.

    So its scores differ from one recording to the next, as those of a trained one do.
    """
    torch.manual_seed(seed)
    network = StudentNetwork(len(domains))
    norms = [
        module
        for module in network.modules()
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d)
    ]
    for norm in norms:
        norm.momentum = None  # the plain mean over what they see
        norm.weight.data.uniform_(0.7, 1.3)
        norm.bias.data.normal_(0, 0.1)
    with torch.no_grad():
        network.head(network.encoder(_varied())[1])
    for norm in norms:
        norm.momentum = 0.1
    standard = Standardisation(STANDARD.mean[: len(domains)], STANDARD.deviation[: len(domains)])
    overall = OVERALL_RULE if tuple(domains) == LABELS else None
    return Student(
        network=network.eval().requires_grad_(False),
        domains=tuple(domains),
        standard=standard,
        combination=combination(overall, domains, standard),
        deviation_factor=1.5,
        provenance=provenance(),
    )


def _varied() -> torch.Tensor:
    """Pieces of speech, and noise of other spectra, (8, 4 * STEP_SAMPLES)."""
    length = 4 * STEP_SAMPLES
    rng = np.random.default_rng(0)
    said = speech(4)
    rows = [said[start : start + length] for start in (4_000, 14_000, 24_000, 34_000)]
    for pole in (0.0, 0.7, 0.95, -0.7):
        noise = scipy.signal.lfilter([1], [1, -pole], rng.normal(0, 0.1, length))
        rows.append(noise.astype(np.float32))
    return torch.from_numpy(np.stack(rows))


STANDARD = Standardisation(
    np.array([2.6, 3.4, 3.9, 3.1], np.float32), np.array([0.7, 0.4, 1.1, 0.9], np.float32)
)


def provenance() -> dict[str, Any]:
    """What `mosrt distill` writes beside the weights."""
    return {
        "seed": 11,
        "clips": 30_000,
        "hours": 41.7,
        "speakers": 40,
        "teachers": {"dnsmos_p808.onnx": "cd" * 32},
        "labels_sha256": "ab" * 32,
        "licence": "MIT",
    }
