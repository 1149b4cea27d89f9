"""Plans the engines of a bundle's variant, and builds those that are not in the cache."""

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
    """An engine to find in the cache or to build.

    Attributes:
        name: Name of the network.
        graph: Its ONNX file.
        key: Key of the engine in the cache.
        inputs: Inputs that the graph must have.
        outputs: Outputs that the graph must have.
        settings: Settings of the builder.
    """

    name: str
    graph: Path
    key: EngineKey
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: BuildSettings

    def fault(self, files: EngineFiles) -> str | None:
        """The reason why the cache has no usable engine; None if it has one."""
        path = files.path(self.key)
        fault = files.fault(path, self.key.graph, self.key.target)
        if fault is not None:
            return fault
        wanted = dataclasses.asdict(self.settings)
        with files.opened(path) as (header, _):
            settings = {name: header.facts.get(name) for name in wanted}
        return None if settings == wanted else f"it was built with {settings}, not {wanted}"

    def build(self, tensorrt: TensorRt, files: EngineFiles) -> Path:
        """Builds the engine and writes it to the cache.

        Raises as `build_engine`; ProviderError also if the cache cannot be written to.
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
            **dataclasses.asdict(self.settings),
            "network": self.name,
            "mosrt": importlib.metadata.version("mosrt"),
        }
        return files.write(self.key, engine, facts)


def plan_engines(
    manifest: Manifest,
    variant: Variant,
    directory: Path,
    *,
    target: Target,
    ranges: Mapping[str, Range],
    settings: BuildSettings,
) -> list[PlannedEngine]:
    """Returns the engines that a variant, whose files are in `directory`, needs on a target.

    `ranges` comes from `mosrt_export.trt.shapes.size_ranges`.

    Raises:
        EngineError: An input has a dimension whose range is unknown.
    """
    planned = []
    for member in variant.members:
        inputs, outputs = member_tensors(manifest, member)
        profile = profile_of(inputs, ranges)
        engine = PlannedEngine(
            name=member.name,
            graph=directory / member.graph.path,
            key=EngineKey(graph=member.sha256, target=target, profile=profile),
            inputs=inputs,
            outputs=outputs,
            settings=settings,
        )
        planned.append(engine)
    return planned


def target_of(tensorrt: TensorRt) -> Target:
    """Returns the target of this machine: its TensorRT and GPU.

    Raises:
        EngineError: There is no GPU, and this TensorRT needs one to build.
    """
    try:
        capability = Cuda.open().compute_capability()
    except ProviderError as exc:
        if tensorrt.name == "tensorrt":
            raise EngineError(f"{tensorrt} builds on the GPU that runs the engine: {exc}") from exc
        capability = "none"
    return Target(module=tensorrt.name, version=tensorrt.version, compute_capability=capability)
