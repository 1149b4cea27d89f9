"""ONNX Runtime: the backend that is always there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime

from mosrt.errors import BundleError, ProviderError
from mosrt.manifest import TensorSpec, Variant

__all__ = ["PROVIDERS", "OrtBackend"]

Float32Array = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

PROVIDERS: Final = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}
_AUTO: Final = ("cuda", "cpu")
_GPU_BATCH: Final = 4
_LOG = logging.getLogger(__name__)


class OrtBackend:
    """Runs a variant's graphs with ONNX Runtime, one session per network.

    Args:
        directory: Where the bundle's files are.
        variant: The variant to run.
        inputs: Inputs that the graphs must have.
        outputs: Outputs that the graphs must have.
        provider: A key of `PROVIDERS`, or "auto" for the first that works of "cuda" and "cpu".
        threads: Threads for one call.

    Raises:
        ProviderError: The provider is unknown, not in this ONNX Runtime, or failed to start.
        BundleError: A graph does not load, or is not what the manifest says.
    """

    def __init__(
        self,
        directory: Path,
        variant: Variant,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        provider: str = "auto",
        threads: int = 1,
    ) -> None:
        candidates = available(provider)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Planning memory ahead costs a sixth more of it and gains no time on these graphs.
        options.enable_mem_pattern = False
        # Workers that wait for the next node spin, which gains a tenth, but not beyond the run:
        # the front end of the next clip needs the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        for name in candidates:
            try:
                sessions = [
                    _session(directory / member.graph.path, options, name)
                    for member in variant.members
                ]
            except ProviderError as exc:
                if name == candidates[-1]:
                    raise
                _LOG.warning("%s; trying %s", exc, candidates[-1])
                continue
            break
        for session in sessions:
            _check(session, inputs, outputs)
        self._sessions: list[Any] = sessions
        self.provider = name
        # One view already fills a CPU.
        self.batch_size = 1 if name == "cpu" else _GPU_BATCH

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch; see `mosrt.backends.Backend`."""
        results = [session.run(list(outputs), dict(feeds)) for session in self._sessions]
        return {name: np.stack([result[i] for result in results]) for i, name in enumerate(outputs)}

    def close(self) -> None:
        """Releases the sessions."""
        self._sessions.clear()


def available(provider: str) -> tuple[str, ...]:
    """The providers to try for a requested one, best first.

    Raises:
        ProviderError: The provider is unknown, or this ONNX Runtime was built without it.
    """
    present = onnxruntime.get_available_providers()
    here = tuple(name for name, full in PROVIDERS.items() if full in present)
    if provider == "auto":
        return tuple(name for name in _AUTO if name in here)
    if provider not in PROVIDERS:
        raise ProviderError(
            f"unknown provider {provider!r}; known: auto, {', '.join(PROVIDERS)}; "
            f"on this machine: {', '.join(here)}"
        )
    if provider not in here:
        raise ProviderError(
            f"provider {provider!r} is not in the installed onnxruntime {onnxruntime.__version__}, "
            f"which has: {', '.join(here)}; install the onnxruntime package for your hardware"
        )
    return (provider,)


def _session(graph: Path, options: Any, provider: str) -> Any:
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[PROVIDERS[provider]])
    except Exception as exc:  # ONNX Runtime's own exceptions share no base but Exception
        if provider != "cpu":
            raise ProviderError(f"provider {provider!r} failed to start: {exc}") from exc
        raise BundleError(
            f"{graph}: ONNX Runtime {onnxruntime.__version__} cannot load it ({exc}); "
            "verify the bundle with `mosrt info --verify`, or upgrade onnxruntime"
        ) from exc
    # A provider that cannot start is replaced by the CPU without a word.
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise ProviderError(f"provider {provider!r} could not start on this machine")
    return session


def _check(session: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Raises BundleError unless the graph has the inputs and outputs of the manifest."""
    for kind, wanted, present in (
        ("input", inputs, session.get_inputs()),
        ("output", outputs, session.get_outputs()),
    ):
        shapes = {tensor.name: tuple(tensor.shape) for tensor in present}
        for tensor in wanted:
            shape = shapes.get(tensor.name)
            if shape is None or shape[1:] != tensor.shape[1:]:
                raise BundleError(
                    f"the graph's {kind} {tensor.name!r} is {shape}, the manifest says "
                    f"{tensor.shape}; copy or export the bundle again"
                )
