"""Writes model repositories: the folder that Triton serves, with a README and a client."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from mosrt.backends.engine_file import EngineFiles, Target
from mosrt.bundle.bundle import MODEL_CARD_NAME, Bundle
from mosrt.bundle.manifest import File, Manifest, Member, Variant
from mosrt.bundle.variants import check, reference
from mosrt.bundle.writer import check_target, new_directory
from mosrt.errors import ProviderError
from mosrt_export.errors import TritonError
from mosrt_export.graphs.heads import write_folded
from mosrt_export.markdown import rendered
from mosrt_export.parity import audio_sources

from .config import Network, Serving, to_text
from .plan import Plan, ServedEngine, match_engines, plan_repository, write_mean_graph

__all__ = ["MODEL_FACTS_NAME", "guide", "write_repository"]

MODEL_FACTS_NAME: Final = "mosrt-model.json"
"""Facts about the model for clients; the file also marks a folder as written by this module."""
_KIND: Final = "model repository of mosrt"
_VERSION: Final = "1"
_ONNX: Final = "model.onnx"
_TENSORRT: Final = "model.plan"
_CLIENT: Final = "client.py"
_WAYS: Final = {"--cpu": "cpu", "--gpu": "cuda", "--engine": "tensorrt"}


def write_repository(
    bundle: Bundle,
    out: Path,
    *,
    variant: str | None,
    serving: Serving,
    engines: Sequence[Path],
    max_batch: int | None,
    force: bool,
) -> Plan:
    """Writes a model repository of a bundle's variant, by default the reference, to `out`.

    `engines` are files of the variant that `mosrt build` wrote; without them, ONNX Runtime serves
    the graphs. `force` replaces an older repository. The other options are as in `plan_repository`.
    Domains that mosrt computes from the outputs of the graphs become part of the graphs.

    Raises:
        BundleError: There is no such variant, or a file is damaged.
        TritonError: The bundle cannot be served as requested.
        OutputError: `out` must not or cannot be written.
    """
    check_target(out, force=force, kind=_KIND, mark=MODEL_FACTS_NAME)
    manifest = bundle.manifest
    if manifest.heads:
        if engines:
            raise TritonError(
                f"engines do not compute domain {', '.join(manifest.heads)}; put it into the "
                "graphs with `mosrt export folded`, and build engines of that bundle"
            )
        with TemporaryDirectory(prefix="mosrt-") as temporary:
            folded = Path(temporary, "folded")
            write_folded(bundle, folded, clips=audio_sources(None)[:1])
            return write_repository(
                Bundle.open(folded), out, variant=variant, serving=serving, engines=(),
                max_batch=max_batch, force=force,
            )  # fmt: skip
    provider = "tensorrt" if engines else "cuda" if serving.gpu else "cpu"
    name = _variant(bundle, variant, provider)
    chosen = bundle.variant(name)
    matched = match_engines(manifest, chosen, engines) if engines else {}
    plan = plan_repository(manifest, chosen, serving=serving, engines=matched, max_batch=max_batch)
    with new_directory(out, force=force, kind=_KIND, mark=MODEL_FACTS_NAME) as directory:
        for model, config in plan.configs.items():
            # Triton needs a version folder for every model, empty for an ensemble.
            (directory / model / _VERSION).mkdir(parents=True)
            _write(directory / model / "config.pbtxt", to_text(config))
        _write_networks(bundle, chosen, plan.networks, matched, directory)
        if plan.mean is not None:
            write_mean_graph(plan.mean, directory / plan.mean.name / _VERSION / _ONNX)
        facts = {
            "model": plan.model,
            "variant": name,
            "networks": {member: network.name for member, network in plan.networks.items()},
            "manifest": manifest.to_dict(),
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        _write(directory / MODEL_FACTS_NAME, f"{text}\n")
        _write(directory / _CLIENT, Path(__file__).with_name(_CLIENT).read_text(encoding="utf-8"))
        target = next(iter(matched.values())).key.target if matched else None
        _write(directory / "README.md", guide(manifest, name, plan, serving, target))
        if card := bundle.model_card():
            _write(directory / MODEL_CARD_NAME, card)
    return plan


def _variant(bundle: Bundle, asked: str | None, provider: str) -> str:
    """The name of the variant to serve."""
    if asked is None:
        return reference(tuple(bundle.manifest.variants), provider).variant
    bundle.variant(asked)
    if not _runs(asked, provider):
        ways = " or ".join(way for way, place in _WAYS.items() if _runs(asked, place))
        raise TritonError(
            f"variant {asked!r} cannot be served like this; use {ways}, or choose another "
            f"variant (there are {', '.join(bundle.manifest.variants)})"
        )
    return asked


def _runs(variant: str, provider: str) -> bool:
    try:
        check(variant, provider)
    except ProviderError:
        return False
    return True


def _write_networks(
    bundle: Bundle,
    variant: Variant,
    networks: Mapping[str, Network],
    engines: Mapping[str, ServedEngine],
    directory: Path,
) -> None:
    """Copies graphs with their weights, or engines, into the version folders."""
    with bundle.extracted(variant) as source:
        for member in variant.members:
            version = directory / networks[member.name].name / _VERSION
            if member.name in engines:
                path = engines[member.name].path
                with EngineFiles(path.parent).opened(path) as (_, engine):
                    (version / _TENSORRT).write_bytes(engine)  # without mosrt's header
                continue
            _copy(source, member.graph, version / _ONNX)
            if member.weights is not None:
                # The graph refers to its weights by a path relative to its folder.
                _copy(source, member.weights, version / _beside(member, member.weights))


def _beside(member: Member, weights: File) -> PurePosixPath:
    """Path of the weights relative to the graph's folder."""
    folder = PurePosixPath(member.graph.path).parent
    try:
        beside = PurePosixPath(weights.path).relative_to(folder)
    except ValueError:
        raise TritonError(
            f"{weights.path}: is outside of the folder of {member.graph.path}, where ONNX "
            "Runtime does not read weights; export the bundle again"
        ) from None
    if str(beside) == _ONNX:
        raise TritonError(f"{weights.path}: has a file name that Triton reserves; export again")
    return beside


def _copy(source: Path, file: File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / file.path, target)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def guide(
    manifest: Manifest, variant: str, plan: Plan, serving: Serving, target: Target | None
) -> str:
    """The README as Markdown; `target` is that of the engines, or None."""
    spec, ssl, mel = manifest.uncertainty, manifest.ssl, manifest.mel
    limit = max(network.max_batch for network in plan.networks.values())
    inputs = {tensor.name for network in plan.networks.values() for tensor in network.inputs}
    return rendered(
        "triton-readme.md",
        manifest=manifest,
        variant=variant,
        version=importlib.metadata.version("mosrt"),
        plan=plan,
        limit=limit,
        copies=_counted(serving.instances, "copy", "copies"),
        batched=limit > 1,
        serving=serving,
        target=target,
        on_cuda=serving.gpu and target is None,
        stages=spec is not None and plan.model is not None and len(plan.networks) > 1,
        # Inputs that a client samples or selects.
        **{name: name in inputs for name in ("negatives", "keep", "spans", "queries")},
        in_graph=manifest.front_end == "graph",
        models="\n".join(_row(name, config) for name, config in plan.configs.items()),
        scores=manifest.outputs[0].name,
        domains=", ".join(manifest.domains),
        limits=" to ".join(f"{limit:g}" for limit in manifest.mos_range),
        deviation=manifest.deviation,
        spec=spec,
        window_s=0 if spec is None else spec.window_samples / manifest.sample_rate_hz,
        grid=manifest.grid,
        segments=manifest.family == "segments",
        ssl=ssl,
        mel=mel,
        crops="" if mel is None else _counted(mel.n_crops, "crop", "crops"),
        windows="" if mel is None else ", ".join(map(str, mel.windows)),
    )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _row(name: str, config: Mapping[str, Any]) -> str:
    """A row of the table of models."""
    ensemble = " (ensemble)" if "ensemble_scheduling" in config else ""
    inputs, outputs = (
        ", ".join(_tensor(tensor, config["max_batch_size"]) for tensor in config[kind])
        for kind in ("input", "output")
    )
    return f"| {name}{ensemble} | {inputs} | {outputs} |"


def _tensor(tensor: Mapping[str, Any], max_batch: int) -> str:
    sizes = [str(size) for size in tensor["dims"]]
    shape = ", ".join(["batch", *sizes] if max_batch else sizes)
    return f"{tensor['name']} {tensor['data_type'].removeprefix('TYPE_')} ({shape})"
