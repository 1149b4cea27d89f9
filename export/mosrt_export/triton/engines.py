"""Matches TensorRT engine files with the networks of a bundle, and checks them for Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosrt.backends.engine_file import EngineFiles, Profile, Target
from mosrt.bundle.manifest import Manifest, Variant
from mosrt_export.errors import TritonError

__all__ = ["ServedEngine", "match_engines"]

_SERVED_MODULE: Final = "tensorrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEngine:
    """An engine file that passed all checks.

    Attributes:
        path: The file in mosrt's cache.
        target: TensorRT version and GPU that it was built for.
        profile: Range of its input shapes.
    """

    path: Path
    target: Target
    profile: Profile

    def write_plan(self, path: Path) -> None:
        """Writes the plain engine, without mosrt's header."""
        with (
            EngineFiles(self.path.parent).opened(self.path) as (_, engine),
            path.open("wb") as stream,
        ):
            stream.write(engine)


def match_engines(
    manifest: Manifest, variant: Variant, paths: Sequence[Path]
) -> Mapping[str, ServedEngine]:
    """Matches engine files with networks.

    Args:
        manifest: Manifest of the bundle.
        variant: The variant to serve.
        paths: Files written by `mosrt build`, one per network in any order.

    Returns:
        Engines by name of the network.

    Raises:
        TritonError: A file is damaged, belongs to another graph or cannot run on Triton, or one is
            missing.
    """
    networks = {member.sha256: member for member in variant.members}
    found: dict[str, ServedEngine] = {}
    for path in paths:
        engine, graph = _read(path)
        member = networks.get(graph)
        if member is None:
            raise TritonError(
                f"{path}: belongs to graph {graph[:16]}, which is not in this variant; pass the "
                "files that `mosrt build` prints for the same bundle and variant"
            )
        if member.name in found:
            raise TritonError(f"{path}: a second engine of {member.name}; pass one per network")
        if manifest.uncertainty is None:
            _check_batches(path, engine.profile)
        found[member.name] = engine
    missing = [member.name for member in variant.members if member.name not in found]
    if missing:
        raise TritonError(
            f"no engine of {', '.join(missing)}; pass --engine once per network, with the files "
            "that `mosrt build` prints"
        )
    if len({engine.target for engine in found.values()}) > 1:
        targets = "; ".join(f"{name}: {engine.target}" for name, engine in found.items())
        raise TritonError(f"the engines are for different targets ({targets}); build them together")
    return found


def _read(path: Path) -> tuple[ServedEngine, str]:
    """Returns an engine and the SHA-256 of its graph."""
    files = EngineFiles(path.parent)
    try:
        with files.opened(path) as (header, _):
            key = header.key
    except (OSError, ValueError) as exc:
        raise TritonError(
            f"{path}: {exc}; pass a file from mosrt's cache that `mosrt build` prints"
        ) from exc
    fault = files.fault(path, key.graph, key.target)
    if fault is not None:
        raise TritonError(f"{path}: {fault}; build it again with `mosrt build`")
    if key.target.module != _SERVED_MODULE:
        raise TritonError(
            f"{path}: was built by {key.target.module}; Triton runs only engines of the full "
            "TensorRT: build with that, or leave --engine out to serve the ONNX graph"
        )
    return ServedEngine(path=path, target=key.target, profile=key.profile), key.graph


def _check_batches(path: Path, profile: Profile) -> None:
    fewest = max(smallest[0] for smallest, _, _ in profile.values())
    if fewest > 1:
        raise TritonError(
            f"{path}: needs at least {fewest} views, but a request may have one; build it "
            "with `mosrt build --min-batch 1`"
        )
