"""Opens the graphs of a model that scores by its uncertainty, a backend for each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mosrt.backends import Backend, open_backend
from mosrt.bundle.manifest import Manifest, Variant
from mosrt.bundle.uncertainty_spec import STAGES
from mosrt.host.cache import Cache

__all__ = ["load_stages"]


def load_stages(
    manifest: Manifest,
    variant: Variant,
    directory: Path,
    *,
    provider: str,
    threads: int,
    cache: Cache | None = None,
) -> dict[str, Backend]:
    """Opens a backend for each graph, by the graph's name.

    Args:
        manifest: Of an uncertainty family.
        variant: The precision variant to run.
        directory: Where its files are.
        provider: As for `open_backend`.
        threads: As for `open_backend`.
        cache: As for `open_backend`.

    Raises:
        ProviderError: The provider is not available.
        BundleError: A graph does not load, or is not what the manifest says.
    """
    tensors = {tensor.name: tensor for tensor in (*manifest.inputs, *manifest.outputs)}
    stages: dict[str, Backend] = {}
    try:
        for member in variant.members:
            taken, given = STAGES[manifest.family][member.name]
            stages[member.name] = open_backend(
                directory,
                dataclasses.replace(variant, members=(member,)),
                inputs=[tensors[name] for name in taken],
                outputs=[tensors[name] for name in given],
                provider=provider,
                threads=threads,
                cache=cache,
            )
    except BaseException:
        for stage in stages.values():
            stage.close()
        raise
    return stages
