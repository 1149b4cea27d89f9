"""Defines the protocol that every backend implements, and what backends share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from mosrt._arrays import Array, Float32Array
from mosrt.bundle.manifest import TensorSpec
from mosrt.errors import BundleError

__all__ = ["OPENVINO", "TENSORRT", "Backend", "check_tensors", "reason", "run_views", "stacked"]

# Providers that need packages of their own. Their names stand here, so that only the backend in use
# is imported.
OPENVINO: Final = ("openvino", "openvino-bf16", "openvino-fp32")
TENSORRT: Final = ("tensorrt",)


class Backend(Protocol):
    """Runs every network of one variant. Safe to call from several threads at once.

    Attributes:
        provider: Name of the execution provider, such as "cpu".
        batch_size: Views per call; a caller pads to exactly this many. Kernels may choose another
            algorithm for another batch size, so a fixed size makes results batch-invariant.
    """

    provider: str
    batch_size: int

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Float32Array]:
        """Runs a batch.

        Args:
            feeds: Input tensors by name, (batch_size, ...); read only during the call.
            outputs: Names of the outputs wanted; others need not be computed.

        Returns:
            Output tensors by name, (networks, batch_size, ...), which the caller may change.

        Raises:
            ClosedError: `close` was called before.
            BundleError: A graph fails, or its outputs are not those of the manifest.
            ProviderError: A provider other than the CPU failed.
        """
        ...

    def close(self) -> None:
        """Waits for calls that run, then releases the backend's memory."""
        ...


def run_views(
    backend: Backend, views: Sequence[Mapping[str, Float32Array]], outputs: Sequence[str]
) -> list[dict[str, Float32Array]]:
    """Runs some views, at most as many as the backend runs at once, filled up to that number.

    Args:
        backend: Runs them.
        views: For each view the input tensors by name, without the batch axis.
        outputs: Names of the outputs wanted.

    Returns:
        For each view the outputs by name, (networks, ...).

    Raises:
        MosrtError: As for `Backend.run`.
    """
    filled = [*views, *[views[-1]] * (backend.batch_size - len(views))]
    feeds = {name: np.stack([view[name] for view in filled]) for name in filled[0]}
    results = backend.run(feeds, outputs)
    for name, result in results.items():
        if result.shape[1] != len(filled):
            raise BundleError(
                f"the graph's output {name!r} is about {result.shape[1]} views of "
                f"{len(filled)}; copy or export the bundle again"
            )
    return [{name: each[:, i] for name, each in results.items()} for i in range(len(views))]


def check_tensors(
    what: str,
    wanted: Sequence[TensorSpec],
    found: Mapping[str, tuple[str | None, Sequence[int | str]]],
) -> None:
    """Raises BundleError unless a graph or engine has the inputs or outputs of the manifest.

    Args:
        what: What has them, and "input" or "output", for the message.
        wanted: The manifest's tensors.
        found: Types and shapes by name. None stands for a type that is not known, "" or -1 for a
            dynamic size. The first size may be fixed where the manifest's is dynamic: some graphs
            take only one recording.
    """
    for tensor in wanted:
        dtype, shape = found.get(tensor.name, ("missing", ()))
        if dtype not in (None, tensor.dtype) or not _fits(shape, tensor.shape):
            raise BundleError(
                f"{what} {tensor.name!r} is {found.get(tensor.name)}, but the manifest says "
                f"{(tensor.dtype, tensor.shape)}; copy or export the bundle again"
            )


def stacked(
    wanted: Sequence[TensorSpec], results: Sequence[Mapping[str, Any]], outputs: Sequence[str]
) -> dict[str, Float32Array]:
    """The outputs of all networks, (networks, ...) by name, copied.

    Args:
        wanted: The manifest's outputs.
        results: Outputs by name of each network.
        outputs: Names of the outputs wanted.

    Raises:
        BundleError: An output is not what the manifest says, whatever the graph declared.
    """
    specs = {tensor.name: tensor for tensor in wanted}
    for name in outputs:
        spec = specs[name]
        first = results[0][name]
        for array in (result[name] for result in results):
            fits = isinstance(array, np.ndarray) and array.dtype.name == spec.dtype
            if not fits or array.shape != first.shape or not _sizes_fit(array.shape, spec.shape):
                found = f"{getattr(array, 'dtype', type(array))} {getattr(array, 'shape', '')}"
                raise BundleError(
                    f"the graph's output {name!r} is {found}, but the manifest says {spec.dtype} "
                    f"{spec.shape}; copy or export the bundle again"
                )
    return {name: np.stack([result[name] for result in results]) for name in outputs}


def reason(exc: Exception) -> str:
    """What an engine says went wrong, in one line of a bearable length."""
    return " ".join(str(exc).split())[:400]


def _fits(found: Sequence[int | str], wanted: Sequence[int | str]) -> bool:
    if len(found) != len(wanted):
        return False
    return all(
        a == b
        or (a in ("", -1) and isinstance(b, str))
        or (i == 0 and (not isinstance(a, int) or isinstance(b, str)))
        for i, (a, b) in enumerate(zip(found, wanted, strict=True))
    )


def _sizes_fit(found: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return len(found) == len(wanted) and all(
        a == b or isinstance(b, str) for a, b in zip(found, wanted, strict=True)
    )
