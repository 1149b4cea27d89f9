"""Writes bundles of uncertainty models, after comparing their graphs with torch."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import nn

from mosrt._arrays import Float32Array
from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.uncertainty_spec import STAGES, UncertaintySpec, stages_in_use
from mosrt.bundle.writer import check_target, new_directory
from mosrt.uncertainty.family import Stages, load_stages
from mosrt_export.errors import CheckpointError
from mosrt_export.graphs.graph import OPSET, tensor, write_graph
from mosrt_export.model_card import provenance, uncertainty_card
from mosrt_export.parity import Drift, Step, publish, rounded

__all__ = ["N_STEPS", "TOLERANCE", "StagedModel", "StagedRequest", "differences", "export_staged"]

N_STEPS: Final = 4
"""Number of steps that an export announces, including reading the checkpoint."""
TOLERANCE: Final = 1e-4
"""The largest relative difference from torch that passes."""
_DOMAIN: Final = "zero-shot"
_SAMPLE_RATE_HZ: Final = 16_000
_WINDOW_S: Final = 20
# The published code of arXiv 2312.15616 pads shorter clips with zeros at the start.
_ZERO_PAD_BELOW_SAMPLES: Final = 750


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRequest(ABC):
    """An export of an uncertainty model, with the options that all such exports share.

    Attributes:
        name: Name of the model.
        measure: The measure that is used as the uncertainty, as the exporter names it.
        sign: 1 if the measure grows with uncertainty, -1 if it falls.
        seed: Seed of all random sampling.
        licence: Licence of the weights, for the model card.
        training_data: What the model was trained on, for the model card.
        note: First paragraph of the model card, or None.
    """

    name: str
    measure: str
    sign: int
    seed: int = 0
    licence: str | None = None
    training_data: str | None = None
    note: str | None = None

    @property
    @abstractmethod
    def first_step(self) -> str:
        """What `load` does, as it is announced."""

    @abstractmethod
    def load(self) -> StagedModel:
        """Reads the model.

        Raises:
            CheckpointError: It cannot be read, or is of another kind.
        """

    def manifest(
        self,
        family: str,
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        checkpoint: Mapping[str, str],
        config: Mapping[str, Any],
        libraries: Sequence[str],
        **spec: Any,
    ) -> Manifest:
        """The manifest of the model, without variants.

        `checkpoint`, `config` and `libraries` are as in `mosrt_export.model_card.provenance`, and
        `spec` has the fields of `UncertaintySpec` that the network and its family set.

        Raises:
            CheckpointError: No recording that the runtime scores at once is long enough.
        """
        if spec["min_samples"] > _WINDOW_S * _SAMPLE_RATE_HZ:
            raise CheckpointError(
                f"{self.name}: needs {spec['min_samples']:.3g} samples for a prediction, more than "
                f"{_WINDOW_S} s; its kernels, strides or offset are those of no model"
            )
        origin = provenance(
            [checkpoint],
            config=config,
            licence=self.licence,
            training_data=self.training_data,
            libraries=libraries,
        )
        return Manifest(
            name=self.name,
            family=family,
            sample_rate_hz=_SAMPLE_RATE_HZ,
            ssl=None,
            mel=None,
            domains=(_DOMAIN,),
            default_domain=_DOMAIN,
            inputs=inputs,
            outputs=outputs,
            variants={},
            provenance=origin if self.note is None else {"note": self.note, **origin},
            uncertainty=UncertaintySpec(
                zero_pad_below_samples=_ZERO_PAD_BELOW_SAMPLES,
                window_samples=_WINDOW_S * _SAMPLE_RATE_HZ,
                sign=self.sign,
                seed=self.seed,
                **spec,
            ),
        )


class StagedModel(ABC):
    """A model whose bundle has several graphs, which the runtime runs in stages.

    Attributes:
        manifest: The manifest; the variants are added by the export.
        sizes: A size for each named dimension, to trace with.
        parity_samples: How many samples of the first clip, and of every other, are compared.
        single: Inputs of later stages that hold one recording, whatever the batch.
    """

    manifest: Manifest
    sizes: Mapping[str, int]
    parity_samples: tuple[int, int]
    single: frozenset[str] = frozenset()

    @property
    def spec(self) -> UncertaintySpec:
        """The manifest's section about uncertainty."""
        if self.manifest.uncertainty is None:
            raise ValueError(f"{self.manifest.name} gives no uncertainty")
        return self.manifest.uncertainty

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """The modules behind the graphs, in evaluation mode, by stage."""

    @abstractmethod
    def differences(
        self, stages: Stages, samples: Float32Array, number: int
    ) -> Iterator[tuple[str, float]]:
        """Relative differences of the stages from torch, by tensor.

        `samples`, (samples,), are part of the clip with this number.
        """


def export_staged(
    request: StagedRequest, out: Path, *, clips: Sequence[AudioSource], step: Step, force: bool
) -> Drift:
    """Reads a model, writes its graphs, compares them through the runtime, and writes the bundle.

    Arguments and result are as for `mosrt_export.utmosv2.exporter.export_bundle`.

    Raises:
        CheckpointError: The checkpoint cannot be read or does not fit.
        BundleError: The manifest contradicts itself.
        OutputError: `out` must not or cannot be written.
        ParityError: A graph and its torch module disagree; nothing was written.
    """
    check_target(out, force=force)
    with step(request.first_step):
        model = request.load()
    with new_directory(out, force=force) as directory:
        with step("exporting"):
            variant = Variant(opset=OPSET, members=tuple(_write_graphs(model, directory)))
        manifest = dataclasses.replace(model.manifest, variants={"fp32": variant})
        # Read back, which raises if it contradicts itself.
        manifest = Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())))
        with step(f"comparing with torch on {len(clips)} clips"):
            stages = load_stages(manifest, variant, directory, provider="cpu", threads=1)
            try:
                found = differences(model, stages, clips)
            finally:
                for stage in stages.values():
                    stage.close()
        drift = Drift(
            values={
                **{f"{name}_max_rel": rounded(value) for name, value in found.items()},
                "n_clips": len(clips),
                "against": "torch fp32",
            },
            limit=f"{TOLERANCE:g}",
            rows=[(f"{name:14} {value:9.1e}", value <= TOLERANCE) for name, value in found.items()],
        )
        drift.check()
        with step(f"writing {out.name}"):
            publish(directory, manifest, drift, card=uncertainty_card)
    return drift


def _write_graphs(model: StagedModel, directory: Path) -> Iterator[Member]:
    """Writes the graphs that the layouts of the model need."""
    manifest = model.manifest
    tensors = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    alone = {name: (1, *tensors[name].shape[1:]) for name in model.single}
    modules = model.modules()
    for stage in stages_in_use(manifest.family, model.spec.layouts):
        taken, given = STAGES[manifest.family][stage]
        yield write_graph(
            stage,
            modules[stage],
            directory / f"{stage}.fp32.onnx",
            inputs=[
                tensor(name, *alone.get(name, tensors[name].shape), dtype=tensors[name].dtype)
                for name in taken
            ],
            outputs=[tensors[name] for name in given],
            sizes=model.sizes,
        )


def differences(
    model: StagedModel, stages: Stages, clips: Sequence[AudioSource]
) -> dict[str, float]:
    """The largest relative difference of the graphs from torch, by tensor; nan if not finite."""
    worst: dict[str, float] = {}
    for number, clip in enumerate(clips):
        recording = Recording(clip, model.manifest.sample_rate_hz)
        n_samples = min(recording.n_samples, model.parity_samples[number > 0])
        samples = next(recording.chunks([(0, n_samples)]))
        for name, value in model.differences(stages, samples, number):
            before = worst.get(name, 0.0)
            # A comparison with nan is false, so nan is larger than any number.
            worst[name] = value if not value <= before else before
    return worst
