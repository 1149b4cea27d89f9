"""Stand-in checkpoints: full-size and small state dicts filled from their keys alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mosrt_export.utmosv2.config import Kind, ModelConfig
from mosrt_export.utmosv2.fusion import Model, build

GOLDEN = Path(__file__).parents[1] / "golden"


def tensor(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`tests/golden/weights.py`'s `tensor`, which belongs to the golden vectors."""
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tensor: NDArray[np.float32] = np.asarray(module.tensor(key, shape), np.float32)
    return tensor


def fusion_state_dict() -> dict[str, torch.Tensor]:
    """The full-size fusion checkpoint behind the golden vectors (204 M parameters, 0.8 GB)."""
    shapes: dict[str, tuple[list[int], str]] = json.loads(
        (GOLDEN / "utmosv2" / "state_dict.json").read_text()
    )
    state: dict[str, torch.Tensor] = {}
    with np.load(GOLDEN / "utmosv2" / "batchnorm.npz") as statistics:
        for key, (shape, dtype) in shapes.items():
            if key in statistics.files:
                state[key] = torch.from_numpy(statistics[key].astype(np.float32))
            elif "float" in dtype:
                state[key] = torch.from_numpy(tensor(key, tuple(shape)))
            else:
                state[key] = torch.zeros(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
    return state


SMALL: dict[str, Any] = {
    "name": "small",
    "domains": ["north", "south", "east"],
    "ssl": {
        "crop_samples": 3200,
        "attention_heads": 4,
        "encoder": {
            "model_type": "wav2vec2",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "conv_dim": [16, 16, 16],
            "conv_kernel": [10, 8, 4],
            "conv_stride": [5, 4, 4],
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
        },
    },
    "spectrogram": {
        "backbone": "test_efficientnet",
        "attention_heads": 4,
        "crop_samples": 2400,
        "n_crops": 2,
        "n_fft": 512,
        "hop_length": 32,
        "n_mels": 64,
        "windows": [512, 256],
        "image_width": 96,
    },
}
"""A model of both branches that exports in seconds; change a copy for variants."""
TWO_LAYERS: dict[str, Any] = {
    **SMALL["ssl"],
    "encoder": {**SMALL["ssl"]["encoder"], "num_hidden_layers": 2},
}
"""Its waveform branch, deeper: more to go wrong between layers, and twice the time to export."""


def small_config(**changes: Any) -> ModelConfig:
    """`SMALL` with top-level values replaced."""
    return ModelConfig.from_dict({**SMALL, **changes})


def small_model(kind: Kind = "fusion", config: ModelConfig | None = None) -> Model:
    """A small model with stand-in weights, whose features and scores are of order one."""
    config = small_config() if config is None else config
    domains = () if config.domains is None else config.domains
    model = build(kind, config, len(domains))
    model.load_state_dict(fill(model.state_dict()))
    return model


def fill(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stand-in values for every floating tensor of `state`; integer tensors stay."""
    return {
        key: torch.from_numpy(tensor(key, tuple(value.shape)))
        if value.is_floating_point()
        else value
        for key, value in state.items()
    }


def small_feeds(
    config: ModelConfig, kind: Kind = "fusion", batch: int = 1, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Inputs of the right shapes: a normalised waveform and images in [0, 1]."""
    rng = np.random.default_rng(seed)
    waveform = rng.standard_normal((batch, config.ssl.crop_samples), dtype=np.float32)
    spec = config.spectrogram
    n_images = spec.n_crops * len(spec.windows)
    images = rng.random((batch, n_images, spec.n_mels, spec.image_width), dtype=np.float32)
    feeds = {"waveform": waveform, "images": images}
    return {name: feeds[name] for name in ("waveform", "images") if _reads(kind, name)}


def _reads(kind: Kind, name: str) -> bool:
    return kind == "fusion" or (kind == "ssl") == (name == "waveform")


if __name__ == "__main__":
    torch.save(fusion_state_dict(), sys.argv[1])
