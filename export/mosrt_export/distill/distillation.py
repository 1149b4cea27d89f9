"""Distils teachers: data, training, export, and how well and how fast the student is."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.stats import spearmanr

import mosrt
from mosrt._arrays import Float32Array
from mosrt.score import Z_95
from mosrt_export.parity import Drift

from .data.batches import Dataset
from .data.dataset import CLIP_S, TEST_PARTS, Data
from .data.speech import SAMPLE_RATE_HZ
from .train.exporting import export_student
from .train.model import MOS_RANGE, Student, StudentGraph, combination, default_score
from .train.network import SEGMENT_SAMPLES, StudentNetwork
from .train.training import Standardisation, Training

__all__ = ["agreement", "distil"]

Progress = Callable[[str, float, float | None], None]
"""Called with the name of a step, the share of it that is done, and the loss of a training."""

_TIMED_CLIPS: Final = 8


def distil(
    data: Data,
    out: Path,
    *,
    device: torch.device,
    workers: int,
    progress: Progress,
    **export: Any,
) -> Drift:
    """Makes the data, trains the student and writes its bundle; continues what was interrupted.

    Args:
        data: What the student is taught with.
        out: Bundle directory to write.
        device: Device to train on.
        workers: Processes that make the data.
        progress: Called after each chunk of data and each step of training.
        **export: Further options of `export_student`.

    Returns:
        The differences of the graph from torch. The bundle's provenance has what else was measured
        on it: "fidelity" (see `agreement`) by part of the test data, and "cost" by teacher.

    Raises:
        DatasetError, SpeechError: The data cannot be made.
        OutputError, ParityError: As `export_student`.
    """
    data.check()
    chunks = data.chunks()
    for done, _ in enumerate(data.make(workers), 1):
        progress("clips and labels", done / len(chunks), None)
    dataset = Dataset.of(data)
    recipe = data.recipe
    torch.manual_seed(data.seed)
    hints = data.hint_teacher
    network = StudentNetwork(len(data.domains), hints.hint_size if hints else 0).to(device)
    network.to(memory_format=torch.channels_last)
    standard = Standardisation.of(dataset.labels)
    rule = combination(recipe.overall, data.domains, standard)
    training = Training(
        dataset=dataset,
        standard=standard,
        default=functools.partial(default_score, domains=data.domains, rule=rule),
        stages=recipe.stages,
        batch=recipe.batch,
        seed=data.seed,
        reduced=data.reduced,
        resume=data.folder / "training.pt",
    )
    for step in training.run(network):
        progress(*step)
    student = Student(
        network=network.cpu().eval().requires_grad_(False),
        domains=data.domains,
        standard=standard,
        combination=rule,
        deviation_factor=1.0,
        provenance={
            "seed": data.seed,
            "clips": len(dataset.labels),
            "ladders": len(dataset.ladders),
            "hours": round(len(dataset.labels) * CLIP_S / 3600, 1),
            "speakers": len(data.speech["clips"]),
            "teachers": {teacher.name: teacher.sha256 for teacher in data.teachers},
            "epochs": {stage.name: stage.epochs for stage in recipe.stages},
            "labels_sha256": dataset.sha256(),
            "licence": recipe.licence,
        },
    )
    student = dataclasses.replace(student, deviation_factor=_deviation_factor(data, student))
    checkpoint = data.folder / "student.pt"
    student.save(checkpoint)
    measure = functools.partial(_measured, data, progress)
    return export_student(checkpoint, out, card=recipe.card, measure=measure, **export)


def _deviation_factor(data: Data, student: Student) -> float:
    """Returns what the deviation is multiplied by to hold 95 % of the labels that are held out."""
    graph = StudentGraph(student)
    ratios = []
    for part, number in data.chunks():
        if part not in TEST_PARTS:
            continue
        waveforms = data.waveforms(part, number)
        padded = np.pad(waveforms, ((0, 0), (0, SEGMENT_SAMPLES - waveforms.shape[1])))
        labels = torch.from_numpy(data.labels(part, number))
        wanted = default_score(labels, domains=data.domains, rule=student.combination)
        with torch.inference_mode():
            found, deviation, _ = graph(torch.from_numpy(padded))
        ratios.append(((found[:, :1] - wanted.clip(*MOS_RANGE)).abs() / deviation).numpy())
    known = np.concatenate(ratios)
    known = known[np.isfinite(known)]
    return round(float(np.quantile(known, 0.95)) / Z_95, 3) if len(known) else 1.0


def _measured(data: Data, progress: Progress, bundle: Path) -> dict[str, Any]:
    """Scores the test data with the bundle, and times it beside the teachers."""
    fidelity = {}
    with mosrt.load(bundle, provider="cpu", threads=1, on_bad_audio="nan") as scorer:
        chunks = [chunk for chunk in data.chunks() if chunk[0] in TEST_PARTS]
        scores: dict[str, list[Float32Array]] = {}
        for done, (part, number) in enumerate(chunks, 1):
            waveforms = data.waveforms(part, number)
            rows = [scorer.score(each, SAMPLE_RATE_HZ).domains for each in waveforms]
            scores.setdefault(part, []).append(
                np.array([[row.get(name, np.nan) for name in data.domains] for row in rows])
            )
            progress("test", done / len(chunks), None)
        for part, found in scores.items():
            labels = [data.labels(part, number) for name, number in chunks if name == part]
            fidelity[TEST_PARTS[part]] = agreement(
                np.concatenate(found), np.concatenate(labels), data.domains
            )

        def student(waveform: Float32Array) -> object:
            return scorer.score(waveform, SAMPLE_RATE_HZ)

        opened = [teacher.open(reduced=data.reduced).scores for teacher in data.teachers]
        times_s = _times_s([student, *opened], waveforms[:_TIMED_CLIPS])
    n_bytes = sum(file.stat().st_size for file in bundle.glob("model.*"))
    cost = {
        teacher.name: {
            "times_slower": float(f"{time_s / times_s[0]:.3g}"),
            "times_larger": float(f"{teacher.n_bytes / n_bytes:.3g}"),
        }
        for teacher, time_s in zip(data.teachers, times_s[1:], strict=True)
    }
    return {"fidelity": fidelity, "cost": cost}


def agreement(
    scores: Float32Array, labels: Float32Array, domains: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """Returns "lcc", "srcc", "mae" and the number of "clips" by domain.

    They compare the student's scores (clips, domains) with the teachers' labels, nan where unknown.
    A correlation with equal scores or labels, and an error without any, is None.
    """
    found = {}
    for name, *columns in zip(domains, scores.T, labels.T, strict=True):
        known = np.isfinite(columns).all(axis=0)
        predicted, wanted = (column[known] for column in columns)
        varied = len(wanted) > 1 and np.ptp(predicted) > 0 and np.ptp(wanted) > 0
        found[name] = {
            "lcc": round(float(np.corrcoef(predicted, wanted)[0, 1]), 4) if varied else None,
            "srcc": round(float(spearmanr(predicted, wanted)[0]), 4) if varied else None,
            "mae": round(float(np.abs(predicted - wanted).mean()), 4) if len(wanted) else None,
            "clips": len(wanted),
        }
    return found


def _times_s(
    models: Sequence[Callable[[Float32Array], object]], waveforms: Float32Array
) -> list[float]:
    """Returns the median time of each model per clip; they take turns."""
    times: list[list[float]] = [[] for _ in models]
    for waveform in waveforms:
        for model, spent in zip(models, times, strict=True):
            started = time.perf_counter()
            model(waveform)
            spent.append(time.perf_counter() - started)
    return [float(np.median(spent[1:] or spent)) for spent in times]
