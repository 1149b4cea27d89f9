"""Run a checkpoint in eager or compiled torch, with librosa's front end or with mosrt's.

With librosa's front end it is the baseline that others are timed against: UTMOSv2 as its published
code runs it, but for the random crops. With mosrt's front end it is the reference of the parity
table, where only the model differs. Recordings are decoded and resampled by mosrt in both cases.

Needs the extras `export` and `bench`; the checkpoint of a student of `mosrt distill` also needs
`train`.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch

from mosrt._arrays import Float32Array, FloatArray
from mosrt.audio.recording import Recording
from mosrt.audio.sources import FileSource
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest
from mosrt.crops import CropPlan, PlanRule
from mosrt.errors import AudioError, ProviderError
from mosrt.mos.scorer import FusionFrontEnd
from mosrt_bench.errors import BenchError
from mosrt_export.distillmos import EagerDistillMos
from mosrt_export.graphs.front_end import with_front_end
from mosrt_export.utmosv2.checkpoint import load_strictly, read_checkpoint
from mosrt_export.utmosv2.config import ModelConfig
from mosrt_export.utmosv2.fusion import build
from mosrt_export.utmosv2.parity import Scored

from .protocol import Configuration, FrontEnd, LoadKind, time_callers, torch_makes_inputs

__all__ = ["TorchRunner", "librosa_image", "librosa_views", "torch_resize"]

Feeds = dict[str, Float32Array]


class TorchRunner:
    """Runs the checkpoints that a bundle was made from; see `mosrt_bench.worker.protocol.Runner`.

    The images of a clip are made one after the other, as the published code makes them, and those
    of a batch by a pool of threads, a clip each, as a data loader would. All views of a clip or
    batch go through the model together.

    The bundle's manifest describes the model and its inputs. With several checkpoints, scores are
    the mean over them. The variant "fp32" is without TF32. The threads are those of torch on the
    CPU, and of the front end of a batch.

    Raises:
        ProviderError: torch finds no GPU.
        CheckpointError: A checkpoint cannot be read or does not fit.
        BenchError: The bundle is of another kind, or the checkpoints are not its own.
    """

    def __init__(self, configuration: Configuration) -> None:
        _, device, *compiled = configuration.provider.split("-")
        if device == "cuda" and not torch.cuda.is_available():
            raise ProviderError(f"torch {torch.__version__} finds no GPU that it can use")
        bundle = Bundle.open(configuration.bundle)
        manifest = bundle.manifest
        _check_kind(manifest, configuration.front_end)
        networks = len(bundle.variant(next(iter(manifest.variants))).members)
        if len(configuration.checkpoints) != networks:
            raise BenchError(
                f"{manifest.name} has {networks} networks and {len(configuration.checkpoints)} "
                "checkpoints are given; pass --reference once for each"
            )
        # The precision is what the configuration's name says.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._threads = configuration.threads
        torch.set_num_threads(configuration.threads)
        self._manifest = manifest
        takes_audio = manifest.family == "segments"
        self._front_end = FusionFrontEnd(
            manifest if takes_audio else with_front_end(manifest, "numpy")
        )
        self._by_librosa = configuration.front_end == "librosa" and not takes_audio
        self._rule = PlanRule.parse(configuration.plan or "grid", configuration.views)
        self._device = torch.device(device)
        self._dtype = torch.float16 if configuration.variant == "fp16" else torch.float32
        modules: list[Any] = [
            _load(Path(path), manifest).to(self._device, self._dtype)
            for path in configuration.checkpoints
        ]
        self._models: list[Scored] = modules
        self._compiled: list[Any] = [torch.compile(_whole(each)) for each in modules if compiled]
        # A domain that the runtime computes from the outputs is none of the network's.
        default = manifest.default_domain
        self._timed = default if default in manifest.domains else manifest.domains[0]
        self._pool = ThreadPoolExecutor(configuration.threads)
        self.provider = configuration.provider
        self.facts: dict[str, Any] = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(0) if device == "cuda" else "CPU",
        }

    def score(self, clip: Path) -> dict[str, Any]:
        """See `Runner.score`."""
        torch.set_num_threads(self._threads)
        domains = self._manifest.domains
        try:
            recording = self._open(clip)
        except AudioError:
            scores = dict.fromkeys(domains, float("nan"))
            return {"scores": scores, "duration_s": float("nan")}
        inputs = self._on_device(self._views(recording))
        means = self._run(inputs, domains).mean(axis=1)
        scores = dict(zip(domains, means.tolist(), strict=True))
        if self._compiled:  # what is timed computes the default domain only
            scores[self._timed] = float(self._run(inputs).mean())
        return {"scores": scores, "duration_s": recording.duration_s}

    def time(self, clip: Path) -> dict[str, float]:
        """See `Runner.time`."""
        torch.set_num_threads(self._threads)
        data = clip.read_bytes()
        started = time.perf_counter()
        recording = self._open(data)
        opened = time.perf_counter()
        feeds = self._views(recording)
        made = time.perf_counter()
        self._run(self._on_device(feeds))
        ended = time.perf_counter()
        total_ms = 1e3 * (ended - started)
        stages = {
            **recording.timings_ms,
            "front_end": 1e3 * (made - opened),
            "model": 1e3 * (ended - made),
        }
        return {**stages, "rest": max(0.0, total_ms - sum(stages.values())), "total": total_ms}

    def run_many(self, clip: Path, kind: LoadKind, count: int, n_clips: int) -> float:
        """See `Runner.run_many`."""
        torch.set_num_threads(self._threads)
        data = clip.read_bytes()
        if kind == "callers":
            return time_callers(
                lambda: self._run(self._on_device(self._made(data))), count, n_clips
            )
        started = time.perf_counter()
        for first in range(0, n_clips, count):
            batch = [data] * min(count, n_clips - first)
            feeds = [view for views in self._pool.map(self._made, batch) for view in views]
            self._run(self._on_device(feeds))
        return time.perf_counter() - started

    def nodes(self) -> None:
        """None: a torch module runs where it was put."""

    def close(self) -> None:
        """See `Runner.close`."""
        self._pool.shutdown()
        self._models, self._compiled = [], []

    def _open(self, clip: Path | bytes) -> Recording:
        speech = self._manifest.grid.speech
        return Recording(FileSource(clip), self._manifest.sample_rate_hz, speech=speech)

    def _made(self, clip: bytes) -> list[Feeds]:
        return self._views(self._open(clip))

    def _views(self, recording: Recording) -> list[Feeds]:
        plan = self._front_end.plan(recording, self._rule)
        ssl, mel = self._manifest.ssl, self._manifest.mel
        if self._by_librosa and ssl is not None and mel is not None:
            return librosa_views(
                recording, plan, ssl=ssl, mel=mel, sample_rate_hz=self._manifest.sample_rate_hz
            )
        return list(self._front_end.views(recording, plan))

    def _on_device(self, views: Sequence[Feeds]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.stack([view[name] for view in views])).to(
                self._device, self._dtype
            )
            for name in views[0]
        }

    def _run(
        self, inputs: dict[str, torch.Tensor], domains: Sequence[str] | None = None
    ) -> FloatArray:
        """MOS (domains, networks * views) in eager torch.

        Without `domains`, of the default domain, by the compiled models where there are any.
        """
        places = [self._manifest.domains.index(d) for d in domains or (self._timed,)]
        n_views = len(next(iter(inputs.values())))
        one_hot = torch.eye(len(self._manifest.domains), dtype=self._dtype, device=self._device)
        rows = [one_hot[place].expand(n_views, -1) for place in places]
        found = []
        with torch.inference_mode():
            for i, model in enumerate(self._models):
                if self._compiled and domains is None:
                    scores = [self._compiled[i](inputs, row) for row in rows]
                else:
                    features = model.features(inputs)
                    scores = [model.score(features, row) for row in rows]
                # The lists are on the host, so the device is done when they are there.
                found.append([each.float().tolist() for each in scores])
        return np.concatenate(found, axis=1)


def librosa_image(
    crop: Float32Array, window: int, spec: MelSpec, sample_rate_hz: int
) -> Float32Array:
    """Normalised dB spectrogram (n_mels, frames) of a crop (samples,), before the resize."""
    power = librosa.feature.melspectrogram(
        y=crop,
        sr=sample_rate_hz,
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=window,
        n_mels=spec.n_mels,
        fmin=spec.f_min_hz,
        fmax=spec.f_max_hz,
    )
    level_db = librosa.power_to_db(power, ref=np.max, top_db=spec.floor_db)
    return np.asarray((level_db + spec.floor_db) / spec.floor_db, np.float32)


def torch_resize(image: Float32Array, spec: MelSpec, *, channels: int) -> Float32Array:
    """Antialiased bilinear resize of an image copied to `channels`, (channels, height, width)."""
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(np.stack([image] * channels))[None],
        size=(spec.image_height, spec.image_width),
        mode="bilinear",
        antialias=True,
    )
    return np.asarray(resized[0])


def librosa_views(
    recording: Recording, plan: CropPlan, *, ssl: SslSpec, mel: MelSpec, sample_rate_hz: int
) -> list[Feeds]:
    """The inputs of a plan's views as the published code makes them, with librosa.

    Returns:
        Per view, "waveform" (samples,), normalised, and "images" (crops * windows, height, width),
        mixed if the plan mixes.
    """
    starts = [plan.spec_starts.ravel()]
    if plan.mix_starts is not None:
        starts.append(plan.mix_starts.ravel())
    waveforms, crops = recording.gather(
        [(plan.ssl_starts, ssl.crop_samples), (np.concatenate(starts), mel.crop_samples)]
    )
    own = crops[: plan.spec_starts.size].reshape(*plan.spec_starts.shape, mel.crop_samples)
    mixed = crops[plan.spec_starts.size :]
    views = []
    for view, crop in enumerate(waveforms):
        images = []
        for i in range(own.shape[1]):
            for j, window in enumerate(mel.windows):
                image = librosa_image(own[view, i], window, mel, sample_rate_hz)
                if plan.mix_starts is not None and plan.mix_lambdas is not None:
                    place = np.ravel_multi_index((view, i, j), plan.mix_starts.shape)
                    other = librosa_image(mixed[place], window, mel, sample_rate_hz)
                    weight = np.float32(plan.mix_lambdas[view, i, j])
                    image = weight * image + (1 - weight) * other
                # The published code resizes three equal channels.
                images.append(torch_resize(image, mel, channels=3)[0])
        normalised = (crop - crop.mean()) / np.sqrt(crop.var() + ssl.epsilon)
        views.append({"waveform": normalised, "images": np.stack(images)})
    return views


def _check_kind(manifest: Manifest, front_end: FrontEnd) -> None:
    """Raises BenchError where torch has no such model."""
    if manifest.uncertainty is not None:
        raise BenchError(
            f"{manifest.name} scores by its uncertainty; --reference compares MOS models only"
        )
    if front_end == "librosa" and not torch_makes_inputs(manifest):
        raise BenchError(
            f"{manifest.name} is no fusion bundle made from a torch checkpoint, which is what "
            "librosa's front end is for"
        )


def _whole(model: Scored) -> Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]:
    """A model from its inputs and one-hot domains (batch, domains) to scores (batch,)."""
    return lambda inputs, domain: model.score(model.features(inputs), domain)


def _load(path: Path, manifest: Manifest) -> Any:
    """The torch module of a checkpoint, also a `Scored`, in evaluation mode on the CPU."""
    if manifest.family == "segments":
        model = _student(path) or EagerDistillMos(path)
    else:
        checkpoint = read_checkpoint(path)
        config = manifest.provenance.get("config")
        model = build(
            checkpoint.kind,
            ModelConfig() if config is None else ModelConfig.from_dict(config),
            checkpoint.n_domains,
        )
        load_strictly(model, checkpoint)
    if model.n_domains != len(manifest.domains):
        raise BenchError(
            f"{path}: {model.n_domains} domains, and {manifest.name} has "
            f"{len(manifest.domains)}; it is another model's checkpoint"
        )
    return model


def _student(path: Path) -> Any:
    """The torch module of a student of `mosrt distill`; None if the checkpoint is of another model.

    Raises:
        CheckpointError: The student is of another version of mosrt.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        is_student = str(saved["format"]).startswith("mosrt-")
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        is_student = False  # whatever it is, the model that it is taken for says so
    if not is_student:
        return None
    from mosrt_export.distill.train.model import (  # noqa: PLC0415 - extra `train`
        Student,
        StudentGraph,
    )

    return StudentGraph(Student.load(path))
