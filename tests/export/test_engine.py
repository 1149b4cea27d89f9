"""Engines built for real by TensorRT-RTX, which needs no GPU for that."""

import dataclasses
import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import mosrt
from mosrt.backends.trt_module import TensorRt, find_tensorrt
from mosrt.bundle import Bundle
from mosrt.embedded import find_bundle
from mosrt.engine_file import EngineFiles, Profile
from mosrt.manifest import TensorSpec
from mosrt_export.cli_build import build
from mosrt_export.engine.builder import BuildSettings, build_engine
from mosrt_export.engine.bundle_engines import plan_engines, target_of
from mosrt_export.engine.errors import EngineError
from mosrt_export.engine.shapes import profile_of, size_ranges
from mosrt_export.engine.wire import read_graph
from mosrt_export.engine.zero_points import check_zero_points
from tests.export.test_wav2vec2 import export, saved

QUICK = BuildSettings(level=0, workspace_bytes=1 << 28)
X = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 16, 16))
Y = TensorSpec(name="y", dtype="float32", shape=("batch", 8, 14, 14))
BATCHES = {"batch": (1, 2, 4)}


@pytest.fixture(scope="session")
def rtx() -> TensorRt:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx")
    return find_tensorrt()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path: Path, nodes: Sequence[Any], constants: Sequence[Any], y: Sequence[Any]) -> Path:
    """A graph from x (batch, 3, 16, 16) to y."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def quantised(path: Path, zero_point: Any, *, constant_node: bool = False) -> Path:
    """A convolution of 8 bits, with a zero point of the activations."""
    weights = np.random.default_rng(0).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    zero_points = {"x_zero": np.asarray(zero_point), "w_zero": np.zeros(8, np.int8)}
    scales = {"x_scale": np.float32(0.02), "w_scale": np.full(8, 0.01, np.float32)}
    constants = {"w": weights, **zero_points, **scales}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x8"], name="conv/in/q"),
        helper.make_node("DequantizeLinear", ["x8", "x_scale", "x_zero"], ["xf"], name="conv/in/d"),
        helper.make_node(
            "DequantizeLinear", ["w", "w_scale", "w_zero"], ["wf"], name="conv/w/d", axis=0
        ),
        helper.make_node("Conv", ["xf", "wf"], ["y"], name="conv"),
    ]
    if constant_node:
        value = numpy_helper.from_array(constants.pop("x_zero"))
        nodes.insert(0, helper.make_node("Constant", [], ["x_zero"], value=value))
    tensors = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    return save(path, nodes, tensors, ["batch", 8, 14, 14])


def half(path: Path) -> Path:
    """A convolution in float16 between float32 ends."""
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["xh"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["xh", "w"], ["yh"], name="conv"),
        helper.make_node("Cast", ["yh"], ["y"], to=TensorProto.FLOAT),
    ]
    return save(path, nodes, [numpy_helper.from_array(weights, "w")], ["batch", 8, 14, 14])


def built(
    tensorrt: TensorRt, path: Path, *, y: TensorSpec = Y, settings: BuildSettings = QUICK
) -> int:
    """Size of the engine of a small graph."""
    engine = build_engine(
        tensorrt, path, profile_of([X], BATCHES), inputs=[X], outputs=[y], settings=settings
    )
    return int(engine.nbytes)


def test_an_ensemble_builds(rtx: TensorRt, tiny: Path, tmp_path: Path) -> None:
    """Of family "fusion", with two inputs, from a zip."""
    path = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny)
    result = run(path, "--level", "0", "--opt-batch", "1")
    assert result.exit_code == 0, result.output
    assert result.output.count("building ") == 2
    assert run(path, "--level", "0", "--opt-batch", "1", "--no-build").exit_code == 0
    assert rtx.name in result.output


@pytest.mark.parametrize("name", ["nano", "nano-uncertainty"])
def test_embedded_models_build(rtx: TensorRt, name: str, tmp_path: Path) -> None:
    """Every graph, its inputs and outputs held to the manifest by the builder."""
    bundle = Bundle.open(find_bundle(name))
    seconds = None if name == "nano" else 5.0
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
        assert engine.fault(files) == "there is none"
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


@pytest.mark.parametrize("head", ["ctc", "pretraining"])
def test_transformers_build(rtx: TensorRt, head: str, tmp_path: Path) -> None:
    """wav2vec 2.0 with either head; one takes a single recording, and that in many passes."""
    saved("group" if head == "ctc" else head, tmp_path / "model")
    bundle = export(tmp_path / "model", tmp_path / "bundle", "--head", head)
    result = run(str(bundle), "--level", "0", "--max-seconds", "2")
    assert result.exit_code == 0, result.output
    assert result.output.count("building convolutions") == 1
    assert result.output.count("building encoder") == 1
    assert rtx.name in result.output


def test_half_precision_and_symmetric_int8_build(rtx: TensorRt, tmp_path: Path) -> None:
    assert built(rtx, half(tmp_path / "half.onnx")) > 0
    assert built(rtx, quantised(tmp_path / "int8.onnx", np.int8(0))) > 0


@pytest.mark.parametrize(
    ("zero_point", "words"),
    [
        (np.uint8(128), "is of type uint8"),
        (np.uint8(0), "is of type uint8"),  # TensorRT would take it for int8 without a word
        (np.int8(5), "has a zero point other than 0"),
    ],
)
@pytest.mark.parametrize("constant_node", [False, True])
def test_other_zero_points_are_refused(
    tmp_path: Path, zero_point: Any, words: str, constant_node: bool
) -> None:
    path = quantised(tmp_path / "u8s8.onnx", zero_point, constant_node=constant_node)
    with pytest.raises(EngineError, match=f"'conv/in/q'.*{words}.*symmetric int8.*int8-trt"):
        check_zero_points(path)


def test_asymmetric_graphs_never_reach_the_parser(
    rtx: TensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx.module, "OnnxParser", None)
    with pytest.raises(EngineError, match="symmetric int8 only"):
        built(rtx, quantised(tmp_path / "u8s8.onnx", np.uint8(128)))


def test_zero_points_outside_of_the_file(tmp_path: Path) -> None:
    for value, fine in ((0, True), (3, False)):
        model = onnx.load(quantised(tmp_path / "in.onnx", np.int8(value)))
        target = tmp_path / f"{value}.onnx"
        onnx.save(
            model, target, save_as_external_data=True, location=f"{value}.data", size_threshold=0
        )
        if fine:
            check_zero_points(target)
        else:
            with pytest.raises(EngineError, match="other than 0"):
                check_zero_points(target)


def test_a_computed_zero_point_and_none_are_refused(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.float32(0.1), "s")
    path = save(
        tmp_path / "a.onnx",
        [
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="first"),
            helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
        ],
        [scale],
        ["batch", 3, 16, 16],
    )
    with pytest.raises(EngineError, match="'first'.*no zero point, which means uint8"):
        check_zero_points(path)
    path = save(
        tmp_path / "b.onnx",
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], name="second"),
        ],
        [],
        ["batch", 3, 16, 16],
    )
    with pytest.raises(EngineError, match="'second'.*computed"):
        check_zero_points(path)


def test_wire_reads_what_onnx_reads() -> None:
    for name in ("nano/model", "nano-uncertainty/encoder", "nano-uncertainty/contrast"):
        path = Path(mosrt.__file__).parent / "models" / f"{name}.fp32.onnx"
        graph = onnx.load(path).graph
        nodes, constants = read_graph(path)
        assert [(node.name, node.op_type, node.inputs) for node in nodes] == [
            (node.name, node.op_type, tuple(node.input)) for node in graph.node
        ]
        for node, wanted in zip(nodes, graph.node, strict=True):
            assert node.integers == {a.name: a.i for a in wanted.attribute if a.type == a.INT}
        for tensor in graph.initializer:
            assert constants[tensor.name].data_type == tensor.data_type
            zeros = not numpy_helper.to_array(tensor).any()
            assert constants[tensor.name].all_zeros() == zeros, tensor.name


@pytest.mark.parametrize("content", [b"\x0f", b"\x3a\x7f", b"\x3a", b"no protocol buffer"])
def test_what_is_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is no ONNX file"):
        read_graph(path)
    with pytest.raises(EngineError, match="cannot be read"):
        read_graph(tmp_path / "missing.onnx")


def test_an_operator_that_tensorrt_does_not_have(rtx: TensorRt, tmp_path: Path) -> None:
    path = save(
        tmp_path / "det.onnx",
        [helper.make_node("Det", ["x"], ["y"], name="model.head/Det")],
        [],
        ["batch", 3],
    )
    with pytest.raises(EngineError, match="node 'model.head/Det': it has no Det.*provider 'cuda'"):
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


def test_shapes_of_uncertainty_models() -> None:
    manifest = Bundle.open(find_bundle("nano-uncertainty")).manifest
    ranges = size_ranges(manifest)
    # A frame per 160 samples of at least 465; 945 are the fewest and 20 s the most in one piece.
    assert ranges["samples"] == (945, 80_000, 320_000)
    assert ranges["frames"] == (4, 498, 1_998)
    assert size_ranges(manifest, max_seconds=2.0)["samples"] == (945, 32_000, 32_000)
    assert size_ranges(manifest, max_seconds=100.0) == ranges
    profile = profile_of(manifest.inputs, ranges)
    assert profile["negatives"] == ((1, 10, 4), (1, 10, 498), (1, 10, 1_998))
    with pytest.raises(EngineError, match="raise --max-seconds"):
        size_ranges(manifest, max_seconds=0.05)
    with pytest.raises(EngineError, match="one recording at a time"):
        size_ranges(manifest, batch=(1, 1, 1))
    strange = TensorSpec(name="x", dtype="float32", shape=("batch", "rows"))
    with pytest.raises(EngineError, match="'x' has a dimension 'rows'"):
        profile_of([strange], ranges)


def test_shapes_of_mos_models() -> None:
    manifest = Bundle.open(find_bundle("nano")).manifest
    assert size_ranges(manifest) == {"batch": (1, 4, 4)}
    with pytest.raises(EngineError, match="views of one length"):
        size_ranges(manifest, max_seconds=3.0)
    with pytest.raises(EngineError, match="do not ascend"):
        size_ranges(manifest, batch=(2, 1, 4))


def run(*args: str) -> Result:
    return CliRunner().invoke(build, args, catch_exceptions=False)


def test_the_command_builds_once(rtx: TensorRt, cache: Path, tmp_path: Path) -> None:
    quick = ["nano", "--level", "0", "--opt-batch", "2"]
    refused = run(*quick, "--no-build")
    assert refused.exit_code == 1
    assert "no engine of nano" in refused.output
    assert "there is none" in refused.output
    first = run(*quick, "--out", str(tmp_path / "out"))
    assert first.exit_code == 0
    assert "building nano with TensorRT-RTX" in first.output
    (engine,) = (cache / "engines").glob("*.engine")
    content = engine.read_bytes()
    # The plain engine is the file without the two lines in front.
    plain = (tmp_path / "out" / "model.fp32.engine").read_bytes()
    assert content.endswith(plain)
    header = json.loads(content.splitlines()[1])
    assert header["engine_bytes"] == len(plain)
    assert header["profile"]["images"] == [[n, 2, 120, 501] for n in (1, 2, 2)]
    assert header["module"] == rtx.name
    again = run(*quick)
    assert again.exit_code == 0
    assert "building" not in again.output
    assert engine.read_bytes() == content
    # A damaged one is refused, and then built anew.
    engine.write_bytes(content[:-1])
    assert "bytes" in run(*quick, "--no-build").output
    assert "building" in run(*quick).output
    assert run(*quick, "--no-build").exit_code == 0
    # So is one that was built with other settings.
    harder = run("nano", "--level", "1", "--opt-batch", "2", "--no-build")
    assert harder.exit_code == 1
    assert "it was built with {'level': 0" in harder.output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere"], "no such bundle"),
        (["nano", "--variant", "fp8"], "no variant 'fp8'; it has: fp32"),
        (["nano", "--max-seconds", "3"], "leave --max-seconds out"),
        (["nano", "--min-batch", "3", "--max-batch", "2"], "do not ascend"),
        (["nano-uncertainty", "--opt-batch", "2"], "one recording at a time"),
    ],
)
def test_options_that_do_not_fit(options: list[str], words: str) -> None:
    result = run(*options)
    assert result.exit_code == 1
    assert words in result.output


def test_without_tensorrt_the_command_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("nano")
    assert result.exit_code == 1
    assert "JetPack" in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_building_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'onnx', 'onnx_ir')))\n"
        "from mosrt_export.cli_build import build\n"
        "build(['nano', '--no-build'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1
    assert "no engine of nano" in found.stderr or "TensorRT is missing" in found.stderr


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
