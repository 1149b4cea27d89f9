"""Exports Distill-MOS, a published model of 4 million parameters, from its package `distillmos`.

B. Stahl and H. Gamper, "Distillation and Pruning for Scalable Self-Supervised
Representation-Based Speech Quality Assessment" (arXiv 2502.05356). The graph reads segments of
audio: it scales them to their peak, computes the compressed complex spectrogram, and runs the
published convolutions and transformer. The short-time Fourier transform is one convolution.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from mosrt.audio.sources import AudioSource
from mosrt.bundle.front_end_spec import FRONT_END_SCOPE, SslSpec
from mosrt.bundle.manifest import Manifest, TensorSpec, Variant
from mosrt.bundle.writer import check_target, new_directory

from .errors import CheckpointError
from .graphs.graph import BATCH, FRAMES, OPSET, tensor, write_graph
from .model_card import distillmos_card, provenance
from .parity import Drift, Step, compared, publish

__all__ = ["N_STEPS", "DistillMos", "EagerDistillMos", "export_distillmos", "published_model"]

N_STEPS: Final = 4
_TOLERANCE_MOS: Final = 1e-4
_HALF_TOLERANCE_MOS: Final = 2e-3
_SAMPLE_RATE_HZ: Final = 16_000
_SEGMENT_SAMPLES: Final = 122_880
_HOP_SAMPLES: Final = 16_000  # largest distance between segments
_COLUMN: Final = 320  # samples from one column of features to the next
_COLUMNS: Final = _SEGMENT_SAMPLES // _COLUMN
_FRAME_SIZE: Final = 200
_STEP_SAMPLES: Final = 8 * _COLUMN
_EDGE: Final = 3  # a column sees 6 frames, of half a column each, to either side
_FFT: Final = 320
_FRAME_HOP: Final = 160
_EXPONENT: Final = 0.3
_DOMAIN: Final = "overall"
_INPUTS: Final = (tensor("waveform", BATCH, "samples"),)
_OUTPUTS: Final = (tensor("mos", BATCH, 1),)
_LIBRARIES: Final = ("mosrt", "torch", "distillmos", "onnx", "onnxscript")


class _ComplexSpectrogram(nn.Module):
    """Segments (batch, samples) to (batch, 2, bins, frames), magnitudes to the power 0.3."""

    def __init__(self) -> None:
        super().__init__()
        turns = np.outer(np.arange(_FFT // 2 + 1), np.arange(_FFT)) % _FFT / _FFT
        # The package's window, in single precision. Its rounding counts: bins 120 dB below the
        # loudest ones are raised by the exponent, and an exact window moves scores by 5e-4 MOS.
        hann = torch.hann_window(_FFT).double().numpy()
        phasors = np.exp(-2j * np.pi * turns) * hann
        rows = np.concatenate([phasors.real, phasors.imag])[:, None]
        self.register_buffer("rows", torch.from_numpy(rows.astype(np.float32)))

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """Compressed real and imaginary parts; a segment's level has no effect."""
        peak = segments.abs().amax(dim=1, keepdim=True)
        margin = (_FFT - _FRAME_HOP) // 2
        padded = functional.pad((segments / (peak + 1e-8))[:, None], (margin, margin), "reflect")
        spectra = functional.conv1d(padded, self.get_buffer("rows"), stride=_FRAME_HOP)
        spectra = spectra.reshape(spectra.shape[0], 2, _FFT // 2 + 1, -1)
        magnitude = spectra.square().sum(1, keepdim=True).sqrt().clip(min=1e-12)
        compressed: torch.Tensor = magnitude ** (_EXPONENT - 1) * spectra
        return compressed


class DistillMos(nn.Module):
    """The published model from segments of audio to MOS.

    Zeros at a segment's end have constant features, which are stored instead of computed.

    Args:
        published: The package's model.
        frames: Whether the transformer's output is one of the graph, for students.
    """

    def __init__(self, published: nn.Module, *, frames: bool = False) -> None:
        super().__init__()
        self.frames = frames
        self.add_module(FRONT_END_SCOPE, _ComplexSpectrogram())
        self.cnn = published.get_submodule("cnn.cnn")
        self.head = published.get_submodule("transformer_pool_attn")
        with torch.inference_mode():
            silent = self._features(torch.zeros(1, _SEGMENT_SAMPLES))[..., -_EDGE - 1 :]
        self.register_buffer("silence", silent[..., :1].clone())
        self.register_buffer("edge", silent[..., 1:].clone())

    def _features(self, waveform: torch.Tensor) -> torch.Tensor:
        features = self.cnn(self.get_submodule(FRONT_END_SCOPE)(waveform))
        flat: torch.Tensor = features.flatten(1, -2)
        return flat

    def forward(self, waveform: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """MOS (batch, 1) of segments (batch, samples) in [-1, 1], as if zeros followed.

        With `frames`, also the frames (batch, 384, 200) of 20 ms that the score is pooled from.
        `samples` is 122880, or a multiple of 2560 below, and the last 2560 of those are zeros.
        """
        features = self._features(waveform)
        # The last columns saw the end of the input, which the segment does not have there.
        n = waveform.shape[1] // _COLUMN
        kept = n - _EDGE + _EDGE * (n // _COLUMNS)
        silence = self.get_buffer("silence").expand(1, -1, _COLUMNS - _EDGE)
        padding = torch.cat([silence, self.get_buffer("edge")], 2)[..., kept:]
        padding = padding.expand(features.shape[0], -1, -1)
        features = torch.cat([features[..., :kept], padding], 2)
        head: Any = self.head
        frames = head.transformer(head.norm_input(features).transpose(1, 2)).transpose(1, 2)
        frames = head.norm_trans(frames).transpose(1, 2)
        quality = head.sigmoid(head.pool(frames).squeeze(-1))
        mos: torch.Tensor = 1 + 4 * quality.unsqueeze(1)
        return (mos, frames) if self.frames else mos


class EagerDistillMos(nn.Module):
    """The package's model on segments, a `Scored`, which `mosrt bench` compares with.

    Args:
        weights: File of the package's weights.

    Raises:
        ModuleNotFoundError: The package `distillmos` is not installed.
        CheckpointError: The weights do not fit.
    """

    n_domains = 1

    def __init__(self, weights: Path) -> None:
        super().__init__()
        published: Any = published_model(weights)
        published.segmenting_in_forward = False
        self.published = published
        self.eval()

    def features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """MOS (batch,) of whole segments (batch, 122880)."""
        return {"mos": self.published(inputs["waveform"])}

    def score(self, features: dict[str, torch.Tensor], _domain: torch.Tensor) -> torch.Tensor:
        """MOS (batch,)."""
        return features["mos"]


def published_model(weights: Path | None = None) -> nn.Module:
    """The package's model, which takes recordings of any length at 16 kHz.

    Args:
        weights: File of the weights; by default the package's own.

    Raises:
        ModuleNotFoundError: The package `distillmos` is not installed.
        CheckpointError: Its weights do not fit.
    """
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        from distillmos import ConvTransformerSQAModel  # noqa: PLC0415 - of an extra

        try:
            model: nn.Module = ConvTransformerSQAModel(load_weights=weights is None)
            if weights is not None:
                saved = torch.load(weights, map_location="cpu", weights_only=True)
                model.load_state_dict(saved["model"])
        except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as exc:
            what = weights or "the weights of the package distillmos"
            raise CheckpointError(f"{what}: not the weights of Distill-MOS ({exc})") from exc
    return model.eval().requires_grad_(False)


def export_distillmos(
    out: Path,
    *,
    clips: Sequence[AudioSource],
    step: Step,
    name: str = "distillmos",
    half_weights: bool = False,
    frames: bool = False,
    force: bool = False,
) -> Drift:
    """Exports a bundle with one FP32 graph, after comparing its scores with the package's.

    Args:
        out: Directory of the bundle to write.
        clips: Audio to compare on; all clips one after the other are compared, too, since only
            recordings of more than 7.7 s have several segments.
        step: Announces progress.
        name: Name of the model.
        half_weights: Whether weights are rounded to float16 in the file, which halves its size and
            widens the tolerance to 0.002 MOS.
        frames: Whether the graph has an output "frames", which students of `mosrt distill` learn.
        force: Whether an older bundle at `out` is replaced.

    Returns:
        The measured differences, which are also in the manifest.

    Raises:
        AudioError: A clip cannot be scored.
        CheckpointError: The package's weights do not fit.
        ModuleNotFoundError: The package is not installed.
        OutputError: `out` must not or cannot be written.
        ParityError: The graph and the package disagree; nothing was written.
    """
    check_target(out, force=force)
    outputs = (*_OUTPUTS, tensor(FRAMES, BATCH, _COLUMNS, _FRAME_SIZE)) if frames else _OUTPUTS
    with step("loading the package distillmos"):
        published = published_model()
    with new_directory(out, force=force) as directory:
        with step("exporting"):
            member = write_graph(
                "network",
                DistillMos(published, frames=frames).eval(),
                directory / "model.fp32.onnx",
                inputs=_INPUTS,
                outputs=outputs,
                sizes={"batch": 2, "samples": 20 * _STEP_SAMPLES},
                half_weights=half_weights,
            )
            manifest = _manifest(name, outputs, Variant(opset=OPSET, members=(member,)))
        with step(f"comparing with torch on {len(clips)} clips and all of them as one"):
            drift = compared(
                directory,
                manifest,
                lambda waveform: published(torch.from_numpy(waveform)[None])[0].numpy(),
                clips,
                tolerance_mos=_HALF_TOLERANCE_MOS if half_weights else _TOLERANCE_MOS,
                against=f"distillmos {importlib.metadata.version('distillmos')}, torch fp32",
            )
        with step(f"writing {out.name}"):
            publish(directory, manifest, drift, card=distillmos_card)
    return drift


def _manifest(name: str, outputs: tuple[TensorSpec, ...], variant: Variant) -> Manifest:
    return Manifest(
        name=name,
        family="segments",
        sample_rate_hz=_SAMPLE_RATE_HZ,
        ssl=SslSpec(
            tensor="waveform",
            crop_samples=_SEGMENT_SAMPLES,
            epsilon=0.0,
            segment_hop_samples=_HOP_SAMPLES,
            segment_step_samples=_STEP_SAMPLES,
        ),
        mel=None,
        domains=(_DOMAIN,),
        default_domain=_DOMAIN,
        inputs=_INPUTS,
        outputs=outputs,
        variants={"fp32": variant},
        front_end="graph",
        provenance=provenance(
            [{"file": f"distillmos {importlib.metadata.version('distillmos')}"}],
            config={},
            licence="MIT, Copyright (c) Microsoft Corporation",
            training_data=None,
            libraries=_LIBRARIES,
        ),
    )
