"""Scores recordings with the models that a Triton server has from this folder.

    pip install mosrt 'tritonclient[http]'
    python client.py speech.wav --url localhost:8000

mosrt decodes, resamples, crops and draws here, the server runs the networks, and mosrt turns what
they give into scores. Neither side needs torch.
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
    """A model of a server where mosrt expects a backend; see `mosrt.backends.base.Backend`.

    Views go one by one, since the server joins those of several clients. A client object serves
    one thread: open a scorer per thread.

    Args:
        server: What is connected to the server.
        model: Name of the model there.
        joined: Whether the model is an ensemble that answers for several networks.
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
        """Outputs by name, (networks, batch, ...)."""
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
        """Nothing to release: whoever opened the connection closes it."""


def open_scorer(server: http.InferenceServerClient, repository: Path = HERE) -> Scorer:
    """A scorer, as `mosrt.load` gives one, that runs on a server.

    Args:
        server: What is connected to the server.
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
    """Scores the files of the command line."""
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
