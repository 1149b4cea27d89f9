"""Knows which providers may compute float32 with reduced precision, and warns or refuses."""

from __future__ import annotations

import os
from typing import Final

from mosrt.errors import ProviderError

__all__ = ["exact_provider", "may_use_tf32", "warning"]

_OVERRIDE: Final = "NVIDIA_TF32_OVERRIDE"
_WITHOUT_TF32: Final = f"set {_OVERRIDE}=0 before Python starts, or choose 'tensorrt' or 'cuda'"


def may_use_tf32(provider: str) -> bool:
    """Whether a provider may multiply float32 as TF32, with 10 of 23 bits of significand.

    TF32 is switched off for the other providers. ONNX Runtime's TensorRT provider has no option for
    it and obeys only NVIDIA's environment variable. That variable is read when a process starts
    and affects all of it, so the user has to set it, not a library.
    """
    return provider == "tensorrt-ep" and os.environ.get(_OVERRIDE) != "0"


def exact_provider(front_end: str, provider: str) -> str:
    """The provider that runs a bundle exactly, even if the front end is in the graph.

    A front end handles powers that differ by a factor of 10^8. TF32 and bfloat16 cannot represent
    that range within one sum, so scores would be wrong without any sign of it.

    Args:
        front_end: The manifest's `front_end`; "graph" if the front end is in the graph.
        provider: The provider asked for.

    Raises:
        ProviderError: The provider would compute the front end with too few bits.
    """
    if front_end != "graph":
        return provider
    if may_use_tf32(provider):
        raise ProviderError(
            f"provider {provider!r} may compute the front end, which is in the graph, in TF32, "
            f"which is not precise enough; {_WITHOUT_TF32}, or a model that is exported with "
            "--frontend numpy"
        )
    if provider == "openvino-bf16":
        raise ProviderError(
            f"provider {provider!r} would compute the front end, which is in the graph, in "
            "bfloat16, which is not precise enough; choose 'openvino-fp32', or a model that is "
            "exported with --frontend numpy"
        )
    return "openvino-fp32" if provider == "openvino" else provider


def warning(provider: str) -> str | None:
    """A warning about a provider's numeric precision; None if there is nothing to warn of."""
    if not may_use_tf32(provider):
        return None
    return (
        f"provider {provider!r} may compute float32 in TF32, with 10 of 23 bits of significand, on "
        f"GPUs that support it; scores then differ from those elsewhere; {_WITHOUT_TF32}"
    )
