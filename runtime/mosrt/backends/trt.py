"""TensorRT: the backend that runs engines built on this machine by `mosrt build`.

It needs TensorRT's Python module and CUDA's runtime library and nothing else. An engine is never
built here, where it would take minutes out of a score's time, and no other provider stands in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import TensorSpec, Variant
from mosrt.errors import BundleError, ProviderError

from .base import TENSORRT
from .cuda import Cuda
from .engine_file import EngineFiles, Target
from .trt_context import Lane
from .trt_module import TensorRt, dtype_name, find_tensorrt, tensorrt_installed

__all__ = ["TrtBackend", "check_tensors", "present_providers"]


_BATCH: Final = "batch"
# Two keep a GPU busy, one computing while the other copies; more cost memory only.
_MAX_LANES: Final = 2
_LOG = logging.getLogger(__name__)


class TrtBackend:
    """Runs a variant's engines, one per network, each on device 0.

    Threads share the engines and their weights; each call takes a lane of its own (see `Lane`),
    made when there is none to spare, and waits where there are two in use already. Feeds are
    copied when `run` is called and results are new arrays: both belong to the caller.

    Args:
        directory: Where the bundle's files are; for messages, since the engines lie in the cache.
        variant: The variant to run.
        inputs: Inputs that the engines must have.
        outputs: Outputs that the engines must have.
        files: Where the engines are.
        cuda: CUDA's runtime library; found if left out.

    Raises:
        ProviderError: TensorRT, CUDA or a GPU is missing, or there is no whole engine of this
            variant for this machine.
        BundleError: An engine is not what the manifest says.
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
        try:
            for member in variant.members:
                graph = member.sha256
                try:
                    path = files.find(graph, target)
                    if (fault := files.fault(path, graph, target)) is not None:
                        raise ProviderError(f"{path} cannot be used: {fault}")
                except ProviderError as exc:
                    raise ProviderError(
                        f"{directory / member.graph.path}: {exc}; build it here with `mosrt build`"
                    ) from exc
                network = _Network(tensorrt, cuda, files, path)
                self._networks.append(network)
                network.check(inputs, outputs)
        except BaseException:
            self.close()
            raise
        self._batched = all(tensor.shape[0] == _BATCH for tensor in inputs)
        profiles = [network.profile for network in self._networks]
        self._profile = profiles[0]
        if any(profile != self._profile for profile in profiles):
            self.close()
            raise ProviderError(
                f"{directory}: its networks' engines are built for different shapes; build them "
                "together with `mosrt build`"
            )
        (self.provider,) = TENSORRT
        _, usual, _ = next(iter(self._profile.values()))
        self.batch_size = usual[0] if self._batched else 1

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch of any size; see `mosrt.backends.Backend`.

        One larger than the engine takes is run in parts, the last filled up with copies of its last
        view, so that every view is computed in the same company.

        Raises:
            ProviderError: A shape is outside of the engine's, or CUDA or TensorRT failed.
        """
        parts = self._parts(feeds) if self._batched else [(feeds, None)]
        done: list[dict[str, Array]] = []
        for part, n_wanted in parts:
            self._check_shapes(part)
            results = [network.run(part, outputs) for network in self._networks]
            done.append(
                {
                    name: np.stack([result[name][:n_wanted] for result in results])
                    for name in outputs
                }
            )
        if len(done) == 1:
            return done[0]
        return {name: np.concatenate([part[name] for part in done], axis=1) for name in outputs}

    def close(self) -> None:
        """Releases lanes, then engines, each when what runs on it is done."""
        for network in self._networks:
            network.close()

    def _parts(
        self, feeds: Mapping[str, Array]
    ) -> Iterable[tuple[Mapping[str, Array], int | None]]:
        """Batches that the engine takes, and how many views of each are wanted."""
        smallest, _, largest = (shape[0] for shape in next(iter(self._profile.values())))
        n_views = len(next(iter(feeds.values())))
        size = largest if n_views > largest else max(n_views, smallest)
        for first in range(0, n_views, size):
            part = {name: values[first : first + size] for name, values in feeds.items()}
            n_wanted = len(next(iter(part.values())))
            if n_wanted < size:
                part = {
                    name: np.concatenate([values, np.repeat(values[-1:], size - n_wanted, axis=0)])
                    for name, values in part.items()
                }
            yield part, n_wanted

    def _check_shapes(self, feeds: Mapping[str, Array]) -> None:
        for name, (smallest, _, largest) in self._profile.items():
            shape = feeds[name].shape
            if len(shape) != len(smallest) or not all(
                low <= size <= high
                for low, size, high in zip(smallest, shape, largest, strict=True)
            ):
                raise ProviderError(
                    f"input {name!r} is {shape}, and the engine takes {smallest} to {largest}; "
                    "build it again with another --max-batch or --max-seconds"
                )


class _Network:
    """An engine and its lanes."""

    def __init__(self, tensorrt: TensorRt, cuda: Cuda, files: EngineFiles, path: Path) -> None:
        self._tensorrt = tensorrt
        self._cuda = cuda
        self._path = path
        with files.opened(path) as (header, engine), tensorrt.log() as lines:
            self._runtime: Any = tensorrt.module.Runtime(tensorrt.logger)
            self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
            if self._engine is None:
                said = "; ".join(lines) or "it does not say why"
                raise ProviderError(
                    f"{path}: {tensorrt} cannot load it: {said}; if the driver or GPU has changed, "
                    "build it again with `mosrt build`"
                )
        self.profile = header.key.profile
        modes = tensorrt.module.TensorIOMode
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == modes.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._idle: list[Lane] = []
        self._n_lanes = 0
        self._max_lanes = _MAX_LANES
        self._closed = False
        self._changed = threading.Condition()

    def check(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        """Raises BundleError unless the engine has the manifest's inputs and outputs."""
        for kind, wanted, names in (
            ("input", inputs, self._inputs),
            ("output", outputs, self._outputs),
        ):
            found = {
                name: (
                    dtype_name(self._engine.get_tensor_dtype(name)),
                    tuple(self._engine.get_tensor_shape(name)),
                )
                for name in names
            }
            check_tensors(f"{self._path}: the engine's {kind}", wanted, found)
        if set(self.profile) != set(self._inputs):
            raise BundleError(
                f"{self._path}: the engine takes {', '.join(self._inputs)}, its header says "
                f"{', '.join(self.profile)}; build it again with `mosrt build`"
            )

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """Runs the engine on a lane of its own."""
        with self._lane() as lane:
            return lane.run(feeds, outputs)

    def close(self) -> None:
        """Waits for calls that still run; then releases lanes, engine and runtime in this order."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: len(self._idle) == self._n_lanes)
            # From the last to the first, and all of them also if one fails.
            with ExitStack() as releases:
                releases.callback(self._forget, "_runtime")
                releases.callback(self._forget, "_engine")
                for lane in self._idle:
                    releases.callback(lane.close)
                self._idle.clear()
                self._n_lanes = 0

    def _forget(self, name: str) -> None:
        # The last reference is what keeps the object.
        setattr(self, name, None)

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        with self._changed:
            lane = None
            while lane is None:
                self._changed.wait_for(
                    lambda: self._closed or self._idle or self._n_lanes < self._max_lanes
                )
                if self._closed:
                    raise RuntimeError("the backend is closed")
                lane = self._idle.pop() if self._idle else self._another_lane()
        try:
            yield lane
        finally:
            with self._changed:
                self._idle.append(lane)
                self._changed.notify_all()

    def _another_lane(self) -> Lane | None:
        """A new lane; None if there is no memory for more than there are."""
        dtypes = {
            name: dtype_name(self._engine.get_tensor_dtype(name))
            for name in (*self._inputs, *self._outputs)
        }
        try:
            lane = Lane(self._tensorrt, self._cuda, self._engine, self.profile, dtypes)
        except ProviderError as exc:
            if self._n_lanes == 0:
                raise
            _LOG.info("%s: calls wait for each other: %s", self._path, exc)
            self._max_lanes = self._n_lanes
            return None
        self._n_lanes += 1
        return lane


def check_tensors(
    where: str,
    wanted: Sequence[TensorSpec],
    found: Mapping[str, tuple[str, tuple[int, ...]]],
) -> None:
    """Raises BundleError unless tensors are those of the manifest.

    Args:
        where: Whose they are, and whether they are inputs or outputs, for the message.
        wanted: What the manifest says.
        found: Type and shape by name; -1 stands for a size that varies. Where the manifest lets
            the first one vary, it may be fixed: some graphs take one recording only.
    """
    for tensor in wanted:
        dtype, shape = found.get(tensor.name, (None, ()))
        sizes = [-1 if isinstance(size, str) else size for size in tensor.shape]
        if sizes[:1] == [-1]:
            sizes[:1] = shape[:1]
        if dtype != tensor.dtype or list(shape) != sizes:
            raise BundleError(
                f"{where} {tensor.name!r} is {found.get(tensor.name)}, the manifest says "
                f"{(tensor.dtype, tensor.shape)}; copy or export the bundle again"
            )


def present_providers() -> tuple[str, ...]:
    """All of its providers where TensorRT's module is installed, none elsewhere."""
    return TENSORRT if tensorrt_installed() else ()
