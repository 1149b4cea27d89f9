"""Runs TensorRT engines that `mosrt build` built on this machine.

The backend needs TensorRT's Python module and CUDA's runtime library, and no other package. It
never builds an engine, which takes minutes, and it never falls back to another provider.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import TensorSpec, Variant
from mosrt.errors import BundleError, ProviderError
from mosrt.host.thread_pool import Calls

from .base import TENSORRT, check_tensors, stacked
from .cuda import Cuda
from .engine_file import EngineFiles, Target
from .trt_context import ExecutionContext
from .trt_module import TensorRt, dtype_name, find_tensorrt

__all__ = ["TrtBackend"]

_BATCH: Final = "batch"
# Two contexts keep a GPU busy: one computes while the other copies. More only cost memory.
_MAX_CONTEXTS: Final = 2
_LOG = logging.getLogger(__name__)


class TrtBackend:
    """Runs a variant's engines, one per network, each on device 0.

    All threads share the engines and their weights. Each call takes an execution context of its
    own, which is created when none is idle; if two are in use already, the call waits. `run` copies
    its feeds and returns new arrays, so the caller may change both.

    Arguments are those of `mosrt.backends.open_backend`, and:

    Args:
        files: The cache of engines; by default the one in mosrt's cache directory.
        cuda: CUDA's runtime library; by default it is searched for.

    Raises:
        ProviderError: TensorRT, CUDA or a GPU is missing, or the cache has no intact engine of
            this variant for this machine.
        BundleError: An engine's inputs or outputs differ from those of the manifest.
    """

    def __init__(
        self,
        directory: Path,
        variant: Variant,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        files: EngineFiles | None = None,
        cuda: Cuda | None = None,
    ) -> None:
        tensorrt = find_tensorrt()
        cuda = Cuda.open() if cuda is None else cuda
        target = Target(
            module=tensorrt.name,
            version=tensorrt.version,
            compute_capability=cuda.compute_capability(),
        )
        files = EngineFiles() if files is None else files
        self._networks: list[_Network] = []
        self._calls = Calls("the backend", self._release)
        try:
            for member in variant.members:
                try:
                    path = files.find(member.sha256, target)
                except ProviderError as exc:
                    raise ProviderError(
                        f"{directory / member.graph.path}: {exc}; build it here with `mosrt build`"
                    ) from exc
                network = _Network(tensorrt, cuda, files, path)
                self._networks.append(network)
                network.check(inputs, outputs)
            self._profile = self._networks[0].profile
            if any(network.profile != self._profile for network in self._networks):
                raise ProviderError(
                    f"{directory}: the engines of its networks are built for different shapes; "
                    "build them together with `mosrt build`"
                )
        except BaseException:
            self.close()
            raise
        self._outputs = outputs
        (self.provider,) = TENSORRT
        _, usual, _ = next(iter(self._profile.values()))
        batched = all(tensor.shape[0] == _BATCH for tensor in inputs)
        self.batch_size = usual[0] if batched else 1

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch, of any size that the engine takes; see `mosrt.backends.Backend`.

        Raises:
            ProviderError: A shape is outside the engine's profile, or CUDA or TensorRT failed.
        """
        with self._calls.one():
            self._check_shapes(feeds)
            results = [network.run(feeds, outputs) for network in self._networks]
        return stacked(self._outputs, results, outputs)

    def close(self) -> None:
        """Waits for running calls, then releases the execution contexts and the engines."""
        self._calls.close()

    def _release(self) -> None:
        for network in self._networks:
            network.close()

    def _check_shapes(self, feeds: Mapping[str, Array]) -> None:
        for name, (smallest, _, largest) in self._profile.items():
            shape = feeds[name].shape
            if len(shape) != len(smallest) or not all(
                low <= size <= high
                for low, size, high in zip(smallest, shape, largest, strict=True)
            ):
                raise ProviderError(
                    f"input {name!r} is {shape}, but the engine takes {smallest} to {largest}; "
                    "build it again with another --max-batch or --max-seconds"
                )


class _Network:
    """An engine and its execution contexts."""

    def __init__(self, tensorrt: TensorRt, cuda: Cuda, files: EngineFiles, path: Path) -> None:
        self._tensorrt = tensorrt
        self._cuda = cuda
        self._path = path
        with files.opened(path) as (header, engine), tensorrt.log() as lines:
            self._runtime: Any = tensorrt.module.Runtime(tensorrt.logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                reason = "; ".join(lines) or "no reason given"
                raise ProviderError(
                    f"{path}: {tensorrt} cannot load it: {reason}; if the driver or GPU changed, "
                    "build it again with `mosrt build`"
                )
        self.profile = header.key.profile
        # Type and shape of each tensor by name.
        self._inputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._outputs: dict[str, tuple[str, tuple[int, ...]]] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            is_input = self._engine.get_tensor_mode(name) == tensorrt.module.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs)[name] = (
                dtype_name(self._engine.get_tensor_dtype(name)),
                tuple(self._engine.get_tensor_shape(name)),
            )
        self._idle: list[ExecutionContext] = []
        self._n_contexts = 0
        self._max_contexts = _MAX_CONTEXTS
        self._changed = threading.Condition()

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Raises BundleError unless the engine has the manifest's inputs and outputs."""
        check_tensors(f"{self._path}: the engine's input", inputs, self._inputs)
        check_tensors(f"{self._path}: the engine's output", outputs, self._outputs)
        if set(self.profile) != set(self._inputs):
            raise BundleError(
                f"{self._path}: the engine takes {', '.join(self._inputs)}, but its header says "
                f"{', '.join(self.profile)}; build it again with `mosrt build`"
            )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the engine once, in an execution context that no other call uses."""
        with self._changed:
            context = None
            while context is None:
                self._changed.wait_for(lambda: self._idle or self._n_contexts < self._max_contexts)
                context = self._idle.pop() if self._idle else self._new_context()
        try:
            return context.run(feeds, outputs)
        finally:
            with self._changed:
                self._idle.append(context)
                self._changed.notify_all()

    def close(self) -> None:
        """Releases contexts, engine and runtime, in this order; no call may be running."""
        # Callbacks run from last to first, and all of them run even if one fails.
        with ExitStack() as releases:
            # TensorRT frees an object with its last reference.
            releases.callback(setattr, self, "_runtime", None)
            releases.callback(setattr, self, "_engine", None)
            for context in self._idle:
                releases.callback(context.close)
            self._idle.clear()
            self._n_contexts = 0

    def _new_context(self) -> ExecutionContext | None:
        """Creates a context; None if memory does not suffice for one more."""
        dtypes = {name: dtype for name, (dtype, _) in (self._inputs | self._outputs).items()}
        try:
            context = ExecutionContext(
                self._tensorrt, self._cuda, self._engine, self.profile, dtypes
            )
        except ProviderError as exc:
            if self._n_contexts == 0:
                raise
            _LOG.info("%s: concurrent calls will wait for each other: %s", self._path, exc)
            self._max_contexts = self._n_contexts
            return None
        self._n_contexts += 1
        return context
