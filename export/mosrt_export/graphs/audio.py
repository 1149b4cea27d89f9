"""Audio graphs: networks that take audio crops, the front end inside of their graph."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from mosrt.bundle.front_end_spec import FRONT_END_SCOPE, MelSpec, SslSpec
from mosrt.bundle.manifest import Manifest, TensorSpec

from .canonical import BATCH
from .graph import OnnxModule
from .mel import MelImages

__all__ = ["AudioGraph", "taking_audio", "taking_features"]

_WAVEFORM = "waveform"
_IMAGES = "images"
_CROPS = "crops"


class AudioGraph(OnnxModule):
    """A network behind its front end: what `mosrt.mos.front_end` does in NumPy, as a module.

    Args:
        network: Takes "waveform", normalised, and "images", or one of them.
        ssl: Its waveform branch, or None.
        mel: Its spectrogram branch, or None.
        sample_rate_hz: Rate of the crops.

    Attributes:
        input_names: "waveform" (batch, crop_samples), as it is in the recording, and "crops"
            (batch, n_crops, crop_samples), as the network needs.
        output_sizes: The network's.
    """

    def __init__(
        self, network: OnnxModule, *, ssl: SslSpec | None, mel: MelSpec | None, sample_rate_hz: int
    ) -> None:
        super().__init__()
        self.network = network
        front_end = nn.ModuleDict()
        if ssl is not None:
            front_end[_WAVEFORM] = _Normalised(ssl.epsilon)
        if mel is not None:
            front_end[_IMAGES] = MelImages(mel, sample_rate_hz)
        # The name by which calibration knows what has to stay float32.
        self.add_module(FRONT_END_SCOPE, front_end)
        self.input_names = tuple(
            _CROPS if name == _IMAGES else name for name in network.input_names
        )
        self.output_sizes = network.output_sizes
        self.eval().requires_grad_(False)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Tensors named by `input_names` -> tensors named by `output_sizes`."""
        front_end = self.get_submodule(FRONT_END_SCOPE)
        features = [
            front_end.get_submodule(name)(audio)
            for name, audio in zip(self.network.input_names, inputs, strict=True)
        ]
        outputs: tuple[torch.Tensor, ...] = self.network(*features)
        return outputs


class _Normalised(nn.Module):
    """Waveforms (batch, samples) at zero mean and unit variance."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        centred = waveform - waveform.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(variance + self.epsilon)


def taking_audio(manifest: Manifest) -> Manifest:
    """The manifest of a bundle that takes features, as it is with the front end in its graphs."""
    mel = manifest.mel
    inputs = manifest.inputs
    if mel is not None:
        shape = (BATCH, mel.n_crops, mel.crop_samples)
        crops = TensorSpec(name=_CROPS, dtype="float32", shape=shape)
        inputs = tuple(crops if tensor.name == mel.tensor else tensor for tensor in inputs)
        mel = dataclasses.replace(mel, tensor=_CROPS)
    return dataclasses.replace(manifest, front_end="graph", mel=mel, inputs=inputs)


def taking_features(manifest: Manifest) -> Manifest:
    """The inverse: what the torch modules read, whichever front end a bundle has."""
    mel = manifest.mel
    inputs = manifest.inputs
    if mel is not None and manifest.front_end == "graph":
        shape = (BATCH, mel.n_crops * len(mel.windows), mel.image_height, mel.image_width)
        images = TensorSpec(name=_IMAGES, dtype="float32", shape=shape)
        inputs = tuple(images if tensor.name == mel.tensor else tensor for tensor in inputs)
        mel = dataclasses.replace(mel, tensor=_IMAGES)
    return dataclasses.replace(manifest, front_end="numpy", mel=mel, inputs=inputs)
