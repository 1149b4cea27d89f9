"""Exports wav2vec 2.0 and HuBERT models of transformers as uncertainty bundles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt._arrays import Float32Array
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.uncertainty_spec import DropoutSpec, MaskingSpec
from mosrt.crops import normalised
from mosrt.uncertainty.family import Stages
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec2 import MaskingFamily
from mosrt_export.graphs.graph import tensor
from mosrt_export.parity import relative
from mosrt_export.uncertainty.bundle import StagedModel, StagedRequest
from mosrt_export.uncertainty.wav2vec.model import receptive_field

from .graphs import Convolutions, DropoutEncoder, MaskedEncoder, simplify
from .source import Head, Source, load_source

__all__ = ["Wav2Vec2Request"]

_LIBRARIES: Final = ("mosrt", "torch", "onnx", "onnxscript", "transformers")
_PASSES_PER_RUN: Final = 5
_MIN_FRAMES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Wav2Vec2Request(StagedRequest):
    """Options of an export; `measure` is "mean", "std", "max" or "entropy".

    Attributes:
        model: Name on Hugging Face, or a directory.
        head: "ctc" (the hidden units if the model has no CTC head) or "pretraining".
        dropout: Dropout probability of feature values in each pass, for head "ctc".
        mask_share: Share of frames that the masked spans of a pass would cover without overlap,
            for head "pretraining". The value in transformers' configurations is for fine-tuning.
        n_passes: Number of passes with dropout or masking.
    """

    model: str
    head: Head
    dropout: float
    mask_share: float
    n_passes: int

    @property
    def first_step(self) -> str:
        """Names the model."""
        return f"loading {self.model}"

    def load(self) -> StagedModel:
        """Loads the model."""
        source = load_source(self.model, self.head)
        return _Staged(source, self.head, _manifest(self, source))


def _manifest(request: Wav2Vec2Request, source: Source) -> Manifest:
    """The manifest without variants: of a model run with dropout, or with masked frames."""
    config, head = source.config, request.head
    channels = int(config.conv_dim[-1])
    hop_samples = math.prod(config.conv_stride)
    receptive_samples = receptive_field(zip(config.conv_kernel, config.conv_stride, strict=True))
    trained_head: str = head
    method: dict[str, DropoutSpec | MaskingSpec]
    if head == "ctc":
        random = [tensor("keep", "passes", "frames", channels)]
        columns = config.vocab_size
        if source.head is None:
            columns, trained_head = config.hidden_size, "hidden units"
        logits = tensor("logits", "passes", "frames", int(columns))
        dropout = DropoutSpec(
            probability=request.dropout,
            n_passes=request.n_passes if request.dropout else 1,
            passes_per_run=_PASSES_PER_RUN,
            channels=channels,
            dropped_columns=source.dropped_columns,
        )
        method = {"dropout": dropout}
    else:
        masking = MaskingSpec(
            probability=request.mask_share,
            span_frames=int(config.mask_time_length),
            n_negatives=int(config.num_negatives),
            n_passes=request.n_passes,
        )
        negatives = tensor("negatives", "batch", "frames", masking.n_negatives, dtype="int64")
        random = [tensor("spans", "batch", "frames"), negatives]
        logits = tensor("logits", "batch", "frames", 1 + masking.n_negatives)
        method = {"masking": masking}
    return request.manifest(
        f"wav2vec2-{head}",
        inputs=(tensor("waveform", "batch", "samples"), *random),
        outputs=(tensor("features", "batch", "frames", channels), logits),
        checkpoint={"file": Path(request.model).name},
        config={
            "head": trained_head,
            "model_type": config.model_type,
            "feat_extract_norm": config.feat_extract_norm,
        },
        libraries=_LIBRARIES,
        hop_samples=hop_samples,
        receptive_samples=receptive_samples,
        # For one masked frame and its distractors.
        min_samples=receptive_samples + (_MIN_FRAMES - 1) * hop_samples,
        normalised=source.normalised,
        layouts=(head,),
        measure=f"{head}.{request.measure}",
        **method,
    )


class _Staged(StagedModel):
    """A transformers model and the manifest of its bundle."""

    sizes = {"batch": 2, "samples": 4_000, "frames": 11, "passes": 3}  # noqa: RUF012
    parity_samples = (2_000, 24_000)

    def __init__(self, source: Source, head: Head, manifest: Manifest) -> None:
        self.source, self.head, self.manifest = source, head, manifest
        if head == "ctc":  # one recording's features, for all passes
            self.single = frozenset({"features"})

    def modules(self) -> dict[str, nn.Module]:
        """The convolutions and the encoder of the model, loaded once more.

        The original is what graphs are compared with, and copies of modules with weight norm share
        what `simplify` removes.
        """
        model = load_source(self.source.name, self.head).model
        simplify(model)
        base = model.base_model
        encoder: nn.Module = (
            MaskedEncoder(model)
            if self.head == "pretraining"
            else DropoutEncoder(base, None if self.source.head is None else model.lm_head)
        )
        return {"convolutions": Convolutions(base).eval(), "encoder": encoder.eval()}

    def differences(
        self, stages: Stages, samples: Float32Array, number: int
    ) -> Iterator[tuple[str, float]]:
        """Features and logits, with the same random samples, compared with transformers."""
        spec, source = self.spec, self.source
        sampler = SeededSampler(spec.seed, number)
        if spec.normalised:
            samples = normalised(samples)
        with torch.inference_mode():
            expected = source.base.feature_extractor(torch.from_numpy(samples)[None])
        z = stages["convolutions"].run({"waveform": samples[None]}, ["features"])["features"][0]
        yield "features", relative(z, expected.transpose(1, 2).numpy())
        if spec.dropout is not None:
            keep = sampler.keep(spec.dropout.probability, (2, *z.shape[1:]))
            logits = stages["encoder"].run({"features": z, "keep": keep}, ["logits"])["logits"][0]
            with torch.inference_mode():
                reference = _torch_logits(source, torch.from_numpy(z * keep)).numpy()
        elif spec.masking is not None:
            family = MaskingFamily(spec, spec.masking, stages)
            spans, negatives = family.sample(sampler, z.shape[1])
            logits = family.logits(z, spans, negatives)
            with torch.inference_mode():
                masked = MaskedEncoder(source.model)
                given = (torch.from_numpy(x) for x in (z, spans[None], negatives[None]))
                reference = masked(*given).numpy()[0]
        excluded = np.isneginf(reference)
        if np.array_equal(excluded, np.isneginf(logits)):
            yield "logits", relative(logits[~excluded], reference[~excluded])
        else:
            yield "logits", np.nan


def _torch_logits(source: Source, features: torch.Tensor) -> torch.Tensor:
    """The transformers model's own path from features (batch, frames, channels) to logits."""
    projected: Any = source.base.feature_projection(features)
    hidden = projected[0] if isinstance(projected, tuple) else projected
    last: torch.Tensor = source.base.encoder(hidden, return_dict=True).last_hidden_state
    return last if source.head is None else source.head(last)
