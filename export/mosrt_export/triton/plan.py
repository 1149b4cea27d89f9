"""Plans a model repository: the models that a bundle becomes, and the ensembles of them.

Ensembles of Triton pass tensors on and compute nothing, so the mean over networks is a graph of its
own, which is written here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mosrt.backends.engine_file import EngineFiles, EngineKey
from mosrt.bundle.manifest import Manifest, Member, TensorSpec, Variant
from mosrt.bundle.uncertainty_spec import STAGES
from mosrt_export.errors import TritonError
from mosrt_export.trt.shapes import member_tensors, profile_of, size_ranges

from .config import Network, Serving, ensemble_config, ensemble_step, network_config

__all__ = ["Plan", "ServedEngine", "match_engines", "plan_repository", "write_mean_graph"]

_SERVED_MODULE: Final = "tensorrt"
_DEFAULT_MAX_BATCH: Final = 8
_MEAN_OPSET: Final = 18
# The oldest IR version that has the opset, so that old servers can read it.
_MEAN_IR_VERSION: Final = 8
# Inputs that a client selects from the outputs of an earlier graph, which no ensemble can do.
_PICKED: Final = frozenset({"queries"})
# Names that are safe for shells, URLs and file systems.
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedEngine:
    """An engine file in mosrt's cache that passed all checks, and what it was built from."""

    path: Path
    key: EngineKey


def match_engines(
    manifest: Manifest, variant: Variant, paths: Sequence[Path]
) -> Mapping[str, ServedEngine]:
    """Matches files that `mosrt build` wrote, in any order, with the networks of a variant.

    Returns:
        Engines by name of the network.

    Raises:
        TritonError: A file is damaged, belongs to another graph or cannot run on Triton, or one is
            missing.
    """
    networks = {member.sha256: member for member in variant.members}
    found: dict[str, ServedEngine] = {}
    for path in paths:
        engine = _read(path)
        member = networks.get(engine.key.graph)
        if member is None:
            raise TritonError(
                f"{path}: belongs to graph {engine.key.graph[:16]}, which is not in this variant; "
                "pass the files that `mosrt build` prints for the same bundle and variant"
            )
        if member.name in found:
            raise TritonError(f"{path}: a second engine of {member.name}; pass one per network")
        fewest = max((smallest[0] for smallest, _, _ in engine.key.profile.values()), default=1)
        if manifest.uncertainty is None and fewest > 1:
            raise TritonError(
                f"{path}: needs at least {fewest} views, but a request may have one; build it "
                "with `mosrt build --min-batch 1`"
            )
        found[member.name] = engine
    missing = [member.name for member in variant.members if member.name not in found]
    if missing:
        raise TritonError(
            f"no engine of {', '.join(missing)}; pass --engine once per network, with the files "
            "that `mosrt build` prints"
        )
    if len({engine.key.target for engine in found.values()}) > 1:
        targets = "; ".join(f"{name}: {engine.key.target}" for name, engine in found.items())
        raise TritonError(f"the engines are for different targets ({targets}); build them together")
    return found


def _read(path: Path) -> ServedEngine:
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
    return ServedEngine(path=path, key=key)


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

    `engines` are TensorRT engines by network; without them, ONNX Runtime serves the graphs. A run
    has at most `max_batch` views; by default 8, or the limit of the engines or the variant.

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
    mean = ensemble = None
    if not alone and manifest.uncertainty is None:
        mean = _mean(f"{name}_mean", manifest.outputs[0], tuple(networks), limit)
        if mean.name in configs:
            raise TritonError(f"two models would be called {mean.name!r}; rename the network")
        on_cpu = Serving(gpu=False, instances=serving.instances)
        configs[mean.name] = network_config(mean, on_cpu)
        configs[mean.name].pop("dynamic_batching", None)  # what it averages is batched already
        ensemble = _mean_ensemble(name, manifest, networks, mean)
    elif not alone:
        ensemble = _stage_ensemble(name, manifest, networks)
    if ensemble is not None:
        configs[name] = ensemble
    return Plan(
        model=name if alone or ensemble is not None else None,
        networks=networks,
        mean=mean,
        configs=configs,
    )


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise TritonError(
            f"{name!r} cannot be the name of a folder and a model; export the bundle again with "
            "a --name of letters, digits, dots, dashes and underscores"
        )
    return name


def _max_batch(
    manifest: Manifest, variant: Variant, engines: Mapping[str, ServedEngine], asked: int | None
) -> int:
    if manifest.uncertainty is not None:
        if asked is not None:
            raise TritonError(
                f"{manifest.name} processes one recording at a time; leave --max-batch out"
            )
        return 0
    if engines:
        limit = min(
            largest[0]
            for engine in engines.values()
            for _, _, largest in engine.key.profile.values()
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
    name: str, manifest: Manifest, member: Member, *, engine: ServedEngine | None, max_batch: int
) -> Network:
    inputs, outputs = member_tensors(manifest, member)
    profile = profile_of(inputs, size_ranges(manifest)) if engine is None else engine.key.profile
    return Network(
        name=name,
        backend="onnxruntime" if engine is None else "tensorrt",
        inputs=inputs,
        outputs=outputs,
        max_batch=max_batch,
        usual={name: middle for name, (_, middle, _) in profile.items()},
    )


def _stage_ensemble(
    name: str, manifest: Manifest, networks: Mapping[str, Network]
) -> dict[str, Any] | None:
    """The ensemble of the graphs that follow one another without the client, if there are two."""
    picked = set(_PICKED)
    served = []
    for stage, network in networks.items():
        taken, given = STAGES[manifest.family][stage]
        if picked & set(taken):
            picked |= set(given)
        else:
            served.append(network)
    if len(served) < 2:
        return None
    passed_on = {tensor.name for network in served for tensor in network.outputs}
    inputs = (tensor for network in served for tensor in network.inputs)
    # Once each, and none that an earlier graph computes.
    sent = {tensor.name: tensor for tensor in inputs if tensor.name not in passed_on}
    steps = [ensemble_step(network) for network in served]
    outputs = served[-1].outputs
    return ensemble_config(name, steps, inputs=[*sent.values()], outputs=outputs, max_batch=0)


def _mean(name: str, scores: TensorSpec, networks: tuple[str, ...], max_batch: int) -> Network:
    """The model that averages the scores (batch, domains) of networks.

    Its inputs are `{scores}_{network}`. Its outputs are the mean, with the name of `scores`, and
    `{scores}_networks`, (batch, networks, domains).
    """
    shape = (*scores.shape[:1], len(networks), *scores.shape[1:])
    inputs = tuple(
        dataclasses.replace(scores, name=f"{scores.name}_{network}") for network in networks
    )
    apart = dataclasses.replace(scores, name=f"{scores.name}_networks", shape=shape)
    return Network(
        name=name,
        backend="onnxruntime",
        inputs=inputs,
        outputs=(scores, apart),
        max_batch=max_batch,
        usual={name: one for name, (one, _, _) in profile_of(inputs, {"batch": (1, 1, 1)}).items()},
    )


def _mean_ensemble(
    name: str, manifest: Manifest, networks: Mapping[str, Network], mean: Network
) -> dict[str, Any]:
    """The ensemble of all networks on the same views, and their mean."""
    scores = manifest.outputs[0].name
    steps = [
        ensemble_step(network, {scores: into.name})
        for network, into in zip(networks.values(), mean.inputs, strict=True)
    ]
    steps.append(ensemble_step(mean))
    inputs, outputs, limit = manifest.inputs, mean.outputs, mean.max_batch
    return ensemble_config(name, steps, inputs=inputs, outputs=outputs, max_batch=limit)


def write_mean_graph(network: Network, path: Path) -> None:
    """Writes the graph of a plan's `mean`, in float32."""
    from onnx import TensorProto, checker, helper, save  # noqa: PLC0415 - optional

    mean, apart = network.outputs
    rows = [f"{spec.name}_row" for spec in network.inputs]
    nodes = [
        *(
            helper.make_node("Unsqueeze", [spec.name, "networks"], [row], name=f"row/{spec.name}")
            for spec, row in zip(network.inputs, rows, strict=True)
        ),
        helper.make_node("Concat", rows, [apart.name], name="apart", axis=1),
        helper.make_node(
            "ReduceMean", [apart.name, "networks"], [mean.name], name="mean", keepdims=0
        ),
    ]
    axis = helper.make_tensor("networks", TensorProto.INT64, [1], [1])
    inputs, outputs = (
        [helper.make_tensor_value_info(x.name, TensorProto.FLOAT, list(x.shape)) for x in specs]
        for specs in (network.inputs, network.outputs)
    )
    graph = helper.make_graph(nodes, "mean", inputs, outputs, [axis])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _MEAN_OPSET)], ir_version=_MEAN_IR_VERSION
    )
    checker.check_model(model, full_check=True)
    save(model, path)
