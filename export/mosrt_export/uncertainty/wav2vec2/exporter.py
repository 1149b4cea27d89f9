"""Exports wav2vec 2.0 and HuBERT models of transformers as uncertainty bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from mosrt.audio.recording import Recording
from mosrt.audio.sources import AudioSource
from mosrt.bundle.manifest import Manifest, TensorSpec
from mosrt.bundle.uncertainty_spec import DropoutSpec, MaskingSpec, UncertaintySpec
from mosrt.bundle.writer import check_target
from mosrt.crops import normalised
from mosrt.uncertainty.family import Stages
from mosrt.uncertainty.sampling import SeededSampler
from mosrt.uncertainty.wav2vec2 import MaskingFamily
from mosrt_export.graphs.graph import example_of, write_dynamic_graph
from mosrt_export.uncertainty.bundle import (
    Drift,
    GraphFiles,
    StagedRequest,
    keep_worst,
    provenance,
    write_bundle,
)
from mosrt_export.uncertainty.wav2vec.exporter import (
    DOMAIN,
    SAMPLE_RATE_HZ,
    TOLERANCE,
    WINDOW_S,
    ZERO_PAD_BELOW_SAMPLES,
)
from mosrt_export.utmosv2.exporter import Step
from mosrt_export.utmosv2.parity import relative

from .graphs import Convolutions, DropoutEncoder, MaskedEncoder, simplify
from .source import Head, Source, load_source

__all__ = ["Wav2Vec2Request", "export_wav2vec2"]

_PASSES_PER_RUN: Final = 5
# Frames of the shortest recording: a masked frame and its distractors.
_MIN_FRAMES: Final = 3
_PARITY_SAMPLES: Final = (2_000, 24_000)


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


def export_wav2vec2(
    request: Wav2Vec2Request,
    out: Path,
    *,
    clips: Sequence[AudioSource],
    step: Step,
    force: bool = False,
) -> Drift:
    """Exports a transformers model as a bundle; arguments are as for `export_wav2vec`."""
    check_target(out, force=force)
    with step(f"loading {request.model}"):
        source = load_source(request.model, request.head)
        manifest = _manifest(request, source)

    def write(directory: Path) -> dict[str, GraphFiles]:
        return _write_graphs(source, request.head, manifest, directory)

    def compare(stages: Stages) -> dict[str, float]:
        return _differences(source, manifest, stages, clips)

    return write_bundle(
        manifest,
        out,
        write=write,
        compare=compare,
        n_clips=len(clips),
        tolerance=TOLERANCE,
        step=step,
        force=force,
    )


def _tensors(
    source: Source, manifest_head: Head, n_negatives: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """All inputs and outputs of both graphs."""
    channels = int(source.config.conv_dim[-1])

    def tensor(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    waveform = tensor("waveform", "batch", "samples")
    features = tensor("features", "batch", "frames", channels)
    if manifest_head == "ctc":
        columns = source.config.hidden_size if source.head is None else source.config.vocab_size
        return (
            (waveform, tensor("keep", "passes", "frames", channels)),
            (features, tensor("logits", "passes", "frames", int(columns))),
        )
    return (
        (
            waveform,
            tensor("spans", "batch", "frames"),
            tensor("negatives", "batch", "frames", n_negatives, dtype="int64"),
        ),
        (features, tensor("logits", "batch", "frames", 1 + n_negatives)),
    )


def _manifest(request: Wav2Vec2Request, source: Source) -> Manifest:
    """The manifest without variants."""
    config = source.config
    ctc = request.head == "ctc"
    n_negatives = 0 if ctc else int(config.num_negatives)
    inputs, outputs = _tensors(source, request.head, n_negatives)
    layout = "ctc" if ctc else "pretraining"
    dropout = masking = None
    if ctc:
        dropout = DropoutSpec(
            probability=request.dropout,
            n_passes=request.n_passes if request.dropout else 1,
            passes_per_run=_PASSES_PER_RUN,
            channels=int(config.conv_dim[-1]),
            dropped_columns=source.dropped_columns,
        )
    else:
        masking = MaskingSpec(
            probability=request.mask_share,
            span_frames=int(config.mask_time_length),
            n_negatives=n_negatives,
            n_passes=request.n_passes,
        )
    return Manifest(
        name=request.name,
        family=f"wav2vec2-{layout}",
        sample_rate_hz=SAMPLE_RATE_HZ,
        ssl=None,
        mel=None,
        domains=(DOMAIN,),
        default_domain=DOMAIN,
        inputs=inputs,
        outputs=outputs,
        variants={},
        provenance=provenance(
            source=[{"file": Path(request.model).name}],
            config={
                "head": "hidden units" if ctc and source.head is None else request.head,
                "model_type": config.model_type,
                "feat_extract_norm": config.feat_extract_norm,
            },
            licence=request.licence,
            training_data=request.training_data,
            libraries=("transformers",),
        ),
        uncertainty=UncertaintySpec(
            hop_samples=source.hop_samples,
            receptive_samples=source.receptive_samples,
            min_samples=source.receptive_samples + (_MIN_FRAMES - 1) * source.hop_samples,
            zero_pad_below_samples=ZERO_PAD_BELOW_SAMPLES,
            window_samples=WINDOW_S * SAMPLE_RATE_HZ,
            normalised=source.normalised,
            layouts=(layout,),
            measure=f"{layout}.{request.measure}",
            sign=request.sign,
            seed=request.seed,
            dropout=dropout,
            masking=masking,
        ),
    )


def _write_graphs(
    source: Source, head: Head, manifest: Manifest, directory: Path
) -> dict[str, GraphFiles]:
    # Loaded again: the original is what graphs are compared with, and copies of modules with
    # weight norm share what `simplify` removes.
    model = load_source(source.name, head).model
    simplify(model)
    base = model.base_model
    encoder: nn.Module
    if head == "ctc":
        encoder = DropoutEncoder(base, None if source.head is None else model.lm_head)
        taken: tuple[str, ...] = ("features", "keep")
    else:
        encoder = MaskedEncoder(model)
        taken = ("features", "spans", "negatives")
    specs = {spec.name: spec for spec in (*manifest.inputs, *manifest.outputs)}
    sizes = {"batch": 2, "samples": 4_000, "frames": 11, "passes": 3}
    files = {}
    for stage, module, inputs, outputs in (
        ("convolutions", Convolutions(base), ("waveform",), ("features",)),
        ("encoder", encoder, taken, ("logits",)),
    ):
        given = [specs[name] for name in inputs]
        if stage == "encoder" and head == "ctc":
            # One recording's features, for all passes.
            given[0] = TensorSpec(name="features", dtype="float32", shape=(1, *given[0].shape[1:]))
        files[stage] = write_dynamic_graph(
            module.eval(),
            [example_of(spec, sizes) for spec in given],
            inputs=given,
            outputs=[specs[name] for name in outputs],
            path=directory / f"{stage}.fp32.onnx",
        )
    return files


def _differences(
    source: Source, manifest: Manifest, stages: Stages, clips: Sequence[AudioSource]
) -> dict[str, float]:
    """Largest relative differences between graphs and the transformers model."""
    spec = manifest.uncertainty
    if spec is None:
        raise ValueError("not an uncertainty manifest")
    found: dict[str, float] = {}
    for i, clip in enumerate(clips):
        recording = Recording(clip, manifest.sample_rate_hz)
        n_samples = min(recording.n_samples, _PARITY_SAMPLES[i > 0])
        chunk = next(recording.chunks([(0, n_samples)]))
        samples = normalised(chunk) if spec.normalised else chunk
        with torch.inference_mode():
            expected = source.base.feature_extractor(torch.from_numpy(samples)[None])
        features = stages["convolutions"].run({"waveform": samples[None]}, ["features"])
        z = features["features"][0]
        keep_worst(found, "features", relative(z, expected.transpose(1, 2).numpy()))
        if spec.dropout is not None:
            keep = SeededSampler(spec.seed, i).keep(spec.dropout.probability, (2, *z.shape[1:]))
            feeds = {"features": z, "keep": keep}
            logits = stages["encoder"].run(feeds, ["logits"])["logits"][0]
            with torch.inference_mode():
                answer = torch_logits(source, torch.from_numpy(z * keep))
            keep_worst(found, "logits", relative(logits, answer.numpy()))
        elif spec.masking is not None:
            family = MaskingFamily(spec, spec.masking, stages)
            spans, negatives = family.sample(SeededSampler(spec.seed, i), z.shape[1])
            logits = family.logits(z, spans, negatives)
            with torch.inference_mode():
                reference = MaskedEncoder(source.model)(
                    *map(torch.from_numpy, (z, spans[None], negatives[None]))
                ).numpy()[0]
            same = np.isneginf(reference)
            if not np.array_equal(same, np.isneginf(logits)):
                found["logits"] = np.nan
                continue
            keep_worst(found, "logits", relative(logits[~same], reference[~same]))
    return found


def torch_logits(source: Source, features: torch.Tensor) -> torch.Tensor:
    """The transformers model's own path from features (batch, frames, channels) to logits."""
    projected: Any = source.base.feature_projection(features)
    hidden = projected[0] if isinstance(projected, tuple) else projected
    last: torch.Tensor = source.base.encoder(hidden, return_dict=True).last_hidden_state
    return last if source.head is None else source.head(last)
