"""Contestants: what a bench compares: bundles in every variant, on every provider."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import mosrt
from mosrt.backends import present_providers
from mosrt.bundle.bundle import MANIFEST_NAME, Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.errors import BundleError
from mosrt.host.cpu import CpuFeatures
from mosrt.score import Score
from mosrt_bench.errors import BenchError

__all__ = [
    "Contestant",
    "bundle_sha256",
    "contestants",
    "figures",
    "open_bundle",
    "providers_here",
]

ALL: Final = "all"
REFERENCE_VARIANT: Final = "fp32"
REFERENCE_PROVIDER: Final = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to run one model.

    Attributes:
        bundle: The model.
        variant: Precision variant.
        provider: Execution provider asked for.
        threads: Threads of one call.
    """

    bundle: Bundle
    variant: str
    provider: str
    threads: int

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.bundle.manifest.name

    @property
    def name(self) -> str:
        """What to call it in a report."""
        return f"{self.model} {self.variant} {self.provider} x{self.threads}"

    @property
    def is_reference(self) -> bool:
        """Whether others of its bundle are held to its scores."""
        return self.provider == REFERENCE_PROVIDER and self.variant == reference_variant(
            self.bundle
        )

    def load(self) -> mosrt.Scorer:
        """A scorer; the caller closes it.

        Raises:
            MosrtError: It cannot be run on this machine.
        """
        return mosrt.load(
            self.bundle.path,
            variant=self.variant,
            provider=self.provider,
            threads=self.threads,
        )


def reference_variant(bundle: Bundle) -> str:
    """The variant that the others are held to: "fp32", or the first where there is none."""
    variants = bundle.manifest.variants
    return REFERENCE_VARIANT if REFERENCE_VARIANT in variants else next(iter(variants))


def open_bundle(reference: str) -> Bundle:
    """A bundle by name or path, every file's SHA-256 checked.

    Raises:
        BundleError: It cannot be used, or a file differs from what was exported.
    """
    bundle = Bundle.open(find_bundle(reference))
    bundle.verify()
    return bundle


def bundle_sha256(bundle: Bundle) -> str:
    """What identifies a verified bundle: the hash of its manifest, which has those of its files."""
    if bundle.path.is_dir():
        manifest = (bundle.path / MANIFEST_NAME).read_bytes()
    else:
        with zipfile.ZipFile(bundle.path) as archive:
            manifest = archive.read(MANIFEST_NAME)
    return hashlib.sha256(manifest).hexdigest()


def providers_here() -> tuple[str, ...]:
    """Providers of this machine by their precise names, the CPU first."""
    here = _unique(map(_precise, present_providers()))
    if CpuFeatures.read().bf16 is None:
        here = [name for name in here if name != "openvino-bf16"]
    return tuple(sorted(here, key=lambda name: name != REFERENCE_PROVIDER))


def _precise(provider: str) -> str:
    """What "openvino" stands for on this machine: scores name the precision, and so do reports."""
    if provider != "openvino":
        return provider
    return "openvino-fp32" if CpuFeatures.read().bf16 is None else "openvino-bf16"


def contestants(
    bundles: Sequence[Bundle],
    *,
    variants: Sequence[str],
    providers: Sequence[str],
    threads: Sequence[int],
) -> list[Contestant]:
    """All that are asked for, each bundle's reference first.

    Args:
        bundles: The models; of different names.
        variants: Names, or "all".
        providers: Names, or "all" for those of this machine.
        threads: Numbers of threads.

    Raises:
        BenchError: Two bundles have one name.
        BundleError: A variant is in no bundle.
    """
    names = [bundle.manifest.name for bundle in bundles]
    if len(set(names)) < len(names):
        raise BenchError(
            f"bundles of one name cannot be told apart: {', '.join(names)}; export one again with "
            "--name"
        )
    unknown = set(variants) - {ALL} - {v for b in bundles for v in b.manifest.variants}
    if unknown:
        raise BundleError(
            f"no bundle has the variant {', '.join(sorted(unknown))}; there are: "
            f"{', '.join(_unique(v for b in bundles for v in b.manifest.variants))}"
        )
    chosen = providers_here() if ALL in providers else _unique(map(_precise, providers))
    found = [
        Contestant(bundle=bundle, variant=variant, provider=provider, threads=count)
        for bundle in bundles
        for variant in bundle.manifest.variants
        if ALL in variants or variant in variants
        for provider in chosen
        for count in threads
    ]
    return sorted(found, key=lambda c: (names.index(c.model), not c.is_reference))


def figures(score: Score) -> dict[str, float]:
    """What is compared of a clip's score: MOS by domain, or the uncertainty."""
    if "uncertainty" in score.measures:
        return {"uncertainty": score.measures["uncertainty"]}
    return dict(score.domains)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
