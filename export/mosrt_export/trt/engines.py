"""Bundle engines: those of all networks of a variant, built unless they are in the cache."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles, EngineKey, Target
from mosrt.backends.trt_module import TensorRt
from mosrt.bundle.manifest import Manifest, TensorSpec, Variant
from mosrt.errors import ProviderError
from mosrt_export.errors import EngineError

from .builder import BuildSettings, build_engine
from .shapes import Range, member_tensors, profile_of

__all__ = ["PlannedEngine", "plan_engines", "target_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEngine:
    """An engine that is in the cache, or could be.

    Attributes:
        name: The network's name.
        graph: Its ONNX file.
        key: What the engine is of and for.
        inputs: Inputs that it must have.
        outputs: Outputs that it must have.
        settings: How it is built.
    """

    name: str
    graph: Path
    key: EngineKey
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: BuildSettings

    def fault(self, files: EngineFiles) -> str | None:
        """Why the engine in the cache, if any, cannot be used; None if it can."""
        path = files.path(self.key)
        fault = files.fault(path, self.key.graph, self.key.target)
        if fault is not None:
            return fault
        with files.opened(path) as (header, _):
            settings = {name: header.facts.get(name) for name in self._settings()}
        if settings != self._settings():
            return f"it was built with {settings}, not {self._settings()}"
        return None

    def build(self, tensorrt: TensorRt, files: EngineFiles) -> Path:
        """Builds the engine and puts it into the cache.

        Raises:
            EngineError: As `build_engine`.
            BundleError: As `build_engine`.
            ProviderError: The cache cannot be written to.
        """
        target = self.key.target
        engine = build_engine(
            tensorrt,
            self.graph,
            self.key.profile,
            inputs=self.inputs,
            outputs=self.outputs,
            settings=self.settings,
            timing=files.directory
            / f"{target.module}-{target.version}-cc{target.compute_capability}.timing",
            has_gpu=target.has_gpu,
        )
        facts = {
            **self._settings(),
            "network": self.name,
            "mosrt": importlib.metadata.version("mosrt"),
        }
        return files.write(self.key, engine, facts)

    def _settings(self) -> dict[str, int | None]:
        return dataclasses.asdict(self.settings)


def plan_engines(
    manifest: Manifest,
    variant: Variant,
    directory: Path,
    *,
    target: Target,
    ranges: Mapping[str, Range],
    settings: BuildSettings,
) -> list[PlannedEngine]:
    """The engines that a variant needs on a target.

    Args:
        manifest: Of the bundle.
        variant: The variant.
        directory: Where its files are.
        target: What is to run the engines.
        ranges: Sizes that they are to take; see `mosrt_export.trt.shapes.size_ranges`.
        settings: How to build them.

    Raises:
        EngineError: An input has a dimension whose range is unknown.
    """
    planned = []
    for member in variant.members:
        inputs, outputs = member_tensors(manifest, member)
        key = EngineKey(graph=member.sha256, target=target, profile=profile_of(inputs, ranges))
        planned.append(
            PlannedEngine(
                name=member.name,
                graph=directory / member.graph.path,
                key=key,
                inputs=inputs,
                outputs=outputs,
                settings=settings,
            )
        )
    return planned


def target_of(tensorrt: TensorRt) -> Target:
    """This machine: the TensorRT and the GPU that it has.

    Raises:
        EngineError: There is no GPU, and this TensorRT cannot build without one.
    """
    try:
        capability = Cuda.open().compute_capability()
    except ProviderError as exc:
        if tensorrt.name == "tensorrt":
            raise EngineError(f"{tensorrt} builds on the GPU that runs the engine: {exc}") from exc
        capability = "none"
    return Target(module=tensorrt.name, version=tensorrt.version, compute_capability=capability)
