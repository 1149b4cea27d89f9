"""The baseline: UTMOSv2's module in torch on a device, its front end in librosa.

A clip's images are made one after the other for a single score, as the published code makes them,
and by a pool of threads, a clip each, for a batch, as its data loader would. Weights come from a
checkpoint; without one they are drawn from a seed, and say nothing about speech.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.errors import ProviderError
from mosrt.mos.front_end import FusionFrontEnd
from mosrt_bench.bench.torch_baseline import SEED, published_inputs, torch_model
from mosrt_bench.errors import BenchError
from mosrt_export.utmosv2.config import ModelConfig

from .worker import ONE_VIEW, RATE_HZ

__all__ = ["TorchRunner"]

Float32Array = npt.NDArray[np.float32]


class TorchRunner:
    """Runs the torch model that a bundle was made from; see `gpu.worker.Runner`.

    Args:
        reference: A fusion bundle, whose manifest says what the model and its inputs are.
        checkpoint: Its weights, or None.
        device: "cuda" or "cpu".
        half: FP16 throughout, else FP32 without TF32.
        compiled: Whether torch compiles it.
        threads: Threads of torch on the CPU, and of the front end of a batch.

    Raises:
        ProviderError: torch sees no GPU.
        CheckpointError: The checkpoint cannot be read or does not fit.
        BenchError: The bundle is no fusion bundle.
    """

    def __init__(
        self,
        reference: str,
        checkpoint: str | None,
        *,
        device: str,
        half: bool,
        compiled: bool,
        threads: int,
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ProviderError(f"torch {torch.__version__} sees no GPU that it can use")
        manifest = Bundle.open(find_bundle(reference)).manifest
        if manifest.ssl is None or manifest.mel is None or "config" not in manifest.provenance:
            raise BenchError(f"{manifest.name} is no fusion bundle made from a torch checkpoint")
        torch.set_num_threads(threads)
        # The precision of a row is what its name says.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self._ssl, self._mel = manifest.ssl, manifest.mel
        self._geometry = FusionFrontEnd(manifest).geometry
        self._domain = manifest.domains.index(manifest.default_domain)
        self._n_domains = len(manifest.domains)
        config = ModelConfig.from_dict(manifest.provenance["config"])
        self._device = torch.device(device)
        self._dtype = torch.float16 if half else torch.float32
        self._model = torch_model(
            config, None if checkpoint is None else Path(checkpoint), self._n_domains
        ).to(self._device, self._dtype)
        self._call: Any = torch.compile(self._model) if compiled else self._model
        self._pool = ThreadPoolExecutor(threads)
        self.facts: dict[str, Any] = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(0) if device == "cuda" else "CPU",
            "weights": f"untrained, seed {SEED}" if checkpoint is None else "of the checkpoint",
        }

    def judge(self, clip: Float32Array) -> list[float]:
        """MOS for every domain."""
        inputs = self._on_device([self._front_end(clip)])
        with torch.inference_mode():
            features = self._model.features(inputs)
            repeated = {k: value.expand(self._n_domains, -1) for k, value in features.items()}
            every = torch.eye(self._n_domains, dtype=self._dtype, device=self._device)
            found: list[float] = self._model.score(repeated, every).float().tolist()
            return found

    def score(self, clip: Float32Array) -> dict[str, float]:
        """Times of the front end, and of the copies and the model together."""
        started = time.perf_counter()
        feeds = self._front_end(clip)
        made = time.perf_counter()
        self._run([feeds])
        return {
            "front_end": 1e3 * (made - started),
            "model": 1e3 * (time.perf_counter() - made),
        }

    def score_batch(self, clips: Sequence[Float32Array]) -> list[float]:
        """MOS for the default domain."""
        return self._run(list(self._pool.map(self._front_end, clips)))

    def placement(self) -> None:
        """A module is where it was put."""

    def _front_end(self, clip: Float32Array) -> dict[str, Float32Array]:
        plan = ONE_VIEW.plan(len(clip), self._geometry)
        return published_inputs(clip, RATE_HZ, plan, 0, ssl=self._ssl, mel=self._mel)

    def _on_device(self, views: Sequence[dict[str, Float32Array]]) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(np.stack([view[name] for view in views])).to(
                self._device, self._dtype
            )
            for name in views[0]
        }

    def _run(self, views: Sequence[dict[str, Float32Array]]) -> list[float]:
        inputs = self._on_device(views)
        domain = torch.zeros(len(views), self._n_domains, dtype=self._dtype, device=self._device)
        domain[:, self._domain] = 1
        with torch.inference_mode():
            # The list is on the host, so the device is done when it is there.
            found: list[float] = self._call(inputs, domain).float().tolist()
            return found
