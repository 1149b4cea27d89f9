"""Stand-in wav2vec v1 checkpoints in the layouts they are published in.

    python -m tests.standins.wav2vec CHECKPOINT

writes one of the full size.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from mosrt_export.uncertainty.wav2vec.checkpoint import architecture_of
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec
from tests.standins.utmosv2 import GOLDEN, tensor

LARGE: dict[str, Any] = {
    "conv_feature_layers": "[(512, 10, 5), (512, 8, 4)] + [(512, 4, 2)] * 3 + [(512, 1, 1)] * 2",
    "conv_aggregator_layers": str([(512, kernel, 1) for kernel in range(2, 14)]),
    "prediction_steps": 12,
    "num_negatives": 10,
    "offset": "auto",
    "activation": "relu",
    "log_compression": True,
    "skip_connections_agg": True,
    "residual_scale": 0.5,
}
SMALL: dict[str, Any] = {
    **LARGE,
    "conv_feature_layers": [(8, 10, 5), (12, 8, 4), (12, 4, 2), (16, 4, 2), (16, 4, 2), (16, 1, 1)],
    "conv_aggregator_layers": [(20, 2, 1), (20, 3, 1), (24, 4, 1)],
}


def large_state_dict() -> dict[str, torch.Tensor]:
    """The 32.5 M weights behind the golden vectors."""
    shapes = json.loads((GOLDEN / "wav2vec_v1" / "state_dict.json").read_text())
    return {key: torch.from_numpy(tensor(key, tuple(shape))) for key, shape in shapes.items()}


def small_state_dict(options: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Stand-in weights for a model with these options."""
    model = Wav2Vec(architecture_of(options, Path("stand-in")))
    return {
        key: torch.from_numpy(tensor(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }


def save(
    path: Path, options: dict[str, Any], state: dict[str, torch.Tensor], layout: str = "args"
) -> Path:
    """Writes a checkpoint in a layout: "args", "cfg" or "s3prl"."""
    whole = {
        "args": {"args": argparse.Namespace(**options, arch="wav2vec"), "model": state},
        "cfg": {"args": None, "cfg": {"model": options, "task": {}}, "model": state},
        "s3prl": {"task_cfg": {}, "model_cfg": options, "model_weight": state},
    }
    torch.save(whole[layout], path)
    return path


def check_operators(path: Path) -> None:
    """Opset 18, nothing random, no boolean mask, and no group norm as one operator."""
    model = onnx.load(path, load_external_data=False)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    used = {node.op_type for node in model.graph.node}
    refused = {"GroupNormalization", "NonZero", "Dropout", "Bernoulli", "Compress", "If", "Loop"}
    assert not used & refused
    assert not [name for name in used if name.startswith("Random")]


def check_batch(path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
    """Several clips at once give what each gives alone, but for the order of FP32 sums."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    together = session.run(None, dict(feeds))
    for i in range(len(next(iter(feeds.values())))):
        alone = session.run(None, {name: values[i : i + 1] for name, values in feeds.items()})
        for all_clips, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(all_clips[i], one[0], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    save(Path(sys.argv[1]), LARGE, large_state_dict())
