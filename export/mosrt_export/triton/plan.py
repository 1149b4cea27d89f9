"""Plans a model repository: the models that a bundle becomes, and the ensembles of them.

Ensembles of Triton pass tensors on and compute nothing, so the mean over networks is a graph of its
own, which is written here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.backends.engine_file import EngineFiles, Profile, Target
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.uncertainty_spec import STAGES
from mosrt_export.errors import TritonError
from mosrt_export.trt.shapes import member_tensors, profile_of, size_ranges

from .config import Network, Serving, Step, ensemble_config, network_config

__all__ = [
    "Plan",
    "ServedEngine",
    "match_engines",
    "mean_tensors",
    "plan_repository",
    "write_mean_graph",
]

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


_DEFAULT_MAX_BATCH: Final = 8
_MEAN_OPSET: Final = 18
# The oldest IR version that has the opset, so that old servers can read it.
_MEAN_IR_VERSION: Final = 8
# Inputs that a client selects from the outputs of an earlier graph, which no ensemble can do.
_PICKED: Final = frozenset({"queries"})
# Names that are safe for shells, URLs and file systems.
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The models of a repository.

    Attributes:
        model: Name of the network or ensemble that computes the complete result; None if no single
            model does.
        networks: Models for the files of the bundle, by the names in the bundle.
        mean: The model that averages networks, or None.
        configs: Configurations of all models by name.
    """

    model: str | None
    networks: Mapping[str, Network]
    mean: Network | None
    configs: Mapping[str, Mapping[str, Any]]


def plan_repository(
    manifest: Manifest,
    variant: Variant,
    *,
    serving: Serving,
    engines: Mapping[str, ServedEngine],
    max_batch: int | None,
) -> Plan:
    """Plans a repository.

    Args:
        manifest: Manifest of the bundle.
        variant: The variant to serve.
        serving: How the server runs the models.
        engines: TensorRT engines by network; empty to serve the graphs with ONNX Runtime.
        max_batch: Most views per run; by default 8, or the limit of the engines or the variant.

    Raises:
        TritonError: The bundle cannot be served as requested.
    """
    name = _checked_name(manifest.name)
    limit = _max_batch(manifest, variant, engines, max_batch)
    alone = len(variant.members) == 1
    networks = {
        member.name: _network(
            name if alone else _checked_name(f"{name}_{member.name}"),
            manifest,
            member,
            engine=engines.get(member.name),
            max_batch=limit,
        )
        for member in variant.members
    }
    configs = {network.name: network_config(network, serving) for network in networks.values()}
    if alone:
        return Plan(model=name, networks=networks, mean=None, configs=configs)
    if manifest.uncertainty is not None:
        steps = _stage_steps(manifest, networks)
        if len(steps) < 2:
            return Plan(model=None, networks=networks, mean=None, configs=configs)
        configs[name] = _stage_ensemble(name, manifest, steps)
        return Plan(model=name, networks=networks, mean=None, configs=configs)
    mean = _mean(f"{name}_mean", manifest, tuple(networks), limit)
    if mean.name in configs:
        raise TritonError(f"two models would be called {mean.name!r}; rename the network")
    configs[mean.name] = network_config(mean, Serving(gpu=False, instances=serving.instances))
    configs[name] = _mean_ensemble(name, manifest, networks, mean)
    return Plan(model=name, networks=networks, mean=mean, configs=configs)


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TritonError(
            f"{name!r} cannot be the name of a folder and a model; export the bundle again with "
            "a --name of letters, digits, dots, dashes and underscores"
        )
    return name


def _max_batch(
    manifest: Manifest,
    variant: Variant,
    engines: Mapping[str, ServedEngine],
    asked: int | None,
) -> int:
    if manifest.uncertainty is not None:
        if asked is not None:
            raise TritonError(
                f"{manifest.name} processes one recording at a time; leave --max-batch out"
            )
        return 0
    if engines:
        limit = min(
            largest[0] for engine in engines.values() for _, _, largest in engine.profile.values()
        )
        reason = "the limit of the engines; build them with a larger `mosrt build --max-batch`"
    elif variant.fixed_batch is not None:
        limit = variant.fixed_batch
        reason = "in larger batches, the scores of this variant depend on the other views"
    else:
        return asked or _DEFAULT_MAX_BATCH
    if asked is not None and asked > limit:
        raise TritonError(f"--max-batch {asked} is over {limit}: {reason}")
    return asked or limit


def _network(
    name: str,
    manifest: Manifest,
    member: Member,
    *,
    engine: ServedEngine | None,
    max_batch: int,
) -> Network:
    inputs, outputs = member_tensors(manifest, member)
    profile = profile_of(inputs, size_ranges(manifest)) if engine is None else engine.profile
    usual = {name: middle for name, (_, middle, _) in profile.items()}
    tuned = None
    if engine is not None and max_batch:
        tuned = min(max_batch, *(shape[0] for shape in usual.values()))
    return Network(
        name=name,
        backend="onnxruntime" if engine is None else "tensorrt",
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch,
        usual_batch=tuned,
        usual=usual,
    )


def _stage_steps(manifest: Manifest, networks: Mapping[str, Network]) -> list[Step]:
    """The graphs that can run one after the other without the client."""
    picked = set(_PICKED)
    steps = []
    for stage, network in networks.items():
        taken, given = STAGES[manifest.family][stage]
        if picked & set(taken):
            picked |= set(given)
            continue
        steps.append(_step(network))
    return steps


def _stage_ensemble(name: str, manifest: Manifest, steps: Sequence[Step]) -> dict[str, Any]:
    """The ensemble of graphs that follow one another, with sampled tensors as inputs."""
    tensors = {tensor.name: tensor for tensor in (*manifest.inputs, *manifest.outputs)}
    given = {output for step in steps for output in step.outputs}
    taken = dict.fromkeys(each for step in steps for each in step.inputs if each not in given)
    return ensemble_config(
        name,
        steps,
        inputs=[tensors[each] for each in taken],
        outputs=[tensors[each] for each in steps[-1].outputs],
        max_batch=0,
    )


def _mean(name: str, manifest: Manifest, networks: tuple[str, ...], max_batch: int) -> Network:
    inputs, outputs = mean_tensors(manifest.outputs[0], list(networks))
    ranges = {"batch": (1, 1, max_batch)}
    return Network(
        name=name,
        backend="onnxruntime",
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch,
        usual={name: usual for name, (_, usual, _) in profile_of(inputs, ranges).items()},
        joins=False,
    )


def _mean_ensemble(
    name: str, manifest: Manifest, networks: Mapping[str, Network], mean: Network
) -> dict[str, Any]:
    """The ensemble of all networks on the same views, and their mean."""
    scores = manifest.outputs[0].name
    steps = [
        Step(
            model=network.name,
            inputs={tensor.name: tensor.name for tensor in network.inputs},
            outputs={scores: into.name},
        )
        for network, into in zip(networks.values(), mean.inputs, strict=True)
    ]
    return ensemble_config(
        name,
        [*steps, _step(mean)],
        inputs=manifest.inputs,
        outputs=mean.outputs,
        max_batch=mean.max_batch,
    )


def _step(network: Network) -> Step:
    """A step that keeps the names of the network's tensors."""

    def names(tensors: Sequence[TensorSpec]) -> dict[str, str]:
        return {tensor.name: tensor.name for tensor in tensors}

    return Step(model=network.name, inputs=names(network.inputs), outputs=names(network.outputs))


def mean_tensors(
    scores: TensorSpec, networks: list[str]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the graph that averages networks.

    Args:
        scores: The scores of each network, (batch, domains).
        networks: Names of the networks.

    Returns:
        The inputs `{scores}_{network}`, (batch, domains) each. The outputs: their mean, with the
        name of `scores`, and `{scores}_networks`, (batch, networks, domains).
    """
    shape = (*scores.shape[:1], len(networks), *scores.shape[1:])

    def like(name: str, sizes: tuple[int | str, ...]) -> TensorSpec:
        return TensorSpec(name=name, dtype=scores.dtype, shape=sizes)

    inputs = tuple(like(f"{scores.name}_{network}", scores.shape) for network in networks)
    return inputs, (scores, like(f"{scores.name}_networks", shape))


def write_mean_graph(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], path: Path
) -> None:
    """Writes the graph with the tensors of `mean_tensors`, in float32."""
    from onnx import TensorProto, checker, helper, save  # noqa: PLC0415 - optional

    def tensor(spec: TensorSpec) -> object:
        return helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))

    mean, apart = outputs
    rows = [f"{spec.name}_row" for spec in inputs]
    nodes = [
        *(
            helper.make_node("Unsqueeze", [spec.name, "networks"], [row], name=f"row/{spec.name}")
            for spec, row in zip(inputs, rows, strict=True)
        ),
        helper.make_node("Concat", rows, [apart.name], name="apart", axis=1),
        helper.make_node(
            "ReduceMean", [apart.name, "networks"], [mean.name], name="mean", keepdims=0
        ),
    ]
    axis = helper.make_tensor("networks", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(
        nodes, "mean", [tensor(spec) for spec in inputs], [tensor(spec) for spec in outputs], [axis]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _MEAN_OPSET)], ir_version=_MEAN_IR_VERSION
    )
    checker.check_model(model, full_check=True)
    save(model, path)
