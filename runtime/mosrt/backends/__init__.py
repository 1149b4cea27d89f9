"""Opens the backend that runs a variant's graphs on an execution provider."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from mosrt.bundle.manifest import TensorSpec, Variant
from mosrt.errors import ProviderError
from mosrt.host.cache import Cache

from . import ort
from .base import OPENVINO, TENSORRT, Backend
from .ort import OrtBackend

__all__ = [
    "KEEPING",
    "PROVIDERS",
    "Backend",
    "OrtBackend",
    "candidates",
    "open_backend",
    "present_providers",
]

PROVIDERS: Final = (*ort.PROVIDERS, *OPENVINO, *TENSORRT)
KEEPING: Final = ("tensorrt-ep",)
"""Providers that keep files of their own, which must not come from damaged graphs."""
# OpenVINO must be asked for by name: installing a package must not change scores.
_AUTO: Final = ("cuda", "cpu")


def present_providers() -> tuple[str, ...]:
    """The providers whose packages are installed; one that needs a GPU may still fail to start."""
    from .trt_module import MODULES  # noqa: PLC0415 - only what is in use is imported

    return (
        *ort.present_providers(),
        *(OPENVINO if find_spec("openvino") else ()),
        *(TENSORRT if any(map(find_spec, MODULES)) else ()),
    )


def candidates(provider: str) -> tuple[str, ...]:
    """The providers to try for a requested one, best first.

    Raises:
        ProviderError: The provider is unknown.
    """
    if provider == "auto":
        here = ort.present_providers()
        return tuple(name for name in _AUTO if name in here)
    if provider not in PROVIDERS:
        raise ProviderError(
            f"unknown provider {provider!r}; known: auto, {', '.join(PROVIDERS)}; "
            f"on this machine: {', '.join(present_providers())}"
        )
    return (provider,)


def open_backend(
    directory: Path,
    variant: Variant,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    provider: str,
    threads: int,
    cache: Cache | None = None,
) -> Backend:
    """Opens a provider's backend and loads a variant's networks.

    Args:
        directory: Directory of the bundle's files.
        variant: The variant to run.
        inputs: Inputs that the graphs must have.
        outputs: Outputs that the graphs must have.
        provider: One of `PROVIDERS`.
        threads: Threads for one call.
        cache: Cache for optimised graphs and compiled models; none by default.

    Raises:
        ProviderError: The provider is not installed, or failed to start.
        BundleError: A graph does not load, or differs from the manifest.
    """
    tensors: dict[str, Any] = {"inputs": inputs, "outputs": outputs}
    if provider in TENSORRT:
        from .trt import TrtBackend  # noqa: PLC0415 - only what is in use is imported

        return TrtBackend(directory, variant, **tensors)
    options: dict[str, Any] = {"provider": provider, "threads": threads, "cache": cache}
    if provider in OPENVINO:
        from .openvino import OpenVinoBackend  # noqa: PLC0415 - as above

        return OpenVinoBackend(directory, variant, **tensors, **options)
    return OrtBackend(directory, variant, **tensors, **options)
