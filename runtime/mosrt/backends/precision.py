"""Arithmetic: where a provider computes float32 with fewer bits than float32 has."""

from __future__ import annotations

import os
from typing import Final

from mosrt.errors import ProviderError

__all__ = ["caution", "exact_provider", "may_use_tf32"]

_OVERRIDE: Final = "NVIDIA_TF32_OVERRIDE"
_WITHOUT_TF32: Final = f"set {_OVERRIDE}=0 before Python starts, or choose 'tensorrt' or 'cuda'"


def may_use_tf32(provider: str) -> bool:
    """Whether a provider may multiply float32 as TF32, with 10 bits of significand out of 23.

    The others are told not to. ONNX Runtime's use of TensorRT has no option for it and heeds
    NVIDIA's variable alone, which counts for everything in a process and when it starts. So it is
    for the user to set, not for a library.
    """
    return provider == "tensorrt-ep" and os.environ.get(_OVERRIDE) != "0"


def exact_provider(front_end: str, provider: str) -> str:
    """The provider that is to run a bundle, whose front end may be in the graph.

    Such a front end tells powers apart that differ by a factor of 10^8, which neither TF32 nor
    bfloat16 can, so that images and scores would be wrong and look right.

    Args:
        front_end: The manifest's; "graph" if it is in the graph.
        provider: The provider asked for.

    Raises:
        ProviderError: It would compute the front end with too few bits.
    """
    if front_end != "graph":
        return provider
    if may_use_tf32(provider):
        raise ProviderError(
            f"provider {provider!r} may compute the front end, which is in the graph, with TF32, "
            f"too coarse for it; {_WITHOUT_TF32}, or export the model with --frontend numpy"
        )
    if provider == "openvino-bf16":
        raise ProviderError(
            f"provider {provider!r} would compute the front end, which is in the graph, in "
            "bfloat16, too coarse for it; choose 'openvino-fp32', or export the model with "
            "--frontend numpy"
        )
    return "openvino-fp32" if provider == "openvino" else provider


def caution(provider: str) -> str | None:
    """What there is to say against a provider's arithmetic, if anything."""
    if not may_use_tf32(provider):
        return None
    return (
        f"provider {provider!r} may compute float32 as TF32, with 10 bits of 23, on GPUs that have "
        f"it, and scores then differ from those elsewhere; {_WITHOUT_TF32}"
    )
