"""List what a bench compares: bundles in every variant on every provider, and torch beside them."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mosrt.backends import present_providers
from mosrt.bundle.bundle import MANIFEST_NAME, Bundle, find_bundle
from mosrt.bundle.container import Container
from mosrt.bundle.manifest import Manifest
from mosrt.errors import BundleError
from mosrt.host.cpu import CpuFeatures
from mosrt_bench.errors import BenchError
from mosrt_bench.worker.process import IsolatedRunner
from mosrt_bench.worker.protocol import FrontEnd, Options, Runner
from mosrt_bench.worker.worker import open_runner

from .request import TORCH, TORCH_AUTO, Request

__all__ = [
    "Configuration",
    "bundle_sha256",
    "list_configurations",
    "open_bundle",
    "providers_here",
    "reference_of",
]

ALL: Final = "all"
REFERENCE_VARIANT: Final = "fp32"
REFERENCE_PROVIDER: Final = "cpu"
_ON_NVIDIA: Final = ("cuda", "tensorrt", "tensorrt-ep")


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to run one model: with mosrt on a provider, or in torch.

    Attributes:
        request: What else is asked for: crop plan, views and checkpoints.
        bundle: The model; for torch, the bundle that its checkpoints became.
        variant: Precision variant; see `Options`.
        provider: Execution provider asked for; see `Options`.
        threads: Threads of one call.
    """

    request: Request
    bundle: Bundle
    variant: str
    provider: str
    threads: int

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.bundle.manifest.name

    @property
    def label(self) -> str:
        """The name without the number of threads: "MODEL VARIANT PROVIDER"."""
        return f"{self.model} {self.variant} {self.provider}"

    @property
    def name(self) -> str:
        """The name in a report: "MODEL VARIANT PROVIDER xTHREADS"."""
        return f"{self.label} x{self.threads}"

    @property
    def is_torch(self) -> bool:
        """Whether torch runs it instead of mosrt."""
        return self.options().is_torch

    @property
    def is_reference(self) -> bool:
        """Whether the others of its bundle are compared with its scores."""
        return self.label == reference_of(self.bundle, self.request).label

    @property
    def on_nvidia(self) -> bool:
        """Whether it runs on an NVIDIA GPU."""
        return self.provider in _ON_NVIDIA or self.provider.startswith("torch-cuda")

    def without_paths(self, text: str) -> str:
        """Text with the names of its files for their paths, since a report may be published."""
        for path in (self.bundle.path, *self.request.references):
            text = text.replace(str(path), path.name)
        return text

    def options(self, front_end: FrontEnd = "librosa") -> Options:
        """What loads it, in any process."""
        has_views = self.bundle.manifest.uncertainty is None
        return Options(
            bundle=str(self.bundle.path),
            variant=self.variant,
            provider=self.provider,
            threads=self.threads,
            plan=self.request.plan if has_views else None,
            views=self.request.views if has_views else None,
            checkpoints=[str(path) for path in self.request.references],
            front_end=front_end,
        )

    def open(
        self, limit_s: Callable[[], float] | None = None, front_end: FrontEnd = "librosa"
    ) -> Runner:
        """Loads it; the caller closes the runner.

        Args:
            limit_s: For a process of its own: gives the longest time to wait for its next answer,
                in seconds. None loads it in this process.
            front_end: For torch, what makes the model's inputs.

        Raises:
            MosrtError: It cannot be run on this machine.
        """
        options = self.options(front_end)
        return open_runner(options) if limit_s is None else IsolatedRunner(options, limit_s)


def reference_of(bundle: Bundle, request: Request) -> Configuration:
    """What others of a bundle are compared with: "fp32", or its first variant, on the CPU."""
    variants = bundle.manifest.variants
    return Configuration(
        request=request,
        bundle=bundle,
        variant=REFERENCE_VARIANT if REFERENCE_VARIANT in variants else next(iter(variants)),
        provider=REFERENCE_PROVIDER,
        threads=max(request.threads),
    )


def open_bundle(reference: str) -> Bundle:
    """Opens a bundle by name or path and checks every file's SHA-256.

    Raises:
        BundleError: It cannot be used, or a file differs from what was exported.
    """
    bundle = Bundle.open(find_bundle(reference))
    bundle.verify()
    return bundle


def bundle_sha256(bundle: Bundle) -> str:
    """SHA-256 of a bundle's manifest, which has the hashes of all its files."""
    # its size was checked when the bundle was opened
    manifest = Container.open(bundle.path).read(MANIFEST_NAME, sys.maxsize)
    return hashlib.sha256(manifest or b"").hexdigest()


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
        Configuration(
            request=request, bundle=bundle, variant=variant, provider=provider, threads=threads
        )
        for bundle, variant, provider in kinds
        for threads in request.threads
    ]
    return sorted(found, key=lambda c: (names.index(c.model), not c.is_reference, not c.is_torch))


def _torch(manifest: Manifest, request: Request, providers: Sequence[str]) -> list[tuple[str, str]]:
    """Variants and providers of torch that are asked for."""
    named = _unique(request.torch)
    if TORCH_AUTO in named:
        by_librosa = manifest.ssl and manifest.mel and "config" in manifest.provenance
        on_gpu = any(provider in _ON_NVIDIA for provider in providers)
        named = ["cuda-fp16", "cuda"] if on_gpu else ["cpu"]
        if not request.references or not by_librosa:
            named = []
    elif named and not request.references:
        raise BenchError("--torch needs --reference, the checkpoint that the bundle came from")
    return [TORCH[name] for name in named]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
