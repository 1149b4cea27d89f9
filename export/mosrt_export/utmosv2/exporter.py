"""Exports UTMOSv2 checkpoints as a bundle, after comparing its graphs with torch."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.writer import check_target, new_directory
from mosrt.host.files import sha256_of
from mosrt_export.errors import CheckpointError, ConfigError
from mosrt_export.graphs.front_end import AudioGraph, mel_tensor, with_front_end
from mosrt_export.graphs.graph import BATCH, OPSET, OnnxModule, tensor, write_graph
from mosrt_export.model_card import mos_card, provenance
from mosrt_export.parity import Drift, Step, publish

from .checkpoint import (
    FOLDS,
    LICENCE,
    PINNED_REVISION,
    REPOSITORY,
    TRAINING_DATA,
    Checkpoint,
    load_strictly,
    read_checkpoint,
)
from .config import PUBLISHED_DOMAINS, Kind, ModelConfig
from .fusion import GraphModel, Model, build
from .parity import compare, drift_of, make_views

__all__ = ["Source", "export_bundle", "n_steps"]

_LIBRARIES: Final = ("mosrt", "torch", "timm", "transformers", "onnx", "onnxscript")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint file and its origin.

    Attributes:
        path: The file.
        member: Name of the network in the bundle, e.g. "fold0".
        revision: Revision of the published repository that it comes from, or None.
    """

    path: Path
    member: str
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What all networks of a bundle have in common."""

    config: ModelConfig
    kind: Kind
    domains: tuple[str, ...]
    front_end: str

    @property
    def ssl(self) -> SslSpec | None:
        """Front end of the waveform branch, if there is one."""
        if self.kind == "spec":
            return None
        ssl = self.config.ssl
        return SslSpec(tensor="waveform", crop_samples=ssl.crop_samples, epsilon=ssl.epsilon)

    @property
    def mel(self) -> MelSpec | None:
        """Front end of the spectrogram branch, if there is one."""
        return None if self.kind == "ssl" else self.config.spectrogram.images

    def build(self, checkpoint: Checkpoint) -> Model:
        """The original module with a checkpoint's weights."""
        model = build(self.kind, self.config, len(self.domains))
        load_strictly(model, checkpoint)
        return model


def n_steps(n_sources: int) -> int:
    """Number of steps that `export_bundle` announces."""
    return 3 * n_sources + 1


def export_bundle(
    sources: Sequence[Source],
    config: ModelConfig,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    step: Step,
    front_end: str = "numpy",
    force: bool = False,
) -> Drift:
    """Exports a bundle with one FP32 graph per checkpoint.

    Args:
        sources: Checkpoints of one kind and one set of domains; several make an ensemble.
        config: The architecture of the model.
        out: Directory of the bundle to write.
        clips: Audio on which graphs and torch modules are compared.
        step: Announces progress.
        front_end: One of `mosrt.bundle.front_end_spec.FRONT_ENDS`.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        CheckpointError: A checkpoint cannot be read or does not fit.
        ConfigError: The configuration does not describe the checkpoints.
        OutputError: `out` must not or cannot be written.
        ParityError: A graph and its torch module disagree; nothing was written.
    """
    check_target(out, force=force)
    plan: _Plan | None = None
    digests: list[str] = []
    for source in sources:
        with step(f"reading {source.path.name}"):
            plan = _plan(read_checkpoint(source.path), config, front_end, plan)
            digest = sha256_of(source.path)
            if digest in digests:
                twin = sources[digests.index(digest)].path
                raise CheckpointError(f"{source.path}: the same network as {twin}; give it once")
            digests.append(digest)
    if plan is None:
        raise CheckpointError("nothing to export: pass a checkpoint or --fold")
    with new_directory(out, force=force) as directory:
        manifest = _manifest(plan, sources, digests)
        members = []
        for source in sources:
            with step(f"exporting {source.member}"):
                member, outputs = _export_member(source, plan, manifest.inputs, directory)
                members.append(member)
        variants = {"fp32": Variant(opset=OPSET, members=tuple(members))}
        manifest = dataclasses.replace(manifest, outputs=outputs, variants=variants)
        views = make_views(manifest, clips)
        rows = []
        for source, member in zip(sources, members, strict=True):
            with step(f"comparing {source.member} with torch on {len(views)} clips"):
                model = plan.build(read_checkpoint(source.path))
                rows += compare(directory, manifest, member, model, views)
                del model
                gc.collect()
        drift = drift_of(rows)
        drift.check()
        with step(f"writing {out.name}"):
            publish(directory, manifest, drift, card=mos_card)
    return drift


def _plan(
    checkpoint: Checkpoint, config: ModelConfig, front_end: str, previous: _Plan | None
) -> _Plan:
    """Checks a checkpoint against the configuration and the checkpoints before it."""
    path, kind, n_domains = checkpoint.path, checkpoint.kind, checkpoint.n_domains
    if config.kind is not None and config.kind != kind:
        raise CheckpointError(
            f"{path}: its keys are those of a {kind} model, not {config.kind}; leave --kind (or "
            "`kind` in the configuration) out"
        )
    domains = PUBLISHED_DOMAINS if config.domains is None else config.domains
    if len(domains) != n_domains:
        names = ", ".join(repr(f"name{i}") for i in range(n_domains))
        cure = "correct `domains` in the configuration"
        if config.domains is None:
            cure = (
                "name them in order in a configuration file, e.g. "
                f"domains = [{names}], and pass it with --config"
            )
        raise ConfigError(
            f"{path}: the model has {n_domains} data domains, but {len(domains)} are named; {cure}"
        )
    plan = _Plan(config=config, kind=kind, domains=domains, front_end=front_end)
    if previous is not None and plan != previous:
        raise CheckpointError(
            f"{path}: a {kind} model with {n_domains} domains cannot join an ensemble of "
            f"{previous.kind} models with {len(previous.domains)}"
        )
    return plan


def _export_member(
    source: Source, plan: _Plan, inputs: Sequence[TensorSpec], directory: Path
) -> tuple[Member, tuple[TensorSpec, ...]]:
    """Writes one network's graph and weights; returns its entry and its outputs."""
    model: OnnxModule = GraphModel(plan.build(read_checkpoint(source.path)))
    if plan.front_end == "graph":
        rate_hz = plan.config.sample_rate_hz
        model = AudioGraph(model, ssl=plan.ssl, mel=plan.mel, sample_rate_hz=rate_hz)
    outputs = tuple(tensor(name, BATCH, size) for name, size in model.output_sizes.items())
    path = directory / f"model.{source.member}.fp32.onnx"
    member = write_graph(source.member, model, path, inputs=inputs, outputs=outputs)
    del model
    gc.collect()
    return member, outputs


def _manifest(plan: _Plan, sources: Sequence[Source], digests: Sequence[str]) -> Manifest:
    """The manifest without networks and outputs."""
    config, ssl, mel = plan.config, plan.ssl, plan.mel
    default = config.default_domain
    if default is None:
        default = "sarulab" if "sarulab" in plan.domains else plan.domains[0]
    inputs = []
    if ssl is not None:
        inputs.append(tensor(ssl.tensor, BATCH, ssl.crop_samples))
    if mel is not None:
        inputs.append(mel_tensor(mel, "numpy"))
    manifest = Manifest(
        name=config.name,
        family=plan.kind,
        sample_rate_hz=config.sample_rate_hz,
        ssl=ssl,
        mel=mel,
        domains=plan.domains,
        default_domain=default,
        inputs=tuple(inputs),
        outputs=(),
        variants={},
        provenance=_provenance(plan, sources, digests),
    )
    return with_front_end(manifest, plan.front_end)


def _provenance(plan: _Plan, sources: Sequence[Source], digests: Sequence[str]) -> dict[str, Any]:
    checkpoints = []
    for source, digest in zip(sources, digests, strict=True):
        entry = {"member": source.member, "file": source.path.name, "sha256": digest}
        # A published file is recognised by its digest, wherever it is.
        revision = source.revision or (PINNED_REVISION if digest in FOLDS.values() else None)
        if revision is not None:
            entry |= {"repository": REPOSITORY, "revision": revision}
        checkpoints.append(entry)
    published = all("repository" in entry for entry in checkpoints)
    return provenance(
        checkpoints,
        config=plan.config.to_dict(),
        licence=plan.config.licence or (LICENCE if published else None),
        training_data=plan.config.training_data or (TRAINING_DATA if published else None),
        libraries=_LIBRARIES,
    )
