"""Scores recordings with the models that a Triton server has from this folder.

    pip install mosrt 'tritonclient[http]'
    python client.py speech.wav --url localhost:8000

Here mosrt decodes, resamples, crops and samples; the server runs the networks; and mosrt computes
scores from their outputs. Neither side needs torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient import http
from tritonclient.utils import np_to_triton_dtype

from mosrt._arrays import Float32Array
from mosrt.bundle.manifest import Manifest
from mosrt.mos.scorer import FusionScorer
from mosrt.scorer import Scorer
from mosrt.uncertainty.scorer import UncertaintyScorer

__all__ = ["TritonBackend", "open_scorer"]

HERE = Path(__file__).parent


class TritonBackend:
    """A model on a server as a backend of mosrt; see `mosrt.backends.base.Backend`.

    Views are sent one by one, because the server batches those of several clients. A connection is
    for one thread: open a scorer per thread.

    Args:
        server: The connection to the server.
        model: Name of the model on the server.
        joined: Whether the model is an ensemble that returns the scores of several networks.
    """

    provider = "triton"
    batch_size = 1

    def __init__(
        self, server: http.InferenceServerClient, model: str, *, joined: bool = False
    ) -> None:
        self._server = server
        self._model = model
        self._suffix = "_networks" if joined else ""

    def run(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> dict[str, Float32Array]:
        """Returns outputs by name, (networks, batch, ...)."""
        given = []
        for name, values in feeds.items():
            tensor = http.InferInput(name, values.shape, np_to_triton_dtype(values.dtype))
            given.append(tensor.set_data_from_numpy(np.ascontiguousarray(values)))
        wanted = [http.InferRequestedOutput(f"{name}{self._suffix}") for name in outputs]
        answer = self._server.infer(self._model, given, outputs=wanted)
        found = {name: answer.as_numpy(f"{name}{self._suffix}") for name in outputs}
        if self._suffix:
            # From (batch, networks, ...).
            return {name: np.moveaxis(values, 1, 0) for name, values in found.items()}
        return {name: values[np.newaxis] for name, values in found.items()}

    def close(self) -> None:
        """Does nothing: the caller that opened the connection closes it."""


def open_scorer(server: http.InferenceServerClient, repository: Path = HERE) -> Scorer:
    """Opens a scorer, as `mosrt.load` does, that runs on a server.

    Args:
        server: The connection to the server.
        repository: The folder that the server serves; only its mosrt-model.json is read.
    """
    facts = json.loads((repository / "mosrt-model.json").read_text(encoding="utf-8"))
    manifest = Manifest.from_dict(facts["manifest"])
    options: dict[str, Any] = {
        "variant": facts["variant"],
        "threads": 1,
        "on_bad_audio": "warn",
        "remove_silence": False,
    }
    if manifest.uncertainty is not None:
        stages = {name: TritonBackend(server, model) for name, model in facts["networks"].items()}
        return UncertaintyScorer(manifest, stages, **options)
    joined = len(facts["networks"]) > 1
    return FusionScorer(manifest, TritonBackend(server, facts["model"], joined=joined), **options)


def main() -> None:
    """Scores the files named on the command line."""
    parser = argparse.ArgumentParser(description="Score recordings on a Triton server.")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--url", default="localhost:8000", help="host and port of the HTTP service")
    options = parser.parse_args()
    with http.InferenceServerClient(options.url) as server, open_scorer(server) as scorer:
        for file in options.files:
            score = scorer.score_file(file).to_dict()
            sys.stdout.write(f"{json.dumps({'file': file, **score})}\n")


if __name__ == "__main__":
    main()
