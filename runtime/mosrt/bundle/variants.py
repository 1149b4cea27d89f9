"""Chooses the variant of a model that suits a machine and provider."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from mosrt.errors import ProviderError
from mosrt.host.cpu import CpuFeatures

from .manifest import Variant

__all__ = ["Choice", "best_on_cpu", "caution", "check", "fastest", "reference"]

_REFERENCE: Final = "fp32"
_INT8_CPU: Final = "int8-cpu"
# x86-64 CPUs with it multiply 32 bytes at a time and add pairs in 16 bits.
_WIDE_BYTES: Final = "avx2"
_CPU_PROVIDERS: Final = ("cpu", "openvino", "openvino-bf16", "openvino-fp32")
# Variants that are made for certain providers; every other runs on any.
_MADE_FOR: Final = {_INT8_CPU: _CPU_PROVIDERS, "int8-trt": ("tensorrt",)}


class Choice(NamedTuple):
    """A variant's name, and the reason for choosing it."""

    variant: str
    reason: str


def check(variant: str, provider: str) -> None:
    """Raises ProviderError unless `variant` can run on `provider`."""
    if provider not in _MADE_FOR.get(variant, (provider,)):
        places = ", ".join(_MADE_FOR[variant])
        raise ProviderError(
            f"variant {variant!r} is made for {places} and does not run on provider "
            f"{provider!r}; choose another variant, or 'auto'"
        )


def reference(variants: Collection[str], provider: str) -> Choice:
    """The variant closest to the checkpoint: fp32, else the first that runs on `provider`.

    Raises:
        ProviderError: None of `variants` runs there.
    """
    if _REFERENCE in variants:
        return Choice(_REFERENCE, "the reference precision")
    for name in variants:
        if provider in _MADE_FOR.get(name, (provider,)):
            return Choice(name, f"the first that runs on {provider}; there is no {_REFERENCE}")
    raise ProviderError(
        f"none of the variants {', '.join(variants)} runs on provider {provider!r}; add one with "
        "`mosrt quantize`, or export the model again"
    )


def best_on_cpu(cpu: CpuFeatures) -> Choice:
    """The variant that suits a processor best, whether or not a bundle has it."""
    if cpu.int8_dot is not None:
        return Choice(_INT8_CPU, f"the CPU has 8-bit dot products ({cpu.int8_dot})")
    if _WIDE_BYTES in cpu.flags:
        return Choice(_INT8_CPU, "the CPU has AVX2; it is fp32 where INT8 weights have all 8 bits")
    known = "" if cpu.flags else " that this system reports"
    return Choice(_REFERENCE, f"the CPU has no 8-bit dot products{known}")


def fastest(variants: Mapping[str, Variant], provider: str, cpu: CpuFeatures) -> Choice:
    """The variant that "auto" means on a machine.

    Args:
        variants: Those that the bundle has, by name.
        provider: What will run it.
        cpu: The machine's processor.

    Raises:
        ProviderError: None of `variants` runs there.
    """
    if provider not in _CPU_PROVIDERS:
        exact = reference(variants, provider)
        return Choice(exact.variant, f"{exact.reason}; others were not measured on {provider}")
    best = best_on_cpu(cpu)
    found = variants.get(best.variant)
    if found is not None and caution(best.variant, found, cpu) is None:
        return best
    exact = reference(variants, provider)
    reason = f"the bundle has no {best.variant}" if found is None else "8 bits are slow on this CPU"
    return Choice(exact.variant, f"{exact.reason}; {reason}")


def caution(name: str, variant: Variant, cpu: CpuFeatures) -> str | None:
    """A warning about a variant that was asked for by name; None if there is nothing to warn of."""
    if name != _INT8_CPU or cpu.int8_dot is not None or not cpu.flags:
        return None
    if variant.sums_fit and _WIDE_BYTES in cpu.flags:
        return None
    return (
        f"variant {name!r} is slow on this CPU, which has no 8-bit dot products, and on x86-64 "
        "its scores with provider 'openvino' differ from those elsewhere: sums of 16 bits saturate"
    )
