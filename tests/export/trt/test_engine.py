"""Engines built for real by TensorRT-RTX, which needs no GPU for that."""

import dataclasses
import gc
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

import mosrt
from mosrt.backends.engine_file import EngineFiles, Profile
from mosrt.backends.trt_module import TensorRt
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import TensorSpec
from mosrt_calibration.graph import Topology, read_graph, write_graph
from mosrt_calibration.passes.fp16 import to_fp16
from mosrt_calibration.passes.qdq import with_qdq
from mosrt_calibration.passes.targets import Targets
from mosrt_export.errors import EngineError
from mosrt_export.trt.builder import BuildSettings, build_engine
from mosrt_export.trt.engines import plan_engines, target_of
from mosrt_export.trt.shapes import profile_of, size_ranges
from tests.standins.engine_graphs import BATCHES, QUICK, X, Y, built, half, quantised, save


@pytest.mark.parametrize("name", ["distillmos", "nano", "nano-uncertainty"])
def test_embedded_models_build(rtx: TensorRt, name: str, tmp_path: Path) -> None:
    """Every graph, its inputs and outputs held to the manifest by the builder."""
    bundle = Bundle.open(find_bundle(name))
    seconds = 5.0 if name == "nano-uncertainty" else None
    files = EngineFiles(tmp_path)
    planned = plan_engines(
        bundle.manifest,
        bundle.variant("fp32"),
        bundle.path,
        target=target_of(rtx),
        ranges=size_ranges(bundle.manifest, max_seconds=seconds),
        settings=QUICK,
    )
    assert [engine.name for engine in planned] == [
        member.name for member in bundle.variant("fp32").members
    ]
    for engine in planned:
        assert engine.fault(files) == "it is missing"
        path = engine.build(rtx, files)
        assert engine.fault(files) is None
        with files.opened(path) as (header, content):
            assert header.key.profile == engine.key.profile
            # Weights cannot vanish, nor is an engine many times as large.
            weights = (
                0 if engine.name in ("contrast", "dense") else engine_weights(bundle, engine.name)
            )
            assert weights / 2 < len(content) < 4 * weights + 4_000_000


def engine_weights(bundle: Bundle, name: str) -> int:
    (member,) = (each for each in bundle.variant("fp32").members if each.name == name)
    assert member.weights is not None
    return member.weights.bytes


def test_a_front_end_in_the_graph_builds(rtx: TensorRt, student: Path, tmp_path: Path) -> None:
    """From segments to scores, in float32 and with the networks in float16 or int8."""
    manifest = Bundle.open(student).manifest
    assert [tensor.name for tensor in manifest.inputs] == ["waveform"]
    profile = profile_of(manifest.inputs, size_ranges(manifest))
    path = student / "model.fp32.onnx"
    model = read_graph(path)
    targets = Targets.of(Topology(model))
    graphs = {"fp32": path}
    spans = dict.fromkeys(targets.tensors(Topology(model)), (-4.0, 4.0))
    for name, made in (
        ("fp16", to_fp16(model)),
        ("int8", with_qdq(model, spans, targets.weighted, symmetric=True)),
    ):
        graphs[name], _ = write_graph(made, tmp_path / f"{name}.onnx")
    sizes = {
        name: build_engine(
            rtx,
            graph,
            profile,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            settings=QUICK,
        ).nbytes
        for name, graph in graphs.items()
    }
    assert min(sizes.values()) > 500_000  # the front end's constants alone, whatever the precision
    embedded = Bundle.open(find_bundle("nano-uncertainty")).manifest
    with pytest.raises(mosrt.BundleError, match="the graph's"):
        build_engine(
            rtx,
            path,
            profile,
            inputs=embedded.inputs,
            outputs=embedded.outputs,
            settings=QUICK,
        )


def test_half_precision_and_symmetric_int8_build(rtx: TensorRt, tmp_path: Path) -> None:
    assert built(rtx, half(tmp_path / "half.onnx")) > 0
    assert built(rtx, quantised(tmp_path / "int8.onnx", np.int8(0))) > 0


def test_an_operator_that_tensorrt_does_not_have(rtx: TensorRt, tmp_path: Path) -> None:
    path = save(
        tmp_path / "det.onnx",
        [helper.make_node("Det", ["x"], ["y"], name="model.head/Det")],
        [],
        ["batch", 3],
    )
    with pytest.raises(
        EngineError,
        match="node 'model.head/Det': it does not support this use of Det.*provider 'cuda'",
    ):
        built(rtx, path, y=dataclasses.replace(Y, shape=("batch", 3)))


@pytest.mark.parametrize(
    "y",
    [
        dataclasses.replace(Y, shape=("batch", 8, 14, 15)),
        dataclasses.replace(Y, dtype="float16"),
        dataclasses.replace(Y, name="z"),
        dataclasses.replace(Y, shape=(1, 8, 14, 14)),
    ],
)
def test_a_graph_that_the_manifest_does_not_describe(
    rtx: TensorRt, tmp_path: Path, y: TensorSpec
) -> None:
    with pytest.raises(mosrt.BundleError, match=f"the graph's output {y.name!r}"):
        built(rtx, half(tmp_path / "half.onnx"), y=y)


def test_missing_weights(rtx: TensorRt, tmp_path: Path) -> None:
    """TensorRT's own words are in the error."""
    path = tmp_path / "model.fp32.onnx"
    path.write_bytes((Path(find_bundle("nano")) / path.name).read_bytes())
    manifest = Bundle.open(find_bundle("nano")).manifest
    profile: Profile = profile_of(manifest.inputs, BATCHES)
    with pytest.raises(EngineError, match=r"(?s)could not read the graph.*model\.fp32\.onnx\.data"):
        build_engine(
            rtx, path, profile, inputs=manifest.inputs, outputs=manifest.outputs, settings=QUICK
        )


def test_a_level_out_of_range_is_said(rtx: TensorRt, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not take optimisation level 99"):
        built(rtx, half(tmp_path / "a.onnx"), settings=BuildSettings(level=99))


def test_engines_load_through_real_tensorrt_or_say_why(rtx: TensorRt, tmp_path: Path) -> None:
    """With a GPU the engine deserialises; without one TensorRT's own words come through."""
    path = half(tmp_path / "half.onnx")
    engine = build_engine(
        rtx, path, profile_of([X], BATCHES), inputs=[X], outputs=[Y], settings=QUICK
    )
    with rtx.log() as lines, memoryview(engine) as content:
        loaded = rtx.module.Runtime(rtx.logger).deserialize_cuda_engine(content)
    if loaded is None:
        assert any("CUDA driver" in line for line in lines)
    else:
        assert loaded.num_io_tensors == 2
    del loaded
    gc.collect()
