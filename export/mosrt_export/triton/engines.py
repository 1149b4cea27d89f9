"""Engine files for a server: each the right one, and fit to be asked for a single view."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mosrt.backends.engine_file import EngineFiles, Profile, Target
from mosrt.bundle.manifest import Manifest, Variant
from mosrt_export.triton_errors import TritonError

__all__ = ["ServedEngine", "match_engines"]

_SERVED_MODULE: Final = "tensorrt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEngine:
    """An engine that was found to be sound.

    Attributes:
        path: The file in mosrt's cache.
        target: What it was built by and for.
        profile: Shapes that it takes.
    """

    path: Path
    target: Target
    profile: Profile

    def write_plan(self, path: Path) -> None:
        """Writes the engine alone, as Triton reads it."""
        with (
            EngineFiles(self.path.parent).opened(self.path) as (_, engine),
            path.open("wb") as stream,
        ):
            stream.write(engine)


def match_engines(
    manifest: Manifest, variant: Variant, paths: Sequence[Path]
) -> Mapping[str, ServedEngine]:
    """Engines by network, whatever the order of the files.

    Args:
        manifest: Of the bundle.
        variant: The variant that is served.
        paths: Files that `mosrt build` has made, one per network.

    Raises:
        TritonError: A file is damaged, of another graph or not for Triton, or one is missing.
    """
    networks = {member.sha256: member for member in variant.members}
    found: dict[str, ServedEngine] = {}
    for path in paths:
        engine, graph = _read(path)
        member = networks.get(graph)
        if member is None:
            raise TritonError(
                f"{path}: is of graph {graph[:16]}, which this variant does not have; give the "
                "files that `mosrt build` prints for the same bundle and variant"
            )
        if member.name in found:
            raise TritonError(f"{path}: a second engine of {member.name}; give one per network")
        if manifest.uncertainty is None:
            _check_batches(path, engine.profile)
        found[member.name] = engine
    missing = [member.name for member in variant.members if member.name not in found]
    if missing:
        raise TritonError(
            f"no engine of {', '.join(missing)}; give --engine once per network, with the files "
            "that `mosrt build` prints"
        )
    if len({engine.target for engine in found.values()}) > 1:
        targets = "; ".join(f"{name}: {engine.target}" for name, engine in found.items())
        raise TritonError(f"the engines are for different targets ({targets}); build them together")
    return found


def _read(path: Path) -> tuple[ServedEngine, str]:
    """An engine, and the digest of its graph."""
    files = EngineFiles(path.parent)
    try:
        with files.opened(path) as (header, _):
            key = header.key
    except (OSError, ValueError) as exc:
        raise TritonError(
            f"{path}: {exc}; give a file from mosrt's cache, as `mosrt build` prints it"
        ) from exc
    fault = files.fault(path, key.graph, key.target)
    if fault is not None:
        raise TritonError(f"{path}: {fault}; build it again with `mosrt build`")
    if key.target.module != _SERVED_MODULE:
        raise TritonError(
            f"{path}: was built by {key.target.module}; Triton runs engines of TensorRT itself: "
            "build with that, or leave --engine out and serve the ONNX graph"
        )
    return ServedEngine(path=path, target=key.target, profile=key.profile), key.graph


def _check_batches(path: Path, profile: Profile) -> None:
    fewest = max(smallest[0] for smallest, _, _ in profile.values())
    if fewest > 1:
        raise TritonError(
            f"{path}: takes no fewer than {fewest} views, and a request may have one; build it "
            "with `mosrt build --min-batch 1`"
        )
