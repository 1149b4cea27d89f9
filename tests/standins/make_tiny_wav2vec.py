"""Makes the bundle `tiny_wav2vec` beside this file: needs the extra `export`.

    python -m tests.standins.make_tiny_wav2vec

A wav2vec v1 model of real strides with a few thousand random weights, so that the runtime's tests
need neither torch nor a checkpoint. The result is committed.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from mosrt.cli.main import main
from mosrt_export.uncertainty.wav2vec.checkpoint import architecture_of
from mosrt_export.uncertainty.wav2vec.model import Wav2Vec

OUT = Path(__file__).parent / "tiny_wav2vec"
OPTIONS = {
    "conv_feature_layers": "[(4, 10, 5), (6, 8, 4), (6, 4, 2), (8, 4, 2), (8, 4, 2)]",
    "conv_aggregator_layers": "[(8, 2, 1), (8, 3, 1)]",
    "log_compression": True,
    "skip_connections_agg": True,
    "residual_scale": 0.5,
}


def make() -> None:
    torch.manual_seed(0)
    model = Wav2Vec(architecture_of(OPTIONS, OUT))
    with torch.no_grad():  # predictions that prefer some frames over others
        model.wav2vec_predictions.project_to_steps.weight.mul_(8.0)
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary, "tiny.pt")
        torch.save({"args": argparse.Namespace(**OPTIONS), "model": model.state_dict()}, checkpoint)
        command = ["export", "wav2vec", str(checkpoint), "--output", str(OUT)]
        command += ["--force", "--name", "tiny-wav2vec", "--measure", "dense.entropy"]
        main([*command, "--licence", "MIT", "--training-data", "nothing"], standalone_mode=False)


if __name__ == "__main__":
    make()
