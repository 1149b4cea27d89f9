"""List what a bench compares: bundles in every variant on every provider, and torch beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from mosrt.backends import present_providers
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.errors import BundleError
from mosrt.host.cpu import CpuFeatures
from mosrt_bench.errors import BenchError
from mosrt_bench.worker.process import IsolatedRunner
from mosrt_bench.worker.protocol import ON_NVIDIA, Configuration, Runner, torch_makes_inputs
from mosrt_bench.worker.worker import open_runner

from .request import TORCH, TORCH_AUTO, Request, Session

__all__ = [
    "list_configurations",
    "open_bundle",
    "open_configuration",
    "providers_here",
    "reference_of",
]

ALL: Final = "all"
REFERENCE_VARIANT: Final = "fp32"
REFERENCE_PROVIDER: Final = "cpu"


def open_configuration(configuration: Configuration, session: Session) -> Runner:
    """Loads a configuration, in a process of its own if asked for; the caller closes the runner.

    Raises:
        MosrtError: It cannot be run on this machine.
    """
    if session.limit_s is None:
        return open_runner(configuration)
    return IsolatedRunner(configuration, session.limit_s)


def reference_of(bundle: Bundle, request: Request) -> Configuration:
    """What others of a bundle are compared with: "fp32", or its first variant, on the CPU."""
    variant = _reference_variant(bundle)
    return _configuration(bundle, request, variant, REFERENCE_PROVIDER, max(request.threads))


def _configuration(
    bundle: Bundle, request: Request, variant: str, provider: str, threads: int
) -> Configuration:
    has_views = bundle.manifest.uncertainty is None
    return Configuration(
        model=bundle.manifest.name,
        bundle=str(bundle.path),
        variant=variant,
        provider=provider,
        threads=threads,
        plan=request.plan if has_views else None,
        views=request.views if has_views else None,
        checkpoints=tuple(map(str, request.references)),
        is_reference=(variant, provider) == (_reference_variant(bundle), REFERENCE_PROVIDER),
    )


def _reference_variant(bundle: Bundle) -> str:
    variants = bundle.manifest.variants
    return REFERENCE_VARIANT if REFERENCE_VARIANT in variants else next(iter(variants))


def open_bundle(reference: str) -> Bundle:
    """Opens a bundle by name or path and checks every file's SHA-256.

    Raises:
        BundleError: It cannot be used, or a file differs from what was exported.
    """
    bundle = Bundle.open(find_bundle(reference))
    bundle.verify()
    return bundle


def providers_here() -> tuple[str, ...]:
    """Providers of this machine by their precise names, the CPU first."""
    here = _unique(map(_precise, present_providers()))
    if CpuFeatures.read().bf16 is None:
        here = [name for name in here if name != "openvino-bf16"]
    return tuple(sorted(here, key=lambda name: name != REFERENCE_PROVIDER))


def _precise(provider: str) -> str:
    """The provider that "openvino" is on this machine; scores name the precision too."""
    if provider != "openvino":
        return provider
    return "openvino-fp32" if CpuFeatures.read().bf16 is None else "openvino-bf16"


def list_configurations(bundles: Sequence[Bundle], request: Request) -> list[Configuration]:
    """All configurations asked for: by bundle, the reference first, then torch, then the others.

    Args:
        bundles: The models, each of another name.
        request: What is asked for.

    Raises:
        BenchError: Two bundles have one name, or torch cannot be compared with what is asked for.
        BundleError: No bundle has a variant that is asked for.
    """
    names = [bundle.manifest.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise BenchError(
            f"bundles of one name cannot be told apart: {', '.join(names)}; export one again with "
            "--name"
        )
    if request.references and len(bundles) != 1:
        raise BenchError("--reference goes with one bundle; name it alone")
    variants = request.variants
    known = _unique(name for bundle in bundles for name in bundle.manifest.variants)
    if unknown := set(variants) - {ALL, *known}:
        raise BundleError(
            f"no bundle has the variant {', '.join(sorted(unknown))}; there are: {', '.join(known)}"
        )
    chosen = _unique(map(_precise, request.providers))
    if ALL in request.providers:
        chosen = list(providers_here())
    kinds = [
        (bundle, variant, provider)
        for bundle in bundles
        for variant in bundle.manifest.variants
        if ALL in variants or variant in variants
        for provider in chosen
    ]
    kinds += [(bundles[0], *kind) for kind in _torch(bundles[0].manifest, request, chosen)]
    found = [
        _configuration(bundle, request, variant, provider, threads)
        for bundle, variant, provider in kinds
        for threads in request.threads
    ]
    return sorted(found, key=lambda c: (names.index(c.model), not c.is_reference, not c.is_torch))


def _torch(manifest: Manifest, request: Request, providers: Sequence[str]) -> list[tuple[str, str]]:
    """Variants and providers of torch that are asked for."""
    named = _unique(request.torch)
    if TORCH_AUTO in named:
        on_gpu = any(provider in ON_NVIDIA for provider in providers)
        named = ["cuda-fp16", "cuda"] if on_gpu else ["cpu"]
        if not request.references or not torch_makes_inputs(manifest):
            named = []
    elif named and not request.references:
        raise BenchError("--torch needs --reference, the checkpoint that the bundle came from")
    return [TORCH[name] for name in named]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
